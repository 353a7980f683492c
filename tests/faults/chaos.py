"""Kill processes of runs at random moments, repeat each run until it finishes, and look for wrong rows.

    python tests/faults/chaos.py --runs 40 --kills 3 --json benchmarks/faults.json

The runs are jobs on a Ray cluster of three nodes on this machine, over real abstracts. Each run suffers one type of fault
several times: the driver, a read task, a decoding actor, a write task or a node is killed, or all processes are terminated.
Exit status 1 if a row is missing, duplicate, or differs from that of an uninterrupted run.
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
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
from rich.console import Console
from rich.table import Table

sys.path.append(str(Path(__file__).parents[1] / "helpers"))

from ray_cluster import RayCluster, three_nodes
from summarize_command import (
    SummarizeCommand,
    compare_outputs,
    ledger_segments,
    rewritten,
    run_ids,
    write_documents,
)

from pipeline.config.types import SAMPLE
from pipeline.errors import EXIT_USER_ERROR

_TIMEOUT_S = 300

CauseFault = Callable[[RayCluster, subprocess.Popen[str], random.Random], bool]
"""Causes a fault in a cluster and the run's driver. Returns False if there is no such process at the moment."""


@dataclass
class Outcome:
    """Totals of the runs with one type of fault."""

    runs: int = 0
    kills: int = 0
    commands: int = 0
    missing: int = 0
    duplicate: int = 0
    changed: int = 0
    rewritten_windows: int = 0


def _kill_worker(title: str) -> CauseFault:
    def kill(cluster: RayCluster, _: subprocess.Popen[str], rng: random.Random) -> bool:
        if workers := cluster.workers(title):
            with contextlib.suppress(psutil.NoSuchProcess):
                rng.choice(workers).kill()
                return True
        return False

    return kill


def _kill_driver(_: RayCluster, driver: subprocess.Popen[str], __: random.Random) -> bool:
    driver.kill()
    return True


def _kill_node(cluster: RayCluster, _: subprocess.Popen[str], rng: random.Random) -> bool:
    cluster.replace_node(rng)
    return True


def _terminate_all(cluster: RayCluster, driver: subprocess.Popen[str], _: random.Random) -> bool:
    for process in [psutil.Process(driver.pid), *cluster.workers()]:
        with contextlib.suppress(psutil.Error):
            process.terminate()
    return True


FAULTS: dict[str, CauseFault] = {
    "SIGKILL of the driver": _kill_driver,
    "SIGKILL of a read task": _kill_worker("ReadWindows"),
    "SIGKILL of an actor": _kill_worker("SummarizeWindow"),
    "SIGKILL of a write task": _kill_worker("WriteWindow"),
    "SIGKILL of a node": _kill_node,
    "SIGTERM of all processes": _terminate_all,
}


def main() -> int:
    """Run the experiment and return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=42)
    parser.add_argument("--kills", type=int, default=3, help="kills per run")
    parser.add_argument("--rows", type=int, default=1000, help="documents per run")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    rng, outcomes = random.Random(options.seed), {name: Outcome() for name in FAULTS}
    texts = pq.read_table(SAMPLE / "documents")["text"].to_pylist()[: options.rows]
    texts[::50] = [None] * len(texts[::50])
    with tempfile.TemporaryDirectory() as name, three_nodes() as cluster:
        folder = Path(name)
        documents = write_documents(folder / "in", texts, 4)
        started = time.monotonic()
        _command(cluster, documents, folder / "uninterrupted").finish()
        uninterrupted_s = time.monotonic() - started
        print(f"an uninterrupted run of {len(texts):,} documents takes {uninterrupted_s:.0f} s", flush=True)
        for number in range(options.runs):
            fault = list(FAULTS)[number % len(FAULTS)]
            output, outcome = folder / "out", outcomes[fault]
            log = _disturb(
                _command(cluster, documents, output),
                lambda driver, fault=fault: FAULTS[fault](cluster, driver, rng),
                lambda count: sorted(rng.uniform(0, uninterrupted_s) for _ in range(count)),
                options.kills,
                outcome,
            )
            difference = compare_outputs(output, folder / "uninterrupted")
            outcome.runs += 1
            outcome.missing += difference.missing
            outcome.duplicate += difference.duplicate
            outcome.changed += difference.changed
            print(f"run {number + 1}: {fault}: {difference}" + ("" if difference.is_none else f"\n{log}"), flush=True)
            shutil.rmtree(output)
            if options.json:
                faults = {name: asdict(outcome) for name, outcome in outcomes.items()}
                figures = {"options": vars(options), "seconds_uninterrupted": uninterrupted_s, "faults": faults}
                Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
    table = Table("fault", "runs", "kills", "commands", "missing", "duplicate", "changed", "committed windows repeated")
    for name, outcome in outcomes.items():
        table.add_row(name, *(str(value) for value in asdict(outcome).values()))
    Console(width=160).print(table)
    return int(any(outcome.missing or outcome.duplicate or outcome.changed for outcome in outcomes.values()))


def _command(cluster: RayCluster, documents: Path, output: Path) -> SummarizeCommand:
    # A fixed token budget: otherwise it depends on the free memory, and the last bit of a score may depend on it.
    resources = {"window_rows": 50, "actors": 2, "threads": 1, "token_budget": 16_384, "wait_s": 120}
    options = [f"--resources.{name}={value}" for name, value in resources.items()]
    return SummarizeCommand(documents, output, options, list(cluster.environment.items()))


def _disturb(
    command: SummarizeCommand,
    cause_fault: Callable[[subprocess.Popen[str]], bool],
    draw_times: Callable[[int], list[float]],
    kills: int,
    outcome: Outcome,
) -> str:
    """Repeat the command until its run has finished, causing faults, and return what the last command printed.

    Args:
        draw_times: returns the times of a number of faults, in seconds after the start of a command.
        kills: number of faults.
        outcome: totals, which are updated.
    """
    done = 0
    while True:
        segments = ledger_segments(command.output)
        process = command.start()
        outcome.commands += 1
        started = time.monotonic()
        times = draw_times(kills - done)
        while process.poll() is None and time.monotonic() - started < _TIMEOUT_S:
            if times and time.monotonic() - started >= times[0] and cause_fault(process):
                times.pop(0)
                done += 1
            time.sleep(0.1)
        process.kill()
        log = process.communicate()[0]
        outcome.rewritten_windows += rewritten(segments)
        if run_ids(command.output):
            outcome.kills += done
            return log
        if done >= kills and process.returncode == EXIT_USER_ERROR:
            raise SystemExit(f"the run does not finish: {log}")


if __name__ == "__main__":
    sys.exit(main())
