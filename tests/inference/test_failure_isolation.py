"""Documents that the decoder fails on, or that its process dies of, are rejected, and their neighbors summarized."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs
from small_runs import make_texts, read_ids, read_rows, run, write_documents

from pipeline import cluster
from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.summarize import DocumentsInput
from pipeline.data.splits import RowRange, Split
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.inference import failure_isolation
from pipeline.inference.failure_isolation import AttemptCounter, FailureBisection
from pipeline.inference.stages import read
from pipeline.inference.stages.read import ReadWindows
from pipeline.model.bundle import save_bundle
from pipeline.model.seq2seq import Seq2Seq
from pipeline.runs.unreadable_files import UnreadableFiles


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_bisection_finds_the_rows_that_fail(count: int, failing: set[int]) -> None:
    failing = {row for row in failing if row < count}

    def decode(rows: Any) -> list[int]:
        if caught := failing & set(rows.tolist()):
            raise ValueError(f"{len(caught)} fail")
        return rows.tolist()

    bisection = FailureBisection(None, "w")
    if len(failing) == count >= 8:
        with pytest.raises(ValueError, match=f"{count} fail"):
            bisection.run(np.arange(count), decode, lambda: None)
        return
    result, failures = bisection.run(np.arange(count), decode, lambda: None)
    assert result == sorted(set(range(count)) - failing)
    assert failures == dict.fromkeys(failing, "1 fail")


def test_decoder_that_fails_on_any_input_stops_the_run() -> None:
    def fail(_: Any = None) -> None:
        raise RuntimeError("the device is lost")

    with pytest.raises(RuntimeError, match="the device is lost"):
        FailureBisection(None, "w").run(np.arange(3), fail, fail)


@pytest.mark.faults
def test_bisection_finds_a_row_that_processes_die_of() -> None:
    cluster.connect()
    counter = AttemptCounter("one")

    class Decoder:  # local, or Ray's processes would import it from this file
        def decode(self) -> tuple[list[int], dict[int, str]]:
            def decode(rows: Any) -> list[int]:
                if 11 in rows:
                    os._exit(1)
                return rows.tolist()

            return FailureBisection(counter, "w").run(np.arange(20), decode, lambda: None)

    deaths = 0
    while True:
        decoder: Any = ray.remote(num_cpus=0)(Decoder).remote()
        try:
            result, failures = ray.get(decoder.decode.remote())
            break
        except ray.exceptions.ActorDiedError:
            deaths += 1
    assert result == [row for row in range(20) if row != 11]
    assert failures == {11: "the process that decoded it died, 2 times"}
    assert 2 <= deaths <= 12


def test_too_many_deaths_stop_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.connect()
    monkeypatch.setattr(failure_isolation, "MAX_DEATHS", 3)
    counter = AttemptCounter("other")
    for part in ("0-19", "0-19", "0-9", "0-9"):
        assert counter.begin("w", part)
    assert not counter.begin("w", "0-9")
    for count in (20, 4):
        with pytest.raises(UserError, match=r"^4 processes died"):
            FailureBisection(counter, "w").run(np.arange(count), lambda rows: rows, lambda: None)


def test_rows_that_processes_die_of_only_together_stop_the_run() -> None:
    cluster.connect()
    counter = AttemptCounter("third")
    for part in ("0-19", "others"):
        assert counter.begin("w", part)
        assert counter.begin("w", part)
    with pytest.raises(UserError, match="20 documents together"):
        FailureBisection(counter, "w").run(np.arange(20), lambda rows: rows, lambda: None)


@pytest.fixture
def split(tmp_path: Path) -> Split:
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two"]}), tmp_path / "in.parquet")
    return Split(3, (RowRange(str(tmp_path / "in.parquet"), 0, 0, 2, 2),))


def make_stage(split: Split, tokenizer_file: bytes, run_name: str) -> ReadWindows:
    return ReadWindows(
        filesystem=fs.LocalFileSystem(),
        window_rows=10,
        window_tokens=None,
        tokenizer_file=tokenizer_file,
        input=DocumentsInput(path=split.row_ranges[0].path),
        max_source_tokens=8,
        salt=b"",
        unreadable=UnreadableFiles("fail"),
        attempts=AttemptCounter(run_name),
    )


def test_second_task_that_reads_a_split_may_skip_no_more_rows(split: Split, tokenizer_file: bytes) -> None:
    cluster.connect()
    stage = make_stage(split, tokenizer_file, "fourth")
    for expected in (False, True):
        with stage.attempt(split) as attempt:
            assert attempt.unreadable.sealed == expected
    AttemptCounter("fourth").forget()
    with stage.attempt(split) as attempt:
        assert not attempt.unreadable.sealed


@pytest.mark.faults
def test_split_that_processes_die_reading_stops_the_run(split: Split, tokenizer_file: bytes) -> None:
    cluster.connect()
    stage = make_stage(split, tokenizer_file, "fifth")

    def read_split(is_deadly: bool) -> int:
        if is_deadly:
            read.encode_column = lambda *_: os._exit(1)
        return len(list(stage(pa.Table.from_pylist([asdict(split)]))))

    task = ray.remote(num_cpus=0, max_retries=-1)(read_split)
    assert ray.get(task.remote(False)) == 1
    with pytest.raises(UserError, match=r"^8 processes died reading rows 0 to 1 of .*in\.parquet"):
        cluster.translate_errors(lambda: ray.get(task.remote(True)))


def test_document_that_the_model_fails_on_is_rejected(tmp_path: Path, tokenizer_file: bytes) -> None:
    """One of the tokens of two documents has an embedding of NaN."""
    tokenizer = Tokenizer(tokenizer_file)
    (values, _), texts = tokenizer.encode(["!"]), make_texts(0, 30)
    torch.manual_seed(0)
    config = ModelConfig(embedding_size=16, hidden_size=16, tied_embeddings=False, copy=False)
    model = Seq2Seq(config, tokenizer.vocabulary_size)
    with torch.no_grad():
        model.encoder.embedding.weight[int(values[-1])] = float("nan")
    save_bundle(tmp_path / "bundle", model, tokenizer_file, DecodingConfig(max_source_tokens=32, max_target_tokens=12))
    write_documents(tmp_path, "0", texts | {7: "Document number 7!", 20: "Document number 20!"})
    finished = run(tmp_path, tmp_path / "bundle", resources={"window_rows": 16})
    assert finished.manifest.counts.rejected == {"decode_error": 2}
    rejects = read_rows(tmp_path, table="rejects")
    assert {row["id"] for row in rejects} == {7, 20}
    assert all("NaN" in row["detail"] for row in rejects)
    assert read_ids(tmp_path) == [n for n in range(30) if n not in (7, 20)]
    again = run(tmp_path, tmp_path / "bundle", "next").manifest.counts
    assert (again.skipped, again.rejected) == ({"summarized": 28}, {"decode_error": 2}), "the next run tries them again"
