"""Compiled kernels at their limits; test_decode.py compares whole searches with the reference."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.data.special_tokens import BOS, EOS, PAD, UNK
from pipeline.decoding import cpu_kernels
from pipeline.decoding.backends import CpuBackend, TokenConstraints, TorchBackend

F32 = np.float32
CPU = torch.device("cpu")


def test_exp_sigmoid_and_tanh_over_the_whole_range() -> None:
    for x in [*np.linspace(-85, 85, 2001), 0.0, -0.0, 1e-30, -1e-30]:
        x = F32(x)
        assert cpu_kernels.exp(x) == pytest.approx(np.exp(np.float64(x)), rel=1e-6)
        assert cpu_kernels.sigmoid(x) == pytest.approx(1 / (1 + np.exp(-np.float64(x))), rel=1e-6, abs=1e-37)
        for (numerator, denominator), exact, tolerance in (
            (cpu_kernels.tanh_fraction(x), np.tanh(np.float64(x)), 4e-7),
            (cpu_kernels.sigmoid_fraction(x), 1 / (1 + np.exp(-np.float64(x))), 2e-7),
        ):
            assert numerator / denominator == pytest.approx(exact, abs=tolerance)
            assert 1 <= denominator < 600
    for x in (-1e4, -np.inf, 1e4, np.inf):  # saturated gates
        assert cpu_kernels.sigmoid(F32(x)) == pytest.approx(float(x > 0), abs=1e-37)
        assert np.divide(*cpu_kernels.tanh_fraction(F32(x))) == pytest.approx(np.sign(x), abs=4e-7)


def top_tokens(count: int, logits: torch.Tensor, constraints: TokenConstraints) -> torch.Tensor:
    """Return the tokens of both backends, which must agree."""
    (torch_tokens, torch_log_probs), (cpu_tokens, cpu_log_probs) = (
        backend.top_tokens(count, logits.clone(), constraints, None)
        for backend in (TorchBackend(CPU), CpuBackend(torch.float32))
    )
    torch.testing.assert_close(cpu_log_probs, torch_log_probs, rtol=1e-5, atol=1e-5)
    assert cpu_tokens.tolist() == torch_tokens.tolist()
    return cpu_tokens


def unconstrained(rows: int) -> TokenConstraints:
    return TokenConstraints(torch.empty(rows, 0, dtype=torch.long), 0, torch.tensor(True))


@pytest.mark.parametrize("size", [5, 255, 256, 257, 1000])
def test_top_token_at_any_position(size: int) -> None:
    logits = torch.randn(size - 3, size) - 9.0
    tokens = torch.arange(3, size)
    logits[tokens - 3, tokens] = -1.0  # negative, and the highest of the allowed ones
    logits[:, [PAD, UNK, BOS]] = 9.0
    assert top_tokens(1, logits, unconstrained(len(logits)))[:, 0].tolist() == tokens.tolist()


def test_top_tokens_fall_in_log_probability_and_are_allowed() -> None:
    torch.manual_seed(1)
    logits = torch.randn(50, 40)
    written = torch.randint(4, 40, (50, 6))
    written[:, 5] = written[:, 2]  # forbids the token after the first occurrence
    tokens = top_tokens(30, logits, TokenConstraints(written, 2, torch.tensor(False)))
    for row in range(50):
        assert written[row, 3] not in tokens[row]
        assert not {PAD, UNK, BOS, EOS} & set(tokens[row].tolist())
        top = logits[row, tokens[row]]
        assert (top[:-1] >= top[1:]).all()


def test_quantization_rounds_to_the_nearest() -> None:
    gates = torch.zeros(1, 4 * 64)
    gates[:, 128:192] = torch.linspace(-3, 3, 64)  # candidates
    gates[:, :64] = gates[:, 192:] = 30.0  # open input and output gates
    exact = torch.tanh(torch.tanh(gates[0, 128:192]))
    for backend, step in (
        (CpuBackend(torch.float32), 1e-6),
        (CpuBackend(torch.bfloat16), 2**-8),
        (CpuBackend(torch.float32, quantizes_to_bytes=True), 1 / 127),
    ):
        h = backend.zeros(1, 64)
        assert backend.dequantize(h).abs().max() == 0
        backend.cell(gates, torch.zeros(1, dtype=torch.long), torch.zeros(1, 256), torch.zeros(1, 64), h)
        assert (backend.dequantize(h)[0].float() - exact).abs().max() <= 0.51 * step
        torch.testing.assert_close(backend.quantize(exact), h[0], rtol=0, atol=1 if h.dtype == torch.uint8 else step)


@pytest.mark.parametrize("logit", [float("nan"), float("inf"), -float("inf")])
def test_top_tokens_of_nan_and_infinite_logits_terminate(logit: float) -> None:
    logits = torch.full((2, 600), logit)
    logits[1, :300] = 0.0
    tokens, _ = CpuBackend(torch.float32).top_tokens(3, logits, unconstrained(2), None)
    assert ((tokens >= 0) & (tokens < 600)).all()
