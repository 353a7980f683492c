"""What of a run deserves a look: shares that are high, and what differs from the run before.

Pure data: rules over a manifest. How it is shown is report.py's business.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from pydantic import BaseModel

from pipeline.runs.manifest import Manifest, StatsSummary

Level = Literal["bad", "warn", "note"]

_FEWEST = 20
"""Documents of which a share says something; and of each of two runs, to compare them, more."""
_FEWEST_TO_COMPARE = 100
_HIGH, _MUCH_READ_IN_PART = 0.05, 0.25


class PreviousRun(BaseModel):
    """What the report needs of an earlier run's manifest."""

    run_id: str
    model_fingerprint: str
    stats: StatsSummary = StatsSummary()


@dataclass(frozen=True)
class RunWarning:
    """One line. bad: somebody must act; warn: somebody should look; note: good to know."""

    level: Level
    what: str
    why: str


@dataclass(frozen=True)
class Comparison:
    """A figure of both runs. drifts: by more than chance and habit explain; None: there is nothing to compare with."""

    name: str
    unit: Literal["share", "tokens", "nats"]
    now: float | None
    before: float | None
    drifts: bool

    @property
    def change(self) -> float | None:
        """Now less before: of tokens relative to before."""
        if self.now is None or self.before is None:
            return None
        difference = self.now - self.before
        return difference / max(self.before, 1e-9) if self.unit == "tokens" else difference


_MEASURES: tuple[tuple[str, str, Literal["share", "tokens", "nats"], float], ...] = (
    # Name, field of DigestSummary, unit, and the least change that is named: of tokens, relative.
    ("mean tokens of a source", "mean_source_tokens", "tokens", 0.25),
    ("mean tokens of a summary", "mean_summary_tokens", "tokens", 0.20),
    ("mean score, nats a token", "mean_score", "nats", 0.25),
    ("summaries at the length limit", "at_limit", "share", 0.05),
    ("repeated summaries", "repeated", "share", 0.05),
    ("empty summaries", "empty", "share", 0.02),
    ("sources read in part", "truncated", "share", 0.10),
    ("subwords without a place in the vocabulary", "byte_tokens", "share", 0.02),
)


def compare_stats(now: StatsSummary, before: StatsSummary | None) -> list[Comparison]:
    """The figures of a run beside those of the one before."""
    compared = before is not None and min(now.documents, before.documents) >= _FEWEST_TO_COMPARE
    found = []
    for name, field, unit, least in _MEASURES:
        measure = Comparison(name, unit, getattr(now, field), getattr(before, field) if before else None, False)
        drifts = compared and measure.change is not None and abs(measure.change) >= least
        found.append(Comparison(name, unit, measure.now, measure.before, drifts))
    return found


def run_warnings(manifest: Manifest, unscored: int, before: PreviousRun | None, published: bool) -> list[RunWarning]:
    """What to look at, the worst first. unscored: summaries whose score is not finite. before: the last published run."""
    found = [
        *_warn_about_run(manifest, published),
        *_warn_about_documents(manifest.stats, unscored),
        *_warn_about_drift(manifest, before),
    ]
    return sorted(found, key=lambda finding: ("bad", "warn", "note").index(finding.level))


def _warn_about_run(manifest: Manifest, published: bool) -> Iterator[RunWarning]:
    counts, share = manifest.counts, manifest.reject_share
    if not published:
        most = manifest.config["input"]["max_reject_share"]
        yield RunWarning(
            "bad",
            f"Not published: {share:.1%} of the documents were rejected or unread",
            f"--input.max_reject_share is {most:g}; with a higher one the same command publishes the run as it is.",
        )
    elif share > _HIGH and (counts.done + counts.unread >= _FEWEST or share == 1):
        yield RunWarning("warn", f"{share:.1%} of the documents were rejected or unread", "The reasons stand under Rejects.")
    if manifest.unread:
        files, whole = len(manifest.unread), sum(unread.rows is None for unread in manifest.unread.values())
        rows = f"{counts.unread:,} of their rows were to be read" if whole < files else ""
        unknown = f"of {whole:,} not even the number of rows is known" if whole else ""
        yield RunWarning(
            "warn",
            f"{files:,} {'file was' if files == 1 else 'files were'} not read, or not wholly",
            f"{'; '.join(filter(None, (rows, unknown)))}. They stand under Unread files.",
        )
    if manifest.removed.documents:
        yield RunWarning(
            "note",
            f"{manifest.removed.documents:,} documents of earlier runs are not in the input any more",
            "Their summaries stay. Their ids are in gone.parquet beside this report.",
        )


def _warn_about_documents(stats: StatsSummary, unscored: int) -> Iterator[RunWarning]:
    if unscored:
        yield RunWarning(
            "bad", f"{unscored:,} summaries have no finite score", "The model computes with numbers that are none: look at it."
        )
    if stats.documents < _FEWEST:
        return
    rules: tuple[tuple[float | None, float, Level, str, str], ...] = (
        (
            stats.at_limit,
            _HIGH,
            "warn",
            "of summaries were ended by the length limit",
            "Such ones break off: see max_target_tokens.",
        ),
        (
            stats.repeated,
            _HIGH,
            "warn",
            "of summaries repeat another document's",
            "Documents may be alike, or the model poor at them.",
        ),
        (stats.empty, 0.01, "warn", "of summaries are empty", "The model ended them at once."),
        (
            stats.byte_tokens,
            _HIGH,
            "warn",
            "of what the model read has no place in its vocabulary",
            "Characters that were rare when its tokenizer was trained: another language or script, perhaps.",
        ),
        (
            stats.truncated,
            _MUCH_READ_IN_PART,
            "note",
            "of sources are longer than what the model reads",
            "Their summaries tell of their beginnings alone: see max_source_tokens.",
        ),
    )
    for share, most, level, what, why in rules:
        if share is not None and share > most:
            yield RunWarning(level, f"{share:.1%} {what}", why)


def _warn_about_drift(manifest: Manifest, before: PreviousRun | None) -> Iterator[RunWarning]:
    if before is None:
        return
    drifted = [measure for measure in compare_stats(manifest.stats, before.stats) if measure.drifts]
    if drifted:
        other = " The model is another one." if before.model_fingerprint != manifest.model_fingerprint else ""
        yield RunWarning(
            "warn",
            f"Different from run {before.run_id}: {', '.join(measure.name for measure in drifted)}",
            f"The figures stand under Compared with the last run.{other}",
        )
