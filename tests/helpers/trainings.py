"""Trainings on the commands of the fixture ``command_pairs``."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from pipeline.config.train import TrainConfig
from pipeline.training.distributed import TrainingResult, train
from pipeline.training.plan import plan_training

PAIRS, DEV_PAIRS, EPOCHS = 600, 18, 4
"""Pairs in the two sets of the fixture ``command_pairs``, and epochs of ``make_config``."""

Records = list[dict[str, Any]]


def make_config(pairs: Path, folder: Path, **sections: dict[str, Any]) -> TrainConfig:
    """Return options for two workers and a small network; ``sections`` replace some of them."""
    values: dict[str, Any] = {
        "data": {"train": f"{pairs}/train", "dev": f"{pairs}/dev", "tokenizer": f"{pairs}/tokenizer.model"},
        "model": {"embedding_size": 32, "hidden_size": 64, "bidirectional": False, "copy": False, "dropout": 0.1},
        "training": {
            "epochs": EPOCHS,
            "token_budget": 60,
            "learning_rate": 0.02,
            "warmup_steps": 10,
            "validate_rows": 100,
            "report_seconds": 0,
            "precision": "float32",
        },
        "decoding": {"no_repeat_ngram": 0},
        "scaling": {"num_workers": 2, "threads": 1},
        "output": {"path": str(folder)},
    }
    for name, options in sections.items():
        values[name] = {**values[name], **options}
    return TrainConfig.model_validate(values)


def run(config: TrainConfig, on_record: Callable[[dict[str, Any]], None] = lambda _: None) -> tuple[TrainingResult, Records]:
    """Train as jobs.train does, and return the result and the records."""
    records: Records = []

    def add(record: dict[str, Any]) -> None:
        records.append(record)
        on_record(record)

    result = train(plan_training(config), add)
    return result, [record for record in records if record["kind"] != "waiting"]  # a busy machine adds those
