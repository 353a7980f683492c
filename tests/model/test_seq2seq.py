"""The network agrees with the reference in loss, states and distributions, and padding has no effect."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from random_models import SHAPES, needs_bfloat16, random_model, shape_id, to_rows
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
    """Return sources of 1 to 17 tokens and targets of 0 to 6; half of the target tokens occur in their source."""
    rng = np.random.default_rng(1)
    sources = [rng.integers(4, VOCABULARY, size=1 + 2 * row).tolist() for row in range(count)]
    targets = [
        [int(rng.choice(source) if rng.random() < 0.5 else rng.integers(4, VOCABULARY)) for _ in range(3 * row % 7)]
        for row, source in enumerate(sources)
    ]
    return sources, targets


def batch_of(sources: list[list[int]], targets: list[list[int]]) -> PairBatch:
    rows = np.arange(len(sources))
    return PairBatch(*to_rows(sources).padded(rows, 99), *to_rows(targets).padded(rows, 99))


def nll(model: Seq2Seq, batch: PairBatch) -> Tensor:
    loss: Tensor = model(batch.source, batch.source_lengths, batch.target, batch.target_lengths)
    return loss


def with_other_padding(batch: PairBatch, seed: int) -> PairBatch:
    """Return the same pairs with random ids at padding."""
    generator = torch.Generator().manual_seed(seed)

    def refill(ids: Tensor, lengths: Tensor) -> Tensor:
        noise = torch.randint(VOCABULARY, ids.shape, generator=generator)
        return torch.where(torch.arange(ids.shape[1]) < lengths[:, None], ids, noise)

    return PairBatch(
        refill(batch.source, batch.source_lengths),
        batch.source_lengths,
        refill(batch.target, batch.target_lengths),
        batch.target_lengths,
    )


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_loss_is_the_sum_of_the_reference_log_probabilities(shape: dict[str, Any]) -> None:
    model, (sources, targets) = random_model(shape, VOCABULARY), pairs()
    reference = Reference(model)
    expected = [reference.log_probs(source, target) for source, target in zip(sources, targets, strict=True)]
    assert nll(model, batch_of(sources, targets)).item() == pytest.approx(-sum(map(sum, expected)), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_encoder_states_match_the_reference(shape: dict[str, Any]) -> None:
    model, (sources, targets) = random_model(shape, VOCABULARY), pairs()
    reference, batch = Reference(model), batch_of(sources, targets)
    encoder_output, state = model.encode(batch.source, batch.source_lengths)
    for row, source in enumerate(sources):
        expected = reference.encode(source)
        cells = [torch.stack(parts) for parts in zip(*expected.cells, strict=True)]  # h, and c of an LSTM
        for part, cell in zip(state, cells, strict=False):
            torch.testing.assert_close(part[:, row].double(), cell, atol=1e-4, rtol=1e-4)
        if encoder_output.states is not None:
            states = encoder_output.states[row, : len(source)].double()
            torch.testing.assert_close(states, expected.states, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_step_distribution_matches_the_reference(shape: dict[str, Any]) -> None:
    model, (sources, _) = random_model(shape, VOCABULARY), pairs()
    reference, batch = Reference(model), batch_of(sources, sources)
    with torch.inference_mode():
        encoder_output, state = model.encode(batch.source, batch.source_lengths)
        probs, _ = next_probabilities(model, torch.full((len(sources),), BOS), state, encoder_output)
        for row, source in enumerate(sources):
            encoded = reference.encode(source)
            expected, _, _ = reference.step(BOS, encoded.cells, encoded)
            torch.testing.assert_close(probs[row].double(), expected.exp(), atol=1e-5, rtol=1e-4)
    torch.testing.assert_close(probs.sum(-1), torch.ones(len(sources)))


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_padding_changes_neither_loss_nor_gradients(shape: dict[str, Any]) -> None:
    model, batch = random_model(shape, VOCABULARY), batch_of(*pairs())

    def compute(batch: PairBatch) -> tuple[Tensor, list[Tensor]]:
        loss = nll(model, batch)
        return loss, list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = compute(batch)
    for seed in (1, 2):
        other_loss, other_gradients = compute(with_other_padding(batch, seed))
        assert torch.equal(other_loss, loss)
        for other, gradient in zip(other_gradients, gradients, strict=True):
            torch.testing.assert_close(other, gradient, atol=1e-6, rtol=1e-5)


def test_loss_of_a_batch_is_the_sum_over_its_rows() -> None:
    model, (sources, targets) = random_model(EVERYTHING[0], VOCABULARY), pairs()
    alone = [nll(model, batch_of([source], [target])).item() for source, target in zip(sources, targets, strict=True)]
    assert nll(model, batch_of(sources, targets)).item() == pytest.approx(sum(alone), rel=1e-5)


@pytest.mark.parametrize("shape", SHAPES, ids=shape_id)
def test_every_parameter_gets_a_gradient(shape: dict[str, Any]) -> None:
    model = random_model(shape, VOCABULARY)
    nll(model, batch_of(*pairs())).backward()
    assert [name for name, weight in model.named_parameters() if weight.grad is None or not weight.grad.any()] == []


@pytest.mark.parametrize("dtype", [torch.float32, pytest.param(torch.bfloat16, marks=needs_bfloat16)])
@pytest.mark.parametrize("shape", EVERYTHING, ids=shape_id)
def test_training_does_not_change_the_padding_weights(shape: dict[str, Any], dtype: torch.dtype) -> None:
    torch.manual_seed(1)
    model = random_model(shape, VOCABULARY)
    batch = batch_of(*pairs())

    def padding_weights() -> list[Tensor]:
        return [getattr(layer, name)[:, -1].detach().clone() for layer in model.encoder.layers for name in LAST_COLUMNS]

    initial, losses = padding_weights(), []
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
    assert all(torch.equal(*weights) for weights in zip(padding_weights(), initial, strict=True))
    model.eval()
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        assert torch.equal(nll(model, batch), nll(model, with_other_padding(batch, 99)))


def test_impossible_gold_token_has_a_finite_loss_and_gradient() -> None:
    model = random_model({"cell": "gru", "attention": "dot", "bidirectional": True, "copy": True}, VOCABULARY)
    assert model.decoder.copy_gate is not None
    with torch.no_grad():
        model.decoder.copy_gate.bias.fill_(-500.0)  # always copies
    loss = nll(model, batch_of([[5, 6, 7]], [[8]]))
    loss.backward()
    assert 50 < loss.item() < 1000
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


def loss_and_gradients(model: Seq2Seq, batch: PairBatch, loss_config: LossConfig) -> tuple[float, list[Tensor]]:
    model.zero_grad()
    loss = model(batch.source, batch.source_lengths, batch.target, batch.target_lengths, loss_config)
    loss.backward()
    return float(loss.detach()), [parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None]


@pytest.mark.parametrize("max_saved_logits", [1, 1 << 26], ids=["computed again", "saved"])
@pytest.mark.parametrize("shape", [SHAPES[0], SHAPES[3], SHAPES[-1]], ids=shape_id)
def test_logits_in_chunks_give_the_same_loss(
    shape: dict[str, Any], max_saved_logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch, loss_config = random_model(shape, VOCABULARY), batch_of(*pairs()), LossConfig(label_smoothing=0.1)
    loss, gradients = loss_and_gradients(model, batch, loss_config)
    monkeypatch.setattr(seq2seq, "CHUNK_LOGITS", VOCABULARY * 3)  # three tokens
    monkeypatch.setattr(seq2seq, "MAX_SAVED_LOGITS", max_saved_logits)
    calls: list[int] = []
    model.decoder.output.register_forward_hook(lambda *_: calls.append(1))
    chunked_loss, chunked_gradients = loss_and_gradients(model, batch, loss_config)
    chunks = math.ceil(int((batch.target_lengths + 1).sum()) / 3)
    assert len(calls) == (2 * chunks if max_saved_logits == 1 else chunks) > 2
    assert chunked_loss == pytest.approx(loss, rel=1e-5)
    for one, other in zip(chunked_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_label_smoothing_matches_torch() -> None:
    shape = {"cell": "lstm", "attention": "dot", "bidirectional": True, "copy": False}
    model, batch = random_model(shape, VOCABULARY), batch_of(*pairs())
    expected = 0.0
    for row in range(len(batch.source)):
        source = batch.source[row, : batch.source_lengths[row]].tolist()
        target = batch.target[row, : batch.target_lengths[row]].tolist()
        encoder_output, state = model.encode(torch.tensor([source]), torch.tensor([len(source)]))
        for previous, gold in zip([BOS, *target], [*target, EOS], strict=True):
            probs, state = next_probabilities(model, torch.tensor([previous]), state, encoder_output)
            expected += float(F.cross_entropy(probs.detach().log(), torch.tensor([gold]), label_smoothing=0.2))
    loss, _ = loss_and_gradients(model, batch, LossConfig(label_smoothing=0.2))
    assert loss == pytest.approx(expected, rel=1e-4)


def test_coverage_loss_is_attention_to_attended_positions() -> None:
    shape = {"cell": "gru", "attention": "general", "bidirectional": True, "copy": True}
    model, batch = random_model(shape, VOCABULARY), batch_of(*pairs())
    plain, _ = loss_and_gradients(model, batch, LossConfig())
    encoder_output, state = model.encode(batch.source, batch.source_lengths)
    _, weights, _, _ = model.decoder(F.pad(batch.target, (1, 0), value=BOS), state, encoder_output)
    assert weights is not None
    repeated = sum(
        torch.minimum(weights[row, step], weights[row, :step].sum(0)).sum().item()
        for row in range(len(batch.target))
        for step in range(int(batch.target_lengths[row]) + 1)
    )
    loss, _ = loss_and_gradients(model, batch, LossConfig(coverage=0.5))
    assert loss == pytest.approx(plain + 0.5 * repeated, rel=1e-5)


def test_dropout_applies_in_training_only() -> None:
    model, batch = random_model({**EVERYTHING[0], "dropout": 0.5}, VOCABULARY), batch_of(*pairs())
    assert torch.equal(nll(model, batch), nll(model, batch))
    model.train()
    assert not torch.equal(nll(model, batch), nll(model, batch))


def test_variational_dropout_drops_the_same_units_at_each_step() -> None:
    torch.manual_seed(1)
    config = ModelConfig(dropout=0.5, variational_dropout=True)
    dropped = Dropout(config)(torch.ones(6, 50, 40))
    assert torch.equal(dropped, dropped[:, :1].expand_as(dropped)), "same at all steps"
    assert not torch.equal(dropped[0], dropped[1]), "different in each row"
    assert dropped.unique().tolist() == [0.0, 2.0]
    assert float((dropped == 0).float().mean()) == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_recurrent_dropout_drops_hidden_weights(cell: str) -> None:
    """Compare with torch's layers after dropping the same weights."""
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
            for weights in recurrence.all_weights:
                weights[1].copy_(F.dropout(weights[1], 0.5))
        whole.load_state_dict(model.state_dict())
    assert loss.item() == pytest.approx(nll(whole, batch).item(), rel=1e-5)
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())


@pytest.mark.parametrize("option", [{"variational_dropout": True}, {"recurrent_dropout": 0.3}])
@pytest.mark.parametrize("cell", ["lstm", "gru"])
def test_other_dropout_applies_in_training_only_and_keeps_parameter_names(cell: str, option: dict[str, Any]) -> None:
    shape = {"cell": cell, "layers": 2, "bidirectional": True, "dropout": 0.3}
    model, plain, batch = random_model({**shape, **option}, VOCABULARY), random_model(shape, VOCABULARY), batch_of(*pairs())
    plain.load_state_dict(model.state_dict())
    assert torch.equal(nll(model, batch), nll(plain, batch))
    model.train()
    assert not torch.equal(nll(model, batch), nll(model, batch))


def test_tied_embeddings_share_one_table() -> None:
    for tied, tables in ((True, 1), (False, 3)):
        model = random_model({"tied_embeddings": tied}, VOCABULARY)
        users = (model.encoder.embedding, model.decoder.embedding, model.decoder.output)
        assert len({id(user.weight) for user in users}) == tables


@pytest.mark.parametrize("shape", EVERYTHING, ids=shape_id)
@pytest.mark.parametrize("extra", [{}, {"dropout": 0.3, "recurrent_dropout": 0.3}], ids=["plain", "dropout"])
def test_rnns_without_autocast_give_the_same_gradients(
    shape: dict[str, Any], extra: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Run the code path of GPUs in float32, where both paths compute the same."""
    model, batch = random_model({**shape, **extra}, VOCABULARY).train(), batch_of(*pairs())

    def compute() -> tuple[Tensor, list[Tensor]]:
        torch.manual_seed(1)
        loss = nll(model, batch)
        return loss, list(torch.autograd.grad(loss, list(model.parameters())))

    loss, gradients = compute()
    monkeypatch.setattr(rnn, "dtype_instead_of_autocast", lambda _: torch.float32)
    other_loss, other_gradients = compute()
    torch.testing.assert_close(other_loss, loss)
    for one, other in zip(other_gradients, gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("shape", EVERYTHING, ids=shape_id)
def test_rnns_do_not_train_in_float16_under_bfloat16_autocast(shape: dict[str, Any]) -> None:
    device = torch.device("cuda")
    model, batch = random_model(shape, VOCABULARY).train().to(device), batch_of(*pairs()).to(device)
    with torch.autocast("cuda", torch.bfloat16):
        states, state = model.encoder(batch.source, batch.source_lengths, torch.zeros_like(batch.source, dtype=torch.bool))
        loss = nll(model, batch)
    assert torch.float16 not in {part.dtype for part in (states, *state)}
    gradients = torch.autograd.grad(loss * 1e-4, list(model.parameters()))  # the scale of a mean over thousands of tokens
    exact = torch.autograd.grad(nll(model, batch) * 1e-4, list(model.parameters()))
    for one, other in zip(gradients, exact, strict=True):
        assert float((one - other).norm()) <= 0.05 * float(other.norm()) + 1e-8
