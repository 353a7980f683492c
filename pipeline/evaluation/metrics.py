"""How good hypotheses are: ROUGE, BLEU, exact match, degenerate outputs, two baselines, and 95 % intervals.

Works on strings and numpy arrays alone. Which model wrote a hypothesis, where texts are read from, and what becomes of
the figures is not known here. All scores and shares are percentages.

A *word* is, throughout, a run of letters and digits in any script; each letter of a script that is written without spaces
(Chinese, Japanese, Thai, Lao, Khmer, Burmese) is a word of its own. Punctuation belongs to no word.
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
# Joiners (U+200C, U+200D) stand inside words of Persian and of Indic scripts.
_WORD = regex.compile(
    rf"(?V1)[[\p{{L}}\p{{N}}]&&[{_UNSPACED}]]\p{{M}}*"
    rf"|[[\p{{L}}\p{{N}}]--[{_UNSPACED}]][[\p{{L}}\p{{N}}\p{{M}}\u200c\u200d]--[{_UNSPACED}]]*"
)
_SENTENCE = regex.compile(r"(?V1)(?s).*?(?:[.!?](?=\s|$)|[\p{Sentence_Break=STerm}--[!?]]|$)")
_UNSPACED_LETTER = regex.compile(rf"(?V1)[\p{{L}}&&[{_UNSPACED}]]")

_LOOP_TIMES, _LOOP_WORDS = 3, 4
_LOST_LETTERS_SHARE = 0.1
_MEANS, _BLEU_ORDER = 7, 4
"""A row's figures: 7 that are averaged, then BLEU's counts of right and of all n-grams, n to 4, and the two lengths."""


class ScoreInterval(BaseModel):
    """A figure and its 95 % interval, which is unset where no resamples were asked for."""

    value: float
    low: float | None = None
    high: float | None = None


class SystemScores(BaseModel):
    """One system's figures: percentages, and the mean number of words of a hypothesis."""

    rouge1: ScoreInterval
    rouge2: ScoreInterval
    rougeL: ScoreInterval
    exact_match: ScoreInterval
    empty_percent: ScoreInterval
    loop_percent: ScoreInterval
    mean_words: ScoreInterval
    bleu: ScoreInterval


class Scorer:
    """Scores one system, a window of hypotheses at a time; keeps 17 numbers a row and no text.

    Args:
        rouge_tokenizer: ``standard`` or ``unicode``, as for ``rouge_f1``. bleu_tokenizer: a name that sacrebleu knows.

    Raises:
        UserError: the BLEU tokenizer needs a package that is not installed.
    """

    def __init__(self, rouge_tokenizer: str = "standard", bleu_tokenizer: str = "13a") -> None:
        self._rouge_tokenizer = rouge_tokenizer
        try:
            # Effective order changes a sentence's score, not its counts, which alone are used.
            self._bleu = BLEU(tokenize=bleu_tokenizer, effective_order=True)
        except (RuntimeError, ImportError) as error:
            reason = " ".join(str(error).split())
            raise UserError(
                f"--metrics.bleu_tokenizer {bleu_tokenizer} lacks a package ({reason}); install it or set another"
            ) from None
        self._windows: list[Floats] = []

    def add(self, hypotheses: Sequence[str], references: Sequence[str]) -> None:
        """Score N hypotheses, each against its reference."""
        if not hypotheses:
            return
        rouge = rouge_f1(hypotheses, [[reference] for reference in references], self._rouge_tokenizer)
        rows = [
            [
                100.0 * exact_match(hypothesis, reference),
                100.0 * (not hypothesis.strip()),
                100.0 * has_loop(hypothesis),
                len(_WORD.findall(hypothesis)),
                *self._bleu_counts(hypothesis, reference),
            ]
            for hypothesis, reference in zip(hypotheses, references, strict=True)
        ]
        self._windows.append(np.column_stack([rouge, np.array(rows)]))

    def _bleu_counts(self, hypothesis: str, reference: str) -> list[float]:
        score = self._bleu.sentence_score(hypothesis, [reference])
        return [*score.counts, *score.totals, score.sys_len, score.ref_len]

    def scores(self, bootstrap_samples: int, seed: int) -> SystemScores:
        """The figures over all rows, of which there must be one, with percentile-bootstrap intervals.

        Scorers that were given the same number of rows and the same seed draw the same rows.
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
        """sacrebleu's signature of the BLEU figure; some row must have been scored."""
        signature = self._bleu.get_signature()
        signature.update("eff", "no")  # so it is for the corpus
        return str(signature)


def _corpus_scores(sums: Floats, rows: int) -> Floats:
    """Sums over rows [R, 17] to figures [R, 8] in the order of SystemScores: means, and BLEU from the sums of its counts."""
    means, correct, total, lengths = np.split(sums, [_MEANS, _MEANS + _BLEU_ORDER, _MEANS + 2 * _BLEU_ORDER], axis=1)
    bleu = [
        BLEU.compute_bleu(c, t, int(hypothesis), int(reference), smooth_method="exp").score
        for c, t, (hypothesis, reference) in zip(correct.tolist(), total.tolist(), lengths.tolist(), strict=True)
    ]
    return np.column_stack([means / rows, bleu])


def resampled_sums(statistics: Floats, samples: int, seed: int) -> Floats:
    """Column sums [R, K] of ``samples`` bootstrap resamples, each N rows drawn with replacement from statistics[N, K].

    The percentile bootstrap (Efron & Tibshirani 1993, chapter 13) needs no more for a figure that follows from sums, as
    a mean does, and corpus BLEU (Koehn 2004).
    """
    rng, rows = np.random.default_rng(seed), len(statistics)
    sums = np.empty((samples, statistics.shape[1]))
    for sample in range(samples):
        times_drawn = np.bincount(rng.integers(rows, size=rows), minlength=rows)
        sums[sample] = times_drawn @ statistics
    return sums


def rouge_f1(hypotheses: Sequence[str], references: Sequence[Sequence[str]], tokenizer: str = "standard") -> Floats:
    """ROUGE-1, ROUGE-2 and ROUGE-L F1 of each row [N, 3], in percent, without stemming (Lin 2004).

    Args:
        references: one or more for each hypothesis; the best one counts, for each of the three.
        tokenizer: ``standard`` is that of published figures: lower case, runs of a to z and 0 to 9, any other character
            a separator. ``unicode`` takes the words of this module, in compatible composed form and without case:
            the same tokens for ASCII text, and tokens at all for the rest.
    """
    scorer = rouge_scorer.RougeScorer(
        ["rouge1", "rouge2", "rougeL"], tokenizer=_UnicodeTokenizer() if tokenizer == "unicode" else None
    )
    scores = [scorer.score_multi(several, hypothesis) for hypothesis, several in zip(hypotheses, references, strict=True)]
    rows = [[score[kind].fmeasure for kind in ("rouge1", "rouge2", "rougeL")] for score in scores]
    return 100.0 * np.array(rows, np.float64).reshape(-1, 3)


class _UnicodeTokenizer(RougeTokenizer):  # type: ignore[misc]  # the package has no types
    def tokenize(self, text: str) -> list[str]:
        return words(text)


def words(text: str) -> list[str]:
    """The words of a text, in compatible composed form (NFKC) and without case."""
    found: list[str] = _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
    return found


def exact_match(hypothesis: str, reference: str) -> bool:
    """Whether two texts are the same but for the width of white space, which the tokenizer does not keep."""
    return hypothesis.split() == reference.split()


def has_loop(text: str) -> bool:
    """Whether some n words, n from 1 to 4, stand three times in a row or more; case and punctuation do not count.

    "a very very very long title" and "of graphs, of graphs, of graphs" do; "of graphs of graphs" does not.
    """
    found = words(text)
    for n in range(1, _LOOP_WORDS + 1):
        run = 0
        for earlier, later in zip(found, found[n:], strict=False):
            run = run + 1 if earlier == later else 0
            if run == (_LOOP_TIMES - 1) * n:
                return True
    return False


def lead_words(source: str, number: int) -> str:
    """The baseline that copies the source up to the end of its first ``number`` words."""
    end = 0
    for _, match in zip(range(number), _WORD.finditer(source), strict=False):
        end = match.end()
    return source[:end].strip()


def first_sentence(source: str) -> str:
    """The baseline that copies the source up to a full stop, ! or ? before white space, or another script's sentence end.

    Abbreviations are not known: "e.g. this" ends after "e.g.".
    """
    match = _SENTENCE.match(source.strip())
    return match[0] if match else ""


def tokenizer_warnings(references: Sequence[str], rouge_tokenizer: str, bleu_tokenizer: str) -> list[str]:
    """What is wrong with the tokenizers chosen, judging by some references; empty if nothing is."""
    text = "".join(references)
    letters = sum(character.isalpha() for character in text)
    lost = sum(character.isalpha() and not character.isascii() for character in text)
    unspaced = len(_UNSPACED_LETTER.findall(text))
    found = []
    if rouge_tokenizer == "standard" and lost > _LOST_LETTERS_SHARE * letters:
        found.append(
            f"ROUGE's standard tokenizer drops {lost / letters:.0%} of the references' letters, which are not ASCII; "
            "set --metrics.rouge_tokenizer unicode"
        )
    if bleu_tokenizer in ("13a", "intl", "none") and unspaced > _LOST_LETTERS_SHARE * letters:
        found.append(
            f"BLEU's tokenizer {bleu_tokenizer} splits words at spaces, and the references are written without; "
            "set --metrics.bleu_tokenizer zh, ja-mecab or char"
        )
    return found
