"""docs/options.md lists the options that exist."""

from __future__ import annotations

from pathlib import Path

from pipeline.config.reference import reference

PAGE = Path(__file__).parents[2] / "docs/options.md"


def test_page_lists_the_options_that_exist() -> None:
    assert PAGE.read_text() == reference(), "out of date: python -m pipeline.config.reference > docs/options.md"
