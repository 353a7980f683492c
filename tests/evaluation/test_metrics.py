"""Metrics agree with hand counts, with reference implementations, and with known results on real text."""

import importlib.util
import lzma
import tarfile
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.tokenize import tokenize
from sacrebleu.metrics.bleu import BLEU

from pipeline.errors import UserError
from pipeline.evaluation.metrics import (
    Scorer,
    exact_match,
    first_sentence,
    has_loop,
    lead_words,
    resampled_sums,
    rouge_f1,
    tokenizer_warnings,
    words,
)

DATA = Path(__file__).parents[3] / "shared" / "data"

REFERENCES = ["the cat sat on the mat", "a dog ran", "deep networks for graphs", "no match here", "trees and forests of graphs"]
HYPOTHESES = ["the cat sat on a mat", "a dog ran", "deep deep deep graphs", "", "forests and trees of graphs"]


def score(hypotheses, references, samples=0, seed=1, **tokenizers):
    scorer = Scorer(**tokenizers)
    scorer.add(hypotheses, [[reference] for reference in references])
    return scorer.scores(samples, seed)


def test_rouge_is_the_f1_of_unigrams_bigrams_and_the_longest_common_subsequence():
    # Texts of 3 and 4 words share 2 words, in order, and 1 bigram.
    np.testing.assert_allclose(rouge_f1(["The cat sat."], [["the cat ran home"]]), [[400 / 7, 40.0, 400 / 7]])


def test_each_rouge_score_takes_its_best_reference():
    hypothesis, in_order, shuffled = "a b c d", "a b x y", "d c b a"
    best = rouge_f1([hypothesis], [[in_order, shuffled]])
    each = np.concatenate([rouge_f1([hypothesis], [[reference]]) for reference in (in_order, shuffled)])
    np.testing.assert_allclose(best[0], each.max(0))
    assert (each[0] != each[1]).all()


def test_rouge_of_no_rows_is_an_empty_table():
    assert rouge_f1([], []).shape == (0, 3)


def test_standard_rouge_does_not_stem():
    assert rouge_f1(["networks"], [["network"]])[0, 0] == 0


@given(st.text(st.characters(max_codepoint=127)))
def test_unicode_words_of_ascii_text_are_the_standard_tokens(text):
    assert words(text) == tokenize(text, None)


@pytest.mark.parametrize("text", ["我喜欢北京", "これはペンです", "я читаю книгу", "हिन्दी में लिखा है", "ภาษาไทย", "می‌خواهم بروم"])
def test_unicode_rouge_scores_scripts_that_standard_drops(text):
    assert rouge_f1([text], [[text]], "standard")[0, 0] == 0
    np.testing.assert_allclose(rouge_f1([text], [[text]], "unicode"), 100)


def test_unicode_words_keep_marks_and_joiners_and_split_scripts_without_spaces():
    assert words("हिन्दी में") == ["हिन्दी", "में"]
    assert words("می‌خواهم") == ["می‌خواهم"]
    assert words("北京2008年ABC") == ["北", "京", "2008", "年", "abc"]


def test_unicode_words_do_not_depend_on_composition_or_case():
    text = "Été à l'École"
    assert words(unicodedata.normalize("NFD", text)) == words(text.upper()) == ["été", "à", "l", "école"]


def test_every_flores_language_matches_itself_under_unicode_rouge():
    archive = DATA / "flores" / "nllb_seed_flores.tar.xz"
    if not archive.exists():
        pytest.skip(f"no FLORES data at {archive}")
    languages = 0
    with tarfile.open(archive, "r|xz") as tar:
        for member in tar:
            if member.name.endswith(".devtest"):  # all .dev files come first
                break
            if member.name.endswith(".dev"):
                line = tar.extractfile(member).readline().decode().strip()
                np.testing.assert_allclose(rouge_f1([line], [[line]], "unicode"), 100, err_msg=f"{member.name}: {line}")
                languages += 1
    assert languages == 43


def test_bleu_over_windows_is_the_corpus_bleu_of_sacrebleu():
    metric = BLEU()
    expected = metric.corpus_score(HYPOTHESES, [REFERENCES]).score
    scorer = Scorer()
    for start in range(0, len(HYPOTHESES), 2):
        scorer.add(HYPOTHESES[start : start + 2], [[reference] for reference in REFERENCES[start : start + 2]])
    assert expected > 10
    assert scorer.scores(0, 1).bleu.value == pytest.approx(expected)
    assert scorer.bleu_signature == str(metric.get_signature())


def test_several_references_give_the_best_and_the_mean():
    scorer = Scorer()
    best = scorer.add(["a b", "c"], [["a b", "x y"], ["d"]])
    assert best.tolist() == [[100, 100, 100], [0, 0, 0]]
    scores = scorer.scores(0, 1)
    assert (scores.rouge1.value, scores.mean_rouge1.value, scores.exact_match.value) == (50, 25, 50)
    assert scorer.bleu_signature.startswith("nrefs:var|")
    assert BLEU(effective_order=True).sentence_score("a b", ["a b", "x y"]).score == pytest.approx(100)


def test_bleu_of_a_resample_equals_scoring_the_drawn_rows():
    rows = np.random.default_rng(7).integers(len(HYPOTHESES), size=len(HYPOTHESES))
    expected = BLEU().corpus_score([HYPOTHESES[row] for row in rows], [[REFERENCES[row] for row in rows]]).score
    bleu = score(HYPOTHESES, REFERENCES, samples=1, seed=7).bleu
    assert bleu.low == bleu.high == pytest.approx(expected)
    assert bleu.value != pytest.approx(expected)


def test_bleu_tokenizer_for_chinese():
    hypotheses, references = ["我喜欢北京的秋天"], ["我喜欢北京的冬天"]
    assert score(hypotheses, references).bleu.value == 0
    assert score(hypotheses, references, bleu_tokenizer="zh").bleu.value > 50


def test_bleu_tokenizer_without_its_package_names_the_package():
    if importlib.util.find_spec("MeCab"):
        pytest.skip("MeCab is installed")
    with pytest.raises(UserError, match=r"bleu_tokenizer ja-mecab .*sacrebleu\[ja\]"):
        Scorer(bleu_tokenizer="ja-mecab")


def test_shares_and_lengths_are_over_all_rows():
    scores = score(HYPOTHESES, REFERENCES)
    assert scores.exact_match.value == pytest.approx(20)
    assert scores.empty_percent.value == pytest.approx(20)
    assert scores.loop_percent.value == pytest.approx(20)
    assert scores.mean_words.value == pytest.approx((6 + 3 + 4 + 0 + 5) / 5)
    assert scores.rouge1.low is None


def test_resampled_means_spread_by_the_standard_error():
    values = np.random.default_rng(0).exponential(size=(400, 1))
    means = resampled_sums(values, 4000, seed=1) / len(values)
    assert means.mean() == pytest.approx(values.mean(), rel=0.01)
    assert means.std() == pytest.approx(values.std() / len(values) ** 0.5, rel=0.05)


def test_intervals_contain_the_value_and_depend_on_the_seed():
    hypotheses, references = HYPOTHESES * 20, REFERENCES * 20
    scores = score(hypotheses, references, samples=200)
    for name, estimate in scores:
        assert estimate.low < estimate.value < estimate.high, name
    assert scores == score(hypotheses, references, samples=200)
    assert scores != score(hypotheses, references, samples=200, seed=2)


def test_intervals_of_equal_rows_are_empty():
    scores = score(["a b c d e"] * 9, ["a b c d f"] * 9, samples=50)
    for name, estimate in scores:
        assert estimate.low == pytest.approx(estimate.value), name
        assert estimate.high == pytest.approx(estimate.value), name


def test_exact_match_ignores_the_width_of_white_space_only():
    assert exact_match("I_TURN_LEFT I_JUMP", " I_TURN_LEFT  I_JUMP\n")
    assert not exact_match("i_turn_left I_JUMP", "I_TURN_LEFT I_JUMP")


@pytest.mark.parametrize(
    ("text", "loops"),
    [
        ("a very very very long title", True),
        ("a very, Very: VERY long title", True),
        ("a very very long title", False),
        ("of graphs, of graphs, of graphs", True),
        ("of graphs of graphs", False),
        ("of graphs of graphs of", False),
        ("x of big data of big data of big data y", True),
        ("of very big data of very big data of very big data", True),
        ("one two three four five one two three four five one two three four five", False),
        ("a b a c a b a c", False),
        ("的的的", True),
        ("", False),
    ],
)
def test_loop_is_one_to_four_words_three_times_in_a_row(text, loops):
    assert has_loop(text) == loops


@pytest.mark.parametrize(
    ("source", "count", "lead"),
    [
        ("We study state-of-the-art models.", 4, "We study state-of"),
        ("Two words.", 10, "Two words"),
        ("  «Été», puis l'hiver", 2, "«Été», puis"),
        ("我喜欢北京。", 3, "我喜欢"),
        ("…", 3, ""),
        ("", 3, ""),
    ],
)
def test_lead_words_cut_the_source_after_the_last_word(source, count, lead):
    assert lead_words(source, count) == lead


@pytest.mark.parametrize(
    ("source", "sentence"),
    [
        ("We gain 3.5 points. Then we stop.", "We gain 3.5 points."),
        ("\n Why? Because.", "Why?"),
        ("No end", "No end"),
        ("Ends at once.", "Ends at once."),
        ("over two\nlines. Next", "over two\nlines."),
        ("我来了。你呢？", "我来了。"),
        ("यह हिन्दी है। और यह भी।", "यह हिन्दी है।"),
        ("", ""),
    ],
)
def test_first_sentence_ends_by_the_rules_of_its_script(source, sentence):
    assert first_sentence(source) == sentence


def test_warnings_name_the_option_that_helps():
    chinese = ["我喜欢北京的秋天", "ok"]
    rouge, bleu = tokenizer_warnings(chinese, "standard", "13a")
    assert "--metrics.rouge_tokenizer unicode" in rouge
    assert "80%" in rouge
    assert "--metrics.bleu_tokenizer" in bleu
    assert tokenizer_warnings(chinese, "unicode", "zh") == []
    assert len(tokenizer_warnings(["Привет, мир"], "standard", "13a")) == 1
    assert tokenizer_warnings(["A naïve approach to the façade problem", ""], "standard", "13a") == []
    assert tokenizer_warnings([], "standard", "13a") == []


def test_baselines_on_arxiv_titles_have_the_known_scores():
    path = DATA / "arxiv_cs" / "dev.tsv.xz"
    if not path.exists():
        pytest.skip(f"no arXiv data at {path}")
    with lzma.open(path, "rt", encoding="utf-8", newline="\n") as lines:
        titles, abstracts = zip(*(line.rstrip("\n").split("\t")[3:5] for line in lines), strict=True)
    references = [[title] for title in titles]
    lead = rouge_f1([lead_words(abstract, 10) for abstract in abstracts], references).mean(0)
    sentence = rouge_f1([first_sentence(abstract) for abstract in abstracts], references).mean(0)
    np.testing.assert_allclose(lead, [21.8, 8.7, 19.7], atol=0.06)
    np.testing.assert_allclose(sentence, [23.7, 10.05, 20.2], atol=0.06)
