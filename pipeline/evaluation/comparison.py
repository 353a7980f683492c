"""Compare two systems on the same rows: the difference in ROUGE-L, a verdict, and the rows that differ most."""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from typing import Literal

import numpy as np
from pydantic import BaseModel

from pipeline.evaluation.metrics import Floats, ScoreInterval, resampled_sums

_EXAMPLES = 5
_SHOWN_CHARS = 600


class ComparedRow(BaseModel):
    """A row on which two systems differ. ``difference`` is ROUGE-L of ``model`` minus that of ``other``, in points."""

    difference: float
    source: str
    reference: str
    model: str
    other: str


class Comparison(BaseModel):
    """Result of a paired bootstrap (Koehn 2004, section 4).

    Attributes:
        difference: mean ROUGE-L of the model minus that of the other, in points.
        better_share: share of the resamples in which the model is better; ties count half.
        verdict: ``better`` or ``worse`` if the 95 % interval of the difference excludes 0, else ``no difference``.
        better_rows: the rows on which the model gains most, largest gain first.
        worse_rows: the rows on which it loses most, largest loss first.
    """

    difference: ScoreInterval
    better_share: float
    verdict: Literal["better", "worse", "no difference"]
    better_rows: list[ComparedRow]
    worse_rows: list[ComparedRow]


class PairedComparison:
    """Compares two systems, one window of rows at a time. Keeps a number per row and the text of a few rows."""

    def __init__(self) -> None:
        self._windows: list[Floats] = []
        self._rows = 0
        self._gains: list[tuple[float, int, ComparedRow]] = []
        self._losses: list[tuple[float, int, ComparedRow]] = []

    def add(self, differences: Floats, texts: Sequence[tuple[str, str, str, str]]) -> None:
        """Add N rows.

        Args:
            differences: ROUGE-L of the model minus that of the other [N], in points.
            texts: source, reference, summary of the model and summary of the other.
        """
        self._windows.append(differences)
        for difference, row in zip(differences.tolist(), texts, strict=True):
            self._rows += 1
            for heap, gain in ((self._gains, difference), (self._losses, -difference)):
                if gain > 0 and (len(heap) < _EXAMPLES or gain > heap[0][0]):
                    source, reference, model, other = (text[:_SHOWN_CHARS] for text in row)
                    compared = ComparedRow(difference=difference, source=source, reference=reference, model=model, other=other)
                    add = heapq.heappush if len(heap) < _EXAMPLES else heapq.heapreplace
                    add(heap, (gain, -self._rows, compared))

    def result(self, bootstrap_samples: int, seed: int) -> Comparison:
        """Return the comparison over all rows, at least one, by ``bootstrap_samples`` resamples, at least one."""
        differences = np.concatenate(self._windows)
        means = resampled_sums(differences[:, None], bootstrap_samples, seed)[:, 0] / len(differences)
        low, high = np.percentile(means, [2.5, 97.5]).tolist()
        return Comparison(
            difference=ScoreInterval(value=float(differences.mean()), low=low, high=high),
            better_share=float(np.mean(np.sign(means) + 1) / 2),
            verdict="better" if low > 0 else "worse" if high < 0 else "no difference",
            better_rows=[row for _, _, row in sorted(self._gains, reverse=True)],
            worse_rows=[row for _, _, row in sorted(self._losses, reverse=True)],
        )
