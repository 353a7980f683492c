"""Kill what a run is made of, at random moments, run it again until it ends, and look for rows that are not as they should be.

    python tests/faults/chaos.py --runs 40 --kills 3 --json benchmarks/faults.json

Runs are jobs in a Ray cluster of three nodes on this machine, over real abstracts. Each suffers one kind of fault, so many
times: the driver is killed, a task that reads, the actor that decodes, a node, or all of it is told to end. Exit status 1 if a
row was lost, came twice, or has another value than in an undisturbed run.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from nodes import Cluster, three_nodes  # noqa: E402
from stage import Command, commits, difference, write_store, written_again  # noqa: E402

from pipeline.config.types import SAMPLE  # noqa: E402

_TIMEOUT_S = 300


@dataclass
class Outcome:
    """What came of the runs that suffered one kind of fault."""

    runs: int = 0
    kills: int = 0
    commands: int = 0
    lost: int = 0
    doubled: int = 0
    other: int = 0
    windows_again: int = 0


def _kill_one(word: str) -> Callable[[Cluster, subprocess.Popen[str], random.Random], bool]:
    def kill(cluster: Cluster, _: subprocess.Popen[str], choice: random.Random) -> bool:
        """Of Ray's workers that do this; whether there was one."""
        if workers := cluster.workers(word):
            with contextlib.suppress(psutil.NoSuchProcess):
                choice.choice(workers).kill()
                return True
        return False

    return kill


def _kill_driver(_: Cluster, command: subprocess.Popen[str], __: random.Random) -> bool:
    command.kill()
    return True


def _end_all(cluster: Cluster, command: subprocess.Popen[str], _: random.Random) -> bool:
    for process in [psutil.Process(command.pid), *cluster.workers()]:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    return True


FAULTS: dict[str, Callable[[Cluster, subprocess.Popen[str], random.Random], bool]] = {
    "SIGKILL of the driver": _kill_driver,
    "SIGKILL of a task that reads": _kill_one("ReadWindows"),
    "SIGKILL of an actor": _kill_one("SummarizeWindow"),
    "SIGKILL of a task that writes": _kill_one("WriteWindow"),
    "SIGKILL of a node": lambda cluster, _, choice: cluster.kill_a_node(choice),
    "SIGTERM of all": _end_all,
}


def main() -> int:
    """Run it; 1 if a row is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=42)
    parser.add_argument("--kills", type=int, default=3, help="of each run")
    parser.add_argument("--rows", type=int, default=1000, help="documents of each run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    choice, outcomes = random.Random(options.seed), {name: Outcome() for name in FAULTS}
    texts = pq.read_table(SAMPLE / "documents")["text"].to_pylist()[: options.rows]
    texts[::50] = [None] * len(texts[::50])
    with tempfile.TemporaryDirectory() as name, three_nodes() as cluster:
        folder = Path(name)
        store = write_store(folder / "in", texts, 4)
        started = time.monotonic()
        _command(cluster, store, folder / "undisturbed").finish()
        seconds = time.monotonic() - started
        print(f"an undisturbed run of {len(texts):,} documents takes {seconds:.0f} s", flush=True)
        for number in range(options.runs):
            fault = list(FAULTS)[number % len(FAULTS)]
            output = folder / "out"
            told = _suffer(cluster, _command(cluster, store, output), fault, options.kills, seconds, choice, outcomes[fault])
            found = difference(output, folder / "undisturbed")
            outcome = outcomes[fault]
            outcome.runs += 1
            outcome.lost += found.lost
            outcome.doubled += found.doubled
            outcome.other += found.other
            print(f"run {number + 1}: {fault}: {found}" + ("" if found.is_none else f"\n{told}"), flush=True)
            shutil.rmtree(output)
            if options.json:
                _write(options, seconds, outcomes)
    table = Table("fault", "runs", "kills", "commands", "lost", "doubled", "other values", "committed windows done again")
    for name, outcome in outcomes.items():
        table.add_row(name, *(str(value) for value in outcome.__dict__.values()))
    Console(width=160).print(table)
    return int(any(outcome.lost or outcome.doubled or outcome.other for outcome in outcomes.values()))


def _write(options: argparse.Namespace, seconds: float, outcomes: dict[str, Outcome]) -> None:
    """The figures so far."""
    faults = {name: outcome.__dict__ for name, outcome in outcomes.items()}
    figures = {"options": vars(options), "seconds_undisturbed": seconds, "faults": faults}
    Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")


def _command(cluster: Cluster, store: Path, output: Path) -> Command:
    # A budget that is given: what memory is free after a kill decides nothing, not even the last bit of a score.
    resources = {"window_rows": 50, "actors": 2, "threads": 1, "token_budget": 16_384, "wait_s": 120}
    options = [f"--resources.{name}={value}" for name, value in resources.items()]
    return Command(store, output, options, list(cluster.environment.items()))


def _suffer(
    cluster: Cluster, command: Command, fault: str, kills: int, seconds: float, choice: random.Random, outcome: Outcome
) -> str:
    """Run the command, again and again, until the run has suffered so many faults and is published; what the last one said."""
    suffered, told = 0, ""
    while True:
        before = commits(command.output)
        process = command.start()
        outcome.commands += 1
        began = time.monotonic()
        moments = sorted(choice.uniform(0, seconds) for _ in range(kills - suffered))
        while process.poll() is None and time.monotonic() - began < _TIMEOUT_S:
            if moments and time.monotonic() - began >= moments[0] and FAULTS[fault](cluster, process, choice):
                moments.pop(0)
                suffered += 1
            time.sleep(0.1)
        process.kill()
        told = process.communicate()[0]
        outcome.windows_again += written_again(before)
        if list(command.output.glob("runs/*/_SUCCESS")):
            outcome.kills += suffered
            return told
        if suffered >= kills and process.returncode == 2:
            raise SystemExit(f"the run does not end: {told}")


if __name__ == "__main__":
    sys.exit(main())
