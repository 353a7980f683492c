"""Render ``training.html``, the page that shows people how a training goes.

    records ──> warnings, plots.py ──> training.html.jinja ──> one page

The page is written again at each validation. Matplotlib is imported only to make it.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np

from pipeline.config.train import TrainConfig
from pipeline.pages.page import flat, render_page
from pipeline.training.model_card import describe_network
from pipeline.training.plan import Parent

Record = dict[str, Any]

_HIGH_WAIT_SHARE = 0.1
"""Warn above this share of time spent waiting for data."""

_MAX_VALIDATIONS_SHOWN = 8
"""Validations whose samples are shown, including the last one."""

_STALE_VALIDATIONS = 5
"""Warn after this many validations without a new best one."""

_CAPTIONS = [
    ("loss", "Loss", "nats per target token; for training, with label smoothing and coverage"),
    ("rouge", "ROUGE F1", "percent, on the development pairs"),
    ("rate", "Learning rate", "of Adam"),
    ("speed", "Tokens per second", "source and target, all workers"),
    ("norm", "Gradient norm", "before clipping"),
]


@dataclass(frozen=True)
class TrainingWarning:
    """A warning: what happened, and what to do about it."""

    message: str
    advice: str


def render_training_page(
    config: TrainConfig, records: Sequence[Record], parent: Parent | None = None, fingerprint: str | None = None
) -> str:
    """Render the page.

    Args:
        config: Configuration of the training.
        records: Records of all runs of the training, with at least one of kind "start".
        parent: Bundle that the training started from, if any.
        fingerprint: Fingerprint of the bundle that a finished training wrote; None while it trains.
    """
    from pipeline.training.report.plots import plot_curves

    starts, steps, validations = (_of_kind(records, kind) for kind in ("start", "step", "validation"))
    best = max(validations, key=lambda record: _score(config, record), default=None)
    plots = {
        "loss": plot_curves({"training": _curve(steps, "loss"), "development": _curve(validations, "dev_loss")}, "loss"),
        "rouge": plot_curves({f"ROUGE-{n}": _curve(validations, f"rouge{n}") for n in ("1", "2", "L")}, "rouge"),
        "rate": plot_curves({"rate": _curve(steps, "learning_rate")}, "rate"),
        "speed": plot_curves({"speed": _curve(steps, "tokens_per_s")}, "speed"),
        "norm": plot_curves({"norm": _curve(steps, "gradient_norm")}, "norm"),
    }
    last = records[-1]
    return render_page(
        "training/report/training.html.jinja",
        plots,
        {},
        name=config.output.path,
        status="Finished" if fingerprint else "Training",
        parent=parent,
        fingerprint=fingerprint,
        network=describe_network(config.model),
        start=starts[-1],
        time=datetime.fromtimestamp(last["at"], UTC),
        last=last,
        best=best,
        rate=float(np.median([step["tokens_per_s"] for step in steps])) if steps else None,
        warnings=list(_training_warnings(config, records, best)),
        captions=_CAPTIONS,
        validations=validations,
        samples=_samples(validations),
        options=flat(config.model_dump(mode="json", by_alias=True)),
    )


def _of_kind(records: Sequence[Record], kind: str) -> list[Record]:
    return [record for record in records if record["kind"] == kind]


def _score(config: TrainConfig, record: Record) -> float:
    measure = config.training.best_by
    return float(-record[measure] if measure == "dev_loss" else record[measure])


def _curve(records: Sequence[Record], name: str) -> tuple[list[float], list[float]]:
    """Return the steps at which a figure is known, and its values."""
    known = [record for record in records if record[name] is not None]
    return [record["step"] for record in known], [record[name] for record in known]


def _training_warnings(config: TrainConfig, records: Sequence[Record], best: Record | None) -> Iterator[TrainingWarning]:
    for record in records:
        if record["kind"] == "fault":
            yield TrainingWarning(
                f"Step {record['step']:,}: {record['fault']}.",
                "The training went back to its last checkpoint and continued. If this happens again, lower "
                "--training.learning_rate or --training.clip_norm.",
            )
        if record["kind"] == "skipped":
            rows = " and ".join(f"{record[role]:,} rows of {role}" for role in ("train", "dev") if record[role])
            yield TrainingWarning(f"{rows} were skipped.", "Their source or target is null.")
    waits = [record["wait_share"] for record in _of_kind(records, "step")]
    if waits and (share := float(np.mean(waits))) > _HIGH_WAIT_SHARE:
        yield TrainingWarning(
            f"Workers waited for pairs {share:.0%} of the time.",
            "Add CPUs for the tasks that read and tokenize, or copy the pairs to faster storage.",
        )
    validations = _of_kind(records, "validation")
    if best and (since_best := len(validations) - 1 - validations.index(best)) >= _STALE_VALIDATIONS:
        yield TrainingWarning(
            f"The last {since_best} validations were not better than the best one.",
            f"They are compared by {config.training.best_by}. Set --training.patience to end such a training early. If the "
            "training loss still falls, use more dropout or more pairs.",
        )


def _samples(validations: Sequence[Record]) -> list[dict[str, Any]]:
    """Return the samples of the last validation, each with its (step, hypothesis) of this and earlier validations."""
    if not validations:
        return []
    indexes = np.unique(np.linspace(0, len(validations) - 1, _MAX_VALIDATIONS_SHOWN).round().astype(int)).tolist()
    samples = []
    for sample in validations[-1]["samples"]:
        hypotheses = [
            (validations[index]["step"], other["hypothesis"])
            for index in indexes
            for other in validations[index]["samples"]
            if other["source"] == sample["source"] and other["reference"] == sample["reference"]
        ]
        samples.append({**sample, "hypotheses": hypotheses})
    return samples
