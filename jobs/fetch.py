"""Copy the documents of a table to Parquet files: ``python -m jobs.fetch --config configs/fetch.iceberg.yaml``."""

from __future__ import annotations

import sys

from jobs.console import new_console, progress
from pipeline.config.loader import load_config
from pipeline.config.tables import FetchConfig
from pipeline.errors import EXIT_OK, exit_on_user_error
from pipeline.tables.fetch import fetch


def main() -> int:
    config = load_config(FetchConfig, "fetch", sys.argv[1:])
    console = new_console()
    with progress(console, f"fetching the documents of {config.input.table}"):
        fetched = fetch(config)
    has = "has" if fetched.is_new else "already had"
    console.print(f"{config.output.path} {has} the {fetched.rows:,} documents of {config.input.table} at {fetched.snapshot}")
    return EXIT_OK


if __name__ == "__main__":
    exit_on_user_error("fetch", main)
