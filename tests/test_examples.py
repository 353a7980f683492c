"""The scripts of docs/examples run as they are."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pyarrow.dataset as pads
import pytest

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "docs/examples"


def run(script: str, *arguments: object) -> str:
    command = [sys.executable, str(EXAMPLES / script), *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_own_documents_are_summarized_and_read_with_duckdb_and_pandas(tmp_path: Path) -> None:
    printed = run("own_documents.py", tmp_path)
    assert "language → " in printed
    assert "storage → " in printed
    printed = run("read_summaries.py", tmp_path / "out")
    assert "mean_score" in printed
    assert "storage" in printed


@pytest.mark.faults
def test_model_in_a_custom_pipeline(tmp_path: Path) -> None:
    run("own_pipeline.py", tmp_path)
    summaries = pads.dataset(tmp_path / "summaries").to_table()
    assert len(summaries) == 100
    assert all(summary.strip() for summary in summaries["summary"].to_pylist())


@pytest.mark.faults
def test_own_pairs_become_a_model(tmp_path: Path) -> None:
    run("own_pairs.py", tmp_path)
    assert (tmp_path / "trained/bundle/model.safetensors").exists()
    assert (tmp_path / "evaluation.json").exists()


@pytest.mark.faults
def test_summaries_go_back_to_iceberg(tmp_path: Path) -> None:
    assert "summary" in run("iceberg_and_back.py", tmp_path)


def test_every_script_is_listed_and_tested() -> None:
    scripts = {path.name for path in EXAMPLES.glob("*.py")}
    page, tests = (EXAMPLES / "README.md").read_text(), Path(__file__).read_text()
    assert all(f"({name})" in page and f'"{name}"' in tests for name in scripts)
