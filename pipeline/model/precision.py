"""Which number type a device computes in, and how decoding computes there."""

from __future__ import annotations

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
    """How to decode on a device, in any precision of ``compute_dtype`` or, on CPUs made for it, in ``int8``.

    Raises:
        UserError: the device does not compute in the precision asked for.
    """
    has_onednn = bool(torch.backends.mkldnn.is_available())  # type: ignore[no-untyped-call]
    capabilities = torch.cpu.get_capabilities()
    multiplies_bytes = any(capabilities.get(name) for name in ("avx512_vnni", "amx_int8"))
    if precision == "int8" and (device.type != "cpu" or not multiplies_bytes or not has_onednn):
        raise UserError("int8 computes on CPUs with AVX-512 VNNI alone; set the precision to auto or float32")
    dtype = compute_dtype("auto" if precision == "int8" else precision, device)
    if device.type == "cpu" and has_onednn:
        return Compiled(dtype, multiply_bytes=precision == "int8")
    return Plain(device, dtype)
