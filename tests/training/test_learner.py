"""Training steps: several workers, the schedule, precision, the moving average, resuming and rolling back."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp

from pipeline.config.model import ModelConfig
from pipeline.config.train import TrainingConfig
from pipeline.errors import UserError
from pipeline.model.batching import PairBatch, Rows
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.learner import Learner, learning_rate, progress_fraction

CPU = torch.device("cpu")
VOCABULARY = 30


@pytest.fixture(autouse=True, scope="module")
def single_thread() -> Iterator[None]:
    """Tiny networks are faster on one thread."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def make_learner(*, distributed: bool = False, dropout: float = 0.0, compress: bool = False, **options: object) -> Learner:
    torch.manual_seed(7)
    model = Seq2Seq(ModelConfig(embedding_size=8, hidden_size=8, dropout=dropout), VOCABULARY)
    config = TrainingConfig.model_validate({"precision": "float32", "warmup_steps": 0, "learning_rate": 0.01, **options})
    return Learner(model, config, CPU, distributed=distributed, compress=compress)


def batch_of(pairs: int, seed: int) -> PairBatch:
    """Return a batch of random pairs with lengths from 1 to 6."""
    rng = np.random.default_rng(seed)

    def rows() -> Rows:
        lengths = rng.integers(1, 7, pairs)
        values = rng.integers(4, VOCABULARY, lengths.sum()).astype(np.int32)
        return Rows(values, np.concatenate(([0], np.cumsum(lengths))))

    return PairBatch(*rows().padded(np.arange(pairs), 6), *rows().padded(np.arange(pairs), 6))


def concatenate(first: PairBatch, second: PairBatch) -> PairBatch:
    """Return two batches as one."""

    def pad_and_concatenate(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        width = max(a.shape[1], b.shape[1])
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (a, b)])

    return PairBatch(
        pad_and_concatenate(first.source, second.source),
        torch.cat([first.source_lengths, second.source_lengths]),
        pad_and_concatenate(first.target, second.target),
        torch.cat([first.target_lengths, second.target_lengths]),
    )


def train(learner: Learner, batches: list[PairBatch | None], accumulate: int = 1) -> list[float]:
    """Take steps with ``accumulate`` batches each; return the mean loss of each step over all workers."""
    losses = []
    for start in range(0, len(batches), accumulate):
        step_batches = batches[start : start + accumulate]
        totals = learner.totals(step_batches, minutes=0.0)
        step = learner.step(step_batches, totals, progress=0.0)
        losses.append(float(learner.sum_over_workers(step.loss.double())) / totals.target_tokens)
    return losses


# Batches of different sizes; worker 1 runs out of them before worker 0.
SHARES: list[list[PairBatch | None]] = [
    [batch_of(3, seed=1), batch_of(5, seed=2), batch_of(4, seed=3), batch_of(2, seed=4)],
    [batch_of(6, seed=5), batch_of(1, seed=6), None, None],
]


VARIANTS: dict[str, tuple[int, bool]] = {"plain": (1, False), "accumulated": (2, False), "compressed": (1, True)}
"""Batches per step, and whether gradients are exchanged in bfloat16."""

Trained = tuple[dict[str, torch.Tensor], list[float]]
"""Weights and losses of a worker."""


def run_worker(rank: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    results = {}
    for name, (accumulate, compress) in VARIANTS.items():
        learner = make_learner(distributed=True, compress=compress)
        losses = train(learner, SHARES[rank], accumulate)
        assert learner.totals([], minutes=5.0 + rank).minutes == 5.0, "the first worker's clock is used"
        results[name] = (learner.model.state_dict(), losses)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def two_workers(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[Trained]]:
    """Both workers of each variant, trained on their shares."""
    folder = tmp_path_factory.mktemp("workers")
    mp.spawn(run_worker, args=(str(folder),), nprocs=2)
    first, second = (torch.load(folder / f"{rank}.pt") for rank in range(2))
    return {name: [first[name], second[name]] for name in VARIANTS}


@pytest.mark.parametrize("variant", ["plain", "accumulated"])
def test_two_workers_take_the_same_steps_as_one_with_all_batches(two_workers: dict[str, list[Trained]], variant: str) -> None:
    single = make_learner()
    start = {name: weight.clone() for name, weight in single.model.state_dict().items()}
    batches = [concatenate(a, b) if a and b else a for a, b in zip(*SHARES, strict=True)]
    losses = train(single, batches if variant == "plain" else [concatenate(*batches[:2]), concatenate(*batches[2:])])
    for weights, worker_losses in two_workers[variant]:
        torch.testing.assert_close(worker_losses, losses, rtol=1e-5, atol=1e-5)
        for name, weight in single.model.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    max_change = max(float((weight - start[name]).abs().max()) for name, weight in single.model.state_dict().items())
    assert max_change > 0.01


def test_bfloat16_gradients_give_similar_weights(two_workers: dict[str, list[Trained]]) -> None:
    exact, _ = two_workers["plain"][0]
    (first, losses), (second, same_losses) = two_workers["compressed"]
    assert losses == same_losses
    assert all(first[name].equal(second[name]) for name in first), "workers stay in sync"
    differences = [float((first[name] - exact[name]).abs().max()) for name in exact]
    assert 0 < max(differences) < 0.05


def test_accumulated_batches_equal_one_large_batch() -> None:
    batches = [batch_of(3, seed=1), batch_of(5, seed=2), batch_of(4, seed=3), batch_of(2, seed=4)]
    accumulating, large = make_learner(), make_learner()
    losses = train(accumulating, list(batches), accumulate=2)
    torch.testing.assert_close(
        losses, train(large, [concatenate(*batches[:2]), concatenate(*batches[2:])]), rtol=1e-5, atol=1e-5
    )
    assert accumulating.steps == large.steps == 2
    for weight, expected in zip(accumulating.model.parameters(), large.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-5)


def test_validation_uses_the_moving_average() -> None:
    learner, batch = make_learner(ema_decay=0.9), batch_of(8, seed=1)
    expected = [weight.detach().clone() for weight in learner.model.parameters()]
    for step in range(30):
        train(learner, [batch])
        decay = min(0.9, (1 + step) / (10 + step))
        expected = [
            decay * old + (1 - decay) * new.detach() for old, new in zip(expected, learner.model.parameters(), strict=True)
        ]
    for average, value in zip(learner.average.parameters(), expected, strict=True):
        torch.testing.assert_close(average, value, rtol=1e-5, atol=1e-6)
    nll, _ = learner.negative_log_likelihood([batch])
    assert nll == pytest.approx(float(learner.average.eval()(*vars(batch).values()).detach()))
    assert nll != pytest.approx(float(learner.model.eval()(*vars(batch).values()).detach()), rel=1e-3)


def test_rollback_restores_the_snapshot_but_keeps_the_step_count() -> None:
    learner, batches = make_learner(ema_decay=0.9), [batch_of(4, seed) for seed in range(6)]
    train(learner, list(batches[:3]))
    learner.snapshot()
    saved = {
        name: weight.clone() for name, weight in [*learner.model.state_dict().items(), *learner.average.state_dict().items()]
    }
    for _ in range(2):  # the snapshot can be used again
        after = train(learner, list(batches[3:]))
        learner.steps = 3
        learner.roll_back()
    restored = dict([*learner.model.state_dict().items(), *learner.average.state_dict().items()])
    assert all(restored[name].equal(saved[name]) for name in saved)
    assert learner.steps == 3
    assert train(learner, list(batches[3:])) == after, "the optimizer is restored too"


def test_training_lowers_the_validation_loss() -> None:
    learner, batch = make_learner(), batch_of(8, seed=1)
    initial, tokens = learner.negative_log_likelihood([batch])
    train(learner, [batch] * 60)
    final, _ = learner.negative_log_likelihood([batch, batch])
    assert tokens == int(batch.target_lengths.sum()) + 8
    assert final / 2 < 0.5 * initial


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resume_continues_exactly(tmp_path: Path, average: float) -> None:
    batches: list[PairBatch | None] = [batch_of(4, seed) for seed in range(6)]
    uninterrupted = make_learner(dropout=0.3, ema_decay=average)
    train(uninterrupted, batches[:3])
    torch.save([uninterrupted.average.state_dict(), uninterrupted.state_dict()], tmp_path / "state.pt")
    train(uninterrupted, batches[3:])

    resumed = make_learner(dropout=0.3, ema_decay=average)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.average.load_state_dict(weights)
    resumed.load_state_dict(state)
    torch.rand(5)  # other use of the random generator
    train(resumed, batches[3:])
    assert resumed.steps == 6
    for name, weight in uninterrupted.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0)
    for weight, expected in zip(resumed.average.parameters(), uninterrupted.average.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_bfloat16_loss_is_close_and_weights_stay_float32() -> None:
    try:
        half = make_learner(precision="bfloat16")
    except UserError as error:
        pytest.skip(str(error))
    full, batch = make_learner(), batch_of(16, seed=1)
    [loss], [half_loss] = train(full, [batch]), train(half, [batch])
    assert half_loss != loss
    assert half_loss == pytest.approx(loss, rel=0.02)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


def test_unsupported_precision_is_refused() -> None:
    with pytest.raises(UserError, match="float16"):
        make_learner(precision="float16")


def test_gradients_are_clipped_to_the_norm() -> None:
    learner, batch = make_learner(clip_norm=0.001), batch_of(8, seed=1)
    step = learner.step([batch], learner.totals([batch], minutes=0.0), progress=0.0)
    assert float(step.gradient_norm) > 0.1
    # After one step, Adam's first moment is a tenth of the gradient.
    moments = [state["exp_avg"].flatten() for state in learner.state_dict()["optimizer"]["state"].values()]
    assert float(torch.cat(moments).norm()) == pytest.approx(0.1 * 0.001, rel=1e-3)


def test_rate_warms_up_and_then_decays() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=10, final_rate_share=0.1)
    assert [learning_rate(config, step, 0.0) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(config, 100, 0.5) == pytest.approx(0.55)
    assert learning_rate(config, 100, 1.0) == pytest.approx(0.1)
    rates = [learning_rate(config, 100, progress) for progress in np.linspace(0, 1, 11)]
    assert rates == sorted(rates, reverse=True)
    assert learning_rate(TrainingConfig(learning_rate=1.0, warmup_steps=0), 0, 0.0) == 1.0


def test_warmup_is_limited_in_a_short_training() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=400, final_rate_share=1.0)
    assert [learning_rate(config, step, step / 20) for step in (0, 1, 2, 10)] == pytest.approx([1 / 400, 0.5, 1.0, 1.0])


def test_progress_follows_the_closest_limit() -> None:
    assert progress_fraction(TrainingConfig(epochs=4), epochs=1, minutes=1e6, steps=10**6) == 0.25
    both = TrainingConfig(epochs=4, max_minutes=10, max_steps=100)
    assert progress_fraction(both, epochs=1, minutes=1, steps=1) == 0.25
    assert progress_fraction(both, epochs=1, minutes=5, steps=1) == 0.5
    assert progress_fraction(both, epochs=1, minutes=5, steps=80) == 0.8
    assert progress_fraction(both, epochs=5, minutes=5, steps=80) == 1.0
    assert progress_fraction(TrainingConfig(epochs=None, max_minutes=10), epochs=99, minutes=1, steps=10**6) == 0.1
