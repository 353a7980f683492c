"""Compare the decoder with the reference on 5,000 real documents, in any batch and order; ``make exhaustive`` runs this.

The documents are the 2,000 of the sample and, after ``jobs.prepare --config configs/prepare.arxiv.yaml``, the 3,000 development
pairs of arXiv.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.dataset as pads
import pytest
import torch
from random_models import SHAPES, random_model, shape_id
from reference import Hypothesis, Reference

from pipeline.config.model import DecodingConfig
from pipeline.config.types import SAMPLE
from pipeline.data.special_tokens import EOS
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import CpuBackend, TorchBackend
from pipeline.decoding.decode import search
from pipeline.decoding.engine import Engine
from pipeline.model.batching import Rows, longest_first
from pipeline.model.bundle import load_bundle

pytestmark = pytest.mark.exhaustive
DEV = Path(__file__).parents[2] / "prepared/arxiv/dev"
CPU = torch.device("cpu")

MAX_TIE = 1e-5
"""Difference of two log-probabilities (nat) that float32 may order either way: logits are of the order of ten."""

MAX_TIES = 5
"""Documents of 5,000 that may differ by a tie, with random weights."""

SHORT = DecodingConfig(max_source_tokens=24, max_target_tokens=8, min_target_tokens=2, no_repeat_ngram=2)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """Return 5,000 abstracts, or the 2,000 of the sample."""
    texts: list[str] = pads.dataset(SAMPLE / "documents").to_table(columns=["text"])["text"].to_pylist()
    if DEV.exists():
        texts += pads.dataset(DEV).to_table(columns=["source"])["source"].to_pylist()
    return texts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Compute with one thread, like decode_window: small products are slower on several."""
    previous = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(previous)


def decode(engine: Engine, sources: Rows, options: DecodingConfig, batch_rows: int, order: np.ndarray) -> list[list[int]]:
    """Decode all sources in this order, ``batch_rows`` at a time."""
    hypotheses: list[list[int]] = [[] for _ in range(len(sources))]
    lengths = sources.lengths(options.max_source_tokens)
    for start in range(0, len(order), batch_rows):
        rows = order[start : start + batch_rows]
        rows = rows[longest_first(lengths[rows])]
        batch = search(engine, *sources.padded(rows, options.max_source_tokens), options)
        for row, tokens, length in zip(rows, batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
            hypotheses[row] = tokens[:length]
    return hypotheses


def batchings(rows: int) -> Iterator[tuple[int, np.ndarray]]:
    """Yield batch sizes with an order of the rows."""
    for batch_rows in (1, 7, 64, 1024):
        yield batch_rows, np.arange(rows)
    yield 64, np.random.default_rng(1).permutation(rows)


_reference: Reference


def _start(reference: Reference) -> None:
    global _reference
    _reference = reference


def _greedy(task: tuple[list[int], DecodingConfig]) -> Hypothesis:
    with torch.inference_mode():
        return _reference.greedy(*task)


def decode_by_reference(reference: Reference, sources: Rows, options: DecodingConfig) -> list[list[int]]:
    """Decode each source with the reference, in parallel."""
    lists = [sources.values[start:end].tolist() for start, end in zip(sources.offsets, sources.offsets[1:], strict=False)]
    with get_context("fork").Pool(os.cpu_count(), _start, (reference,)) as pool:
        return [row.tokens for row in pool.imap(_greedy, [(ids, options) for ids in lists], chunksize=50)]


def is_tie(reference: Reference, source: list[int], one: list[int], other: list[int]) -> bool:
    """Return whether two hypotheses first differ in tokens that are equally likely in float32."""
    with torch.inference_mode():
        log_probs = [reference.log_probs(source, tokens) for tokens in (one, other)]
    step = next(step for step, (a, b) in enumerate(zip([*one, EOS], [*other, EOS], strict=False)) if a != b)
    return abs(log_probs[0][step] - log_probs[1][step]) < MAX_TIE


@pytest.mark.timeout(7200)
def test_shipped_model_matches_the_reference_in_any_batch_and_order(documents: list[str]) -> None:
    bundle = load_bundle(str(SAMPLE / "model"), CPU)
    sources = Rows(*Tokenizer(bundle.tokenizer_file).encode(documents))
    expected = decode_by_reference(Reference(bundle.model), sources, bundle.decoding)
    for backend in (CpuBackend(torch.float32), TorchBackend(CPU)):
        engine = Engine(bundle.model, backend)
        for batch_rows, order in batchings(len(sources)):
            hypotheses = decode(engine, sources, bundle.decoding, batch_rows, order)
            differ = sum(one != other for one, other in zip(hypotheses, expected, strict=True))
            print(f"{type(backend).__name__}, {batch_rows} rows per batch: {differ} of {len(sources)} differ")
            assert differ == 0


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_every_shape_matches_the_reference_in_any_batch_and_order(
    shape: dict[str, Any], documents: list[str], tokenizer_file: bytes
) -> None:
    tokenizer = Tokenizer(tokenizer_file)
    sources = Rows(*tokenizer.encode(documents))
    model = random_model(shape, tokenizer.vocabulary_size)
    expected = decode_by_reference(Reference(model), sources, SHORT)
    assert len({tuple(tokens) for tokens in expected}) > 100
    engine = Engine(model, CpuBackend(torch.float32))
    for batch_rows, order in batchings(len(sources)):
        hypotheses = decode(engine, sources, SHORT, batch_rows, order)
        differ = [row for row, (one, other) in enumerate(zip(hypotheses, expected, strict=True)) if one != other]
        print(f"{batch_rows} rows per batch: {len(differ)} of {len(sources)} differ")
        assert len(differ) <= MAX_TIES
        for row in differ:
            source = sources.values[sources.offsets[row] : sources.offsets[row + 1]][: SHORT.max_source_tokens].tolist()
            assert is_tie(Reference(model), source, hypotheses[row], expected[row]), (row, hypotheses[row], expected[row])
