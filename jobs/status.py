"""Show the progress of a run, from its output folder alone: ``python -m jobs.status --output.path out``."""

from __future__ import annotations

import sys

from jobs.console import new_console, progress_line
from pipeline.config.loader import load_config
from pipeline.config.runs import StatusConfig
from pipeline.errors import EXIT_OK, exit_on_user_error
from pipeline.io.location import open_location
from pipeline.runs.status import run_status


def main() -> int:
    config = load_config(StatusConfig, "status", sys.argv[1:])
    console = new_console()
    status = run_status(open_location(config.output.path, "--output.path"), config.output.run_id)
    name, run = f"run {status.run_id}", status.progress
    console.print(progress_line(name, run.processed, run.documents, run.details()) if run else name)
    console.print(status.state)
    return EXIT_OK


if __name__ == "__main__":
    exit_on_user_error("status", main)
