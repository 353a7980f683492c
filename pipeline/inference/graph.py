"""The Ray Data graph of a run: the only module that builds it. What each stage does is in ``stages``.

splits ──> ReadWindows (tasks) ──> SummarizeWindow (actors) ──> WriteWindow (tasks) ──> records
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Sequence
from dataclasses import asdict

import ray
import ray.data
from ray.data import ActorPoolStrategy

from pipeline.cluster import LIGHT_CPUS
from pipeline.data.splits import Split
from pipeline.inference.actor_pool import ActorPool
from pipeline.inference.plan import Plan
from pipeline.inference.stages.read import ReadWindows
from pipeline.inference.stages.summarize import ActorSettings, SummarizeWindow
from pipeline.inference.stages.write import RECORD, WriteWindow
from pipeline.io.stderr import hide_lines
from pipeline.model.bundle import TOKENIZER
from pipeline.runs.ledger import Ledger
from pipeline.runs.manifest import WindowRecord
from pipeline.runs.samples import SketchSize, sketch_size
from pipeline.runs.unreadable_files import UnreadableFiles

_RESTART_WARNING = b"has constructor arguments in the object store and max_restarts > 0"
"""Ray's C++ code prints this for every actor pool of Ray Data, in red. Its arguments stay in the store while the run lasts."""


def read_stage(plan: Plan, ledger: Ledger) -> ReadWindows:
    """Return the stage that reads the plan's input, without what only a run knows: see run.py."""
    return ReadWindows(
        filesystem=plan.input.root.filesystem,
        window_rows=plan.spec.window_rows,
        window_tokens=plan.spec.window_tokens,
        tokenizer_file=plan.bundle_files[TOKENIZER],
        input=plan.config.input,
        max_source_tokens=plan.decoding.max_source_tokens,
        salt=plan.salt,
        unreadable=UnreadableFiles(plan.config.input.on_bad_file),
        ledger=ledger,
        sample=_sketch(plan).sample,
        style_token=plan.style_token,
    )


def actor_settings(plan: Plan, pool: ActorPool) -> ActorSettings:
    """Return the settings of each actor; the bundle is put into Ray's object store."""
    resources = plan.config.resources
    return ActorSettings(
        bundle_files=ray.put(plan.bundle_files),
        decoding=plan.decoding,
        gpus=pool.gpus,
        cpus=pool.cpus,
        threads=pool.threads,
        precision=resources.precision,
        token_budget=None if resources.token_budget == "auto" else resources.token_budget,
    )


def write_stage(plan: Plan) -> WriteWindow:
    return WriteWindow(
        tokenizer_file=plan.bundle_files[TOKENIZER],
        input=plan.config.input,
        max_text_tokens=plan.decoding.max_text_tokens,
        output=plan.output,
        run_id=plan.run_id,
        metadata={"nightshift.run_id": plan.run_id, "nightshift.model_fingerprint": plan.model_fingerprint},
        sketch=_sketch(plan),
    )


def _sketch(plan: Plan) -> SketchSize:
    return sketch_size(plan.input.rows // plan.spec.window_rows)


def process_windows(
    plan: Plan, splits: Sequence[Split], pool: ActorPool, read: ReadWindows
) -> Generator[WindowRecord, None, None]:
    """Process splits and yield a record as each window is written. Raises Ray's error if a stage fails.

    Close the generator to stop all tasks.
    """
    if not splits:
        return
    rows = ray.data.from_items([asdict(split) for split in splits], override_num_blocks=len(splits))
    # Each row, which is a window, becomes a block of its own, so that no window waits for others to fill a block.
    rows.context.target_max_block_size = 1
    records = (
        rows.map_batches(
            read,
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=LIGHT_CPUS,
            concurrency=plan.config.resources.tokenizers,
        )
        .map_batches(
            SummarizeWindow,
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(min_size=pool.min_actors, max_size=pool.max_actors),
            **pool.ray_options,
            fn_constructor_kwargs={"settings": actor_settings(plan, pool), "attempts": read.attempts},
        )
        .map_batches(write_stage(plan), batch_format="pyarrow", batch_size=None, num_cpus=LIGHT_CPUS)
    )
    written = iter(records.iter_rows())
    with hide_lines(_RESTART_WARNING):  # the pool is created before the first record
        first = list(itertools.islice(written, 1))
    for row in itertools.chain(first, written):
        yield WindowRecord.model_validate_json(row[RECORD])
