"""Plan a run: check its input, model and options, and decide whether it resumes an interrupted run."""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial

from pydantic import ValidationError

from pipeline.bundles import read_bundle
from pipeline.config.model import DecodingConfig
from pipeline.config.summarize import SummarizeConfig
from pipeline.data.documents import DocumentSet, list_files, open_documents
from pipeline.data.special_tokens import style_token
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
    """A run that may start, or resume.

    Attributes:
        bundle_files: Content of the bundle's files, by name.
        finished: Finished runs of the output, oldest first.
        has_started: Whether an earlier command started the run.
        restart_reason: Why the results of that command cannot be used, if so.
        later_files: Number of input files that came later and are left to the next run.
        style_token: Id of the token that comes before each text; -1 for none.
    """

    config: SummarizeConfig
    run_id: str
    input: DocumentSet
    output: Location
    bundle_files: Mapping[str, bytes]
    decoding: DecodingConfig
    spec: RunSpec
    finished: Sequence[FinishedRun]
    has_started: bool = False
    restart_reason: str | None = None
    later_files: int = 0
    style_token: int = -1

    @property
    def folder(self) -> Location:
        return run_folder(self.output, self.run_id)

    @property
    def model_fingerprint(self) -> str:
        return self.spec.model_fingerprint

    @property
    def resumes(self) -> bool:
        """Whether the run keeps the results of an earlier command."""
        return self.has_started and not self.restart_reason

    @property
    def salt(self) -> bytes:
        """Salt of content keys: hash of all that a summary depends on besides the text."""
        options = json.dumps([self.spec.model_fingerprint, self.spec.decoding], sort_keys=True)
        return hashlib.sha256(options.encode()).digest()

    @property
    def input_files(self) -> list[InputFile]:
        return [
            InputFile(path=file.file.path, rows=file.rows, bytes=file.file.size, modified=file.file.modified)
            for file in self.input.files
        ]

    def refreshed(self) -> Plan:
        """Return the plan with the runs that are finished now. Raises UserError if this run is one of them.

        The caller holds the lease, so their list is final.
        """
        finished = finished_runs(self.output)
        if any(run.run_id == self.run_id for run in finished):
            raise UserError(f"another driver has just finished run {self.run_id}; set another --output.run_id")
        if self.resumes:
            return replace(self, finished=finished)
        after = last_sequence(finished)
        spec = self.spec.model_copy(update={"after": after, "ledger": 0 if self.spec.full else after})
        return replace(self, finished=finished, spec=spec)

    def is_finished(self) -> bool:
        """Return whether this run is finished. Raises UserError if it is, but for another input or with other options."""
        if not self.folder.child(SUCCESS).exists():
            return False
        file = self.folder.child(MANIFEST)
        try:
            manifest = Manifest.model_validate_json(file.read())
        except ValidationError:
            raise UserError(f"{file.uri} is broken or of another version; set another --output.run_id") from None
        differences = {
            "another input": manifest.input_files != self.input_files,
            "another model": manifest.model_fingerprint != self.model_fingerprint,
            "other decoding options": manifest.decoding != self.decoding.model_dump(),
            "other input options": any(manifest.config["input"].get(name) != self.spec.input[name] for name in INPUT_OPTIONS),
        }
        if any(differences.values()):
            text = " and ".join(text for text, differs in differences.items() if differs)
            raise UserError(
                f"run {self.run_id} has already finished with {text}: {self.folder.uri}; set another --output.run_id"
            )
        return True

    def write(self) -> None:
        write_plan(self.folder.child(PLAN), self.input.files, self.spec)


def plan_run(config: SummarizeConfig) -> Plan:
    """Check input, model and output without computing anything, and find the run that this command resumes.

    Without ``--output.run_id``, that is the latest interrupted run that asked for the same. If there is none, the run is new.

    Raises:
        UserError: One of them cannot be used, or the run of this id was interrupted and asked for something else.
    """
    _check_columns(config)
    root, output = open_location(config.input.path, "--input.path"), open_location(config.output.path, "--output.path")
    if output.contains(root) or root.contains(output):
        raise UserError(f"--output.path {output.uri} and --input.path {root.uri} contain one another; set another output")
    bundle_files, bundle = read_bundle(config.model.path)
    decoding = config.decoding.applied_to(bundle.decoding, bundle.model.config)
    token = style_token(bundle.model.config.styles, decoding.style)
    finished = finished_runs(output)
    spec = RunSpec(
        started_at=datetime.now(UTC),
        input=config.input.model_dump(include=INPUT_OPTIONS),
        model_fingerprint=bundle.fingerprint,
        decoding=decoding.model_dump(),
        full=config.full,
        window_rows=config.resources.window_rows,
        window_tokens=config.resources.window_tokens,
        precision=config.resources.precision,
        after=last_sequence(finished),
        ledger=0 if config.full else last_sequence(finished),
        unread={},
    )
    run_id = config.output.run_id or _interrupted_run(output, spec, finished) or new_run_id(output, spec.started_at)
    folder = run_folder(output, run_id)
    if folder.child(SUCCESS).exists() or not folder.child(PLAN).exists():
        documents = open_documents(config.input)
        spec = _with_unread(spec, documents)
        return Plan(config, run_id, documents, output, bundle_files, decoding, spec, finished, style_token=token)
    files, started = read_plan(folder.child(PLAN))
    if differences := started.differences(spec):
        raise UserError(
            f"run {run_id} was interrupted and had other settings than this command: {' and '.join(differences)}; "
            "use the same settings, or set another --output.run_id"
        )
    unread_files = [StoredFile(path, *size_and_time) for path, size_and_time in started.unread_files.items()]
    documents = DocumentSet(root, files, started.unread, unread_files)
    plan = Plan(config, run_id, documents, output, bundle_files, decoding, started, finished, True, style_token=token)
    current = {file.path: file for file in list_files(root)}
    if reason := _restart_reason(plan, current):
        documents = open_documents(config.input)
        return replace(plan, input=documents, spec=_with_unread(spec, documents), restart_reason=reason)
    resources = {name: getattr(started, name) for name in ("window_rows", "window_tokens", "precision")}
    config = config.model_copy(update={"resources": config.resources.model_copy(update=resources)})
    later_files = len(current.keys() - {file.file.path for file in files} - started.unread.keys())
    return replace(plan, config=config, later_files=later_files)


def _with_unread(spec: RunSpec, documents: DocumentSet) -> RunSpec:
    files = {file.path: (file.size, file.modified) for file in documents.unread_files}
    return spec.model_copy(update={"unread": dict(documents.unread), "unread_files": files})


def _restart_reason(plan: Plan, current: Mapping[str, StoredFile]) -> str | None:
    """Return why the results of an interrupted run cannot be used, given the input's files now, by path; None if they can."""
    if changed := [file.file.path for file in plan.input.files if current.get(file.file.path) != file.file]:
        return f"{len(changed)} of its input files have changed or are missing, {changed[0]} among them"
    has_ended = plan.folder.child(MANIFEST).exists()  # without finishing, because of its rejects
    repaired = [file.path for file in plan.input.unread_files if current.get(file.path) != file]
    if has_ended and repaired:
        return f"{len(repaired)} of the files that it could not read have changed or are missing, {repaired[0]} among them"
    if compacted_sequence(plan.output) > plan.spec.ledger > 0:
        return "the ledger that it started with has been compacted"
    if plan.spec.sort != "window":
        return "it sorted all documents first, which this version cannot resume"
    if plan.config.input.on_bad_file == "fail" and (plan.spec.unread or plan.folder.child(UNREADABLE).exists()):
        return "it skipped unreadable files, and --input.on_bad_file is now fail"
    return None


def new_run_id(output: Location, started_at: datetime) -> str:
    """Return the time, with a number if a clock that was set back gives the same time again."""
    existing, time = set(run_ids(output)), started_at.strftime("%Y%m%dT%H%M%SZ")
    names = itertools.chain([time], (f"{time}-{number}" for number in itertools.count(2)))
    return next(name for name in names if name not in existing)


def _interrupted_run(output: Location, spec: RunSpec, finished: Sequence[FinishedRun]) -> str | None:
    """Return the latest unfinished run that asked for the same and that no run has replaced since; None if there is none."""
    found, finished_ids = [], {run.run_id for run in finished}
    for run_id in run_ids(output):
        started = read_spec(output, run_id) if run_id not in finished_ids else None
        if started is None or started.differences(spec):
            continue
        started_after = max(started.after, started.ledger)  # plans of earlier versions lack ``after``
        later_ids = [run.run_id for run in finished if run.sequence > started_after]
        if not any(later.replaces(started) for later in map(partial(read_spec, output), later_ids) if later):
            found.append((started.started_at, run_id))
    return max(found)[1] if found else None


def _check_columns(config: SummarizeConfig) -> None:
    """Raise UserError if two columns of the output would have the same name."""
    kept = [config.input.id_column, *config.input.keep_columns]
    if repeated := [column for column in config.input.keep_columns if kept.count(column) > 1]:
        raise UserError(f"--input.keep_columns has {repeated[0]!r} twice, or it is the id column, which is always kept")
    added = {*SUMMARY_COLUMNS, *REJECT_COLUMNS, RUN_COLUMN}
    for option, column in [("id_column", config.input.id_column), *(("keep_columns", c) for c in config.input.keep_columns)]:
        if column in added or column.startswith(PRIVATE_PREFIX):
            raise UserError(f"--input.{option} {column!r} is the name of a column that the output adds; rename it in the input")
