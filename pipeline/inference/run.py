"""One run: every document of a store that is new to a summary or a reject, once.

    plan ── census ── read and tokenize, a window at a time ── summarize (actors) ── write ── manifest, _SUCCESS

What makes a window stands in windows.py, what the stages do with it in reading.py, summarizer.py and writing.py.
The driver sees a record per window, never a document.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import ray
import ray.data
import ray.exceptions
import yaml
from ray.data import ActorPoolStrategy

from pipeline import cluster
from pipeline.errors import Stopped, UserError
from pipeline.inference import lease, ledger
from pipeline.inference.attempts import Attempts
from pipeline.inference.bad_files import FOLDER as UNREAD
from pipeline.inference.bad_files import BadFiles
from pipeline.inference.census import GONE, Repeated, find_gone, take_census
from pipeline.inference.counting import RunMetrics
from pipeline.inference.digest import Example, Room, room_for
from pipeline.inference.ledger import Ledger
from pipeline.inference.manifest import Gone, Manifest, UnreadRows, WindowRecord
from pipeline.inference.plan import CONFIG, MANIFEST, Plan, as_json
from pipeline.inference.pool import LIGHT_CPUS, Actors, place_actors
from pipeline.inference.progress import PROGRESS, Journal, Progress
from pipeline.inference.publication import KINDS, SUCCESS, publish
from pipeline.inference.reading import ReadWindows
from pipeline.inference.reporting.report import REPORT, write_report
from pipeline.inference.summarizer import SummarizeWindow
from pipeline.inference.taking_over import AGAIN, check_input, clear_cut_off, keep_recorded, nothing_is_done, take_over
from pipeline.inference.tally import Tally
from pipeline.inference.windows import Unit, units_of
from pipeline.inference.writing import RECORD, WriteWindow
from pipeline.model.bundle import TOKENIZER

_EXAMPLES = 5


@dataclass(frozen=True)
class Finished:
    """A run that came to its end. published: False if more was rejected than ``--input.max_reject_share`` allows."""

    manifest: Manifest
    examples: list[Example]
    published: bool


def execute(plan: Plan, on_progress: Callable[[Progress], None]) -> Finished:
    """Run a plan to its end; what a command that was cut off has written is taken over.

    Args:
        on_progress: called with the counts so far after each window.

    Raises:
        UserError: the output cannot be written or another driver does so, a file cannot be read, or the cluster lacks what
            was asked for.
        Stopped: a stage failed, or the files are not those that the plan and the records name. There is no _SUCCESS.
    """
    with lease.held(plan.output, plan.run_id) as held:
        if plan.folder.child(SUCCESS).exists():
            raise UserError(f"run {plan.run_id} was finished by another driver just now")
        plan = plan.as_of_now()
        clear_cut_off(plan.folder)
        with Journal(plan.folder.child(PROGRESS), plan.run_id, plan.store.rows) as journal, RunMetrics() as metrics:
            return _execute(plan, held, journal, metrics, on_progress)


def _execute(
    plan: Plan, held: lease.Lease, journal: Journal, metrics: RunMetrics, on_progress: Callable[[Progress], None]
) -> Finished:
    started = time.monotonic()
    tally = Tally(unread={path: UnreadRows(rows=None, error=error) for path, error in plan.pinned.unread.items()})
    if not plan.begun or plan.anew:
        held.look()  # before files are removed
        _begin(plan)
    plan.folder.child(CONFIG).write(yaml.safe_dump(as_json(plan.config), sort_keys=False).encode())
    actors = place_actors(plan.config.resources)
    metrics.begin(plan)
    first_window: float | None = None
    told: UserError | Stopped | None = None
    try:
        units = list(units_of(plan.store.files, plan.pinned.window_rows))
        done = ledger.load(plan.output, plan.pinned.ledger)
        bad_files = BadFiles(plan.config.input.on_bad_file, plan.folder.child(UNREAD))
        id_column, is_first = plan.config.input.id_column, nothing_is_done(plan)
        census = take_census(units, plan.store.root.filesystem, id_column, done, bad_files, is_first)
        attempts = Attempts(uuid.uuid4().hex)
        read = replace(reader(plan, done, census.repeated), bad_files=bad_files, attempts=attempts)
        left = take_over(plan, units, tally)
        metrics.go_on(journal.take_over(tally.counts, tally.taken_over))
        # Closed at once if this fails, or its tasks would write on when the lease is another's.
        with closing(_windows(plan, left, actors, read, attempts)) as windows:
            for window in windows:
                held.check()
                first_window = first_window or time.monotonic() - window.effort.decode_s
                tally.add(window, time.monotonic())
                seconds = time.monotonic() - first_window
                at = journal.note(tally.counts, seconds, tally.taken_over, len(tally.actors))
                metrics.add(window, at)
                on_progress(at)
        metrics.end()
        # What is in a file that was not read is not known: it may be there.
        gone = Gone() if tally.unread else find_gone(plan.output, plan.folder, plan.pinned.ledger, census)
        attempts.forget()
    except ray.exceptions.RayError as error:
        told = cluster.explained(error)
        if isinstance(told, Stopped):
            told = Stopped(f"{told}; the log files of Ray tell more; {AGAIN}")
    if told is not None:
        # Not from the error itself, whose frames hold the actors, and these their room in the cluster.
        raise told
    check_input(plan, tally)
    held.look()
    keep_recorded(plan, tally.files)
    manifest = tally.manifest(plan, gone, started, first_window or time.monotonic())
    content = manifest.model_dump_json(indent=2).encode() + b"\n"
    plan.folder.child(MANIFEST).write_patiently(content)
    is_sound = manifest.reject_share <= plan.config.input.max_reject_share
    write_report(plan.output, plan.folder, manifest, tally.digest, is_sound)
    if is_sound:
        held.look()
        publish(plan.output, plan.run_id, content)
    return Finished(manifest, tally.digest.sample.documents[:_EXAMPLES], is_sound)


def _begin(plan: Plan) -> None:
    """Write the plan, and remove what a run of this id left that cannot be used."""
    for kind in (*KINDS, "ledger"):
        plan.output.child(f"{kind}/run={plan.run_id}").remove_folder()
    for name in (MANIFEST, REPORT, GONE):
        plan.folder.child(name).remove()
    plan.folder.child(UNREAD).remove_folder()
    plan.write()


def reader(plan: Plan, done: Ledger | None = None, repeated: Repeated | None = None) -> ReadWindows:
    """The stage that reads the plan's store."""
    return ReadWindows(
        filesystem=plan.store.root.filesystem,
        window_rows=plan.pinned.window_rows,
        window_tokens=plan.pinned.window_tokens,
        tokenizer_file=plan.bundle_files[TOKENIZER],
        input=plan.config.input,
        max_source_tokens=plan.decoding.max_source_tokens,
        salt=plan.salt,
        bad_files=BadFiles(plan.config.input.on_bad_file),
        ledger=done,
        repeated=repeated,
        sample=_room(plan).sample,
    )


def _room(plan: Plan) -> Room:
    """What the digest of each of the plan's windows keeps."""
    return room_for(plan.store.rows // plan.pinned.window_rows)


def summarizer_options(plan: Plan, actors: Actors) -> dict[str, Any]:
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


def _windows(
    plan: Plan, units: Sequence[Unit], actors: Actors, read: ReadWindows, attempts: Attempts
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
            fn_constructor_kwargs={**summarizer_options(plan, actors), "attempts": attempts},
        )
        .map_batches(
            WriteWindow(
                tokenizer_file,
                config.input,
                plan.decoding.max_source_tokens,
                plan.output,
                plan.run_id,
                metadata,
                _room(plan),
            ),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=LIGHT_CPUS,
        )
    )
    for row in windows.iter_rows():
        yield WindowRecord.model_validate_json(row[RECORD])
