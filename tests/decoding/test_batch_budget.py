"""Batches by the memory that is free, and what does not fit is done all the same."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from random_models import random_model, rows_of

from pipeline.config.model import DecodingConfig
from pipeline.decoding import decode
from pipeline.decoding.backends import Backend, CpuBackend, TorchBackend
from pipeline.decoding.batch_budget import BatchBudget, free_bytes, is_out_of_memory
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.errors import UserError
from pipeline.model.malloc import KEEP_FREED_MEMORY

CPU = torch.device("cpu")
VOCABULARY = 300
OPTIONS = DecodingConfig(max_source_tokens=20_000, max_target_tokens=6)


def an_engine(arithmetic: Backend | None = None) -> Engine:
    shape = {"cell": "lstm", "attention": "general", "bidirectional": True, "copy": True, "hidden_size": 128}
    return Engine(random_model(shape, VOCABULARY), arithmetic or CpuBackend(torch.float32))


def from_one_to_20_000_tokens() -> list[list[int]]:
    rng = np.random.default_rng(1)
    lengths = [1, 2, *np.geomspace(3, 2_000, 20).astype(int), *[20_000] * 2]
    return [rng.integers(4, VOCABULARY, length).tolist() for length in lengths]


def decode_with_little_memory(megabytes: int) -> None:
    """Run in a process of its own: decode with no more than that of memory beyond what the process has; compare."""
    import resource

    rows = rows_of(from_one_to_20_000_tokens())
    engine = an_engine()
    torch.set_num_threads(1)
    expected = decode_window(engine, rows.values, rows.offsets, OPTIONS, BatchBudget(20_000))
    bound = psutil.Process().memory_info().vms + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (bound, bound))
    assert free_bytes(CPU) <= megabytes * 2**20
    budget = BatchBudget(1_000_000_000)  # what the encoder writes of the two longest alone takes 40 MiB, and as much again
    found = decode_window(engine, rows.values, rows.offsets, OPTIONS, budget)
    assert found.values.tolist() == expected.values.tolist()
    assert found.offsets.tolist() == expected.offsets.tolist()
    assert budget.tokens < 1_000_000_000
    print("tokens of a batch:", budget.tokens)


def test_with_little_memory_every_source_is_decoded() -> None:
    here = Path(__file__).parent
    code = f"import sys; sys.path[:0] = [{str(here)!r}]; import test_batch_budget; test_batch_budget.decode_with_little_memory(60)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert "tokens of a batch: " in done.stdout
    assert "found no room in memory" in done.stderr


@pytest.mark.parametrize("kind", ["cpu", "numpy", "cublas", "cudnn", "cuda"])
def test_what_finds_no_room_is_halved_and_in_the_end_alone(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    search, sizes = decode.search, list[tuple[int, int]]()
    errors: dict[str, Callable[[], Exception]] = {
        "cpu": lambda: RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 5 bytes"),
        "numpy": MemoryError,
        "cublas": lambda: RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        "cudnn": lambda: RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        "cuda": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    }

    def with_room_for_100_tokens(engine: Engine, source: torch.Tensor, *rest: object) -> object:
        sizes.append(tuple(source.shape))
        if source.numel() > 100:
            raise errors[kind]()
        return search(engine, source, *rest)

    engine, options = an_engine(), OPTIONS.model_copy(update={"max_source_tokens": 100})
    rows = rows_of([[5] * length for length in (1, 60, 3, 50, 40, 7, 100, 2, 9)])
    expected = decode_window(engine, rows.values, rows.offsets, options, BatchBudget(1))
    monkeypatch.setattr(decode, "search", with_room_for_100_tokens)
    budget = BatchBudget(600)
    found = decode_window(engine, rows.values, rows.offsets, options, budget)
    assert found.values.tolist() == expected.values.tolist()
    assert max(rows * width for rows, width in sizes) > 100 >= budget.tokens
    sizes.clear()
    decode_window(engine, rows.values, rows.offsets, options, budget)
    assert max(rows * width for rows, width in sizes) <= 100  # what did not fit is not tried again

    too_long = rows_of([[5] * 100, [5] * 101, [5]])
    with pytest.raises(UserError, match=r"source of 101 tokens does not find room.*set --decode.max_source_tokens"):
        decode_window(engine, too_long.values, too_long.offsets, OPTIONS, budget)


def test_where_attention_is_none_rows_and_not_sources_take_the_memory() -> None:
    shape = {"attention": "none", "copy": False, "hidden_size": 256}
    engine = Engine(random_model(shape, 8000), CpuBackend(torch.float32))
    budget = BatchBudget.by_memory(engine, OPTIONS.model_copy(update={"max_source_tokens": 128}), share=1.0, threads=1)
    assert 200 < budget.tokens / (128 + budget.row_tokens) < 300  # rows of a batch


def test_a_control_group_bounds_what_is_free(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unbound = free_bytes(CPU)
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "sys/fs/cgroup/jobs/memory.max": f"{unbound // 2}\n",
        "sys/fs/cgroup/jobs/memory.current": f"{unbound // 4}\n",
        "sys/fs/cgroup/jobs/memory.stat": f"anon 5\ninactive_file {unbound // 8}\n",
        "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("pipeline.decoding.batch_budget.Path", lambda *parts: tmp_path / "/".join(parts).lstrip("/"))
    assert free_bytes(CPU) == pytest.approx(unbound * 3 / 8, rel=0.01)


def test_numbers_that_are_none_are_not_taken_for_summaries() -> None:
    rows = rows_of([[5, 6], [7]])
    model = random_model({"hidden_size": 16}, VOCABULARY)
    with torch.no_grad():
        model.decoder.output.bias[7] = float("nan")
    engine = Engine(model, CpuBackend(torch.float32))
    with pytest.raises(UserError, match=r"no number for 2 of 2 sources; set --resources\.precision"):
        decode_window(engine, rows.values, rows.offsets, OPTIONS, BatchBudget(100))


def test_other_errors_are_not_taken_for_want_of_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(decode, "search", fail)
    rows = rows_of([[5], [6]])
    with pytest.raises(RuntimeError, match="size mismatch"):
        decode_window(an_engine(), rows.values, rows.offsets, OPTIONS, BatchBudget(10))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize("arithmetic", [CpuBackend(torch.float32), TorchBackend(CPU)], ids=["compiled", "plain"])
def test_less_memory_or_a_wider_beam_is_a_smaller_budget(arithmetic: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = an_engine(arithmetic)

    def tokens(free: float, beam_size: int = 1, threads: int = 1) -> int:
        monkeypatch.setattr("pipeline.decoding.batch_budget.free_bytes", lambda _: int(free))
        options = OPTIONS.model_copy(update={"beam_size": beam_size})
        return BatchBudget.by_memory(engine, options, share=1.0, threads=threads).tokens

    position, row = engine.footprint(OPTIONS)
    assert tokens(1e12) == int(32_768 * (1 + -(-row // position) / OPTIONS.max_source_tokens))
    assert 1_000 < tokens(50e6) < 32_768
    assert tokens(50e6, threads=2) == pytest.approx(tokens(50e6) / 2, abs=1)
    assert tokens(50e6, beam_size=8) < tokens(50e6)
    assert tokens(0) == 1


@pytest.mark.parametrize(("attention", "layers"), [("none", 1), ("additive", 2)])
def test_a_batch_takes_no_more_than_its_footprint(attention: str, layers: int) -> None:
    code = f"""
import gc, sys, threading
sys.path[:0] = [{str(Path(__file__).parent)!r}]
from test_batch_budget import *
shape = {{"attention": {attention!r}, "copy": False, "layers": {layers}, "hidden_size": 256, "embedding_size": 64}}
engine = Engine(random_model(shape, 4000), Compiled(torch.float32))
process, peak, done = psutil.Process(), 0, threading.Event()
def decode(rows, width):
    sources = rows_of([[5] * width] * rows)
    options = OPTIONS.model_copy(update={{"min_target_tokens": 3, "max_target_tokens": 3}})
    decode_window(engine, sources.values, sources.offsets, options, Budget(10**9))
def watch():
    global peak
    while not done.wait(0.001):
        peak = max(peak, process.memory_info().rss)
decode(2, 2)
before = process.memory_info().rss
threading.Thread(target=watch, daemon=True).start()
decode(300, 150)
done.set()
position, row = engine.footprint(OPTIONS)
print((peak - before) / (300 * 150 * position + 300 * row))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert 0.2 < float(done.stdout) < 1.0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="another C library keeps its memory in its own way")
def test_memory_that_is_kept_is_not_cleared_again() -> None:
    code = """
import resource, threading, torch
def steps():
    for _ in range(10):
        torch.ones(10_000_000) + torch.ones(10_000_000)
steps_in_a_thread = threading.Thread(target=steps)
steps_in_a_thread.start()
steps_in_a_thread.join()
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt)
"""

    def page_faults(environment: dict[str, str]) -> int:
        ran = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **environment}, capture_output=True, text=True, check=True
        )
        return int(ran.stdout)

    assert page_faults({}) > page_faults(KEEP_FREED_MEMORY) + 100_000
