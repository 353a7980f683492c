"""A precision that the device does not support is an error, never emulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_models import needs_int8

from pipeline.decoding.backends import CpuBackend, backend_for, supported_precisions
from pipeline.errors import UserError
from pipeline.model.precision import compute_dtype

CPU = torch.device("cpu")


@pytest.fixture
def set_capabilities(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Return a function that pretends the CPU has only the given instructions."""
    return lambda *names: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_auto_is_bfloat16_on_a_cpu_that_has_it(name: str, set_capabilities: Callable[..., None]) -> None:
    set_capabilities("avx512_f", name)
    assert compute_dtype("auto", CPU) == torch.bfloat16
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16
    assert compute_dtype("float32", CPU) == torch.float32


def test_auto_is_float32_on_another_cpu(set_capabilities: Callable[..., None]) -> None:
    set_capabilities("avx512_f")
    assert compute_dtype("auto", CPU) == torch.float32
    with pytest.raises(UserError, match="bfloat16"):
        compute_dtype("bfloat16", CPU)


def test_float16_needs_a_gpu() -> None:
    with pytest.raises(UserError, match="float16"):
        compute_dtype("float16", CPU)


@pytest.mark.parametrize(
    ("names", "dtype", "levels"),
    [
        (["avx2"], torch.float32, 64),
        (["avx2", "avx512_vnni"], torch.float32, 127),
        (["avx2", "avx512_vnni", "avx512_bf16"], torch.bfloat16, 127),
    ],
    ids=str,
)
def test_int8_backend_follows_the_cpu(
    names: list[str], dtype: torch.dtype, levels: int, set_capabilities: Callable[..., None]
) -> None:
    set_capabilities(*names)
    backend = backend_for("int8", CPU)
    assert isinstance(backend, CpuBackend)
    assert (backend.dtype, backend.weight_levels) == (dtype, levels)
    assert backend.zeros(1).dtype == torch.uint8


def test_int8_needs_a_cpu_with_avx2(set_capabilities: Callable[..., None]) -> None:
    set_capabilities("sse4_2")
    for device in (CPU, torch.device("cuda")):
        with pytest.raises(UserError, match="AVX2"):
            backend_for("int8", device)


def test_supported_precisions(set_capabilities: Callable[..., None]) -> None:
    assert supported_precisions(CPU)[0] == "float32"
    set_capabilities("avx2", "avx512_bf16")
    assert supported_precisions(CPU) == ["float32", "bfloat16", "int8"]
    set_capabilities("sse4_2")
    assert supported_precisions(CPU) == ["float32"]


@needs_int8
@pytest.mark.parametrize("columns", [64, 256, 1000])
@pytest.mark.parametrize("byte", [1, 255])
def test_int8_sums_are_exact_at_the_largest_values(columns: int, byte: int) -> None:
    backend = backend_for("int8", CPU)
    weight = torch.randn(48, columns)
    weight[:16] = 3.0  # the largest possible products, and sums of neighbors
    weight[16:32] = -3.0
    inputs = torch.full((5, columns), byte, dtype=torch.uint8)
    assert isinstance(backend, CpuBackend)
    scale = weight.abs().amax(1, keepdim=True) / backend.weight_levels
    exact = (inputs.double() - 128) / 127 @ ((weight / scale).round() * scale).double().t()
    torch.testing.assert_close(backend.product(weight, None)(inputs).double(), exact, rtol=1e-5, atol=1e-4)
