"""What a training tells of its steps, and when it is taken to have come off its path."""

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


def take(meter: Meter, losses: list[float], norm: float = 1.0) -> ProgressRecord:
    """Steps of ten target tokens and thirty in all, with these losses a token, in a tenth of a minute."""
    for loss in losses:
        step = StepResult(torch.tensor(10 * loss), torch.tensor(norm), 0.1)
        meter.add(step, BatchTotals(target_tokens=10, tokens=30, pairs=2, minutes=0.0), waited_s=0.5)
    return meter.record(step, meter.minutes + 0.1, meter.progress + 0.01)


def test_a_record_is_of_the_steps_since_the_last(meter: Meter) -> None:
    take(meter, [9.0])
    assert take(meter, [1.0, 2.0, 3.0]) == pytest.approx(
        {
            "loss": 2.0,
            "tokens_per_s": 90 / 6,
            "wait_share": 1.5 / 6,
            "learning_rate": 0.1,
            "gradient_norm": 1.0,
            "minutes_left": 0.1 * 0.48 / 0.01,
        }
    )


def test_time_that_is_skipped_is_no_learning(meter: Meter) -> None:
    meter.skip_to(5.0, 0.7)
    assert take(meter, [1.0])["tokens_per_s"] == pytest.approx(30 / 6)


def test_a_norm_that_is_no_number_is_not_told(meter: Meter) -> None:
    assert take(meter, [1.0], norm=math.inf)["gradient_norm"] is None


@pytest.mark.parametrize("loss", [math.nan, math.inf])
def test_a_loss_that_is_no_number_is_a_fault_at_once_and_told_once(meter: Meter, loss: float) -> None:
    take(meter, [1.0])
    assert meter.fault() is None
    take(meter, [1.0, loss])
    assert meter.fault() == "the loss is not a number"
    take(meter, [1.0])
    assert meter.fault() is None


def test_a_loss_that_rises_far_above_its_lowest_is_a_fault(meter: Meter) -> None:
    take(meter, [2.0] * 100)
    assert meter.fault() is None
    take(meter, [9.0] * 100)
    assert meter.fault() is None, "there is nothing to go back to yet"
    meter.roll_back()
    meter.remember()
    for level in (5.0, 3.0, 3.9):
        take(meter, [level] * 100)
        assert meter.fault() is None, level
    take(meter, [4.1] * 60)
    assert meter.fault() is None, "so few steps may be of hard pairs"
    take(meter, [4.1] * 60)
    assert meter.fault() == "the loss has risen from 3.000 to 4.100 nat a token"
    take(meter, [3.2] * 100)
    assert meter.fault() is None


def test_after_a_rollback_a_loss_as_high_as_at_the_checkpoint_is_none(meter: Meter) -> None:
    take(meter, [6.0] * 100)
    assert meter.fault() is None
    meter.remember()
    for level in (3.0, 5.0):
        take(meter, [level] * 100)
        fault = meter.fault()
    assert fault == "the loss has risen from 3.000 to 5.000 nat a token"
    meter.roll_back()
    take(meter, [6.5] * 100)
    assert meter.fault() is None


def test_without_a_bound_it_may_rise(meter: Meter) -> None:
    meter.max_rise = None
    meter.remember()
    for level in (1.0, 9.0):
        take(meter, [level] * 100)
        assert meter.fault() is None
