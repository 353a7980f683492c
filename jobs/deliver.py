"""Bring summaries into a store: ``python -m jobs.deliver --config configs/deliver.iceberg.yaml``."""

from __future__ import annotations

import sys

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.tables import DeliverConfig
from pipeline.errors import exit_on_user_error
from pipeline.tables.deliver import deliver


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(DeliverConfig, "deliver", sys.argv[1:])
    console = new_console()
    table = config.output.table
    with progress(console, f"delivering to {table}"):
        done = deliver(config)
    if done.had_rows:
        before = f", and was at run {done.previous_run_id} before" if done.previous_run_id else ""
        console.print(f"{table} has the latest summaries up to run {done.run_id}{before}")
    else:
        console.print(f"{table} has the latest summaries up to run {done.run_id} already: nothing is new")
    return 0


if __name__ == "__main__":
    exit_on_user_error("deliver", main)
