"""One run: every document of a store to a summary or a reject, once.

    plan ── read and tokenize, a window at a time ── summarize (actors) ── write ── manifest, _SUCCESS

What makes a window stands in windows.py, what the stages do with it in stages.py and summarizer.py. The driver sees a record
per window, never a document.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from typing import Any

import ray
import ray.data
import ray.exceptions
import yaml
from ray.data import ActorPoolStrategy

from pipeline import cluster
from pipeline.config import DecodingConfig, SummarizeConfig
from pipeline.errors import Stopped, UserError
from pipeline.inference.bundles import read_bundle
from pipeline.inference.effort import Effort
from pipeline.inference.manifest import Counts, Example, InputFile, Manifest, OutputFile, WindowRecord
from pipeline.inference.pool import LIGHT_CPUS, Actors, place_actors
from pipeline.inference.stages import (
    EXAMPLES,
    PRIVATE,
    RECORD,
    REJECT_COLUMNS,
    SUMMARY_COLUMNS,
    ReadWindows,
    WriteWindow,
)
from pipeline.inference.summarizer import SummarizeWindow
from pipeline.inference.windows import units_of
from pipeline.model.bundle import TOKENIZER
from pipeline.storage import Place, StoredFile, place
from pipeline.text.documents import DocumentStore, open_store
from pipeline.versions import versions

_AGAIN = "the same command, with this --output.run_id, does the run anew"

SUCCESS, MANIFEST, CONFIG = "_SUCCESS", "manifest.json", "config.yaml"


@dataclass(frozen=True)
class Plan:
    """A run before it starts: its input, its model and its options have been looked at."""

    config: SummarizeConfig
    run_id: str
    store: DocumentStore
    output: Place
    bundle_files: Mapping[str, bytes]
    model_fingerprint: str
    decoding: DecodingConfig

    @property
    def folder(self) -> Place:
        """``runs/<run_id>``, with the manifest and _SUCCESS."""
        return self.output.child("runs").child(self.run_id)

    def is_finished(self) -> bool:
        """Whether this run ended with _SUCCESS before.

        Raises:
            UserError: a run of this id did, but over another input, or with another model or other options, or its
                manifest is not one that this version writes.
        """
        if not self.folder.child(SUCCESS).exists():
            return False
        manifest = self.folder.child(MANIFEST)
        try:
            before = Manifest.model_validate_json(manifest.read())
        except ValueError:
            raise UserError(f"{manifest.uri} is broken or of another version; set another --output.run_id") from None
        changed = {
            "another input": before.input_files != self.input_files,
            "another model": before.model_fingerprint != self.model_fingerprint,
            "other decoding options": before.decoding != self.decoding.model_dump(),
            "other input options": before.config["input"] != _as_json(self.config)["input"],
        }
        if any(changed.values()):
            how = " and ".join(what for what, differs in changed.items() if differs)
            raise UserError(f"run {self.run_id} is finished, with {how}: {self.folder.uri}; set another --output.run_id")
        return True

    @property
    def input_files(self) -> list[InputFile]:
        """The store's files, for the manifest."""
        return [
            InputFile(path=file.file.path, rows=file.rows, bytes=file.file.size, modified=file.file.modified)
            for file in self.store.files
        ]


@dataclass(frozen=True)
class Progress:
    """Where a run stands. seconds: since the first window could start."""

    counts: Counts
    seconds: float


@dataclass
class Tally:
    """What the driver keeps of the windows that are written: it grows with the files, not with the documents."""

    counts: Counts = field(default_factory=Counts)
    effort: Effort = field(default_factory=Effort)
    files: list[OutputFile] = field(default_factory=list)
    examples: list[Example] = field(default_factory=list)
    actors: dict[str, float] = field(default_factory=dict)
    """When each began with its first window."""

    def add(self, window: WindowRecord, at: float) -> None:
        """One more, that was written at this time (s)."""
        self.counts, self.effort = self.counts.with_window(window), self.effort + window.effort
        self.files += window.files
        self.examples += window.examples[: EXAMPLES - len(self.examples)]
        self.actors.setdefault(window.actor, at - window.effort.decode_s)


@dataclass(frozen=True)
class Finished:
    """A run that ended well."""

    manifest: Manifest
    examples: list[Example]


def plan_run(config: SummarizeConfig) -> Plan:
    """Check input, model and output without computing anything.

    Raises:
        UserError: one of them is not usable.
    """
    _check_names(config)
    store, output = open_store(config.input), place(config.output.path, "--output.path")
    if output.contains(store.root) or store.root.contains(output):
        raise UserError(f"--output.path {output.uri} and --input.path {store.root.uri} lie in each other; set another output")
    bundle_files, bundle = read_bundle(config.model.path)
    run_id = config.output.run_id or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise UserError(f"--output.run_id {run_id!r} names a folder: letters, digits, '.', '_' and '-' alone, please")
    return Plan(
        config,
        run_id,
        store,
        output,
        bundle_files,
        bundle.fingerprint,
        config.decoding.applied_to(bundle.decoding, bundle.model.config),
    )


def execute(plan: Plan, on_progress: Callable[[Progress], None]) -> Finished:
    """Run a plan to its end. What an unfinished run of the same id left is removed first.

    Args:
        on_progress: called with the counts so far after each window.

    Raises:
        UserError: the output cannot be written, or the cluster lacks what was asked for.
        Stopped: a stage failed, or the files are not those that the plan and the records name. There is no _SUCCESS.
    """
    started_at, started = datetime.now(UTC), time.monotonic()
    _claim_output(plan)
    actors = place_actors(plan.config.resources)
    tally, first_window = Tally(), None
    for window in _windows(plan, actors):
        first_window = first_window or time.monotonic() - window.effort.decode_s
        tally.add(window, time.monotonic())
        on_progress(Progress(tally.counts, time.monotonic() - first_window))
    if tally.counts.read != plan.store.rows:
        raise Stopped(f"{tally.counts.read} documents came through where there were {plan.store.rows} at the start; {_AGAIN}")
    unchanged = set(plan.store.root.parquet_files(recursive=True))  # new files are the next run's
    if changed := [file.file.path for file in plan.store.files if file.file not in unchanged]:
        raise Stopped(f"{len(changed)} files have changed since the run began, {changed[0]} among them; {_AGAIN}")
    _keep_recorded(plan, {file.path for file in tally.files})
    ended = time.monotonic()
    startup_s = (first_window or ended) - started
    seconds = ended - started - startup_s
    actor_seconds = sum(ended - began for began in tally.actors.values())
    manifest = Manifest(
        run_id=plan.run_id,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        startup_s=startup_s,
        seconds=seconds,
        model_fingerprint=plan.model_fingerprint,
        config=_as_json(plan.config),
        decoding=plan.decoding.model_dump(),
        versions=versions(),
        actors=len(tally.actors),
        counts=tally.counts,
        effort=tally.effort,
        limits=tally.effort.summed_up(actor_seconds, seconds, tally.counts.source_tokens),
        input_files=plan.input_files,
        output_files=sorted(tally.files, key=lambda file: file.path),
    )
    plan.folder.child(MANIFEST).write(manifest.model_dump_json(indent=2).encode() + b"\n")
    plan.folder.child(SUCCESS).write(b"")
    return Finished(manifest, tally.examples)


def _claim_output(plan: Plan) -> None:
    """Remove what an unfinished run of this id left, and write the first file."""
    for kind in ("summaries", "rejects"):
        plan.output.child(f"{kind}/run={plan.run_id}").remove_folder()
    plan.folder.child(CONFIG).write(yaml.safe_dump(_as_json(plan.config), sort_keys=False).encode())


def reader(plan: Plan) -> ReadWindows:
    """The stage that reads the plan's store."""
    config = plan.config
    return ReadWindows(
        filesystem=plan.store.root.filesystem,
        window_rows=config.resources.window_rows,
        window_tokens=config.resources.window_tokens,
        tokenizer_file=plan.bundle_files[TOKENIZER],
        input=config.input,
        max_source_tokens=plan.decoding.max_source_tokens,
    )


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


def _windows(plan: Plan, actors: Actors) -> Iterator[WindowRecord]:
    """The graph of the run; a record as each window is written. Raises UserError or Stopped if a stage fails."""
    config, tokenizer_file = plan.config, plan.bundle_files[TOKENIZER]
    metadata = {"nightshift.run_id": plan.run_id, "nightshift.model_fingerprint": plan.model_fingerprint}
    units = [asdict(unit) for unit in units_of(plan.store.files, config.resources.window_rows)]
    if not units:
        return
    source = ray.data.from_items(units, override_num_blocks=len(units))
    # A row is a window, and a block of its own: none waits until others fill a block with it.
    source.context.target_max_block_size = 1
    windows = (
        source.map_batches(
            reader(plan),
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
            fn_constructor_kwargs=summarizer_options(plan, actors),
        )
        .map_batches(
            WriteWindow(tokenizer_file, config.input, plan.decoding.max_source_tokens, plan.output, plan.run_id, metadata),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=LIGHT_CPUS,
        )
    )
    try:
        for row in windows.iter_rows():
            yield WindowRecord.model_validate_json(row[RECORD])
    except ray.exceptions.RayError as error:
        told = cluster.explained(error)
        if isinstance(told, Stopped):
            told = Stopped(f"{told}; the log files of Ray tell more; {_AGAIN}")
    else:
        return
    # Not from the error itself, whose frames hold the actors, and these their room in the cluster.
    raise told


def _keep_recorded(plan: Plan, recorded: set[str]) -> None:
    """Remove the run's files that no record names: what a crash cut off. Stop if one that a record names is missing."""
    found: dict[str, StoredFile] = {}
    for kind in ("summaries", "rejects"):
        folder = plan.output.child(f"{kind}/run={plan.run_id}")
        if folder.exists():
            found |= {f"{kind}/run={plan.run_id}/{file.path.rpartition('/')[2]}": file for file in folder.files()}
    if missing := recorded - found.keys():
        raise Stopped(
            f"{len(missing)} files that were written are not in {plan.output.uri}, {min(missing)} among them: "
            f"is it a folder that all nodes share, and did no other run {plan.run_id} write there? {_AGAIN}"
        )
    for path in found.keys() - recorded:
        plan.output.filesystem.delete_file(found[path].path)


def _check_names(config: SummarizeConfig) -> None:
    """The output's columns must have a name each."""
    kept = [config.input.id_column, *config.input.keep_columns]
    if repeated := [column for column in config.input.keep_columns if kept.count(column) > 1]:
        raise UserError(f"--input.keep_columns {repeated[0]!r} comes twice, or is the id column, which is kept anyway")
    own = {*SUMMARY_COLUMNS, *REJECT_COLUMNS}
    for option, column in [("id_column", config.input.id_column), *(("keep_columns", c) for c in config.input.keep_columns)]:
        if column in own or column.startswith(PRIVATE):
            raise UserError(f"--input.{option} {column!r} is the name of a column that the output adds; rename it in the input")


def _as_json(config: SummarizeConfig) -> dict[str, object]:
    values: dict[str, object] = json.loads(config.model_dump_json(by_alias=True))
    return values
