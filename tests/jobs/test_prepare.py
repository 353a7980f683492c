"""``jobs.prepare`` as a user runs it: its output, its messages for invalid input, and what a killed job leaves."""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from job import RunJob, job_command, job_runner

from pipeline.config.types import SAMPLE
from pipeline.errors import EXIT_OK, EXIT_USER_ERROR

ROOT = Path(__file__).parents[2]
TOKENIZER = ("--tokenizer.vocabulary_size", "360", "--tokenizer.algorithm", "bpe")


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> RunJob:
    return job_runner("prepare", monkeypatch, capsys)


@pytest.fixture
def pairs(tmp_path: Path, abstracts: list[str]) -> Path:
    """A TSV file with 500 pairs and an invalid line, the 502nd."""
    path = tmp_path / "pairs.tsv"
    lines = [" ".join(text.split()[:20]) + "\t" + " ".join(text.split()[:5]) for text in abstracts]
    path.write_text("source\ttarget\n" + "\n".join([*lines, "no pair"]) + "\n", encoding="utf-8")
    return path


def test_summary_counts_pairs_and_names_dropped_rows(run: RunJob, pairs: Path, tmp_path: Path) -> None:
    output = tmp_path / "out"
    done = run("--input.train", pairs, "--output.path", output, *TOKENIZER)
    assert (done.status, done.err) == (EXIT_OK, "")
    kept = {split: pq.read_table(output / split).num_rows for split in ("train", "dev")}
    assert sum(kept.values()) == 500
    assert f"│ train │ 501        │ {kept['train']}        │ 1       │ wrong_field_count 1 │" in done.out
    assert f"train: wrong_field_count at {pairs}:502" in done.out
    assert "percentiles of" in done.out
    assert f"{output}/{{train,dev}}/*.parquet and {output}/tokenizer.model, with 360 subwords" in done.out
    assert done.out.splitlines()[-1] == (
        f"next: python -m jobs.train --config configs/train.yaml --data.train {output}/train --data.dev {output}/dev "
        f"--data.tokenizer {output}/tokenizer.model"
    )


def test_tokenizer_of_a_bundle_is_used(run: RunJob, pairs: Path, tmp_path: Path) -> None:
    output, sample = tmp_path / "out", SAMPLE / "model/tokenizer.model"
    done = run("--input.train", pairs, "--output.path", output, "--tokenizer.path", "sample")
    assert done.status == EXIT_OK, done.err
    assert (output / "tokenizer.model").read_bytes() == sample.read_bytes()
    assert "with 12,000 subwords, of sample" in done.out
    assert done.out.splitlines()[-1] == (
        f"next: python -m jobs.train --model.init_from sample --data.train {output}/train --data.dev {output}/dev"
    )
    again = run("--input.train", pairs, "--output.path", tmp_path / "file", "--tokenizer.path", sample)
    assert again.status == EXIT_OK, again.err
    assert again.out.splitlines()[-1].endswith(f"--data.tokenizer {tmp_path}/file/tokenizer.model")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("{tmp}/none", "cannot read {tmp}/none: No such file or directory; set --tokenizer.path"),
        ("{pairs}", "{pairs} is not a SentencePiece model"),
        ("sample --tokenizer.vocabulary_size 500", "vocabulary_size is for training a tokenizer, but path is set"),
    ],
)
def test_tokenizer_that_cannot_be_used(run: RunJob, pairs: Path, tmp_path: Path, options: str, message: str) -> None:
    argv = options.format(tmp=tmp_path, pairs=pairs).split()
    done = run("--input.train", pairs, "--output.path", tmp_path / "out", "--tokenizer.path", *argv)
    assert message.format(tmp=tmp_path, pairs=pairs) in done.error
    assert list(tmp_path.iterdir()) == [pairs]


def test_missing_development_pairs_are_a_warning(run: RunJob, pairs: Path, tmp_path: Path) -> None:
    done = run("--input.train", pairs, "--input.dev_share", 0, "--output.path", tmp_path / "out", *TOKENIZER)
    assert "warning: there are no development pairs" in done.out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("", "prepare: --input.train must be set"),
        ("--input.train {tmp}/none.tsv", "{tmp}/none.tsv; set --input.train"),
        ("--input.train {pairs} --input.dev {tmp}/none.tsv", "{tmp}/none.tsv; set --input.dev"),
        ("--input.train {pairs} --input.test {tmp}/none.tsv", "{tmp}/none.tsv; set --input.test"),
        ("--input.train {pairs} --input.source_column text", "(it has: source, target); set --input.source_column"),
        ("--input.train {pairs} --filter.min_target_chars 999", "short_target 500"),
        ("--input.train {pairs} --output.path {pairs}", "prepare: {pairs} is a file; set another --output.path"),
        ("--input.train {pairs} --output.path {pairs}/out", "prepare: cannot write {pairs}/out: Not a directory"),
        ("--input.train {pairs} --output.path {tmp}", "--output.overwrite"),
        ("--input.train {pairs} --input.forma tsv", "did you mean --input.format?"),
    ],
)
def test_invalid_input_is_one_line_and_writes_nothing(
    run: RunJob, pairs: Path, tmp_path: Path, options: str, message: str
) -> None:
    argv = options.format(tmp=tmp_path, pairs=pairs).split()
    argv = argv if "--output.path" in argv else [*argv, "--output.path", str(tmp_path / "out")]
    done = run(*argv, *TOKENIZER)
    assert "prepared:" not in done.out
    assert message.format(tmp=tmp_path, pairs=pairs) in done.error
    assert list(tmp_path.iterdir()) == [pairs]


def test_full_disk_is_one_line_and_leaves_nothing(pairs: Path, tmp_path: Path) -> None:
    def limit_file_size() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)

    command = job_command("prepare", "--input.train", pairs, "--output.path", tmp_path / "out", *TOKENIZER)
    done = subprocess.run(command, cwd=ROOT, preexec_fn=limit_file_size, capture_output=True, text=True, check=False)
    assert done.returncode == EXIT_USER_ERROR
    assert done.stderr.startswith(f"prepare: cannot write {tmp_path}/out: File too large; ")
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [pairs]


def test_next_job_removes_the_leftovers_of_a_killed_one(run: RunJob, pairs: Path, tmp_path: Path) -> None:
    output, partial = tmp_path / "out", tmp_path / "out.partial"
    big = tmp_path / "big.tsv"
    big.write_text("source\ttarget\n" + "".join(f"one {row}\ttwo {row}\n" for row in range(300_000)))
    command = job_command("prepare", "--input.train", big, "--input.dev", pairs, "--output.path", output)
    process = subprocess.Popen(command, cwd=ROOT)
    try:
        # After dev is written, reading train takes seconds.
        deadline = time.monotonic() + 60
        while not (partial / "dev/part-00000.parquet").exists() and time.monotonic() < deadline:
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    assert (partial / "dev/part-00000.parquet").exists()
    assert not output.exists()
    assert run("--input.train", pairs, "--output.path", output, *TOKENIZER).status == EXIT_OK
    assert (output / "prepare.json").exists()
    assert not partial.exists()


def test_prepare_json_is_a_valid_configuration(run: RunJob, pairs: Path, tmp_path: Path) -> None:
    run("--input.train", pairs, "--output.path", tmp_path / "out", *TOKENIZER)
    config = tmp_path / "again.yaml"
    config.write_text(json.dumps(json.loads((tmp_path / "out/prepare.json").read_text())["config"]))
    assert run("--config", config, "--output.overwrite", "true").status == EXIT_OK
