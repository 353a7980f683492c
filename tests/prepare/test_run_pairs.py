"""The documents and summaries of runs become pairs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.config.prepare import PrepareConfig
from pipeline.errors import UserError
from pipeline.prepare.extract import Pair, SplitReport, read_pairs


def extract(output: Path, **limits: Any) -> tuple[dict[str, Pair], SplitReport]:
    config = PrepareConfig.model_validate({"input": {"train": str(output)}, "filter": limits})
    report = SplitReport()
    pairs = [pair for _, pair in read_pairs(str(output), "train", config, report)]
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
