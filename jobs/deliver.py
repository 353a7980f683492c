"""Bring summaries into a store: ``python -m jobs.deliver --config configs/deliver.iceberg.yaml``."""

from __future__ import annotations

import sys

from jobs.screen import new_console, progress
from pipeline.config import DeliverConfig
from pipeline.errors import exit_on_user_error
from pipeline.options import load_config
from pipeline.stores.deliver import deliver


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(DeliverConfig, "deliver", sys.argv[1:])
    console = new_console()
    table = config.output.table
    with progress(console, f"delivering to {table}"):
        done = deliver(config)
    if done.had_rows:
        since = f"what came since run {done.before}" if done.before else "all summaries"
        console.print(f"{table} has {since}, up to run {done.run_id}")
    else:
        console.print(f"{table} has what there is up to run {done.run_id} already; nothing is new")
    return 0


if __name__ == "__main__":
    exit_on_user_error("deliver", main)
