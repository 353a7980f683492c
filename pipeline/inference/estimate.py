"""Estimate how long a run takes: decode a few of its documents on one actor.

the first documents of some files ──> read stage, in this process ──> summarize stage, in an actor ──> documents/s
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray

from pipeline import cluster
from pipeline.data.splits import RowRange, Split
from pipeline.data.token_columns import flatten_column
from pipeline.errors import UserError
from pipeline.inference.actor_pool import ActorPool
from pipeline.inference.graph import actor_settings, read_stage
from pipeline.inference.plan import Plan
from pipeline.inference.stages.summarize import SummarizeWindow
from pipeline.inference.stages.window import IDS, WindowMetadata, row_to_window, window_to_row
from pipeline.io.memory_limit import memory_limit
from pipeline.runs import ledger

_FILES, _ROWS_PER_FILE = 8, 64
_WARM_UP_ROWS = 8


@dataclass(frozen=True)
class RunEstimate:
    """Size and duration of a run, estimated from a sample of its documents.

    Attributes:
        documents: Documents of the input that are new or have changed; 0 if none of the sample is.
        source_tokens: Tokens of them that the model will read.
        documents_per_s: Speed of the actors that the run starts with.
        seconds: Duration after the start-up.
    """

    sample: int
    documents: int
    source_tokens: int
    documents_per_s: float
    seconds: float
    actor_hours: float


class _Actor(SummarizeWindow):
    """The stage, with a method that Ray can call."""

    def decode(self, row: pa.Table) -> pa.Table:
        return self(row)


def estimate_run(plan: Plan, pool: ActorPool) -> RunEstimate:
    """Decode up to 512 documents of the input on one actor.

    Raises:
        UserError: None of them can be summarized, or an actor cannot compute with these options.
        Stopped: The actor failed.
    """
    split = _sample_split(plan)
    window, metadata = cluster.translate_errors(lambda: _read_sample(plan, split))
    documents = round(plan.input.rows * len(window) / max(len(window) + sum(metadata.skipped.values()), 1))
    if not documents:
        return RunEstimate(split.rows, 0, 0, 0.0, 0.0, 0.0)
    tokens = len(flatten_column(window[IDS])[0])
    if not tokens:
        raise UserError(f"none of the first documents of {plan.input.root.uri} can be summarized; check --input.text_column")
    decode_s = cluster.translate_errors(lambda: _decode_sample(plan, pool, window, metadata))
    documents_per_s = len(window) / max(decode_s, 1e-9) * pool.min_actors
    seconds = documents / documents_per_s
    return RunEstimate(
        sample=split.rows,
        documents=documents,
        source_tokens=round(tokens / len(window) * documents),
        documents_per_s=documents_per_s,
        seconds=seconds,
        actor_hours=seconds * pool.min_actors / 3600,
    )


def _sample_split(plan: Plan) -> Split:
    """Return the first rows of some files, spread over the input, as one split."""
    files = [file for file in plan.input.files if file.rows]
    if not files:
        raise UserError(f"{plan.input.root.uri} has no documents; set --input.path")
    sampled = files[:: -(-len(files) // _FILES)]
    return Split(0, tuple(RowRange(f.file.path, 0, 0, min(f.rows, _ROWS_PER_FILE), f.rows) for f in sampled))


def _read_sample(plan: Plan, split: Split) -> tuple[pa.Table, WindowMetadata]:
    stage = read_stage(plan, ledger.load(plan.output, plan.finished, plan.spec.ledger))
    with memory_limit("the sample"):
        return next(replace(stage, window_rows=split.rows, window_tokens=None).read(split))


def _decode_sample(plan: Plan, pool: ActorPool, window: pa.Table, metadata: WindowMetadata) -> float:
    """Return the seconds that an actor takes for the window after warming up."""
    actor_class: Any = ray.remote(**pool.ray_options)(_Actor)
    actor = actor_class.remote(actor_settings(plan, pool))
    try:
        # The first window compiles functions; a GPU captures graphs of shapes that it has seen before.
        for part in (window.slice(0, _WARM_UP_ROWS), *[window] * (3 if pool.gpus else 1)):
            row = ray.get(actor.decode.remote(window_to_row(part, metadata)))
    finally:
        ray.kill(actor)
    return row_to_window(row)[1].timings.decode_s
