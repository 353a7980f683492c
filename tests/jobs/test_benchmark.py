"""``jobs.benchmark``: what is wrong with the options is said before anything is measured; small runs of what is measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from jobs.benchmark.__main__ import main
from pipeline.errors import UserError


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    def run(*options: str) -> int:
        monkeypatch.setattr(sys, "argv", ["benchmark", *options])
        return main()

    return run


def test_a_file_that_cannot_be_written(benchmark: Callable[..., int], tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"^cannot write .*; set --json$"):
        benchmark("workers", "--json", str(tmp_path / "file" / "figures.json"))


def test_one_step_has_no_speed(benchmark: Callable[..., int], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--training\.max_steps to 2 or more"):
        benchmark("workers", "--json", str(tmp_path / "figures.json"), "--training.max_steps", "1")
    assert not list(tmp_path.iterdir())


def test_an_input_that_is_not_there_or_has_no_such_column(benchmark: Callable[..., int], tmp_path: Path) -> None:
    for name in ("decode", "pipeline", "scale"):
        with pytest.raises(UserError, match=r"cannot read 'text' of .*none: .*; set --input\.path"):
            benchmark(name, "--input.path", str(tmp_path / "none"))
        with pytest.raises(UserError, match=r"cannot read 'body' of .*: .*body.*; set --input\.path"):
            benchmark(name, "--input.text_column", "body")


@pytest.mark.faults
def test_a_whole_run_beside_the_engine(benchmark: Callable[..., int], tmp_path: Path) -> None:
    options = ("--input.rows", "60", "--input.files", "2", "--resources.window_rows", "20", "--resources.actors", "1")
    assert benchmark("pipeline", "--json", str(tmp_path / "figures.json"), *options) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["ratio_to_engine"] == figures["documents_per_s"] / figures["engine_documents_per_s"] > 0
    assert figures["actors"] == 1


@pytest.mark.faults
def test_more_actors_and_larger_inputs(benchmark: Callable[..., int], tmp_path: Path) -> None:
    short = ("--decoding.max_source_tokens", "8", "--decoding.max_target_tokens", "4", "--decoding.min_target_tokens", "0")
    scales = ("--scale.actors", "1", "--scale.actors_rows", "40", "--scale.rows", "40", "--scale.tiny_files", "0")
    assert benchmark("scale", "--json", str(tmp_path / "figures.json"), "--input.rows", "20", *scales, *short) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [run["actors"] for run in figures["actors"]] == [1]
    assert figures["rows"][0]["peak_bytes"].keys() >= {"driver", "actor"}
    assert figures["shapes"] == []


@pytest.mark.faults
def test_a_second_night(benchmark: Callable[..., int], tmp_path: Path) -> None:
    sizes = ("--nights.documents", "60", "--nights.new", "7", "--nights.changed", "5", "--nights.gone", "3")
    assert benchmark("nights", "--json", str(tmp_path / "figures.json"), "--input.rows", "20", *sizes) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["first"]["counts"] == {"read": 60, "skipped": {}, "summarized": 60, "rejected": {}}
    assert figures["second"]["counts"] == {"read": 64, "skipped": {"summarized": 52}, "summarized": 12, "rejected": {}}
    assert figures["second"]["gone"] == 3
    assert 0 < figures["decoding_share"] == figures["second"]["decode_s"] / figures["first"]["decode_s"]


@pytest.mark.faults
def test_a_long_document_among_short_ones(benchmark: Callable[..., int], tmp_path: Path) -> None:
    options = ["--input.rows", "5", "--outlier.words", "400", "--outlier.repeats", "1"]
    assert benchmark("outlier", "--json", str(tmp_path / "figures.json"), *options) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["tokens"] > 400
    seconds = figures["seconds"]
    assert figures["ratio_to_sum"] == seconds["both"] / (seconds["short"] + seconds["long"]) > 0


@pytest.mark.faults
def test_the_drivers_own_work(benchmark: Callable[..., int], tmp_path: Path) -> None:
    options = ("--run.files", "2000", "--run.windows", "1000", "--run.opened", "20", "--run.entries", "5000")
    assert benchmark("driver", "--json", str(tmp_path / "figures.json"), *options) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [part["number"] for part in (figures["files_opened"], figures["files_planned"])] == [20, 2000]
    assert all(figures[name]["per_s"] > 0 for name in ("files_opened", "files_planned", "entries_loaded", "windows_tallied"))


@pytest.mark.faults
def test_decoders_write_the_same_and_their_figures_are_whole(benchmark: Callable[..., int], tmp_path: Path) -> None:
    options = ("--input.rows", "20", "--input.gnmt_rows", "0", "--compute.repeats", "1", "--compute.threads", "1")
    assert benchmark("decode", "--json", str(tmp_path / "figures.json"), *options) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert figures["matmul_flops"].keys() >= {"float32"}
    assert {row["data"] for row in figures["rows"]} == {"arxiv, shipped bundle", "arxiv, 512 x 2"}
    for row in figures["rows"]:
        assert row["output_tokens_per_s"] > 0
        assert 0 <= row["padding_share"] < 0.9
        assert 0 < row["matmul_share"] < 1.2
        assert row["flops_per_s"] > 0
    exact = [row for row in figures["rows"] if row["precision"] == "float32"]
    assert len(exact) == 6
    assert max(row["differ_from_textbook"] for row in exact) <= 1 / 20  # a tie may fall either way
    beam = figures["beam"]
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
def test_training_steps_with_and_without_an_exchange(
    benchmark: Callable[..., int], tmp_path: Path, small_training: list[str]
) -> None:
    few = ("--speed.steps", "2", "--speed.repeats", "1", "--speed.workers", "[1,2]")
    assert benchmark("train", "--json", str(tmp_path / "figures.json"), *small_training, *few) == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    one, two = figures["rows"]
    assert (one["workers"], two["workers"]) == (1, 2)
    assert one["gradient_bytes"] == 4 * one["parameters"]
    assert (one["exchange_share"], one["exchange_s"]) == (None, None)
    assert two["exchange_share"] == pytest.approx(1 - two["tokens_per_s"] / two["tokens_per_s_apart"])
    for row in (one, two):
        assert 0 < row["share_of_rate"] < 1
    shares = figures["projected_efficiency"]["25 Gbit/s"]
    assert 0 < shares["64"] < shares["2"] < 1


@pytest.mark.faults
def test_what_more_pairs_hold_in_memory(benchmark: Callable[..., int], tmp_path: Path, small_training: list[str]) -> None:
    assert benchmark("pairs", "--json", str(tmp_path / "figures.json"), *small_training, "--sizes.rows", "[300,900]") == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert [row["pairs"] for row in figures["rows"]] == [300, 900]
    assert all(row["peak_bytes"].keys() >= {"driver", "worker"} for row in figures["rows"])


@pytest.mark.faults
def test_deliveries_and_fetches(benchmark: Callable[..., int], tmp_path: Path) -> None:
    tables = ("--tables.kinds", "[jsonl]", "--tables.rows", "[250]")
    assert benchmark("tables", "--json", str(tmp_path / "figures.json"), *tables) == 0
    [found] = json.loads((tmp_path / "figures.json").read_text())["rows"]
    assert {what: took["rows"] for what, took in found["took"].items()} == {
        "first delivery": 250,
        "second delivery": 3,
        "fetch": 250,
    }
    assert all(took["seconds"] > 0 and took["peak_bytes"]["driver"] > 2**20 for took in found["took"].values())


def test_a_store_that_cannot_be_reached_ends_the_benchmark(benchmark: Callable[..., int]) -> None:
    nowhere = ("--tables.kinds", "[postgres]", "--tables.rows", "[5]", "--tables.connection", "host=127.0.0.1 port=1")
    with pytest.raises(UserError, match=r"(?s)jobs\.deliver ended with 2: .*cannot connect to PostgreSQL"):
        benchmark("tables", *nowhere)
