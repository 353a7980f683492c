"""What takes too long for every day: 5,000 real documents against the reference. ``make exhaustive`` runs it.

The documents are the shipped 2,000 and, once ``jobs.prepare --config configs/prepare.arxiv.yaml`` has run, the 3,000
development pairs of arXiv.
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
from random_models import SHAPES, name_of, random_model
from reference import Reference, Written

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
TIE = 1e-5
"""Nat: the difference of two log-probabilities that float32, whose logits are of the order of ten, may see either way."""
MOST_TIES = 5
"""Of 5,000 documents, with a network of random weights."""
SHORT = DecodingConfig(max_source_tokens=24, max_target_tokens=8, min_target_tokens=2, no_repeat_ngram=2)


@pytest.fixture(scope="session")
def documents() -> list[str]:
    """5,000 abstracts, or the first 2,000 of them."""
    texts: list[str] = pads.dataset(SAMPLE / "documents").to_table(columns=["text"])["text"].to_pylist()
    if DEV.exists():
        texts += pads.dataset(DEV).to_table(columns=["source"])["source"].to_pylist()
    return texts


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """As decode_window has it: small products are slower for being shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def written(engine: Engine, sources: Rows, options: DecodingConfig, rows_of_batch: int, order: np.ndarray) -> list[list[int]]:
    """Hypotheses of all sources, decoded in this order, so many to a batch."""
    found: list[list[int]] = [[] for _ in range(len(sources))]
    lengths = sources.lengths(options.max_source_tokens)
    for start in range(0, len(order), rows_of_batch):
        rows = order[start : start + rows_of_batch]
        rows = rows[longest_first(lengths[rows])]
        batch = search(engine, *sources.padded(rows, options.max_source_tokens), options)
        for row, tokens, length in zip(rows, batch.tokens.tolist(), batch.lengths.tolist(), strict=True):
            found[row] = tokens[:length]
    return found


def ways_to_batch(number: int) -> Iterator[tuple[int, np.ndarray]]:
    """Rows of a batch, and an order."""
    for rows_of_batch in (1, 7, 64, 1024):
        yield rows_of_batch, np.arange(number)
    yield 64, np.random.default_rng(1).permutation(number)


_reference: Reference


def _start(reference: Reference) -> None:
    global _reference
    _reference = reference


def _greedy(task: tuple[list[int], DecodingConfig]) -> Written:
    with torch.inference_mode():
        return _reference.greedy(*task)


def expected(reference: Reference, sources: Rows, options: DecodingConfig) -> list[list[int]]:
    """What the reference writes for each source, row by row."""
    lists = [sources.values[start:end].tolist() for start, end in zip(sources.offsets, sources.offsets[1:], strict=False)]
    with get_context("fork").Pool(os.cpu_count(), _start, (reference,)) as pool:
        return [row.tokens for row in pool.imap(_greedy, [(ids, options) for ids in lists], chunksize=50)]


def tied(reference: Reference, source: list[int], one: list[int], other: list[int]) -> bool:
    """Whether float32 cannot tell which of the two tokens is likelier where two hypotheses part."""
    with torch.inference_mode():
        of_each = [reference.log_probs(source, tokens) for tokens in (one, other)]
    parting = next(step for step, (a, b) in enumerate(zip([*one, EOS], [*other, EOS], strict=False)) if a != b)
    return abs(of_each[0][parting] - of_each[1][parting]) < TIE


@pytest.mark.timeout(7200)
def test_the_shipped_model_in_any_batch_and_order(documents: list[str]) -> None:
    bundle = load_bundle(str(SAMPLE / "model"), CPU)
    sources = Rows(*Tokenizer(bundle.tokenizer_file).encode(documents))
    by_reference = expected(Reference(bundle.model), sources, bundle.decoding)
    for arithmetic in (CpuBackend(torch.float32), TorchBackend(CPU)):
        engine = Engine(bundle.model, arithmetic)
        for rows_of_batch, order in ways_to_batch(len(sources)):
            found = written(engine, sources, bundle.decoding, rows_of_batch, order)
            differ = sum(one != other for one, other in zip(found, by_reference, strict=True))
            print(f"{type(arithmetic).__name__}, {rows_of_batch} rows a batch: {differ} of {len(sources)} differ")
            assert differ == 0


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_every_shape_in_any_batch_and_order(shape: dict[str, Any], documents: list[str], tokenizer_file: bytes) -> None:
    tokenizer = Tokenizer(tokenizer_file)
    sources = Rows(*tokenizer.encode(documents))
    model = random_model(shape, tokenizer.vocabulary_size)
    by_reference = expected(Reference(model), sources, SHORT)
    assert len({tuple(tokens) for tokens in by_reference}) > 100
    engine = Engine(model, CpuBackend(torch.float32))
    for rows_of_batch, order in ways_to_batch(len(sources)):
        found = written(engine, sources, SHORT, rows_of_batch, order)
        differ = [row for row, (one, other) in enumerate(zip(found, by_reference, strict=True)) if one != other]
        print(f"{rows_of_batch} rows a batch: {len(differ)} of {len(sources)} differ")
        assert len(differ) <= MOST_TIES
        for row in differ:
            source = sources.values[sources.offsets[row] : sources.offsets[row + 1]][: SHORT.max_source_tokens].tolist()
            assert tied(Reference(model), source, found[row], by_reference[row]), (row, found[row], by_reference[row])
