"""Figures of progress records, and detection of a diverging loss."""

from __future__ import annotations

import math

import pytest
import torch

from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainingConfig
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.learner import BatchTotals, Learner, StepResult
from pipeline.training.meter import Meter, ProgressRecord


@pytest.fixture
def meter() -> Meter:
    learner = Learner(Seq2Seq(ModelConfig(embedding_size=4, hidden_size=4), 8), TrainingConfig(), torch.device("cpu"))
    return Meter(learner, minutes=1.0, progress=0.5, max_rise=1.0)


def take_steps(meter: Meter, losses: list[float], norm: float = 1.0) -> ProgressRecord:
    """Record steps of 10 target tokens and 30 tokens with these losses per token, in 0.1 minutes in total."""
    for loss in losses:
        step = StepResult(torch.tensor(10 * loss), torch.tensor(norm), 0.1)
        meter.add(step, BatchTotals(target_tokens=10, tokens=30, pairs=2, minutes=0.0), waited_s=0.5)
    return meter.record(step, meter.minutes + 0.1, meter.progress + 0.01)


def test_record_covers_the_steps_since_the_last(meter: Meter) -> None:
    take_steps(meter, [9.0])
    assert take_steps(meter, [1.0, 2.0, 3.0]) == pytest.approx(
        {
            "loss": 2.0,
            "tokens_per_s": 90 / 6,
            "wait_share": 1.5 / 6,
            "learning_rate": 0.1,
            "gradient_norm": 1.0,
            "minutes_left": 0.1 * 0.48 / 0.01,
        }
    )


def test_skipped_time_does_not_lower_the_speed(meter: Meter) -> None:
    meter.skip_to(5.0, 0.7)
    assert take_steps(meter, [1.0])["tokens_per_s"] == pytest.approx(30 / 6)


def test_infinite_norm_is_none(meter: Meter) -> None:
    assert take_steps(meter, [1.0], norm=math.inf)["gradient_norm"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_loss_that_is_not_finite_is_a_divergence_once(meter: Meter, loss: float) -> None:
    take_steps(meter, [1.0])
    assert meter.divergence() is None
    take_steps(meter, [1.0, loss])
    assert meter.divergence() == "the loss is not a number"
    take_steps(meter, [1.0])
    assert meter.divergence() is None


def test_loss_far_above_its_lowest_is_a_divergence(meter: Meter) -> None:
    take_steps(meter, [2.0] * 100)
    assert meter.divergence() is None
    take_steps(meter, [9.0] * 100)
    assert meter.divergence() is None, "there is no checkpoint to roll back to"
    meter.roll_back()
    meter.snapshot()
    for level in (5.0, 3.0, 3.9):
        take_steps(meter, [level] * 100)
        assert meter.divergence() is None, level
    take_steps(meter, [4.1] * 60)
    assert meter.divergence() is None, "too few steps to tell"
    take_steps(meter, [4.1] * 60)
    assert "from 3.000 to 4.100" in str(meter.divergence())
    take_steps(meter, [3.2] * 100)
    assert meter.divergence() is None


def test_rollback_accepts_the_loss_of_the_checkpoint(meter: Meter) -> None:
    take_steps(meter, [6.0] * 100)
    assert meter.divergence() is None
    meter.snapshot()
    take_steps(meter, [3.0] * 100)
    assert meter.divergence() is None
    take_steps(meter, [5.0] * 100)
    assert "from 3.000 to 5.000" in str(meter.divergence())
    meter.roll_back()
    take_steps(meter, [6.5] * 100)
    assert meter.divergence() is None


def test_no_limit_allows_any_rise(meter: Meter) -> None:
    meter.max_rise = None
    meter.snapshot()
    for level in (1.0, 9.0):
        take_steps(meter, [level] * 100)
        assert meter.divergence() is None
