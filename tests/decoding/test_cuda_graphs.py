"""Steps of fixed shapes in memory that stays in its place, as a GPU takes them: all of it but the launch runs on a CPU too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import SHAPES, name_of, random_model, rows_of
from reference import Reference

from pipeline.config.model import DecodingConfig
from pipeline.decoding.backends import TorchBackend
from pipeline.decoding.batch_state import STEPS_BETWEEN_CHECKS
from pipeline.decoding.cuda_graphs import GraphCache, round_up_to_bucket
from pipeline.decoding.decode import search
from pipeline.decoding.engine import Engine
from pipeline.model.seq2seq import Seq2Seq

CPU = torch.device("cpu")
OPTIONS = DecodingConfig(max_source_tokens=20, max_target_tokens=8, min_target_tokens=2, no_repeat_ngram=2)
VOCABULARY = 300
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")


def _sources(number: int, longest: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (number,), generator=generator).sort(descending=True).values
    return [torch.randint(4, VOCABULARY, (int(length),), generator=generator).tolist() for length in lengths]


def check(engine: Engine, model: Seq2Seq, repeats: int = 1) -> None:
    """Batches that grow, shrink and come again, so that memory and graphs are made, outgrown and used again."""
    reference = Reference(model)
    for number, longest, seed in [(3, 4, 1), (40, 20, 2), (39, 19, 3), (3, 4, 4)] * repeats:
        rows = _sources(number, longest, seed)
        with torch.inference_mode():
            expected = [reference.greedy(row, OPTIONS) for row in rows]
        ids, lengths = rows_of(rows).padded(torch.arange(number).numpy(), OPTIONS.max_source_tokens)
        found = search(engine, ids.to(engine.device), lengths.to(engine.device), OPTIONS)
        written = [row[:length].tolist() for row, length in zip(found.tokens, found.lengths, strict=True)]
        assert written == [row.tokens for row in expected]
        assert found.finished.tolist() == [row.finished for row in expected]
        torch.testing.assert_close(found.scores.cpu(), torch.tensor([row.score for row in expected]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "looks"),
    [(shape, 8) for shape in SHAPES] + [(SHAPES[-1], 3)],
    ids=lambda part: name_of(part) if isinstance(part, dict) else str(part),
)
def test_held_memory_changes_nothing(shape: dict[str, Any], looks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS_BETWEEN_CHECKS, "cpu", looks)
    model = random_model(shape, VOCABULARY)
    engine = Engine(model, TorchBackend(CPU))
    engine.graphs = GraphCache(CPU)
    check(engine, model)


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_graphs_change_nothing(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS_BETWEEN_CHECKS, "cuda", 3)
    device = torch.device("cuda")
    model = random_model(shape, VOCABULARY)
    engine = Engine(random_model(shape, VOCABULARY).to(device), TorchBackend(device))
    check(engine, model, repeats=4)
    assert engine.graphs is not None
    assert engine.graphs._captured


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_steps_read_no_number_back(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the meta device there are no numbers: what would wait for one, which a graph cannot, is an error there."""
    monkeypatch.setitem(STEPS_BETWEEN_CHECKS, "meta", 8)
    meta = torch.device("meta")
    engine = Engine(random_model(shape, VOCABULARY).to(meta), TorchBackend(meta))
    launched = []

    class NoLook(Exception):
        pass

    class Recorded(GraphCache):
        def run(self, key: Any, work: Any) -> None:
            work()
            launched.append(key)
            raise NoLook

    engine.graphs = Recorded(meta)
    with pytest.raises(NoLook):
        search(engine, torch.zeros(5, 9, dtype=torch.long, device=meta), torch.ones(5, dtype=torch.long, device=meta), OPTIONS)
    assert len(launched) == 1


def test_held_memory_stays_where_it_is_until_it_is_too_small() -> None:
    graphs = GraphCache(CPU)
    first = graphs.hold("a", torch.ones(3, 2), 8, 4)
    assert first.shape == (8, 4)
    assert first[:3, :2].tolist() == [[1, 1]] * 3
    for shape in ((8, 4), (4, 8), (2, 2)):
        assert graphs.hold("a", torch.zeros(2, 2), *shape).data_ptr() == first.data_ptr()
    assert graphs.hold("b", torch.zeros(2, 2), 8, 4).data_ptr() != first.data_ptr()
    assert graphs.hold("a", torch.zeros(2, 2), 16, 4).shape == (16, 4)
    graphs.clear()
    assert graphs.hold("a", torch.ones(2, 2), 2, 2).tolist() == [[1, 1], [1, 1]]


def test_a_rung_holds_its_number_and_little_more() -> None:
    assert round_up_to_bucket(0) == 0
    for number in range(1, 5000):
        assert number <= round_up_to_bucket(number) <= number * 1.25
        assert round_up_to_bucket(round_up_to_bucket(number)) == round_up_to_bucket(number)
    assert len({round_up_to_bucket(number) for number in range(1, 5000)}) < 50
