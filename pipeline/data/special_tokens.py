"""Ids of the special tokens, the same in every tokenizer and model."""

from __future__ import annotations

PAD, UNK, BOS, EOS = 0, 1, 2, 3
"""Ids of ``<pad>``, ``<unk>``, ``<s>`` and ``</s>``."""
