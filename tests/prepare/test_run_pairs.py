"""The documents and summaries of runs become pairs."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config.prepare import PrepareConfig
from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.prepare.extract import Pair, SplitReport, open_rows, read_pairs


def extract(output: Path, **limits: Any) -> tuple[dict[str, Pair], SplitReport]:
    config = PrepareConfig.model_validate({"input": {"train": str(output)}, "filter": limits})
    report = SplitReport()
    with tempfile.TemporaryDirectory() as scratch:
        rows, options = open_rows(str(output), "train", config.input, Path(scratch, "join"))
        pairs = [pair for _, pair in read_pairs(rows, options, config.filter, report)]
        assert not any(Path(scratch).iterdir())
    assert len({pair.id for pair in pairs}) == len(pairs)
    return {pair.id: pair for pair in pairs}, report


def test_latest_summaries_are_joined_with_their_documents(nights: Path) -> None:
    pairs, report = extract(nights / "out", keep_unfinished=True)
    documents = pq.read_table(nights / "in").to_pylist()
    texts = {row["id"]: row["text"] for row in reversed(documents) if row["id"] and row["text"]}
    summaries = {row["id"]: row for batch in pipeline.read_summaries(str(nights / "out")) for row in batch.to_pylist()}
    written = {key for key, row in summaries.items() if row["summary"].strip()}
    assert pairs.keys() == written & texts.keys()
    assert len(pairs) > 60
    for key, pair in pairs.items():
        assert (pair.source, pair.target) == (texts[key], summaries[key]["summary"].strip())
    assert report.rows == len(summaries)


def test_summaries_are_filtered_by_score_and_finish_reason(nights: Path) -> None:
    summaries = [row for batch in pipeline.read_summaries(str(nights / "out")) for row in batch.to_pylist()]
    cut = sum(row["finish_reason"] == "length" for row in summaries)
    _, report = extract(nights / "out")
    assert report.dropped["unfinished"] == cut > 0
    median = sorted(row["score"] for row in summaries)[len(summaries) // 2]
    _, report = extract(nights / "out", keep_unfinished=True, min_score=median)
    assert report.dropped["low_score"] == sum(row["score"] < median for row in summaries) > 0


def test_changed_documents_are_refused(nights: Path) -> None:
    file = nights / "in/0.parquet"
    written = file.stat()
    os.utime(file, (0, 0))
    try:
        with pytest.raises(UserError, match=r"in/0\.parquet has changed"):
            extract(nights / "out")
    finally:
        os.utime(file, ns=(written.st_atime_ns, written.st_mtime_ns))


def test_output_without_a_finished_run_is_refused(nights: Path, tmp_path: Path) -> None:
    shutil.copytree(nights / "out", tmp_path / "out")
    for marker in (tmp_path / "out/runs").glob("*/_SUCCESS"):
        marker.unlink()
    with pytest.raises(UserError, match="no run is finished"):
        extract(tmp_path / "out")


def summarize(folder: Path, bundle: Path, run_id: str, texts: dict[str, str], **options: Any) -> None:
    """Write documents to in/ and summarize them to out/; longer texts than 60 characters are rejected."""
    (folder / "in").mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": list(texts), "text": list(texts.values())}), folder / "in/a.parquet")
    values = {
        "input": {"path": "in", "max_chars": 60, **options},
        "output": {"path": "out", "run_id": run_id},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1},
    }
    execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None)


def test_document_that_was_rejected_since_its_summary_gives_no_pair(
    tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    summarize(tmp_path, tiny_bundle, "first", {"a": "This document speaks of graphs.", "b": "This one speaks of trees."})
    summarize(tmp_path, tiny_bundle, "second", {"a": "It grew. " * 9, "b": "This one speaks of trees."})
    monkeypatch.chdir("/")  # the runs' --input.path is relative
    assert extract(tmp_path / "out", keep_unfinished=True)[0].keys() == {"b"}


def test_file_that_the_run_skipped_gives_no_pairs(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in").mkdir()
    (tmp_path / "in/broken.parquet").write_bytes(b"PAR1 no footer PAR1")
    summarize(tmp_path, tiny_bundle, "first", {"a": "This document speaks of graphs."}, on_bad_file="skip")
    assert extract(tmp_path / "out", keep_unfinished=True)[0].keys() == {"a"}


def test_broken_manifest_and_style_column_are_refused(nights: Path, tmp_path: Path) -> None:
    shutil.copytree(nights / "out", tmp_path / "out")
    [*_, last] = sorted((tmp_path / "out/runs").glob("*/manifest.json"))
    last.write_text(last.read_text()[:-100])
    with pytest.raises(UserError, match=r"manifest\.json is broken"):
        extract(tmp_path / "out")
    options = PrepareConfig.model_validate({"input": {"train": str(nights / "out"), "style_column": "kind"}}).input
    with pytest.raises(UserError, match=r"--input\.style_column is set, but"):
        open_rows(str(nights / "out"), "train", options, tmp_path / "join")
