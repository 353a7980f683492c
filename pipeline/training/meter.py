"""Mean loss and speed between two progress records, and detection of a diverging loss.

All workers compute the same figures, so they all make the same decision. The module knows steps and totals, not their source.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict

import torch

from pipeline.training.learner import BatchTotals, Learner, StepResult

_STRETCH_STEPS = 100
"""The loss is averaged over this many steps before it is compared with the lowest one."""


class ProgressRecord(TypedDict):
    """Figures of the steps since the last record.

    Attributes:
        loss: mean over all workers, in nats per target token.
        tokens_per_s: source and target tokens per second, of all workers.
        wait_share: share of the time that the first worker waited for data.
        gradient_norm: norm of the last step before clipping; None if float16 overflowed and the step was skipped.
        minutes_left: estimate for the whole training; None if there was no progress to base it on.
    """

    loss: float
    tokens_per_s: float
    wait_share: float
    learning_rate: float
    gradient_norm: float | None
    minutes_left: float | None


@dataclass
class _StepSums:
    """Sums over steps. The loss is this worker's, as a tensor, so that a step does not wait for the device."""

    loss: torch.Tensor
    target_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    waited_s: float = 0.0


@dataclass
class Meter:
    """Sums up steps and watches the loss.

    Args:
        minutes: training time when the meter starts.
        progress: share of the training that is done when the meter starts.
        max_rise: how far the mean loss of 100 steps may exceed the lowest one, in nats per token; None for no limit.
    """

    learner: Learner
    minutes: float
    progress: float
    max_rise: float | None
    _lowest: float = field(init=False, default=math.inf)
    _lowest_at_snapshot: float | None = field(init=False, default=None)
    _sums: _StepSums = field(init=False)

    def __post_init__(self) -> None:
        self._start_stretch()
        self._sums = self._new_sums()

    def add(self, step: StepResult, totals: BatchTotals, waited_s: float) -> None:
        """Add a step. ``waited_s`` is how long this worker waited for the batches of that step."""
        self._sums.loss += step.loss
        self._sums.target_tokens += totals.target_tokens
        self._sums.tokens += totals.tokens
        self._sums.steps += 1
        self._sums.waited_s += waited_s

    def record(self, step: StepResult, minutes: float, progress: float) -> ProgressRecord:
        """Return the figures of the steps since the last record; ``step`` is the last of them. A collective call."""
        sums, elapsed_s, gained = self._sums, max(60 * (minutes - self.minutes), 1e-9), progress - self.progress
        nll = float(self.learner.sum_over_workers(sums.loss.double().cpu()))
        self._stretch_nll += nll
        self._stretch_tokens += sums.target_tokens
        self._stretch_steps += sums.steps
        minutes_left = (1 - progress) * (minutes - self.minutes) / gained if gained > 0 else None
        self.skip_to(minutes, progress)
        norm = float(step.gradient_norm)
        return ProgressRecord(
            loss=nll / sums.target_tokens,
            tokens_per_s=sums.tokens / elapsed_s,
            wait_share=min(1.0, sums.waited_s / elapsed_s),
            learning_rate=step.learning_rate,
            gradient_norm=norm if math.isfinite(norm) else None,
            minutes_left=minutes_left,
        )

    def skip_to(self, minutes: float, progress: float) -> None:
        """Start the next record here, so that it excludes the time since the last one."""
        self.minutes, self.progress, self._sums = minutes, progress, self._new_sums()

    def divergence(self) -> str | None:
        """Describe how the loss diverged up to the last record; return None if it did not.

        A rise counts only if there is a checkpoint to roll back to: the losses of a training's first steps vary too much.
        """
        if not math.isfinite(self._stretch_nll):  # the step after a NaN gradient has such a loss
            self._start_stretch()
            return "the loss is not a number"
        if self._stretch_steps < _STRETCH_STEPS:
            return None
        mean = self._stretch_nll / self._stretch_tokens
        self._start_stretch()
        if self.max_rise is not None and self._lowest_at_snapshot is not None and mean > self._lowest + self.max_rise:
            return f"the loss rose from {self._lowest:.3f} to {mean:.3f} nats per token"
        self._lowest = min(self._lowest, mean)
        return None

    def snapshot(self) -> None:
        """Save the lowest loss for ``roll_back``. Call it when a checkpoint is kept."""
        self._lowest_at_snapshot = self._lowest

    def roll_back(self) -> None:
        """Forget the losses since the last snapshot: the weights are those of the last checkpoint again."""
        self._lowest = math.inf if self._lowest_at_snapshot is None else self._lowest_at_snapshot
        self._start_stretch()

    def _start_stretch(self) -> None:
        self._stretch_nll, self._stretch_tokens, self._stretch_steps = 0.0, 0, 0

    def _new_sums(self) -> _StepSums:
        return _StepSums(torch.zeros((), device=self.learner.device))
