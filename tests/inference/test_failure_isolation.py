"""Documents that the decoder fails on, or dies of, are found, and their neighbours are done."""

from __future__ import annotations

import os
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
import ray
import torch
from hypothesis import given
from hypothesis import strategies as st
from pyarrow import fs
from ray.exceptions import RayError

from pipeline import cluster
from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.summarize import DocumentsInput, SummarizeConfig
from pipeline.data.splits import RowRange, Split
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.inference import failure_isolation
from pipeline.inference.failure_isolation import AttemptCounter, FailureBisection
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.inference.stages import read
from pipeline.inference.stages.read import ReadWindows
from pipeline.model.bundle import save_bundle
from pipeline.model.seq2seq import Seq2Seq
from pipeline.runs.unreadable_files import UnreadableFiles


@given(st.integers(1, 40), st.sets(st.integers(0, 39)))
def test_those_that_fail_alone_are_found(number: int, bad: set[int]) -> None:
    rows, bad = np.arange(number), {row for row in bad if row < number}

    def decode(some: Any) -> list[int]:
        if caught := bad & set(some.tolist()):
            raise ValueError(f"{len(caught)} are bad")
        return some.tolist()

    search = FailureBisection(None, "w")
    if len(bad) == number >= 8:
        with pytest.raises(ValueError, match=f"{number} are bad"):
            search.run(rows, decode, lambda: None)
        return
    found, failed = search.run(rows, decode, lambda: None)
    assert found == sorted(set(range(number)) - bad)
    assert failed == dict.fromkeys(bad, "1 are bad")


def test_a_decoder_that_fails_on_anything_is_not_the_documents_fault() -> None:
    def fail(_: Any = None) -> None:
        raise RuntimeError("the device is lost")

    with pytest.raises(RuntimeError, match="the device is lost"):
        FailureBisection(None, "w").run(np.arange(3), fail, fail)


def decode_until_it_lives(counter: Any, deadly: set[int]) -> tuple[tuple[list[int], dict[int, str]], int]:
    """In processes that die of some rows; what came of it in the end, and how many died."""

    class Decoder:  # of this function, or Ray's processes would import it from here
        def decode(self) -> tuple[list[int], dict[int, str]]:
            def decode(rows: Any) -> list[int]:
                if deadly & set(rows.tolist()):
                    os._exit(1)
                return rows.tolist()

            return FailureBisection(counter, "w").run(np.arange(20), decode, lambda: None)

    for deaths in range(100):
        decoder = ray.remote(num_cpus=0)(Decoder).remote()
        try:
            return ray.get(decoder.decode.remote()), deaths
        except ray.exceptions.ActorDiedError:
            continue
    raise AssertionError("they all died")


def test_a_document_that_processes_die_of_is_found() -> None:
    cluster.connect()
    (found, failed), deaths = decode_until_it_lives(AttemptCounter("one"), {11})
    assert found == [row for row in range(20) if row != 11]
    assert failed == {11: "the process that decoded it died, 2 times"}
    assert 2 <= deaths <= 2 * 6


def test_too_many_deaths_end_the_run_and_reject_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    cluster.connect()
    monkeypatch.setattr(failure_isolation, "_MOST_DEATHS", 3)
    counter = AttemptCounter("other")
    for part in ("0-19", "0-19", "0-9", "0-9"):
        assert counter.begin("w", part)
    assert not counter.begin("w", "0-9")
    for number in (20, 4):  # few, too, of which all would fail
        with pytest.raises(UserError, match=r"^4 processes died decoding one window"):
            FailureBisection(counter, "w").run(np.arange(number), lambda rows: rows, lambda: None)


def test_those_that_are_left_may_be_too_many_together() -> None:
    """Processes that die of them all, though of no half: the search ends, and does not go on for ever."""
    cluster.connect()
    counter = AttemptCounter("third")
    for part in ("0-19", "the others"):
        assert counter.begin("w", part)
        assert counter.begin("w", part)
    with pytest.raises(UserError, match=r"^processes die decoding 20 documents together"):
        FailureBisection(counter, "w").run(np.arange(20), lambda rows: rows, lambda: None)


def test_rows_that_processes_die_reading_end_the_run(tmp_path: Path, tokenizer_file: bytes) -> None:
    cluster.connect()
    pq.write_table(pa.table({"id": [1, 2], "text": ["one", "two"]}), tmp_path / "in.parquet")
    file = str(tmp_path / "in.parquet")
    unit = Split(3, (RowRange(file, 0, 0, 2, 2),))
    documents = DocumentsInput(path=file)
    local, bad_files = fs.LocalFileSystem(), UnreadableFiles("fail")
    stage = ReadWindows(local, 10, None, tokenizer_file, documents, 8, b"", bad_files, attempts=AttemptCounter("r"))

    def read_split(deadly: bool) -> int:
        if deadly:
            read.encode_column = lambda *_: os._exit(1)
        return len(list(stage(pa.Table.from_pylist([asdict(unit)]))))

    task = ray.remote(num_cpus=0, max_retries=-1)(read_split)
    with stage.attempt(unit, "ask") as is_first:
        assert is_first
    with stage.attempt(unit, "ask") as is_first:
        assert not is_first, "what came of it may have been lost with a node"
    assert ray.get(task.remote(False)) == 1
    with pytest.raises(RayError) as died:
        ray.get(task.remote(True))
    told = cluster.to_user_error(died.value)
    assert isinstance(told, UserError)
    AttemptCounter("r").forget()
    with stage.attempt(unit, "ask") as is_first:
        assert is_first
    assert str(told) == f"8 processes died reading rows 0 to 1 of {file}; mend it, or take it out of the input"


def test_a_document_that_the_model_fails_on_is_rejected(tmp_path: Path, tokenizer_file: bytes) -> None:
    """One of whose subwords has no finite embedding."""
    tokenizer = Tokenizer(tokenizer_file)
    (values, _), texts = tokenizer.encode(["!"]), [f"Document number {n} speaks of graphs" for n in range(30)]
    torch.manual_seed(0)
    model = Seq2Seq(
        ModelConfig(embedding_size=16, hidden_size=16, tied_embeddings=False, copy=False), tokenizer.vocabulary_size
    )
    with torch.no_grad():
        model.encoder.embedding.weight[int(values[-1])] = float("nan")
    save_bundle(tmp_path / "bundle", model, tokenizer_file, DecodingConfig(max_source_tokens=32, max_target_tokens=12))
    texts[7], texts[20] = texts[7] + "!", texts[20] + "!"
    pq.write_table(pa.table({"id": list(range(30)), "text": texts}), tmp_path / "in.parquet")
    values = {
        "input": {"path": str(tmp_path / "in.parquet")},
        "output": {"path": str(tmp_path / "out"), "run_id": "r"},
        "model": {"path": str(tmp_path / "bundle")},
        "resources": {"actors": 1, "window_rows": 16},
    }
    finished = execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None)
    assert finished.manifest.counts.rejected == {"decode_error": 2}
    rejects = pads.dataset(tmp_path / "out/rejects/run=r").to_table().to_pylist()
    assert {row["id"] for row in rejects} == {7, 20}
    assert all("the model computes what is no number" in row["detail"] for row in rejects)
    summarized = pads.dataset(tmp_path / "out/summaries/run=r").to_table()["id"].to_pylist()
    assert sorted(summarized) == [n for n in range(30) if n not in (7, 20)]
    values["output"]["run_id"] = "next"
    again = execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest.counts
    assert (again.skipped, again.rejected) == ({"summarized": 28}, {"decode_error": 2}), "it is tried again"
