"""S3, on a real server: over a network that loses requests and answers, and with processes that are killed."""

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
from chaos_s3 import main as chaos
from gateway import Gateway
from proxy import FAULTS, Chance, Fault, Proxy, proxy, sound
from pyarrow import fs
from ray.train import Checkpoint
from stage import Command, commits, difference
from test_killed_run import FILES
from test_killed_training import config as training_config
from test_killed_training import kill_the_driver

from jobs import summarize
from pipeline.errors import UserError, exit_on_user_error
from pipeline.io import retry
from pipeline.io import s3 as s3_filesystem
from pipeline.io.location import open_location
from pipeline.training.checkpoints import WriterFence, upload_checkpoint


@pytest.fixture
def network(s3: Gateway, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """Before the server: this process, and those that it starts, find it by their environment."""
    with proxy(s3.port) as here:
        for name, value in (s3.credentials | {"AWS_ENDPOINT_URL": here.endpoint}).items():
            monkeypatch.setenv(name, value)
        yield here


def upload(folder: Path, s3: Gateway, bucket: str, path: str) -> None:
    fs.copy_files(str(folder), f"{bucket}/{path}", fs.LocalFileSystem(), s3.filesystem())


def download(s3: Gateway, bucket: str, path: str, folder: Path) -> Path:
    """Anew each time."""
    folder = folder / f"{path}-{time.monotonic_ns()}"
    folder.mkdir()
    fs.copy_files(f"{bucket}/{path}", str(folder), s3.filesystem(), fs.LocalFileSystem())
    return folder


def ran(*command: str) -> str:
    """What a job printed that came to a good end."""
    done = subprocess.run([sys.executable, "-m", *command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout + done.stderr


class FirstAnswers(Chance):
    """Beside chance: the first answer is lost to who writes what a run is committed and published by."""

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


def test_a_run_over_a_network_that_fails(
    store: Path, options: list[str], undisturbed: Path, s3: Gateway, network: Proxy, bucket: str, tmp_path: Path
) -> None:
    """At two of a hundred requests, and where it hurts: the rows are those of an undisturbed run, and no secret is written."""
    upload(store, s3, bucket, "in")
    network.choose = chance = FirstAnswers(0.02, seed=1)
    told = Command(f"s3://{bucket}/in", f"s3://{bucket}/out", options).finish()
    told += ran("jobs.verify", "--output.path", f"s3://{bucket}/out")
    assert "is what its manifest says" in told
    assert chance.lost == set(chance.WRITTEN)
    assert network.faults.total() > len(chance.lost), "nothing befell it by chance"
    output = download(s3, bucket, "out", tmp_path)
    assert difference(output, undisturbed).is_none
    secret = s3.secret_key.encode()
    assert secret not in told.encode()
    assert not [path for path in output.rglob("*") if path.is_file() and secret in path.read_bytes()]


@pytest.mark.parametrize(
    "fault", [pytest.param(fault, marks=[] if fault == "lost after" else pytest.mark.faults) for fault in FAULTS]
)
def test_what_befalls_a_file_is_not_seen(network: Proxy, bucket: str, fault: Fault) -> None:
    """Each kind of request suffers it in turn, of a file that is sent in one request and of one that is sent in parts."""
    folder = open_location(f"s3://{bucket}/folder", "--x")
    seen = set[tuple[str, str]]()

    def first_of_a_kind(method: str, path: str) -> Fault | None:
        kind = method, path.partition("?")[2].rstrip("0123456789")[:12]
        return None if kind in seen or seen.add(kind) else fault  # type: ignore[func-returns-value]

    network.choose = first_of_a_kind
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
def test_what_tasks_are_sent_tries_as_often(network: Proxy, bucket: str) -> None:
    file = open_location(f"s3://{bucket}/a", "--x")
    file.write(b"content")
    sent = pickle.loads(pickle.dumps(file))
    assert sent.filesystem.equals(file.filesystem)
    at = network.requests.total()
    network.choose = lambda *_: "slow down" if network.requests.total() < at + s3_filesystem.S3_ATTEMPTS else None
    assert sent.read() == b"content"
    assert network.faults["slow down", "HEAD"] == s3_filesystem.S3_ATTEMPTS - 1


def test_a_file_leaves_nothing_but_itself(s3: Gateway, network: Proxy, bucket: str) -> None:
    """No objects that stand for folders, each of which is a request more."""
    open_location(f"s3://{bucket}/a/b/c", "--x").write(b"content")
    assert network.requests == {"PUT": 1}
    found = s3.filesystem().get_file_info(fs.FileSelector(f"{bucket}/a/b", recursive=True))
    assert [info.path for info in found] == [f"{bucket}/a/b/c"]


WRONG = ["bucket of the input", "bucket of the output", "secret", "endpoint", pytest.param("key", marks=pytest.mark.faults)]


@pytest.mark.parametrize("wrong", WRONG)
def test_errors_in_words(
    store: Path,
    s3: Gateway,
    network: Proxy,  # noqa: ARG001  # which the environment names
    bucket: str,
    wrong: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr(s3_filesystem, "S3_TRIES", 2)  # each pause is twice as long as the one before it
    upload(store, s3, bucket, "in")
    input, output, said = f"s3://{bucket}/in", f"s3://{bucket}/out", "the server does not grant this to the credentials"
    named = f"{output}/runs; set --output.path"
    if wrong == "bucket of the input":
        input, said, named = "s3://no-such-bucket/in", "there is no such bucket", "cannot list s3://no-such-bucket/in:"
    elif wrong == "bucket of the output":
        output, said, named = "s3://no-such-bucket/out", "there is no such bucket", "cannot write s3://no-such-bucket/out/"
    elif wrong == "secret":
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "another")
    elif wrong == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "another")
    else:
        with socket.socket() as closed:
            closed.bind(("127.0.0.1", 0))
            monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{closed.getsockname()[1]}")
        said = "the server does not answer"
    monkeypatch.setattr(sys, "argv", ["summarize", "--input.path", input, "--output.path", output])
    with pytest.raises(SystemExit) as ended:
        exit_on_user_error("summarize", summarize.main)
    told = capsys.readouterr().err
    assert ended.value.code == 2, told
    assert said in told
    assert named.partition(";")[0] in told
    assert ("--input.path" if wrong == "bucket of the input" else "--output.path") in told
    assert s3.secret_key not in told
    assert len(told.splitlines()) == 1


def test_a_server_in_the_uri_and_credentials_of_a_profile(
    s3: Gateway, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    with pytest.raises(UserError, match=r"--input\.path holds credentials, which do not belong in a URI") as caught:
        open_location(uri, "--input.path")
    assert not any(part in str(caught.value) for part in ("hidden", "hid/", "AKIA"))


@pytest.mark.faults
def test_a_server_that_accepts_and_says_nothing_is_given_up(s3: Gateway, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in s3.credentials.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen(100)
        uri = f"s3://bucket/a?scheme=http&endpoint_override=127.0.0.1:{silent.getsockname()[1]}"
        started = time.monotonic()
        with pytest.raises(UserError, match="the server does not answer"):
            open_location(uri, "--x").exists()
        seconds = time.monotonic() - started
    print(f"given up after {seconds:.0f} s")
    assert seconds < 90


KILLED = [
    pytest.param(part, when, whom)
    for part in FILES
    for when in ("before", "after")  # amid, nothing is there yet
    for whom in (("driver", "worker") if "/" in part else ("driver",))
]


@pytest.mark.faults
@pytest.mark.parametrize(("part", "when", "whom"), KILLED)
def test_killed_at_a_step_of_the_commit(
    store: Path,
    options: list[str],
    undisturbed: Path,
    s3: Gateway,
    network: Proxy,
    bucket: str,
    tmp_path: Path,
    part: str,
    when: str,
    whom: str,
) -> None:
    upload(store, s3, bucket, "in")
    network.choose = Chance(0.02, seed=2)
    command = Command(f"s3://{bucket}/in", f"s3://{bucket}/out", options)
    told = command.die_at(part, when, whom, tmp_path / "killed")
    output = download(s3, bucket, "out", tmp_path)
    published = bool(list(output.glob("runs/*/_SUCCESS")))
    assert published == (whom == "worker" or (part, when) == ("_SUCCESS", "after")), told
    before = {path.name: path.read_bytes() for path in commits(output)}
    if not published:
        planned = bool(list(output.glob("runs/*/plan.parquet")))
        assert ("goes on from there" in command.finish()) == planned
        output = download(s3, bucket, "out", tmp_path)
    assert difference(output, undisturbed).is_none
    after = {path.name: path.read_bytes() for path in commits(output)}
    assert {name: after[name] for name in before} == before, "windows that were committed were done again"


@pytest.mark.faults
@pytest.mark.timeout(1800)
def test_faults_and_kills_lose_nothing_and_double_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        sys, "argv", ["chaos_s3.py", "--kills", "20", "--keys", "100000", "--json", str(tmp_path / "figures.json")]
    )
    assert chaos() == 0
    figures = json.loads((tmp_path / "figures.json").read_text())
    assert sum(figures["kills"].values()) == 20
    assert sum(figures["faults"].values()) > 20
    assert figures["listing"]["seconds"] < 60
    assert figures["listing"]["mib_more"] < 200


def test_a_checkpoint_that_cannot_be_written_whole_is_an_error(
    network: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where pyarrow.fs.copy_files, by which Ray Train would upload it, says nothing."""
    monkeypatch.setattr(s3_filesystem, "S3_TRIES", 1)
    monkeypatch.setattr(retry.time, "sleep", lambda _: None)
    trained = WriterFence(open_location(f"s3://{bucket}/trained", "--output.path"), "this")
    trained.file.write(b"this")

    def local(name: str) -> Checkpoint:
        (tmp_path / name / "bundle").mkdir(parents=True)
        (tmp_path / name / "bundle/model.safetensors").write_bytes(b"weights")
        (tmp_path / name / "state.pt").write_bytes(b"state")
        return Checkpoint.from_directory(str(tmp_path / name))

    checkpoint = local("checkpoint")
    network.choose = lambda method, path: "slow down" if method == "PUT" and "state.pt" in path else None
    with pytest.raises(OSError, match=r"cannot write s3://.*/trained/checkpoints/checkpoint_1/state\.pt: "):
        upload_checkpoint(trained, checkpoint, "checkpoint_1")
    network.choose = sound
    with upload_checkpoint(trained, checkpoint, "checkpoint_1").as_directory() as kept:  # as Ray Train tries again
        assert (Path(kept) / "bundle/model.safetensors").read_bytes() == b"weights"
        assert (Path(kept) / "state.pt").read_bytes() == b"state"


@pytest.mark.faults
def test_training_from_pairs_to_a_bundle(
    command_pairs: Path, s3: Gateway, network: Proxy, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its driver is killed, and the same command goes on from the last checkpoint; then the bundle is evaluated."""
    monkeypatch.setenv("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")
    upload(command_pairs, s3, bucket, "pairs")
    network.choose = Chance(0.02, seed=3)
    options = training_config(command_pairs, tmp_path)
    options["data"] |= {name: f"s3://{bucket}/pairs/{name}" for name in ("train", "dev")}
    options["data"]["tokenizer"] = f"s3://{bucket}/pairs/tokenizer.model"
    options["output"]["path"] = f"s3://{bucket}/trained"
    step = kill_the_driver(options, tmp_path)
    assert step < 60
    told = ran("jobs.train", "--config", str(tmp_path / "train.yaml"))
    folder = download(s3, bucket, "trained", tmp_path)
    starts = [json.loads(line)["step"] for line in (folder / "train.jsonl").read_text().splitlines() if '"start"' in line]
    assert starts[-1] >= step > 0, told
    evaluation = f"s3://{bucket}/results/evaluation.json"
    bundle = ["--model.path", f"s3://{bucket}/trained/bundle", "--input.path", f"s3://{bucket}/pairs/dev"]
    ran("jobs.evaluate", *bundle, "--output.path", evaluation)
    assert json.loads(open_location(evaluation, "--x").read())
    assert open_location(f"s3://{bucket}/results", "--x").names() == ["evaluation.json"]
    assert network.faults.total() > 0


@pytest.mark.faults
def test_prepared_pairs_are_replaced(network: Proxy, bucket: str) -> None:
    pairs = "".join(json.dumps({"source": f"say {n} twice", "target": f"{n} {n}"}) + "\n" for n in range(400))
    open_location(f"s3://{bucket}/pairs.jsonl", "--x").write(pairs.encode())
    network.choose = Chance(0.02, seed=4)
    command = ["jobs.prepare", "--input.train", f"s3://{bucket}/pairs.jsonl", "--input.dev_share", "0.1"]
    command += ["--tokenizer.vocabulary_size", "300", "--output.path", f"s3://{bucket}/prepared"]
    ran(*command)
    before = open_location(f"s3://{bucket}/prepared", "--x").names()
    ran(*command, "--output.overwrite", "true")
    assert open_location(f"s3://{bucket}/prepared", "--x").names() == before
    assert set(open_location(f"s3://{bucket}", "--x").names()) == {"pairs.jsonl", "prepared"}
