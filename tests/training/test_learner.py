"""Steps: what N workers learn together, the schedule, precision, averages, going on and going back."""

from __future__ import annotations

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


def make_learner(distributed: bool = False, dropout: float = 0.0, compress: bool = False, **options: object) -> Learner:
    torch.manual_seed(7)
    model = Seq2Seq(ModelConfig(embedding_size=8, hidden_size=8, dropout=dropout), VOCABULARY)
    config = TrainingConfig.model_validate({"precision": "float32", "warmup_steps": 0, "learning_rate": 0.01, **options})
    return Learner(model, config, CPU, distributed, compress)


def batch_of(pairs: int, seed: int) -> PairBatch:
    """Random pairs with lengths from 1 to 6."""
    rng = np.random.default_rng(seed)

    def rows() -> Rows:
        lengths = rng.integers(1, 7, pairs)
        values = rng.integers(4, VOCABULARY, lengths.sum()).astype(np.int32)
        return Rows(values, np.concatenate(([0], np.cumsum(lengths))))

    return PairBatch(*rows().padded(np.arange(pairs), 6), *rows().padded(np.arange(pairs), 6))


def joined(first: PairBatch, second: PairBatch) -> PairBatch:
    """Two batches as one."""

    def stacked(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        width = max(a.shape[1], b.shape[1])
        return torch.cat([torch.nn.functional.pad(part, (0, width - part.shape[1])) for part in (a, b)])

    return PairBatch(
        stacked(first.source, second.source),
        torch.cat([first.source_lengths, second.source_lengths]),
        stacked(first.target, second.target),
        torch.cat([first.target_lengths, second.target_lengths]),
    )


def learn(learner: Learner, batches: list[PairBatch | None], accumulate: int = 1) -> list[float]:
    """Take a step with each batch, or with several; the mean loss of each step over all workers."""
    losses = []
    for start in range(0, len(batches), accumulate):
        taken = batches[start : start + accumulate]
        totals = learner.totals(taken, minutes=0.0)
        step = learner.step(taken, totals, progress=0.0)
        losses.append(float(learner.sum_over_workers(step.loss.double())) / totals.target_tokens)
    return losses


# Batches of different sizes, and worker 1 runs out of them before worker 0.
SHARES: list[list[PairBatch | None]] = [
    [batch_of(3, seed=1), batch_of(5, seed=2), batch_of(4, seed=3), batch_of(2, seed=4)],
    [batch_of(6, seed=5), batch_of(1, seed=6), None, None],
]


def be_a_worker(rank: int, folder: str, accumulate: int, compress: bool) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    learner = make_learner(distributed=True, compress=compress)
    losses = learn(learner, SHARES[rank], accumulate)
    assert learner.totals([], minutes=5.0 + rank).minutes == 5.0, "the first worker's clock counts"
    torch.save({"weights": learner.model.state_dict(), "losses": losses}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def weights_of_two(
    folder: Path, accumulate: int = 1, compress: bool = False
) -> list[tuple[dict[str, torch.Tensor], list[float]]]:
    """What two workers have learnt from their shares, and their losses."""
    mp.spawn(be_a_worker, args=(str(folder), accumulate, compress), nprocs=2)
    found = [torch.load(folder / f"{rank}.pt") for rank in range(2)]
    return [(worker["weights"], worker["losses"]) for worker in found]


@pytest.mark.parametrize("accumulate", [1, 2])
def test_two_workers_take_the_steps_of_one_that_has_all_their_batches(tmp_path: Path, accumulate: int) -> None:
    alone = make_learner()
    start = {name: weight.clone() for name, weight in alone.model.state_dict().items()}
    batches = [joined(a, b) if a and b else a for a, b in zip(*SHARES, strict=True)]
    losses = learn(alone, batches if accumulate == 1 else [joined(*batches[:2]), joined(*batches[2:])])
    for weights, found in weights_of_two(tmp_path, accumulate):
        torch.testing.assert_close(found, losses, rtol=1e-5, atol=1e-5)
        for name, weight in alone.model.state_dict().items():
            torch.testing.assert_close(weights[name], weight, rtol=1e-5, atol=1e-5, msg=name)
    moved = max(float((weight - start[name]).abs().max()) for name, weight in alone.model.state_dict().items())
    assert moved > 0.01


def test_gradients_in_bfloat16_lead_about_where_whole_ones_do(tmp_path: Path) -> None:
    (exact, _), _ = weights_of_two(tmp_path)
    (first, losses), (second, same_losses) = weights_of_two(tmp_path, compress=True)
    assert losses == same_losses
    assert all(first[name].equal(second[name]) for name in first), "workers stay alike"
    apart = [float((first[name] - exact[name]).abs().max()) for name in exact]
    assert 0 < max(apart) < 0.05


def test_several_batches_are_learnt_from_in_one_step() -> None:
    batches = [batch_of(3, seed=1), batch_of(5, seed=2), batch_of(4, seed=3), batch_of(2, seed=4)]
    apart, together = make_learner(), make_learner()
    losses = learn(apart, list(batches), accumulate=2)
    torch.testing.assert_close(losses, learn(together, [joined(*batches[:2]), joined(*batches[2:])]), rtol=1e-5, atol=1e-5)
    assert apart.steps == together.steps == 2
    for weight, expected in zip(apart.model.parameters(), together.model.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=1e-5, atol=1e-5)


def test_the_average_follows_the_weights_and_is_what_is_validated() -> None:
    learner, batch = make_learner(ema_decay=0.9), batch_of(8, seed=1)
    expected = [weight.detach().clone() for weight in learner.model.parameters()]
    for step in range(30):
        learn(learner, [batch])
        kept = min(0.9, (1 + step) / (10 + step))
        expected = [
            kept * old + (1 - kept) * new.detach() for old, new in zip(expected, learner.model.parameters(), strict=True)
        ]
    for average, value in zip(learner.average.parameters(), expected, strict=True):
        torch.testing.assert_close(average, value, rtol=1e-5, atol=1e-6)
    nll, _ = learner.negative_log_likelihood([batch])
    assert nll == pytest.approx(float(learner.average.eval()(*vars(batch).values()).detach()))
    assert nll != pytest.approx(float(learner.model.eval()(*vars(batch).values()).detach()), rel=1e-3)


def test_rolling_back_undoes_what_was_learnt_since_but_counts_its_steps() -> None:
    learner, batches = make_learner(ema_decay=0.9), [batch_of(4, seed) for seed in range(6)]
    learn(learner, list(batches[:3]))
    learner.remember()
    kept = {
        name: weight.clone() for name, weight in [*learner.model.state_dict().items(), *learner.average.state_dict().items()]
    }
    for _ in range(2):  # what is remembered stays as it was
        after = learn(learner, list(batches[3:]))
        learner.steps = 3
        learner.roll_back()
    found = dict([*learner.model.state_dict().items(), *learner.average.state_dict().items()])
    assert all(found[name].equal(kept[name]) for name in kept)
    assert learner.steps == 3
    assert learn(learner, list(batches[3:])) == after, "the optimizer is as it was, too"


def test_learning_lowers_the_loss_and_validation_sees_it() -> None:
    learner, batch = make_learner(), batch_of(8, seed=1)
    before, tokens = learner.negative_log_likelihood([batch])
    learn(learner, [batch] * 60)
    after, _ = learner.negative_log_likelihood([batch, batch])
    assert tokens == int(batch.target_lengths.sum()) + 8
    assert after / 2 < 0.5 * before


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_going_on_from_a_saved_state_is_as_if_never_stopped(tmp_path: Path, average: float) -> None:
    batches: list[PairBatch | None] = [batch_of(4, seed) for seed in range(6)]
    undisturbed = make_learner(dropout=0.3, ema_decay=average)
    learn(undisturbed, batches[:3])
    torch.save([undisturbed.average.state_dict(), undisturbed.state_dict()], tmp_path / "state.pt")
    learn(undisturbed, batches[3:])

    resumed = make_learner(dropout=0.3, ema_decay=average)
    weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
    resumed.average.load_state_dict(weights)
    resumed.load_state_dict(state)
    torch.rand(5)  # whatever else was drawn meanwhile
    learn(resumed, batches[3:])
    assert resumed.steps == 6
    for name, weight in undisturbed.model.state_dict().items():
        torch.testing.assert_close(resumed.model.state_dict()[name], weight, rtol=0, atol=0)
    for weight, expected in zip(resumed.average.parameters(), undisturbed.average.parameters(), strict=True):
        torch.testing.assert_close(weight, expected, rtol=0, atol=0)


def test_bfloat16_computes_close_to_float32_and_keeps_float32_weights() -> None:
    try:
        half = make_learner(precision="bfloat16")
    except UserError as error:
        pytest.skip(str(error))
    full, batch = make_learner(), batch_of(16, seed=1)
    [loss], [half_loss] = learn(full, [batch]), learn(half, [batch])
    assert half_loss != loss
    assert half_loss == pytest.approx(loss, rel=0.02)
    assert {parameter.dtype for parameter in half.model.parameters()} == {torch.float32}


def test_a_precision_that_the_device_lacks_is_the_users_error() -> None:
    with pytest.raises(UserError, match="float16"):
        make_learner(precision="float16")


def test_gradients_are_clipped_to_the_norm() -> None:
    learner, batch = make_learner(clip_norm=0.001), batch_of(8, seed=1)
    step = learner.step([batch], learner.totals([batch], minutes=0.0), progress=0.0)
    assert float(step.gradient_norm) > 0.1
    # After one step, Adam's first moment is a tenth of the gradient that it was given.
    moments = [state["exp_avg"].flatten() for state in learner.state_dict()["optimizer"]["state"].values()]
    assert float(torch.cat(moments).norm()) == pytest.approx(0.1 * 0.001, rel=1e-3)


def test_the_rate_warms_up_then_falls_along_a_cosine() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=10, final_rate_share=0.1)
    assert [learning_rate(config, step, 0.0) for step in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert learning_rate(config, 100, 0.5) == pytest.approx(0.55)
    assert learning_rate(config, 100, 1.0) == pytest.approx(0.1)
    falling = [learning_rate(config, 100, progress) for progress in np.linspace(0, 1, 11)]
    assert falling == sorted(falling, reverse=True)
    assert learning_rate(TrainingConfig(learning_rate=1.0, warmup_steps=0), 0, 0.0) == 1.0


def test_a_short_training_is_not_all_warm_up() -> None:
    config = TrainingConfig(learning_rate=1.0, warmup_steps=400, final_rate_share=1.0)
    assert [learning_rate(config, step, step / 20) for step in (0, 1, 2, 10)] == pytest.approx([1 / 400, 0.5, 1.0, 1.0])


def test_the_nearest_bound_ends_a_training() -> None:
    assert progress_fraction(TrainingConfig(epochs=4), epochs=1, minutes=1e6, steps=10**6) == 0.25
    both = TrainingConfig(epochs=4, max_minutes=10, max_steps=100)
    assert progress_fraction(both, epochs=1, minutes=1, steps=1) == 0.25
    assert progress_fraction(both, epochs=1, minutes=5, steps=1) == 0.5
    assert progress_fraction(both, epochs=1, minutes=5, steps=80) == 0.8
    assert progress_fraction(both, epochs=5, minutes=5, steps=80) == 1.0
    assert progress_fraction(TrainingConfig(epochs=None, max_minutes=10), epochs=99, minutes=1, steps=10**6) == 0.1
