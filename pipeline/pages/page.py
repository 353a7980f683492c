"""Render HTML pages. A page is one file that loads nothing and runs no scripts.

    values ── template of the job, which extends base.html.jinja ── page

Document texts are untrusted, so all values are escaped, and the page's content security policy forbids scripts and loads.
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
    """Return a page as HTML.

    Args:
        template: path below ``pipeline/`` of a template that extends ``pages/base.html.jinja``.
        plots: trusted SVG from ``pages/svg.py``, by name.
        filters: filters of the template, in addition to those of all pages.
        values: variables of the template.
    """
    # Imported here, so that a job starts faster.
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
        "text": display_text,
        **filters,
    }
    markup = {name: svg and Markup(svg) for name, svg in plots.items()}
    return environment.get_template(template).render(plots=markup, **values)


def flat(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """Return nested options as pairs of a dotted name and a value; values other than strings are JSON."""
    pairs = list[tuple[str, str]]()
    for name, value in values.items():
        if isinstance(value, dict) and value:
            pairs += flat(value, f"{prefix}{name}.")
        else:
            pairs.append((prefix + name, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)))
    return pairs


def display_text(text: str) -> str:
    """Return a text without control characters, which HTML forbids, and without passwords in URIs."""
    return _PASSWORD.sub("…@", printable(text))


def _duration(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02} h"


def _moment(time: datetime) -> str:
    return time.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")
