"""Evaluate a model on pairs: decode windows of sources, and score the model and two baselines.

Texts come in one window at a time. Where they are stored and how scores are shown is not known here.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from pydantic import BaseModel

from pipeline.config.evaluate import MetricsOptions
from pipeline.config.model import DecodingConfig
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.evaluation.metrics import Scorer, SystemScores, first_sentence, lead_words
from pipeline.model.batching import Rows
from pipeline.model.bundle import Bundle


@dataclass(frozen=True)
class DecodedBatch:
    """Hypotheses of N sources: texts, mean log-probability of a token (nat), and whether each ended with ``</s>``."""

    texts: list[str]
    scores: npt.NDArray[np.float32]
    finished: npt.NDArray[np.bool_]


class EvaluationScores(BaseModel):
    """Results of an evaluation.

    Attributes:
        systems: scores of ``model`` and of each baseline, by name.
        length_limit_percent: hypotheses cut by the length limit.
        decode_s: seconds from source texts to hypothesis texts, without scoring.
    """

    rows: int
    systems: dict[str, SystemScores]
    length_limit_percent: float
    decode_s: float
    documents_per_s: float
    bleu_signature: str


class Evaluator:
    """Scores a bundle's model, window by window.

    Raises:
        UserError: the bundle's tokenizer is broken, or the BLEU tokenizer cannot be used.
    """

    def __init__(self, bundle: Bundle, decoding: DecodingConfig, options: MetricsOptions, precision: str = "float32") -> None:
        device = next(bundle.model.parameters()).device
        self._engine = Engine(bundle.model, backend_for(precision, device))
        self._budget = BatchBudget.by_memory(self._engine, decoding, share=1.0, threads=torch.get_num_threads())
        self._decoding, self._options = decoding, options
        self._tokenizer = Tokenizer(bundle.tokenizer_file)
        self._lead = f"first {options.lead_words} words"
        self._scorers = {
            name: Scorer(options.rouge_tokenizer, options.bleu_tokenizer) for name in ("model", self._lead, "first sentence")
        }
        self._rows = self._unfinished = 0
        self._decode_s = 0.0

    def add(self, sources: Sequence[str], references: Sequence[str]) -> DecodedBatch:
        """Decode and score N pairs."""
        started = time.perf_counter()
        source_ids = Rows(*self._tokenizer.encode(sources))
        hypotheses = decode_window(self._engine, source_ids, self._decoding, self._budget)
        texts = self._tokenizer.decode(hypotheses.values, hypotheses.offsets)
        self._decode_s += time.perf_counter() - started
        self._rows += len(sources)
        self._unfinished += int((~hypotheses.finished).sum())
        self._scorers["model"].add(texts, references)
        self._scorers[self._lead].add([lead_words(source, self._options.lead_words) for source in sources], references)
        self._scorers["first sentence"].add([first_sentence(source) for source in sources], references)
        return DecodedBatch(texts, hypotheses.scores, hypotheses.finished)

    def scores(self) -> EvaluationScores:
        """Return the scores over all rows, at least one."""
        samples, seed = self._options.bootstrap_samples, self._options.seed
        return EvaluationScores(
            rows=self._rows,
            systems={name: scorer.scores(samples, seed) for name, scorer in self._scorers.items()},
            length_limit_percent=100 * self._unfinished / self._rows,
            decode_s=self._decode_s,
            documents_per_s=self._rows / max(self._decode_s, 1e-9),
            bleu_signature=self._scorers["model"].bleu_signature,
        )
