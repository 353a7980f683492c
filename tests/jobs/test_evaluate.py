"""``jobs.evaluate`` as a user runs it: what it writes and prints, and its exit status where something is wrong."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.evaluate import main
from pipeline.errors import exit_on_user_error
from pipeline.evaluation.metrics import Scorer, first_sentence, lead_words
from pipeline.model.bundle import load_bundle


@pytest.fixture
def pairs(tmp_path: Path, abstracts: list[str]) -> Path:
    """30 pairs in two shards: abstracts, and as targets their first sentences."""
    folder = tmp_path / "pairs"
    folder.mkdir()
    for shard in range(2):
        sources = abstracts[15 * shard : 15 * (shard + 1)]
        table = pa.table(
            {
                "id": [f"{shard}-{row}" for row in range(15)],
                "source": sources,
                "target": [first_sentence(source) for source in sources],
            }
        )
        pq.write_table(table, folder / f"part-{shard:05d}.parquet")
    return folder


@pytest.fixture
def evaluate(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, tiny_bundle: Path, pairs: Path
) -> Callable[..., tuple[int, str, str]]:
    """Runs the job on the pairs, unless options say otherwise: its exit status, stdout and stderr."""

    def run(*options: str) -> tuple[int, str, str]:
        given = ["--input.path", str(pairs), "--model.path", str(tiny_bundle), "--output.path", str(tmp_path / "out/e.json")]
        monkeypatch.setattr(sys, "argv", ["evaluate", *given, "--metrics.bootstrap_samples", "50", *options])
        with pytest.raises(SystemExit) as exit_:
            exit_on_user_error("evaluate", main)
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return exit_.value.code, printed.out, printed.err

    return run


Evaluate = Callable[..., tuple[int, str, str]]


def written(tmp_path: Path) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((tmp_path / "out/e.json").read_text())
    return report


def test_the_figures_are_those_of_the_hypotheses_written(evaluate: Evaluate, tmp_path: Path, pairs: Path) -> None:
    file = tmp_path / "out/h[/x].parquet"  # no markup
    status, printed, error = evaluate("--output.hypotheses", str(file), "--metrics.lead_words", "5")
    assert (status, error) == (0, "")
    table, report = pq.read_table(file), written(tmp_path)
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
        scorer.add(hypotheses, table["reference"].to_pylist())
        assert report["systems"][name] == scorer.scores(50, 1).model_dump()
    assert report["systems"]["first sentence"]["exact_match"]["value"] == 100
    assert report["length_limit_percent"] == pytest.approx(100 * table["finish_reason"].to_pylist().count("length") / 30)
    assert "first 5 words" in printed
    assert str(file) in printed


def test_the_report_says_what_was_evaluated_and_how(evaluate: Evaluate, tmp_path: Path, tiny_bundle: Path, pairs: Path) -> None:
    status, _, _ = evaluate("--decoding.max_target_tokens", "4", "--input.max_rows", "20")
    assert status == 0
    report = written(tmp_path)
    bundle = load_bundle(tiny_bundle)
    assert report["model"]["fingerprint"] == bundle.fingerprint
    assert report["input"] == {"path": str(pairs), "rows": 20, "skipped_null_rows": 0}
    assert report["rows"] == 20
    assert report["decoding"] == {**bundle.decoding.model_dump(), "max_target_tokens": 4}
    assert report["bleu_signature"].startswith("nrefs:1|case:mixed|eff:no|tok:13a|smooth:exp|version:")
    assert report["metrics"]["bootstrap_samples"] == 50
    assert set(report["versions"]) >= {"nightshift", "torch", "sacrebleu", "rouge-score"}
    assert report["documents_per_s"] > 0


def test_the_same_command_gives_the_same_figures(evaluate: Evaluate, tmp_path: Path) -> None:
    reports = []
    for _ in range(2):
        assert evaluate()[0] == 0
        reports.append(
            {name: value for name, value in written(tmp_path).items() if name not in ("decode_s", "documents_per_s")}
        )
    assert reports[0] == reports[1]


def test_rows_with_nulls_are_skipped_and_counted(evaluate: Evaluate, tmp_path: Path) -> None:
    path = tmp_path / "nulls.parquet"
    table = pa.table({"id": [1, 2, 3, 4], "source": ["a b", None, "c d", ""], "target": ["a", "b", None, "d"]})
    pq.write_table(table, path)
    status, printed, _ = evaluate("--input.path", str(path), "--output.hypotheses", str(tmp_path / "h.parquet"))
    assert status == 0
    assert "skipped 2 rows" in printed
    assert written(tmp_path)["input"] == {"path": str(path), "rows": 4, "skipped_null_rows": 2}
    assert pq.read_table(tmp_path / "h.parquet")["id"].to_pylist() == [1, 4]


def test_tokenizers_that_do_not_fit_the_references_are_warned_of(evaluate: Evaluate, tmp_path: Path) -> None:
    path = tmp_path / "zh.parquet"
    pq.write_table(pa.table({"id": ["1"], "source": ["我喜欢北京。"], "target": ["我喜欢北京。"]}), path)
    _, printed, _ = evaluate("--input.path", str(path))
    assert printed.count("warning:") == 2
    assert written(tmp_path)["systems"]["first sentence"]["rouge1"]["value"] == 0
    _, printed, _ = evaluate(
        "--input.path", str(path), "--metrics.rouge_tokenizer", "unicode", "--metrics.bleu_tokenizer", "zh"
    )
    assert "warning:" not in printed
    assert written(tmp_path)["systems"]["first sentence"]["rouge1"]["value"] == 100


def test_without_resamples_there_are_no_intervals(evaluate: Evaluate, tmp_path: Path) -> None:
    status, printed, _ = evaluate("--metrics.bootstrap_samples", "0")
    assert status == 0
    assert "95 %" not in printed
    assert written(tmp_path)["systems"]["model"]["bleu"]["low"] is None


@pytest.fixture
def fails(evaluate: Evaluate, tmp_path: Path) -> Callable[..., str]:
    """Runs the job with options that are wrong: the one line that it printed. Nothing may have been written."""

    def run(*options: str) -> str:
        status, _, error = evaluate(*options)
        assert status == 2
        assert error.startswith("evaluate: ")
        assert error.count("\n") == 1
        assert not list(tmp_path.rglob("*.json*"))
        return error

    return run


Fails = Callable[..., str]


def test_no_such_input(fails: Fails, tmp_path: Path) -> None:
    error = fails("--input.path", str(tmp_path / "missing"))
    assert f"nothing at {tmp_path / 'missing'}" in error
    assert "--input.path" in error


def test_a_folder_of_splits_is_no_folder_of_pairs(fails: Fails, pairs: Path) -> None:
    assert "holds no .parquet file" in fails("--input.path", str(pairs.parent))


def test_not_parquet(fails: Fails, tmp_path: Path) -> None:
    bad = tmp_path / "bad.parquet"
    bad.write_text("id,source,target\n")
    assert f"cannot read {bad} as Parquet" in fails("--input.path", str(bad))


def test_a_missing_column_names_those_that_exist(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": ["1"], "source": ["a"], "title": ["b"]}), path)
    error = fails("--input.path", str(path))
    assert "'target'" in error
    assert "id, source, title" in error


def test_a_column_that_is_no_text(fails: Fails, tmp_path: Path) -> None:
    path = tmp_path / "p.parquet"
    pq.write_table(pa.table({"id": ["1"], "source": ["a"], "target": [7]}), path)
    assert "'target' of" in (error := fails("--input.path", str(path)))
    assert "int64, not a string" in error


@pytest.mark.parametrize(("sources", "said"), [([], "has no rows"), ([None, None], "null source or target")])
def test_no_rows_to_score(fails: Fails, tmp_path: Path, sources: list[str | None], said: str) -> None:
    path = tmp_path / "p.parquet"
    text = pa.array(sources, pa.string())
    pq.write_table(pa.table({"id": text, "source": text, "target": text}), path)
    assert said in fails("--input.path", str(path))


def test_a_broken_bundle(fails: Fails, tmp_path: Path, tiny_bundle: Path) -> None:
    assert "no model bundle" in fails("--model.path", str(tmp_path / "none"))
    broken = tmp_path / "bundle"
    shutil.copytree(tiny_bundle, broken, ignore=shutil.ignore_patterns("config.json"))
    assert "config.json" in fails("--model.path", str(broken))


def test_output_that_cannot_be_written(fails: Fails, tmp_path: Path, pairs: Path) -> None:
    (tmp_path / "file").write_text("")
    assert "--output.path" in fails("--output.path", str(tmp_path / "file" / "e"))
    assert "is a folder" in fails("--output.path", str(pairs))
    assert "--output.hypotheses" in fails("--output.hypotheses", str(tmp_path / "file" / "h.parquet"))


def test_a_failed_run_leaves_the_earlier_report_alone(evaluate: Evaluate, tmp_path: Path, pairs: Path) -> None:
    assert evaluate()[0] == 0
    before = written(tmp_path)
    shard = pairs / "part-00001.parquet"
    content = bytearray(shard.read_bytes())
    content[100:2000] = bytes(1900)  # pages, not the footer: found out while decoding
    shard.write_bytes(content)
    status, _, error = evaluate()
    assert status == 2
    assert f"cannot read {pairs}" in error
    assert written(tmp_path) == before
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["e.json"]
