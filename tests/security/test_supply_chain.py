"""Credentials are not committed, and packages that cannot be audited are reported."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def run_hook(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "detect_secrets.pre_commit_hook", "--no-verify", "--baseline", ".secrets.baseline", *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_secret_blocks_a_commit(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".secrets.baseline", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    key = "AKIA" + "QK3M5XW7RZT2B6JD"  # in two parts, or the hook would find it in this file
    (tmp_path / "deploy.yaml").write_text(f"aws_access_key_id: {key}\n")
    (tmp_path / "clean.yaml").write_text("input:\n  path: s3://bucket/documents\n")
    result = run_hook(tmp_path, "deploy.yaml")
    assert result.returncode == 1, result.stdout + result.stderr
    assert "AWS Access Key" in result.stdout
    assert key not in result.stdout
    assert run_hook(tmp_path, "clean.yaml").returncode == 0


def audit_report(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec
    assert spec.loader
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    status, lines = audit.report(dependencies)
    return status, "\n".join(lines)


@pytest.mark.parametrize(
    ("dependencies", "status", "message"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages audited, 0 "),
        ([{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}], 1, "a 1: PYSEC-1"),
        ([{"name": "a", "skip_reason": "not found"}], 0, "NOT AUDITED: 1 of 1 packages"),
    ],
)
def test_audit_reports_vulnerable_and_unaudited_packages(dependencies: list[dict[str, Any]], status: int, message: str) -> None:
    exit_status, text = audit_report(dependencies)
    assert exit_status == status
    assert message in text
