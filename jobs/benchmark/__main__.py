"""Measure: ``python -m jobs.benchmark NAME [--json FILE] [--section.option VALUE …]``; each prints a table.

``decode``    the decoder beside a textbook's loop and a sorted one, in each precision; --help lists its options
``driver``    what a run of millions of files and windows asks of its driver, without the run
``nights``    what a second night costs of whose documents few are new
``outlier``   what one long document costs the window of short ones that it is in
``pairs``     what a training of more pairs holds in memory; the options are those of jobs.train, and --sizes
``pipeline``  a whole run beside the bare engine: documents/s
``scale``     what more actors give, what larger inputs cost, and what the shape of their files does
``tables``    what deliveries to Iceberg, Delta, JSON lines or PostgreSQL, and fetches from them, take and hold in memory
``train``     how fast training steps are, with one worker and more, and what of the machine they take; the options are those
              of jobs.train, and --speed
``workers``   whether two DDP workers learn like one with twice the batch; the options are those of jobs.train
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import subprocess
from pathlib import Path

from pipeline.errors import exit_on_user_error
from pipeline.io.atomic import atomic_file
from pipeline.version import versions

_BENCHMARKS = ("decode", "driver", "nights", "outlier", "pairs", "pipeline", "scale", "tables", "train", "workers")
"""Modules of this package, each with a function of its name. Only the named one is imported: a machine without Ray can
still time the decoder."""


def _commit() -> str | None:
    """Of the checkout that is measured; None where there is none."""
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return found.stdout.strip() or None


def main() -> int:
    """Run the benchmark that is named; the exit status."""
    parser = argparse.ArgumentParser(
        "python -m jobs.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("name", choices=_BENCHMARKS)
    parser.add_argument("--json", metavar="FILE", help="write every figure there")
    given, options = parser.parse_known_args()
    with atomic_file(given.json, "--json") if given.json else contextlib.nullcontext() as file:
        figures = getattr(importlib.import_module(f"jobs.benchmark.{given.name}"), given.name)(options)
        if file:
            machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "versions": versions()}
            content = {"benchmark": given.name, "machine": machine, "commit": _commit(), **figures}
            file.write(json.dumps(content, indent=2).encode() + b"\n")
    return 0


if __name__ == "__main__":
    exit_on_user_error("benchmark", main)
