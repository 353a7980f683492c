"""Text survives encoding except for white space, and cannot forge special tokens."""

from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config.prepare import TokenizerConfig
from pipeline.data.special_tokens import EOS
from pipeline.data.tokenizer import Tokenizer, train_tokenizer
from pipeline.errors import UserError


@pytest.fixture(scope="module", params=["unigram", "bpe"])
def tokenizer(request: pytest.FixtureRequest, tokenizer_file: bytes, abstracts: list[str]) -> Tokenizer:
    if request.param == "unigram":
        return Tokenizer(tokenizer_file)
    return Tokenizer(train_tokenizer(abstracts, TokenizerConfig(vocabulary_size=500, algorithm="bpe")))


def round_trip(tokenizer: Tokenizer, text: str) -> str:
    return tokenizer.decode(*tokenizer.encode([text]))[0]


@pytest.mark.parametrize(
    "text",
    [
        "plain words, and LaTeX: $\\alpha^2 \\leq \\frac{1}{2}$",
        "ߒߞߏ ߞߊ߲ ߞߊ߬ߙߊ߲",
        "བོད་སྐད་ནི་ངེས་པར",
        "👩‍👩‍👧‍👦 and 🏳️‍🌈 and 👍🏽",
        "עברית and العربية with marks: שָׁלוֹם",
        "日本語の文章と中文",
        "e\u0301 is not é, ﬁ is not fi",
        "\x00 \x01 \x7f \u200b \u2060 \ufeff \u202e",
        "\U0010ffff \ufffe",
        "",
    ],
)
def test_text_of_any_script_survives(tokenizer: Tokenizer, text: str) -> None:
    assert round_trip(tokenizer, text) == text


@given(st.text(st.characters(exclude_categories=[])))  # includes surrogates
def test_only_white_space_surrogates_and_the_space_mark_change(tokenizer_file: bytes, text: str) -> None:
    without_surrogates = "".join("\ufffd" if "\ud800" <= char <= "\udfff" else char for char in text)
    assert round_trip(Tokenizer(tokenizer_file), text) == " ".join(without_surrogates.replace("▁", " ").split())


def test_abstracts_survive(tokenizer: Tokenizer, abstracts: list[str]) -> None:
    assert tokenizer.decode(*tokenizer.encode(abstracts)) == [" ".join(text.split()) for text in abstracts]


def test_any_white_space_becomes_one_space(tokenizer: Tokenizer) -> None:
    expected = tokenizer.encode(["one two"])[0].tolist()
    for text in ("one\ntwo", "one\r\n\r\ntwo", "one\ttwo", " one  two\n", "one\u00a0two", "one\u3000two", "one\u2028two"):
        assert tokenizer.encode([text])[0].tolist() == expected
    assert tokenizer.encode([" \n\t"])[0].tolist() == []


def test_lone_surrogate_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    assert round_trip(tokenizer, "a \ud83d b \udc00") == "a \ufffd b \ufffd"


@pytest.mark.parametrize("text", ["<s>", "</s>", "<pad>", "<unk>", "a</s>b <s> <pad>", "<0x00>", "▁</s>"])
def test_text_that_spells_a_special_token_is_encoded_as_letters(tokenizer: Tokenizer, text: str) -> None:
    ids, _ = tokenizer.encode([text])
    assert ids.min() > EOS
    assert round_trip(tokenizer, text) == text.replace("▁", "")


def test_special_tokens_decode_to_nothing(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode(["some words"])
    ids = np.concatenate(([2], ids, [3, 0, 0])).astype(np.int32)
    assert tokenizer.decode(ids, np.array([0, len(ids)])) == ["some words"]


def test_truncated_character_becomes_the_replacement_character(tokenizer: Tokenizer) -> None:
    ids, _ = tokenizer.encode(["ok 👍"])
    assert tokenizer.decode(ids[:-1], np.array([0, len(ids) - 1]))[0].rstrip("\ufffd") == "ok "
    assert "\ufffd" in tokenizer.decode(ids[:-1], np.array([0, len(ids) - 1]))[0]


def test_empty_texts_keep_their_positions(tokenizer: Tokenizer) -> None:
    texts = ["", "one", "", "two words", "", ""]
    values, offsets = tokenizer.encode(texts)
    assert (values.dtype, offsets.dtype) == (np.int32, np.int64)
    assert [end > start for start, end in pairwise(offsets)] == [bool(text) for text in texts]
    assert tokenizer.decode(values, offsets) == texts
    assert tokenizer.decode(*tokenizer.encode([])) == []
    assert tokenizer.decode(*tokenizer.encode(["", ""])) == ["", ""]


def test_ids_depend_on_the_text_alone(tokenizer: Tokenizer, abstracts: list[str]) -> None:
    values, offsets = tokenizer.encode(abstracts[:50])
    for row in (0, 17, 49):
        assert tokenizer.encode([abstracts[row]])[0].tolist() == values[offsets[row] : offsets[row + 1]].tolist()


@pytest.mark.timeout(30)
def test_text_of_200_000_characters_is_encoded_completely(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for text in (
        "a" * 200_000,
        "".join(rng.choice("abcdefg ߒ\u200b👍") for _ in range(200_000)),
        "neural networks of many layers " * 6_500,
    ):
        assert round_trip(tokenizer, text) == " ".join(text.split())


def test_training_is_reproducible(abstracts: list[str]) -> None:
    config = TokenizerConfig(vocabulary_size=400)
    assert train_tokenizer(abstracts[:80], config) == train_tokenizer(iter(abstracts[:80]), config)


def test_vocabulary_has_the_configured_size(tokenizer: Tokenizer) -> None:
    assert tokenizer.vocabulary_size == 500


def test_normalization_is_configurable(abstracts: list[str]) -> None:
    file = train_tokenizer(abstracts[:80], TokenizerConfig(vocabulary_size=400, normalization="nfkc_cf"))
    assert round_trip(Tokenizer(file), "ﬁve ÄPFEL") == "five äpfel"


def test_training_accepts_lines_and_unusual_characters(abstracts: list[str]) -> None:
    unusual = ["\n".join(abstracts[:20]), "", "  ", "\x00", "lone \ud800 surrogate", "long " * 5_000]
    assert (
        Tokenizer(train_tokenizer([*unusual, *abstracts[20:80]], TokenizerConfig(vocabulary_size=400))).vocabulary_size == 400
    )


@pytest.mark.parametrize("algorithm", ["unigram", "bpe"])
@pytest.mark.parametrize("texts", [["one short text"], ["a"] * 1000])
def test_too_little_text_for_the_vocabulary_is_an_error(texts: list[str], algorithm: str) -> None:
    with pytest.raises(UserError, match=r"8000 .*Vocabulary size too high .* <= \d+.*--tokenizer\.vocabulary_size"):
        train_tokenizer(texts, TokenizerConfig.model_validate({"algorithm": algorithm}))


def test_training_without_text_is_an_error() -> None:
    for texts in ([], ["", " \n"]):
        with pytest.raises(UserError, match="no text"):
            train_tokenizer(texts, TokenizerConfig())


def test_vocabulary_without_room_for_bytes_and_special_tokens_is_an_error(abstracts: list[str]) -> None:
    with pytest.raises(UserError, match="100 subwords"):
        train_tokenizer(abstracts, TokenizerConfig(vocabulary_size=100))


def test_bytes_that_are_not_a_model_are_an_error() -> None:
    for content in (b"", b"nothing of the kind", b"\x00" * 100):
        with pytest.raises(UserError, match="my file is not a SentencePiece model"):
            Tokenizer(content, "my file")


def test_model_with_other_special_tokens_is_an_error(tmp_path: Path, abstracts: list[str]) -> None:
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(abstracts[:80]), model_prefix=str(tmp_path / "other"), vocab_size=200, minloglevel=2
    )
    with pytest.raises(UserError, match=r"at ids \(-1, 0, 1, 2\), not \(0, 1, 2, 3\)"):
        Tokenizer((tmp_path / "other.model").read_bytes())
