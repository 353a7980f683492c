"""A bundle's tokenizer.model, and what it makes of a text: SentencePiece's own code reads it."""

from __future__ import annotations

import contextlib

import numpy as np

from pipeline.config.prepare import TokenizerConfig
from pipeline.config.types import SAMPLE
from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.data.tokenizer import Tokenizer, train_tokenizer
from pipeline.errors import UserError

_TEXT = "The quick brown fox, émigré of 東京, jumps over 13 lazy dogs. "


def seeds() -> list[bytes]:
    """Small ones, with and without a normalisation, and the shipped one."""
    kinds = [("bpe", "nfkc"), ("unigram", "identity"), ("bpe", "identity")]
    few = TokenizerConfig(vocabulary_size=296, algorithm="bpe")
    small = [
        train_tokenizer([_TEXT * 3, _TEXT[::-1]], few.model_copy(update={"algorithm": algorithm, "normalization": rule}))
        for algorithm, rule in kinds
    ]
    return [*small, (SAMPLE / "model/tokenizer.model").read_bytes()]


def target(data: bytes) -> None:
    """Load it, and encode and decode with it."""
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    with contextlib.suppress(UserError):
        tokenizer = Tokenizer(data)
        values, offsets = tokenizer.encode([_TEXT, ""])
        tokenizer.decode(values, offsets)
        tokenizer.decode(np.arange(min(tokenizer.vocabulary_size, 50), dtype=np.int32), np.array([0, 50]))
