"""The number type that a device computes matrix products in."""

from __future__ import annotations

import torch

from pipeline.errors import UserError


def compute_dtype(precision: str, device: torch.device) -> torch.dtype:
    """Return the dtype of matrix products; ``auto`` is bfloat16 where the device has instructions for it, else float32.

    Raises:
        UserError: the device does not support the precision.
    """
    if device.type == "cuda":
        has_bfloat16 = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        capabilities = torch.cpu.get_capabilities()
        has_bfloat16 = bool(capabilities.get("avx512_bf16") or capabilities.get("amx_bf16"))
    if precision == "auto":
        return torch.bfloat16 if has_bfloat16 else torch.float32
    if precision == "bfloat16" and not has_bfloat16:
        raise UserError("this device does not support bfloat16; set the precision to auto or float32")
    if precision == "float16" and device.type != "cuda":
        raise UserError("float16 needs a GPU; set the precision to auto or float32")
    return {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}[precision]
