"""The model as a stage of your own Ray Data pipeline: python docs/examples/own_pipeline.py FOLDER.

It lacks what jobs.summarize adds: exactly once, resuming, rejects, increments. Use it if Ray Data alone is enough for you.
"""

import sys
from typing import Any

import numpy as np
import ray.data
import torch

from pipeline.config.types import SAMPLE
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.model.batching import Rows
from pipeline.model.bundle import load_bundle


class Summarizer:
    """An actor that hosts the model and summarizes batches of texts."""

    def __init__(self, bundle: str) -> None:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        loaded = load_bundle(bundle, device)
        self.tokenizer, self.decoding = Tokenizer(loaded.tokenizer_file), loaded.decoding
        self.engine = Engine(loaded.model, backend_for("auto", device))
        self.budget = BatchBudget(tokens=32_768)  # padded source tokens of a decoding batch

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        """Add a column ``summary``. Rows are sorted by length into decoding batches and returned in order."""
        sources = Rows(*self.tokenizer.encode(batch["text"].tolist()))
        found = decode_window(self.engine, sources, self.decoding, self.budget)
        return {**batch, "summary": np.array(self.tokenizer.decode(found.values, found.offsets))}


documents = ray.data.read_parquet(str(SAMPLE / "documents/part-0.parquet")).limit(100)
summaries = documents.map_batches(Summarizer, fn_constructor_args=(str(SAMPLE / "model"),), batch_size=50, concurrency=1)
summaries.select_columns(["id", "summary"]).write_parquet(f"{sys.argv[1]}/summaries")
