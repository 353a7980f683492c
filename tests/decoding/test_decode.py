"""Greedy and beam search match the reference, and keep the promises of their options."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from random_models import SHAPES, needs_bfloat16, needs_int8, random_model, shape_id, to_rows
from reference import Hypothesis, Reference

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import Backend, CpuBackend, TorchBackend
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import Hypotheses, decode_window
from pipeline.decoding.engine import Engine
from pipeline.model.batching import Rows
from pipeline.model.seq2seq import Seq2Seq

LSTM = {"cell": "lstm", "attention": "general", "bidirectional": True, "copy": True}
GRU = {"cell": "gru", "attention": "additive", "bidirectional": True, "copy": True}
OPTIONS = DecodingConfig(max_source_tokens=20, max_target_tokens=8, min_target_tokens=2, no_repeat_ngram=2)
UNBLOCKED = OPTIONS.model_copy(update={"min_target_tokens": 0, "no_repeat_ngram": 0})
VOCABULARY = 500


@pytest.fixture(scope="session")
def sources(tokenizer_file: bytes, abstracts: list[str]) -> list[list[int]]:
    """Return 500 real abstracts cut to 0 to 23 subwords; neighbors differ a lot in length."""
    tokenizer = Tokenizer(tokenizer_file)
    assert tokenizer.vocabulary_size == VOCABULARY
    values, offsets = tokenizer.encode(abstracts)
    return [values[start : start + row * 7 % 24].tolist() for row, start in enumerate(offsets[:-1])]


CPU = torch.device("cpu")
TORCH, COMPILED = TorchBackend(CPU), CpuBackend(torch.float32)


def decode(
    model: Seq2Seq,
    sources: list[list[int]],
    options: DecodingConfig = OPTIONS,
    token_budget: int = 200,
    backend: Backend = COMPILED,
) -> Hypotheses:
    return decode_window(Engine(model, backend), to_rows(sources), options, BatchBudget(token_budget))


def tokens_of(hypotheses: Hypotheses) -> list[list[int]]:
    return [hypotheses.values[start:end].tolist() for start, end in pairwise(hypotheses.offsets)]


def assert_equal(hypotheses: Hypotheses, expected: list[Hypothesis]) -> None:
    assert tokens_of(hypotheses) == [row.tokens for row in expected]
    assert hypotheses.finished.tolist() == [row.finished for row in expected]
    np.testing.assert_allclose(hypotheses.scores, [row.score for row in expected], atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_greedy_search_matches_the_reference(shape: dict[str, Any], sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    reference = Reference(model)
    distinct = set()
    for rows, options, token_budget in ((sources[:90], OPTIONS, 90), (sources[250:340], UNBLOCKED, 2000)):
        with torch.inference_mode():
            expected = [reference.greedy(source, options) for source in rows]
        for backend in (TORCH, COMPILED):
            assert_equal(decode(model, rows, options, token_budget, backend), expected)
        distinct |= {tuple(row.tokens) for row in expected}
    assert len(distinct) > 20  # otherwise the network ignores its source, and the test proves little


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_beam_search_matches_the_reference(shape: dict[str, Any], sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    reference, rows = Reference(model), sources[:16]
    options = OPTIONS.model_copy(
        update={"beam_size": 3, "length_penalty": 0.8, "coverage_penalty": 0.2, "max_target_ratio": 0.4, "max_target_extra": 1}
    )
    with torch.inference_mode():
        expected = [reference.beam(source, options) for source in rows]
    for backend in (TORCH, COMPILED):
        assert_equal(decode(model, rows, options, 90, backend), expected)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("shape", [LSTM, GRU], ids=shape_id)
def test_wider_beam_never_finds_a_worse_hypothesis(
    shape: dict[str, Any], length_penalty: float, sources: list[list[int]]
) -> None:
    model = random_model(shape, VOCABULARY)
    options = UNBLOCKED.model_copy(update={"length_penalty": length_penalty})
    rows = [row for row in sources[:200] if row]

    def values(beam_size: int) -> tuple[np.ndarray, np.ndarray]:
        hypotheses = decode(model, rows, options.model_copy(update={"beam_size": beam_size}))
        lengths = np.diff(hypotheses.offsets) + hypotheses.finished
        return hypotheses.scores * lengths / ((5 + lengths) / 6) ** length_penalty, hypotheses.finished

    greedy, finished = values(1)
    wider, _ = values(3)
    assert (wider >= greedy - 1e-4)[finished].all()
    assert np.mean(wider > greedy + 1e-4) > 0.1


def test_limit_grows_with_the_source(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    options = UNBLOCKED.model_copy(update={"min_target_tokens": 8, "max_target_tokens": 30})
    rows = [row[:20] for row in sources[:100] if row]
    for beam_size in (1, 2):
        with_ratio = options.model_copy(
            update={"max_target_ratio": 0.5, "max_target_extra": 2, "min_target_tokens": 2, "beam_size": beam_size}
        )
        lengths = np.diff(decode(model, rows, with_ratio).offsets)
        limits = np.array([len(row) // 2 + 2 for row in rows])
        assert (lengths <= limits).all()
        assert (lengths == limits).any()


@pytest.mark.parametrize(
    "backend",
    [TORCH, COMPILED, pytest.param(CpuBackend(torch.float32, quantizes_to_bytes=True), marks=needs_int8)],
    ids=["torch", "compiled", "int8"],
)
def test_too_large_lookup_table_is_computed_instead(
    backend: Backend, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = random_model({**LSTM, "layers": 2}, VOCABULARY), sources[:60]
    with_tables = decode(model, rows, backend=backend)
    monkeypatch.setattr("pipeline.decoding.engine.MAX_TABLE_BYTES", 0)
    assert tokens_of(decode(model, rows, backend=backend)) == tokens_of(with_tables)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_do_not_change_results(threads: int, sources: list[list[int]]) -> None:
    engine, rows, previous = Engine(random_model(LSTM, VOCABULARY), COMPILED), to_rows(sources[:200]), torch.get_num_threads()
    alone, together = (decode_window(engine, rows, OPTIONS, BatchBudget(90, threads=count)) for count in (1, threads))
    assert tokens_of(alone) == tokens_of(together)
    assert alone.scores.tolist() == together.scores.tolist()
    assert torch.get_num_threads() == previous


@pytest.mark.parametrize("shape", [LSTM, GRU], ids=shape_id)
def test_row_does_not_depend_on_its_neighbors(shape: dict[str, Any], sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    rows = sources[:60]
    together = decode(model, rows)
    for token_budget in (1, 37, 100_000):
        again = decode(model, rows, token_budget=token_budget)
        assert tokens_of(again) == tokens_of(together)
        np.testing.assert_allclose(again.scores, together.scores, atol=1e-5)
    alone = [decode(model, [row]) for row in rows]
    assert [tokens_of(one)[0] for one in alone] == tokens_of(together)
    with_longer = [decode(model, [max(sources, key=len), row]) for row in rows]
    assert [tokens_of(two)[1] for two in with_longer] == tokens_of(together)


def test_hypotheses_are_in_the_order_of_the_sources(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    order = np.random.default_rng(1).permutation(100)
    ordered, shuffled = decode(model, sources[:100]), decode(model, [sources[row] for row in order])
    assert tokens_of(shuffled) == [tokens_of(ordered)[row] for row in order]
    assert shuffled.finished.tolist() == ordered.finished[order].tolist()


def test_empty_source_gives_an_empty_finished_hypothesis(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    hypotheses = decode(model, [[], sources[5], []])
    assert [len(row) > 0 for row in tokens_of(hypotheses)] == [False, True, False]
    assert (hypotheses.finished[0], hypotheses.scores[0]) == (True, 0.0)
    assert tokens_of(decode(model, [[], []])) == [[], []]
    assert tokens_of(decode(model, [])) == []


def test_window_may_be_a_slice_of_longer_arrays(sources: list[list[int]]) -> None:
    model, rows = random_model(LSTM, VOCABULARY), to_rows(sources[:40])
    middle = Rows(rows.values, rows.offsets[10:21])
    hypotheses = decode_window(Engine(model, COMPILED), middle, OPTIONS, BatchBudget(200))
    assert tokens_of(hypotheses) == tokens_of(decode(model, sources[10:20]))


def test_long_source_is_cut_to_the_maximum(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    longest = max(sources, key=len)
    assert len(longest) > OPTIONS.max_source_tokens
    assert tokens_of(decode(model, [longest])) == tokens_of(decode(model, [longest[: OPTIONS.max_source_tokens]]))


def test_hypothesis_is_finished_if_it_ends_before_the_limit(sources: list[list[int]]) -> None:
    hypotheses = decode(random_model(LSTM, VOCABULARY), sources[:200], UNBLOCKED)
    lengths, finished = np.diff(hypotheses.offsets), hypotheses.finished
    assert 0 < finished.sum() < len(finished)
    assert (lengths[~finished] == UNBLOCKED.max_target_tokens).all()
    assert (lengths[finished] < UNBLOCKED.max_target_tokens).all()


def test_no_hypothesis_ends_before_the_minimum_length(sources: list[list[int]]) -> None:
    model, rows = random_model(GRU, VOCABULARY), [row for row in sources[:200] if row]
    assert np.diff(decode(model, rows, UNBLOCKED).offsets).min() == 0
    assert np.diff(decode(model, rows, UNBLOCKED.model_copy(update={"min_target_tokens": 5})).offsets).min() == 5


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_repeats(n: int, sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    options = UNBLOCKED.model_copy(update={"min_target_tokens": 30, "max_target_tokens": 30})

    def repeats(hypotheses: Hypotheses) -> int:
        rows = [list(zip(*(row[start:] for start in range(n)), strict=False)) for row in tokens_of(hypotheses)]
        return sum(len(ngrams) - len(set(ngrams)) for ngrams in rows)

    assert repeats(decode(model, sources[:50], options)) > 0
    assert repeats(decode(model, sources[:50], options.model_copy(update={"no_repeat_ngram": n}))) == 0


def test_special_tokens_are_never_written(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    with torch.no_grad():
        model.decoder.output.bias[[PAD, UNK, BOS]] = 50.0
    assert decode(model, sources[:50]).values.min() > EOS


def test_network_that_only_copies_writes_source_tokens(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    assert model.decoder.copy_gate is not None
    with torch.no_grad():
        model.decoder.copy_gate.bias.fill_(-1000.0)
    rows = [row for row in sources[:50] if row]
    hypotheses = decode(model, rows, UNBLOCKED)
    assert all(set(tokens) <= set(row) for tokens, row in zip(tokens_of(hypotheses), rows, strict=True))
    assert not hypotheses.finished.any()


INT8 = CpuBackend(torch.float32, quantizes_to_bytes=True)


@pytest.mark.parametrize(
    "backend",
    [
        pytest.param(CpuBackend(torch.bfloat16), marks=needs_bfloat16, id="bfloat16"),
        pytest.param(CpuBackend(torch.bfloat16, quantizes_to_bytes=True), marks=needs_bfloat16, id="int8 and bfloat16"),
        pytest.param(INT8, marks=needs_int8, id="int8 and float32"),
        pytest.param(TorchBackend(CPU, torch.bfloat16), id="torch bfloat16"),
    ],
)
@pytest.mark.parametrize("shape", [LSTM, GRU], ids=shape_id)
def test_lower_precision_gives_nearly_the_same(shape: dict[str, Any], backend: Backend, sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    full, lower = decode(model, sources[:100]), decode(model, sources[:100], backend=backend)
    agree = [one == other for one, other in zip(tokens_of(full), tokens_of(lower), strict=True)]
    assert np.mean(agree) > 0.7
    np.testing.assert_allclose(lower.scores[agree], full.scores[agree], atol=0.2)


@needs_int8
def test_int8_row_is_the_same_in_every_batch(sources: list[list[int]]) -> None:
    model, rows = random_model(LSTM, VOCABULARY), sources[:100]
    together, alone = (decode(model, rows, token_budget=budget, backend=INT8) for budget in (100_000, 1))
    assert tokens_of(together) == tokens_of(alone)
