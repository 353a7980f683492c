"""Say where a run stands, from its output folder alone: ``python -m jobs.status --output.path out``."""

from __future__ import annotations

import sys

from jobs.screen import new_console, standing
from pipeline.config import StatusConfig
from pipeline.errors import exit_on_user_error
from pipeline.inference.status import status_of
from pipeline.options import load_config
from pipeline.storage import place


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(StatusConfig, "status", sys.argv[1:])
    console = new_console()
    status = status_of(place(config.output.path, "--output.path"), config.output.run_id)
    run, at = f"run {status.run_id}", status.progress
    console.print(standing(run, at.seen, at.documents, at.details()) if at else run)
    console.print(status.state)
    return 0


if __name__ == "__main__":
    exit_on_user_error("status", main)
