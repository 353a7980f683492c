"""Measure speed and memory: ``python -m jobs.benchmark NAME [--json FILE] [--section.option VALUE …]``.

``decode``    decoding with the engine, compared with a textbook loop and a sorted loop, in each precision
``driver``    the driver's own work for a run of millions of files and windows, without the run
``nights``    a second run over documents of which few are new or have changed
``outlier``   one long document in a window of short ones
``pairs``     memory of a training, by number of pairs; takes the options of jobs.train, and --sizes
``pipeline``  a whole run, compared with the bare engine
``scale``     whole runs with more actors, larger inputs, and files of other shapes
``tables``    deliveries to Iceberg, Delta, JSON lines or PostgreSQL, and fetches from them
``train``     training steps with one or more workers; takes the options of jobs.train, and --speed
``workers``   loss curves of two DDP workers and of one with twice the batch; takes the options of jobs.train

Each prints a table. ``python -m jobs.benchmark NAME --help`` lists the options.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import json
import os
import platform
import subprocess
import sys
from pathlib import Path

from pipeline.errors import exit_on_user_error
from pipeline.io.atomic import atomic_file
from pipeline.version import versions

_BENCHMARKS = ("decode", "driver", "nights", "outlier", "pairs", "pipeline", "scale", "tables", "train", "workers")
"""Modules of this package, each with a function of the same name. Only the selected one is imported."""


def _commit() -> str | None:
    """Return the commit of the checkout; None outside a repository."""
    git = subprocess.run(["git", "rev-parse", "HEAD"], cwd=Path(__file__).parent, capture_output=True, text=True, check=False)
    return git.stdout.strip() or None


def main() -> int:
    parser = argparse.ArgumentParser(
        "python -m jobs.benchmark",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        add_help=False,
    )
    parser.add_argument("name", choices=_BENCHMARKS)
    parser.add_argument("--json", metavar="FILE", help="write all figures to this file")
    if sys.argv[1:2] in (["-h"], ["--help"]):  # after a name, the benchmark itself shows its options
        parser.print_help()
        return 0
    arguments, options = parser.parse_known_args()
    with atomic_file(arguments.json, "--json") if arguments.json else contextlib.nullcontext() as file:
        figures = getattr(importlib.import_module(f"jobs.benchmark.{arguments.name}"), arguments.name)(options)
        if file:
            machine = {"platform": platform.platform(), "cpus": os.cpu_count(), "versions": versions()}
            content = {"benchmark": arguments.name, "machine": machine, "commit": _commit(), **figures}
            file.write(json.dumps(content, indent=2).encode() + b"\n")
    return 0


if __name__ == "__main__":
    exit_on_user_error("benchmark", main)
