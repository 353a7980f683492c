"""Which number type a device computes in, and how decoding computes there."""

from __future__ import annotations

import contextlib

import torch

from pipeline.errors import UserError
from pipeline.model.arithmetic import Arithmetic, Compiled, Plain


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """The type that matrix products compute in; ``auto`` is bfloat16 where the device is built for it, else float32.

    Raises:
        UserError: the device does not compute in the precision asked for.
    """
    if device.type == "cuda":
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        native = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    if precision == "auto":
        return torch.bfloat16 if native else torch.float32
    if precision == "bfloat16" and not native:
        raise UserError("this device does not compute in bfloat16; set the precision to auto or float32")
    if precision == "float16" and device.type != "cuda":
        raise UserError("float16 computes on GPUs alone; set the precision to auto or float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]


def arithmetic_for(precision: str, device: torch.device) -> Arithmetic:
    """How to decode on a device, in any precision of ``compute_dtype`` or, on CPUs with AVX2, in ``int8``.

    Raises:
        UserError: the device does not compute in the precision asked for.
    """
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    if precision == "int8" and not (device.type == "cpu" and torch.cpu.get_capabilities().get("avx2") and has_onednn):
        raise UserError("int8 computes on CPUs with AVX2 alone; set the precision to auto or float32")
    dtype = compute_dtype("auto" if precision == "int8" else precision, device)
    if device.type == "cpu" and has_onednn:
        return Compiled(dtype, multiply_bytes=precision == "int8")
    return Plain(device, dtype)


def precisions_of(device: torch.device) -> list[str]:
    """Those that the device decodes in, float32 first."""
    found = []
    for precision in ("float32", "bfloat16", "float16", "int8"):
        with contextlib.suppress(UserError):
            arithmetic_for(precision, device)
            found.append(precision)
    return found
