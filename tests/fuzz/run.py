"""Feed wrong input to whatever reads a stranger's bytes, and count what breaks.

    python tests/fuzz/run.py --inputs 1000000 --seconds 1800 --json benchmarks/fuzz.json
    python tests/fuzz/run.py --targets options,records --inputs 20000 --engine atheris

Each target (targets/*.py) runs in a process of its own, with an upper bound on its address space and on the time of an input.
An error that is no UserError, a death of the process, a hang, and memory without bound are faults: their input is kept in
corpus/<target>/, from where test_fuzz.py reads it again. The mutator's input ``n`` is the same on every machine; atheris, where
it is installed (pip install atheris), goes by the lines that an input reaches instead. Inputs that ran out of time or memory in
native code end the process, which goes on behind them.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import json
import mmap
import multiprocessing
import os
import resource
import signal
import subprocess
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path
from types import FrameType, ModuleType
from typing import Any

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: a process each computes next to nothing

HERE = Path(__file__).parent
CORPUS = HERE / "corpus"
SHARES = {
    "texts": 0.50, "records": 0.25, "options": 0.02, "bundle_config": 0.05, "bundle_weights": 0.04, "tokenizer_model": 0.04,
    "documents": 0.04, "tables": 0.02, "segments": 0.03, "checkpoint": 0.01,
}  # fmt: skip
"""Of all inputs; those that take longest get the fewest."""
MOST_BYTES = 6 * 2**30
"""Of address space beside what the process has once the target is loaded."""
HANG_S = 10.0
_INPUT_BYTES = 2**22
_STATE = 16  # bytes: number of the input that is being read, and its size


_NONE = b"\xff" * 8


class Hang(BaseException):
    """An input took too long."""


def target_of(name: str) -> ModuleType:
    """The module of a target."""
    sys.path[:0] = [str(HERE)] if str(HERE) not in sys.path else []
    return importlib.import_module(f"targets.{name}")


def _on_alarm(_: int, __: FrameType | None) -> None:
    raise Hang


def fault_of(target: Any, data: bytes) -> str | None:
    """What is wrong with how a target takes an input; None if nothing is."""
    signal.setitimer(signal.ITIMER_REAL, HANG_S)
    try:
        target(data)
    except Hang:
        return "hang"
    except MemoryError:
        return "memory"
    except Exception:
        return "crash: " + traceback.format_exc(limit=-4)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
    return None


def keep(name: str, data: bytes) -> Path:
    """Add an input to the corpus."""
    path = CORPUS / name / hashlib.sha256(data).hexdigest()[:16]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return path


def _bounded() -> None:
    signal.signal(signal.SIGALRM, _on_alarm)
    status = Path("/proc/self/statm")
    if status.exists():
        now = int(status.read_text().split()[0]) * mmap.PAGESIZE
        resource.setrlimit(resource.RLIMIT_AS, (now + MOST_BYTES, now + MOST_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _child(name: str, start: int, end: int, seconds: float, state: mmap.mmap, pipe: Any) -> None:
    """Inputs ``start`` to ``end`` of the mutator; what is being read is in ``state``, whose process may die of it."""
    from mutator import mutated

    module = target_of(name)
    seeds = module.seeds()
    for seed in seeds:
        module.target(seed)
    _bounded()
    before, until = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.monotonic() + seconds
    for number in range(start, end):
        data = mutated(seeds, number)[:_INPUT_BYTES]
        state[:_STATE] = number.to_bytes(8, "little") + len(data).to_bytes(8, "little")
        state[_STATE : _STATE + len(data)] = data
        if fault := fault_of(module.target, data):
            pipe.send((number, fault))
        if number % 64 == 0 and time.monotonic() > until:
            end = number + 1
            break
    pipe.send((end, None, before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss))


def fuzz(name: str, start: int, inputs: int, seconds: float) -> dict[str, Any]:
    """Run one target."""
    began, end = time.monotonic(), start + inputs
    found: dict[str, Any] = {"inputs": 0, "crashes": 0, "hangs": 0, "memory": 0, "deaths": 0, "peak_mib": 0, "grown_mib": 0}
    context = multiprocessing.get_context("fork" if sys.platform == "linux" else "spawn")
    at = start
    while at < end and time.monotonic() - began < seconds:
        state = mmap.mmap(-1, _STATE + _INPUT_BYTES)
        state[:8] = _NONE
        receive, send = context.Pipe(duplex=False)
        left = seconds - (time.monotonic() - began)
        child = context.Process(target=_child, args=(name, at, end, left, state, send))
        child.start()
        send.close()
        seen, seen_at, last = -1, time.monotonic(), None
        while child.is_alive() or receive.poll():
            if receive.poll(0.2):
                try:
                    said = receive.recv()
                except EOFError:
                    break
                if said[1] is None:
                    last = said
                else:
                    _note(found, name, *said)
                continue
            number = int.from_bytes(state[:8], "little")
            if number != seen:
                seen, seen_at = number, time.monotonic()
            elif last is None and time.monotonic() - seen_at > 3 * HANG_S + 30:  # in native code, which no alarm reaches
                child.kill()
                found["hangs"] += 1
                seen_at = time.monotonic() + 1e9
        child.join()
        if last is not None:
            at, peak, before = last[0], last[3] // 1024, last[2] // 1024
            found["peak_mib"], found["grown_mib"] = max(found["peak_mib"], peak), max(found["grown_mib"], peak - before)
            break
        if state[:8] == _NONE:
            raise RuntimeError(f"{name} does not begin: exit status {child.exitcode}")
        number = int.from_bytes(state[:8], "little")
        data = bytes(state[_STATE : _STATE + int.from_bytes(state[8:16], "little")])
        print(f"{name}: input {number} ended the process with {child.exitcode}: {keep(name, data)}", file=sys.stderr)
        found["deaths"] += 1
        at = max(at, number) + 1
    found["inputs"], found["seconds"] = min(at, end) - start, round(time.monotonic() - began, 1)
    return found


def _note(found: dict[str, Any], name: str, number: int, fault: str) -> None:
    from mutator import mutated

    kind = {"hang": "hangs", "memory": "memory"}.get(fault, "crashes")
    found[kind] += 1
    if found[kind] <= 5:  # of the same kind mostly
        print(
            f"{name}: input {number}: {fault}\n  kept: {keep(name, mutated(target_of(name).seeds(), number))}", file=sys.stderr
        )


def fuzz_with_atheris(name: str, inputs: int, seconds: float) -> dict[str, Any]:
    """Run one target in a process of atheris, which keeps what breaks it in the corpus."""
    began = time.monotonic()
    kept = CORPUS / name
    kept.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, __file__, "--atheris", name, f"-runs={inputs}", f"-max_total_time={int(seconds)}"]
    command += [f"-timeout={int(HANG_S)}", "-rss_limit_mb=4096", f"-artifact_prefix={kept}/", "-max_len=8192"]
    ran = subprocess.run(command, capture_output=True, text=True, check=False)
    done = [line for line in ran.stderr.splitlines() if line.startswith("Done ")]
    if ran.returncode:
        print(ran.stderr[-3000:], file=sys.stderr)
    number = int(done[-1].split()[1]) if done else 0
    return {"inputs": number, "crashes": int(ran.returncode != 0), "seconds": round(time.monotonic() - began, 1)}


def _atheris(name: str, arguments: list[str]) -> None:
    import tempfile

    import atheris

    with atheris.instrument_imports(include=["pipeline"]):
        module = target_of(name)
    folder = tempfile.mkdtemp()
    for number, seed in enumerate(module.seeds()):
        Path(folder, str(number)).write_bytes(seed)
    atheris.Setup([name, *arguments, folder], module.target)
    atheris.Fuzz()


def _replay() -> int:
    """Read the whole corpus again."""
    broken = 0
    for path in sorted(path for path in CORPUS.glob("*/*") if path.is_file()):
        module = target_of(path.parent.name)
        module.seeds()
        signal.signal(signal.SIGALRM, _on_alarm)
        fault = fault_of(module.target, path.read_bytes())
        print(f"{path}: {fault or 'sound'}", file=sys.stderr)
        broken += fault is not None
    return int(broken > 0)


def main() -> int:
    """Run the targets, two at a time where there are two CPUs; status 1 if anything broke."""
    if sys.argv[1:2] == ["--atheris"]:
        _atheris(sys.argv[2], sys.argv[3:])
        return 0
    if sys.argv[1:2] == ["--replay"]:
        return _replay()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--inputs", type=int, default=1_000_000, help="of all targets together")
    parser.add_argument("--seconds", type=float, default=3600.0, help="at most, for each target")
    parser.add_argument("--targets", default=",".join(SHARES), help="by name")
    parser.add_argument("--start", type=int, default=0, help="number of the mutator's first input: other numbers, other inputs")
    parser.add_argument("--engine", choices=("mutator", "atheris"), default="mutator")
    parser.add_argument("--processes", type=int, default=min(2, os.cpu_count() or 1))
    parser.add_argument("--json", help="file to add the figures to")
    options = parser.parse_args()
    names = options.targets.split(",")
    whole = sum(SHARES[name] for name in names)

    def run(name: str) -> tuple[str, dict[str, Any]]:
        inputs = max(1, round(options.inputs * SHARES[name] / whole))
        if options.engine == "atheris":
            figures = fuzz_with_atheris(name, inputs, options.seconds)
        else:
            figures = fuzz(name, options.start, inputs, options.seconds)
        print(f"{name}: {figures}", flush=True)
        return name, figures

    for name in names if options.engine == "mutator" else ():  # once, for all processes that are forked from this one
        target_of(name)
    with ThreadPoolExecutor(options.processes) as pool:
        figures = dict(pool.map(run, sorted(names, key=lambda name: SHARES[name])))
    if options.json:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=HERE, capture_output=True, text=True, check=False)
        path = Path(options.json)
        before = json.loads(path.read_text())["runs"] if path.exists() else []
        said = {"date": datetime.now(UTC).isoformat(timespec="seconds"), "commit": commit.stdout.strip()}
        said |= {"command": "python tests/fuzz/run.py " + " ".join(sys.argv[1:]), "engine": options.engine}
        runs = [*before, {**said, "inputs": sum(of["inputs"] for of in figures.values()), "targets": figures}]
        path.write_text(json.dumps({"inputs": sum(run["inputs"] for run in runs), "runs": runs}, indent=2) + "\n")
    broken = sum(of.get(kind, 0) for of in figures.values() for kind in ("crashes", "hangs", "memory", "deaths"))
    return 1 if broken else 0


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    sys.exit(main())
