"""Metrics of hypotheses: ROUGE, BLEU, exact match, empty and looping outputs, with 95 % intervals; and two baselines.

Works on strings and numpy arrays. Models, files and reports are not known here. All scores are percentages.

A *word* is a run of letters and digits in any script. In scripts without spaces (Chinese, Japanese, Thai, Lao, Khmer, Burmese)
each letter is a word. Punctuation belongs to no word.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import regex
from pydantic import BaseModel
from rouge_score import rouge_scorer
from rouge_score.tokenizers import Tokenizer as RougeTokenizer
from sacrebleu.metrics.bleu import BLEU

from pipeline.errors import UserError

Floats = npt.NDArray[np.float64]

_UNSPACED = r"\p{Han}\p{Hiragana}\p{Katakana}\p{Thai}\p{Lao}\p{Khmer}\p{Myanmar}"
# Joiners (U+200C, U+200D) occur inside words of Persian and of Indic scripts.
_WORD = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*"
    rf"|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}\u200c\u200d]--[{_UNSPACED}]]*"
)
_SENTENCE = regex.compile(r"(?V1)(?s).*?(?:[.!?](?=\s|$)|[\p{Sentence_Break=STerm}--[!?]]|$)")
_UNSPACED_LETTER = regex.compile(rf"(?V1)[\p{{L}}&&[{_UNSPACED}]]")

_LOOP_REPEATS, _LOOP_WORDS = 3, 4
_LOST_LETTERS_SHARE = 0.1

_MEANS, _BLEU_ORDER = 10, 4
"""A row has 20 statistics: 10 to average, then BLEU's matching and total n-grams for n to 4, and the two lengths."""


class ScoreInterval(BaseModel):
    """A score and its 95 % interval, which is unset without resampling."""

    value: float
    low: float | None = None
    high: float | None = None


class SystemScores(BaseModel):
    """Scores of one system, in percent, and the mean words of a hypothesis.

    With several references of a source, ``rouge1`` and so on take the best one, ``mean_rouge1`` and so on the mean over them.
    """

    rouge1: ScoreInterval
    rouge2: ScoreInterval
    rougeL: ScoreInterval
    exact_match: ScoreInterval
    empty_percent: ScoreInterval
    loop_percent: ScoreInterval
    mean_words: ScoreInterval
    mean_rouge1: ScoreInterval
    mean_rouge2: ScoreInterval
    mean_rougeL: ScoreInterval
    bleu: ScoreInterval


class Scorer:
    """Scores one system, one window of hypotheses at a time. Keeps 20 numbers per row and no text.

    Args:
        rouge_tokenizer: ``standard`` or ``unicode``, as for ``rouge_f1``.
        bleu_tokenizer: a tokenizer of sacrebleu.

    Raises:
        UserError: the BLEU tokenizer needs a package that is not installed.
    """

    def __init__(self, rouge_tokenizer: str = "standard", bleu_tokenizer: str = "13a") -> None:
        self._rouge_tokenizer = rouge_tokenizer
        try:
            # Effective order changes sentence scores but not the counts, and only the counts are used.
            self._bleu = BLEU(tokenize=bleu_tokenizer, effective_order=True)
        except (RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--metrics.bleu_tokenizer {bleu_tokenizer} needs a package ({reason}); install it or set another tokenizer"
            ) from None
        self._windows: list[Floats] = []
        self._reference_counts = set[int]()

    def add(self, hypotheses: Sequence[str], references: Sequence[Sequence[str]]) -> Floats:
        """Score N hypotheses, each against its one or more references.

        Returns:
            ROUGE-1, ROUGE-2 and ROUGE-L F1 against the best reference [N, 3], in percent.
        """
        best, mean = rouge_by_reference(hypotheses, references, self._rouge_tokenizer)
        if hypotheses:
            self._reference_counts |= set(map(len, references))
            figures = [self._row(*texts) for texts in zip(hypotheses, references, strict=True)]
            others, bleu = np.split(np.array(figures), [_MEANS - 6], axis=1)
            self._windows.append(np.column_stack([best, others, mean, bleu]))
        return best

    def _row(self, hypothesis: str, references: Sequence[str]) -> list[float]:
        """Return the statistics of a row without ROUGE."""
        score = self._bleu.sentence_score(hypothesis, references)
        return [
            100.0 * any(exact_match(hypothesis, reference) for reference in references),
            100.0 * (not hypothesis.strip()),
            100.0 * has_loop(hypothesis),
            len(_WORD.findall(hypothesis)),
            *score.counts,
            *score.totals,
            score.sys_len,
            score.ref_len,
        ]

    def scores(self, bootstrap_samples: int, seed: int) -> SystemScores:
        """Return the scores over all rows, at least one, with percentile-bootstrap intervals.

        Scorers with the same number of rows and the same seed draw the same rows.
        """
        statistics = np.concatenate(self._windows)
        values = _corpus_scores(statistics.sum(0, keepdims=True), len(statistics))[0].tolist()
        estimates = [ScoreInterval(value=value) for value in values]
        if bootstrap_samples:
            resampled = _corpus_scores(resampled_sums(statistics, bootstrap_samples, seed), len(statistics))
            bounds = np.percentile(resampled, [2.5, 97.5], axis=0).T.tolist()
            estimates = [
                ScoreInterval(value=value, low=low, high=high) for value, (low, high) in zip(values, bounds, strict=True)
            ]
        return SystemScores(**dict(zip(SystemScores.model_fields, estimates, strict=True)))

    @property
    def bleu_signature(self) -> str:
        """Return sacrebleu's signature of the BLEU score. Needs a scored row."""
        signature = self._bleu.get_signature()
        signature.update("eff", "no")  # corpus BLEU does not use the effective order
        signature.update("nrefs", "var" if len(self._reference_counts) > 1 else min(self._reference_counts))
        return str(signature)


def _corpus_scores(sums: Floats, rows: int) -> Floats:
    """Return scores[R, 11] in the order of SystemScores, from R sums over rows [R, 20]."""
    means, correct, total, lengths = np.split(sums, [_MEANS, _MEANS + _BLEU_ORDER, _MEANS + 2 * _BLEU_ORDER], axis=1)
    bleu = [
        BLEU.compute_bleu(c, t, int(hypothesis), int(reference), smooth_method="exp").score
        for c, t, (hypothesis, reference) in zip(correct.tolist(), total.tolist(), lengths.tolist(), strict=True)
    ]
    return np.column_stack([means / rows, bleu])


def resampled_sums(statistics: Floats, samples: int, seed: int) -> Floats:
    """Return the column sums [R, K] of R bootstrap resamples of statistics[N, K], each N rows drawn with replacement.

    These suffice for the percentile bootstrap (Efron & Tibshirani 1993, chapter 13) of scores that depend on sums only: means,
    and corpus BLEU (Koehn 2004).
    """
    rng, rows = np.random.default_rng(seed), len(statistics)
    sums = np.empty((samples, statistics.shape[1]))
    for sample in range(samples):
        times_drawn = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        sums[sample] = times_drawn @ statistics
    return sums


def rouge_f1(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "standard") -> Floats:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L F1 of each row against its best reference [N, 3]; see ``rouge_by_reference``."""
    best, _ = rouge_by_reference(hypotheses, references, tokenizer)
    return best


def rouge_by_reference(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str) -> tuple[Floats, Floats]:
    """Return ROUGE-1, ROUGE-2 and ROUGE-L F1 of each row, in percent, without stemming (Lin 2004).

    Args:
        references: one or more per hypothesis.
        tokenizer: ``standard``, as in published results: lower-cased runs of a-z and 0-9. ``unicode``: ``words``, which gives
            the same tokens for ASCII text and also handles other scripts.

    Returns:
        Each score of the best reference [N, 3], which may differ between scores; the mean over the references [N, 3].
    """
    scorer = rouge_scorer.RougeScorer(
        ["rouge1", "rouge2", "rougeL"], tokenizer=_UnicodeTokenizer() if tokenizer == "unicode" else None
    )
    best, mean = np.zeros((len(hypotheses), 3)), np.zeros((len(hypotheses), 3))
    for row, (hypothesis, targets) in enumerate(zip(hypotheses, references, strict=True)):
        scores = [[part.fmeasure for part in scorer.score(target, hypothesis).values()] for target in targets]
        best[row], mean[row] = np.max(scores, axis=0), np.mean(scores, axis=0)
    return 100.0 * best, 100.0 * mean


class _UnicodeTokenizer(RougeTokenizer):  # type: ignore[misc]  # the package has no types
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def words(text: str) -> list[str]:
    """Return the words of a text, normalized (NFKC) and case-folded."""
    matches: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return matches


def exact_match(hypothesis: str, reference: str) -> bool:
    """Return whether two texts are equal except for the width of white space, which the tokenizer does not keep."""
    return hypothesis.split() == reference.split()


def has_loop(text: str) -> bool:
    """Return whether any 1 to 4 words occur three times in a row, ignoring case and punctuation.

    True for "a very very very long title" and "of graphs, of graphs, of graphs"; False for "of graphs of graphs".
    """
    tokens = words(text)
    for n in range(1, _LOOP_WORDS + 1):
        run = 0
        for earlier, later in zip(tokens, tokens[n:], strict=False):
            run = run + 1 if earlier == later else 0
            if run == (_LOOP_REPEATS - 1) * n:
                return True
    return False


def lead_words(source: str, count: int) -> str:
    """Return the source up to the end of its first ``count`` words, as a baseline."""
    end = 0
    for _, match in zip(range(count), _WORD.finditer(source), strict=False):
        end = match.end()
    return source[:end].strip()


def first_sentence(source: str) -> str:
    """Return the source up to ``.``, ``!`` or ``?`` before white space, or another script's sentence end, as a baseline.

    Abbreviations are not recognized: "e.g. this" ends after "e.g.".
    """
    match = _SENTENCE.match(source.strip())
    return match[0] if match else ""


def tokenizer_warnings(references: Sequence[str], rouge_tokenizer: str, bleu_tokenizer: str) -> list[str]:
    """Return warnings about tokenizers that do not suit these references."""
    text = "".join(references)
    letters = sum(character.isalpha() for character in text)
    lost = sum(character.isalpha() and not character.isascii() for character in text)
    unspaced = len(_UNSPACED_LETTER.findall(text))
    warnings = []
    if rouge_tokenizer == "standard" and lost > _LOST_LETTERS_SHARE * letters:
        warnings.append(
            f"ROUGE's standard tokenizer drops the {lost / letters:.0%} of the references' letters that are not ASCII; "
            "set --metrics.rouge_tokenizer unicode"
        )
    if bleu_tokenizer in ("13a", "intl", "none") and unspaced > _LOST_LETTERS_SHARE * letters:
        warnings.append(
            f"BLEU's tokenizer {bleu_tokenizer} splits words at spaces, but the references have none; "
            "set --metrics.bleu_tokenizer zh, ja-mecab or char"
        )
    return warnings
