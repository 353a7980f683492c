"""Steps of fixed shape in static buffers, as on a GPU. Everything but capture and replay also runs on a CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from random_models import SHAPES, random_model, shape_id, to_rows
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
needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")


def random_sources(count: int, max_tokens: int, seed: int) -> list[list[int]]:
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, max_tokens + 1, (count,), generator=generator).sort(descending=True).values
    return [torch.randint(4, VOCABULARY, (int(length),), generator=generator).tolist() for length in lengths]


def assert_matches_reference(engine: Engine, model: Seq2Seq, repeats: int = 1) -> None:
    """Decode batches that grow, shrink and repeat, so that buffers and graphs are created, outgrown and reused."""
    reference = Reference(model)
    for count, max_tokens, seed in [(3, 4, 1), (40, 20, 2), (39, 19, 3), (3, 4, 4)] * repeats:
        sources = random_sources(count, max_tokens, seed)
        with torch.inference_mode():
            expected = [reference.greedy(source, OPTIONS) for source in sources]
        ids, lengths = to_rows(sources).padded(torch.arange(count).numpy(), OPTIONS.max_source_tokens)
        result = search(engine, ids.to(engine.device), lengths.to(engine.device), OPTIONS)
        tokens = [row[:length].tolist() for row, length in zip(result.tokens, result.lengths, strict=True)]
        assert tokens == [row.tokens for row in expected]
        assert result.finished.tolist() == [row.finished for row in expected]
        torch.testing.assert_close(result.scores.cpu(), torch.tensor([row.score for row in expected]), atol=1e-4, rtol=0)


@pytest.mark.parametrize(
    ("shape", "steps_between_checks"),
    [(shape, 8) for shape in SHAPES] + [(SHAPES[-1], 3)],
    ids=lambda part: shape_id(part) if isinstance(part, dict) else str(part),
)
def test_static_buffers_do_not_change_results(
    shape: dict[str, Any], steps_between_checks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(STEPS_BETWEEN_CHECKS, "cpu", steps_between_checks)
    model = random_model(shape, VOCABULARY)
    engine = Engine(model, TorchBackend(CPU))
    engine.graphs = GraphCache(CPU)
    assert_matches_reference(engine, model)


@needs_gpu
@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_graphs_do_not_change_results(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(STEPS_BETWEEN_CHECKS, "cuda", 3)
    device = torch.device("cuda")
    model = random_model(shape, VOCABULARY)
    engine = Engine(random_model(shape, VOCABULARY).to(device), TorchBackend(device))
    assert_matches_reference(engine, model, repeats=4)
    assert engine.graphs is not None
    assert engine.graphs.captured


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_steps_never_wait_for_the_device(shape: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Run steps on the meta device, which has no values: reading one, which a graph cannot do, is an error."""
    monkeypatch.setitem(STEPS_BETWEEN_CHECKS, "meta", 8)
    meta = torch.device("meta")
    engine = Engine(random_model(shape, VOCABULARY).to(meta), TorchBackend(meta))

    class StepsDone(Exception):
        pass

    class StopAfterSteps(GraphCache):
        def run(self, key: Any, work: Any) -> None:  # noqa: ARG002
            work()
            raise StepsDone

    engine.graphs = StopAfterSteps(meta)
    with pytest.raises(StepsDone):
        search(engine, torch.zeros(5, 9, dtype=torch.long, device=meta), torch.ones(5, dtype=torch.long, device=meta), OPTIONS)


def test_static_buffer_keeps_its_address_until_it_is_too_small() -> None:
    graphs = GraphCache(CPU)
    first = graphs.static_buffer("a", torch.ones(3, 2), 8, 4)
    assert first.shape == (8, 4)
    assert first[:3, :2].tolist() == [[1, 1]] * 3
    for shape in ((8, 4), (4, 8), (2, 2)):
        assert graphs.static_buffer("a", torch.zeros(2, 2), *shape).data_ptr() == first.data_ptr()
    assert graphs.static_buffer("b", torch.zeros(2, 2), 8, 4).data_ptr() != first.data_ptr()
    assert graphs.static_buffer("a", torch.zeros(2, 2), 16, 4).shape == (16, 4)
    graphs.clear()
    assert graphs.static_buffer("a", torch.ones(2, 2), 2, 2).tolist() == [[1, 1], [1, 1]]


def test_buckets_are_few_and_waste_little() -> None:
    assert round_up_to_bucket(0) == 0
    buckets = [round_up_to_bucket(size) for size in range(1, 5000)]
    assert all(size <= bucket <= size * 1.25 for size, bucket in enumerate(buckets, 1))
    assert all(round_up_to_bucket(bucket) == bucket for bucket in buckets)
    assert len(set(buckets)) < 50
