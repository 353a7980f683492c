"""The job as a user sees it: what it prints, its exit status, and that killing it leaves nothing half done."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from jobs.prepare import main
from pipeline.config.loader import load_config
from pipeline.config.prepare import PrepareConfig
from pipeline.errors import exit_on_user_error

ROOT = Path(__file__).parents[2]
TOKENIZER = ("--tokenizer.vocabulary_size", "360", "--tokenizer.algorithm", "bpe")

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def job(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Run:
    """Run the job in this process: exit status, standard output, standard error."""

    def run(*options: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["prepare", *map(str, options)])
        with pytest.raises(SystemExit) as exited:
            exit_on_user_error("prepare", main)
        return int(exited.value.code or 0), *capsys.readouterr()

    return run


@pytest.fixture
def pairs(tmp_path: Path, abstracts: list[str]) -> Path:
    """A TSV file of 500 pairs and one line that is none, the 502nd."""
    path = tmp_path / "pairs.tsv"
    lines = [" ".join(text.split()[:20]) + "\t" + " ".join(text.split()[:5]) for text in abstracts]
    path.write_text("source\ttarget\n" + "\n".join([*lines, "no pair"]) + "\n", encoding="utf-8")
    return path


def test_it_prints_what_it_kept_what_it_dropped_where_and_what_comes_next(job: Run, pairs: Path, tmp_path: Path) -> None:
    status, printed, errors = job("--input.train", pairs, "--output.path", tmp_path / "out", *TOKENIZER)
    assert (status, errors) == (0, "")
    kept = {split: pq.read_table(tmp_path / "out" / split).num_rows for split in ("train", "dev")}
    assert sum(kept.values()) == 500
    assert f"│ train │ 501        │ {kept['train']}        │ 1       │ wrong_field_count 1 │" in printed
    assert f"train: wrong_field_count at {pairs}:502 (1, not 2)" in printed
    assert "Length in subwords, percentiles of" in printed
    assert f"{tmp_path}/out/{{train,dev}}/*.parquet and {tmp_path}/out/tokenizer.model with 360 subwords" in printed
    out = tmp_path / "out"
    assert printed.splitlines()[-1] == (
        f"next: python -m jobs.train --config configs/train.yaml --data.train {out}/train --data.dev {out}/dev "
        f"--data.tokenizer {out}/tokenizer.model"
    )


def test_it_says_so_where_training_will_miss_development_pairs(job: Run, pairs: Path, tmp_path: Path) -> None:
    _, printed, _ = job("--input.train", pairs, "--input.dev_share", 0, "--output.path", tmp_path / "out", *TOKENIZER)
    assert "there are no development pairs, which training needs: set --input.dev" in printed


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "prepare: --input.train must be set"),
        ("--input.train {tmp}/none.tsv", "prepare: no file at {tmp}/none.tsv; set --input.train"),
        ("--input.train {pairs} --input.dev {tmp}/none.tsv", "prepare: no file at {tmp}/none.tsv; set --input.dev"),
        ("--input.train {pairs} --input.test {tmp}/none.tsv", "prepare: no file at {tmp}/none.tsv; set --input.test"),
        ("--input.train {pairs} --input.source_column text", "(it has: source, target); set --input.source_column"),
        ("--input.train {pairs} --filter.min_target_chars 999", "no training pairs remain of {pairs}: short_target 500"),
        ("--input.train {pairs} --output.path {pairs}", "prepare: {pairs} is a file; set another --output.path"),
        ("--input.train {pairs} --output.path {pairs}/out", "prepare: cannot write {pairs}/out: Not a directory"),
        ("--input.train {pairs} --output.path {tmp}", "prepare: {tmp} exists already; set --output.overwrite true"),
        ("--input.train {pairs} --input.forma tsv", "did you mean --input.format?"),
    ],
)
def test_bad_input_is_one_line_and_status_2(job: Run, pairs: Path, tmp_path: Path, options: str, message: str) -> None:
    given = options.format(tmp=tmp_path, pairs=pairs).split()
    given = given if "--output.path" in given else [*given, "--output.path", str(tmp_path / "out")]
    status, printed, errors = job(*given, *TOKENIZER)
    assert (status, printed) == (2, "")
    assert message.format(tmp=tmp_path, pairs=pairs) in errors
    assert errors.count("\n") == 1
    assert list(tmp_path.iterdir()) == [pairs]


def command(*options: object) -> list[str]:
    return [sys.executable, "-m", "jobs.prepare", *map(str, options)]


def test_a_full_disk_is_one_line_and_leaves_nothing(pairs: Path, tmp_path: Path) -> None:
    def no_file_over_20_kb() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    ran = subprocess.run(
        command("--input.train", pairs, "--output.path", tmp_path / "out", *TOKENIZER),
        cwd=ROOT, preexec_fn=no_file_over_20_kb, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert ran.returncode == 2
    assert ran.stderr == f"prepare: cannot write {tmp_path}/out: File too large; make room or set another --output.path\n"
    assert list(tmp_path.iterdir()) == [pairs]


def test_a_killed_prepare_leaves_no_output_and_the_next_one_clears_up(job: Run, pairs: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    big = tmp_path / "big.tsv"
    big.write_text("source\ttarget\n" + "".join(f"one {number}\ttwo {number}\n" for number in range(300_000)))
    process = subprocess.Popen(command("--input.train", big, "--input.dev", pairs, "--output.path", output), cwd=ROOT)
    try:
        # Once dev is written there are seconds of reading train to come.
        deadline = time.monotonic() + 60
        while not (partial / "dev/part-00000.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert (partial / "dev/part-00000.parquet").exists()
    assert not output.exists()
    status, _, _ = job("--input.train", pairs, "--output.path", output, *TOKENIZER)
    assert status == 0
    assert (output / "prepare.json").exists()
    assert not partial.exists()


def test_the_shipped_configuration_lists_every_option_at_its_default() -> None:
    file = ROOT / "configs/prepare.yaml"
    train = ["--input.train", "pairs.tsv"]
    defaults = load_config(PrepareConfig, "prepare", train)
    assert load_config(PrepareConfig, "prepare", ["--config", str(file), *train]) == defaults
    listed = {section: set(options) for section, options in yaml.safe_load(file.read_text(encoding="utf-8")).items()}
    listed["input"].add("train")
    assert listed == {section: set(options) for section, options in defaults.model_dump(by_alias=True).items()}


def test_prepare_json_can_be_used_as_the_next_configuration(job: Run, pairs: Path, tmp_path: Path) -> None:
    job("--input.train", pairs, "--output.path", tmp_path / "out", *TOKENIZER)
    again = tmp_path / "again.yaml"
    again.write_text(json.dumps(json.loads((tmp_path / "out/prepare.json").read_text())["config"]))
    status, _, _ = job("--config", again, "--output.overwrite", "true")
    assert status == 0
