"""Which number type a device computes in, and how decoding computes there."""

from __future__ import annotations

import torch

from pipeline.errors import UserError


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
