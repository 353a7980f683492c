"""A precision that the device cannot compute in is said, not emulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from random_models import needs_bytes

from pipeline.decoding.backends import CpuBackend, backend_for, supported_precisions
from pipeline.errors import UserError
from pipeline.model.precision import compute_dtype

CPU = torch.device("cpu")


@pytest.fixture
def built_for(monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Makes this CPU one that has just the instructions named."""
    return lambda *names: monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: dict.fromkeys(names, True))


def test_float32_is_always_there() -> None:
    assert compute_dtype("float32", CPU) == torch.float32


@pytest.mark.parametrize("name", ["avx512_bf16", "amx_bf16"])
def test_auto_is_bfloat16_where_the_cpu_has_it(name: str, built_for: Callable[..., None]) -> None:
    built_for("avx512_f", name)
    assert compute_dtype("auto", CPU) == torch.bfloat16
    assert compute_dtype("bfloat16", CPU) == torch.bfloat16


def test_auto_and_bfloat16_where_the_cpu_has_it_not(built_for: Callable[..., None]) -> None:
    built_for("avx512_f")
    assert compute_dtype("auto", CPU) == torch.float32
    with pytest.raises(UserError, match="does not compute in bfloat16; set the precision to auto or float32"):
        compute_dtype("bfloat16", CPU)


def test_float16_on_a_cpu() -> None:
    with pytest.raises(UserError, match="float16 computes on GPUs alone"):
        compute_dtype("float16", CPU)


@pytest.mark.parametrize(
    ("names", "free", "levels"),
    [
        (["avx2"], torch.float32, 64),
        (["avx2", "avx512_vnni"], torch.float32, 127),
        (["avx2", "avx512_vnni", "avx512_bf16"], torch.bfloat16, 127),
    ],
    ids=str,
)
def test_int8_where_the_cpu_multiplies_bytes(
    names: list[str], free: torch.dtype, levels: int, built_for: Callable[..., None]
) -> None:
    built_for(*names)
    arithmetic = backend_for("int8", CPU)
    assert isinstance(arithmetic, CpuBackend)
    assert (arithmetic.dtype, arithmetic.weight_levels) == (free, levels)
    assert arithmetic.zeros(1).dtype == torch.uint8


def test_int8_where_it_does_not(built_for: Callable[..., None]) -> None:
    built_for("sse4_2")
    with pytest.raises(UserError, match="int8 computes on CPUs with AVX2 alone"):
        backend_for("int8", CPU)
    with pytest.raises(UserError, match="int8 computes on CPUs"):
        backend_for("int8", torch.device("cuda"))
    assert supported_precisions(CPU) == ["float32"]


def test_this_machine_decodes_in_what_it_says(built_for: Callable[..., None]) -> None:
    assert supported_precisions(CPU)[0] == "float32"
    built_for("avx2", "avx512_bf16")
    assert supported_precisions(CPU) == ["float32", "bfloat16", "int8"]


@needs_bytes
@pytest.mark.parametrize("columns", [64, 256, 1000])
@pytest.mark.parametrize("byte", [1, 255])
def test_sums_of_bytes_are_exact_at_their_largest(columns: int, byte: int) -> None:
    arithmetic = backend_for("int8", CPU)
    weight = torch.randn(48, columns)
    weight[:16] = 3.0  # each product is the largest there is, and so are the sums of neighbours
    weight[16:32] = -3.0
    bytes_ = torch.full((5, columns), byte, dtype=torch.uint8)
    assert isinstance(arithmetic, CpuBackend)
    scale = weight.abs().amax(1, keepdim=True) / arithmetic.weight_levels
    exact = (bytes_.double() - 128) / 127 @ ((weight / scale).round() * scale).double().t()
    torch.testing.assert_close(arithmetic.product(weight, None)(bytes_).double(), exact, rtol=1e-5, atol=1e-4)
