"""Plot the curves of a training, as SVG. Numbers only go in, never the text of pairs."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from pipeline.pages.svg import BAR, GRID, INK, MARK, THIRD, new_figure, svg

_MAX_POINTS = 300
"""Points of a curve; each is the mean of several records if there are more."""

_AXIS_PERCENTILES = (1, 99)
"""Range of the vertical axis. Outliers outside it would flatten the rest of the curve."""

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps, and the value at each."""


def plot_curves(curves: dict[str, Curve], name: str) -> str | None:
    """Plot up to three labeled curves over the steps. Return None if none has two points.

    ``name`` must be unique in the page.
    """
    shown = {label: _downsample(*curve) for label, curve in curves.items() if len(curve[0]) > 1}
    if not shown:
        return None
    figure, axes = new_figure()
    for (label, (steps, values)), color in zip(shown.items(), (BAR, MARK, THIRD), strict=False):
        marker = "o" if len(steps) < 30 else None
        axes.plot(steps, values, color=color, linewidth=1.2, marker=marker, markersize=2.2, label=label)
    lowest, highest = np.percentile(np.concatenate([values for _, values in shown.values()]), _AXIS_PERCENTILES)
    margin = 0.06 * (highest - lowest) or abs(highest) / 2 or 0.5
    axes.set_ylim(lowest - margin, highest + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    if len(shown) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2, borderaxespad=0.1)
    return svg(figure, name)


def _downsample(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Average neighboring values until at most ``_MAX_POINTS`` remain; each is placed at its last step."""
    points = min(len(steps), _MAX_POINTS)
    step_groups, value_groups = np.array_split(np.asarray(steps), points), np.array_split(np.asarray(values), points)
    return [float(group[-1]) for group in step_groups], [float(group.mean()) for group in value_groups]
