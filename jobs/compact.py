"""Write the ledger of an output folder into few files: ``python -m jobs.compact --output.path out``."""

from __future__ import annotations

import sys

import ray.exceptions

from jobs.console import new_console, progress
from pipeline import cluster
from pipeline.config.loader import load_config
from pipeline.config.runs import CompactConfig
from pipeline.errors import UserError, exit_on_user_error
from pipeline.io.location import open_location
from pipeline.runs import lease
from pipeline.runs.ledger import compact
from pipeline.runs.publish import finished_runs


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(CompactConfig, "compact", sys.argv[1:])
    console = new_console()
    output = open_location(config.output.path, "--output.path")
    if not finished_runs(output):  # nor is a lease left in a folder that is none of ours, nor Ray started
        raise UserError(f"no run is finished in {output.uri}; set --output.path to a folder that jobs.summarize wrote")
    with progress(console, "compacting the ledger"), lease.hold(output, "compact"):
        cluster.connect()
        try:
            entries, replaced = compact(output)
        except ray.exceptions.RayError as error:
            raise cluster.to_user_error(error) from None
    console.print(f"the ledger of {output.uri} has {entries:,} entries; {replaced:,} files were replaced")
    return 0


if __name__ == "__main__":
    exit_on_user_error("compact", main)
