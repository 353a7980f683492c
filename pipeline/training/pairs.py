"""Preparing pairs: from whatever a data set comes as, to Parquet shards of (id, source, target) and a tokenizer.

Reading streams: memory holds a shard's rows and the tokenizer's sample, whatever the input's size. A row that cannot be
a pair is dropped, counted under a reason, and shown; it never stops the run.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import random
import re
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq

from pipeline.config import PairsFilter, PairsInput, PrepareConfig
from pipeline.errors import UserError
from pipeline.storage import place
from pipeline.text.tokenizer import Tokenizer, train_tokenizer

SCHEMA = pa.schema([("id", pa.string()), ("source", pa.string()), ("target", pa.string())])
SUMMARY = "prepare.json"
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_MEASURED_ROWS = 10_000
_EXAMPLES = 3

Row = dict[str, Any]
T = TypeVar("T")
_ENDINGS = {".tsv": "tsv", ".jsonl": "jsonl", ".json": "jsonl", ".ndjson": "jsonl", ".parquet": "parquet", ".txt": "lines"}
_COMPRESSIONS = (".xz", ".gz", ".bz2", ".zst", ".zip")


@dataclass
class SplitReport:
    """What became of one split's rows. dropped: rows by reason; examples: the first few of each, as ``where: what``."""

    kept: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, reason: str, where: str) -> None:
        self.dropped[reason] += 1
        if self.dropped[reason] <= _EXAMPLES:
            self.examples.setdefault(reason, []).append(where)


@dataclass(frozen=True)
class Prepared:
    """What prepare did: a report per split, and subword-length percentiles of a sample of the training pairs."""

    splits: dict[str, SplitReport]
    source_lengths: dict[int, int]
    target_lengths: dict[int, int]
    vocabulary_size: int

    def as_json(self) -> dict[str, Any]:
        return {
            "splits": {name: vars(report) for name, report in self.splits.items()},
            "subwords": {"source": self.source_lengths, "target": self.target_lengths},
            "percentiles_of_rows": min(_MEASURED_ROWS, self.splits["train"].kept),
            "vocabulary_size": self.vocabulary_size,
        }


def prepare(config: PrepareConfig, on_rows: Callable[[str, int], None] = lambda split, rows: None) -> Prepared:
    """Write train/, dev/ and test/ shards, ``tokenizer.model`` and ``prepare.json`` under the output folder.

    Args:
        on_rows: called with a split's name and its rows so far, as shards are written.

    Raises:
        UserError: an input cannot be read or has no such column, no pair is left, or the output cannot be written.
    """
    output = Path(config.output.path)
    with _writing_to(output):
        _clear(output, config.output.overwrite)
    tokenizer_sample = Reservoir[tuple[str, str]](config.tokenizer.train_rows)
    measured = Reservoir[tuple[str, str]](_MEASURED_ROWS)
    reports: dict[str, SplitReport] = {}

    def write(inputs: str, splits: dict[str, float]) -> None:
        """Stream one input into one or more splits, which share it by a hash of the source."""
        found = {split: reports.setdefault(split, SplitReport()) for split in splits}
        with contextlib.ExitStack() as stack:
            writers = {
                split: stack.enter_context(_ShardWriter(output / split, config.output.rows_per_shard)) for split in splits
            }
            # A row that is no pair has no source to share it out by: it counts with the split that takes the rest.
            for pair in valid_pairs(inputs, config.input, config.filter, found[list(splits)[-1]]):
                split = _split_of(pair["source"], splits)
                if split == "train":
                    tokenizer_sample.offer((pair["source"], pair["target"]))
                    measured.offer((pair["source"], pair["target"]))
                found[split].kept += 1
                if writers[split].write(pair):
                    on_rows(split, found[split].kept)

    from_train = {
        "dev": 0.0 if config.input.dev else config.input.dev_share,
        "test": 0.0 if config.input.test else config.input.test_share,
    }
    shares = {split: share for split, share in from_train.items() if share > 0}
    with _writing_to(output):
        write(config.input.train, {**shares, "train": 1.0})
        for split, inputs in (("dev", config.input.dev), ("test", config.input.test)):
            if inputs:
                write(inputs, {split: 1.0})
        if reports["train"].kept == 0:
            raise UserError(f"no training pair is left of {config.input.train}: {_reasons(reports['train'])}")
        model = train_tokenizer(itertools.chain.from_iterable(tokenizer_sample.kept), config.tokenizer)
        (output / "tokenizer.model").write_bytes(model)
        tokenizer = Tokenizer(model)
        sources, targets = zip(*measured.kept, strict=True)
        prepared = Prepared(
            reports, _length_percentiles(tokenizer, sources), _length_percentiles(tokenizer, targets), tokenizer.vocabulary_size
        )
        (output / SUMMARY).write_text(json.dumps(prepared.as_json(), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    return prepared


def valid_pairs(path: str, options: PairsInput, keep: PairsFilter, report: SplitReport) -> Iterator[dict[str, str]]:
    """The pairs of one input, as id, source and target; rows that are none go to ``report``."""
    checked = False
    for number, (where, row) in enumerate(_rows(path, options)):
        if options.max_rows is not None and number >= options.max_rows:
            return
        if isinstance(row, str):
            report.drop(row, where)
            continue
        if not checked:
            _check_columns(path, options, row)
            checked = True
        source, target = _text(row.get(options.source_column)), _text(row.get(options.target_column))
        if reason := _unfit(source, keep.min_source_chars, keep.max_chars, "source"):
            report.drop(reason, where)
        elif reason := _unfit(target, keep.min_target_chars, keep.max_chars, "target"):
            report.drop(reason, where)
        else:
            identity = row.get(options.id_column) if options.id_column else number
            yield {"id": str(identity), "source": str(source), "target": str(target)}


def _text(value: Any) -> str | None:
    """A column's value as one text; None where it is no text."""
    if isinstance(value, str):
        return value.strip()
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return " ".join(value).strip()
    return None


def _unfit(text: str | None, shortest: int, longest: int, side: str) -> str | None:
    if text is None:
        return f"no_{side}"
    if len(text) < max(shortest, 1):
        return f"short_{side}" if text else f"empty_{side}"
    return f"long_{side}" if len(text) > longest else None


def _check_columns(path: str, options: PairsInput, row: Row) -> None:
    wanted = {"source_column": options.source_column, "target_column": options.target_column, "id_column": options.id_column}
    for option, column in wanted.items():
        if column is not None and column not in row:
            raise UserError(f"{path} has no column {column!r} (it has: {', '.join(row)}); set --input.{option}")


def _split_of(source: str, shares: dict[str, float]) -> str:
    """Which split a pair goes to: by its source alone, so that no source is in two."""
    if len(shares) == 1:
        return next(iter(shares))
    at = int.from_bytes(hashlib.sha1(source.encode("utf-8", "surrogatepass")).digest()[:8]) / 2**64
    for split, share in shares.items():
        if at < share:
            return split
        at -= share
    return "train"


# Reading: each reader yields (where, row), where a row that cannot be read is a reason instead.


def _rows(path: str, options: PairsInput) -> Iterator[tuple[str, Row | str]]:
    kind = options.format if options.format != "auto" else _kind_of(path)
    if kind == "datasets":
        return _dataset_rows(path)
    if kind == "parquet":
        return _parquet_rows(path)
    parse: Callable[[str], Row | str]
    if kind == "jsonl":
        parse = _json_row
    elif kind == "lines":
        parse = _pattern_parser(path, options.pattern)
    else:
        return _tsv_rows(path, options.columns)
    return ((where, parse(line)) for where, line in _lines(path) if line.strip())


def _kind_of(path: str) -> str:
    name = path.split("::")[0].rstrip("/").lower()
    for compression in _COMPRESSIONS:
        name = name.removesuffix(compression)
    for ending, kind in _ENDINGS.items():
        if name.endswith(ending):
            return kind
    folder = Path(path)
    if folder.is_dir():
        return "parquet" if any(folder.glob("*.parquet")) else "datasets"
    if "/" not in path.strip("/") or (path.count("/") == 1 and not folder.parent.is_dir()):
        return "datasets"  # NAME or OWNER/NAME, as Hugging Face spells its data sets
    raise UserError(f"cannot tell the format of {path}; set --input.format to tsv, jsonl, parquet, lines or datasets")


def _lines(path: str) -> Iterator[tuple[str, str]]:
    """Numbered lines of text files, decompressed on the way; bytes that are not UTF-8 become U+FFFD."""
    try:
        files = fsspec.open_files(path, "rt", compression="infer", encoding="utf-8", errors="replace", newline="\n")
        if not files:
            raise UserError(f"no file at {path}; set --input.train, --input.dev or --input.test")
        for file in files:
            with file as lines:
                for number, line in enumerate(lines, 1):
                    yield f"{file.path}:{number}", line.rstrip("\r\n")
    except (OSError, EOFError, ValueError, ImportError, KeyError) as error:
        if isinstance(error, FileNotFoundError | KeyError):
            raise UserError(f"no file at {path}; set --input.train, --input.dev or --input.test") from None
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None


def _tsv_rows(path: str, columns: list[str] | None) -> Iterator[tuple[str, Row | str]]:
    for where, line in _lines(path):
        fields = line.split("\t")
        if columns is None:
            columns = fields
        elif len(fields) != len(columns):
            if line.strip():
                yield f"{where} has {len(fields)} fields, not {len(columns)}", "wrong_field_count"
        else:
            yield where, dict(zip(columns, fields, strict=True))


def _json_row(line: str) -> Row | str:
    try:
        row = json.loads(line)
    except ValueError:
        return "not_json"
    return row if isinstance(row, dict) else "not_an_object"


def _pattern_parser(path: str, pattern: str | None) -> Callable[[str], Row | str]:
    if pattern is None:
        raise UserError(f"{path} is plain lines: set --input.pattern, or another --input.format")
    try:
        regex = re.compile(pattern)
    except re.error as error:
        raise UserError(f"--input.pattern is not a regular expression: {error}") from None
    if missing := {"source", "target"} - set(regex.groupindex):
        raise UserError(f"--input.pattern has no group (?P<{sorted(missing)[0]}>…)")

    def parse(line: str) -> Row | str:
        match = regex.fullmatch(line)
        return match.groupdict() if match else "no_match"

    return parse


def _parquet_rows(path: str) -> Iterator[tuple[str, Row | str]]:
    try:
        dataset = pads.dataset(path, format="parquet")
        rows = itertools.count()
        for batch in dataset.to_batches(batch_size=1024):
            for row in batch.to_pylist():
                yield f"{path} row {next(rows)}", row
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read {path} as Parquet: {' '.join(str(error).split())}") from None


def _dataset_rows(path: str) -> Iterator[tuple[str, Row | str]]:
    """Rows of a data set of the ``datasets`` package: ``NAME``, ``NAME:CONFIG`` or a folder; ``@SPLIT`` behind it (train)."""
    import datasets

    name, _, split = path.partition("@")
    name, _, subset = name.partition(":")
    split = split or "train"
    try:
        if (Path(name) / "dataset_dict.json").exists() or (Path(name) / "state.json").exists():
            found = datasets.load_from_disk(name)
            if isinstance(found, datasets.DatasetDict):
                found = found[split]
        else:
            found = datasets.load_dataset(name, subset or None, split=split, streaming=True)
    except Exception as error:  # the package raises what its loaders, hubs and parsers raise: no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"the datasets package cannot load {path}: {reason}") from None
    for number, row in enumerate(found):
        yield f"{path} row {number}", dict(row)


# Writing


class _ShardWriter:
    """Writes pairs as ``part-00000.parquet`` and so on; an empty split gets one empty shard."""

    def __init__(self, folder: Path, rows_per_shard: int) -> None:
        self._folder, self._rows_per_shard = folder, rows_per_shard
        self._rows: list[dict[str, str]] = []
        self._shards = 0

    def __enter__(self) -> _ShardWriter:
        self._folder.mkdir(parents=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and (self._rows or not self._shards):
            self._flush()

    def write(self, pair: dict[str, str]) -> bool:
        """Add a pair; True where that filled a shard."""
        self._rows.append(pair)
        if len(self._rows) < self._rows_per_shard:
            return False
        self._flush()
        return True

    def _flush(self) -> None:
        table = pa.Table.from_pylist(self._rows, SCHEMA)
        pq.write_table(table, self._folder / f"part-{self._shards:05d}.parquet", compression="zstd")
        self._rows.clear()
        self._shards += 1


def _clear(output: Path, overwrite: bool) -> None:
    """Make the output folder ready, removing what an earlier prepare wrote (and nothing else) where that is allowed."""
    ours = [output / name for name in ("train", "dev", "test", "tokenizer.model", SUMMARY)]
    there = [path for path in ours if path.exists()]
    if there and not overwrite:
        raise UserError(f"{there[0]} exists already; set --output.overwrite true or another --output.path")
    for path in there:
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    output.mkdir(parents=True, exist_ok=True)


@contextlib.contextmanager
def _writing_to(output: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(f"cannot write {error.filename or output}: {error.strerror or error}; set --output.path") from None


# Measuring


class Reservoir(Generic[T]):
    """A uniform sample of at most ``size`` items of a stream of any length (Vitter 1985, algorithm R)."""

    def __init__(self, size: int, seed: int = 1) -> None:
        self.kept: list[T] = []
        self._size, self._seen = size, 0
        self._rng = random.Random(seed)

    def offer(self, item: T) -> None:
        self._seen += 1
        if len(self.kept) < self._size:
            self.kept.append(item)
        elif (slot := self._rng.randrange(self._seen)) < self._size:
            self.kept[slot] = item


def _length_percentiles(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[int, int]:
    _, offsets = tokenizer.encode(list(texts))
    return {share: int(np.percentile(np.diff(offsets), share)) for share in _PERCENTILES}


def _reasons(report: SplitReport) -> str:
    return ", ".join(f"{reason} {rows}" for reason, rows in report.dropped.most_common()) or "it is empty"


def read_pairs(path: str, window_rows: int, max_rows: int | None = None) -> tuple[int, Iterator[pa.Table]]:
    """Pairs as prepare stores them, a window at a time.

    Args:
        path: a Parquet file or a folder of them. max_rows: read the first rows only.

    Returns:
        The number of rows, and an iterator over tables of at most ``window_rows`` with the columns id, source, target.

    Raises:
        UserError: nothing is there, a file is not Parquet, a column is missing or no text, or there are no rows.
    """
    root = place(path)
    try:
        found = root.files()
    except UserError as error:
        raise UserError(f"{error}; set --input.path to pairs that jobs.prepare wrote") from None
    wanted = [file.path for file in found if "/" not in file.path[len(root.path) + 1 :]]
    if wanted != [root.path]:
        wanted = [file for file in wanted if file.endswith((".parquet", ".pq"))]
    if not wanted:
        raise UserError(f"{path} holds no .parquet file; set --input.path to pairs that jobs.prepare wrote")
    try:
        dataset = pads.dataset(wanted, filesystem=root.filesystem, format="parquet")
        rows = dataset.count_rows()
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path} as Parquet: {' '.join(str(error).split())}") from None
    for name in SCHEMA.names:
        if name not in dataset.schema.names:
            raise UserError(f"{path} has no column {name!r} (it has: {', '.join(dataset.schema.names)}); set --input.path")
        kind = dataset.schema.field(name).type
        if name != "id" and not (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
            raise UserError(f"column {name!r} of {path} is {kind}, not a string; set --input.path")
    if rows == 0:
        raise UserError(f"{path} has no rows; set --input.path to pairs")
    rows = min(rows, max_rows or rows)
    return rows, _windows(dataset, path, window_rows, rows)


def _windows(dataset: pads.Dataset, path: str, window_rows: int, rows: int) -> Iterator[pa.Table]:
    try:
        for batch in dataset.to_batches(columns=SCHEMA.names, batch_size=window_rows, batch_readahead=2, fragment_readahead=1):
            if rows <= 0:
                return
            if batch.num_rows:
                yield pa.Table.from_batches([batch.slice(0, rows)])
            rows -= batch.num_rows
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"cannot read {path}: {' '.join(str(error).split())}") from None
