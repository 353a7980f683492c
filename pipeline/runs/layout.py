"""Paths, file names and columns of an output folder: the one place that spells them.

summaries/run=<run_id>/part-<window>.parquet   summaries of one window
rejects/run=<run_id>/part-<window>.parquet     rejects of one window, if it has any
ledger/run=<run_id>/part-<window>.parquet      ledger segment: what the window completed
ledger/compacted/<sequence>/                   ledger entries of all runs up to that one
runs/<run_id>/                                 plan, configuration, progress, manifest, report, then _SUCCESS
lease/                                         claim of the driver that may write here
"""

from __future__ import annotations

from pipeline.io.location import Location, StoredFile

SUMMARIES, REJECTS, LEDGER, LEASE, RUNS = "summaries", "rejects", "ledger", "lease", "runs"
DATA_FOLDERS = (SUMMARIES, REJECTS)
COMPACTED = f"{LEDGER}/compacted"

# Files and folders of runs/<run_id>.
PLAN, RUN_CONFIG, PROGRESS, MANIFEST, REPORT, SUCCESS = (
    "plan.parquet",
    "config.yaml",
    "progress.json",
    "manifest.json",
    "report.html",
    "_SUCCESS",
)
REMOVED, UNREADABLE = "gone.parquet", "unread"
SORTED_COPY = "sorted"
"""Copy of the documents that an earlier version left in interrupted runs with ``--resources.sort global``."""

SUMMARY_COLUMNS = ("summary", "source_tokens", "summary_tokens", "source_truncated", "finish_reason", "score")
REJECT_COLUMNS = ("reason", "detail")


def run_folder(output: Location, run_id: str) -> Location:
    return output.child(run_path(run_id))


def run_path(run_id: str, name: str = "") -> str:
    """Return the path of ``runs/<run_id>``, or of a file in it, relative to the output folder."""
    return f"{RUNS}/{run_id}/{name}" if name else f"{RUNS}/{run_id}"


def run_ids(output: Location) -> list[str]:
    """List the ids of all runs that have started."""
    return output.child(RUNS).names()


def data_files(output: Location, run_id: str) -> dict[str, StoredFile]:
    """Return the files of a run's summaries and rejects, by path relative to the output folder."""
    files: dict[str, StoredFile] = {}
    for path in (parts_path(name, run_id) for name in DATA_FOLDERS):
        folder = output.child(path)
        stored = folder.files() if folder.exists() else []
        files |= {f"{path}/{file.path[len(folder.path) :].strip('/')}": file for file in stored}
    return files


def parts_path(folder: str, run_id: str) -> str:
    """Return the path of a run's Parquet files: ``<folder>/run=<run_id>``."""
    return f"{folder}/run={run_id}"


def part_path(folder: str, run_id: str, window: str) -> str:
    """Return the path of the Parquet file of one window."""
    return f"{parts_path(folder, run_id)}/part-{window}.parquet"
