"""Plots of the report, as SVG. Numbers only go in, never the text of documents."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.pages.svg import BAR, GRID, MARK, new_figure, svg
from pipeline.runs.stats import Histogram, Throughput

_MAX_BARS, _MIN_BARS, _MIN_WINDOWS_PER_BAR = 60, 4, 4
_DAY_S = 86_400
_MAX_TICKS = 6
_SECONDS_OR_MINUTES, _HOURS = (1, 2, 5, 10, 15, 30), (1, 2, 3, 6, 12, 24)
_TICK_STEPS_S = [
    step * unit_s for unit_s, steps in ((1, _SECONDS_OR_MINUTES), (60, _SECONDS_OR_MINUTES), (3600, _HOURS)) for step in steps
]


def throughput(throughput: Throughput) -> str | None:
    """Plot documents per second over time (UTC). Return None for a run of too few windows."""
    max_bars = min(_MAX_BARS, throughput.windows // _MIN_WINDOWS_PER_BAR)
    while throughput.slot_count > max(max_bars, 1):
        throughput = throughput.with_width(2 * throughput.width_s)
    bars, width_s = throughput.slot_count, throughput.width_s
    if bars < _MIN_BARS:
        return None
    first = min(throughput.documents)
    rates = [throughput.documents.get(first + bar, 0) / width_s for bar in range(bars)]
    start_s, duration_s = first * width_s, bars * width_s
    figure, axes = new_figure()
    axes.bar(start_s + np.arange(bars) * width_s, rates, 0.88 * width_s, align="edge", color=BAR, linewidth=0)
    step_s = next((step for step in _TICK_STEPS_S if duration_s <= _MAX_TICKS * step), duration_s // _MAX_TICKS)
    axes.set_xticks(range(-(-start_s // step_s) * step_s, start_s + duration_s + 1, step_s))
    axes.xaxis.set_major_formatter(FuncFormatter(partial(_format_time, step_s=step_s, has_days=duration_s > _DAY_S)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    return svg(figure, "throughput")


def lengths(histogram: Histogram, limit: int, name: str) -> str | None:
    """Plot a histogram of lengths (tokens) on a logarithmic axis, with the limit marked. Return None if it is empty.

    ``name`` must be unique in the page.
    """
    if not histogram.documents:
        return None
    # Four bins per octave. Where lengths are small, several of them would hold no whole number; unique() joins these.
    edges = np.unique(np.concatenate([[0, 1], np.ceil(2 ** (np.arange(0, 40 * 4 + 1) / 4)).astype(np.int64)]))
    starts = np.array(sorted(histogram.counts))
    documents = np.array([histogram.counts[start] for start in starts.tolist()])
    counts = np.bincount(np.searchsorted(edges, starts, side="right") - 1, weights=documents, minlength=len(edges))
    used = np.flatnonzero(counts)
    bins = np.arange(max(0, used[0] - 1), min(len(edges) - 2, used[-1] + 1) + 1)
    left, right = np.maximum(edges[bins], 0.5), edges[bins + 1]
    figure, axes = new_figure()
    heights = counts[bins] / np.log2(right / left)  # so that equal areas are equally many documents
    axes.bar(left, heights, width=(right - left) * 0.97, align="edge", color=BAR, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(left[0], limit / 1.1), max(right[-1], limit * 1.1))
    axes.set_ylim(0, 1.15 * heights.max())
    axes.axvline(limit, color=MARK, linewidth=1.2, linestyle=(0, (4, 3)))
    start, end = axes.get_xlim()
    is_in_left_half = limit < (start * end) ** 0.5
    note = axes.annotate(
        f"limit {limit:,}",
        (limit, 1),
        (3 if is_in_left_half else -3, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if is_in_left_half else "right",
        va="top",
        color=MARK,
        fontsize=8,
    )
    note.set_in_layout(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "0"))
    axes.yaxis.set_major_locator(NullLocator())
    return svg(figure, name)


def _format_time(time_s: float, _: int, *, step_s: int, has_days: bool) -> str:
    """Format a Unix time in UTC, no finer than the distance of the ticks requires."""
    return datetime.fromtimestamp(time_s, UTC).strftime("%d %b %H:%M" if has_days else "%H:%M" if step_s >= 60 else "%H:%M:%S")
