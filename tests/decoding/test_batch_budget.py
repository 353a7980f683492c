"""Batches fit the free memory, and a batch that runs out of memory is decoded in smaller ones."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from random_models import random_model, to_rows

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


def new_engine(backend: Backend | None = None) -> Engine:
    shape = {"cell": "lstm", "attention": "general", "bidirectional": True, "copy": True, "hidden_size": 128}
    return Engine(random_model(shape, VOCABULARY), backend or CpuBackend(torch.float32))


def run_python(code: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Run code in a new process."""
    environment = {**os.environ, **(environment or {})}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done


IMPORT_THIS = f"""
import sys
sys.path[:] = {sys.path!r}
from test_batch_budget import *
"""


def decode_with_little_memory(megabytes: int) -> None:
    """Decode after limiting the memory of this process to what it uses now and ``megabytes`` more. Compare the results."""
    import resource

    rng = np.random.default_rng(1)
    lengths = [1, 2, *np.geomspace(3, 2_000, 20).astype(int), *[10_000] * 2]
    sources = to_rows([rng.integers(4, VOCABULARY, length).tolist() for length in lengths])
    engine = new_engine()
    torch.set_num_threads(1)
    expected = decode_window(engine, sources, OPTIONS, BatchBudget(10_000))
    limit = psutil.Process().memory_info().vms + megabytes * 2**20
    resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
    assert free_bytes(CPU) <= megabytes * 2**20
    budget = BatchBudget(1_000_000_000)  # the encoder needs 40 MiB for the two longest sources alone
    hypotheses = decode_window(engine, sources, OPTIONS, budget)
    assert hypotheses.values.tolist() == expected.values.tolist()
    assert hypotheses.offsets.tolist() == expected.offsets.tolist()
    assert budget.tokens < 1_000_000_000


def test_every_source_is_decoded_with_little_memory() -> None:
    assert "out of memory" in run_python(f"{IMPORT_THIS}decode_with_little_memory(30)").stderr


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("[enforce fail at alloc_cpu.cpp:127] DefaultCPUAllocator: can't allocate memory: 5 bytes"),
        MemoryError(),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED"),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB."),
    ],
    ids=["cpu", "numpy", "cublas", "cudnn", "cuda"],
)
def test_batch_that_runs_out_of_memory_is_halved(error: Exception, monkeypatch: pytest.MonkeyPatch) -> None:
    search, sizes = decode.search, list[int]()

    def search_up_to_100_tokens(engine: Engine, source: torch.Tensor, *arguments: Any) -> object:
        sizes.append(source.numel())
        if source.numel() > 100:
            raise error
        return search(engine, source, *arguments)

    engine, options = new_engine(), OPTIONS.model_copy(update={"max_source_tokens": 100})
    sources = to_rows([[5] * length for length in (1, 60, 3, 50, 40, 7, 100, 2, 9)])
    expected = decode_window(engine, sources, options, BatchBudget(1))
    monkeypatch.setattr(decode, "search", search_up_to_100_tokens)
    budget = BatchBudget(600)
    hypotheses = decode_window(engine, sources, options, budget)
    assert hypotheses.values.tolist() == expected.values.tolist()
    assert max(sizes) > 100 >= budget.tokens
    sizes.clear()
    decode_window(engine, sources, options, budget)
    assert max(sizes) <= 100  # large batches are not tried again

    too_long = to_rows([[5] * 100, [5] * 101, [5]])
    with pytest.raises(UserError, match=r"source of 101 tokens .*--decoding\.max_source_tokens"):
        decode_window(engine, too_long, OPTIONS, budget)


def test_without_attention_memory_goes_to_rows_not_source_tokens() -> None:
    shape = {"attention": "none", "copy": False, "hidden_size": 256}
    engine = Engine(random_model(shape, 8000), CpuBackend(torch.float32))
    budget = BatchBudget.by_memory(engine, OPTIONS.model_copy(update={"max_source_tokens": 128}), share=1.0, threads=1)
    assert 200 < budget.tokens / (128 + budget.row_tokens) < 300  # rows per batch


def test_control_group_limits_free_memory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    unlimited = free_bytes(CPU)
    files = {
        "proc/self/cgroup": "0::/jobs/mine\n",
        "sys/fs/cgroup/jobs/memory.max": f"{unlimited // 2}\n",
        "sys/fs/cgroup/jobs/memory.current": f"{unlimited // 4}\n",
        "sys/fs/cgroup/jobs/memory.stat": f"anon 5\ninactive_file {unlimited // 8}\n",
        "sys/fs/cgroup/jobs/mine/memory.max": "max\n",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(content)
    monkeypatch.setattr("pipeline.decoding.batch_budget.Path", lambda *parts: tmp_path / "/".join(parts).lstrip("/"))
    assert free_bytes(CPU) == pytest.approx(unlimited * 3 / 8, rel=0.01)


def test_nan_is_an_error() -> None:
    model = random_model({"hidden_size": 16}, VOCABULARY)
    with torch.no_grad():
        model.decoder.output.bias[7] = float("nan")
    engine = Engine(model, CpuBackend(torch.float32))
    with pytest.raises(UserError, match=r"NaN for 2 of 2 sources; set --resources\.precision"):
        decode_window(engine, to_rows([[5, 6], [7]]), OPTIONS, BatchBudget(100))


def test_other_errors_are_raised(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise RuntimeError("size mismatch")

    monkeypatch.setattr(decode, "search", fail)
    with pytest.raises(RuntimeError, match="size mismatch"):
        decode_window(new_engine(), to_rows([[5], [6]]), OPTIONS, BatchBudget(10))
    assert not is_out_of_memory(RuntimeError("size mismatch"))


@pytest.mark.parametrize("backend", [CpuBackend(torch.float32), TorchBackend(CPU)], ids=["compiled", "torch"])
def test_less_memory_or_a_wider_beam_lowers_the_budget(backend: Backend, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = new_engine(backend)

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
def test_batch_stays_within_its_footprint(attention: str, layers: int) -> None:
    code = f"""{IMPORT_THIS}
import threading
shape = {{"attention": {attention!r}, "copy": False, "layers": {layers}, "hidden_size": 256, "embedding_size": 64}}
engine = Engine(random_model(shape, 4000), CpuBackend(torch.float32))
process, peak, done = psutil.Process(), 0, threading.Event()
def decode(rows, width):
    sources = to_rows([[5] * width] * rows)
    options = OPTIONS.model_copy(update={{"min_target_tokens": 3, "max_target_tokens": 3}})
    decode_window(engine, sources, options, BatchBudget(10**9))
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
    assert 0.2 < float(run_python(code).stdout) < 1.0


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs glibc")
def test_kept_memory_is_not_cleared_by_the_kernel() -> None:
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
        return int(run_python(code, environment).stdout)

    assert page_faults({}) > page_faults(KEEP_FREED_MEMORY) + 100_000
