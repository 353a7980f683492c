"""Write new summaries to a table: ``python -m jobs.deliver --config configs/deliver.iceberg.yaml``."""

from __future__ import annotations

import sys

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.tables import DeliverConfig
from pipeline.errors import EXIT_OK, exit_on_user_error
from pipeline.tables.deliver import deliver


def main() -> int:
    config = load_config(DeliverConfig, "deliver", sys.argv[1:])
    console = new_console()
    table = config.output.table
    with progress(console, f"delivering to {table}"):
        delivered = deliver(config)
    if delivered.had_rows:
        previous = f" (before: up to run {delivered.previous_run_id})" if delivered.previous_run_id else ""
        console.print(f"{table} has the latest summaries up to run {delivered.run_id}{previous}")
    else:
        console.print(f"{table} already has the latest summaries up to run {delivered.run_id}: nothing is new")
    return EXIT_OK


if __name__ == "__main__":
    exit_on_user_error("deliver", main)
