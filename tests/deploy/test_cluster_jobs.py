"""Jobs that are submitted to a running cluster: their status, what kills and stops them, and who may not."""

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
from machines import PORTS, ROOT, Machine
from ray._private.runtime_env.packaging import create_package
from ray.util import get_node_ip_address
from safetensors.torch import load_file
from stage import Command, commits, difference, rows_of, write_store

from pipeline.config.train import TrainConfig
from pipeline.training.distributed import train

TEXTS = [f"Document number {n} speaks of {'graphs and ' * (n % 11)}trees." for n in range(400)]
OPEN = {0: "GCS", 3: "node manager", 4: "object manager", 7: "agent", 8: "metrics", 9: "metrics", 10: "metrics"}
"""Ports that Ray opens at every address, by their distance from the first; a firewall is for these, says deploy/README.md."""

CALLS = {
    0: "NodeInfoGcsService/GetAllNodeInfo",
    2: "RayletDriver/ClusterInfo",
    3: "NodeManagerService/GetNodeStats",
    4: "ObjectManagerService/Pull",
    7: "ReporterService/HealthCheck",
}
"""What is asked of the services at those ports: the GCS, Ray client, node manager, object manager, agent."""


def options(bundle: Path, **resources: object) -> list[str]:
    chosen = {"window_rows": 10, "actors": 2, "threads": 1, "token_budget": 4096, "wait_s": 120, **resources}
    return ["--model.path", str(bundle), *(f"--resources.{name}={value}" for name, value in chosen.items())]


def summarize(store: Path, output: Path, some: list[str]) -> str:
    return f"summarize --input.path {store} --output.path {output} {' '.join(some)}"


# In every run of the tests: a head alone


def test_a_submitted_job_ends_with_its_status_and_tells_why(head: Machine, tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", TEXTS[:20], 1)
    told = head.succeed(head.submit(summarize(store, tmp_path / "out", options(tiny_bundle, actors=1))))
    assert "summarized 20 of 20 documents" in told
    assert len(rows_of(tmp_path / "out", "summaries")) == 20

    ran = head.run("ray job submit --runtime-env deploy/cluster/runtime_env.yaml -- python -m jobs.status --output.path out")
    assert ran.returncode == 1, ran.stdout
    assert "status: out would go when the job ends; set --output.path" in ran.stdout
    assert "exit code 2" in ran.stdout
    assert "Traceback" not in ran.stdout

    ran = head.run(head.submit("status --config file:///nowhere/status.yaml"))
    assert ran.returncode == 2, ran.stdout
    assert "status: cannot read file:///nowhere/status.yaml: No such file or directory; set --config" in ran.stdout


@pytest.mark.parametrize("token", [None, "wrong"])
def test_who_has_not_the_token_is_refused(head: Machine, token: str | None) -> None:
    request = urllib.request.Request(f"http://127.0.0.1:{head.port + 1}/api/jobs/", b'{"entrypoint": "touch /tmp/it"}')
    if token:
        request.add_header("Authorization", f"Bearer {token}")
    with pytest.raises(urllib.error.HTTPError) as unheard:
        urllib.request.urlopen(request)
    assert unheard.value.code == (403 if token else 401)
    for port in CALLS:
        with pytest.raises(grpc.RpcError) as refused:
            call(head, port, token)
        assert refused.value.code() == grpc.StatusCode.UNAUTHENTICATED, port
    assert call(head, 0, (head.home / "token").read_text()), "who has it is heard"


def call(head: Machine, port: int, token: str | None) -> bytes:
    """What the service at this port answers."""
    with grpc.insecure_channel(f"{get_node_ip_address()}:{head.port + port}") as channel:
        metadata = [("authorization", f"Bearer {token}")] if token else []
        answer: bytes = channel.unary_unary(f"/ray.rpc.{CALLS[port]}")(b"", metadata=metadata, timeout=30)
        return answer


def test_a_job_with_a_wrong_token_says_that_it_cannot_join(head: Machine) -> None:
    join = "from pipeline import cluster, errors; errors.exit_on_user_error('job', lambda: cluster.connect() or 0)"
    address = f"{get_node_ip_address()}:{head.port}"
    ran = head.run(f'RAY_ADDRESS={address} RAY_AUTH_TOKEN=wrong python -c "{join}"')
    assert ran.returncode == 2, ran.stdout
    told = f"^job: cannot join a Ray cluster at {address}: .* RAY_AUTH_TOKEN_PATH"
    assert re.search(told, ran.stdout, re.MULTILINE), ran.stdout
    assert "Traceback" not in ran.stdout


def test_it_listens_where_it_says(head: Machine) -> None:
    own = {"127.0.0.1", "::ffff:127.0.0.1", get_node_ip_address(), f"::ffff:{get_node_ip_address()}"}
    found = dict[int, set[str]]()
    for process in head.processes:
        try:
            for connection in process.net_connections("tcp"):
                if connection.status == psutil.CONN_LISTEN:
                    found.setdefault(connection.laddr.port - head.port, set()).add(connection.laddr.ip)
        except psutil.NoSuchProcess:
            continue
    assert found[1] == {"127.0.0.1"}, "jobs and the dashboard"
    assert set(OPEN) <= set(found)
    assert all(0 <= port < PORTS for port in found), found
    assert {port for port, addresses in found.items() if addresses - own} <= {*OPEN, *range(20, PORTS)}, found


def test_no_data_travel(tmp_path: Path) -> None:
    create_package(str(ROOT), tmp_path / "code.zip", include_gitignore=True)
    names = zipfile.ZipFile(tmp_path / "code.zip").namelist()
    assert {name.split("/")[0] for name in names} == {"jobs", "pipeline", "configs"}
    assert "pipeline/sample/model/model.safetensors" in names


# At length: a head and two workers


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


def ends_well(process: subprocess.Popen[str]) -> str:
    told, _ = process.communicate(timeout=280)
    assert process.returncode == 0, told
    return told


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_every_job_as_a_submitted_one_and_a_machine_lost_in_the_training(three: list[Machine], tmp_path: Path) -> None:
    head, *workers = three
    verbs, counts = ["walk", "jump", "look", "run"], {"": 1, " twice": 2, " thrice": 3}
    pairs = [{"source": verb + count, "target": " ".join([verb] * times)} for verb in verbs for count, times in counts.items()]
    lines = [json.dumps({**pair, "source": f"{pair['source']} {n}"}) for n in range(40) for pair in pairs]
    (tmp_path / "pairs.jsonl").write_text("\n".join(lines))
    told = head.succeed(
        head.submit(
            f"prepare --input.train {tmp_path}/pairs.jsonl --input.test_share 0.05 --output.path {tmp_path}/prepared "
            "--tokenizer.vocabulary_size 330 --tokenizer.algorithm bpe"
        )
    )
    assert "prepared: " in told

    train(TrainConfig.model_validate(training(tmp_path / "prepared", tmp_path / "undisturbed")), lambda _: None)
    (tmp_path / "train.yaml").write_text(yaml.safe_dump(training(tmp_path / "prepared", tmp_path / "trained")))
    job = head.start(head.submit(f"train --config file://{tmp_path}/train.yaml"))
    assert job.stdout is not None
    lines, victim = [], None
    for line in job.stdout:
        lines.append(line)
        if "dev loss" in line and victim is None:
            victim = at_work(workers, "RayTrainWorker")
            victim.kill()
    told = "".join(lines)
    assert job.wait() == 0, told
    assert victim is not None
    assert len(re.findall("^training .* on 2 × cpu", told, re.MULTILINE)) >= 2, told
    weights, expected = last_weights(tmp_path / "trained"), last_weights(tmp_path / "undisturbed")
    assert all(weights[name].equal(expected[name]) for name in expected)  # type: ignore[attr-defined]

    told = head.succeed(
        head.submit(
            f"evaluate --model.path {tmp_path}/trained/bundle --input.path {tmp_path}/prepared/test "
            f"--output.path {tmp_path}/evaluation.json"
        )
    )
    assert json.loads((tmp_path / "evaluation.json").read_text())["rows"] == pq.read_table(tmp_path / "prepared/test").num_rows
    restart(head, victim)


def at_work(workers: list[Machine], title: str) -> Machine:
    """One on which a process of this title runs."""
    titles = {worker: " ".join(" ".join(process.cmdline()) for process in worker.processes) for worker in workers}
    return next(worker for worker in workers if title in titles[worker])


def restart(head: Machine, worker: Machine) -> None:
    worker.succeed(
        f"deploy/cluster/cluster.sh worker {get_node_ip_address()}:{head.port} --object-store-memory 209715200 --num-cpus 1"
    )


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> tuple[Path, Path]:
    """A store, and the output of a run over it on this machine alone."""
    folder = tmp_path_factory.mktemp("undisturbed")
    store = write_store(folder / "in", TEXTS, 4)
    Command(store, folder / "out", options(tiny_bundle, actors=1)).finish()
    return store, folder / "out"


def wait_for_windows(output: Path, number: int) -> None:
    deadline = time.monotonic() + 120
    while len(commits(output)) < number:
        assert time.monotonic() < deadline, "no window was written"
        time.sleep(0.05)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_a_machine_lost_in_a_night(
    three: list[Machine], undisturbed: tuple[Path, Path], tmp_path: Path, tiny_bundle: Path
) -> None:
    head, *workers = three
    store, expected = undisturbed
    output = tmp_path / "out"
    job = head.start(head.submit(summarize(store, output, options(tiny_bundle))))
    wait_for_windows(output, 3)
    victim = at_work(workers, "SummarizeWindow")
    victim.kill()
    told = ends_well(job)
    assert "summarized 400 of 400" in told
    assert difference(output, expected).is_none
    for words, said in (
        (f"verify --output.path {output}", "is what its manifest says"),
        (f"status --output.path {output}", "published, as number 1"),
        (f"compact --output.path {output}", "400 entries"),
    ):
        assert said in head.succeed(head.submit(words))
    restart(head, victim)


@pytest.mark.faults
@pytest.mark.timeout(900)
def test_stopped_and_submitted_again(
    three: list[Machine], undisturbed: tuple[Path, Path], tmp_path: Path, tiny_bundle: Path
) -> None:
    head = three[0]
    store, expected = undisturbed
    output = tmp_path / "out"
    words = summarize(store, output, options(tiny_bundle))
    job = head.start(head.submit(words))
    assert job.stdout is not None
    submitted = re.fullmatch(r"submitted (\w+); its log again: .*\n", next(line for line in job.stdout if "submitted" in line))
    assert submitted
    wait_for_windows(output, 3)
    before = commits(output)
    head.succeed(f"ray job stop {submitted[1]}")
    told = job.stdout.read()
    assert job.wait() == 1, told
    assert "was stopped; the same command goes on from there" in told
    assert "summarize: stopped: it was told to end (SIGTERM)" in told
    assert not list(output.glob("lease/*")), "the lease is given back"
    assert not list(output.glob("runs/*/_SUCCESS"))
    assert "goes on from there" in head.succeed(head.submit(words))
    assert difference(output, expected).is_none
    assert all(path.stat().st_mtime_ns == at for path, at in before.items() if path.exists())
