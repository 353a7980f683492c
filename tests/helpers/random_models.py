"""Small networks with random weights, rows of token ids, and markers for precisions that a CPU may lack."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.config.model import ModelConfig
from pipeline.data.special_tokens import EOS
from pipeline.decoding.backends import supported_precisions
from pipeline.model.batching import Rows
from pipeline.model.seq2seq import Seq2Seq

_PRECISIONS = supported_precisions(torch.device("cpu"))
needs_bfloat16 = pytest.mark.skipif("bfloat16" not in _PRECISIONS, reason="this CPU does not support bfloat16")
needs_int8 = pytest.mark.skipif("int8" not in _PRECISIONS, reason="this CPU does not support int8")

SHAPES: list[dict[str, Any]] = [
    {"cell": cell, "attention": attention, "bidirectional": bidirectional, "copy": copy}
    for cell, bidirectional in product(("lstm", "gru"), (False, True))
    for attention, copy in [("none", False), *product(("dot", "general", "additive"), (False, True))]
]
SHAPES += [
    {**shape, **options}
    for options in ({"layers": 2}, {"tied_embeddings": False}, {"layers": 3, "tied_embeddings": False, "embedding_size": 12})
    for shape in (
        {"cell": "lstm", "attention": "none", "bidirectional": True, "copy": False},
        {"cell": "gru", "attention": "none", "bidirectional": False, "copy": False},
        {"cell": "gru", "attention": "general", "bidirectional": True, "copy": True},
        {"cell": "lstm", "attention": "additive", "bidirectional": True, "copy": True},
    )
]
SHAPES += [
    {"cell": cell, "attention": attention, "bidirectional": True, "copy": copy, "layers": 2, "encoder_hidden_size": units}
    for cell, attention, copy, units in (
        ("lstm", "general", True, 7),
        ("gru", "additive", False, 16),
        ("lstm", "none", False, 16),
    )
]
"""Every combination of cell, attention, direction and copying; some with more layers, separate embeddings, or another encoder
size."""

_OPTIONS = ("layers", "tied_embeddings", "encoder_hidden_size")


def shape_id(shape: dict[str, Any]) -> str:
    """Return a test id for a shape, such as lstm-general-both-copy."""
    words = [shape["cell"], shape["attention"], "both" if shape["bidirectional"] else "forward"]
    words += ["copy"] if shape["copy"] else []
    return "-".join(words + [f"{key}={shape[key]}" for key in _OPTIONS if key in shape])


def random_model(shape: dict[str, Any], vocabulary_size: int, seed: int = 1) -> Seq2Seq:
    """Return a network that writes a different output for every source, and mostly ends within a few tokens.

    Weights three times the usual initial size keep the most likely token well apart from the next.
    """
    torch.manual_seed(seed)
    model = Seq2Seq(ModelConfig.model_validate({"embedding_size": 10, "hidden_size": 12, **shape}), vocabulary_size)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(3.0)
        model.decoder.output.bias.normal_()
        model.decoder.output.bias[EOS] = 5.0
    return model.eval()


def to_rows(lists: list[list[int]]) -> Rows:
    """Return lists of token ids as Rows."""
    offsets = np.cumsum([0, *map(len, lists)]).astype(np.int64)
    return Rows(np.array([token for ids in lists for token in ids], np.int32), offsets)
