"""The curves of a training. Numbers alone go in, no text of documents."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.ticker import EngFormatter, FuncFormatter, MaxNLocator

from pipeline.pages.svg import BAR, GRID, INK, MARK, THIRD, new_figure, svg

_POINTS = 300
"""Of a curve at most: each then stands for the mean of several records."""
_ROBUST = (1, 99)
"""Percentiles between which an axis is laid: what leaps out of it in a step or two would flatten all else."""

Curve = tuple[Sequence[float], Sequence[float]]
"""Steps, and a figure at each."""


def curves(series: dict[str, Curve], name: str) -> str | None:
    """Up to three figures over the steps of a training, each told apart by colour and name; None where there is no curve yet.

    name: of the plot, its own in the page.
    """
    drawn = {label: _downsample(*curve) for label, curve in series.items() if len(curve[0]) > 1}
    if not drawn:
        return None
    figure, axes = new_figure()
    for (label, (steps, values)), colour in zip(drawn.items(), (BAR, MARK, THIRD), strict=False):
        axes.plot(
            steps, values, color=colour, linewidth=1.2, marker="o" if len(steps) < 30 else None, markersize=2.2, label=label
        )
    lowest, highest = np.percentile(np.concatenate([values for _, values in drawn.values()]), _ROBUST)
    room = 0.06 * (highest - lowest) or abs(highest) / 2 or 0.5
    axes.set_ylim(lowest - room, highest + room)
    axes.xaxis.set_major_locator(MaxNLocator(6, integer=True))
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    if len(drawn) > 1:
        axes.legend(fontsize=8, frameon=False, labelcolor=INK, handlelength=1.2, borderaxespad=0.1)
    return svg(figure, name)


def _downsample(steps: Sequence[float], values: Sequence[float]) -> tuple[list[float], list[float]]:
    """Means over as many neighbours as leave no more than ``_POINTS``; a step stands for those up to it."""
    parts = min(len(steps), _POINTS)
    ends = np.array_split(np.asarray(steps), parts), np.array_split(np.asarray(values), parts)
    return [float(part[-1]) for part in ends[0]], [float(part.mean()) for part in ends[1]]
