"""``jobs.benchmark``: invalid options fail before anything is measured, and each benchmark runs at a small size."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from jobs.benchmark.__main__ import main
from pipeline.errors import UserError


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark", *options])
        return main()

    return run


@pytest.fixture
def figures(benchmark: Callable[..., int], tmp_path: Path) -> Callable[..., dict[str, Any]]:
    """Run a benchmark and return its figures."""

    def run(name: str, *options: str) -> dict[str, Any]:
        assert benchmark(name, "--json", str(tmp_path / "figures.json"), *options) == 0
        content: dict[str, Any] = json.loads((tmp_path / "figures.json").read_text())
        return content

    return run


def test_unwritable_file(benchmark: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="--json"):
        benchmark("workers", "--json", str(tmp_path / "file" / "figures.json"))


def test_one_step_has_no_speed(benchmark: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--training\.max_steps"):
        benchmark("workers", "--json", str(tmp_path / "figures.json"), "--training.max_steps", "1")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["decode", "pipeline", "scale"])
def test_missing_input_or_column(benchmark: Callable[..., int], tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match=r"'text' of .*none.*--input\.path"):
        benchmark(name, "--input.path", str(tmp_path / "none"))
    with pytest.raises(UserError, match=r"'body' of .*--input\.path"):
        benchmark(name, "--input.text_column", "body")


def test_help_lists_benchmarks(benchmark: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    assert benchmark("--help") == 0
    assert "outlier" in capsys.readouterr().out


def test_help_of_a_benchmark_lists_its_options(benchmark: Callable[..., int], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        benchmark("decode", "--help")
    assert "--compute.threads" in capsys.readouterr().out


@pytest.mark.faults
def test_pipeline(figures: Callable[..., dict[str, Any]]) -> None:
    options = ("--input.rows", "60", "--input.files", "2", "--resources.window_rows", "20", "--resources.actors", "1")
    result = figures("pipeline", *options)
    assert result["ratio_to_engine"] == result["documents_per_s"] / result["engine_documents_per_s"] > 0
    assert result["actors"] == 1


@pytest.mark.faults
def test_scale(figures: Callable[..., dict[str, Any]]) -> None:
    short = ("--decoding.max_source_tokens", "8", "--decoding.max_target_tokens", "4", "--decoding.min_target_tokens", "0")
    sizes = ("--scale.actors", "1", "--scale.actors_rows", "40", "--scale.rows", "40", "--scale.tiny_files", "3")
    result = figures("scale", "--input.rows", "20", *sizes, *short)
    assert [run["actors"] for run in result["actors"]] == [1]
    assert result["rows"][0]["peak_bytes"].keys() >= {"driver", "actor"}
    assert [run["shape"] for run in result["shapes"]] == ["8 files", "files of ten", "one file, one row group"]


@pytest.mark.faults
def test_nights(figures: Callable[..., dict[str, Any]]) -> None:
    sizes = ("--nights.documents", "60", "--nights.new", "7", "--nights.changed", "5", "--nights.gone", "3")
    result = figures("nights", "--input.rows", "20", *sizes)
    assert result["first"]["counts"] == {"read": 60, "skipped": {}, "summarized": 60, "rejected": {}}
    assert result["second"]["counts"] == {"read": 64, "skipped": {"summarized": 52}, "summarized": 12, "rejected": {}}
    assert result["second"]["gone"] == 3
    assert 0 < result["decoding_share"] == result["second"]["decode_s"] / result["first"]["decode_s"]


@pytest.mark.faults
def test_outlier(figures: Callable[..., dict[str, Any]]) -> None:
    result = figures("outlier", "--input.rows", "5", "--outlier.words", "400", "--outlier.repeats", "1")
    assert result["tokens"] > 400
    seconds = result["seconds"]
    assert result["ratio_to_sum"] == seconds["both"] / (seconds["short"] + seconds["long"]) > 0


@pytest.mark.faults
def test_driver(figures: Callable[..., dict[str, Any]]) -> None:
    result = figures("driver", "--run.files", "2000", "--run.windows", "1000", "--run.opened", "20", "--run.entries", "5000")
    assert [result[name]["number"] for name in ("files_opened", "files_planned")] == [20, 2000]
    assert all(result[name]["per_s"] > 0 for name in ("files_opened", "files_planned", "entries_loaded", "windows_tallied"))


@pytest.mark.faults
def test_decode(figures: Callable[..., dict[str, Any]]) -> None:
    options = ("--input.rows", "20", "--input.gnmt_rows", "0", "--compute.repeats", "1", "--compute.threads", "1")
    result = figures("decode", *options)
    assert result["matmul_flops"].keys() >= {"float32"}
    rows = result["rows"]
    assert {row["data"] for row in rows} == {"arxiv, shipped bundle", "arxiv, 512 x 2"}
    for row in rows:
        assert row["output_tokens_per_s"] > 0
        assert 0 <= row["padding_share"] < 0.9
        assert 0 < row["matmul_share"] < 1.2
        assert row["flops_per_s"] > 0
    exact = [row for row in rows if row["precision"] == "float32"]
    assert len(exact) == 6
    assert max(row["differ_from_textbook"] for row in exact) <= 1 / 20, "only ties may differ"
    beam = result["beam"]
    assert beam["beam_size"] == 5
    assert beam["worth_less_than_greedy"] == 0 < beam["worth_more_than_greedy"]
    assert 0.05 < beam["ratio_greedy"] < 1


@pytest.fixture
def small_training(command_pairs: Path) -> list[str]:
    data = {"train": command_pairs / "train", "dev": command_pairs / "dev", "tokenizer": command_pairs / "tokenizer.model"}
    sizes = {"model.embedding_size": 16, "model.hidden_size": 16, "training.precision": "float32", "training.token_budget": 200}
    options = {**{f"data.{name}": path for name, path in data.items()}, **sizes, "scaling.threads": 1}
    return [word for name, value in options.items() for word in (f"--{name}", str(value))]


@pytest.mark.faults
def test_train(figures: Callable[..., dict[str, Any]], small_training: list[str]) -> None:
    result = figures("train", *small_training, "--speed.steps", "2", "--speed.repeats", "1", "--speed.workers", "[1,2]")
    one, two = result["rows"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["gradient_bytes"] == 4 * one["parameters"]
    assert (one["exchange_share"], one["exchange_s"]) == (None, None)
    assert two["exchange_share"] == pytest.approx(1 - two["tokens_per_s"] / two["tokens_per_s_apart"])
    for row in (one, two):
        assert 0 < row["share_of_rate"] < 1
    efficiency = result["projected_efficiency"]["25 Gbit/s"]
    assert 0 < efficiency["64"] < efficiency["2"] < 1


@pytest.mark.faults
def test_workers(figures: Callable[..., dict[str, Any]], small_training: list[str]) -> None:
    result = figures("workers", *small_training, "--training.max_steps", "4")
    assert result["steps"] == [1, 2, 3, 4]
    assert len(result["loss"]) == 3
    assert all(rate > 0 for rate in result["tokens_per_s"].values())


@pytest.mark.faults
def test_pairs(figures: Callable[..., dict[str, Any]], small_training: list[str]) -> None:
    result = figures("pairs", *small_training, "--sizes.rows", "[300,900]")
    assert [row["pairs"] for row in result["rows"]] == [300, 900]
    assert all(row["peak_bytes"].keys() >= {"driver", "worker"} for row in result["rows"])


@pytest.mark.faults
def test_tables(figures: Callable[..., dict[str, Any]]) -> None:
    [row] = figures("tables", "--tables.kinds", "[jsonl]", "--tables.rows", "[250]")["rows"]
    assert {job: took["rows"] for job, took in row["took"].items()} == {
        "first delivery": 250,
        "second delivery": 3,
        "fetch": 250,
    }
    assert all(took["seconds"] > 0 and took["peak_bytes"]["driver"] > 2**20 for took in row["took"].values())


def test_unreachable_database_ends_the_benchmark(benchmark: Callable[..., int]) -> None:
    options = ("--tables.kinds", "[postgres]", "--tables.rows", "[5]", "--tables.connection", "host=127.0.0.1 port=1")
    with pytest.raises(UserError, match=r"(?s)jobs\.deliver.*PostgreSQL"):
        benchmark("tables", *options)
