"""Reasons why a row is rejected."""

from __future__ import annotations

NO_TOKEN = ("empty_text", "the text has no subword that the model reads")
"""The rejection of a text that turns out to be nothing to the tokenizer."""


def check_document(has_id: bool, text: str | None, max_chars: int) -> tuple[str, str] | tuple[None, None]:
    """Why a row is no document to summarize: the reason's code and a detail, or None twice if it is one."""
    if not has_id:
        return "null_id", "the row has no id"
    if text is None:
        return "null_text", "the text is null"
    if not text or text.isspace():
        return "empty_text", "the text is empty" if not text else f"the text is {len(text)} characters of white space"
    if len(text) > max_chars:
        return "too_long", f"the text has {len(text)} characters, over --input.max_chars {max_chars}"
    return None, None


RETRYABLE = ["null_id", "duplicate_id", "decode_error"]
"""Reasons of rejects that the next run looks at again, even if the row is as it was."""
