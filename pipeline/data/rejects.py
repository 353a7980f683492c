"""Reasons to reject a row, and the checks that need only its id and text."""

from __future__ import annotations

from enum import StrEnum


class RejectReason(StrEnum):
    """The ``reason`` column of rejects."""

    NULL_ID = "null_id"
    DUPLICATE_ID = "duplicate_id"
    NULL_TEXT = "null_text"
    EMPTY_TEXT = "empty_text"
    TOO_LONG = "too_long"
    DECODE_ERROR = "decode_error"


RETRYABLE = (RejectReason.NULL_ID, RejectReason.DUPLICATE_ID, RejectReason.DECODE_ERROR)
"""The next run checks these rows again even if they are unchanged, since the cause may lie outside the row."""

Rejection = tuple[RejectReason, str] | tuple[None, None]
"""A reason and its detail, or None twice for a row that can be summarized."""

NO_TOKEN: Rejection = (RejectReason.EMPTY_TEXT, "the tokenizer finds no subword in the text")


def check_document(has_id: bool, text: str | None, max_chars: int) -> Rejection:
    """Return why a row is rejected before tokenization, if it is."""
    # The ledger hashes reason and detail of a reject as its content: reworded, such rows are processed again once.
    if not has_id:
        return RejectReason.NULL_ID, "the row has no id"
    if text is None:
        return RejectReason.NULL_TEXT, "the text is null"
    if not text:
        return RejectReason.EMPTY_TEXT, "the text is empty"
    if text.isspace():
        return RejectReason.EMPTY_TEXT, f"the text is {len(text)} characters of white space"
    if len(text) > max_chars:
        return RejectReason.TOO_LONG, f"the text has {len(text)} characters, over --input.max_chars {max_chars}"
    return None, None
