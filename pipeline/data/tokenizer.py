"""SentencePiece subwords: training, encoding, decoding.

Token ids leave and enter as flat arrays (``values``, ``offsets``), the layout of an Arrow list column, so that no Python
loop runs over tokens. Ids 0 to 3 are ``<pad>``, ``<unk>``, ``<s>``, ``</s>``, and no text encodes to any of them: a
text that spells one is letters, and a character outside the vocabulary is written as its UTF-8 bytes.

With normalisation ``identity``, decoding what was encoded gives the text back, but for three things. Every run of
white space, line breaks and no-break spaces included, becomes one space, and none is left at either end; U+2581, which
SentencePiece writes for a space, is one; and a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
"""

from __future__ import annotations

import functools
import io
import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain

import numpy as np
import numpy.typing as npt
import sentencepiece

from pipeline.config.prepare import TokenizerConfig
from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.errors import UserError

_LONGEST_TRAINING_LINE = 8192
"""Bytes. SentencePiece ignores longer lines silently, so they are cut to this before training."""

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A trained SentencePiece model.

    Args:
        model: bytes of a SentencePiece model file.
        name: what to call it in an error.

    Raises:
        UserError: the bytes are no SentencePiece model, or its special tokens are not those above.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model") -> None:
        self._processor = sentencepiece.SentencePieceProcessor(num_threads=1)  # its own default is one a core
        try:
            self._processor.LoadFromSerializedProto(model)
            self._processor.id_to_piece(list(range(self.vocabulary_size)))  # some are no text in a file that is broken
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(f"{name} is not a SentencePiece model; write it again with jobs.prepare") from None
        special = (self._processor.pad_id(), self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id())
        if special != (PAD, UNK, BOS, EOS):
            raise UserError(
                f"{name} has <pad>, <unk>, <s>, </s> at ids {special}, not {(PAD, UNK, BOS, EOS)}; train it with jobs.prepare"
            )

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, the special ones included."""
        return int(self._processor.vocab_size())

    @functools.cached_property
    def stands_for_bytes(self) -> npt.NDArray[np.bool_]:
        """Of each id [V], whether it is a byte of a character outside the vocabulary, or ``<unk>``."""
        ids = range(self.vocabulary_size)
        return np.array([self._processor.is_byte(id_) or self._processor.is_unknown(id_) for id_ in ids], np.bool_)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Encode N texts, without ``<s>`` and ``</s>``.

        Returns:
            values: ids of all texts one after another. offsets[N + 1]: text i is ``values[offsets[i]:offsets[i + 1]]``.
        """
        rows = self._processor.encode([_plain(text) for text in texts], return_type="numpy")
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)
        return values, offsets

    def decode(self, values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> list[str]:
        """Decode N rows of ids in the layout of ``encode``. A cut inside a character leaves U+FFFD in its place."""
        rows = [row.tolist() for row in np.split(values, offsets[1:-1])] if len(offsets) > 1 else []
        return list(self._processor.decode(rows))


@functools.lru_cache(maxsize=1)
def cached_tokenizer(model: bytes) -> Tokenizer:
    """The tokenizer of a model file's bytes, which a process that gets the same ones again does not parse again."""
    return Tokenizer(model)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Train a SentencePiece model on ``texts`` and return its file's bytes.

    Raises:
        UserError: there is no text, or too little or too uniform text for the vocabulary asked for.
    """
    lines = _lines(texts)
    first = next(lines, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on: every one is empty")
    model = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=chain((first,), lines),
            model_writer=model,
            model_type=config.algorithm,
            vocab_size=config.vocabulary_size,
            character_coverage=config.character_coverage,
            normalization_rule_name=config.normalization,
            split_by_unicode_script=config.split_by_script,
            byte_fallback=True,
            pad_id=PAD,
            unk_id=UNK,
            bos_id=BOS,
            eos_id=EOS,
            max_sentence_length=_LONGEST_TRAINING_LINE,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip()  # after the place in SentencePiece's source
        raise UserError(
            f"SentencePiece could not train {config.vocabulary_size} subwords ({reason}); set --tokenizer.vocabulary_size"
        ) from None
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        # The limit is in bytes; a cut inside a character drops that character.
        line = _plain(text).encode()[:_LONGEST_TRAINING_LINE].decode(errors="ignore")
        if line:
            yield line


def _plain(text: str) -> str:
    """The text as SentencePiece can take it, on one line."""
    return " ".join(without_surrogates(text).split())


def without_surrogates(text: str) -> str:
    """The text with U+FFFD for each lone surrogate, which UTF-8 cannot hold."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
