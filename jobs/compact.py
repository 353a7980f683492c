"""Merge the ledger of an output folder into a few files: ``python -m jobs.compact --output.path out``."""

from __future__ import annotations

import sys

from jobs.console import new_console, progress
from pipeline import cluster
from pipeline.config.loader import load_config
from pipeline.config.runs import CompactConfig
from pipeline.errors import EXIT_OK, UserError, exit_on_user_error
from pipeline.io.location import open_location
from pipeline.runs import lease
from pipeline.runs.ledger import compact_ledger
from pipeline.runs.publish import finished_runs


def main() -> int:
    config = load_config(CompactConfig, "compact", sys.argv[1:])
    console = new_console()
    output = open_location(config.output.path, "--output.path")
    if not finished_runs(output):  # checked first, so that no lease is written to a folder of something else
        raise UserError(f"no run is finished in {output.uri}; set --output.path to a folder that jobs.summarize wrote")
    with progress(console, "compacting the ledger"), lease.hold(output, "compact"):
        cluster.connect()
        entries, files = cluster.translate_errors(lambda: compact_ledger(output))
    console.print(f"compacted the ledger of {output.uri}: {entries:,} entries; replaced {files:,} files")
    return EXIT_OK


if __name__ == "__main__":
    exit_on_user_error("compact", main)
