"""Decide what in a finished run deserves attention: high shares, and differences from the previous run.

Rules over a manifest, as plain data. How they are shown is the business of report.py.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

from pydantic import Field

from pipeline.runs.manifest import Manifest, StatsSummary
from pipeline.runs.stored import Stored

Level = Literal["bad", "warn", "note"]
Unit = Literal["share", "tokens", "nats"]

_MIN_DOCUMENTS = 20
"""With fewer documents a share means little."""

_MIN_DOCUMENTS_TO_COMPARE = 100
"""For each of two runs that are compared."""

_HIGH_SHARE, _HIGH_TRUNCATED, _HIGH_EMPTY = 0.05, 0.25, 0.01


class PreviousRun(Stored):
    """The part of an earlier run's manifest that the report needs."""

    run_id: str
    model_fingerprint: str
    stats: StatsSummary = Field(StatsSummary(), alias="digest")


@dataclass(frozen=True)
class RunWarning:
    """One warning of the report.

    Attributes:
        level: "bad" needs action, "warn" needs a look, "note" is for information.
    """

    level: Level
    message: str
    advice: str


@dataclass(frozen=True)
class Comparison:
    """One measure of this run and of the previous one.

    Attributes:
        drifts: Whether both differ by more than usual.
    """

    name: str
    unit: Unit
    current: float | None
    previous: float | None
    drifts: bool = False

    @property
    def change(self) -> float | None:
        """Difference from the previous run; for tokens, relative to it."""
        if self.current is None or self.previous is None:
            return None
        difference = self.current - self.previous
        return difference / max(self.previous, 1e-9) if self.unit == "tokens" else difference


_MEASURES: tuple[tuple[str, str, Unit, float], ...] = (
    # Name, field of StatsSummary, unit, smallest change (in the sense of Comparison.change) that counts as a drift.
    ("mean source tokens", "mean_source_tokens", "tokens", 0.25),
    ("mean summary tokens", "mean_summary_tokens", "tokens", 0.20),
    ("mean score, nats per token", "mean_score", "nats", 0.25),
    ("summaries at the length limit", "at_limit", "share", 0.05),
    ("repeated summaries", "repeated", "share", 0.05),
    ("empty summaries", "empty", "share", 0.02),
    ("truncated sources", "truncated", "share", 0.10),
    ("tokens outside the vocabulary", "byte_tokens", "share", 0.02),
)


def compare_stats(current: StatsSummary, previous: StatsSummary | None) -> list[Comparison]:
    """Compare the measures of a run with those of the previous one, if any."""
    is_comparable = previous is not None and min(current.documents, previous.documents) >= _MIN_DOCUMENTS_TO_COMPARE
    comparisons = []
    for name, field, unit, min_drift in _MEASURES:
        measure = Comparison(name, unit, getattr(current, field), getattr(previous, field) if previous else None)
        drifts = is_comparable and measure.change is not None and abs(measure.change) >= min_drift
        comparisons.append(replace(measure, drifts=drifts))
    return comparisons


def run_warnings(manifest: Manifest, unscored: int, previous: PreviousRun | None) -> list[RunWarning]:
    """List the warnings of a run, worst first.

    Args:
        unscored: Summaries whose score is not finite.
        previous: Finished run to compare with.
    """
    warnings = [
        *_warn_about_run(manifest),
        *_warn_about_documents(manifest.stats, unscored),
        *_warn_about_drift(manifest, previous),
    ]
    return sorted(warnings, key=lambda warning: ("bad", "warn", "note").index(warning.level))


def exceeds_reject_limit(manifest: Manifest) -> bool:
    """Return whether too many documents were rejected for the run to finish."""
    return bool(manifest.reject_share > manifest.config["input"]["max_reject_share"])


def _warn_about_run(manifest: Manifest) -> Iterator[RunWarning]:
    counts, share = manifest.counts, manifest.reject_share
    rejected = f"{share:.1%} of the documents were rejected or unreadable"
    if exceeds_reject_limit(manifest):
        limit = manifest.config["input"]["max_reject_share"]
        advice = f"The limit is {limit:g}. To finish the run anyway, run it again with a higher --input.max_reject_share."
        yield RunWarning("bad", f"Not finished: {rejected}", advice)
    elif share > _HIGH_SHARE and (counts.done + counts.unread >= _MIN_DOCUMENTS or share == 1):
        yield RunWarning("warn", rejected, "See Rejects for the reasons.")
    if manifest.unread:
        files, unknown = len(manifest.unread), sum(unread.rows is None for unread in manifest.unread.values())
        rows = f"{counts.unread:,} rows were skipped. " if unknown < files else ""
        unknown_rows = f"For {unknown:,} files even the number of rows is unknown. " if unknown else ""
        yield RunWarning(
            "warn",
            f"{files:,} {'file' if files == 1 else 'files'} could not be read completely",
            f"{rows}{unknown_rows}See Unreadable files.",
        )
    if manifest.removed.documents:
        yield RunWarning(
            "note",
            f"{manifest.removed.documents:,} documents of earlier runs are no longer in the input",
            "Their summaries stay in the output. gone.parquet, next to this report, lists their ids.",
        )


def _warn_about_documents(stats: StatsSummary, unscored: int) -> Iterator[RunWarning]:
    if unscored:
        yield RunWarning(
            "bad", f"{unscored:,} summaries have no finite score", "The model computed NaN or infinity: check its weights."
        )
    if stats.documents < _MIN_DOCUMENTS:
        return
    rules: tuple[tuple[float | None, float, Level, str, str], ...] = (
        (
            stats.at_limit,
            _HIGH_SHARE,
            "warn",
            "of summaries reached the length limit",
            "They may end in mid-sentence. Consider a higher --decoding.max_target_tokens.",
        ),
        (
            stats.repeated,
            _HIGH_SHARE,
            "warn",
            "of summaries repeat the summary of another document",
            "Either the documents are alike, or the model does not fit them. Look at the examples below.",
        ),
        (
            stats.empty,
            _HIGH_EMPTY,
            "warn",
            "of summaries are empty",
            "The model ended them at once. Check that it was trained on documents like these.",
        ),
        (
            stats.byte_tokens,
            _HIGH_SHARE,
            "warn",
            "of source tokens are outside the model's vocabulary",
            "The documents may be in a language or script that its tokenizer was not trained on.",
        ),
        (
            stats.truncated,
            _HIGH_TRUNCATED,
            "note",
            "of sources are longer than the model reads",
            "Their summaries cover only the beginning. Consider a higher --decoding.max_source_tokens.",
        ),
    )
    for share, max_share, level, message, advice in rules:
        if share is not None and share > max_share:
            yield RunWarning(level, f"{share:.1%} {message}", advice)


def _warn_about_drift(manifest: Manifest, previous: PreviousRun | None) -> Iterator[RunWarning]:
    if previous is None:
        return
    drifting = [measure.name for measure in compare_stats(manifest.stats, previous.stats) if measure.drifts]
    if drifting:
        model = " The model has changed since." if previous.model_fingerprint != manifest.model_fingerprint else ""
        yield RunWarning(
            "warn",
            f"Different from run {previous.run_id}: {', '.join(drifting)}",
            f"See Compared with the previous run.{model}",
        )
