"""What a machine can do at best, and what a network asks of it: matrix products, and their rate."""

from __future__ import annotations

import time

import numpy as np
import numpy.typing as npt
import torch

from pipeline.config.model import ModelConfig
from pipeline.decoding.backends import backend_for

Ints = npt.NDArray[np.integer]


def forward_flops(config: ModelConfig, vocabulary_size: int, sources: Ints, targets: Ints, tables: bool = False) -> float:
    """Of the matrix products that N pairs ask for: two for each weight and vector.

    Args:
        sources[N], targets[N]: real tokens of each source, and decoder steps. tables: as the decoder's engine arranges them.
    """
    c = config
    e, h, ways = c.embedding_size, c.hidden_size, 2 if c.bidirectional else 1
    gates = (4 if c.cell == "lstm" else 3) * h
    source = ways * gates * h + (0 if tables else ways * gates * e)
    source += (c.layers - 1) * ways * gates * (h + ways * h)
    target = gates * h + (0 if tables else gates * e) + (c.layers - 1) * gates * 2 * h
    width = e if c.tied_embeddings else h
    of_position = 0
    if c.attention != "none":
        source += 2 * h * h if c.bidirectional else 0
        projected = {"dot": (0, 0), "general": (0, h * h) if tables else (h * h, 0), "additive": (h * h, h * h)}[c.attention]
        source, target = source + projected[0], target + projected[1]
        target += 2 * h * width
        of_position = 2 * h
    elif width != h:
        target += h * width
    target += width * vocabulary_size
    return 2.0 * float(source * sources.sum() + target * targets.sum() + of_position * (sources * targets).sum())


def matmul_rate(precision: str, device: torch.device) -> float:
    """FLOP/s of square products: the best of several sizes and tries."""
    best = 0.0
    for size in (1024, 2048) if device.type == "cpu" else (4096, 8192):
        if precision == "int8":  # torch.mm knows no bytes
            arithmetic = backend_for(precision, device)
            multiply, factor = arithmetic.product(torch.randn(size, size), None), arithmetic.zeros(size, size)
        else:
            weight = torch.randn(size, size, device=device, dtype=getattr(torch, precision))
            multiply, factor = weight.mm, weight
        for _ in range(12):
            started = time.perf_counter()
            multiply(factor)
            wait(device)
            best = max(best, 2 * size**3 / (time.perf_counter() - started))
    return best


def wait(device: torch.device) -> None:
    """Until a GPU has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize()


def device_name(device: torch.device, threads: int) -> str:
    """For people."""
    if device.type == "cuda":
        return torch.cuda.get_device_name()
    return f"{torch.cpu.get_capabilities()['cpu_name']}, {threads} threads"


def newstest_lengths(rng: np.random.Generator, sentences: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Subwords of as many sources and targets: log-normal, with newstest2014's mean of about 28 and 29.

    A target's length follows its source's.
    """
    sources = np.clip(rng.lognormal(np.log(28) - 0.125, 0.5, sentences), 2, 128).astype(np.int64)
    targets = np.clip(sources * 29 / 28 * rng.lognormal(-0.01, 0.15, sentences), 1, 128).round().astype(np.int64)
    return sources, targets


GNMT = ModelConfig.model_validate(
    {"hidden_size": 1024, "embedding_size": 1024, "layers": 4, "bidirectional": False, "attention": "additive", "copy": False}
)
"""The shape of NVIDIA's GNMT v2, as near as this network comes to it; the vocabulary is of 32,000 subwords."""
GNMT_VOCABULARY = 32_000
