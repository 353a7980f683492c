"""S3 on a real server, over a network that loses requests and answers, and with processes that are killed."""

from __future__ import annotations

import json
import os
import pickle
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos_s3 import main as run_chaos
from faulty_proxy import FAULTS, Fault, FaultyProxy, RandomFaults, faulty_proxy, no_faults
from pyarrow import fs
from ray.train import Checkpoint
from s3_server import S3Server
from summarize_command import SummarizeCommand, compare_outputs, ledger_segments, run_ids
from test_killed_run import kill_points
from test_killed_training import config as training_config
from test_killed_training import kill_driver

from jobs import summarize
from pipeline.errors import UserError, exit_on_user_error
from pipeline.io import retry
from pipeline.io import s3 as s3_filesystem
from pipeline.io.location import open_location
from pipeline.training.checkpoints import WriterFence, upload_checkpoint


@pytest.fixture
def network(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[FaultyProxy]:
    """A proxy for the server. The environment points this process and its children to it."""
    with faulty_proxy(s3.port) as proxy:
        for name, value in (s3.credentials | {"AWS_ENDPOINT_URL": proxy.endpoint}).items():
            monkeypatch.setenv(name, value)
        yield proxy


def upload(folder: Path, s3: S3Server, bucket: str, path: str) -> None:
    fs.copy_files(str(folder), f"{bucket}/{path}", fs.LocalFileSystem(), s3.filesystem())


def download(s3: S3Server, bucket: str, path: str, folder: Path) -> Path:
    """Download into a new folder."""
    folder = folder / f"{path}-{time.monotonic_ns()}"
    folder.mkdir()
    fs.copy_files(f"{bucket}/{path}", str(folder), s3.filesystem(), fs.LocalFileSystem())
    return folder


def run_job(job: str, *options: str) -> str:
    """Run a job, which must succeed, and return what it printed."""
    result = subprocess.run([sys.executable, "-m", f"jobs.{job}", *options], capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout + result.stderr


class LoseFirstAnswers(RandomFaults):
    """Random faults, and a lost answer for the first write of each file that commits or finishes a run."""

    WRITTEN = ("/lease/", "/plan.parquet", "/rejects/", "/summaries/", "/ledger/", "/manifest.json", "/_SUCCESS")

    def __init__(self, share: float, seed: int) -> None:
        super().__init__(share, seed)
        self.lost: set[str] = set()

    def __call__(self, method: str, path: str) -> Fault | None:
        for part in self.WRITTEN:
            if method == "PUT" and part in path and part not in self.lost:
                self.lost.add(part)
                return "lost after"
        return super().__call__(method, path)


def test_run_over_a_faulty_network(
    documents: Path, options: list[str], uninterrupted: Path, s3: S3Server, network: FaultyProxy, bucket: str, tmp_path: Path
) -> None:
    """Two percent of the requests fail, and those that commit. The rows are right, and no secret is written or printed."""
    upload(documents, s3, bucket, "in")
    network.choose_fault = faults = LoseFirstAnswers(0.02, seed=1)
    log = SummarizeCommand(f"s3://{bucket}/in", f"s3://{bucket}/out", options).finish()
    log += run_job("verify", "--output.path", f"s3://{bucket}/out")
    assert faults.lost == set(faults.WRITTEN)
    assert network.faults.total() > len(faults.lost), "no request failed at random"
    output = download(s3, bucket, "out", tmp_path)
    assert compare_outputs(output, uninterrupted).is_none
    secret = s3.secret_key.encode()
    assert secret not in log.encode()
    assert not [path for path in output.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[] if fault == "lost after" else pytest.mark.faults) for fault in FAULTS]
)
def test_file_operations_survive_a_fault(network: FaultyProxy, bucket: str, fault: Fault) -> None:
    """The first request of each type fails, for a file that is sent in one request and for one that is sent in parts."""
    folder = open_location(f"s3://{bucket}/folder", "--x")
    seen = set[tuple[str, str]]()

    def first_of_each_type(method: str, path: str) -> Fault | None:
        request = method, path.partition("?")[2].rstrip("0123456789")[:12]
        if request in seen:
            return None
        seen.add(request)
        return fault

    network.choose_fault = first_of_each_type
    for content in (b"small", os.urandom(12_000_000)):
        folder.child("a").write(content)
        assert folder.child("a").read() == content
        seen.clear()
    assert folder.names() == ["a"]
    assert [(file.path, file.size) for file in folder.files()] == [(f"{bucket}/folder/a", 12_000_000)]
    folder.child("a").remove()
    assert folder.names() == []
    folder.remove_folder()
    assert not folder.exists()
    assert {method for _, method in network.faults} == {"GET", "HEAD", "PUT", "POST", "DELETE"}


@pytest.mark.faults
def test_pickled_locations_retry_as_often(network: FaultyProxy, bucket: str) -> None:
    file = open_location(f"s3://{bucket}/a", "--x")
    file.write(b"content")
    received = pickle.loads(pickle.dumps(file))
    assert received.filesystem.equals(file.filesystem)
    last_fault = network.requests.total() + s3_filesystem.S3_ATTEMPTS
    network.choose_fault = lambda *_: "slow down" if network.requests.total() < last_fault else None
    assert received.read() == b"content"
    assert network.faults["slow down", "HEAD"] == s3_filesystem.S3_ATTEMPTS - 1


def test_writing_a_file_creates_no_folder_objects(s3: S3Server, network: FaultyProxy, bucket: str) -> None:
    open_location(f"s3://{bucket}/a/b/c", "--x").write(b"content")
    assert network.requests == {"PUT": 1}
    files = s3.filesystem().get_file_info(fs.FileSelector(f"{bucket}/a/b", recursive=True))
    assert [file.path for file in files] == [f"{bucket}/a/b/c"]


@pytest.mark.parametrize(
    ("wrong", "option", "message"),
    [
        ("input bucket", "--input.path", "s3://no-such-bucket/in: .*bucket"),
        ("output bucket", "--output.path", "s3://no-such-bucket/out/.*bucket"),
        ("secret key", "--output.path", "/out/runs: .*credentials"),
        pytest.param("access key", "--output.path", "/out/runs: .*credentials", marks=pytest.mark.faults),
        ("endpoint", "--output.path", "/out/runs: .*answer"),
    ],
)
def test_a_wrong_setting_is_one_line_and_status_2(
    documents: Path,
    s3: S3Server,
    network: FaultyProxy,  # noqa: ARG001  # the environment points to it
    bucket: str,
    wrong: str,
    option: str,
    message: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(s3_filesystem, "S3_ATTEMPTS", 2)
    upload(documents, s3, bucket, "in")
    path = {"--input.path": f"s3://{bucket}/in", "--output.path": f"s3://{bucket}/out"}
    if wrong.endswith("bucket"):
        path[option] = path[option].replace(bucket, "no-such-bucket")
    elif wrong == "secret key":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    elif wrong == "access key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    else:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
    monkeypatch.setattr(sys, "argv", ["summarize", *(word for pair in path.items() for word in pair)])
    with pytest.raises(SystemExit) as exit_info:
        exit_on_user_error("summarize", summarize.main)
    error = capsys.readouterr().err
    assert exit_info.value.code == 2, error
    assert len(error.splitlines()) == 1
    with pytest.raises(UserError, match=rf"{message}.*{option}"):
        raise UserError(error)
    assert s3.secret_key not in error


def test_endpoint_in_the_uri_and_credentials_in_a_profile(
    s3: S3Server, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    keys = {"aws_access_key_id": s3.access_key, "aws_secret_access_key": s3.secret_key}
    (tmp_path / "credentials").write_text("[night]\n" + "".join(f"{name} = {value}\n" for name, value in keys.items()))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "night")
    folder = open_location(f"s3://{bucket}/folder?scheme=http&endpoint_override=127.0.0.1:{s3.port}", "--x")
    folder.child("a").write(b"content")
    assert folder.names() == ["a"]
    assert folder.child("a").read() == b"content"


@pytest.mark.parametrize(
    "uri",
    [
        "s3://AKIA:hidden@bucket/a",
        "s3://AKIA:hid/den@bucket/a",
        "s3://hidden@bucket/a",
        "s3://bucket/a?access_key=AKIA&secret_key=hidden",
        "hdfs://me:hidden@host:8020/a",
    ],
)
def test_credentials_in_a_uri_are_refused_and_not_repeated(uri: str) -> None:
    with pytest.raises(UserError, match=r"--input\.path .*credentials") as error:
        open_location(uri, "--input.path")
    assert not any(part in str(error.value) for part in ("hidden", "hid/", "AKIA"))


@pytest.mark.faults
def test_gives_up_on_a_server_that_never_answers(s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        uri = f"s3://bucket/a?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match="answer"):
            open_location(uri, "--x").exists()
        seconds = time.monotonic() - started
    print(f"gave up after {seconds:.0f} s")
    assert seconds < 90


@pytest.mark.faults
@pytest.mark.parametrize(("path_part", "moment", "victim"), kill_points(("before", "after")))
def test_run_killed_at_a_write(
    documents: Path,
    options: list[str],
    uninterrupted: Path,
    s3: S3Server,
    network: FaultyProxy,
    bucket: str,
    tmp_path: Path,
    path_part: str,
    moment: str,
    victim: str,
) -> None:
    upload(documents, s3, bucket, "in")
    network.choose_fault = RandomFaults(0.02, seed=2)
    command = SummarizeCommand(f"s3://{bucket}/in", f"s3://{bucket}/out", options)
    log = command.kill_at_write(path_part, moment, victim, tmp_path / "killed")
    output = download(s3, bucket, "out", tmp_path)
    finished = run_ids(output)
    assert bool(finished) == (victim == "worker" or (path_part, moment) == ("_SUCCESS", "after")), log
    committed = {path.name: path.read_bytes() for path in ledger_segments(output)}
    if not finished:
        planned = run_ids(output, "plan.parquet")
        command.finish()
        output = download(s3, bucket, "out", tmp_path)
        assert run_ids(output) == planned or not planned, "the second command resumes the run"
    assert compare_outputs(output, uninterrupted).is_none
    segments = {path.name: path.read_bytes() for path in ledger_segments(output)}
    assert {name: segments[name] for name in committed} == committed, "a committed window was repeated"


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_faults_and_kills_change_no_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ["--kills", "20", "--keys", "100000", "--json", str(tmp_path / "figures.json")]
    monkeypatch.setattr(sys, "argv", ["chaos_s3.py", *options])
    assert run_chaos() == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert sum(figures["kills"].values()) == 20
    assert sum(figures["faults"].values()) > 20
    assert figures["listing"]["seconds"] < 60
    assert figures["listing"]["peak_mib_growth"] < 200


def test_a_partly_written_checkpoint_is_an_error(
    network: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """pyarrow.fs.copy_files, with which Ray Train would upload it, reports no error."""
    monkeypatch.setattr(s3_filesystem, "S3_ATTEMPTS", 1)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    trained = WriterFence(open_location(f"s3://{bucket}/trained", "--output.path"), "this")
    trained.file.write(b"this")
    (tmp_path / "checkpoint/bundle").mkdir(parents=True)
    (tmp_path / "checkpoint/bundle/model.safetensors").write_bytes(b"weights")
    (tmp_path / "checkpoint/state.pt").write_bytes(b"state")
    checkpoint = Checkpoint.from_directory(str(tmp_path / "checkpoint"))
    network.choose_fault = lambda method, path: "slow down" if method == "PUT" and "state.pt" in path else None
    with pytest.raises(OSError, match=r"cannot write s3://.*/trained/checkpoints/checkpoint_1/state\.pt: "):
        upload_checkpoint(trained, checkpoint, "checkpoint_1")
    network.choose_fault = no_faults
    with upload_checkpoint(trained, checkpoint, "checkpoint_1").as_directory() as uploaded:  # Ray Train tries again
        assert (Path(uploaded) / "bundle/model.safetensors").read_bytes() == b"weights"
        assert (Path(uploaded) / "state.pt").read_bytes() == b"state"


@pytest.mark.faults
def test_training_from_pairs_to_an_evaluated_bundle(
    command_pairs: Path, s3: S3Server, network: FaultyProxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The driver is killed, and the same command resumes from the last checkpoint."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    upload(command_pairs, s3, bucket, "pairs")
    network.choose_fault = RandomFaults(0.02, seed=3)
    options = training_config(command_pairs, tmp_path)
    options["data"] |= {name: f"s3://{bucket}/pairs/{name}" for name in ("train", "dev")}
    options["data"]["tokenizer"] = f"s3://{bucket}/pairs/tokenizer.model"
    options["output"]["path"] = f"s3://{bucket}/trained"
    step = kill_driver(options, tmp_path)
    assert step < 60
    log = run_job("train", "--config", str(tmp_path / "train.yaml"))
    folder = download(s3, bucket, "trained", tmp_path)
    records = [json.loads(line) for line in (folder / "train.jsonl").read_text().splitlines()]
    starts = [record["step"] for record in records if record["kind"] == "start"]
    assert starts[-1] >= step > 0, log
    evaluation = f"s3://{bucket}/results/evaluation.json"
    inputs = ["--model.path", f"s3://{bucket}/trained/bundle", "--input.path", f"s3://{bucket}/pairs/dev"]
    run_job("evaluate", *inputs, "--output.path", evaluation)
    assert json.loads(open_location(evaluation, "--x").read())
    assert open_location(f"s3://{bucket}/results", "--x").names() == ["evaluation.json"]
    assert network.faults.total() > 0


@pytest.mark.faults
def test_prepared_pairs_are_overwritten(network: FaultyProxy, bucket: str) -> None:
    pairs = "".join(json.dumps({"source": f"say {n} twice", "target": f"{n} {n}"}) + "\n" for n in range(400))
    open_location(f"s3://{bucket}/pairs.jsonl", "--x").write(pairs.encode())
    network.choose_fault = RandomFaults(0.02, seed=4)
    options = ["--input.train", f"s3://{bucket}/pairs.jsonl", "--input.dev_share", "0.1"]
    options += ["--tokenizer.vocabulary_size", "312", "--output.path", f"s3://{bucket}/prepared"]
    run_job("prepare", *options)
    names = open_location(f"s3://{bucket}/prepared", "--x").names()
    run_job("prepare", *options, "--output.overwrite", "true")
    assert open_location(f"s3://{bucket}/prepared", "--x").names() == names
    assert set(open_location(f"s3://{bucket}", "--x").names()) == {"pairs.jsonl", "prepared"}
