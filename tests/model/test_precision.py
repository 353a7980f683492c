"""A precision that the device cannot compute in is said, not emulated."""

from __future__ import annotations

import pytest
import torch

from pipeline.errors import UserError
from pipeline.model.precision import compute_dtype

CPU = torch.device("cpu")
NATIVE = any(torch.cpu.get_capabilities().get(name) for name in ("avx512_bf16", "amx_bf16"))


def test_float32_is_always_there() -> None:
    assert compute_dtype("float32", CPU) == torch.float32


def test_auto_is_bfloat16_where_the_cpu_has_it() -> None:
    assert compute_dtype("auto", CPU) == (torch.bfloat16 if NATIVE else torch.float32)


@pytest.mark.skipif(bool(NATIVE), reason="this CPU computes in bfloat16")
def test_bfloat16_where_the_cpu_has_it_not() -> None:
    with pytest.raises(UserError, match="does not compute in bfloat16; set the precision to auto or float32"):
        compute_dtype("bfloat16", CPU)


def test_float16_on_a_cpu() -> None:
    with pytest.raises(UserError, match="float16 computes on GPUs alone"):
        compute_dtype("float16", CPU)
