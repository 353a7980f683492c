"""The tokenizer.model of a bundle, which SentencePiece parses, and its use on a text."""

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
    """Return small ones with and without normalization, and the shipped one."""
    variants = [("bpe", "nfkc"), ("unigram", "identity"), ("bpe", "identity")]
    config = TokenizerConfig(vocabulary_size=304, algorithm="bpe")
    small = [
        train_tokenizer(
            [_TEXT * 3, _TEXT[::-1]], config.model_copy(update={"algorithm": algorithm, "normalization": normalization})
        )
        for algorithm, normalization in variants
    ]
    return [*small, (SAMPLE / "model/tokenizer.model").read_bytes()]


def target(data: bytes) -> None:
    """Load the tokenizer and use it, or raise UserError."""
    assert (PAD, UNK, BOS, EOS) == (0, 1, 2, 3)
    with contextlib.suppress(UserError):
        tokenizer = Tokenizer(data)
        values, offsets = tokenizer.encode([_TEXT, ""])
        tokenizer.decode(values, offsets)
        tokenizer.decode(np.arange(min(tokenizer.vocabulary_size, 50), dtype=np.int32), np.array([0, 50]))
