"""Ids of the special tokens, the same in every tokenizer and model."""

from __future__ import annotations

from collections.abc import Sequence

from pipeline.config.types import MAX_STYLES

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``."""

STYLE_PIECES = [f"<style{number}>" for number in range(MAX_STYLES)]
FIRST_STYLE = 4
"""Ids 4 to 11 are ``STYLE_PIECES``: put before a source, one asks for a style of summary. Tokenizers of earlier versions have
subwords there instead."""


def style_token(styles: Sequence[str], style: str | None) -> int:
    """Return the id of the token that asks for a model's style, or -1 for None."""
    return -1 if style is None else FIRST_STYLE + styles.index(style)
