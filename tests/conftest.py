"""What several tests need: real text, a small tokenizer, a bundle of random weights."""

from __future__ import annotations

import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.prepare import TokenizerConfig
from pipeline.config.types import SAMPLE
from pipeline.data.tokenizer import Tokenizer, train_tokenizer
from pipeline.model.bundle import save_bundle
from pipeline.model.seq2seq import Seq2Seq


@pytest.fixture(scope="session")
def abstracts() -> list[str]:
    """500 real abstracts, of the shipped sample."""
    texts: list[str] = pq.read_table(SAMPLE / "documents/part-0.parquet")["text"].to_pylist()
    return texts


@pytest.fixture(scope="session")
def tokenizer_file(abstracts: list[str]) -> bytes:
    """A SentencePiece model of 500 subwords."""
    return train_tokenizer(abstracts, TokenizerConfig(vocabulary_size=500))


@pytest.fixture(scope="session")
def tiny_bundle(tokenizer_file: bytes, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle with random weights: it writes nonsense, of some length, and the same every time."""
    torch.manual_seed(0)
    model = Seq2Seq(ModelConfig(embedding_size=16, hidden_size=16), Tokenizer(tokenizer_file).vocabulary_size)
    folder = tmp_path_factory.mktemp("bundle")
    save_bundle(folder, model, tokenizer_file, DecodingConfig(max_source_tokens=32, max_target_tokens=12))
    return folder


@pytest.fixture(scope="session")
def command_pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Commands such as "jump twice" and their actions, as prepare leaves pairs: train/ (600 in 2 shards), dev/ (18)."""
    verbs, counts = ["walk", "jump", "look", "run", "turn", "stop"], {"": 1, " twice": 2, " thrice": 3}
    pairs = [(verb + count, " ".join([verb.upper()] * times)) for verb in verbs for count, times in counts.items()]
    mixed = random.Random(0).sample(pairs * 34, 600)
    folder = tmp_path_factory.mktemp("pairs")
    for path, rows in (("train/a", mixed[:360]), ("train/b", mixed[360:]), ("dev/a", pairs)):
        (folder / path).parent.mkdir(exist_ok=True)
        ids = [f"{path}-{number}" for number in range(len(rows))]
        table = pa.table({"id": ids, "source": [source for source, _ in rows], "target": [target for _, target in rows]})
        pq.write_table(table, folder / f"{path}.parquet")
    words = TokenizerConfig(vocabulary_size=340, algorithm="bpe")  # enough for each word to be one subword
    (folder / "tokenizer.model").write_bytes(train_tokenizer([text for pair in mixed for text in pair], words))
    return folder
