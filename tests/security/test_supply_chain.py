"""A credential is not committed, and an audit that could not be made does not pass for one."""

from __future__ import annotations

import importlib.util
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]


def _hook(folder: Path, *files: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "detect_secrets.pre_commit_hook", "--no-verify", "--baseline", ".secrets.baseline", *files]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_a_secret_that_is_about_to_be_committed_is_found(tmp_path: Path) -> None:
    shutil.copy(ROOT / ".secrets.baseline", tmp_path)
    subprocess.run(["git", "init", "--quiet", tmp_path], check=True)
    key = "AKIA" + "QK3M5XW7RZT2B6JD"  # in two parts, or this file would be found
    (tmp_path / "deploy.yaml").write_text(f"aws_access_key_id: {key}\n")
    (tmp_path / "clean.yaml").write_text("input:\n  path: s3://bucket/documents\n")
    found = _hook(tmp_path, "deploy.yaml")
    assert found.returncode == 1, found.stdout + found.stderr
    assert "AWS Access Key" in found.stdout
    assert key not in found.stdout
    assert _hook(tmp_path, "clean.yaml").returncode == 0


def _verdict(dependencies: list[dict[str, Any]]) -> tuple[int, str]:
    spec = importlib.util.spec_from_file_location("audit", ROOT / ".ci/audit.py")
    assert spec
    assert spec.loader
    audit = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(audit)
    status, lines = audit.verdict(dependencies)
    return status, "\n".join(lines)


@pytest.mark.parametrize(
    ("dependencies", "status", "told"),
    [
        ([{"name": "a", "version": "1", "vulns": []}], 0, "1 packages audited, 0 with"),
        ([{"name": "a", "version": "1", "vulns": [{"id": "PYSEC-1", "fix_versions": ["2"]}]}], 1, "a 1: PYSEC-1, fixed in 2"),
        ([{"name": "a", "skip_reason": "not found"}], 0, "NOT AUDITED: 1 of 1 packages"),
    ],
)
def test_an_audit_says_what_it_did_not_look_up(dependencies: list[dict[str, Any]], status: int, told: str) -> None:
    found, text = _verdict(dependencies)
    assert found == status
    assert told in text
