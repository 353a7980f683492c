"""Loss and speed from one record of progress to the next, and whether a training has come off its path.

All workers hold the same figures and so come to the same decision. Knows steps and totals; nothing of where they come from.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TypedDict

import torch

from pipeline.training.learner import BatchTotals, Learner, StepResult

_WINDOW_STEPS = 100
"""Steps over which a loss is averaged before it is compared with that of other stretches."""


class ProgressRecord(TypedDict):
    """loss: of all workers, the mean (nat a target token). tokens_per_s: source and target, of all workers.

    wait_share: of the time, in which the first worker waited for data. gradient_norm: of the last step, before clipping; None
    where float16 could not hold it, and the step was left out. minutes_left: None where none can be told.
    """

    loss: float
    tokens_per_s: float
    wait_share: float
    learning_rate: float
    gradient_norm: float | None
    minutes_left: float | None


@dataclass
class _Sum:
    """Over some steps. loss: this worker's, a tensor, so as not to wait for it."""

    loss: torch.Tensor
    target_tokens: int = 0
    tokens: int = 0
    steps: int = 0
    waited_s: float = 0.0


@dataclass
class Meter:
    """Adds up steps.

    Args:
        minutes, progress: where the training stands.
        max_rise: how far a stretch's loss may be above the lowest one's (nat a token); None: as far as it will.
    """

    learner: Learner
    minutes: float
    progress: float
    max_rise: float | None
    _lowest: float = field(init=False, default=math.inf)
    _remembered: float | None = field(init=False, default=None)
    _since: _Sum = field(init=False)

    def __post_init__(self) -> None:
        self._begin_stretch()
        self._since = self._nothing()

    def add(self, step: StepResult, totals: BatchTotals, waited_s: float) -> None:
        """Count a step, before which this worker waited so long for its batches."""
        self._since.loss += step.loss
        self._since.target_tokens += totals.target_tokens
        self._since.tokens += totals.tokens
        self._since.steps += 1
        self._since.waited_s += waited_s

    def record(self, step: StepResult, minutes: float, progress: float) -> ProgressRecord:
        """What the steps since the last record came to, of which ``step`` is the last. All workers must ask together."""
        since, passed, gained = self._since, minutes - self.minutes, progress - self.progress
        nll = float(self.learner.sum_over_workers(since.loss.double().cpu()))
        self._stretch_nll += nll
        self._stretch_tokens += since.target_tokens
        self._stretch_steps += since.steps
        self.skip_to(minutes, progress)
        norm = float(step.gradient_norm)
        return ProgressRecord(
            loss=nll / since.target_tokens,
            tokens_per_s=since.tokens / max(60 * passed, 1e-9),
            wait_share=min(1.0, since.waited_s / max(60 * passed, 1e-9)),
            learning_rate=step.learning_rate,
            gradient_norm=norm if math.isfinite(norm) else None,
            minutes_left=(1 - progress) * passed / gained if gained > 0 else None,
        )

    def skip_to(self, minutes: float, progress: float) -> None:
        """Begin a record here: what has passed since the last one was no learning."""
        self.minutes, self.progress, self._since = minutes, progress, self._nothing()

    def fault(self) -> str | None:
        """What is wrong with the losses up to the last record; None if nothing is.

        A rise is none before there is a checkpoint to go back to: the losses of a training's first steps say little.
        """
        if not math.isfinite(self._stretch_nll):  # as it is in the step after one whose gradient was no number
            self._begin_stretch()
            return "the loss is not a number"
        if self._stretch_steps < _WINDOW_STEPS:
            return None
        mean = self._stretch_nll / self._stretch_tokens
        self._begin_stretch()
        if self.max_rise is not None and self._remembered is not None and mean > self._lowest + self.max_rise:
            return f"the loss has risen from {self._lowest:.3f} to {mean:.3f} nat a token"
        self._lowest = min(self._lowest, mean)
        return None

    def remember(self) -> None:
        """A checkpoint is kept here, which ``roll_back`` goes back to."""
        self._remembered = self._lowest

    def roll_back(self) -> None:
        """The weights are those of the last checkpoint again: losses since then are none of theirs."""
        self._lowest = math.inf if self._remembered is None else self._remembered
        self._begin_stretch()

    def _begin_stretch(self) -> None:
        self._stretch_nll, self._stretch_tokens, self._stretch_steps = 0.0, 0, 0

    def _nothing(self) -> _Sum:
        return _Sum(torch.zeros((), device=self.learner.device))
