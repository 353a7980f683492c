"""Which rows become pairs, which split they go to, and the files that prepare writes."""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.config.loader import load_config
from pipeline.config.prepare import PrepareConfig
from pipeline.data.pairs import PAIR_SCHEMA, pair_schema
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.prepare.extract import Pair, SplitReport, assign_split, open_rows, read_pairs, source_key
from pipeline.prepare.prepare import PrepareResult, prepare

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"

needs_data = pytest.mark.skipif(not SHARED.is_dir(), reason="../shared/data is missing")


def make_config(train: Path | str, path: Path | str = "unused", **sections: dict[str, Any]) -> PrepareConfig:
    return PrepareConfig.model_validate(
        {
            "input": {"train": str(train), **sections.get("input", {})},
            "filter": sections.get("filter", {}),
            "tokenizer": {"vocabulary_size": 360, "algorithm": "bpe"},
            "output": {"path": str(path), **sections.get("output", {})},
        }
    )


def write_jsonl(path: Path, rows: list[Any]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def extract(train: Path | str, **sections: dict[str, Any]) -> tuple[list[Pair], SplitReport]:
    report = SplitReport()
    config = make_config(train, **sections)
    rows, options = open_rows(str(train), "train", config.input, Path("unused"))
    pairs = [pair for _, pair in read_pairs(rows, options, config.filter, report)]
    assert report.rows + report.extra == sum(len(pair.references) for pair in pairs) + report.dropped.total()
    return pairs, report


def shards(folder: Path) -> list[Pair]:
    rows = [row for file in sorted(folder.glob("*.parquet")) for row in pq.read_table(file).to_pylist()]
    return [Pair(**{"references": [row["target"]], **row}) for row in rows]


@pytest.fixture(scope="module")
def source_pairs(abstracts: list[str]) -> list[dict[str, str]]:
    """400 pairs of real words: the first 20 words of an abstract, and the first 5 of those."""
    return [{"source": " ".join(text.split()[:20]), "target": " ".join(text.split()[:5])} for text in abstracts[:400]]


# Which rows become pairs


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ({"source": None, "target": "x"}, "null_source"),
        ({"source": "a"}, "null_target"),
        ({"source": 7, "target": "x"}, "bad_type_source"),
        ({"source": "a", "target": {"text": "x"}}, "bad_type_target"),
        ({"source": ["a", None], "target": "x"}, "bad_type_source"),
        ({"source": "a", "target": ["x", 7]}, "bad_type_target"),
        ({"source": "", "target": "x"}, "empty_source"),
        ({"source": "a", "target": " \t\n\u3000"}, "empty_target"),
        ({"source": [], "target": "x"}, "empty_source"),
        ({"source": "a", "target": []}, "bad_type_target"),
        ({"source": "ab", "target": "x"}, "short_source"),
        ({"source": "a" * 101, "target": "x"}, "too_long_source"),
        ({"source": "abc", "target": "x" * 101}, "too_long_target"),
    ],
)
def test_unusable_row_is_dropped_with_a_reason(tmp_path: Path, row: dict[str, Any], reason: str) -> None:
    good = {"source": "abcd", "target": "x"}
    limits = {"min_source_chars": 0 if reason in ("empty_source", "null_source") else 1, "max_chars": 100}
    if reason == "short_source":
        limits["min_source_chars"] = 3
    path = write_jsonl(tmp_path / "a.jsonl", [good, row, good])
    pairs, report = extract(path, filter=limits)
    assert [pair.id for pair in pairs if pair.source == "abcd"] == ["0", "2"]
    assert report.dropped[reason] == 1
    assert report.examples[reason][0].startswith(f"{path}:2")


def test_first_rows_of_each_reason_are_examples(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"source": "a", "target": None}] * 10 + [{"source": "a", "target": "b"}])
    _, report = extract(path)
    assert report.dropped == {"null_target": 10}
    assert report.examples == {"null_target": [f"{path}:{line}" for line in (1, 2, 3)]}


def test_texts_are_stripped(tmp_path: Path) -> None:
    (tmp_path / "a.tsv").write_text("source\ttarget\n  a   b \t x\n")
    assert extract(tmp_path / "a.tsv")[0] == [Pair("0", "a   b", "x", ["x"])]


def test_list_of_source_strings_is_joined(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"source": ["One. ", "Two."], "target": "x"}])
    assert extract(path)[0] == [Pair("0", "One. Two.", "x", ["x"])]


@pytest.mark.parametrize(("target_list", "targets"), [("each", ["x", "y"]), ("first", ["x"]), ("join", ["x y"])])
def test_target_list_option(tmp_path: Path, target_list: str, targets: list[str]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"source": "a", "target": ["x", "y "]}])
    pairs, report = extract(path, input={"target_list": target_list})
    assert pairs == [Pair("0", "a", targets[0], targets)]
    assert [pair.target for pair in pairs[0].one_per_reference()] == targets
    assert report.extra == len(targets) - 1


def test_list_of_targets_is_pairs_to_train_on_and_references_to_test_on(
    tmp_path: Path, source_pairs: list[dict[str, str]]
) -> None:
    rows = [{**pair, "target": [pair["target"], "", "another"]} for pair in source_pairs]
    train, test = write_jsonl(tmp_path / "train.jsonl", rows[:100]), write_jsonl(tmp_path / "test.jsonl", rows[100:110])
    result = prepare(make_config(train, tmp_path / "out", input={"test": str(test), "dev_share": 0.2}))
    kept = {split: shards(tmp_path / "out" / split) for split in ("train", "dev", "test")}
    assert len(kept["train"]) == 2 * len({pair.source for pair in kept["train"]})
    assert len(kept["train"]) + 2 * len(kept["dev"]) == 200
    for pair in kept["dev"] + kept["test"]:
        assert pair.references == [pair.target, "another"]
    reports = result.splits.values()
    written = sum(report.kept + report.merged + report.dropped.total() for report in reports)
    assert written == sum(report.rows + report.extra for report in reports) == 330


def test_references_survive_a_second_preparation(tmp_path: Path, source_pairs: list[dict[str, str]]) -> None:
    rows = [{**pair, "target": [pair["target"], "another"]} for pair in source_pairs]
    prepare(make_config(write_jsonl(tmp_path / "a.jsonl", rows), tmp_path / "one", input={"dev_share": 0.2}))
    prepare(make_config(tmp_path / "one/train", tmp_path / "two", input={"dev": str(tmp_path / "one/dev")}))
    first, second = ({(pair.source, *pair.references) for pair in shards(tmp_path / name / "dev")} for name in ("one", "two"))
    assert first == second
    assert {len(pair) for pair in first} == {3}


def test_summaries_without_a_number_as_score_are_dropped_by_a_filter_of_scores(tmp_path: Path) -> None:
    scores = [-0.5, "-0.5", 0, -2, "-2.0", float("nan"), None, "high"]
    path = write_jsonl(tmp_path / "a.jsonl", [{"source": "a", "target": "b", "score": score} for score in scores])
    pairs, report = extract(path, filter={"min_score": -1})
    assert [pair.id for pair in pairs] == ["0", "1", "2"]
    assert report.dropped == {"low_score": 3, "no_score": 2}


def test_output_that_the_input_pattern_matches_is_refused(tmp_path: Path, source_pairs: list[dict[str, str]]) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", source_pairs)
    prepare(make_config(path, tmp_path / "prepared/one"))
    pattern = tmp_path / "prepared/*/train/*.parquet"
    with pytest.raises(UserError, match="also matches the shards"):
        prepare(make_config(pattern, tmp_path / "prepared/both"))
    prepare(make_config(pattern, tmp_path / "both"))


def test_style_of_the_input_or_of_each_row(tmp_path: Path, source_pairs: list[dict[str, str]]) -> None:
    rows = [{**pair, "kind": kind} for pair in source_pairs[:50] for kind in ("title", "tldr", None, "no name")]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    result = prepare(make_config(path, tmp_path / "each", input={"style_column": "kind"}))
    assert result.splits["train"].dropped == {"bad_style": 50}
    [shard] = (tmp_path / "each/train").iterdir()
    assert pq.read_schema(shard).equals(pair_schema(references=False, style=True))
    assert set(pq.read_table(shard)["style"].to_pylist()) == {"title", "tldr", None}
    prepare(make_config(path, tmp_path / "all", input={"style": "title"}))
    assert {pair.style for split in ("train", "dev") for pair in shards(tmp_path / "all" / split)} == {"title"}


def test_lone_surrogate_is_replaced_and_surrogate_pair_decoded(tmp_path: Path) -> None:
    (tmp_path / "a.jsonl").write_text('{"source": "a\\ud800b", "target": "\\ud83d\\ude00", "key": "\\udfff"}\n')
    pairs, _ = extract(tmp_path / "a.jsonl", input={"id_column": "key"})
    assert pairs == [Pair("\ufffd", "a\ufffdb", "😀", ["😀"])]


def test_ids_are_strings_of_the_column_or_row_numbers(tmp_path: Path) -> None:
    rows = [{"source": "a", "target": "x", "key": key} for key in (7, "seven", None)]
    path = write_jsonl(tmp_path / "a.jsonl", [{}, *rows])
    assert [pair.id for pair in extract(path, input={"id_column": "key"})[0]] == ["7", "seven", "3"]
    assert [pair.id for pair in extract(path)[0]] == ["1", "2", "3"]


# Which split they go to


def test_split_sizes_match_the_shares() -> None:
    shares = {"dev": 0.1, "test": 0.2}
    counts = Counter(assign_split(source_key(f"sentence {number}", 1), "train", shares) for number in range(20_000))  # type: ignore[arg-type]
    assert counts["dev"] / 20_000 == pytest.approx(0.1, abs=0.01)
    assert counts["test"] / 20_000 == pytest.approx(0.2, abs=0.01)


def test_source_key_ignores_white_space() -> None:
    assert source_key("one two", 1) == source_key("one  \ttwo", 1)
    assert source_key("one two", 1) != source_key("one Two", 1)
    assert source_key("one two", 1) != source_key("one two", 2)


def test_splits_share_no_source_and_lose_no_pair(tmp_path: Path, source_pairs: list[dict[str, str]]) -> None:
    rows = [{"source": pair["source"], "target": f"{number} {pair['target']}"} for number in range(3) for pair in source_pairs]
    path = write_jsonl(tmp_path / "a.jsonl", rows)
    prepare(make_config(path, tmp_path / "out", input={"dev_share": 0.2, "test_share": 0.1}))
    splits = {name: shards(tmp_path / "out" / name) for name in ("train", "dev", "test")}
    sources = {name: {pair.source for pair in pairs} for name, pairs in splits.items()}
    assert not sources["train"] & sources["dev"] | sources["train"] & sources["test"] | sources["dev"] & sources["test"]
    assert sorted(int(pair.id) for pairs in splits.values() for pair in pairs) == list(range(1200))
    assert 40 < len(sources["dev"]) < 120
    assert 15 < len(sources["test"]) < 70


@pytest.mark.parametrize("drop", [True, False])
def test_held_out_training_pairs_are_dropped_or_counted(tmp_path: Path, source_pairs: list[dict[str, str]], drop: bool) -> None:
    dev = write_jsonl(tmp_path / "dev.jsonl", [{**source_pairs[0], "source": f"  {source_pairs[0]['source']}\n"}])
    test = write_jsonl(tmp_path / "test.jsonl", source_pairs[5:7])
    train = write_jsonl(tmp_path / "train.jsonl", source_pairs)
    inputs = {"dev": str(dev), "test": str(test)}
    result = prepare(make_config(train, tmp_path / "out", input=inputs, filter={"drop_held_out": drop}))
    report = result.splits["train"]
    if drop:
        assert report.dropped == {"source_in_dev": 1, "source_in_test": 2}
        assert report.examples["source_in_test"] == [f"{train}:6", f"{train}:7"]
        assert {pair.id for pair in shards(tmp_path / "out/train")}.isdisjoint({"0", "5", "6"})
    else:
        assert (report.held_out, report.kept, report.dropped) == (3, 400, {})
    assert [len(shards(tmp_path / "out" / split)) for split in ("dev", "test")] == [1, 2]


def test_shares_that_leave_no_training_pairs_are_refused() -> None:
    with pytest.raises(UserError, match="dev_share and test_share"):
        load_config(
            PrepareConfig, "prepare", ["--input.train", "a.tsv", "--input.dev_share", "0.6", "--input.test_share", "0.4"]
        )


# Which files are written


@pytest.fixture(scope="module")
def prepared(tmp_path_factory: pytest.TempPathFactory, source_pairs: list[dict[str, str]]) -> tuple[Path, PrepareResult]:
    folder = tmp_path_factory.mktemp("prepare")
    path = write_jsonl(
        folder / "a.jsonl", [*source_pairs, {"source": "damaged \ud800", "target": "x"}, {"source": "", "target": "x"}]
    )
    return folder / "out", prepare(make_config(path, folder / "out", output={"rows_per_shard": 150}))


def test_shards_have_the_pair_schema_and_configured_size(prepared: tuple[Path, PrepareResult]) -> None:
    output, result = prepared
    files = sorted((output / "train").iterdir())
    assert [file.name for file in files] == ["part-00000.parquet", "part-00001.parquet", "part-00002.parquet"]
    assert all(pq.read_schema(file).equals(PAIR_SCHEMA) for file in files)
    assert pq.read_schema(output / "dev/part-00000.parquet").equals(pair_schema(references=True, style=False))
    assert [pq.read_metadata(file).num_rows for file in files] == [150, 150, result.splits["train"].kept - 300]
    assert not (output / "test").exists()


def test_order_is_random_and_reproducible(prepared: tuple[Path, PrepareResult], tmp_path: Path) -> None:
    output, _ = prepared
    ids = [int(pair.id) for pair in shards(output / "train")]
    assert ids != sorted(ids)
    assert any(number > 200 for number in ids[:20])
    prepare(make_config(output.parent / "a.jsonl", tmp_path / "again", output={"rows_per_shard": 150}))
    for file in sorted(
        path.relative_to(output) for path in output.rglob("*") if path.is_file() and path.name != "prepare.json"
    ):
        assert (tmp_path / "again" / file).read_bytes() == (output / file).read_bytes()


def test_prepare_json_has_report_and_configuration(prepared: tuple[Path, PrepareResult]) -> None:
    output, result = prepared
    summary = json.loads((output / "prepare.json").read_text(encoding="utf-8"))
    train, dev = summary["splits"]["train"], summary["splits"]["dev"]
    assert (train["rows"], train["kept"] + dev["kept"], train["dropped"]) == (402, 401, {"empty_source": 1})
    assert train["damaged"] + dev["damaged"] == 1
    assert PrepareConfig.model_validate(summary["config"]).tokenizer.vocabulary_size == 360
    assert summary["vocabulary_size"] == Tokenizer((output / "tokenizer.model").read_bytes()).vocabulary_size == 360
    assert summary["tokenizer_pairs"] == train["kept"]
    assert result.splits["train"].kept == train["kept"]


def test_length_percentiles_match_the_tokenized_pairs(prepared: tuple[Path, PrepareResult]) -> None:
    output, result = prepared
    tokenizer = Tokenizer((output / "tokenizer.model").read_bytes())
    measured = pq.read_table(output / "train/part-00000.parquet")
    _, offsets = tokenizer.encode(measured["source"].to_pylist())
    assert result.measured_pairs == len(measured)
    assert result.source_subwords[100] == max(offsets[1:] - offsets[:-1])
    assert list(result.source_subwords.values()) == sorted(result.source_subwords.values())


def test_empty_split_has_one_empty_shard(tmp_path: Path, source_pairs: list[dict[str, str]]) -> None:
    empty = write_jsonl(tmp_path / "dev.jsonl", [])
    prepare(make_config(write_jsonl(tmp_path / "a.jsonl", source_pairs), tmp_path / "out", input={"dev": str(empty)}))
    assert shards(tmp_path / "out/dev") == []
    assert pq.read_schema(tmp_path / "out/dev/part-00000.parquet").equals(pair_schema(references=True, style=False))


def test_pairs_larger_than_memory_are_prepared(
    tmp_path: Path, source_pairs: list[dict[str, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("pipeline.prepare.prepare.MEMORY_CHARS", 10_000)
    result = prepare(make_config(write_jsonl(tmp_path / "a.jsonl", source_pairs), tmp_path / "out", input={"dev_share": 0.0}))
    files = sorted((tmp_path / "out/train").iterdir())
    assert sorted(int(pair.id) for pair in shards(tmp_path / "out/train")) == list(range(400))
    assert len(files) > 5
    assert max(pq.read_metadata(file).num_rows for file in files) < 100
    assert result.tokenizer_pairs < 100
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["prepare.json", "tokenizer.model", "train"]


def test_failure_leaves_no_output_and_keeps_the_previous_one(tmp_path: Path, source_pairs: list[dict[str, str]]) -> None:
    output = tmp_path / "out"
    path = tmp_path / "broken.jsonl.xz"
    path.write_bytes(lzma.compress("".join(json.dumps(pair) + "\n" for pair in source_pairs).encode())[:-100])
    with pytest.raises(UserError, match=r"cannot read .*broken\.jsonl\.xz"):
        prepare(make_config(path, output))
    assert list(tmp_path.iterdir()) == [path]
    prepare(make_config(write_jsonl(tmp_path / "a.jsonl", source_pairs), output))
    previous = {file: file.read_bytes() for file in output.rglob("*.*")}
    with pytest.raises(UserError, match=r"cannot read .*broken\.jsonl\.xz"):
        prepare(make_config(path, output, output={"overwrite": True}))
    assert {file: file.read_bytes() for file in output.rglob("*.*")} == previous


def test_no_pairs_is_an_error_with_the_reasons(tmp_path: Path) -> None:
    path = write_jsonl(tmp_path / "a.jsonl", [{"source": "a", "target": ""}] * 3)
    with pytest.raises(UserError, match=f"empty_target 3, the first at {re.escape(str(path))}:1"):
        prepare(make_config(path, tmp_path / "out"))
    with pytest.raises(UserError, match="no rows"):
        prepare(make_config(write_jsonl(path, []), tmp_path / "out"))


# Real data with the shipped configurations


def scenario(name: str, output: Path, *options: str) -> PrepareConfig:
    file = str(ROOT / f"configs/prepare.{name}.yaml")
    return load_config(PrepareConfig, "prepare", ["--config", file, "--output.path", str(output), *options])


@pytest.fixture
def in_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)


@needs_data
@pytest.mark.usefixtures("in_root")
def test_scan_words_are_subwords_and_texts_round_trip(tmp_path: Path) -> None:
    result = prepare(scenario("scan", tmp_path / "out"))
    pairs = {split: shards(tmp_path / "out" / split) for split in ("train", "dev", "test")}
    assert len(pairs["train"]) + len(pairs["dev"]) == 16_728
    assert (len(pairs["test"]), result.splits["test"].dropped) == (4182, {})
    texts = [text for split in pairs.values() for pair in split for text in (pair.source, pair.target)]
    words = sorted({word for text in texts for word in text.split()})
    tokenizer = Tokenizer((tmp_path / "out/tokenizer.model").read_bytes())
    _, offsets = tokenizer.encode(words)
    assert len(words) == 19
    assert set(offsets[1:] - offsets[:-1]) == {1}
    assert tokenizer.decode(*tokenizer.encode(texts)) == texts


@needs_data
@pytest.mark.usefixtures("in_root")
def test_tatoeba_is_split_by_english_sentence(tmp_path: Path) -> None:
    options = ("--input.max_rows", "20000", "--tokenizer.vocabulary_size", "500", "--tokenizer.train_rows", "2000")
    result = prepare(scenario("tatoeba", tmp_path / "out", *options))
    english = {split: {pair.source for pair in shards(tmp_path / "out" / split)} for split in ("train", "dev", "test")}
    assert result.splits["train"].rows == 20_000
    assert len(english["train"]) < result.splits["train"].kept
    assert english["dev"]
    assert english["test"]
    assert not english["train"] & (english["dev"] | english["test"]) | english["dev"] & english["test"]


@needs_data
@pytest.mark.usefixtures("in_root")
def test_arxiv_keeps_ids_and_its_own_dev_set(tmp_path: Path) -> None:
    options = ("--input.max_rows", "500", "--tokenizer.vocabulary_size", "500", "--tokenizer.algorithm", "bpe")
    result = prepare(scenario("arxiv", tmp_path / "out", *options))
    assert {split: report.kept for split, report in result.splits.items()} == {"train": 500, "dev": 500}
    with lzma.open(SHARED / "arxiv_cs/train.tsv.xz", "rt", encoding="utf-8") as file:
        ids = [next(file).split("\t")[0] for _ in range(500)]
    assert sorted(pair.id for pair in shards(tmp_path / "out/train")) == sorted(ids)
    assert 100 < result.source_subwords[50] < 600


@needs_data
def test_scitldr_has_several_references() -> None:
    pairs, report = extract(SHARED / "scitldr/test.jsonl.xz", input={"id_column": "paper_id"})
    assert len(pairs) == len({pair.id for pair in pairs}) == report.rows == 618
    assert sum(len(pair.references) for pair in pairs) > 1900
    first, _ = extract(SHARED / "scitldr/test.jsonl.xz", input={"target_list": "first"})
    assert all(len(pair.references) == 1 for pair in first)


@needs_data
def test_nested_meetings_are_refused(tmp_path: Path) -> None:
    path = SHARED / "qmsum/test.jsonl.xz"
    columns = {"source_column": "meeting_transcripts", "target_column": "general_query_list"}
    with pytest.raises(UserError, match="bad_type_source"):
        prepare(make_config(path, tmp_path / "out", input=columns))


def test_output_inside_input_is_refused(tmp_path: Path) -> None:
    (tmp_path / "pairs.tsv").write_text("source\ttarget\na\tb\n")
    config = PrepareConfig.model_validate(
        {"input": {"train": str(tmp_path), "format": "tsv"}, "output": {"path": str(tmp_path / "out")}}
    )
    with pytest.raises(UserError, match=r"--output\.path .*/out .*--input\.train"):
        prepare(config)
    assert not (tmp_path / "out").exists()
