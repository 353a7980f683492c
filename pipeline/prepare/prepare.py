"""Preparing pairs: from whatever a data set comes as, to Parquet shards of (id, source, target) and a tokenizer.

Knows what makes a row a pair, which split it goes to, and how a result takes the place of another; nothing of the forms
that inputs come in (readers.py). A row that is no pair is dropped, counted under a reason, and shown; it never stops the run.

Memory is bounded whatever the input's size: rows stream, the mixing (mixing.py) holds 64 million characters of each split
that an input is shared out to, a shard and the tokenizer's sample as many. The one thing that grows is a hash for each
source of a given dev or test set.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from pipeline.config.prepare import PairsInput, PrepareConfig
from pipeline.data.pairs import PAIR_SCHEMA
from pipeline.data.tokenizer import Tokenizer, train_tokenizer, without_surrogates
from pipeline.errors import UserError
from pipeline.io.atomic import atomic_folder
from pipeline.io.location import Location, open_location
from pipeline.prepare.files import ROLES, STORES, Role
from pipeline.prepare.readers import Row, RowError, read_rows, value_of
from pipeline.prepare.shuffle import ExternalShuffle

TOKENIZER, SUMMARY = "tokenizer.model", "prepare.json"
_SHARD = "part-{:05d}.parquet"

_OUTPUT_NAMES = ("train", "dev", "test", TOKENIZER, SUMMARY)
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_MEASURED_PAIRS = 10_000
_MEMORY_CHARS = 64_000_000
_TOKENIZER_CHARS = 8192
"""The tokenizer is trained on no more of a text than this."""
_EXAMPLES, _EXAMPLE_CHARS = 3, 200
_PROGRESS_EVERY_ROWS = 1000


class Pair(NamedTuple):
    """A row of a shard, in the order of ``PAIR_SCHEMA``."""

    id: str
    source: str
    target: str


class PrepareProgress(NamedTuple):
    """Where a prepare stands: what it is doing, and of the input being read, the rows so far and the pairs kept of them."""

    doing: str
    rows: int = 0
    pairs: int = 0


@dataclass
class SplitReport:
    """What became of a split's rows: ``rows`` + ``extra`` = ``kept`` + all ``dropped``, over all splits of an input.

    A row that is no pair has no source to share it out by: it counts with the split that its input was named for.

    Attributes:
        rows: read. extra: pairs beyond a row's first, from lists of targets. kept: pairs written.
        damaged: of those kept, pairs with a U+FFFD, which stands where bytes were no UTF-8 or a surrogate stood alone.
        held_out: of those kept, training pairs whose source is in a given dev or test set as well.
        dropped: by reason. examples: the first few of each reason, as ``where (what)``.
    """

    rows: int = 0
    extra: int = 0
    kept: int = 0
    damaged: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, fault: RowError, where: str) -> None:
        """Count a row or pair that is left out."""
        self.dropped[fault.reason] += 1
        if self.dropped[fault.reason] <= _EXAMPLES:
            what = f"{where} ({fault.detail[:_EXAMPLE_CHARS]})" if fault.detail else where
            self.examples.setdefault(fault.reason, []).append(what)


@dataclass(frozen=True)
class PrepareResult:
    """What prepare did.

    source_subwords, target_subwords: percentiles of text lengths, measured on ``measured_pairs`` training pairs drawn at
    random. tokenizer_pairs: that the tokenizer was trained on.
    """

    splits: dict[Role, SplitReport]
    source_subwords: dict[int, int]
    target_subwords: dict[int, int]
    measured_pairs: int
    tokenizer_pairs: int
    vocabulary_size: int

    def as_json(self, config: PrepareConfig) -> str:
        """The text of ``prepare.json``."""
        splits = {role: vars(report) for role, report in self.splits.items()}
        return json.dumps({**vars(self), "splits": splits, "config": config.model_dump()}, indent=2, ensure_ascii=False) + "\n"


def prepare(config: PrepareConfig, on_progress: Callable[[PrepareProgress], None] = lambda _: None) -> PrepareResult:
    """Write train/, dev/ and test/ shards, ``tokenizer.model`` and ``prepare.json`` as the output folder.

    The pairs of each split are in random order, the same at each run, so that the first ones are a fair sample. The
    folder appears whole or not at all: it is written as ``<output>.partial`` and renamed at the end. An object store knows
    no renaming; there the files arrive one by one, the tokenizer and ``prepare.json`` last.

    Args:
        on_progress: called every 1000 rows, and when something else than reading begins.

    Raises:
        UserError: an input cannot be read or has no such column, no pair is left, or the output cannot be written.
    """
    inputs = config.input
    shares: dict[Role, float] = {} if inputs.dev else {"dev": inputs.dev_share}
    shares |= {} if inputs.test else {"test": inputs.test_share}
    output = open_location(config.output.path, "--output.path")
    for role in ROLES:
        _require_apart(getattr(inputs, role), role, output)
    with atomic_folder(output, _OUTPUT_NAMES, config.output.overwrite) as (folder, scratch):
        work = _Preparation(config, folder, scratch, on_progress)
        if inputs.dev:
            work.take(inputs.dev, "dev")
        if inputs.test:
            work.take(inputs.test, "test")
        work.take(inputs.train, "train", {role: share for role, share in shares.items() if share > 0})
        prepared = work.finish()
        folder.child(SUMMARY).write(prepared.as_json(config).encode())
    return prepared


def _require_apart(path: str | None, role: Role, output: Location) -> None:
    """UserError if an input is a folder that the output lies in: what is written would be read."""
    if path is not None and ("://" not in path or path.startswith(STORES)):
        folder = open_location(path, f"--input.{role}")
        if folder.contains(output) and folder.filesystem.get_file_info(folder.path).type == fs.FileType.Directory:
            raise UserError(f"--output.path {output.uri} lies in --input.{role} {path}; set another output")


class _Preparation:
    """The state of one prepare: reports, what the held-out sources are, and a sample of the training pairs."""

    def __init__(
        self, config: PrepareConfig, folder: Location, scratch: Path, on_progress: Callable[[PrepareProgress], None]
    ) -> None:
        self._config, self._folder, self._scratch, self._on_progress = config, folder, scratch, on_progress
        self._reports: dict[Role, SplitReport] = {}
        self._held_out: dict[Role, set[int]] = {}
        self._sample: list[tuple[str, str]] = []

    def take(self, path: str, role: Role, shares: dict[Role, float] | None = None) -> None:
        """Read an input, and write its pairs to its split and to those others that get a share of its sources."""
        shares = shares or {}
        roles: list[Role] = [role, *shares]
        self._reports |= {name: SplitReport() for name in roles}
        report = self._reports[role]
        mixers = {name: ExternalShuffle(Pair, self._scratch / name, held_chars=_MEMORY_CHARS) for name in roles}
        keys = set[int]()
        for where, pair in pairs_of(path, role, self._config, report, self._reading(path, report)):
            key = source_key(pair.source, self._config.input.split_seed)
            if role != "train":
                keys.add(key)
            elif found := next((name for name, held_out in self._held_out.items() if key in held_out), None):
                if self._config.filter.drop_held_out:
                    report.drop(RowError(f"source_in_{found}"), where)
                    continue
                report.held_out += 1
            to = split_of(key, role, shares)
            self._reports[to].kept += 1
            self._reports[to].damaged += "\ufffd" in pair.source or "\ufffd" in pair.target
            mixers[to].add(pair)
        if role != "train":
            self._held_out[role] = keys
        for name, mixer in mixers.items():
            self._on_progress(PrepareProgress(f"writing {name}"))
            sampled = self._sampling(mixer.drain()) if name == "train" else mixer.drain()
            _write_shards(self._folder.child(name), sampled, self._config.output.rows_per_shard)

    def finish(self) -> PrepareResult:
        """Train the tokenizer and measure lengths with it."""
        if not self._sample:
            raise UserError(f"no training pair is left of {self._config.input.train}: {_why(self._reports['train'])}")
        self._on_progress(PrepareProgress(f"training the tokenizer on {len(self._sample):,} pairs"))
        model = train_tokenizer((text for pair in self._sample for text in pair), self._config.tokenizer)
        self._folder.child(TOKENIZER).write(model)
        tokenizer = Tokenizer(model)
        first = self._folder.child("train").child(_SHARD.format(0))
        measured = pq.read_table(first.path, filesystem=first.filesystem).slice(0, _MEASURED_PAIRS)
        return PrepareResult(
            splits={role: self._reports[role] for role in ROLES if role in self._reports},
            source_subwords=_lengths(tokenizer, measured["source"]),
            target_subwords=_lengths(tokenizer, measured["target"]),
            measured_pairs=len(measured),
            tokenizer_pairs=len(self._sample),
            vocabulary_size=tokenizer.vocabulary_size,
        )

    def _reading(self, path: str, report: SplitReport) -> Callable[[], None]:
        return lambda: self._on_progress(
            PrepareProgress(f"reading {path}", report.rows, report.rows + report.extra - report.dropped.total())
        )

    def _sampling(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """Pass pairs on, keeping the texts of the first: they come mixed, so these are a fair sample."""
        chars = 0
        for pair in pairs:
            if len(self._sample) < self._config.tokenizer.train_rows and chars < _MEMORY_CHARS:
                self._sample.append((pair.source[:_TOKENIZER_CHARS], pair.target[:_TOKENIZER_CHARS]))
                chars += sum(map(len, self._sample[-1]))
            yield pair


# What is a pair, and where it goes


def pairs_of(
    path: str, role: Role, config: PrepareConfig, report: SplitReport, on_rows: Callable[[], None] = lambda: None
) -> Iterator[tuple[str, Pair]]:
    """The pairs of one input, each with where it stands. Rows that are none go to ``report``, which counts the rows.

    White space around texts is removed, and lone surrogates become U+FFFD: neither a model nor Parquet can hold one.

    Args:
        on_rows: called after every 1000 rows.

    Raises:
        UserError: as ``read_rows``.
    """
    options, keep = config.input, config.filter
    for number, (where, row) in enumerate(read_rows(path, role, options)):
        if report.rows and report.rows % _PROGRESS_EVERY_ROWS == 0:
            on_rows()
        report.rows += 1
        if isinstance(row, RowError):
            report.drop(row, where)
            continue
        identity = value_of(row, options.id_column) if options.id_column else None
        source = _text_of(_joined(value_of(row, options.source_column)), "source", keep.min_source_chars, keep.max_chars)
        targets = _targets_of(row, options)
        report.extra += len(targets) - 1
        for value in targets:
            target = _text_of(value, "target", keep.min_target_chars, keep.max_chars)
            if isinstance(source, RowError):
                report.drop(source, where)
            elif isinstance(target, RowError):
                report.drop(target, where)
            else:
                yield where, Pair(without_surrogates(str(number if identity is None else identity)), source, target)


def source_key(source: str, seed: int) -> int:
    """64 bits that tell sources apart, those that differ in white space alone excepted: a tokenizer cannot either."""
    words = " ".join(source.split())
    return int.from_bytes(hashlib.blake2b(f"{seed} {words}".encode(), digest_size=8).digest())


def split_of(key: int, role: Role, shares: dict[Role, float]) -> Role:
    """Where a pair goes: by its source alone, so that no source is in two splits. ``role`` takes what ``shares`` leave."""
    at = key / 2**64
    for other, share in shares.items():
        if at < share:
            return other
        at -= share
    return role


def _targets_of(row: Row, options: PairsInput) -> list[Any]:
    value = value_of(row, options.target_column)
    if not isinstance(value, list) or not value:
        return [value]
    if options.target_list == "join":
        return [_joined(value)]
    return value if options.target_list == "each" else value[:1]


def _joined(value: Any) -> Any:
    """A list of strings as one string; anything else as it is."""
    is_texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return " ".join(part.strip() for part in value) if is_texts else value


def _text_of(value: Any, side: str, shortest: int, longest: int) -> str | RowError:
    if value is None:
        return RowError(f"null_{side}")
    if not isinstance(value, str):
        return RowError(f"bad_type_{side}", type(value).__name__)
    text = without_surrogates(value).strip()
    if not text:
        return RowError(f"empty_{side}")
    if len(text) < shortest:
        return RowError(f"short_{side}", f"{len(text)} characters")
    return text if len(text) <= longest else RowError(f"too_long_{side}", f"{len(text):,} characters")


def _why(report: SplitReport) -> str:
    if not report.rows:
        return "it holds no rows"
    reasons = ", ".join(f"{reason} {count:,}" for reason, count in report.dropped.most_common()) or "all went to dev and test"
    first = next(iter(report.examples.values()), [""])[0]
    return f"{reasons}{f', the first at {first}' if first else ''}"


def _lengths(tokenizer: Tokenizer, texts: pa.ChunkedArray[Any]) -> dict[int, int]:
    _, offsets = tokenizer.encode(cast(list[str], texts.to_pylist()))
    return {share: int(np.percentile(np.diff(offsets), share)) for share in _PERCENTILES}


# Writing


def _write_shards(folder: Location, pairs: Iterator[Pair], rows_per_shard: int) -> None:
    """Write ``part-00000.parquet`` and so on; no pairs make one empty shard."""
    folder.make_folder()
    shard, chars, number = list[Pair](), 0, 0

    def flush() -> None:
        nonlocal shard, chars, number
        table = pa.Table.from_pylist([pair._asdict() for pair in shard], PAIR_SCHEMA)
        file = folder.child(_SHARD.format(number))
        pq.write_table(table, file.path, filesystem=file.filesystem, compression="zstd")
        shard, chars, number = [], 0, number + 1

    for pair in pairs:
        shard.append(pair)
        chars += len(pair.source) + len(pair.target)
        if len(shard) >= rows_per_shard or chars >= _MEMORY_CHARS:
            flush()
    if shard or not number:
        flush()
