"""A run before it starts: its input, its model and its options have been looked at, and whether it goes on with an earlier one.

runs/<run_id>/plan.parquet    what a run began with: its input files, and in the metadata the options that its windows
                              and summaries follow from. Whoever goes on with it has the same windows
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from pydantic import ValidationError

from pipeline.bundles import read_bundle
from pipeline.config.model import DecodingConfig
from pipeline.config.summarize import SummarizeConfig
from pipeline.data.documents import DocumentFile, DocumentSet, list_files, open_documents
from pipeline.errors import UserError
from pipeline.inference.run_spec import INPUT_OPTIONS, RunSpec, read_plan, read_spec, write_plan
from pipeline.inference.stages.window import PRIVATE_PREFIX
from pipeline.io.location import Location, StoredFile, open_location
from pipeline.runs.layout import MANIFEST, PLAN, REJECT_COLUMNS, SUCCESS, SUMMARY_COLUMNS, UNREADABLE, run_folder, run_ids
from pipeline.runs.ledger import compacted_sequence
from pipeline.runs.manifest import InputFile, Manifest
from pipeline.runs.publish import FinishedRun, finished_runs, last_sequence
from pipeline.runs.summaries import RUN_COLUMN


@dataclass(frozen=True)
class Plan:
    """A run that may begin, or go on.

    begun: another command of this run id wrote its plan. anew: why what that left cannot be used, if so. waiting: files that
    came since, which are the next run's.
    """

    config: SummarizeConfig
    run_id: str
    store: DocumentSet
    output: Location
    bundle_files: Mapping[str, bytes]
    decoding: DecodingConfig
    spec: RunSpec
    begun: bool = False
    anew: str | None = None
    waiting: int = 0
    finished: Sequence[FinishedRun] = ()

    @property
    def folder(self) -> Location:
        """``runs/<run_id>``, with the plan, the manifest and _SUCCESS."""
        return run_folder(self.output, self.run_id)

    @property
    def model_fingerprint(self) -> str:
        """Of the bundle."""
        return self.spec.model_fingerprint

    @property
    def salt(self) -> bytes:
        """Of content keys: all that a summary follows from beside its text."""
        options = json.dumps([self.spec.model_fingerprint, self.spec.decoding], sort_keys=True)
        return hashlib.sha256(options.encode()).digest()

    @property
    def input_files(self) -> list[InputFile]:
        """The store's files, for the manifest."""
        return [
            InputFile(path=file.file.path, rows=file.rows, bytes=file.file.size, modified=file.file.modified)
            for file in self.store.files
        ]

    def as_of_now(self) -> Plan:
        """If it is to begin, after all runs that are published by now: while the lease is held there will be no others."""
        runs = finished_runs(self.output)
        if self.begun and not self.anew:
            return replace(self, finished=runs)
        after = last_sequence(runs)
        spec = self.spec.model_copy(update={"after": after, "ledger": 0 if self.spec.full else after})
        return replace(self, spec=spec, finished=runs)

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
        except ValidationError:
            raise UserError(f"{manifest.uri} is broken or of another version; set another --output.run_id") from None
        changed = {
            "another input": before.input_files != self.input_files,
            "another model": before.model_fingerprint != self.model_fingerprint,
            "other decoding options": before.decoding != self.decoding.model_dump(),
            "other input options": any(before.config["input"].get(name) != self.spec.input[name] for name in INPUT_OPTIONS),
        }
        if any(changed.values()):
            how = " and ".join(what for what, differs in changed.items() if differs)
            raise UserError(f"run {self.run_id} is finished, with {how}: {self.folder.uri}; set another --output.run_id")
        return True

    @property
    def previous_runs(self) -> list[FinishedRun]:
        """Return the finished runs whose documents this one skips if they are unchanged."""
        return [run for run in self.finished if run.sequence <= self.spec.ledger]

    def write(self) -> None:
        """Write it for whoever resumes the run. Raises UserError if it cannot be written."""
        write_plan(self.folder.child(PLAN), self.store.files, self.spec)


def plan_run(config: SummarizeConfig) -> Plan:
    """Check input, model and output without computing anything, and find the run that this command goes on with.

    Without ``--output.run_id`` that is the last one that was cut off and asked for the same; if there is none, a new one.

    Raises:
        UserError: one of them is not usable, or the run of this id was cut off and asked for something else.
    """
    _check_names(config)
    root, output = open_location(config.input.path, "--input.path"), open_location(config.output.path, "--output.path")
    if output.contains(root) or root.contains(output):
        raise UserError(f"--output.path {output.uri} and --input.path {root.uri} lie in each other; set another output")
    run_id = config.output.run_id
    bundle_files, bundle = read_bundle(config.model.path)
    decoding = config.decoding.applied_to(bundle.decoding, bundle.model.config)
    now, runs = datetime.now(UTC), finished_runs(output)
    spec = RunSpec(
        started_at=now,
        input=config.input.model_dump(include=INPUT_OPTIONS),
        model_fingerprint=bundle.fingerprint,
        decoding=decoding.model_dump(),
        full=config.full,
        window_rows=config.resources.window_rows,
        window_tokens=config.resources.window_tokens,
        precision=config.resources.precision,
        after=last_sequence(runs),
        ledger=0 if config.full else last_sequence(runs),
        unread={},
    )
    run_id = run_id or _find_cut_off_run(output, spec, runs) or _new_id(output, now)
    folder = run_folder(output, run_id)
    if folder.child(SUCCESS).exists() or not folder.child(PLAN).exists():
        store = open_documents(config.input)
        return Plan(config, run_id, store, output, bundle_files, decoding, _with_unread(spec, store), finished=runs)
    files, before = read_plan(folder.child(PLAN))
    if differs := before.differs(spec):
        raise UserError(
            f"run {run_id} was cut off, and asked for something else than this command: {' and '.join(differs)}; "
            f"ask for the same, or set another --output.run_id"
        )
    found = {file.path: file for file in list_files(root)}
    if why := _restart_reason(files, found, before, output, folder, config):
        store = open_documents(config.input)
        spec = _with_unread(spec, store)
        return Plan(config, run_id, store, output, bundle_files, decoding, spec, begun=True, anew=why, finished=runs)
    waiting = len(found.keys() - {file.file.path for file in files} - before.unread.keys())
    unread_files = [StoredFile(path, *written) for path, written in before.unread_files.items()]
    store = DocumentSet(root, files, before.unread, unread_files)
    as_it_began = {name: getattr(before, name) for name in ("window_rows", "window_tokens", "precision")}
    config = config.model_copy(update={"resources": config.resources.model_copy(update=as_it_began)})
    return Plan(config, run_id, store, output, bundle_files, decoding, before, begun=True, waiting=waiting, finished=runs)


def _with_unread(spec: RunSpec, store: DocumentSet) -> RunSpec:
    files = {file.path: (file.size, file.modified) for file in store.unread_files}
    return spec.model_copy(update={"unread": dict(store.unread), "unread_files": files})


def _restart_reason(
    files: list[DocumentFile],
    found: Mapping[str, StoredFile],
    before: RunSpec,
    output: Location,
    folder: Location,
    config: SummarizeConfig,
) -> str | None:
    """Why what a run that was cut off has written cannot be used, if so."""
    if changed := [file.file.path for file in files if found.get(file.file.path) != file.file]:
        return f"{len(changed)} of its files have changed or are gone since, {changed[0]} among them"
    was_refused = folder.child(MANIFEST).exists()  # for its rejects, which were counted then
    others = [path for path, written in before.unread_files.items() if found.get(path) != StoredFile(path, *written)]
    if was_refused and others:
        return f"{len(others)} of the files that it could not read have changed or are gone since, {others[0]} among them"
    if compacted_sequence(output) > before.ledger > 0:
        return "the ledger that it began with was compacted since"
    if before.sort != "window":
        return "it sorted all of its documents first, which this version does not do"
    if config.input.on_bad_file == "fail" and (before.unread or folder.child(UNREADABLE).exists()):
        return "it left files out that could not be read, and --input.on_bad_file is fail now"
    return None


def _new_id(output: Location, now: datetime) -> str:
    """The time, with a number more where a clock that was set back gives it again."""
    taken, run_id = set(run_ids(output)), now.strftime("%Y%m%dT%H%M%SZ")
    return next(name for number in itertools.count(1) if (name := run_id if number == 1 else f"{run_id}-{number}") not in taken)


def _find_cut_off_run(output: Location, spec: RunSpec, runs: Sequence[FinishedRun]) -> str | None:
    """The last run without _SUCCESS that asked for the same, if there is one that no other has replaced since."""
    found, finished = [], {run.run_id for run in runs}
    for run_id in run_ids(output):
        before = read_spec(output, run_id) if run_id not in finished else None
        if before is None or before.differs(spec):
            continue
        began_after = max(before.after, before.ledger)  # the plans of earlier versions have no ``after``
        since = [run.run_id for run in runs if run.sequence > began_after]
        if not any(later.replaces(before) for later in map(partial(read_spec, output), since) if later):
            found.append((before.started_at, run_id))
    return max(found)[1] if found else None


def _check_names(config: SummarizeConfig) -> None:
    """The output's columns must have a name each."""
    kept = [config.input.id_column, *config.input.keep_columns]
    if repeated := [column for column in config.input.keep_columns if kept.count(column) > 1]:
        raise UserError(f"--input.keep_columns {repeated[0]!r} comes twice, or is the id column, which is kept anyway")
    own = {*SUMMARY_COLUMNS, *REJECT_COLUMNS, RUN_COLUMN}
    for option, column in [("id_column", config.input.id_column), *(("keep_columns", c) for c in config.input.keep_columns)]:
        if column in own or column.startswith(PRIVATE_PREFIX):
            raise UserError(f"--input.{option} {column!r} is the name of a column that the output adds; rename it in the input")


def config_as_json(config: SummarizeConfig) -> dict[str, Any]:
    """A configuration as it is written down."""
    values: dict[str, Any] = json.loads(config.model_dump_json(by_alias=True))
    return values
