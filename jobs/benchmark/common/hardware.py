"""The matrix products that a network needs, the rate at which a machine computes them, and workloads of known shape."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.model import ModelConfig
from pipeline.data.special_tokens import EOS
from pipeline.decoding.backends import backend_for
from pipeline.model.batching import Rows

T = TypeVar("T")
Ints = npt.NDArray[np.integer]

GNMT = ModelConfig.model_validate(
    {"hidden_size": 1024, "embedding_size": 1024, "layers": 4, "bidirectional": False, "attention": "additive", "copy": False}
)
"""The closest configuration to NVIDIA's GNMT v2."""

GNMT_VOCABULARY = 32_000


def forward_flops(c: ModelConfig, vocabulary_size: int, sources: Ints, targets: Ints, *, tables: bool = False) -> float:
    """Return the FLOPs of the matrix products for N pairs: two per weight and vector.

    Args:
        sources: Tokens of each source [N].
        targets: Decoder steps of each target [N].
        tables: Leave out the products that the decoding engine replaces by lookup tables.
    """
    e, h, ways = c.embedding_size, c.hidden_size, 2 if c.bidirectional else 1
    parts, units = 4 if c.cell == "lstm" else 3, c.encoder_units
    per_source = ways * parts * units * (units + (0 if tables else e))
    per_source += (c.layers - 1) * ways * parts * units * (units + ways * units)
    gates = parts * h
    per_target = gates * h + (0 if tables else gates * e) + (c.layers - 1) * gates * 2 * h
    width = e if c.tied_embeddings else h
    per_source_and_target = 0
    if c.attention != "none":
        per_source += 2 * units * h if c.bidirectional else 0
        products = {"dot": (0, 0), "general": (0, h * h) if tables else (h * h, 0), "additive": (h * h, h * h)}[c.attention]
        per_source, per_target = per_source + products[0], per_target + products[1]
        per_target += 2 * h * width
        per_source_and_target = 2 * h
    elif width != h:
        per_target += h * width
    per_target += width * vocabulary_size
    both = per_source_and_target * (sources * targets).sum()
    return 2.0 * float(per_source * sources.sum() + per_target * targets.sum() + both)


def matmul_rate(precision: str, device: torch.device) -> float:
    """Measure the FLOP/s of square matrix products: the best of several sizes and repeats."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        if precision == "int8":  # torch.mm has no int8 on CPUs
            backend = backend_for(precision, device)
            multiply, factor = backend.product(torch.randn(size, size), None), backend.zeros(size, size)
        else:
            weight = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
            multiply, factor = weight.mm, weight
        for _ in range(12):
            best = max(best, 2 * size**3 / timed(partial(multiply, factor), device)[1])
    return best


def wait(device: torch.device) -> None:
    """Wait until a GPU has finished its work."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def timed(work: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return the result of some work on a device, and the seconds that it takes."""
    started = time.perf_counter()
    result = work()
    wait(device)
    return result, time.perf_counter() - started


def device_name(device: torch.device, threads: int) -> str:
    """Return the name of the GPU, or of the CPU and the number of threads."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities()['cpu_name']}, {threads} threads"


def gnmt_pairs(rng: np.random.Generator, sentences: int) -> tuple[Rows, Rows]:
    """Make sources and targets of random tokens of ``GNMT_VOCABULARY``, as long as those of newstest2014.

    Lengths are log-normal, with newstest2014's means of about 28 and 29; the length of a target follows that of its source.
    """
    sources = np.clip(rng.lognormal(np.log(28) - 0.125, 0.5, sentences), 2, 128).astype(np.int64)
    targets = np.clip(sources * 29 / 28 * rng.lognormal(-0.01, 0.15, sentences), 1, 128).round().astype(np.int64)

    def random_rows(lengths: npt.NDArray[np.int64]) -> Rows:
        tokens = rng.integers(EOS + 1, GNMT_VOCABULARY, lengths.sum()).astype(np.int32)
        return Rows(tokens, np.concatenate(([0], np.cumsum(lengths))))

    return random_rows(sources), random_rows(targets)
