"""Shared fixtures: real texts, a small tokenizer, a bundle with random weights, pairs to train on, and finished runs."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.prepare import TokenizerConfig
from pipeline.config.summarize import SummarizeConfig
from pipeline.config.types import SAMPLE
from pipeline.data.tokenizer import Tokenizer, train_tokenizer
from pipeline.model.bundle import save_bundle
from pipeline.model.seq2seq import Seq2Seq


@pytest.fixture(scope="session")
def abstracts() -> list[str]:
    """500 real abstracts from the shipped sample."""
    texts: list[str] = pq.read_table(SAMPLE / "documents/part-0.parquet")["text"].to_pylist()
    return texts


@pytest.fixture(scope="session")
def tokenizer_file(abstracts: list[str]) -> bytes:
    """A SentencePiece model with 500 subwords."""
    return train_tokenizer(abstracts, TokenizerConfig(vocabulary_size=500))


@pytest.fixture(scope="session")
def tiny_bundle(tokenizer_file: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights; its summaries are nonsense of varying length, but always the same."""
    torch.manual_seed(0)
    model = Seq2Seq(ModelConfig(embedding_size=16, hidden_size=16), Tokenizer(tokenizer_file).vocabulary_size)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, model, tokenizer_file, DecodingConfig(max_source_tokens=32, max_target_tokens=12))
    return folder


@pytest.fixture(scope="session")
def command_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands such as "jump twice" and their actions, like the output of prepare: train/ (600 in 2 shards), dev/ (18)."""
    verbs, counts = ["walk", "jump", "look", "run", "turn", "stop"], {"": 1, " twice": 2, " thrice": 3}
    pairs = [(verb + count, " ".join([verb.upper()] * times)) for verb in verbs for count, times in counts.items()]
    shuffled = random.Random(0).sample(pairs * 34, 600)
    folder = tmp_path_factory.mktemp("pairs")
    for path, rows in (("train/a", shuffled[:360]), ("train/b", shuffled[360:]), ("dev/a", pairs)):
        (folder / path).parent.mkdir(exist_ok=True)
        ids = [f"{path}-{row}" for row in range(len(rows))]
        table = pa.table({"id": ids, "source": [source for source, _ in rows], "target": [target for _, target in rows]})
        pq.write_table(table, folder / f"{path}.parquet")
    options = TokenizerConfig(vocabulary_size=340, algorithm="bpe")  # large enough for each word to be one subword
    (folder / "tokenizer.model").write_bytes(train_tokenizer([text for pair in shuffled for text in pair], options))
    return folder


@pytest.fixture(scope="session")
def nights(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """A folder with in/ and out/ of four runs.

    2026: d0 to d59, of which d59 has no text; one more row repeats the id d0, and one has no id. n is int32.
    2027: d50 to d54 have changed, d60 to d64 are new. The column tag is new, and n is int64.
    2028: nothing has changed.
    2029: d0 to d19 have changed, d65 to d69 are new. No column of the input is kept.
    """
    # Imported here, since they import Ray, which most tests do not need.
    from pipeline.inference.plan import plan_run
    from pipeline.inference.run import execute

    folder = tmp_path_factory.mktemp("nights")
    (folder / "in").mkdir()

    def texts(start: int, end: int, word: str) -> dict[str, str | None]:
        return {f"d{n}": f"Document number {n} speaks of {word}." for n in range(start, end)}

    def run(run_id: str, documents: dict[str, str | None], n: pa.DataType, columns: list[str]) -> None:
        ids, bodies = [*documents, "d0", None], [*documents.values(), "repeated", "no id"]
        table = pa.table({"id": ids, "text": bodies, "n": pa.array(range(len(ids)), n), "tag": [f"t{i}" for i in ids]})
        for number, start in enumerate(range(0, len(ids), 40)):
            pq.write_table(table.slice(start, 40), folder / f"in/{number}.parquet")
        values: dict[str, Any] = {
            "input": {"path": str(folder / "in"), "keep_columns": columns},
            "output": {"path": str(folder / "out"), "run_id": run_id},
            "model": {"path": str(tiny_bundle)},
            "resources": {"actors": 1, "window_rows": 10},
        }
        execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None)

    documents = texts(0, 59, "graphs") | {"d59": None}
    run("2026", documents, pa.int32(), ["n"])
    documents |= texts(50, 55, "trees") | texts(60, 65, "graphs")
    run("2027", documents, pa.int64(), ["n", "tag"])
    run("2028", documents, pa.int64(), ["n", "tag"])
    run("2029", documents | texts(0, 20, "trees") | texts(65, 70, "graphs"), pa.int64(), [])
    return folder


@pytest.fixture
def output(nights: Path, tmp_path: Path) -> Path:
    """A copy of the output folder of ``nights`` that a test may change."""
    return Path(shutil.copytree(nights / "out", tmp_path / "out"))
