"""Feed invalid input to everything that reads files of unknown origin, and count what breaks.

    python tests/fuzz/run.py --inputs 1000000 --seconds 1800 --json benchmarks/fuzz.json
    python tests/fuzz/run.py --targets options,records --inputs 20000 --engine atheris

Each target (targets/*.py) runs in a process of its own, with limits on its address space and on the time per input. Faults are
exceptions other than UserError, dead processes, hangs and running out of memory. Their inputs are saved in corpus/<target>/
and replayed by test_fuzz.py. If native code hangs or uses too much memory, the process dies, and a new one continues after that
input. An input that takes too long is tried again in a new process, and is a hang if it takes too long there as well; else the
machine or an earlier input was to blame, and the input counts as slow. Input number n of the mutator is the same on every
machine. The engine atheris (pip install atheris) searches by code coverage instead.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

import scratch  # noqa: F401  # creates the folder that the processes of the targets share
from mutator import mutate

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: each process computes very little

CORPUS = Path(__file__).parent / "corpus"
SHARES = {
    "texts": 0.50, "records": 0.25, "options": 0.02, "bundle_config": 0.05, "bundle_weights": 0.04, "tokenizer_model": 0.04,
    "documents": 0.04, "tables": 0.02, "segments": 0.03, "checkpoint": 0.01,
}  # fmt: skip
"""Shares of all inputs. Slow targets get few."""

MAX_ADDED_BYTES = 6 * 2**30
"""Address space that a process may use in addition to that of a loaded target."""

HANG_S = 10.0
HANG = "hang: "
"""Start of the description of a hang."""

_MAX_SHOWN = 5  # per target and type of fault, because most are alike
_MAX_INPUT_BYTES = 2**22
_HEADER = 16  # bytes of the shared state before the input: its number and its size
_NO_INPUT = b"\xff" * 8

Figures = dict[str, Any]


class Hang(BaseException):
    """An input took too long."""


def load_target(name: str) -> ModuleType:
    """Import a target by its name."""
    return importlib.import_module(f"targets.{name}")


def _raise_hang(_: int, __: FrameType | None) -> None:
    raise Hang


def find_fault(target: Any, data: bytes) -> str | None:
    """Run a target on an input and return a description of the fault; None if there is none."""
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        target(data)
    except Hang:
        return HANG + traceback.format_exc(limit=-8)
    except MemoryError:
        return "memory"
    except Exception:
        return "crash: " + traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def save_input(name: str, data: bytes) -> Path:
    """Add an input to the corpus."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _limit_process() -> None:
    signal.signal(signal.SIGALRM, _raise_hang)
    status = Path("/proc/self/statm")
    if status.exists():
        limit = int(status.read_text().split()[0]) * resource.getpagesize() + MAX_ADDED_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _run_child(name: str, inputs: range, seconds: float, memory: Any, pipe: Any) -> None:
    """Run a target on these inputs of the mutator, as a process that may die. It ends after a hang, which may leave locks held.

    Args:
        memory: holds the current input.
        pipe: receives (number, fault) for each fault; at the end (next number, None, peak before, peak after), in KiB.
    """
    target, state = load_target(name), memoryview(memory).cast("B")
    seeds = target.seeds()
    for seed in seeds:
        target.target(seed)
    _limit_process()
    peak_before, deadline = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + seconds
    end = inputs.stop
    for number in inputs:
        data = mutate(seeds, number)[:_MAX_INPUT_BYTES]
        state[:_HEADER] = number.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        state[_HEADER : _HEADER + len(data)] = data
        if fault := find_fault(target.target, data):
            pipe.send((number, fault))
        hung = fault is not None and fault.startswith(HANG)
        if hung or (number % 64 == 0 and time.monotonic() > deadline):
            end = number + 1
            break
    pipe.send((end, None, peak_before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def fuzz(name: str, start: int, inputs: int, seconds: float) -> Figures:
    """Run a target with the mutator, in a new process after each one that dies or hangs."""
    started, end, position = time.monotonic(), start + inputs, start
    figures: Figures = {
        "inputs": 0, "crashes": 0, "hangs": 0, "memory": 0, "deaths": 0, "slow": 0, "peak_mib": 0, "grown_mib": 0,
    }  # fmt: skip
    while position < end and (remaining_s := seconds - (time.monotonic() - started)) > 0:
        position, hang = _run_process(name, range(position, end), remaining_s, figures)
        if hang is None:
            continue
        _, again = _run_process(name, range(position - 1, position), seconds, figures)
        if again is None:
            figures["slow"] += 1
            print(f"{name}: input {position - 1} took {HANG_S:.0f} s, but not when tried again: {hang}", file=sys.stderr)
        else:
            _count_fault(figures, name, position - 1, again)
    figures["inputs"], figures["seconds"] = min(position, end) - start, round(time.monotonic() - started, 1)
    return figures


def _run_process(name: str, inputs: range, seconds: float, figures: Figures) -> tuple[int, str | None]:
    """Run a target on these inputs in a new process, and count its faults.

    Returns:
        The number of the next input, and where the input before it hung; None if it did not.
    """
    # A forked process would inherit the threads' locks of PyTorch and Arrow, but not their threads.
    context = multiprocessing.get_context("spawn")
    memory = context.RawArray("B", _HEADER + _MAX_INPUT_BYTES)
    state = memoryview(memory).cast("B")
    state[:8] = _NO_INPUT
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=_run_child, args=(name, inputs, seconds, memory, sender))
    child.start()
    sender.close()
    result, hang = _watch_child(name, child, receiver, state, figures)
    child.join()
    if result is not None:
        position, _, peak_before, peak = result
        figures["peak_mib"], figures["grown_mib"] = peak // 1024, (peak - peak_before) // 1024
        return position, hang
    if state[:8] == _NO_INPUT:
        raise RuntimeError(f"{name} does not start: exit status {child.exitcode}")
    number = int.from_bytes(state[:8], "little")
    if hang is None:
        data = bytes(state[_HEADER : _HEADER + int.from_bytes(state[8:_HEADER], "little")])
        path = save_input(name, data)
        print(f"{name}: input {number} ended the process with {child.exitcode}: {path}", file=sys.stderr)
        figures["deaths"] += 1
    return number + 1, hang


def _watch_child(name: str, child: Any, receiver: Any, state: memoryview, figures: Figures) -> tuple[Any, str | None]:
    """Count a child's faults until it ends, and kill it if it hangs.

    Returns:
        Its last message; None if it died before that. Then where it hung; None if it did not.
    """
    current, since = -1, time.monotonic()
    result = hang = None
    while child.is_alive() or receiver.poll():
        if receiver.poll(0.2):
            try:
                message = receiver.recv()
            except EOFError:
                break
            if message[1] is None:
                result = message
            elif message[1].startswith(HANG):
                hang = message[1]
            else:
                _count_fault(figures, name, *message)
            continue
        number = int.from_bytes(state[:8], "little")
        if number != current:
            current, since = number, time.monotonic()
        elif result is None and time.monotonic() - since > 3 * HANG_S + 30:
            child.kill()
            hang = HANG + "in native code, which the alarm cannot interrupt"
            since = float("inf")
    return result, hang


def _count_fault(figures: Figures, name: str, number: int, fault: str) -> None:
    figure = "hangs" if fault.startswith(HANG) else "memory" if fault == "memory" else "crashes"
    figures[figure] += 1
    if figures[figure] <= _MAX_SHOWN:
        path = save_input(name, mutate(load_target(name).seeds(), number))
        print(f"{name}: input {number}: {fault}\n  saved: {path}", file=sys.stderr)


def fuzz_with_atheris(name: str, inputs: int, seconds: float) -> Figures:
    """Run a target with atheris, which saves inputs that break it in the corpus."""
    started = time.monotonic()
    corpus = CORPUS / name
    corpus.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--atheris", name, f"-runs={inputs}", f"-max_total_time={int(seconds)}"]
    command += [f"-timeout={int(HANG_S)}", "-rss_limit_mb=4096", f"-artifact_prefix={corpus}/", "-max_len=8192"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        print(result.stderr[-3000:], file=sys.stderr)
    done = [line for line in result.stderr.splitlines() if line.startswith("Done ")]
    runs = int(done[-1].split()[1]) if done else 0
    return {"inputs": runs, "crashes": int(result.returncode != 0), "seconds": round(time.monotonic() - started, 1)}


def _run_atheris(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["pipeline"]):
        target = load_target(name)
    folder = tempfile.mkdtemp()
    for number, seed in enumerate(target.seeds()):
        Path(folder, str(number)).write_bytes(seed)
    atheris.Setup([name, *arguments, folder], target.target)
    atheris.Fuzz()


def _replay_corpus() -> int:
    """Run each target on the inputs that once broke it, and return the exit status."""
    signal.signal(signal.SIGALRM, _raise_hang)
    faults = 0
    for path in sorted(path for path in CORPUS.glob("*/*") if path.is_file()):
        target = load_target(path.parent.name)
        target.seeds()
        fault = find_fault(target.target, path.read_bytes())
        print(f"{path}: {fault or 'ok'}", file=sys.stderr)
        faults += fault is not None
    return int(faults > 0)


def _append_run(path: Path, engine: str, figures: dict[str, Figures]) -> None:
    """Add the figures of a run to a JSON file."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=CORPUS.parent, capture_output=True, text=True, check=False)
    run = {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": commit.stdout.strip(),
        "command": "python tests/fuzz/run.py " + " ".join(sys.argv[1:]),
        "engine": engine,
        "inputs": sum(target["inputs"] for target in figures.values()),
        "targets": figures,
    }
    runs = [*(json.loads(path.read_text())["runs"] if path.exists() else []), run]
    path.write_text(json.dumps({"inputs": sum(run["inputs"] for run in runs), "runs": runs}, indent=2) + "\n")


def main() -> int:
    """Run the targets in parallel, and return 1 if anything broke."""
    if sys.argv[1:2] == ["--atheris"]:
        _run_atheris(sys.argv[2], sys.argv[3:])
        return 0
    if sys.argv[1:2] == ["--replay"]:
        return _replay_corpus()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="inputs of all targets together")
    parser.add_argument("--seconds", type=float, default=3600.0, help="time limit of each target")
    parser.add_argument("--targets", default=",".join(SHARES), help="names, separated by commas")
    parser.add_argument("--start", type=int, default=0, help="number of the mutator's first input")
    parser.add_argument("--engine", choices=("mutator", "atheris"), default="mutator")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", help="file to add the figures to")
    options = parser.parse_args()
    names = options.targets.split(",")
    total_share = sum(SHARES[name] for name in names)

    def run(name: str) -> tuple[str, Figures]:
        inputs = max(1, round(options.inputs * SHARES[name] / total_share))
        if options.engine == "atheris":
            figures = fuzz_with_atheris(name, inputs, options.seconds)
        else:
            figures = fuzz(name, options.start, inputs, options.seconds)
        print(f"{name}: {figures}", flush=True)
        return name, figures

    with ThreadPoolExecutor(options.processes) as pool:
        figures = dict(pool.map(run, sorted(names, key=lambda name: SHARES[name])))
    if options.json:
        _append_run(Path(options.json), options.engine, figures)
    faults = sum(target.get(figure, 0) for target in figures.values() for figure in ("crashes", "hangs", "memory", "deaths"))
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
