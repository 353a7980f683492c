"""The compiled loops at their edges; test_decoding.py holds the whole to the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.decoding import cpu_kernels
from pipeline.decoding.backends import CpuBackend, TorchBackend

F32 = np.float32
CPU = torch.device("cpu")


def test_exp_sigmoid_and_tanh_over_the_whole_range() -> None:
    for x in [*np.linspace(-85, 85, 2001), 0.0, -0.0, 1e-30, -1e-30]:
        x = F32(x)
        assert cpu_kernels._exp(x) == pytest.approx(np.exp(np.float64(x)), rel=1e-6)
        assert cpu_kernels._sigmoid(x) == pytest.approx(1 / (1 + np.exp(-np.float64(x))), rel=1e-6, abs=1e-37)
        for parts, exact, within in (
            (cpu_kernels._tanh_parts(x), np.tanh(np.float64(x)), 4e-7),
            (cpu_kernels._sigmoid_parts(x), 1 / (1 + np.exp(-np.float64(x))), 2e-7),
        ):
            assert parts[0] / parts[1] == pytest.approx(exact, abs=within)
            assert 1 <= parts[1] < 600
    for x in (-1e4, -np.inf, 1e4, np.inf):  # saturated gates
        assert cpu_kernels._sigmoid(F32(x)) == pytest.approx(float(x > 0), abs=1e-37)
        assert np.divide(*cpu_kernels._tanh_parts(F32(x))) == pytest.approx(np.sign(x), abs=4e-7)


def likeliest(number: int, logits: torch.Tensor, written: torch.Tensor, ngram: int = 0, may_end: bool = True) -> torch.Tensor:
    """From both arithmetics, which must agree."""
    plain, compiled = (
        arithmetic.likeliest(number, logits.clone(), written, ngram, torch.tensor(may_end), None)
        for arithmetic in (TorchBackend(CPU), CpuBackend(torch.float32))
    )
    torch.testing.assert_close(compiled[1], plain[1], rtol=1e-5, atol=1e-5)
    assert compiled[0].tolist() == plain[0].tolist()
    return compiled[0]


@pytest.mark.parametrize("size", [5, 255, 256, 257, 1000])
def test_the_likeliest_wherever_it_stands(size: int) -> None:
    logits = torch.randn(size - 3, size) - 9.0
    at = torch.arange(3, size)
    logits[at - 3, at] = -1.0  # negative, and the highest of those that may be written
    logits[:, [PAD, UNK, BOS]] = 9.0
    nothing = torch.empty(len(logits), 0, dtype=torch.long)
    assert likeliest(1, logits, nothing)[:, 0].tolist() == at.tolist()


def test_several_come_by_falling_log_probability_and_forbidden_ones_never() -> None:
    torch.manual_seed(1)
    logits = torch.randn(50, 40)
    written = torch.randint(4, 40, (50, 6))
    written[:, 5] = written[:, 2]  # a repeat, whose continuation is now forbidden
    found = likeliest(30, logits, written, ngram=2, may_end=False)
    for row in range(50):
        assert written[row, 3] not in found[row]
        assert not {PAD, UNK, BOS, EOS} & set(found[row].tolist())
        kept = logits[row, found[row]]
        assert (kept[:-1] >= kept[1:]).all()


def test_numbers_are_stored_to_the_nearest() -> None:
    gates = torch.zeros(1, 4 * 64)
    gates[:, 128:192] = torch.linspace(-3, 3, 64)  # candidates
    gates[:, :64] = gates[:, 192:] = 30.0  # open input and output gates
    exact = torch.tanh(torch.tanh(gates[0, 128:192]))
    for arithmetic, step in (
        (CpuBackend(torch.float32), 1e-6),
        (CpuBackend(torch.bfloat16), 2**-8),
        (CpuBackend(torch.float32, multiply_bytes=True), 1 / 127),
    ):
        h = arithmetic.zeros(1, 64)
        assert arithmetic.free(h).abs().max() == 0
        arithmetic.cell(gates, torch.zeros(1, dtype=torch.long), torch.zeros(1, 256), torch.zeros(1, 64), h)
        assert (arithmetic.free(h)[0].float() - exact).abs().max() <= 0.51 * step
        torch.testing.assert_close(arithmetic.stored(exact), h[0], rtol=0, atol=1 if h.dtype == torch.uint8 else step)


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), -float("inf")])
def test_logits_that_are_no_numbers_come_to_an_end(logit: float) -> None:
    logits = torch.full((2, 600), logit)
    logits[1, :300] = 0.0
    tokens, _ = CpuBackend(torch.float32).likeliest(3, logits, torch.empty(2, 0, dtype=torch.long), 0, torch.tensor(True), None)
    assert ((tokens >= 0) & (tokens < 600)).all()
