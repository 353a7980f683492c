"""One run: every document of a store to a summary or a reject, once.

    plan ── read ── tokenize ── regroup into windows ── summarize (actors) ── write ── manifest, _SUCCESS

What each stage does with a window stands in stages.py. The driver sees a record per window, never a document.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

import ray
import ray.data
import torch
import yaml
from ray.data import ActorPoolStrategy

from pipeline import cluster
from pipeline.config import DecodingConfig, SummarizeConfig
from pipeline.errors import UserError
from pipeline.inference.manifest import Counts, Example, InputFile, Manifest, OutputFile, WindowRecord, versions
from pipeline.inference.stages import (
    PRIVATE,
    RECORD,
    REJECT_COLUMNS,
    SUMMARY_COLUMNS,
    SummarizeWindow,
    TokenizeDocuments,
    WriteWindow,
)
from pipeline.model.bundle import FILES, TOKENIZER, Bundle, bundle_from_files
from pipeline.model.precision import compute_dtype
from pipeline.storage import Place, place
from pipeline.text.documents import DocumentStore, open_store

_LIGHT_CPUS = 0.25
"""CPUs asked for by a task that reads, tokenizes or writes: these mostly wait."""

SUCCESS, MANIFEST, CONFIG = "_SUCCESS", "manifest.json", "config.yaml"


@dataclass(frozen=True)
class Plan:
    """A run before it starts: everything that can be found wrong has been looked for."""

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

    @property
    def finished(self) -> bool:
        """Whether this run ended with _SUCCESS before."""
        return self.folder.child(SUCCESS).exists()


@dataclass(frozen=True)
class Progress:
    """Where a run stands. seconds: since the first window could start."""

    counts: Counts
    seconds: float


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
    store = open_store(config.input)
    _check_names(config)
    bundle_files, bundle = _read_bundle(config.model.path)
    run_id = config.output.run_id or datetime.now(UTC).strftime("%Y%m%dT%H%M%SZ")
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", run_id):
        raise UserError(f"--output.run_id {run_id!r} names a folder: letters, digits, '.', '_' and '-' alone, please")
    return Plan(
        config,
        run_id,
        store,
        place(config.output.path),
        bundle_files,
        bundle.fingerprint,
        config.decoding.applied_to(bundle.decoding),
    )


def execute(plan: Plan, on_progress: Callable[[Progress], None]) -> Finished:
    """Run a plan to its end. What an unfinished run of the same id left is removed first.

    Args:
        on_progress: called with the counts so far after each window.

    Raises:
        UserError: the output cannot be written, or the cluster lacks what was asked for.
        RuntimeError: documents were lost, which no input can bring about.
    """
    started_at, started = datetime.now(UTC), time.monotonic()
    for kind in ("summaries", "rejects"):
        plan.output.child(f"{kind}/run={plan.run_id}").remove_folder()
    plan.folder.child(CONFIG).write(yaml.safe_dump(_as_json(plan.config), sort_keys=False).encode())
    cluster.connect()
    actors = _actors(plan.config)
    counts, files, examples = Counts(), list[OutputFile](), list[Example]()
    first_window = None
    for window in _windows(plan, actors):
        first_window = first_window or time.monotonic() - window.decode_s
        counts = counts.with_window(window)
        files += window.files
        examples += window.examples
        on_progress(Progress(counts, time.monotonic() - first_window))
    if counts.read != plan.store.rows:
        raise RuntimeError(f"read {counts.read} of {plan.store.rows} documents; the run is not marked as finished")
    _remove_unrecorded(plan, {file.path for file in files})
    startup_s = (first_window or time.monotonic()) - started
    manifest = Manifest(
        run_id=plan.run_id,
        started_at=started_at,
        finished_at=datetime.now(UTC),
        startup_s=startup_s,
        seconds=time.monotonic() - started - startup_s,
        model_fingerprint=plan.model_fingerprint,
        config=_as_json(plan.config),
        decoding=plan.decoding.model_dump(),
        versions=versions(),
        actors=actors.number,
        counts=counts,
        input_files=[
            InputFile(path=file.file.path, rows=file.rows, bytes=file.file.size, modified=file.file.modified)
            for file in plan.store.files
        ],
        output_files=sorted(files, key=lambda file: file.path),
    )
    plan.folder.child(MANIFEST).write(manifest.model_dump_json(indent=2).encode() + b"\n")
    plan.folder.child(SUCCESS).write(b"")
    return Finished(manifest, examples)


@dataclass(frozen=True)
class _Actors:
    """The pool that decodes: how many actors, and what each takes of the cluster."""

    number: int
    cpus: float
    gpus: float
    threads: int


def _actors(config: SummarizeConfig) -> _Actors:
    wanted, gpus, cpus = config.resources, int(cluster.total("GPU")), cluster.total("CPU")
    use_gpu = gpus > 0 if wanted.use_gpu is None else wanted.use_gpu
    if use_gpu:
        number = wanted.actors or gpus
        if number > gpus:
            raise UserError(f"{number} actors need a GPU each and the cluster has {gpus}; set --resources.actors")
    else:
        number = wanted.actors or max(1, int(cpus))
    # Actors hold what they ask for to the end. One CPU stays free of them, since Ray Data's task that lists the input
    # asks for a whole one and nothing would ever start without it.
    share = min(1.0, int(100 * (cpus - 1) / number) / 100)
    if not use_gpu:
        compute_dtype(wanted.precision, torch.device("cpu"))
    return _Actors(number, share, float(use_gpu), wanted.threads or max(1, int(cpus) // number))


def _windows(plan: Plan, actors: _Actors) -> Iterator[WindowRecord]:
    """The graph of the run; a record as each window is written."""
    config, tokenizer_file = plan.config, plan.bundle_files[TOKENIZER]
    cut = plan.decoding.max_source_tokens
    metadata = {"nightshift.run_id": plan.run_id, "nightshift.model_fingerprint": plan.model_fingerprint}
    columns = list(dict.fromkeys([config.input.id_column, config.input.text_column, *config.input.keep_columns]))
    windows = (
        ray.data.read_parquet(
            [file.file.path for file in plan.store.files],
            filesystem=plan.store.root.filesystem,
            file_extensions=None,
            partitioning=None,
            num_cpus=_LIGHT_CPUS,
        )
        .select_columns(columns)
        .map_batches(
            TokenizeDocuments(tokenizer_file, config.input, cut),
            batch_format="pyarrow",
            batch_size=config.resources.window_rows,
            num_cpus=_LIGHT_CPUS,
            concurrency=config.resources.tokenizers,
        )
        # Ray Data fuses this into the stage before it: windows leave a tokenizer task one by one, and not all at its end.
        .repartition(target_num_rows_per_block=config.resources.window_rows)
        .map_batches(
            SummarizeWindow,
            batch_format="pyarrow",
            batch_size=None,
            compute=ActorPoolStrategy(size=actors.number),
            num_cpus=actors.cpus,
            num_gpus=actors.gpus,
            fn_constructor_kwargs={
                "bundle_files": ray.put(plan.bundle_files),
                "options": plan.decoding,
                "use_gpu": actors.gpus > 0,
                "token_budget": config.resources.token_budget,
                "precision": config.resources.precision,
                "threads": actors.threads,
            },
        )
        .map_batches(
            WriteWindow(tokenizer_file, config.input, cut, plan.output, plan.run_id, metadata),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=_LIGHT_CPUS,
        )
    )
    for row in windows.iter_rows():
        yield WindowRecord.model_validate_json(row[RECORD])


def _remove_unrecorded(plan: Plan, recorded: set[str]) -> None:
    for kind in ("summaries", "rejects"):
        folder = plan.output.child(f"{kind}/run={plan.run_id}")
        if not folder.exists():
            continue
        for file in folder.files():
            if f"{kind}/run={plan.run_id}/{file.path.rpartition('/')[2]}" not in recorded:
                folder.filesystem.delete_file(file.path)


def _check_names(config: SummarizeConfig) -> None:
    own = {*SUMMARY_COLUMNS, *REJECT_COLUMNS}
    for option, column in [("id_column", config.input.id_column), *(("keep_columns", c) for c in config.input.keep_columns)]:
        if column in own or column.startswith(PRIVATE):
            raise UserError(f"--input.{option} {column!r} is the name of a column that the output adds; rename it in the input")


def _read_bundle(path: str) -> tuple[dict[str, bytes], Bundle]:
    folder = place(path)
    if not folder.exists():
        raise UserError(f"no model bundle at {path}; set --model.path to a folder that jobs.train wrote")
    files = {name: folder.child(name).read() for name in FILES}
    return files, bundle_from_files(files, path)


def _as_json(config: SummarizeConfig) -> dict[str, object]:
    values: dict[str, object] = json.loads(config.model_dump_json(by_alias=True))
    return values
