"""Prepare a data set of text pairs: write Parquet shards of (id, source, target) and a SentencePiece model.

Development and test shards also have a column of all references of a source, and all shards a column of styles if they are
configured.

    inputs ── readers ── extract ── split by source ── shuffle ── shards ── tokenizer

It fixes the order of the steps and the layout; input formats are in readers.py. Memory is bounded for inputs of any
size: rows stream; the shuffle of each split, a shard and the tokenizer's sample hold up to 64 million characters each. Only the
hashes of the sources of a given dev or test set grow with the input.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, cast

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.core import has_magic
from fsspec.utils import glob_translate
from pyarrow import fs

from pipeline.config.prepare import PrepareConfig
from pipeline.config.types import bundle_path
from pipeline.data.pairs import pair_schema
from pipeline.data.tokenizer import Tokenizer, train_tokenizer
from pipeline.errors import UserError
from pipeline.io.atomic import atomic_folder
from pipeline.io.location import Location, open_location
from pipeline.prepare.extract import Pair, SplitReport, assign_split, open_rows, read_pairs, source_key
from pipeline.prepare.files import ROLES, STORES, Role
from pipeline.prepare.rows import RowError, RowStream
from pipeline.prepare.shuffle import ExternalShuffle

TOKENIZER_FILE, SUMMARY = "tokenizer.model", "prepare.json"
MEMORY_CHARS = 64_000_000
_OUTPUT_NAMES = ("train", "dev", "test", TOKENIZER_FILE, SUMMARY)
_SHARD = "part-{:05d}.parquet"
_PERCENTILES = (5, 25, 50, 75, 95, 99, 100)
_MEASURED_PAIRS = 10_000
_PROGRESS_EVERY_ROWS = 1000
_TOKENIZER_TEXT_CHARS = 8192
"""The tokenizer is trained on the start of longer texts."""


class PrepareProgress(NamedTuple):
    """Progress of a prepare: the current activity, and the rows read and pairs kept of the current input."""

    doing: str
    rows: int = 0
    pairs: int = 0


OnProgress = Callable[[PrepareProgress], None]


@dataclass(frozen=True)
class PrepareResult:
    """Figures of a finished prepare.

    Attributes:
        source_subwords: percentiles of source lengths, measured on ``measured_pairs`` random training pairs.
        target_subwords: the same for targets.
        tokenizer_pairs: pairs that the tokenizer was trained on; 0 if there was one already.
        tokenizer_bundle: the model bundle that the tokenizer is from; None if it is not from one.
    """

    splits: dict[Role, SplitReport]
    source_subwords: dict[int, int]
    target_subwords: dict[int, int]
    measured_pairs: int
    tokenizer_pairs: int
    tokenizer_bundle: str | None
    vocabulary_size: int

    def as_json(self, config: PrepareConfig) -> str:
        """Return the text of ``prepare.json``."""
        splits = {role: vars(report) for role, report in self.splits.items()}
        return json.dumps({**vars(self), "splits": splits, "config": config.model_dump()}, indent=2, ensure_ascii=False) + "\n"


def prepare(config: PrepareConfig, on_progress: OnProgress = lambda _: None) -> PrepareResult:
    """Write train/, dev/ and test/ shards, ``tokenizer.model`` and ``prepare.json`` to the output folder.

    The pairs of each split are in a random order that is the same at each run, so the first ones are a fair sample. The folder
    appears complete or not at all (``atomic_folder``).

    Args:
        on_progress: called every 1000 rows, and at the start of each other activity.

    Raises:
        UserError: an input cannot be read or lacks a column, no training pairs remain, or the output cannot be written.
    """
    inputs = config.input
    shares: dict[Role, float] = {} if inputs.dev else {"dev": inputs.dev_share}
    shares |= {} if inputs.test else {"test": inputs.test_share}
    output = open_location(config.output.path, "--output.path")
    for role in ROLES:
        _refuse_output_in_input(getattr(inputs, role), role, output)
    with atomic_folder(output, _OUTPUT_NAMES, overwrite=config.output.overwrite) as (folder, scratch):
        preparation = _Preparation(config, folder, scratch, on_progress)
        if inputs.dev:
            preparation.add_input(inputs.dev, "dev", {})
        if inputs.test:
            preparation.add_input(inputs.test, "test", {})
        preparation.add_input(inputs.train, "train", {role: share for role, share in shares.items() if share > 0})
        result = preparation.finish()
        folder.child(SUMMARY).write(result.as_json(config).encode())
    return result


def _refuse_output_in_input(path: str | None, role: Role, output: Location) -> None:
    """Raise UserError if the output is inside a folder that is read, or its shards match a pattern of files to read."""
    if path is None or "::" in path or ("://" in path and not path.startswith(STORES)):
        return
    source = open_location(path, f"--input.{role}")
    if source.contains(output) and source.filesystem.get_file_info(source.path).type == fs.FileType.Directory:
        raise UserError(f"--output.path {output.uri} is inside --input.{role} {path}; set another --output.path")
    shards = [output.child(name).child(_SHARD.format(0)).path for name in ROLES]
    if has_magic(source.path) and any(re.fullmatch(glob_translate(source.path), shard) for shard in shards):
        raise UserError(
            f"--input.{role} {path} also matches the shards in --output.path {output.uri}; set another --output.path"
        )


class _Preparation:
    """State of a prepare: reports, keys of the sources in dev and test sets, and a sample of the training pairs."""

    def __init__(self, config: PrepareConfig, folder: Location, scratch: Path, on_progress: OnProgress) -> None:
        self._config, self._folder, self._scratch, self._on_progress = config, folder, scratch, on_progress
        self._tokenizer_file, self._tokenizer_bundle = _read_tokenizer(config)
        self._reports: dict[Role, SplitReport] = {}
        self._held_out: dict[Role, set[int]] = {}
        self._sample: list[tuple[str, str]] = []

    def add_input(self, path: str, role: Role, shares: dict[Role, float]) -> None:
        """Read an input, and write its pairs to its split and to the splits that get a share of its sources."""
        roles: list[Role] = [role, *shares]
        self._reports |= {name: SplitReport() for name in roles}
        shuffles = {name: ExternalShuffle(Pair, self._scratch / name, MEMORY_CHARS) for name in roles}
        keys = set[int]()
        for pair, key in self._read(path, role):
            if role != "train":
                keys.add(key)
            split = assign_split(key, role, shares)
            split_pairs = pair.one_per_reference() if split == "train" else [pair]
            self._reports[split].kept += len(split_pairs)
            self._reports[split].merged += len(pair.references) - len(split_pairs)
            for kept in split_pairs:
                self._reports[split].damaged += any("\ufffd" in text for text in (kept.source, *kept.references))
                shuffles[split].add(kept)
        if role != "train":
            self._held_out[role] = keys
        for name, shuffle in shuffles.items():
            self._on_progress(PrepareProgress(f"writing {name}"))
            is_train, options = name == "train", self._config.input
            pairs = self._sampled(shuffle.drain()) if is_train else shuffle.drain()
            schema = pair_schema(references=not is_train, style=bool(options.style or options.style_column))
            _write_shards(self._folder.child(name), pairs, schema, self._config.output.rows_per_shard)

    def _read(self, path: str, role: Role) -> Iterator[tuple[Pair, int]]:
        """Yield the pairs of an input with their source keys; drop or count training pairs whose source is held out."""
        report, doing = self._reports[role], f"reading {path}"
        self._on_progress(PrepareProgress(doing))
        rows, options = open_rows(path, role, self._config.input, self._scratch / f"join-{role}")

        def reported() -> RowStream:
            for number, row in enumerate(rows):
                if number and number % _PROGRESS_EVERY_ROWS == 0:
                    pairs = report.rows + report.extra - report.dropped.total()
                    self._on_progress(PrepareProgress(doing, report.rows, pairs))
                yield row

        for origin, pair in read_pairs(reported(), options, self._config.filter, report):
            key = source_key(pair.source, self._config.input.split_seed)
            held_out = [name for name, keys in self._held_out.items() if key in keys] if role == "train" else []
            if held_out and self._config.filter.drop_held_out:
                for _ in pair.references:
                    report.drop(RowError(f"source_in_{held_out[0]}"), origin)
                continue
            report.held_out += len(pair.references) if held_out else 0
            yield pair, key

    def _sampled(self, pairs: Iterator[Pair]) -> Iterator[Pair]:
        """Pass pairs on and save the first ones for the tokenizer: they are shuffled, so these are a fair sample."""
        chars = 0
        for pair in pairs:
            if len(self._sample) < self._config.tokenizer.train_rows and chars < MEMORY_CHARS:
                self._sample.append((pair.source[:_TOKENIZER_TEXT_CHARS], pair.target[:_TOKENIZER_TEXT_CHARS]))
                chars += sum(map(len, self._sample[-1]))
            yield pair

    def finish(self) -> PrepareResult:
        """Train the tokenizer and measure text lengths with it."""
        if not self._sample:
            why = self._reports["train"].why_empty()
            raise UserError(f"no training pairs remain of {self._config.input.train}: {why}; change --input.train or --filter")
        model = self._tokenizer_file or self._train_tokenizer()
        self._folder.child(TOKENIZER_FILE).write(model)
        tokenizer = Tokenizer(model)
        first = self._folder.child("train").child(_SHARD.format(0))
        measured = pq.read_table(first.path, filesystem=first.filesystem).slice(0, _MEASURED_PAIRS)
        return PrepareResult(
            splits={role: self._reports[role] for role in ROLES if role in self._reports},
            source_subwords=_length_percentiles(tokenizer, measured["source"]),
            target_subwords=_length_percentiles(tokenizer, measured["target"]),
            measured_pairs=len(measured),
            tokenizer_pairs=0 if self._tokenizer_file else len(self._sample),
            tokenizer_bundle=self._tokenizer_bundle,
            vocabulary_size=tokenizer.vocabulary_size,
        )

    def _train_tokenizer(self) -> bytes:
        self._on_progress(PrepareProgress(f"training the tokenizer on {len(self._sample):,} pairs"))
        return train_tokenizer((text for pair in self._sample for text in pair), self._config.tokenizer)


def _read_tokenizer(config: PrepareConfig) -> tuple[bytes | None, str | None]:
    """Return the tokenizer at ``tokenizer.path``, if it is set, and the path if that is a bundle."""
    uri = config.tokenizer.path
    if uri is None:
        return None, None
    location = open_location(bundle_path(uri), "--tokenizer.path")
    in_bundle = location.child(TOKENIZER_FILE)
    is_bundle = in_bundle.exists()
    file = (in_bundle if is_bundle else location).read()
    tokenizer = Tokenizer(file, uri)
    if (config.input.style or config.input.style_column) and not tokenizer.has_styles:
        raise UserError(f"the tokenizer of --tokenizer.path {uri} has no style tokens; leave it unset to train a new one")
    return file, uri if is_bundle else None


def _length_percentiles(tokenizer: Tokenizer, texts: pa.ChunkedArray[Any]) -> dict[int, int]:
    _, offsets = tokenizer.encode(cast(list[str], texts.to_pylist()))
    return {percent: int(np.percentile(np.diff(offsets), percent)) for percent in _PERCENTILES}


def _write_shards(folder: Location, pairs: Iterator[Pair], schema: pa.Schema, rows_per_shard: int) -> None:
    """Write ``part-00000.parquet`` and so on; without pairs, write one empty shard."""
    folder.make_folder()
    shards = _cut_shards(pairs, rows_per_shard)
    for number, shard in enumerate(itertools.chain([next(shards, [])], shards)):
        table = pa.Table.from_pylist([{**pair._asdict(), "style": pair.style or None} for pair in shard], schema)
        file = folder.child(_SHARD.format(number))
        pq.write_table(table, file.path, filesystem=file.filesystem, compression="zstd")
        del table
        shard.clear()  # or it would stay in memory while the next one is collected


def _cut_shards(pairs: Iterator[Pair], max_rows: int) -> Iterator[list[Pair]]:
    shard, chars = list[Pair](), 0
    for pair in pairs:
        shard.append(pair)
        chars += len(pair.source) + sum(map(len, pair.references))
        if len(shard) >= max_rows or chars >= MEMORY_CHARS:
            yield shard
            shard, chars = [], 0
    if shard:
        yield shard
