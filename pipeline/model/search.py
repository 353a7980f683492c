"""Greedy and beam search over one batch: from what the network predicts at each step to whole hypotheses."""

from __future__ import annotations

import torch
from torch import Tensor

from pipeline.config import DecodingConfig
from pipeline.model.beam import beam_search
from pipeline.model.engine import Engine
from pipeline.model.greedy import greedy
from pipeline.model.slots import Found, Slots, first_positions


@torch.inference_mode()
def search(
    engine: Engine, source: Tensor, source_lengths: Tensor, options: DecodingConfig, limits: Tensor | None = None
) -> Found:
    """Find hypotheses for source[B, S] with source_lengths[B] ≥ 1, in falling order.

    limits[B]: the most tokens of each, 1 to ``max_target_tokens``; without them the options say.
    """
    source, source_lengths = source.clone(), source_lengths.clone()  # rows move in their place
    if limits is None:
        limits = torch.full_like(source_lengths, options.max_target_tokens)
        if options.max_target_ratio is not None:
            grown = (options.max_target_ratio * source_lengths).long() + options.max_target_extra
            limits = grown.clamp(max(1, options.min_target_tokens), options.max_target_tokens)
    limits = limits.clone()
    sources, carry = engine.read(source, source_lengths)
    first = first_positions(source) if engine.config.copy_source else None
    slots = Slots(torch.arange(len(source), device=engine.device), sources, carry, first)
    return (greedy if options.beam_size == 1 else beam_search)(engine, slots, limits, options)
