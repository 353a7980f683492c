"""Write the ledger of an output folder into few files: ``python -m jobs.compact --output.path out``."""

from __future__ import annotations

import sys

import ray.exceptions

from jobs.screen import new_console, progress
from pipeline import cluster
from pipeline.config import CompactConfig
from pipeline.errors import UserError, exit_on_user_error
from pipeline.inference import lease
from pipeline.inference.ledger import compact
from pipeline.inference.publication import published
from pipeline.options import load_config
from pipeline.storage import place


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(CompactConfig, "compact", sys.argv[1:])
    console = new_console()
    output = place(config.output.path, "--output.path")
    if not published(output):  # nor is a lease left in a folder that is none of ours, nor Ray started
        raise UserError(f"no run is finished in {output.uri}; set --output.path to a folder that jobs.summarize wrote")
    with progress(console, "compacting the ledger"), lease.held(output, "compact"):
        cluster.connect()
        try:
            entries, replaced = compact(output)
        except ray.exceptions.RayError as error:
            raise cluster.explained(error) from None
    console.print(f"the ledger of {output.uri} has {entries:,} entries; {replaced:,} files were replaced")
    return 0


if __name__ == "__main__":
    exit_on_user_error("compact", main)
