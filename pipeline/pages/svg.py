"""Draw plots as SVG elements that take their colors from the page.

Matplotlib is slow to import, so import this module only where a plot is drawn.
"""

from __future__ import annotations

import io
import re

import matplotlib
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK, BAR, MARK, GRID, THIRD = "#010101", "#020202", "#030303", "#040404", "#050505"
_VARIABLES = {
    INK: "var(--soft)",
    BAR: "var(--accent)",
    MARK: "var(--warn)",
    GRID: "var(--line)",
    THIRD: "var(--good)",
}
"""CSS variables that replace the colors; the page defines them for light and for dark screens."""
_SIZE_INCHES = (4.3, 2.1)


def new_figure() -> tuple[Figure, Axes]:
    """Return an empty plot with only a bottom axis."""
    figure = Figure(figsize=_SIZE_INCHES, layout="tight")
    axes = figure.subplots()
    figure.patch.set_alpha(0)
    axes.patch.set_alpha(0)
    axes.set_axisbelow(True)
    axes.tick_params(colors=INK, labelsize=8, length=2.5, width=0.6)
    for side, spine in axes.spines.items():
        spine.set_visible(side == "bottom")
        spine.set_color(INK)
        spine.set_linewidth(0.6)
    return figure, axes


def svg(figure: Figure, name: str) -> str:
    """Return a figure as an SVG element: text stays text, in the page's font, and ids start with the plot's name."""
    file = io.StringIO()
    no_metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(file, format="svg", metadata=no_metadata)
    text = file.getvalue()
    text = re.sub(
        r"<metadata>.*?</metadata>|<defs>\s*<style.*?</defs>|<!--.*?-->", "", text[text.index("<svg") :], flags=re.DOTALL
    )
    text = re.sub(r' xmlns(:\w+)?="[^"]*"| (width|height)="[\d.]+pt"| version="[\d.]+"', "", text)
    text = re.sub(r'(?<= )id="', f'id="{name}-', text)
    text = re.sub(r'(?<=href="#)|(?<=url\(#)', f"{name}-", text)
    for color, variable in _VARIABLES.items():
        text = text.replace(color, variable)
    text = re.sub(r"font-family: [^;]*; ", "", text)
    return re.sub(r"\s*\n\s*", " ", text).replace("> <", "><")
