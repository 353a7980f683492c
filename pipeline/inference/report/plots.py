"""A report's plots. Numbers alone go in, no text of documents."""

from __future__ import annotations

from datetime import UTC, datetime
from functools import partial

import numpy as np
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullLocator

from pipeline.pages.svg import BAR, GRID, MARK, new_figure, svg
from pipeline.runs.stats import Histogram, Throughput

_BARS, _WINDOWS_OF_A_BAR, _FEWEST_BARS = 60, 4, 4
_DAY_S = 86_400
_STEPS_S = [
    m * u for u, ms in ((1, (1, 2, 5, 10, 15, 30)), (60, (1, 2, 5, 10, 15, 30)), (3600, (1, 2, 3, 6, 12, 24))) for m in ms
]
_TICKS = 6
"""On the axis of time, at most, and the seconds between them."""


def throughput(throughput: Throughput) -> str | None:
    """Documents a second, over time in UTC; None of so few windows that it would say nothing."""
    bars = min(_BARS, throughput.windows // _WINDOWS_OF_A_BAR)
    while throughput.slot_count > max(bars, 1):
        throughput = throughput.with_width(2 * throughput.width_s)
    if throughput.slot_count < _FEWEST_BARS:
        return None
    first = min(throughput.documents)
    rates = [throughput.documents.get(first + slot, 0) / throughput.width_s for slot in range(throughput.slot_count)]
    start, seconds = first * throughput.width_s, throughput.slot_count * throughput.width_s
    figure, axes = new_figure()
    axes.bar(
        start + np.arange(throughput.slot_count) * throughput.width_s,
        rates,
        0.88 * throughput.width_s,
        align="edge",
        color=BAR,
        linewidth=0,
    )
    step = next((step for step in _STEPS_S if seconds <= _TICKS * step), seconds // _TICKS)
    axes.set_xticks(range(-(-start // step) * step, start + seconds + 1, step))
    axes.xaxis.set_major_formatter(FuncFormatter(partial(_clock, step=step, days=seconds > _DAY_S)))
    axes.yaxis.set_major_locator(MaxNLocator(4))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.10g}"))
    axes.grid(axis="y", color=GRID, linewidth=0.6)
    return svg(figure, "throughput")


def lengths(histogram: Histogram, limit: int, name: str) -> str | None:
    """How many documents have which length in subwords, on a logarithmic axis, and where the limit lies; None of none."""
    if not histogram.documents:
        return None
    # Whole octaves' quarters, to the left too, where several may hold no whole number: such ones are joined.
    edges = np.unique(np.concatenate([[0, 1], np.ceil(2 ** (np.arange(0, 40 * 4 + 1) / 4)).astype(np.int64)]))
    starts = np.array(sorted(histogram.counts))
    documents = np.array([histogram.counts[start] for start in starts.tolist()])
    counts = np.bincount(np.searchsorted(edges, starts, side="right") - 1, weights=documents, minlength=len(edges))
    used = np.flatnonzero(counts)
    lowest, highest = max(0, used[0] - 1), min(len(edges) - 2, used[-1] + 1)
    bins = np.arange(lowest, highest + 1)
    left, right = np.maximum(edges[bins], 0.5), edges[bins + 1]
    figure, axes = new_figure()
    # Heights are documents by width on the axis, so that areas compare.
    heights = counts[bins] / np.log2(right / left)
    axes.bar(left, heights, width=(right - left) * 0.97, align="edge", color=BAR, linewidth=0)
    axes.set_xscale("log", base=2)
    axes.set_xlim(min(left[0], limit / 1.1), max(right[-1], limit * 1.1))
    axes.set_ylim(0, 1.15 * heights.max())
    axes.axvline(limit, color=MARK, linewidth=1.2, linestyle=(0, (4, 3)))
    start, end = axes.get_xlim()
    is_left = limit < (start * end) ** 0.5
    note = axes.annotate(
        f"limit {limit:,}",
        (limit, 1),
        (3 if is_left else -3, -2),
        xycoords=("data", "axes fraction"),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="top",
        color=MARK,
        fontsize=8,
    )
    note.set_in_layout(False)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}" if value >= 1 else "0"))
    axes.yaxis.set_major_locator(NullLocator())
    return svg(figure, name)


def _clock(at: float, _: int, *, step: int, days: bool) -> str:
    """A time (s since 1970) in UTC, as fine as the steps are."""
    return datetime.fromtimestamp(at, UTC).strftime("%d %b %H:%M" if days else "%H:%M" if step >= 60 else "%H:%M:%S")
