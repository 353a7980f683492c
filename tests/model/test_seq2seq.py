"""The network against the reference: training loss, states, gradients, and that padding is never felt."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from random_models import SHAPES, name_of, needs_bfloat16, random_model, rows_of
from reference import Reference
from torch import Tensor, nn
from torch.nn import functional as F

from jobs.benchmark.common.baseline_decoders import next_probabilities
from pipeline.config.model import ModelConfig
from pipeline.data.special_tokens import BOS, EOS
from pipeline.model import rnn, seq2seq
from pipeline.model.batching import PairBatch
from pipeline.model.rnn import Dropout
from pipeline.model.seq2seq import LossConfig, Seq2Seq

VOCABULARY = 80
LAST_COLUMNS = [f"weight_ih_l0{direction}" for direction in ("", "_reverse")]
EVERYTHING: list[dict[str, Any]] = [
    {"cell": cell, "attention": "additive", "bidirectional": True, "copy": True, "layers": 2, "tied_embeddings": False}
    for cell in ("lstm", "gru")
]


def pairs(count: int = 9) -> tuple[list[list[int]], list[list[int]]]:
    """Sources of 1 to 17 tokens and targets of 0 to 6, half of whose tokens are in the source."""
    rng = np.random.default_rng(1)
    sources = [rng.integers(4, VOCABULARY, size=1 + 2 * row).tolist() for row in range(count)]
    targets = [
        [int(rng.choice(source) if rng.random() < 0.5 else rng.integers(4, VOCABULARY)) for _ in range(3 * row % 7)]
        for row, source in enumerate(sources)
    ]
    return sources, targets


def batch_of(sources: list[list[int]], targets: list[list[int]]) -> PairBatch:
    every = np.arange(len(sources))
    return PairBatch(*rows_of(sources).padded(every, 99), *rows_of(targets).padded(every, 99))


def nll(model: Seq2Seq, batch: PairBatch) -> Tensor:
    loss: Tensor = model(batch.source, batch.source_lengths, batch.target, batch.target_lengths)
    return loss


def with_other_padding(batch: PairBatch, seed: int) -> PairBatch:
    """The same pairs with random ids where nothing is to be read."""
    generator = torch.Generator().manual_seed(seed)

    def refilled(ids: Tensor, lengths: Tensor) -> Tensor:
        noise = torch.randint(VOCABULARY, ids.shape, generator=generator)
        return torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, noise)

    return PairBatch(
        refilled(batch.source, batch.source_lengths),
        batch.source_lengths,
        refilled(batch.target, batch.target_lengths),
        batch.target_lengths,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_teacher_forcing_sums_the_log_probabilities_of_the_reference(shape: dict[str, Any]) -> None:
    model, (sources, targets) = random_model(shape, VOCABULARY), pairs()
    reference = Reference(model)
    expected = [reference.log_probs(source, target) for source, target in zip(sources, targets, strict=True)]
    assert nll(model, batch_of(sources, targets)).item() == pytest.approx(-sum(map(sum, expected)), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_the_encoder_gives_the_states_of_the_reference(shape: dict[str, Any]) -> None:
    model, (sources, targets) = random_model(shape, VOCABULARY), pairs()
    reference, batch = Reference(model), batch_of(sources, targets)
    memory, state = model.encode(batch.source, batch.source_lengths)
    for row, source in enumerate(sources):
        expected = reference.encode(source)
        cells = [torch.stack(parts) for parts in zip(*expected.first, strict=True)]  # h, and c of an LSTM
        for part, cell in zip(state, cells, strict=False):
            torch.testing.assert_close(part[:, row].double(), cell, atol=1e-4, rtol=1e-4)
        if memory.states is not None:
            real = memory.states[row, : len(source)].double()
            torch.testing.assert_close(real, expected.states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_one_step_gives_the_distribution_of_the_reference(shape: dict[str, Any]) -> None:
    model, (sources, _) = random_model(shape, VOCABULARY), pairs()
    reference, batch = Reference(model), batch_of(sources, sources)
    with torch.inference_mode():
        memory, state = model.encode(batch.source, batch.source_lengths)
        probs, _ = next_probabilities(model, torch.full((len(sources),), BOS), state, memory)
        for row, source in enumerate(sources):
            encoded = reference.encode(source)
            expected, _, _ = reference.step(BOS, encoded.first, encoded)
            torch.testing.assert_close(probs[row].double(), expected.exp(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(sources)))


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_padding_changes_neither_the_loss_nor_a_gradient(shape: dict[str, Any]) -> None:
    model, batch = random_model(shape, VOCABULARY), batch_of(*pairs())

    def learn(batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
        loss = nll(model, batch)
        return loss, list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = learn(batch)
    for seed in (1, 2):
        other_loss, other_gradients = learn(with_other_padding(batch, seed))
        assert torch.equal(other_loss, loss)
        for other, gradient in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-5)


def test_a_batch_costs_what_its_rows_cost_alone() -> None:
    model, (sources, targets) = random_model(EVERYTHING[0], VOCABULARY), pairs()
    alone = [nll(model, batch_of([source], [target])).item() for source, target in zip(sources, targets, strict=True)]
    assert nll(model, batch_of(sources, targets)).item() == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=name_of)
def test_every_parameter_learns(shape: dict[str, Any]) -> None:
    model = random_model(shape, VOCABULARY)
    nll(model, batch_of(*pairs())).backward()
    still = [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()]
    assert still == []


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("shape", EVERYTHING, ids=name_of)
def test_training_leaves_the_hold_at_padding_as_it_is(shape: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = random_model(shape, VOCABULARY)
    batch = batch_of(*pairs())

    def holds() -> list[Tensor]:
        return [getattr(layer, name)[:, -1].detach().clone() for layer in model.encoder.layers for name in LAST_COLUMNS]

    before, losses = holds(), []
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2, fused=True)
    model.train()
    for step in range(30):
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = nll(model, with_other_padding(batch, step))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
    assert all(torch.equal(now, then) for now, then in zip(holds(), before, strict=True))
    model.eval()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert torch.equal(nll(model, batch), nll(model, with_other_padding(batch, 99)))


def test_a_gold_token_that_nothing_predicts_has_a_finite_loss_and_gradient() -> None:
    model = random_model({"cell": "gru", "attention": "dot", "bidirectional": True, "copy": True}, VOCABULARY)
    assert model.decoder.copy_gate is not None
    with torch.no_grad():
        model.decoder.copy_gate.bias.fill_(-500.0)  # always copies
    loss = nll(model, batch_of([[5, 6, 7]], [[8]]))
    loss.backward()
    assert 50 < loss.item() < 1000
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def loss_and_gradients(model: Seq2Seq, batch: PairBatch, objective: LossConfig) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = model(batch.source, batch.source_lengths, batch.target, batch.target_lengths, objective)
    loss.backward()
    return float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("most", [1, 1 << 26], ids=["computed again", "kept"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[-1]], ids=name_of)
def test_logits_in_parts_give_the_same(shape: dict[str, Any], most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batch, objective = random_model(shape, VOCABULARY), batch_of(*pairs()), LossConfig(label_smoothing=0.1)
    loss, gradients = loss_and_gradients(model, batch, objective)
    monkeypatch.setattr(seq2seq, "_LOGITS_OF_A_PART", VOCABULARY * 3)  # three tokens
    monkeypatch.setattr(seq2seq, "_MOST_LOGITS", most)
    computed = 0
    of_a_part = model._of_a_part

    def counted(features: Tensor, gold: Tensor, spread: bool) -> Tensor:
        nonlocal computed
        computed += 1
        return of_a_part(features, gold, spread)

    monkeypatch.setattr(model, "_of_a_part", counted)
    in_parts, of_parts = loss_and_gradients(model, batch, objective)
    parts = math.ceil(int((batch.target_lengths + 1).sum()) / 3)
    assert computed == (2 * parts if most == 1 else parts) > 2
    assert in_parts == pytest.approx(loss, rel=1e-5)
    for one, other in zip(of_parts, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_label_smoothing_is_a_share_of_all_tokens_alike() -> None:
    """As torch has it, of the distribution of the reference."""
    shape = {"cell": "lstm", "attention": "dot", "bidirectional": True, "copy": False}
    model, batch = random_model(shape, VOCABULARY), batch_of(*pairs())
    expected = 0.0
    for row in range(len(batch.source)):
        source = batch.source[row, : batch.source_lengths[row]].tolist()
        target = batch.target[row, : batch.target_lengths[row]].tolist()
        memory, state = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
        for before, gold in zip([BOS, *target], [*target, EOS], strict=True):
            probs, state = next_probabilities(model, torch.tensor([before]), state, memory)
            expected += float(F.cross_entropy(probs.detach().log(), torch.tensor([gold]), label_smoothing=0.2))
    loss, _ = loss_and_gradients(model, batch, LossConfig(label_smoothing=0.2))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_coverage_is_what_attention_gives_again() -> None:
    shape = {"cell": "gru", "attention": "general", "bidirectional": True, "copy": True}
    model, batch = random_model(shape, VOCABULARY), batch_of(*pairs())
    plain, _ = loss_and_gradients(model, batch, LossConfig())
    memory, state = model.encode(batch.source, batch.source_lengths)
    _, weights, _, _ = model.decoder(F.pad(batch.target, (1, 0), value=BOS), state, memory)
    assert weights is not None
    again = sum(
        float(torch.minimum(weights[row, step], weights[row, :step].sum(0)).sum())
        for row in range(len(batch.target))
        for step in range(int(batch.target_lengths[row]) + 1)
    )
    loss, _ = loss_and_gradients(model, batch, LossConfig(coverage=0.5))
    assert loss == pytest.approx(plain + 0.5 * again, rel=1e-5)


def test_dropout_is_of_training_alone() -> None:
    model, batch = random_model({**EVERYTHING[0], "dropout": 0.5}, VOCABULARY), batch_of(*pairs())
    assert torch.equal(nll(model, batch), nll(model, batch))
    model.train()
    assert not torch.equal(nll(model, batch), nll(model, batch))


def test_variational_dropout_drops_the_same_units_at_each_step() -> None:
    torch.manual_seed(1)
    config = ModelConfig(dropout=0.5, variational_dropout=True)
    dropped = Dropout(config)(torch.ones(6, 50, 40))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped)), "alike at all steps"
    assert not torch.equal(dropped[0], dropped[1]), "but not in all rows"
    assert dropped.unique().tolist() == [0.0, 2.0]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_dropout_is_that_of_the_weights_from_step_to_step(cell: str) -> None:
    """Against torch's own layers whose weights have lost the same numbers."""
    options = {"cell": cell, "layers": 2, "bidirectional": True, "copy": True, "attention": "general", "dropout": 0.0}
    model = random_model({**options, "recurrent_dropout": 0.5}, VOCABULARY).train()
    batch = batch_of(*pairs())
    torch.manual_seed(5)
    loss = nll(model, batch)
    loss.backward()
    whole = random_model({**options, "recurrent_dropout": 0.0}, VOCABULARY)
    whole.load_state_dict(model.state_dict())
    torch.manual_seed(5)
    with torch.no_grad():
        for recurrence in (*model.encoder.layers, model.decoder.recurrence):
            assert isinstance(recurrence, nn.RNNBase)
            for weights in rnn.all_weights:
                weights[1].copy_(F.dropout(weights[1], 0.5))
        whole.load_state_dict(model.state_dict())
    assert loss.item() == pytest.approx(nll(whole, batch).item(), rel=1e-5)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("kind", [{"variational_dropout": True}, {"recurrent_dropout": 0.3}])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_other_dropout_is_of_training_alone_and_leaves_the_parameters_their_names(cell: str, kind: dict[str, Any]) -> None:
    shape = {"cell": cell, "layers": 2, "bidirectional": True, "dropout": 0.3}
    model, plain, batch = random_model({**shape, **kind}, VOCABULARY), random_model(shape, VOCABULARY), batch_of(*pairs())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(nll(model, batch), nll(plain, batch))
    model.train()
    assert not torch.equal(nll(model, batch), nll(model, batch))


def test_tied_embeddings_are_one_table() -> None:
    for tied, tables in ((True, 1), (False, 3)):
        model = random_model({"tied_embeddings": tied}, VOCABULARY)
        users = (model.encoder.embedding, model.decoder.embedding, model.decoder.output)
        assert len({id(user.weight) for user in users}) == tables


@pytest.mark.parametrize("shape", EVERYTHING, ids=name_of)
@pytest.mark.parametrize("extra", [{}, {"dropout": 0.3, "recurrent_dropout": 0.3}], ids=["plain", "dropout"])
def test_recurrences_learn_the_same_where_autocast_is_kept_out_of_them(
    shape: dict[str, Any], extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As it is on GPUs, here in float32, with nothing else to tell them apart."""
    model, batch = random_model({**shape, **extra}, VOCABULARY).train(), batch_of(*pairs())

    def learn() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        loss = nll(model, batch)
        return loss, list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = learn()
    monkeypatch.setattr(rnn, "_dtype_beside_autocast", lambda _: torch.float32)
    beside, gradients_beside = learn()
    torch.testing.assert_close(beside, loss)
    for one, other in zip(gradients_beside, gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("shape", EVERYTHING, ids=name_of)
def test_recurrences_do_not_learn_in_float16_unasked(shape: dict[str, Any]) -> None:
    device = torch.device("cuda")
    model, batch = random_model(shape, VOCABULARY).train().to(device), batch_of(*pairs()).to(device)
    with torch.autocast("cuda", torch.bfloat16):
        states, state = model.encoder(batch.source, batch.source_lengths, torch.zeros_like(batch.source, dtype=torch.bool))
        loss = nll(model, batch)
    assert torch.float16 not in {part.dtype for part in (states, *state)}
    gradients = torch.autograd.grad(loss * 1e-4, list(model.parameters()))  # a mean's, over thousands of tokens
    exact = torch.autograd.grad(nll(model, batch) * 1e-4, list(model.parameters()))
    for one, other in zip(gradients, exact, strict=True):
        assert float((one - other).norm()) <= 0.05 * float(other.norm()) + 1e-8
