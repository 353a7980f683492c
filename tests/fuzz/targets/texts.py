"""Any text, including lone surrogates: validated, tokenized, detokenized and shown on a page."""

from __future__ import annotations

import functools

from pipeline.config.types import SAMPLE
from pipeline.data.rejects import check_document
from pipeline.data.tokenizer import Tokenizer, without_surrogates
from pipeline.pages.page import display_text

_SEEDS = [
    "We study the growth of graphs.", "\ud800 lone \udfff", "nul \x00 nul", "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞͉͚̯̞̠͍A̴̵̜̰͔ͫ͗͢L̠ͨͧͩ͘G̴̻͈͍͔̹̑͗̎̅͛́Ǫ̵̹̻̝̳͂̌̌͘", "مرحبا \u202e שלום \u2066",
    "👩‍👩‍👧‍👦🏳️‍🌈", "\u2581 ▁▁", "<s></s><unk><pad>", "http://u:p@h/x " * 9, "\ufeff\u200b\u00ad", "ﷺ" * 40, "a" * 900,
    "\n\t\u2028\u00a0",
]  # fmt: skip


def seeds() -> list[bytes]:
    """Return texts as UTF-8 with surrogates."""
    return [text.encode("utf-8", "surrogatepass") for text in _SEEDS]


@functools.cache
def _tokenizer() -> Tokenizer:
    return Tokenizer((SAMPLE / "model/tokenizer.model").read_bytes())


def target(data: bytes) -> None:
    """Check that the tokenizer preserves the text, except for white space and surrogates (tokenizer.py)."""
    try:
        text = data.decode("utf-8", "surrogatepass")
    except UnicodeDecodeError:
        text = data.decode("utf-8", "surrogateescape")
    check_document(True, text, 1000)
    assert "\x00" not in display_text(text)
    values, offsets = _tokenizer().encode([text])
    expected = " ".join(without_surrogates(text).replace("\u2581", " ").split())
    [decoded] = _tokenizer().decode(values, offsets)
    assert decoded.split() == expected.split(), (decoded, expected)
