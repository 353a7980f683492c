"""The Ray Data graph of a run."""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import asdict
from typing import Any

import ray.exceptions
from ray.data import ActorPoolStrategy

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.splits import Split
from pipeline.inference.actor_pool import ActorPool
from pipeline.inference.dedup import DuplicateRows
from pipeline.inference.failure_isolation import AttemptCounter
from pipeline.inference.plan import Plan
from pipeline.inference.stages.read import ReadWindows
from pipeline.inference.stages.summarize import SummarizeWindow
from pipeline.inference.stages.write import RECORD, WriteWindow
from pipeline.model.bundle import TOKENIZER
from pipeline.runs.ledger import Ledger
from pipeline.runs.manifest import WindowRecord
from pipeline.runs.stats import SketchSize, sketch_size
from pipeline.runs.unreadable_files import UnreadableFiles


def read_stage(plan: Plan, done: Ledger | None = None, repeated: DuplicateRows | None = None) -> ReadWindows:
    """The stage that reads the plan's store."""
    return ReadWindows(
        filesystem=plan.store.root.filesystem,
        window_rows=plan.spec.window_rows,
        window_tokens=plan.spec.window_tokens,
        tokenizer_file=plan.bundle_files[TOKENIZER],
        input=plan.config.input,
        max_source_tokens=plan.decoding.max_source_tokens,
        salt=plan.salt,
        bad_files=UnreadableFiles(plan.config.input.on_bad_file),
        ledger=done,
        repeated=repeated,
        sample=_sketch_size(plan).sample,
    )


def _sketch_size(plan: Plan) -> SketchSize:
    """What the digest of each of the plan's windows keeps."""
    return sketch_size(plan.store.rows // plan.spec.window_rows)


def actor_options(plan: Plan, actors: ActorPool) -> dict[str, Any]:
    """What an actor of the plan is made with."""
    resources = plan.config.resources
    return {
        "bundle_files": ray.put(plan.bundle_files),
        "options": plan.decoding,
        "gpus": actors.gpus,
        "cpus": actors.cpus,
        "token_budget": None if resources.token_budget == "auto" else resources.token_budget,
        "precision": resources.precision,
        "threads": actors.threads,
    }


def process_windows(
    plan: Plan, units: Sequence[Split], actors: ActorPool, read: ReadWindows, attempts: AttemptCounter
) -> Generator[WindowRecord, None, None]:
    """The graph of the run; a record as each window is written. Raises Ray's error if a stage fails."""
    config, tokenizer_file = plan.config, plan.bundle_files[TOKENIZER]
    metadata = {"nightshift.run_id": plan.run_id, "nightshift.model_fingerprint": plan.model_fingerprint}
    if not units:
        return
    source = ray.data.from_items([asdict(unit) for unit in units], override_num_blocks=len(units))
    # A row is a window, and a block of its own: none waits until others fill a block with it.
    source.context.target_max_block_size = 1
    windows = (
        source.map_batches(
            read,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=LIGHT_CPUS,
            concurrency=config.resources.tokenizers,
        )
        .map_batches(
            SummarizeWindow,
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(min_size=actors.fewest, max_size=actors.number),
            **actors.ray_options,
            fn_constructor_kwargs={**actor_options(plan, actors), "attempts": attempts},
        )
        .map_batches(
            WriteWindow(
                tokenizer_file,
                config.input,
                plan.decoding.max_source_tokens,
                plan.output,
                plan.run_id,
                metadata,
                _sketch_size(plan),
            ),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=LIGHT_CPUS,
        )
    )
    for row in windows.iter_rows():
        yield WindowRecord.model_validate_json(row[RECORD])
