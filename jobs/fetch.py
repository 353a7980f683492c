"""Copy the documents of a store to Parquet: ``python -m jobs.fetch --config configs/fetch.iceberg.yaml``."""

from __future__ import annotations

import sys

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.tables import FetchConfig
from pipeline.errors import exit_on_user_error
from pipeline.tables.fetch import fetch


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(FetchConfig, "fetch", sys.argv[1:])
    console = new_console()
    with progress(console, f"fetching the documents of {config.input.table}"):
        fetched = fetch(config)
    how = "has" if fetched.is_new else "had already"
    console.print(f"{config.output.path} {how} the {fetched.rows:,} documents of {config.input.table} at {fetched.snapshot}")
    return 0


if __name__ == "__main__":
    exit_on_user_error("fetch", main)
