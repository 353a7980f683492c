"""The state.pt of a training checkpoint, with a valid bundle."""

from __future__ import annotations

import contextlib
import functools
from pathlib import Path

import torch
from scratch import SCRATCH

from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainConfig, TrainingConfig
from pipeline.errors import UserError
from pipeline.model.bundle import TOKENIZER
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from pipeline.training.learner import Learner
from targets.bundle_weights import small_bundle

_FOLDER = Path(SCRATCH, "checkpoint")


@functools.cache
def _learner() -> Learner:
    model = Seq2Seq(ModelConfig(embedding_size=2, hidden_size=2), 400)
    learner = Learner(model, TrainingConfig(precision="float32"), torch.device("cpu"))
    _FOLDER.mkdir(exist_ok=True)
    save_checkpoint(
        str(_FOLDER),
        learner,
        {"stream": {"rows": [1, 2], "epoch": 0}, "minutes": 1.0},
        small_bundle()[TOKENIZER],
        TrainConfig(),
    )
    return learner


@functools.cache
def seeds() -> list[bytes]:
    """Return that of a real checkpoint."""
    _learner()
    return [(_FOLDER / "state.pt").read_bytes()]


def target(data: bytes) -> None:
    """Load the checkpoint, or raise UserError."""
    learner = _learner()
    (_FOLDER / "state.pt").write_bytes(data)
    with contextlib.suppress(UserError):
        load_checkpoint(str(_FOLDER), learner)
