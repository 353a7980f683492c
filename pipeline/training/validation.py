"""Validation of a model in training on development pairs: loss, ROUGE, exact match.

All workers take part, each with its share of the pairs. The module does not know Ray, nor what the figures are used for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypedDict

import numpy as np
import torch

from pipeline.config.train import TrainConfig
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.evaluation.metrics import exact_match, rouge_f1
from pipeline.model.batching import PairLimits, Rows, pair_batches
from pipeline.training.learner import Learner

_SAMPLES, _SAMPLE_CHARS = 4, 600


class Sample(TypedDict):
    """A development pair with the model's hypothesis."""

    source: str
    reference: str
    hypothesis: str


@dataclass(frozen=True)
class DevPairs:
    """A worker's share of the development pairs, as texts and token ids. Sources are cut to the longest that is used."""

    sources: Sequence[str]
    targets: Sequence[str]
    source_ids: Rows
    target_ids: Rows


class DevSet:
    """Measures a model on development pairs.

    Args:
        pairs: this worker's share. The shares of all workers together must not be empty.
        memory_share: share of the device's free memory that this worker may use.
    """

    def __init__(self, pairs: DevPairs, tokenizer: Tokenizer, config: TrainConfig, memory_share: float) -> None:
        self._pairs, self._tokenizer, self._config, self._memory_share = pairs, tokenizer, config, memory_share

    def measure(self, learner: Learner) -> tuple[dict[str, float], list[Sample]] | None:
        """Measure the model on the pairs of all workers. A collective call.

        Returns:
            The figures: dev_loss (mean negative log-likelihood of a target token, nats), rouge1, rouge2, rougeL (F1, percent)
            and exact_match (percent); and samples from this worker's share. None if the loss is not finite.
        """
        pairs, data = self._pairs, self._config.data
        limits = PairLimits(data.max_source_tokens, data.max_target_tokens, self._config.training.token_budget)
        batches = pair_batches(pairs.source_ids, pairs.target_ids, limits, rng=None)
        losses = torch.tensor(learner.negative_log_likelihood(batches), dtype=torch.float64)
        nll, tokens = learner.sum_over_workers(losses).tolist()
        if not math.isfinite(nll):
            return None
        hypotheses = self._decode(learner)
        rouge = rouge_f1(hypotheses, [[target] for target in pairs.targets], "unicode").sum(0)
        exact = 100.0 * float(np.sum([exact_match(*texts) for texts in zip(hypotheses, pairs.targets, strict=True)]))
        sums = torch.tensor([*rouge, exact, len(hypotheses)], dtype=torch.float64)
        *scores, rows = learner.sum_over_workers(sums).tolist()
        names = ("rouge1", "rouge2", "rougeL", "exact_match")
        figures = {"dev_loss": nll / tokens, **{name: score / rows for name, score in zip(names, scores, strict=True)}}
        shown = zip(pairs.sources, pairs.targets, hypotheses[:_SAMPLES], strict=False)
        texts = ([text[:_SAMPLE_CHARS] for text in triple] for triple in shown)
        samples = [Sample(source=source, reference=target, hypothesis=text) for source, target, text in texts]
        return figures, samples

    def _decode(self, learner: Learner) -> list[str]:
        engine = Engine(learner.average, backend_for(self._config.training.precision, learner.device), graphs=False)
        decoding = self._config.decoding.model_copy(update={"style": None})  # the sources have their style tokens
        budget = BatchBudget.by_memory(engine, decoding, self._memory_share, torch.get_num_threads())
        decoded = decode_window(engine, self._pairs.source_ids, decoding, budget)
        return self._tokenizer.decode(decoded.values, decoded.offsets)
