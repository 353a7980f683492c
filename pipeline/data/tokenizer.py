"""Train a SentencePiece tokenizer, encode texts and decode token ids.

Token ids are flat arrays (``values``, ``offsets``), the layout of an Arrow list column, so no Python loop runs over tokens.
Ids 0 to 3 are ``<pad>``, ``<unk>``, ``<s>``, ``</s>``, and 4 to 11 are style tokens. No text encodes to them: a text that
spells one is encoded as letters, and a character outside the vocabulary as its UTF-8 bytes.

With normalization ``identity``, decoding the encoded text restores it with three exceptions: a run of white space, including
line breaks, no-break spaces and U+2581 (SentencePiece's mark for a space), becomes one space; white space at either end is
removed; and a lone surrogate, which UTF-8 cannot hold, becomes U+FFFD.
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
from pipeline.data.special_tokens import BOS, EOS, FIRST_STYLE, PAD, STYLE_PIECES, UNK
from pipeline.errors import UserError

_MAX_TRAINING_LINE_BYTES = 8192  # SentencePiece silently ignores longer lines, so they are truncated

_LONE_SURROGATE = re.compile("[\ud800-\udfff]")


class Tokenizer:
    """A trained SentencePiece model.

    Args:
        model: Bytes of a SentencePiece model file.
        name: Name of the file, for messages.

    Raises:
        UserError: The bytes are not a SentencePiece model, or its special tokens have other ids.
    """

    def __init__(self, model: bytes, name: str = "tokenizer.model") -> None:
        self._processor = sentencepiece.SentencePieceProcessor(num_threads=1)  # the default is one per core
        try:
            self._processor.LoadFromSerializedProto(model)
            self._processor.id_to_piece(list(range(self.vocabulary_size)))  # fails if a piece is not UTF-8
        except (RuntimeError, UnicodeDecodeError):
            raise UserError(f"{name} is not a SentencePiece model; create it with jobs.prepare") from None
        special = (self._processor.pad_id(), self._processor.unk_id(), self._processor.bos_id(), self._processor.eos_id())
        if special != (PAD, UNK, BOS, EOS):
            raise UserError(
                f"{name} has <pad>, <unk>, <s>, </s> at ids {special}, not {(PAD, UNK, BOS, EOS)}; train it with jobs.prepare"
            )

    @property
    def vocabulary_size(self) -> int:
        """Number of ids, including the special tokens."""
        return int(self._processor.vocab_size())

    @functools.cached_property
    def has_styles(self) -> bool:
        """Whether there are style tokens."""
        ids = list(range(FIRST_STYLE, FIRST_STYLE + len(STYLE_PIECES)))
        return ids[-1] < self.vocabulary_size and self._processor.id_to_piece(ids) == STYLE_PIECES

    @functools.cached_property
    def is_byte_token(self) -> npt.NDArray[np.bool_]:
        """Whether each id [V] stands for a byte of a character outside the vocabulary, or is ``<unk>``."""
        ids = range(self.vocabulary_size)
        return np.array([self._processor.is_byte(id_) or self._processor.is_unknown(id_) for id_ in ids], np.bool_)

    def encode(self, texts: Sequence[str]) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
        """Encode N texts, without ``<s>`` and ``</s>``.

        Returns:
            The concatenated ids and the offsets [N + 1]: text i is ``values[offsets[i]:offsets[i + 1]]``.
        """
        rows = self._processor.encode([_single_line(text) for text in texts], return_type="numpy")
        offsets = np.zeros(len(rows) + 1, np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate(rows).astype(np.int32, copy=False) if rows else np.zeros(0, np.int32)
        return values, offsets

    def decode(self, values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64]) -> list[str]:
        """Decode N rows of ids in the layout of ``encode``; a truncated character becomes U+FFFD."""
        rows = [row.tolist() for row in np.split(values, offsets[1:-1])] if len(offsets) > 1 else []
        return list(self._processor.decode(rows))


def add_prefixes(
    values: npt.NDArray[np.int32], offsets: npt.NDArray[np.int64], prefixes: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int32], npt.NDArray[np.int64]]:
    """Put a token before each of N rows of ids in the layout of ``Tokenizer.encode``, except before empty ones.

    Args:
        prefixes: The id to put before each row [N], -1 for none.
    """
    lengths = np.diff(offsets)
    has_prefix = (prefixes >= 0) & (lengths > 0)
    values = np.insert(values, offsets[:-1][has_prefix], prefixes[has_prefix])
    return values, np.concatenate(([0], np.cumsum(lengths + has_prefix)))


@functools.lru_cache(maxsize=1)
def cached_tokenizer(model: bytes) -> Tokenizer:
    """Return the tokenizer of a model file, parsed once per process as long as the bytes stay the same."""
    return Tokenizer(model)


def train_tokenizer(texts: Iterable[str], config: TokenizerConfig) -> bytes:
    """Train a SentencePiece model on ``texts`` and return the bytes of its file.

    Raises:
        UserError: There is no text, or too little or too uniform text for the vocabulary size.
    """
    lines = _lines(texts)
    first = next(lines, None)
    if first is None:
        raise UserError("there is no text to train a tokenizer on; every text is empty")
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
            control_symbols=STYLE_PIECES,
            max_sentence_length=_MAX_TRAINING_LINE_BYTES,
            minloglevel=2,
        )
    except RuntimeError as error:
        reason = str(error).rpartition("] ")[2].strip()  # without the line in SentencePiece's source
        raise UserError(
            f"SentencePiece could not train {config.vocabulary_size} subwords ({reason}); set --tokenizer.vocabulary_size"
        ) from None
    return model.getvalue()


def _lines(texts: Iterable[str]) -> Iterator[str]:
    for text in texts:
        # Truncation inside a character drops that character.
        line = _single_line(text).encode()[:_MAX_TRAINING_LINE_BYTES].decode(errors="ignore")
        if line:
            yield line


def _single_line(text: str) -> str:
    """Return the text on one line and without lone surrogates."""
    return " ".join(without_surrogates(text).split())


def without_surrogates(text: str) -> str:
    """Replace each lone surrogate, which UTF-8 cannot hold, by U+FFFD."""
    return text if text.isascii() else _LONE_SURROGATE.sub("\N{REPLACEMENT CHARACTER}", text)
