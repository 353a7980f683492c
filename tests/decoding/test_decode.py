"""Greedy and beam search against the reference, and what its options promise."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from random_models import SHAPES, name_of, needs_bfloat16, needs_bytes, random_model, rows_of
from reference import Reference, Written

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
    """500 real abstracts, cut to 0 to 23 subwords: neighbours differ much in length."""
    tokenizer = Tokenizer(tokenizer_file)
    assert tokenizer.vocabulary_size == VOCABULARY
    values, offsets = tokenizer.encode(abstracts)
    return [values[start : start + row * 7 % 24].tolist() for row, start in enumerate(offsets[:-1])]


CPU = torch.device("cpu")
PLAIN, COMPILED = TorchBackend(CPU), CpuBackend(torch.float32)


def decode(
    model: Seq2Seq,
    sources: list[list[int]],
    options: DecodingConfig = OPTIONS,
    token_budget: int = 200,
    arithmetic: Backend = COMPILED,
) -> Hypotheses:
    rows = rows_of(sources)
    return decode_window(Engine(model, arithmetic), rows.values, rows.offsets, options, BatchBudget(token_budget))


def written(hypotheses: Hypotheses) -> list[list[int]]:
    return [hypotheses.values[start:end].tolist() for start, end in pairwise(hypotheses.offsets)]


def same(found: Hypotheses, expected: list[Written]) -> None:
    assert written(found) == [row.tokens for row in expected]
    assert found.finished.tolist() == [row.finished for row in expected]
    np.testing.assert_allclose(found.scores, [row.score for row in expected], atol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_batches_write_what_the_reference_writes_row_by_row(shape: dict[str, Any], sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    reference = Reference(model)
    distinct = set()
    for rows, options, token_budget in ((sources[:250], OPTIONS, 90), (sources[250:], UNBLOCKED, 2000)):
        with torch.inference_mode():
            expected = [reference.greedy(source, options) for source in rows]
        for arithmetic in (PLAIN, COMPILED):
            same(decode(model, rows, options, token_budget, arithmetic), expected)
        distinct |= {tuple(row.tokens) for row in expected}
    assert len(distinct) > 40  # else the network hardly looks at its source, and the above proves little


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_beam_search_finds_what_the_reference_finds(shape: dict[str, Any], sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    reference, rows = Reference(model), sources[:16]
    options = OPTIONS.model_copy(
        update={"beam_size": 3, "length_penalty": 0.8, "coverage_penalty": 0.2, "max_target_ratio": 0.4, "max_target_extra": 1}
    )
    with torch.inference_mode():
        expected = [reference.beam(source, options) for source in rows]
    for arithmetic in (PLAIN, COMPILED):
        same(decode(model, rows, options, 90, arithmetic), expected)


@pytest.mark.parametrize("length_penalty", [0.0, 0.6, 2.0])
@pytest.mark.parametrize("shape", [LSTM, GRU], ids=name_of)
def test_a_wider_beam_finds_what_is_worth_more_or_the_same(
    shape: dict[str, Any], length_penalty: float, sources: list[list[int]]
) -> None:
    model = random_model(shape, VOCABULARY)
    options = UNBLOCKED.model_copy(update={"length_penalty": length_penalty})
    rows = [row for row in sources[:200] if row]

    def worth(beam_size: int) -> tuple[np.ndarray, np.ndarray]:
        found = decode(model, rows, options.model_copy(update={"beam_size": beam_size}))
        lengths = np.diff(found.offsets) + found.finished
        return found.scores * lengths / ((5 + lengths) / 6) ** length_penalty, found.finished

    greedy, ended = worth(1)
    wider, _ = worth(3)
    assert (wider >= greedy - 1e-4)[ended].all()
    assert np.mean(wider > greedy + 1e-4) > 0.1


def test_a_limit_that_grows_with_the_source(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    options = UNBLOCKED.model_copy(update={"min_target_tokens": 8, "max_target_tokens": 30})
    rows = [row[:20] for row in sources[:100] if row]
    for beam_size in (1, 2):
        of_source = options.model_copy(
            update={"max_target_ratio": 0.5, "max_target_extra": 2, "min_target_tokens": 2, "beam_size": beam_size}
        )
        lengths = np.diff(decode(model, rows, of_source).offsets)
        limits = np.array([len(row) // 2 + 2 for row in rows])
        assert (lengths <= limits).all()
        assert (lengths == limits).any()


@pytest.mark.parametrize(
    "arithmetic",
    [PLAIN, COMPILED, pytest.param(CpuBackend(torch.float32, multiply_bytes=True), marks=needs_bytes)],
    ids=["plain", "compiled", "bytes"],
)
def test_a_table_that_would_be_too_large_is_computed_as_needed(
    arithmetic: Backend, sources: list[list[int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, rows = random_model({**LSTM, "layers": 2}, VOCABULARY), sources[:60]
    with_tables = decode(model, rows, arithmetic=arithmetic)
    monkeypatch.setattr("pipeline.decoding.engine._TABLE_BYTES", 0)
    assert written(decode(model, rows, arithmetic=arithmetic)) == written(with_tables)


@pytest.mark.parametrize("threads", [2, 3])
def test_threads_change_nothing(threads: int, sources: list[list[int]]) -> None:
    engine, rows, before = Engine(random_model(LSTM, VOCABULARY), COMPILED), rows_of(sources[:200]), torch.get_num_threads()
    alone, together = (
        decode_window(engine, rows.values, rows.offsets, OPTIONS, BatchBudget(90), number) for number in (1, threads)
    )
    assert written(alone) == written(together)
    assert alone.scores.tolist() == together.scores.tolist()
    assert torch.get_num_threads() == before


@pytest.mark.parametrize("shape", [LSTM, GRU], ids=name_of)
def test_a_row_does_not_depend_on_its_neighbours(shape: dict[str, Any], sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    rows = sources[:60]
    together = decode(model, rows)
    for token_budget in (1, 37, 100_000):
        again = decode(model, rows, token_budget=token_budget)
        assert written(again) == written(together)
        np.testing.assert_allclose(again.scores, together.scores, atol=1e-5)
    alone = [decode(model, [row]) for row in rows]
    assert [written(one)[0] for one in alone] == written(together)
    beside_longer = [decode(model, [max(sources, key=len), row]) for row in rows]
    assert [written(two)[1] for two in beside_longer] == written(together)


def test_hypotheses_come_in_the_order_of_the_sources(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    order = np.random.default_rng(1).permutation(100)
    straight, shuffled = decode(model, sources[:100]), decode(model, [sources[row] for row in order])
    assert written(shuffled) == [written(straight)[row] for row in order]
    assert shuffled.finished.tolist() == straight.finished[order].tolist()


def test_a_source_without_tokens_gives_an_empty_finished_hypothesis(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    found = decode(model, [[], sources[5], []])
    assert [len(row) > 0 for row in written(found)] == [False, True, False]
    assert (found.finished[0], found.scores[0]) == (True, 0.0)
    assert written(decode(model, [[], []])) == [[], []]
    assert written(decode(model, [])) == []


def test_a_window_may_be_a_slice_of_longer_arrays(sources: list[list[int]]) -> None:
    model, rows = random_model(LSTM, VOCABULARY), rows_of(sources[:40])
    middle = Rows(rows.values, rows.offsets[10:21])
    found = decode_window(Engine(model, COMPILED), middle.values, middle.offsets, OPTIONS, BatchBudget(200))
    assert written(found) == written(decode(model, sources[10:20]))


def test_a_long_source_is_read_up_to_the_maximum(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    longest = max(sources, key=len)
    assert len(longest) > OPTIONS.max_source_tokens
    assert written(decode(model, [longest])) == written(decode(model, [longest[: OPTIONS.max_source_tokens]]))


def test_a_hypothesis_is_finished_if_it_ended_before_the_limit(sources: list[list[int]]) -> None:
    found = decode(random_model(LSTM, VOCABULARY), sources[:200], UNBLOCKED)
    lengths = np.diff(found.offsets)
    assert 0 < found.finished.sum() < len(found.finished)
    assert (lengths[~found.finished] == UNBLOCKED.max_target_tokens).all()
    assert (lengths[found.finished] < UNBLOCKED.max_target_tokens).all()


def test_no_end_before_the_minimum_length(sources: list[list[int]]) -> None:
    model, rows = random_model(GRU, VOCABULARY), [row for row in sources[:200] if row]
    assert np.diff(decode(model, rows, UNBLOCKED).offsets).min() == 0
    assert np.diff(decode(model, rows, UNBLOCKED.model_copy(update={"min_target_tokens": 5})).offsets).min() == 5


@pytest.mark.parametrize("n", [1, 2, 3])
def test_no_ngram_is_written_twice(n: int, sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    options = UNBLOCKED.model_copy(update={"min_target_tokens": 30, "max_target_tokens": 30})

    def repeats(hypotheses: Hypotheses) -> int:
        rows = [list(zip(*(row[at:] for at in range(n)), strict=False)) for row in written(hypotheses)]
        return sum(len(ngrams) - len(set(ngrams)) for ngrams in rows)

    assert repeats(decode(model, sources[:50], options)) > 0
    assert repeats(decode(model, sources[:50], options.model_copy(update={"no_repeat_ngram": n}))) == 0


def test_special_tokens_are_never_written(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    with torch.no_grad():
        model.decoder.output.bias[[PAD, UNK, BOS]] = 50.0
    assert decode(model, sources[:50]).values.min() > EOS


def test_a_network_that_only_copies_writes_source_tokens(sources: list[list[int]]) -> None:
    model = random_model(LSTM, VOCABULARY)
    assert model.decoder.copy_gate is not None
    with torch.no_grad():
        model.decoder.copy_gate.bias.fill_(-1000.0)
    rows = [row for row in sources[:50] if row]
    found = decode(model, rows, UNBLOCKED)
    assert all(set(hypothesis) <= set(row) for hypothesis, row in zip(written(found), rows, strict=True))
    assert not found.finished.any()


LOWER = {
    "bfloat16": CpuBackend(torch.bfloat16),
    "bytes": CpuBackend(torch.bfloat16, multiply_bytes=True),
    "bytes and float32": CpuBackend(torch.float32, multiply_bytes=True),
    "plain bfloat16": TorchBackend(CPU, torch.bfloat16),
}


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("bfloat16", marks=needs_bfloat16),
        pytest.param("bytes", marks=needs_bfloat16),
        pytest.param("bytes and float32", marks=needs_bytes),
        "plain bfloat16",
    ],
)
@pytest.mark.parametrize("shape", [LSTM, GRU], ids=name_of)
def test_lower_precision_writes_nearly_the_same(shape: dict[str, Any], name: str, sources: list[list[int]]) -> None:
    model = random_model(shape, VOCABULARY)
    full, lower = decode(model, sources[:100]), decode(model, sources[:100], arithmetic=LOWER[name])
    agree = [one == other for one, other in zip(written(full), written(lower), strict=True)]
    assert np.mean(agree) > 0.7
    np.testing.assert_allclose(lower.scores[agree], full.scores[agree], atol=0.2)


@needs_bytes
def test_in_bytes_a_row_is_the_same_in_every_batch(sources: list[list[int]]) -> None:
    model, rows = random_model(LSTM, VOCABULARY), sources[:100]
    together, alone = (
        decode(model, rows, token_budget=budget, arithmetic=LOWER["bytes and float32"]) for budget in (100_000, 1)
    )
    assert written(together) == written(alone)
