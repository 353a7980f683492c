"""Pages for people: one file each, which loads nothing and runs nothing.

    values ── base.html.jinja and a job's own template ── a page

Texts of documents are strangers': all that goes into a page is escaped, and its own policy forbids scripts and loads.
Jinja2 is imported once there is a page to make: a job starts sooner without.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from importlib import resources
from typing import Any

from pipeline.errors import printable

_PASSWORD = re.compile(r"(?<=://)[^/@\s]*@")


def render_page(
    template: str, plots: Mapping[str, str | None], filters: Mapping[str, Callable[..., str]], **values: Any
) -> str:
    """A page.

    Args:
        template: of a job, a file below ``pipeline/`` that extends ``pages/base.html.jinja``. plots: SVG, which is trusted, of
            plots.py. filters: that the template has beside those of all pages. values: what it shows.
    """
    from jinja2 import Environment, FunctionLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FunctionLoader(lambda name: resources.files("pipeline").joinpath(name).read_text("utf-8")),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": lambda value: f"{value:,}",
        "percent": lambda value: "–" if value is None else f"{value:.1%}",
        "duration": _duration,
        "moment": _moment,
        "text": _readable,
        **filters,
    }
    drawn = {name: svg and Markup(svg) for name, svg in plots.items()}
    return environment.get_template(template).render(plots=drawn, **values)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Nested options as dotted names with their values, as JSON."""
    pairs = list[tuple[str, str]]()
    for name, value in values.items():
        if isinstance(value, dict) and value:
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs


def _readable(text: str) -> str:
    """Without control characters, which pages may not hold, and without a password in a URI."""
    return _PASSWORD.sub("…@", printable(text))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02} h"


def _moment(at: datetime) -> str:
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
