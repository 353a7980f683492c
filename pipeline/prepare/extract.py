"""Extract pairs from the rows of an input, count the rows that are dropped, and assign pairs to splits."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from pipeline.config.prepare import PairsFilter, PairsInput
from pipeline.config.types import STYLE_NAME
from pipeline.data.tokenizer import without_surrogates
from pipeline.errors import UserError
from pipeline.prepare.files import Role
from pipeline.prepare.readers import read_rows
from pipeline.prepare.rows import Row, RowError, RowStream, get_value
from pipeline.prepare.run_pairs import RUN_PAIR_COLUMNS, is_run_output, read_run_pairs

_MAX_EXAMPLES, _MAX_EXAMPLE_CHARS = 3, 200


class Pair(NamedTuple):
    """A row of a shard; ``style`` is "" if there is none."""

    id: str
    source: str
    target: str
    references: list[str]
    style: str = ""

    def one_per_reference(self) -> list[Pair]:
        """Return a pair for each reference, as its target."""
        return [self._replace(target=reference, references=[reference]) for reference in self.references]


@dataclass
class SplitReport:
    """Counts of a split. Over all splits of an input, ``rows`` + ``extra`` = ``kept`` + ``merged`` + all ``dropped``.

    Dropped rows count with the split that their input is named for, since they may have no source to assign them by.

    Attributes:
        rows: rows read.
        extra: pairs beyond the first of a row, from lists of targets.
        kept: pairs written.
        merged: further targets that became references of a kept pair.
        damaged: kept pairs with a U+FFFD, in place of invalid UTF-8 or a lone surrogate.
        held_out: kept training pairs whose source is also in a given dev or test set.
        dropped: rows or pairs dropped, by reason.
        examples: the first few of each reason, as ``origin (detail)``.
    """

    rows: int = 0
    extra: int = 0
    kept: int = 0
    merged: int = 0
    damaged: int = 0
    held_out: int = 0
    dropped: Counter[str] = field(default_factory=Counter)
    examples: dict[str, list[str]] = field(default_factory=dict)

    def drop(self, error: RowError, origin: str) -> None:
        """Count a dropped row or pair."""
        self.dropped[error.reason] += 1
        if self.dropped[error.reason] <= _MAX_EXAMPLES:
            example = f"{origin} ({error.detail[:_MAX_EXAMPLE_CHARS]})" if error.detail else origin
            self.examples.setdefault(error.reason, []).append(example)

    def why_empty(self) -> str:
        """Describe why no pair was kept."""
        if not self.rows:
            return "the input has no rows"
        reasons = [f"{reason} {count:,}" for reason, count in self.dropped.most_common()]
        first = [f"the first at {examples[0]}" for examples in self.examples.values()][:1]
        return ", ".join(reasons + first) or "all went to dev and test"


def open_rows(path: str, role: Role, options: PairsInput, scratch: Path) -> tuple[RowStream, PairsInput]:
    """Return the rows of an input, and the options that name their columns.

    Args:
        scratch: Folder for scratch files, which the caller removes.

    Raises:
        UserError: See ``read_rows`` and ``read_run_pairs``.
    """
    option = f"--input.{role}"
    if not is_run_output(path, option):
        return read_rows(path, role, options), options
    if options.style_column:
        raise UserError(
            f"--input.style_column is set, but {path} is an output folder of jobs.summarize, which has no such column; set "
            "--input.style, or prepare that folder alone first"
        )
    rows = itertools.islice(read_run_pairs(path, option, scratch), options.max_rows)
    return rows, options.model_copy(update=RUN_PAIR_COLUMNS)


def read_pairs(rows: RowStream, options: PairsInput, limits: PairsFilter, report: SplitReport) -> Iterator[tuple[str, Pair]]:
    """Yield a pair for each row of an input, with its origin; count rows and drop unusable ones in ``report``.

    Texts are stripped of surrounding white space, and lone surrogates become U+FFFD, since Parquet cannot store them.
    """
    for number, (origin, row) in enumerate(rows):
        report.rows += 1
        if isinstance(row, RowError):
            report.drop(row, origin)
            continue
        row_id = get_value(row, options.id_column) if options.id_column else None
        style = (get_value(row, options.style_column) if options.style_column else options.style) or ""
        if style and not (isinstance(style, str) and STYLE_NAME.fullmatch(style)):
            report.drop(RowError("bad_style", str(style)), origin)
            continue
        if error := _check_summary(row, limits):
            report.drop(error, origin)
            continue
        source = _check_text(
            _join_texts(get_value(row, options.source_column)), "source", limits.min_source_chars, limits.max_chars
        )
        targets = _targets(row, options)
        report.extra += len(targets) - 1
        references = list[str]()
        for value in targets:
            target = _check_text(value, "target", limits.min_target_chars, limits.max_chars)
            if isinstance(source, RowError):
                report.drop(source, origin)
            elif isinstance(target, RowError):
                report.drop(target, origin)
            else:
                references.append(target)
        if not isinstance(source, RowError) and references:
            pair_id = without_surrogates(str(number if row_id is None else row_id))
            yield origin, Pair(pair_id, source, references[0], references, style)


def _targets(row: Row, options: PairsInput) -> list[Any]:
    value = get_value(row, options.target_column)
    if not isinstance(value, list) or not value:
        return [value]
    if options.target_list == "join":
        return [_join_texts(value)]
    return value if options.target_list == "each" else value[:1]


def _join_texts(value: Any) -> Any:
    """Join a list of strings to one string; return any other value unchanged."""
    is_texts = isinstance(value, list) and all(isinstance(part, str) for part in value)
    return " ".join(part.strip() for part in value) if is_texts else value


def _check_summary(row: Row, limits: PairsFilter) -> RowError | None:
    """Return why a model's summary is not good enough to learn from, by the columns that jobs.summarize writes."""
    score: Any = row.get("score")
    if row.get("finish_reason") == "length" and not limits.keep_unfinished:
        return RowError("unfinished")
    if limits.min_score is None:
        return None
    try:
        number = float(score)
    except (TypeError, ValueError, OverflowError):
        return RowError("no_score", "" if score is None else str(score))
    return None if number >= limits.min_score else RowError("low_score", f"{number:.3f}")  # NaN is low


def _check_text(value: Any, column: str, min_chars: int, max_chars: int) -> str | RowError:
    if value is None:
        return RowError(f"null_{column}")
    if not isinstance(value, str):
        return RowError(f"bad_type_{column}", type(value).__name__)
    text = without_surrogates(value).strip()
    if not text:
        return RowError(f"empty_{column}")
    if len(text) < min_chars:
        return RowError(f"short_{column}", f"{len(text)} characters")
    return text if len(text) <= max_chars else RowError(f"too_long_{column}", f"{len(text):,} characters")


def source_key(source: str, seed: int) -> int:
    """Return a 64-bit hash of a source. White space is normalized, since a tokenizer does not distinguish it either."""
    words = " ".join(source.split())
    return int.from_bytes(hashlib.blake2b(f"{seed} {words}".encode(), digest_size=8).digest())


def assign_split(key: int, role: Role, shares: dict[Role, float]) -> Role:
    """Return the split of a pair by the key of its source, so that no source is in two; ``role`` gets the remaining share."""
    fraction = key / 2**64
    for other, share in shares.items():
        if fraction < share:
            return other
        fraction -= share
    return role
