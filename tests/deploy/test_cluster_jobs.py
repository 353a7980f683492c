"""Jobs that are submitted to a running cluster: their exit status, lost machines, stopped jobs, and access by token."""

from __future__ import annotations

import json
import re
import subprocess
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import grpc
import psutil
import pyarrow.parquet as pq
import pytest
import yaml
from machines import PORTS, ROOT, Machine, submit_command
from ray._private.runtime_env.packaging import create_package
from ray.util import get_node_ip_address
from safetensors.torch import load_file
from summarize_command import SummarizeCommand, compare_outputs, ledger_segments, rewritten, run_ids, write_documents

from pipeline.config.train import TrainConfig
from pipeline.training.distributed import train
from pipeline.training.plan import plan_training

TEXTS = [f"Document number {n} speaks of {'graphs and ' * (n % 11)}trees." for n in range(400)]
OPEN_PORTS = {0: "GCS", 3: "node manager", 4: "object manager", 7: "agent", 8: "metrics", 9: "metrics", 10: "metrics"}
"""Ports that Ray opens at every address, counted from the first port. deploy/README.md puts a firewall before them."""

METHODS = {
    0: "NodeInfoGcsService/GetAllNodeInfo",
    2: "RayletDriver/ClusterInfo",
    3: "NodeManagerService/GetNodeStats",
    4: "ObjectManagerService/Pull",
    7: "ReporterService/HealthCheck",
}
"""A method of the service at each port: the GCS, Ray client, node manager, object manager, agent."""


def options(bundle: Path, **resources: object) -> list[str]:
    resources = {"window_rows": 10, "actors": 2, "threads": 1, "token_budget": 4096, "wait_s": 120, **resources}
    return ["--model.path", str(bundle), *(f"--resources.{name}={value}" for name, value in resources.items())]


def summarize(documents: Path, output: Path, options: list[str]) -> str:
    return submit_command(f"summarize --input.path {documents} --output.path {output} {' '.join(options)}")


# Default tier: a head alone


def test_a_submitted_job_has_the_exit_status_and_the_error_of_the_job(head: Machine) -> None:
    result = head.run("ray job submit --runtime-env deploy/cluster/runtime_env.yaml -- python -m jobs.status --output.path out")
    assert result.returncode == 1, result.stdout
    assert re.search("status: out .*--output.path", result.stdout), "a relative path would be in Ray's temporary folder"
    assert "exit code 2" in result.stdout
    assert "Traceback" not in result.stdout

    result = head.run(submit_command("status --config file:///nowhere/status.yaml"))
    assert result.returncode == 2, result.stdout
    assert re.search("status: .*file:///nowhere/status.yaml.*--config", result.stdout)


@pytest.mark.parametrize("token", [None, "wrong"])
def test_access_needs_the_token(head: Machine, token: str | None) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{head.port + 1}/api/jobs/", b'{"entrypoint": "touch /tmp/it"}')
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as http_error:
        urllib.request.urlopen(request)
    assert http_error.value.code == (403 if token else 401)
    for port in METHODS:
        with pytest.raises(grpc.RpcError) as rpc_error:
            call(head, port, token)
        assert rpc_error.value.code() == grpc.StatusCode.UNAUTHENTICATED, port
    assert call(head, 0, (head.home / "token").read_text())


def call(head: Machine, port: int, token: str | None) -> bytes:
    """Call the service at this port."""
    with grpc.insecure_channel(f"{get_node_ip_address()}:{head.port + port}") as channel:
        metadata = [("authorization", f"Bearer {token}")] if token else []
        answer: bytes = channel.unary_unary(f"/ray.rpc.{METHODS[port]}")(b"", metadata=metadata, timeout=30)
        return answer


@pytest.mark.faults
def test_a_job_with_a_wrong_token_cannot_join(head: Machine) -> None:
    join = "from pipeline import cluster, errors; errors.exit_on_user_error('job', lambda: cluster.connect() or 0)"
    address = f"{get_node_ip_address()}:{head.port}"
    result = head.run(f'RAY_ADDRESS={address} RAY_AUTH_TOKEN=wrong python -c "{join}"')
    assert result.returncode == 2, result.stdout
    assert re.search(f"^job: .*{address}: .* RAY_AUTH_TOKEN_PATH", result.stdout, re.MULTILINE), result.stdout
    assert "Traceback" not in result.stdout


def test_a_node_listens_where_the_documentation_says(head: Machine) -> None:
    local = {"127.0.0.1", "::ffff:127.0.0.1", get_node_ip_address(), f"::ffff:{get_node_ip_address()}"}
    listening = dict[int, set[str]]()
    for process in head.processes:
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    listening.setdefault(connection.laddr.port - head.port, set()).add(connection.laddr.ip)
        except psutil.NoSuchProcess:
            continue
    assert listening[1] == {"127.0.0.1"}, "jobs and the dashboard"
    assert set(OPEN_PORTS) <= set(listening)
    assert all(0 <= port < PORTS for port in listening), listening
    assert {port for port, addresses in listening.items() if addresses - local} <= {*OPEN_PORTS, *range(20, PORTS)}, listening


def test_a_job_takes_only_code_and_configurations_along(tmp_path: Path) -> None:
    create_package(str(ROOT), tmp_path / "code.zip", include_gitignore=True)
    names = zipfile.ZipFile(tmp_path / "code.zip").namelist()
    assert {name.split("/")[0] for name in names} == {"jobs", "pipeline", "configs"}
    assert "pipeline/sample/model/model.safetensors" in names


# Faults tier: a head and two workers


def training(pairs: Path, output: Path) -> dict[str, object]:
    return {
        "data": {"train": f"{pairs}/train", "dev": f"{pairs}/dev", "tokenizer": f"{pairs}/tokenizer.model", "window_rows": 70},
        "model": {"embedding_size": 16, "hidden_size": 16, "bidirectional": False, "dropout": 0.2},
        "training": {
            "epochs": None,
            "max_steps": 400,
            "token_budget": 100,
            "warmup_steps": 10,
            "validate_minutes": 0.05,
            "validate_rows": 10,
            "report_seconds": 1,
            "best_by": "dev_loss",
            "precision": "float32",
        },
        "scaling": {"num_workers": 2, "threads": 1, "placement": "SPREAD"},
        "output": {"path": str(output)},
    }


def last_weights(output: Path) -> dict[str, object]:
    *_, last = sorted(output.glob("checkpoints/checkpoint_*/bundle/model.safetensors"))
    return load_file(last)


def finish(process: subprocess.Popen[str]) -> str:
    log, _ = process.communicate(timeout=280)
    assert process.returncode == 0, log
    return log


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_prepare_train_and_evaluate_although_a_machine_is_lost(three_machines: list[Machine], tmp_path: Path) -> None:
    head, *workers = three_machines
    verbs, counts = ["walk", "jump", "look", "run"], {"": 1, " twice": 2, " thrice": 3}
    pairs = [{"source": verb + count, "target": " ".join([verb] * times)} for verb in verbs for count, times in counts.items()]
    lines = [json.dumps({**pair, "source": f"{pair['source']} {n}"}) for n in range(40) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    head.succeed(
        submit_command(
            f"prepare --input.train {tmp_path}/pairs.jsonl --input.test_share 0.05 --output.path {tmp_path}/prepared "
            "--tokenizer.vocabulary_size 330 --tokenizer.algorithm bpe"
        )
    )
    train(
        plan_training(TrainConfig.model_validate(training(tmp_path / "prepared", tmp_path / "uninterrupted"))), lambda _: None
    )
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(training(tmp_path / "prepared", tmp_path / "trained")))
    job = head.start(submit_command(f"train --config file://{tmp_path}/train.yaml"))
    assert job.stdout is not None
    log, victim = "", None
    for line in job.stdout:
        log += line
        if "dev loss" in line and victim is None:
            victim = machine_running(workers, "RayTrainWorker")
            victim.kill()
    assert job.wait() == 0, log
    assert victim is not None
    records = [json.loads(line) for line in (tmp_path / "trained/train.jsonl").read_text().splitlines()]
    assert sum(record["kind"] == "start" for record in records) >= 2, "the training was not interrupted"
    weights, expected = last_weights(tmp_path / "trained"), last_weights(tmp_path / "uninterrupted")
    assert all(weights[name].equal(expected[name]) for name in expected)  # type: ignore[attr-defined]

    head.succeed(
        submit_command(
            f"evaluate --model.path {tmp_path}/trained/bundle --input.path {tmp_path}/prepared/test "
            f"--output.path {tmp_path}/evaluation.json"
        )
    )
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"] == pq.read_table(tmp_path / "prepared/test").num_rows
    restart(head, victim)


def machine_running(workers: list[Machine], title: str) -> Machine:
    """Return a machine with a process whose title contains a word."""
    titles = {worker: " ".join(" ".join(process.cmdline()) for process in worker.processes) for worker in workers}
    return next(worker for worker in workers if title in titles[worker])


def restart(head: Machine, worker: Machine) -> None:
    worker.succeed(
        f"deploy/cluster/cluster.sh worker {get_node_ip_address()}:{head.port} --object-store-memory 209715200 --num-cpus 1"
    )


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[Path, Path]:
    """Documents, and the output of a run over them without a cluster."""
    folder = tmp_path_factory.mktemp("uninterrupted")
    documents = write_documents(folder / "in", TEXTS, 4)
    SummarizeCommand(documents, folder / "out", options(tiny_bundle, actors=1)).finish()
    return documents, folder / "out"


def wait_for_windows(output: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(ledger_segments(output)) < number:
        assert time.monotonic() < deadline, "no window was written"
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_summarize_although_a_machine_is_lost(
    three_machines: list[Machine], uninterrupted: tuple[Path, Path], tmp_path: Path, tiny_bundle: Path
) -> None:
    head, *workers = three_machines
    documents, expected = uninterrupted
    output = tmp_path / "out"
    job = head.start(summarize(documents, output, options(tiny_bundle)))
    wait_for_windows(output, 3)
    victim = machine_running(workers, "SummarizeWindow")
    victim.kill()
    finish(job)
    assert compare_outputs(output, expected).is_none
    for name in ("verify", "status", "compact"):
        head.succeed(submit_command(f"{name} --output.path {output}"))
    restart(head, victim)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_stopped_job_resumes_when_submitted_again(
    three_machines: list[Machine], uninterrupted: tuple[Path, Path], tmp_path: Path, tiny_bundle: Path
) -> None:
    head = three_machines[0]
    documents, expected = uninterrupted
    output = tmp_path / "out"
    command = summarize(documents, output, options(tiny_bundle))
    job = head.start(command)
    assert job.stdout is not None
    match = re.match(r"submitted (\w+);", next(line for line in job.stdout if "submitted" in line))
    assert match
    wait_for_windows(output, 3)
    segments = ledger_segments(output)
    head.succeed(f"ray job stop {match[1]}")
    log = job.stdout.read()
    assert job.wait() == 1, log
    assert "was stopped" in log
    assert "SIGTERM" in log
    assert not list(output.glob("lease/*")), "the lease is released"
    assert not run_ids(output)
    head.succeed(command)
    assert run_ids(output) == run_ids(output, "plan.parquet"), "the second job resumes the run"
    assert compare_outputs(output, expected).is_none
    assert rewritten(segments) == 0
