"""How good a model in training is on development pairs: loss, ROUGE, exact match.

All workers take part, each with its share of the pairs. Knows nothing of Ray, or of what becomes of the figures.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
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
from pipeline.model.batching import Rows, pair_batches
from pipeline.training.learner import Learner

_SAMPLES, _SAMPLE_CHARS = 4, 600


class Sample(TypedDict):
    """A development pair, and what the model made of its source."""

    source: str
    reference: str
    hypothesis: str


class DevSet:
    """A worker's share of the development pairs.

    Args:
        sources, targets: the share, tokenized and cut; all workers' shares together must not be empty.
        texts, references: the same sources and targets, as texts. memory_share: of the device's free memory, what is this
            worker's.
    """

    def __init__(
        self,
        sources: Rows,
        targets: Rows,
        texts: Sequence[str],
        references: Sequence[str],
        tokenizer: Tokenizer,
        config: TrainConfig,
        memory_share: float,
    ) -> None:
        self._sources, self._targets, self._texts, self._references = sources, targets, texts, references
        self._tokenizer, self._config, self._memory_share = tokenizer, config, memory_share

    def measure(self, learner: Learner) -> tuple[dict[str, float], list[Sample]] | None:
        """Figures over all workers' shares: must be called in each.

        Returns:
            dev_loss, the mean negative log-likelihood of a target token (nat); rouge1, rouge2, rougeL (F1) and
            exact_match of the hypotheses, in percent; and the first pairs of this share, with hypotheses. None where the loss
            is no finite number: there is nothing to decode with such weights.
        """
        data, budget = self._config.data, self._config.training.token_budget
        batches = pair_batches(self._sources, self._targets, data.max_source_tokens, data.max_target_tokens, budget, rng=None)
        losses = torch.tensor(learner.negative_log_likelihood(batches), dtype=torch.float64)
        nll, tokens = learner.sum_over_workers(losses).tolist()
        if not math.isfinite(nll):
            return None
        engine = Engine(learner.average, backend_for(self._config.training.precision, learner.device), graphs=False)
        decoding, threads = self._config.decoding, torch.get_num_threads()
        room = BatchBudget.by_memory(engine, decoding, self._memory_share, threads)
        found = decode_window(engine, self._sources.values, self._sources.offsets, decoding, room, threads)
        hypotheses = self._tokenizer.decode(found.values, found.offsets)
        rouge = rouge_f1(hypotheses, [[reference] for reference in self._references], "unicode").sum(0)
        exact = 100.0 * float(np.sum([exact_match(*texts) for texts in zip(hypotheses, self._references, strict=True)]))
        sums = torch.tensor([*rouge, exact, len(hypotheses)], dtype=torch.float64)
        rouge1, rouge2, rouge_l, exact, rows = learner.sum_over_workers(sums).tolist()
        figures = {
            "dev_loss": nll / tokens,
            "rouge1": rouge1 / rows,
            "rouge2": rouge2 / rows,
            "rougeL": rouge_l / rows,
            "exact_match": exact / rows,
        }
        samples = [
            Sample(source=source[:_SAMPLE_CHARS], reference=reference[:_SAMPLE_CHARS], hypothesis=hypothesis[:_SAMPLE_CHARS])
            for source, reference, hypothesis in zip(self._texts, self._references, hypotheses[:_SAMPLES], strict=False)
        ]
        return figures, samples
