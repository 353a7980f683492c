"""A rehearsal: a few documents through one actor, from which follows what the whole run takes.

the first documents of some files ── read and tokenize, here ── one actor, as the run would have it ── documents/s
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa
import ray
import ray.exceptions

from pipeline import cluster
from pipeline.data.splits import RowRange, Split
from pipeline.data.token_columns import flatten_column
from pipeline.errors import UserError
from pipeline.inference.actor_pool import ActorPool
from pipeline.inference.graph import actor_options, read_stage
from pipeline.inference.plan import Plan
from pipeline.inference.stages.summarize import SummarizeWindow
from pipeline.inference.stages.window import IDS, row_to_window, window_to_row
from pipeline.io.memory_limit import memory_limit
from pipeline.runs import ledger

_FILES, _ROWS_PER_FILE = 8, 64


@dataclass(frozen=True)
class RunEstimate:
    """What a run will take, by a sample of so many documents.

    documents: that are new, or have changed: none, if none of the sample is. source_tokens: that the model will read of these.
    documents_per_s: of the actors that the run begins with. seconds: start-up apart. actor_hours: of these actors together; one
    with a GPU holds it as long.
    """

    sample: int
    documents: int
    source_tokens: int
    documents_per_s: float
    seconds: float
    actor_hours: float


class _Actor:
    """Hosts the stage. (Ray would fetch what its options refer to, were they an actor's own arguments.)"""

    def __init__(self, options: dict[str, Any]) -> None:
        self._stage = SummarizeWindow(**options)

    def decode(self, row: pa.Table) -> pa.Table:
        return self._stage(row)


def estimate_run(plan: Plan, actors: ActorPool) -> RunEstimate:
    """Decode a sample of the store, 512 documents at most, on one actor.

    Raises:
        UserError: nothing of the sample can be summarized, or an actor cannot compute as asked.
        Stopped: the actor failed.
    """
    files = [file for file in plan.store.files if file.rows]
    if not files:
        raise UserError(f"{plan.store.root.uri} holds no document; set --input.path")
    chosen = files[:: -(-len(files) // _FILES)]
    unit = Split(0, tuple(RowRange(file.file.path, 0, 0, min(file.rows, _ROWS_PER_FILE), file.rows) for file in chosen))
    try:
        done = ledger.load(plan.output, plan.finished, plan.spec.ledger)
    except ray.exceptions.RayError as error:
        raise cluster.to_user_error(error) from error
    with memory_limit("the sample"):
        sample, passport = next(replace(read_stage(plan, done), window_rows=unit.rows, window_tokens=None).read(unit))
    documents = round(plan.store.rows * len(sample) / max(len(sample) + sum(passport.skipped.values()), 1))
    if not documents:
        return RunEstimate(unit.rows, 0, 0, 0.0, 0.0, 0.0)
    tokens = len(flatten_column(sample[IDS])[0])
    if not tokens:
        raise UserError(f"none of the first documents of {plan.store.root.uri} can be summarized; look at --input.text_column")
    remote: Any = ray.remote(**actors.ray_options)(_Actor)
    try:
        actor = remote.remote(actor_options(plan, actors))
        try:
            # The first compiles; a GPU captures what it has seen before.
            for window in (sample.slice(0, 8), *[sample] * (3 if actors.gpus else 1)):
                row = ray.get(actor.decode.remote(window_to_row(window, passport)))
        finally:
            ray.kill(actor)
    except ray.exceptions.RayError as error:
        raise cluster.to_user_error(error) from error
    _, passport = row_to_window(row)
    rate = len(sample) / max(passport.timings.decode_s, 1e-9) * actors.fewest
    seconds = documents / rate
    return RunEstimate(
        sample=unit.rows,
        documents=documents,
        source_tokens=round(tokens / len(sample) * documents),
        documents_per_s=rate,
        seconds=seconds,
        actor_hours=seconds * actors.fewest / 3600,
    )
