"""A precision that the device cannot compute in is said, not emulated."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from pipeline.errors import UserError
from pipeline.model.arithmetic import Compiled
from pipeline.model.precision import arithmetic_for, compute_dtype

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
    ("names", "free"), [(["avx512_vnni"], torch.float32), (["avx512_vnni", "avx512_bf16"], torch.bfloat16)], ids=str
)
def test_int8_where_the_cpu_multiplies_bytes(names: list[str], free: torch.dtype, built_for: Callable[..., None]) -> None:
    built_for(*names)
    arithmetic = arithmetic_for("int8", CPU)
    assert isinstance(arithmetic, Compiled)
    assert arithmetic.dtype == free
    assert arithmetic.zeros(1).dtype == torch.uint8


def test_int8_where_it_does_not(built_for: Callable[..., None]) -> None:
    built_for("avx2")
    with pytest.raises(UserError, match="int8 computes on CPUs with AVX-512 VNNI alone"):
        arithmetic_for("int8", CPU)
    with pytest.raises(UserError, match="int8 computes on CPUs"):
        arithmetic_for("int8", torch.device("cuda"))
