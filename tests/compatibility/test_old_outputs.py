"""Output folders, a bundle and a training that an earlier version wrote can still be read, resumed and verified.

tests/data/format_2 was written by commit 7c8643e under HOME, whose path plans and manifests record. Jobs are run as commands,
and nothing of the package is imported but ``read_summaries``, so that these tests outlive its modules.
"""

from __future__ import annotations

import fcntl
import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pytest

from pipeline import read_summaries

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests/data/format_2"
HOME = Path("/tmp/nightshift-format-2")
WRITTEN_AT = 1_767_225_600
"""When the documents were last written, in seconds: plans and manifests record it."""
DOCUMENTS, NULL_TEXTS, REPEATED_IDS = 120, 1, 1
SUMMARIES = DOCUMENTS - NULL_TEXTS - REPEATED_IDS

Options = dict[str, str | Path]


def job(name: str, options: Options) -> str:
    """Run a job of this checkout to its successful end, and return what it printed."""
    words = [str(word) for option, value in options.items() for word in (f"--{option}", value)]
    done = subprocess.run(
        [sys.executable, "-m", f"jobs.{name}", *words],
        cwd=ROOT,
        env={**os.environ, "RAY_ADDRESS": "", "PYTHONPATH": str(ROOT), "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verify(folder: str) -> None:
    job("verify", {"output.path": HOME / folder, "output.run_id": "night_2"})


def summarize(folder: str) -> None:
    """Run the command that wrote an old output, except for the run's id and the size of windows."""
    options: Options = {
        "input.path": HOME / "documents",
        "input.keep_columns": "title",
        "model.path": HOME / "bundle",
        "resources.actors": "1",
        "resources.threads": "1",
        "output.path": HOME / folder,
    }
    job("summarize", options)


def verify_and_summarize(folder: str) -> None:
    verify(folder)
    summarize(folder)


def train(folder: str) -> None:
    """Run the command whose training was cut off."""
    prepared = HOME / folder / "prepared"
    options: Options = {
        "data.train": prepared / "train",
        "data.dev": prepared / "dev",
        "data.tokenizer": prepared / "tokenizer.model",
        "data.max_source_tokens": "32",
        "data.max_target_tokens": "12",
        "model.embedding_size": "8",
        "model.hidden_size": "8",
        "model.attention": "general",
        "model.copy": "true",
        "training.epochs": "null",
        "training.max_steps": "150",
        "training.token_budget": "400",
        "training.learning_rate": "0.01",
        "training.warmup_steps": "10",
        "training.validate_rows": "8",
        "training.validate_minutes": "0.01",
        "training.best_by": "dev_loss",
        "training.precision": "float32",
        "training.report_seconds": "0",
        "decoding.max_source_tokens": "32",
        "decoding.max_target_tokens": "12",
        "scaling.threads": "1",
        "output.path": HOME / folder / "trained",
    }
    job("train", options)


@pytest.fixture(scope="module")
def home() -> Iterator[None]:
    """Put the old files where they were written; one test session at a time can have them there."""
    with HOME.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        shutil.rmtree(HOME, ignore_errors=True)
        shutil.copytree(DATA, HOME)
        for file in (HOME / "documents").iterdir():
            os.utime(file, (WRITTEN_AT, WRITTEN_AT))
        yield
        shutil.rmtree(HOME)


Started = dict[str, Future[None]]


@pytest.fixture(scope="module")
def started(home: None) -> Iterator[Started]:  # noqa: ARG001
    """Run the commands that start Ray, by the folder that each works in: two at a time, since much of a start is waiting."""
    jobs = {
        "training": train,
        "output_cut_off": summarize,
        "output_compacted": verify_and_summarize,
    }
    with ThreadPoolExecutor(2) as pool:
        yield {folder: pool.submit(run, folder) for folder, run in jobs.items()}


def manifest(output: Path, run_id: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((output / "runs" / run_id / "manifest.json").read_text())
    return found


def sequence(success: Path) -> int:
    """Return the number that a _SUCCESS gives to its run."""
    number: int = json.loads(success.read_text())["sequence"]
    return number


def rows(path: Path) -> pa.Table:
    return pads.dataset(path, format="parquet", partitioning=None).to_table()


def texts(summaries: pa.Table) -> dict[str, str]:
    """Return summaries by id."""
    return dict(zip(summaries["id"].to_pylist(), summaries["summary"].to_pylist(), strict=True))


def digests(output: Path) -> dict[str, str]:
    """Return the sha256 of each file of summaries, rejects and the ledger, by path within the output."""
    files = output.glob("*/run=*/*.parquet")
    return {str(file.relative_to(output)): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def records(training: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (training / "train.jsonl").read_text().splitlines()]


def test_the_latest_summaries_are_read() -> None:
    output = DATA / "output_finished"
    latest = read_summaries(str(output)).read_all()
    run_of = dict(zip(latest["id"].to_pylist(), latest["run"].to_pylist(), strict=True))
    assert len(run_of) == latest.num_rows == SUMMARIES + 1, "a document that is gone keeps its summary"
    assert run_of.keys() - set(rows(DATA / "documents")["id"].to_pylist()) == {"withdrawn"}
    columns = {"summary", "source_tokens", "summary_tokens", "source_truncated", "finish_reason", "score", "title"}
    assert columns <= set(latest.schema.names)

    changed_or_new = texts(rows(output / "summaries/run=night_2"))
    assert len(changed_or_new) == 2
    assert {name for name, run in run_of.items() if run == "night_2"} == changed_or_new.keys()
    assert changed_or_new.items() <= texts(latest).items()
    assert texts(read_summaries(str(DATA / "output_compacted")).read_all()) == texts(latest)


@pytest.mark.usefixtures("home")
def test_a_delivery_continues_an_old_one() -> None:
    delivered = HOME / "delivered"
    options: Options = {"output.kind": "jsonl", "output.table": delivered}
    job("deliver", {"input.path": HOME / "output_finished", "input.run_id": "night_2", **options})
    assert {folder.name for folder in delivered.iterdir()} == {"run=night_1", "run=night_2"}
    assert sequence(delivered / "run=night_1/_SUCCESS") == 1
    assert sequence(delivered / "run=night_2/_SUCCESS") == 2
    [file] = delivered.glob("run=night_2/*.jsonl.gz")
    ids = [json.loads(line)["id"] for line in gzip.decompress(file.read_bytes()).splitlines()]
    assert len(set(ids)) == len(ids) == SUMMARIES + 1


def test_the_status_of_an_interrupted_run() -> None:
    assert "cut_off" in job("status", {"output.path": DATA / "output_cut_off"})


def test_an_interrupted_run_is_resumed(started: Started) -> None:
    old, output = DATA / "output_cut_off", HOME / "output_cut_off"
    committed = {file.name for file in old.glob("ledger/run=cut_off/*.parquet")}
    before = {path: sha256 for path, sha256 in digests(old).items() if Path(path).name in committed}
    done = sum(rows(old / path).num_rows for path in before if not path.startswith("ledger"))
    assert 0 < done < DOCUMENTS

    started["output_cut_off"].result()
    assert os.listdir(output / "runs") == ["cut_off"]
    assert sequence(output / "runs/cut_off/_SUCCESS") == 1
    after, digest_of = manifest(output, "cut_off"), digests(output)
    assert before.items() <= digest_of.items()
    assert {file["path"]: file["sha256"] for file in after["output_files"]} == {
        path: sha256 for path, sha256 in digest_of.items() if not path.startswith("ledger")
    }
    assert not list(output.glob("*/run=cut_off/*.part"))
    assert after["taken_over"] == done
    assert (after["counts"]["read"], after["counts"]["summarized"]) == (DOCUMENTS, SUMMARIES)
    assert after["counts"]["rejected"] == {"null_text": NULL_TEXTS, "duplicate_id": REPEATED_IDS}

    summaries, rejects = (rows(output / kind / "run=cut_off") for kind in ("summaries", "rejects"))
    written = Counter(summaries["id"].to_pylist()) + Counter(rejects["id"].to_pylist())
    assert written == Counter(rows(HOME / "documents")["id"].to_pylist())

    found, expected = texts(summaries), texts(read_summaries(str(DATA / "output_finished")).read_all())
    same = sum(found[name] == expected[name] for name in found)
    assert same >= 0.95 * SUMMARIES, "on another processor, two subwords of nearly the same score may change places"


@pytest.mark.faults
@pytest.mark.usefixtures("home")
def test_a_finished_run_is_verified() -> None:
    verify("output_finished")


# The first run of output_compacted is in the compacted ledger and its second is not, so that both kinds are read there.
@pytest.mark.parametrize("folder", [pytest.param("output_finished", marks=pytest.mark.faults), "output_compacted"])
def test_the_next_run_skips_unchanged_documents(started: Started, folder: str) -> None:
    if folder == "output_finished":
        summarize(folder)
    else:
        started[folder].result()
    before = manifest(DATA / folder, "night_2")
    [new_run] = set(os.listdir(HOME / folder / "runs")) - {"night_1", "night_2"}
    after = manifest(HOME / folder, new_run)
    assert before.keys() <= after.keys()
    assert before["counts"].keys() <= after["counts"].keys()
    assert after["counts"]["read"] == DOCUMENTS
    assert after["counts"]["skipped"] == {"summarized": SUMMARIES, "rejected": NULL_TEXTS}
    assert after["counts"]["summarized"] == 0
    assert after["counts"]["rejected"] == {"duplicate_id": REPEATED_IDS}, "rows that repeat an id are retried each night"
    assert after["model_fingerprint"] == before["model_fingerprint"]
    assert after["gone"] == before["gone"]
    assert (after["ledger"], sequence(HOME / folder / f"runs/{new_run}/_SUCCESS")) == (2, 3)


def test_an_interrupted_training_is_resumed(started: Started) -> None:
    before, output = records(DATA / "training/trained"), HOME / "training/trained"
    started["training"].result()
    after = records(output)
    first, second = (record["step"] for record in after if record["kind"] == "start")
    assert 0 == first < second == max(record["step"] for record in before if record["kind"] == "validation")
    kept = [record for record in before if record["step"] <= second]
    assert after[: len(kept)] == kept
    assert [record["step"] for record in after if record["kind"] == "step"] == list(range(1, 151))
    assert {file.name for file in (output / "bundle").iterdir()} == {file.name for file in (DATA / "bundle").iterdir()}
