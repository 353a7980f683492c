"""``training.html``: how a training goes, and how it went, for people.

    records ── findings ── plots.py ── training.html.jinja ── one page

It is written anew at each validation. Matplotlib is imported once there is one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.config.train import TrainConfig
from pipeline.pages.page import flat, render_page
from pipeline.training.model_card import describe_network

Record = dict[str, Any]

_WAITS = 0.1
"""Share of the time spent waiting for data from which on it is told."""
_SHOWN = 8
"""Validations whose samples are shown, the last one among them."""
_STALE = 5
"""Validations in a row that were not the best, from which on it is told."""
_CAPTIONS = [
    ("loss", "Loss", "nat a target token; of training with what the objective adds to it"),
    ("rouge", "ROUGE F1", "of hypotheses for the development pairs, in percent"),
    ("rate", "Learning rate", "of Adam"),
    ("speed", "Tokens a second", "source and target, of all workers"),
    ("norm", "Norm of the gradient", "before it was clipped"),
]


@dataclass(frozen=True)
class TrainingWarning:
    """What a person should look at, and why."""

    what: str
    why: str


def render(config: TrainConfig, records: Sequence[Record], is_finished: bool) -> str:
    """The page.

    Args:
        records: of all runs of the training so far; one of a start is among them.
    """
    from pipeline.training.report.plots import curves

    kinds = {kind: [record for record in records if record["kind"] == kind] for kind in ("start", "step", "validation")}
    steps, validations = kinds["step"], kinds["validation"]
    best = max(validations, key=lambda record: _score(config, record), default=None)
    plots = {
        "loss": curves({"training": _curve(steps, "loss"), "development": _curve(validations, "dev_loss")}, "loss"),
        "rouge": curves({f"ROUGE-{n}": _curve(validations, f"rouge{n}") for n in ("1", "2", "L")}, "rouge"),
        "rate": curves({"rate": _curve(steps, "learning_rate")}, "rate"),
        "speed": curves({"speed": _curve(steps, "tokens_per_s")}, "speed"),
        "norm": curves({"norm": _curve(steps, "gradient_norm")}, "norm"),
    }
    last = records[-1]
    return render_page(
        "training/report/training.html.jinja",
        plots,
        {},
        name=config.output.path,
        status="Finished" if is_finished else "Training",
        network=describe_network(config.model),
        start=kinds["start"][-1],
        at=datetime.fromtimestamp(last["at"], UTC),
        last=last,
        best=best,
        rate=float(np.median([step["tokens_per_s"] for step in steps])) if steps else None,
        findings=_training_warnings(records, validations, best, config),
        captions=_CAPTIONS,
        validations=validations,
        samples=_samples(validations),
        options=flat(config.model_dump(mode="json", by_alias=True)),
    )


def _score(config: TrainConfig, record: Record) -> float:
    by = config.training.best_by
    return float(-record[by] if by == "dev_loss" else record[by])


def _curve(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    known = [record for record in records if record[name] is not None]
    return [record["step"] for record in known], [record[name] for record in known]


def _training_warnings(
    records: Sequence[Record], validations: Sequence[Record], best: Record | None, config: TrainConfig
) -> list[TrainingWarning]:
    found = []
    for record in records:
        if record["kind"] == "fault":
            found.append(
                TrainingWarning(
                    f"Step {record['step']:,}: {record['fault']}.",
                    "Weights and optimizer were rolled back to the last checkpoint, or the start; what follows was learnt. "
                    "Where it comes again, a lower --training.learning_rate or --training.clip_norm is the cure.",
                )
            )
        if record["kind"] == "skipped":
            rows = " and ".join(f"{record[role]:,} rows of {role}" for role in ("train", "dev") if record[role])
            found.append(TrainingWarning(f"{rows} were skipped.", "Their source or target is null."))
    waits = [record["wait_share"] for record in records if record["kind"] == "step"]
    if waits and (share := float(np.mean(waits))) > _WAITS:
        found.append(
            TrainingWarning(
                f"{share:.0%} of the time was spent waiting for pairs.",
                "Reading and tokenizing need more CPUs beside the workers, or nearer files.",
            )
        )
    if best and (since := len(validations) - 1 - validations.index(best)) >= _STALE:
        found.append(
            TrainingWarning(
                f"The best validation was {since} before the last one.",
                f"By {config.training.best_by}. --training.patience would end such a training; more dropout or more pairs help "
                "where the training loss goes on falling.",
            )
        )
    return found


def _samples(validations: Sequence[Record]) -> list[dict[str, Any]]:
    """The pairs that the last validation shows, each with what was written for it then and before, as (step, hypothesis)."""
    if not validations:
        return []
    shown = [validations[at] for at in np.unique(np.linspace(0, len(validations) - 1, _SHOWN).round().astype(int)).tolist()]
    samples = []
    for sample in validations[-1]["samples"]:
        hypotheses = [
            (record["step"], other["hypothesis"])
            for record in shown
            for other in record["samples"]
            if other["source"] == sample["source"] and other["reference"] == sample["reference"]
        ]
        samples.append({**sample, "hypotheses": hypotheses})
    return samples
