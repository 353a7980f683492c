"""Evaluate models on pairs: decode windows of sources, and score the models and two baselines.

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
from pipeline.data.special_tokens import style_token
from pipeline.data.tokenizer import Tokenizer, add_prefixes
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.evaluation.comparison import Comparison, PairedComparison
from pipeline.evaluation.metrics import Scorer, SystemScores, first_sentence, lead_words
from pipeline.model.batching import Rows
from pipeline.model.bundle import Bundle

MODEL, OTHER = "model", "other"
"""Names of the evaluated model and of the one it is compared with, among the systems."""


@dataclass(frozen=True)
class DecodedBatch:
    """Hypotheses of N sources: texts, mean log-probability of a token (nat), and whether each ended with ``</s>``."""

    texts: list[str]
    scores: npt.NDArray[np.float32]
    finished: npt.NDArray[np.bool_]


class EvaluationScores(BaseModel):
    """Results of an evaluation.

    Attributes:
        references: references of all rows together.
        systems: scores of ``model``, of ``other`` if there is one, and of each baseline, by name.
        comparison: ``model`` against ``other``.
        length_limit_percent: hypotheses of the model cut by the length limit.
        decode_s: seconds from source texts to hypothesis texts of the model, without scoring.
    """

    rows: int
    references: int
    systems: dict[str, SystemScores]
    comparison: Comparison | None
    length_limit_percent: float
    decode_s: float
    documents_per_s: float
    bleu_signature: str


class Summarizer:
    """Summarizes windows of texts with a bundle's model, and takes the time.

    Attributes:
        decode_s: seconds spent so far.
        unfinished: summaries so far that the length limit cut.

    Raises:
        UserError: the bundle's tokenizer is broken.
    """

    def __init__(self, bundle: Bundle, decoding: DecodingConfig, precision: str = "float32") -> None:
        device = next(bundle.model.parameters()).device
        self._engine = Engine(bundle.model, backend_for(precision, device))
        self._budget = BatchBudget.by_memory(self._engine, decoding, share=1.0, threads=torch.get_num_threads())
        self._decoding, self._styles = decoding, bundle.model.config.styles
        self._tokenizer = Tokenizer(bundle.tokenizer_file)
        self.decode_s, self.unfinished = 0.0, 0

    def summarize(self, sources: Sequence[str], styles: Sequence[str | None]) -> DecodedBatch:
        """Summarize N sources.

        Args:
            styles: style of each [N]; where it is None, or not one of the model's, that of the decoding options.
        """
        started = time.perf_counter()
        names = [style if style in self._styles else self._decoding.style for style in styles]
        prefixes = np.array([style_token(self._styles, name) for name in names], np.int64)
        source_ids = Rows(*add_prefixes(*self._tokenizer.encode(sources), prefixes))
        hypotheses = decode_window(self._engine, source_ids, self._decoding, self._budget)
        texts = self._tokenizer.decode(hypotheses.values, hypotheses.offsets)
        self.decode_s += time.perf_counter() - started
        self.unfinished += int((~hypotheses.finished).sum())
        return DecodedBatch(texts, hypotheses.scores, hypotheses.finished)


class Evaluator:
    """Scores a model, and optionally another one beside it, window by window.

    Raises:
        UserError: the BLEU tokenizer cannot be used.
    """

    def __init__(self, model: Summarizer, options: MetricsOptions, other: Summarizer | None = None) -> None:
        self._model, self._other, self._options = model, other, options
        self._lead = f"first {options.lead_words} words"
        names = [MODEL, *([OTHER] if other else []), self._lead, "first sentence"]
        self._scorers = {name: Scorer(options.rouge_tokenizer, options.bleu_tokenizer) for name in names}
        self._comparison = PairedComparison()
        self._rows = self._references = 0

    def add(
        self, sources: Sequence[str], references: Sequence[Sequence[str]], styles: Sequence[str | None] | None = None
    ) -> DecodedBatch:
        """Decode and score N sources, each with its references. Return what the model wrote.

        Args:
            styles: style of each [N]; None for that of the decoding options.
        """
        styles = styles or [None] * len(sources)
        decoded = self._model.summarize(sources, styles)
        self._rows += len(sources)
        self._references += sum(map(len, references))
        rouge = self._scorers[MODEL].add(decoded.texts, references)
        self._scorers[self._lead].add([lead_words(source, self._options.lead_words) for source in sources], references)
        self._scorers["first sentence"].add([first_sentence(source) for source in sources], references)
        if self._other and sources:
            others = self._other.summarize(sources, styles).texts
            differences = (rouge - self._scorers[OTHER].add(others, references))[:, 2]
            firsts = [targets[0] for targets in references]
            self._comparison.add(differences, list(zip(sources, firsts, decoded.texts, others, strict=True)))
        return decoded

    def scores(self) -> EvaluationScores:
        """Return the scores over all rows, at least one."""
        samples, seed = self._options.bootstrap_samples, self._options.seed
        return EvaluationScores(
            rows=self._rows,
            references=self._references,
            systems={name: scorer.scores(samples, seed) for name, scorer in self._scorers.items()},
            comparison=self._comparison.result(samples, seed) if self._other else None,
            length_limit_percent=100 * self._model.unfinished / self._rows,
            decode_s=self._model.decode_s,
            documents_per_s=self._rows / max(self._model.decode_s, 1e-9),
            bleu_signature=self._scorers[MODEL].bleu_signature,
        )
