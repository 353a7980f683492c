"""``jobs.evaluate`` as a user runs it: its report, its output, and its messages for invalid input."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from job import RunJob, job_runner

from pipeline.errors import EXIT_OK
from pipeline.evaluation.metrics import Scorer, first_sentence, lead_words
from pipeline.model.bundle import load_bundle, save_bundle
from pipeline.model.seq2seq import Seq2Seq

GetError = Callable[..., str]


@pytest.fixture
def pairs(tmp_path: Path, abstracts: list[str]) -> Path:
    """30 pairs in two shards: abstracts, and as targets their first sentences."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for shard in range(2):
        sources = abstracts[15 * shard : 15 * (shard + 1)]
        ids = [f"{shard}-{row}" for row in range(15)]
        table = pa.table({"id": ids, "source": sources, "target": [first_sentence(source) for source in sources]})
        pq.write_table(table, folder / f"part-{shard:05d}.parquet")
    return folder


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path, pairs: Path
) -> RunJob:
    """A function that runs the job, by default on the pairs."""
    run = job_runner("evaluate", monkeypatch, capsys)
    defaults = ["--input.path", pairs, "--model.path", tiny_bundle, "--output.path", tmp_path / "out/e.json"]
    return lambda *options: run(*defaults, "--metrics.bootstrap_samples", 50, *options)


@pytest.fixture
def error(evaluate: RunJob, tmp_path: Path) -> GetError:
    """A function that runs the job with invalid options and returns its error message; nothing may be written."""

    def run(*options: object) -> str:
        message = evaluate(*options).error
        assert not list(tmp_path.rglob("*.json*"))
        return message

    return run


def read_report(tmp_path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((tmp_path / "out/e.json").read_text())
    return report


def test_report_has_the_scores_of_the_written_hypotheses(evaluate: RunJob, tmp_path: Path, pairs: Path) -> None:
    file = tmp_path / "out/h[/x].parquet"  # must not be taken for console markup
    done = evaluate("--output.hypotheses", file, "--metrics.lead_words", 5)
    assert (done.status, done.err) == (EXIT_OK, "")
    table, report = pq.read_table(file), read_report(tmp_path)
    assert table.schema.names == ["id", "source", "reference", "hypothesis", "score", "finish_reason"]
    stored = pq.read_table(pairs)
    assert table["id"].to_pylist() == stored["id"].to_pylist()
    assert table["reference"].to_pylist() == stored["target"].to_pylist()
    sources = stored["source"].to_pylist()
    for name, hypotheses in {
        "model": table["hypothesis"].to_pylist(),
        "first 5 words": [lead_words(source, 5) for source in sources],
        "first sentence": [first_sentence(source) for source in sources],
    }.items():
        scorer = Scorer()
        scorer.add(hypotheses, [[reference] for reference in table["reference"].to_pylist()])
        assert report["systems"][name] == scorer.scores(50, 1).model_dump()
    assert report["systems"]["first sentence"]["exact_match"]["value"] == 100
    assert report["length_limit_percent"] == pytest.approx(100 * table["finish_reason"].to_pylist().count("length") / 30)
    assert "first 5 words" in done.out
    assert str(file) in done.out


def test_report_names_model_input_and_options(evaluate: RunJob, tmp_path: Path, tiny_bundle: Path, pairs: Path) -> None:
    assert evaluate("--decoding.max_target_tokens", 4, "--input.max_rows", 20).status == EXIT_OK
    report = read_report(tmp_path)
    bundle = load_bundle(tiny_bundle)
    assert report["model"]["fingerprint"] == bundle.fingerprint
    assert report["input"] == {"path": str(pairs), "rows": 20, "skipped_null_rows": 0}
    assert report["rows"] == 20
    assert report["decoding"] == {**bundle.decoding.model_dump(), "max_target_tokens": 4}
    assert report["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert report["metrics"]["bootstrap_samples"] == 50
    assert set(report["versions"]) >= {"nightshift", "torch", "sacrebleu", "rouge-score"}
    assert report["documents_per_s"] > 0


def test_same_command_gives_the_same_scores(evaluate: RunJob, tmp_path: Path) -> None:
    reports = []
    for _ in range(2):
        assert evaluate().status == EXIT_OK
        report = read_report(tmp_path)
        reports.append({name: value for name, value in report.items() if name not in ("decode_s", "documents_per_s")})
    assert reports[0] == reports[1]


def test_rows_with_nulls_are_skipped_and_counted(evaluate: RunJob, tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    table = pa.table({"id": [1, 2, 3, 4], "source": ["a b", None, "c d", ""], "target": ["a", "b", None, "d"]})
    pq.write_table(table, path)
    done = evaluate("--input.path", path, "--output.hypotheses", tmp_path / "h.parquet")
    assert done.status == EXIT_OK
    assert "skipped 2 rows" in done.out
    assert read_report(tmp_path)["input"] == {"path": str(path), "rows": 4, "skipped_null_rows": 2}
    assert pq.read_table(tmp_path / "h.parquet")["id"].to_pylist() == [1, 4]


def test_tokenizers_that_do_not_fit_the_references_are_a_warning(evaluate: RunJob, tmp_path: Path) -> None:
    path = tmp_path / "zh.parquet"
    pq.write_table(pa.table({"id": ["1"], "source": ["我喜欢北京。"], "target": ["我喜欢北京。"]}), path)
    assert evaluate("--input.path", path).out.count("warning:") == 2
    assert read_report(tmp_path)["systems"]["first sentence"]["rouge1"]["value"] == 0
    done = evaluate("--input.path", path, "--metrics.rouge_tokenizer", "unicode", "--metrics.bleu_tokenizer", "zh")
    assert "warning:" not in done.out
    assert read_report(tmp_path)["systems"]["first sentence"]["rouge1"]["value"] == 100


def test_each_score_takes_the_best_reference_and_the_mean_is_shown(evaluate: RunJob, tmp_path: Path) -> None:
    path = tmp_path / "references.parquet"
    table = pa.table({"id": ["1", "2"], "source": ["one two.", "three."], "target": ["x", "y"]})
    references = pa.array([["x", "one two", None], []], pa.list_(pa.string()))
    pq.write_table(table.append_column("references", references), path)
    done = evaluate("--input.path", path)
    assert (done.status, done.err) == (EXIT_OK, "")
    report = read_report(tmp_path)
    assert report["references"] == 3
    lead = report["systems"]["first sentence"]
    assert (lead["rouge1"]["value"], lead["mean_rouge1"]["value"]) == (50, 25)
    assert "mean ROUGE-1" in done.out
    assert "1.5 references a source" in done.out


def test_two_models_are_compared(evaluate: RunJob, tmp_path: Path, tiny_bundle: Path) -> None:
    done = evaluate("--model.path", "sample", "--compare.path", tiny_bundle)
    assert (done.status, done.err) == (EXIT_OK, "")
    report = read_report(tmp_path)
    comparison, systems = report["comparison"], report["systems"]
    difference = systems["model"]["rougeL"]["value"] - systems["other"]["rougeL"]["value"]
    assert comparison["difference"]["value"] == pytest.approx(difference)
    assert comparison["verdict"] == "better"
    assert report["compare"]["fingerprint"] == load_bundle(tiny_bundle).fingerprint
    assert "the model is better than the other: ROUGE-L +" in done.out
    [best, *_] = comparison["better_rows"]
    assert best["model"] in done.out

    assert evaluate("--compare.path", tiny_bundle).status == EXIT_OK
    same = read_report(tmp_path)["comparison"]
    assert (same["verdict"], same["better_share"], same["better_rows"]) == ("no difference", 0.5, [])


def test_model_without_styles_is_compared_with_one_of_styles(evaluate: RunJob, tmp_path: Path, tiny_bundle: Path) -> None:
    plain = load_bundle(tiny_bundle)
    network = plain.model.config.model_copy(update={"styles": ["title"]})
    styled = Seq2Seq(network, plain.model.vocabulary_size)
    save_bundle(tmp_path / "styled", styled, plain.tokenizer_file, plain.decoding)
    done = evaluate("--model.path", tmp_path / "styled", "--compare.path", tiny_bundle, "--decoding.style", "title")
    assert (done.status, done.err) == (EXIT_OK, "")
    report = read_report(tmp_path)
    assert report["decoding"]["style"] == "title"
    assert "style" not in report["compare"]["decoding"]


def test_no_resamples_give_no_intervals(evaluate: RunJob, tmp_path: Path) -> None:
    done = evaluate("--metrics.bootstrap_samples", 0)
    assert done.status == EXIT_OK
    assert "95 %" not in done.out
    assert read_report(tmp_path)["systems"]["model"]["bleu"]["low"] is None


def test_comparison_without_resamples(error: GetError) -> None:
    assert "set metrics.bootstrap_samples" in error("--compare.path", "sample", "--metrics.bootstrap_samples", 0)


def test_missing_model_to_compare_with(error: GetError, tmp_path: Path) -> None:
    assert "set --compare.path" in error("--compare.path", tmp_path / "none")


def test_missing_input(error: GetError, tmp_path: Path) -> None:
    message = error("--input.path", tmp_path / "missing")
    assert str(tmp_path / "missing") in message
    assert "--input.path" in message


def test_folder_of_splits_is_not_a_folder_of_pairs(error: GetError, pairs: Path) -> None:
    message = error("--input.path", pairs.parent)
    assert str(pairs.parent) in message
    assert ".parquet" in message


def test_file_that_is_not_parquet(error: GetError, tmp_path: Path) -> None:
    file = tmp_path / "bad.parquet"
    file.write_text("id,source,target\n")
    assert str(file) in error("--input.path", file)


def test_missing_column_lists_the_existing_ones(error: GetError, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": ["1"], "source": ["a"], "title": ["b"]}), path)
    message = error("--input.path", path)
    assert "'target'" in message
    assert "id, source, title" in message


def test_column_that_is_not_text(error: GetError, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": ["1"], "source": ["a"], "target": [7]}), path)
    message = error("--input.path", path)
    assert "'target'" in message
    assert "int64" in message


@pytest.mark.parametrize(("sources", "reason"), [([], "no rows"), ([None, None], "null source or target")])
def test_no_rows_to_score(error: GetError, tmp_path: Path, sources: list[str | None], reason: str) -> None:
    path = tmp_path / "p.parquet"
    texts = pa.array(sources, pa.string())
    pq.write_table(pa.table({"id": texts, "source": texts, "target": texts}), path)
    assert reason in error("--input.path", path)


def test_broken_bundle(error: GetError, tmp_path: Path, tiny_bundle: Path) -> None:
    assert "no model bundle" in error("--model.path", tmp_path / "none")
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken, ignore=shutil.ignore_patterns("config.json"))
    assert "config.json" in error("--model.path", broken)


def test_output_that_cannot_be_written(error: GetError, tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--output.path" in error("--output.path", tmp_path / "file" / "e")
    assert "is a folder" in error("--output.path", pairs)
    assert "--output.hypotheses" in error("--output.hypotheses", tmp_path / "file" / "h.parquet")


def test_failed_run_keeps_the_earlier_report(evaluate: RunJob, tmp_path: Path, pairs: Path) -> None:
    assert evaluate().status == EXIT_OK
    report = read_report(tmp_path)
    shard = pairs / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[100:2000] = bytes(1900)  # breaks pages but not the footer, so decoding starts
    shard.write_bytes(content)
    assert f"cannot read {pairs}" in evaluate().error
    assert read_report(tmp_path) == report
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["e.json"]
