"""A configuration in YAML, and options on a command line."""

from __future__ import annotations

import contextlib
from pathlib import Path

from scratch import SCRATCH

from pipeline.config.loader import load_config
from pipeline.config.summarize import SummarizeConfig
from pipeline.config.train import TrainConfig
from pipeline.errors import UserError

_CONFIGS = Path(__file__).parents[3] / "configs"


def seeds() -> list[bytes]:
    """Return shipped configurations, and options."""
    options = [
        b"--input.path x --output.run_id ../x",
        b"--decoding.beam_size 99999999999 --full",
        b"--model {} --resources.actors 1e9",
    ]
    return [*((_CONFIGS / name).read_bytes() for name in ("summarize.yaml", "train.yaml", "fetch.delta.yaml")), *options]


def target(data: bytes) -> None:
    """Load the configuration, or raise UserError."""
    if data[:2] == b"--":
        argv = [word for word in data.decode("utf-8", "replace").split() if word not in ("--help", "-h")]
    else:
        path = Path(SCRATCH, "options.yaml")
        path.write_bytes(data)
        argv = ["--config", str(path)]
    with contextlib.suppress(UserError):
        load_config(TrainConfig if b"training" in data else SummarizeConfig, "summarize", argv)
