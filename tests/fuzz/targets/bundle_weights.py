"""The model.safetensors of a bundle with a small network."""

from __future__ import annotations

import contextlib
import functools
import tempfile
from pathlib import Path

import torch

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.prepare import TokenizerConfig
from pipeline.config.types import SAMPLE
from pipeline.data.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.model.bundle import FILES, WEIGHTS, bundle_from_files, save_bundle
from pipeline.model.seq2seq import Seq2Seq


@functools.cache
def small_bundle() -> dict[str, bytes]:
    """Return the files of a bundle with random weights."""
    card = (SAMPLE / "model/README.md").read_text()
    tokenizer = train_tokenizer([card], TokenizerConfig(vocabulary_size=400, algorithm="bpe"))
    model = Seq2Seq(ModelConfig(embedding_size=2, hidden_size=2), 400)
    with tempfile.TemporaryDirectory() as folder:
        save_bundle(folder, model, tokenizer, DecodingConfig(), torch.float16)
        return {name: Path(folder, name).read_bytes() for name in FILES}


def seeds() -> list[bytes]:
    """Return the file, and its header with a few weights."""
    weights = small_bundle()[WEIGHTS]
    return [weights, weights[:3000]]


def target(data: bytes) -> None:
    """Load the bundle, or raise UserError."""
    with contextlib.suppress(UserError):
        bundle_from_files({**small_bundle(), WEIGHTS: data}, "bundle")
