"""Kill what a run from S3 to S3 is made of, at random moments, over a network that fails at random, until it is published.

    python tests/faults/chaos_s3.py --kills 20 --json benchmarks/object_store.json

Each run suffers some kills, of the driver, of an actor that decodes or of a task that reads or writes, and is begun again with
the same command where that ended it; meanwhile so many of its requests fail. Then jobs.verify must say that its output is
whole, and each row must be that of an undisturbed run over local files. Exit status 1 if one was lost, came twice or is not.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import psutil
import pyarrow.parquet as pq
from pyarrow import fs

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[2])]

from gateway import Gateway, gateway  # noqa: E402
from proxy import Chance, proxy  # noqa: E402
from stage import Command, difference, write_store  # noqa: E402

from pipeline.config.types import SAMPLE  # noqa: E402
from pipeline.errors import EXIT_STOPPED  # noqa: E402

_VICTIMS = ("driver", "ReadWindows", "SummarizeWindow", "WriteWindow")
_TIMEOUT_S = 300
_LIST = """
import re, sys, time
from pathlib import Path
from pipeline.storage import place
# Not getrusage's, which of a new process has the memory of the one that started it.
peak = lambda: int(re.search(r"VmHWM:\\s*(\\d+)", Path("/proc/self/status").read_text())[1]) / 1024
root, before, began = place(sys.argv[1], "--input.path"), peak(), time.monotonic()
print(len(root.parquet_files(recursive=True)), round(time.monotonic() - began, 1), round(peak() - before, 1))
"""
_OPTIONS = ["--resources.window_rows=25", "--resources.actors=1", "--resources.token_budget=16384"]


def main() -> int:
    """Run it; 1 if a row is not as it should be."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20, help="of all runs together")
    parser.add_argument("--kills-of-a-run", type=int, default=5)
    parser.add_argument("--share", type=float, default=0.02, help="of the requests, that fail")
    parser.add_argument("--rows", type=int, default=1000, help="documents of each run")
    parser.add_argument("--keys", type=int, default=0, help="of a folder that is listed, before; its objects are made first")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="file to write the figures to")
    options = parser.parse_args()
    choice, kills, rows = random.Random(options.seed), Counter[str](), Counter[str](lost=0, doubled=0, other=0)
    texts = pq.read_table(SAMPLE / "documents")["text"].to_pylist()[: options.rows]
    texts[::50] = [None] * len(texts[::50])
    figures: dict[str, Any] = {
        "date": date.today().isoformat(),
        "commit": _told("git", "rev-parse", "HEAD"),
        "command": f"python tests/faults/chaos_s3.py {' '.join(sys.argv[1:])}",
        "server": _told("radosgw", "--version"),
        "documents_of_a_run": len(texts),
        "runs": 0,
        "commands": 0,
    }
    with tempfile.TemporaryDirectory() as name, gateway() as server, proxy(server.port) as network:
        folder = Path(name)
        os.environ.update(server.credentials | {"AWS_ENDPOINT_URL": network.endpoint})
        if options.keys:
            figures["listing"] = _listed(server, options.keys)
        store = write_store(folder / "in", texts, 4)
        began = time.monotonic()
        Command(store, folder / "undisturbed", _OPTIONS).finish()
        figures["seconds_undisturbed"] = seconds = round(time.monotonic() - began, 1)
        print(json.dumps(figures, indent=2), flush=True)
        network.choose = Chance(options.share, options.seed)
        while True:
            figures |= {
                "kills": dict(kills),
                "requests": dict(network.requests),
                "faults": {f"{kind}, {method}": times for (kind, method), times in sorted(network.faults.items())},
                "rows": dict(rows),
            }
            if options.json:
                Path(options.json).write_text(json.dumps(figures, indent=2) + "\n")
            if kills.total() >= options.kills:
                return int(any(rows.values()))
            bucket = f"chaos-{uuid.uuid4().hex[:12]}"
            server.filesystem().create_dir(bucket)
            fs.copy_files(str(store), f"{bucket}/in", fs.LocalFileSystem(), server.filesystem())
            command = Command(f"s3://{bucket}/in", f"s3://{bucket}/out", _OPTIONS)
            some = min(options.kills_of_a_run, options.kills - kills.total())
            figures["commands"] += _suffer(command, some, seconds, choice, kills)
            found = difference(_downloaded(server, bucket, folder / bucket), folder / "undisturbed")
            figures["runs"] += 1
            rows.update(lost=found.lost, doubled=found.doubled, other=found.other)
            print(f"run {figures['runs']}, {kills.total()} kills so far: {found}", flush=True)


def _told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def _suffer(command: Command, some: int, seconds: float, choice: random.Random, kills: Counter[str]) -> int:
    """Run the command, again and again, until the run has suffered so many kills and is published; how often it was run."""
    suffered = commands = 0
    while True:
        process, began = command.start(), time.monotonic()
        commands += 1
        moments = sorted(choice.uniform(0, seconds) for _ in range(some - suffered))
        victims = [choice.choice(_VICTIMS) for _ in moments]
        while process.poll() is None and time.monotonic() - began < _TIMEOUT_S:
            if moments and time.monotonic() - began >= moments[0] and _killed(process, victims[0]):
                kills[victims.pop(0)] += 1
                suffered += 1
                moments.pop(0)
            time.sleep(0.05)
        process.kill()
        told = process.communicate()[0]
        if process.returncode == 0:
            verify = [sys.executable, "-m", "jobs.verify", "--output.path", str(command.output)]
            done = subprocess.run(verify, capture_output=True, text=True)
            if done.returncode:
                raise SystemExit(f"jobs.verify: {done.stdout}{done.stderr}")
            return commands
        if process.returncode not in (-signal.SIGKILL, EXIT_STOPPED):
            raise SystemExit(f"the run does not end: {told}")


def _killed(driver: subprocess.Popen[str], whom: str) -> bool:
    """Whether there was such a process, which is dead now."""
    if whom == "driver":
        driver.kill()
        return True
    with contextlib.suppress(psutil.Error):
        for process in psutil.Process(driver.pid).children(recursive=True):
            with contextlib.suppress(psutil.Error):
                title = " ".join(process.cmdline())
                if title.startswith("ray::") and whom in title:
                    process.kill()
                    return True
    return False


def _listed(server: Gateway, keys: int) -> dict[str, float]:
    """What it takes a process of its own to find so many files, as the planning of a run does."""
    filesystem, bucket = server.filesystem(), f"keys-{uuid.uuid4().hex[:12]}"
    filesystem.create_dir(bucket)

    def put(number: int) -> None:
        with filesystem.open_output_stream(f"{bucket}/in/{number // 1000:04}/{number:07}.parquet") as file:
            file.write(b"x")

    with ThreadPoolExecutor(16) as pool:
        for _ in pool.map(put, range(keys)):
            pass
    environment = {**os.environ, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{server.port}"}
    command = [sys.executable, "-c", _LIST, f"s3://{bucket}/in"]
    found = subprocess.run(command, capture_output=True, text=True, env=environment, check=True).stdout.split()
    assert int(found[0]) == keys
    return {"keys": keys, "seconds": float(found[1]), "mib_more": float(found[2])}


def _downloaded(server: Gateway, bucket: str, folder: Path) -> Path:
    folder.mkdir()
    fs.copy_files(f"{bucket}/out", str(folder), server.filesystem(), fs.LocalFileSystem())
    return folder


if __name__ == "__main__":
    sys.exit(main())
