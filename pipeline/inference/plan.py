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

import pyarrow as pa
import pyarrow.parquet as pq
from pydantic import AwareDatetime, BaseModel, NonNegativeInt, PositiveInt, ValidationError

from pipeline.config import DecodingConfig, SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.bad_files import FOLDER as UNREAD
from pipeline.inference.bundles import read_bundle
from pipeline.inference.ledger import compacted_until
from pipeline.inference.manifest import InputFile, Manifest
from pipeline.inference.passport import PRIVATE
from pipeline.inference.publication import SUCCESS, Published, published, run_folder, run_ids
from pipeline.inference.summaries import RUN
from pipeline.inference.writing import REJECT_COLUMNS, SUMMARY_COLUMNS
from pipeline.storage import Place, StoredFile, in_words, place
from pipeline.text.documents import DocumentFile, DocumentStore, open_store, stored_files

PLAN, MANIFEST, CONFIG = "plan.parquet", "manifest.json", "config.yaml"
_OPTIONS = b"nightshift.plan"
_ROWS_OF_A_GROUP = 100_000
_PINNED_OF_INPUT = {"path", "id_column", "text_column", "keep_columns", "max_chars"}


class Pinned(BaseModel):
    """The options of a run that whoever goes on with it must share, or takes over from it.

    after: sequence number of the last run that was published when it began; ledger: the same, or 0 to do all documents. unread:
    what is wrong with files that are no Parquet or have other columns, by path, where the run goes on without them;
    unread_files: bytes of each and when it was written, as it was then.
    """

    started_at: AwareDatetime
    input: dict[str, Any]
    model_fingerprint: str
    decoding: dict[str, Any]
    full: bool
    window_rows: PositiveInt
    window_tokens: PositiveInt | None
    sort: str = "window"
    precision: str = "float32"
    after: NonNegativeInt = 0
    ledger: NonNegativeInt
    unread: dict[str, str]
    unread_files: dict[str, tuple[NonNegativeInt, AwareDatetime | None]] = {}

    @property
    def unread_bytes(self) -> int:
        """Of those files."""
        return sum(size for size, _ in self.unread_files.values())

    def differs(self, other: Pinned) -> list[str]:
        """What another run would compute otherwise."""
        names = {
            "another input": self.input != other.input,
            "another model": self.model_fingerprint != other.model_fingerprint,
            "other decoding options": self.decoding != other.decoding,
            "--full" if self.full else "without --full": self.full != other.full,
        }
        return [name for name, differs in names.items() if differs]

    def replaces(self, before: Pinned) -> bool:
        """Whether a run that was published since ``before`` began has done what that one was to do."""
        return set(self.differs(before)) <= {"--full"}


@dataclass(frozen=True)
class Plan:
    """A run that may begin, or go on.

    begun: another command of this run id wrote its plan. anew: why what that left cannot be used, if so. waiting: files that
    came since, which are the next run's.
    """

    config: SummarizeConfig
    run_id: str
    store: DocumentStore
    output: Place
    bundle_files: Mapping[str, bytes]
    decoding: DecodingConfig
    pinned: Pinned
    begun: bool = False
    anew: str | None = None
    waiting: int = 0

    @property
    def folder(self) -> Place:
        """``runs/<run_id>``, with the plan, the manifest and _SUCCESS."""
        return run_folder(self.output, self.run_id)

    @property
    def model_fingerprint(self) -> str:
        """Of the bundle."""
        return self.pinned.model_fingerprint

    @property
    def salt(self) -> bytes:
        """Of content keys: all that a summary follows from beside its text."""
        options = json.dumps([self.pinned.model_fingerprint, self.pinned.decoding], sort_keys=True)
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
        if self.begun and not self.anew:
            return self
        after = _last_sequence(published(self.output))
        pinned = self.pinned.model_copy(update={"after": after, "ledger": 0 if self.pinned.full else after})
        return replace(self, pinned=pinned)

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
            "other input options": any(
                before.config["input"].get(name) != self.pinned.input[name] for name in _PINNED_OF_INPUT
            ),
        }
        if any(changed.values()):
            how = " and ".join(what for what, differs in changed.items() if differs)
            raise UserError(f"run {self.run_id} is finished, with {how}: {self.folder.uri}; set another --output.run_id")
        return True

    def write(self) -> None:
        """Leave it for whoever goes on. Raises UserError if it cannot be written."""
        files = [
            {"path": f.file.path, "size": f.file.size, "modified": f.file.modified, "row_groups": list(f.row_groups)}
            for f in self.store.files
        ]
        table = pa.Table.from_pylist(files, _FILES).replace_schema_metadata({_OPTIONS: self.pinned.model_dump_json()})
        file = pa.BufferOutputStream()
        pq.write_table(table, file, compression="zstd", row_group_size=_ROWS_OF_A_GROUP)
        self.folder.child(PLAN).write(file.getvalue())


_FILES = pa.schema(
    [
        ("path", pa.string()),
        ("size", pa.int64()),
        ("modified", pa.timestamp("us", "UTC")),
        ("row_groups", pa.list_(pa.int64())),
    ]
)


def plan_run(config: SummarizeConfig) -> Plan:
    """Check input, model and output without computing anything, and find the run that this command goes on with.

    Without ``--output.run_id`` that is the last one that was cut off and asked for the same; if there is none, a new one.

    Raises:
        UserError: one of them is not usable, or the run of this id was cut off and asked for something else.
    """
    _check_names(config)
    root, output = place(config.input.path, "--input.path"), place(config.output.path, "--output.path")
    if output.contains(root) or root.contains(output):
        raise UserError(f"--output.path {output.uri} and --input.path {root.uri} lie in each other; set another output")
    run_id = config.output.run_id
    bundle_files, bundle = read_bundle(config.model.path)
    decoding = config.decoding.applied_to(bundle.decoding, bundle.model.config)
    now, runs = datetime.now(UTC), published(output)
    pinned = Pinned(
        started_at=now,
        input=config.input.model_dump(include=_PINNED_OF_INPUT),
        model_fingerprint=bundle.fingerprint,
        decoding=decoding.model_dump(),
        full=config.full,
        window_rows=config.resources.window_rows,
        window_tokens=config.resources.window_tokens,
        precision=config.resources.precision,
        after=_last_sequence(runs),
        ledger=0 if config.full else _last_sequence(runs),
        unread={},
    )
    run_id = run_id or _cut_off(output, pinned, runs) or _new_id(output, now)
    folder = run_folder(output, run_id)
    if folder.child(SUCCESS).exists() or not folder.child(PLAN).exists():
        store = open_store(config.input)
        return Plan(config, run_id, store, output, bundle_files, decoding, _noting_unread(pinned, store))
    files, before = _read_plan(folder.child(PLAN))
    if differs := before.differs(pinned):
        raise UserError(
            f"run {run_id} was cut off, and asked for something else than this command: {' and '.join(differs)}; "
            f"ask for the same, or set another --output.run_id"
        )
    found = {file.path: file for file in stored_files(root)}
    if why := _why_anew(files, found, before, output, folder, config):
        store = open_store(config.input)
        pinned = _noting_unread(pinned, store)
        return Plan(config, run_id, store, output, bundle_files, decoding, pinned, begun=True, anew=why)
    waiting = len(found.keys() - {file.file.path for file in files} - before.unread.keys())
    unread_files = [StoredFile(path, *written) for path, written in before.unread_files.items()]
    store = DocumentStore(root, files, before.unread, unread_files)
    as_it_began = {name: getattr(before, name) for name in ("window_rows", "window_tokens", "precision")}
    config = config.model_copy(update={"resources": config.resources.model_copy(update=as_it_began)})
    return Plan(config, run_id, store, output, bundle_files, decoding, before, begun=True, waiting=waiting)


def _noting_unread(pinned: Pinned, store: DocumentStore) -> Pinned:
    files = {file.path: (file.size, file.modified) for file in store.unread_files}
    return pinned.model_copy(update={"unread": dict(store.unread), "unread_files": files})


def _last_sequence(runs: Sequence[Published]) -> int:
    return max((run.sequence for run in runs), default=0)


def _why_anew(
    files: list[DocumentFile],
    found: Mapping[str, StoredFile],
    before: Pinned,
    output: Place,
    folder: Place,
    config: SummarizeConfig,
) -> str | None:
    """Why what a run that was cut off has written cannot be used, if so."""
    if changed := [file.file.path for file in files if found.get(file.file.path) != file.file]:
        return f"{len(changed)} of its files have changed or are gone since, {changed[0]} among them"
    was_refused = folder.child(MANIFEST).exists()  # for its rejects, which were counted then
    others = [path for path, written in before.unread_files.items() if found.get(path) != StoredFile(path, *written)]
    if was_refused and others:
        return f"{len(others)} of the files that it could not read have changed or are gone since, {others[0]} among them"
    if compacted_until(output) > before.ledger > 0:
        return "the ledger that it began with was compacted since"
    if before.sort != "window":
        return "it sorted all of its documents first, which this version does not do"
    if config.input.on_bad_file == "fail" and (before.unread or folder.child(UNREAD).exists()):
        return "it left files out that could not be read, and --input.on_bad_file is fail now"
    return None


def _new_id(output: Place, now: datetime) -> str:
    """The time, with a number more where a clock that was set back gives it again."""
    taken, run_id = set(run_ids(output)), now.strftime("%Y%m%dT%H%M%SZ")
    return next(name for number in itertools.count(1) if (name := run_id if number == 1 else f"{run_id}-{number}") not in taken)


def _cut_off(output: Place, pinned: Pinned, runs: Sequence[Published]) -> str | None:
    """The last run without _SUCCESS that asked for the same, if there is one that no other has replaced since."""
    found, finished = [], {run.run_id for run in runs}
    for run_id in run_ids(output):
        before = _pinned_of(output, run_id) if run_id not in finished else None
        if before is None or before.differs(pinned):
            continue
        began_after = max(before.after, before.ledger)  # the plans of earlier versions have no ``after``
        since = [run.run_id for run in runs if run.sequence > began_after]
        if not any(later.replaces(before) for later in map(partial(_pinned_of, output), since) if later):
            found.append((before.started_at, run_id))
    return max(found)[1] if found else None


def _pinned_of(output: Place, run_id: str) -> Pinned | None:
    """What a run began with; None where it has left no plan."""
    file = run_folder(output, run_id).child(PLAN)
    return _read_plan(file)[1] if file.exists() else None


def _read_plan(file: Place) -> tuple[list[DocumentFile], Pinned]:
    try:
        table = pq.read_table(pa.BufferReader(file.read()))
        pinned = Pinned.model_validate_json(table.schema.metadata[_OPTIONS])
        rows = table.cast(_FILES).to_pylist()
        files = [DocumentFile(StoredFile(r["path"], r["size"], r["modified"]), tuple(r["row_groups"])) for r in rows]
    except (OSError, pa.ArrowException, ValueError, KeyError, TypeError, OverflowError) as error:
        raise UserError(f"{file.uri} is broken: {in_words(error)}; set another --output.run_id, or remove it") from None
    return files, pinned


def _check_names(config: SummarizeConfig) -> None:
    """The output's columns must have a name each."""
    kept = [config.input.id_column, *config.input.keep_columns]
    if repeated := [column for column in config.input.keep_columns if kept.count(column) > 1]:
        raise UserError(f"--input.keep_columns {repeated[0]!r} comes twice, or is the id column, which is kept anyway")
    own = {*SUMMARY_COLUMNS, *REJECT_COLUMNS, RUN}
    for option, column in [("id_column", config.input.id_column), *(("keep_columns", c) for c in config.input.keep_columns)]:
        if column in own or column.startswith(PRIVATE):
            raise UserError(f"--input.{option} {column!r} is the name of a column that the output adds; rename it in the input")


def as_json(config: SummarizeConfig) -> dict[str, Any]:
    """A configuration as it is written down."""
    values: dict[str, Any] = json.loads(config.model_dump_json(by_alias=True))
    return values
