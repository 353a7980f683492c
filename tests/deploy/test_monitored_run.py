"""Prometheus, with the shipped configuration, monitors a run and a training on a real cluster."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_server import DEPLOY, ask, free_port, program, prometheus, pushgateway
from ray_cluster import ray_workers

PANELS: list[dict[str, Any]] = json.loads((DEPLOY / "nightshift.json").read_text())["panels"]
GPU_PANELS = {"GPU", "GPU memory"}
COMMITS_BEFORE_KILL = 5


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a head with ``ray start --head``, and yield the environment of jobs on it."""
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_metrics_report_interval_ms": "1000", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    environment |= {"RAY_LOGGING_CONFIG_ENCODING": "JSON"}
    ray = str(Path(sys.executable).with_name("ray"))
    options = [f"--port={port}", f"--dashboard-port={free_port()}", f"--temp-dir={folder}", "--num-cpus=2"]
    head_environment = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    subprocess.run([ray, "start", "--head", *options], env=head_environment, check=True, capture_output=True)
    try:
        yield environment
    finally:
        processes = [process for process in psutil.process_iter() if str(folder) in " ".join(cmdline(process))]
        for process in processes:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(processes, 30)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def find_actor(folder: Path) -> psutil.Process:
    """Return the process of the decoding actor in the cluster with this folder."""
    raylets = [process for process in psutil.process_iter() if "raylet/raylet" in " ".join(cmdline(process)[:1])]
    [actor] = ray_workers("SummarizeWindow", [raylet for raylet in raylets if str(folder) in " ".join(cmdline(raylet))])
    return actor


@dataclass(frozen=True)
class Monitored:
    """A run of which the actor was killed, and a training.

    Attributes:
        prometheus: URL.
        start: Unix time before the run.
        end: Unix time after the training.
        run_folder: folder of the run.
    """

    prometheus: str
    start: float
    end: float
    run_folder: Path


@pytest.fixture(scope="module")
def monitored(tmp_path_factory: pytest.TempPathFactory, abstracts: list[str], command_pairs: Path) -> Iterator[Monitored]:
    for name in ("prometheus", "prometheus-pushgateway"):
        program(name)
    folder, ray_folder = tmp_path_factory.mktemp("monitored"), Path(tempfile.mkdtemp(prefix="ray"))
    texts = [None if n % 20 == 7 else text[: 40 + 37 * n % 900] for n, text in enumerate(abstracts * 4)]
    pq.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}), folder / "in.parquet")
    with contextlib.ExitStack() as stack:
        stack.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        gateway = stack.enter_context(pushgateway(folder))
        environment = stack.enter_context(cluster(ray_folder))
        config = (DEPLOY / "prometheus.yaml").read_text()
        changes = {"alerts.yaml": f"{DEPLOY}/alerts.yaml", "/tmp/ray/": f"{ray_folder}/", "localhost:9091": gateway[7:]}
        for original, replacement in {**changes, "scrape_interval: 15s": "scrape_interval: 1s"}.items():
            assert original in config
            config = config.replace(original, replacement)
        (folder / "data").mkdir()
        url = stack.enter_context(prometheus(folder, config))
        start = time.time()

        def job(name: str, **options: object) -> subprocess.Popen[bytes]:
            options = {"watch__name": "nightly", "watch__pushgateway": gateway, **options}
            arguments = [f"--{option.replace('__', '.')}={value}" for option, value in options.items()]
            log = folder / f"nightly-{name}"
            with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
                command = [sys.executable, "-m", f"jobs.{name}", *arguments]
                return subprocess.Popen(command, env=environment, stdout=out, stderr=err)

        summarize = job(
            "summarize",
            input__path=folder / "in.parquet",
            output__path=folder / "out",
            resources__actors=1,
            resources__window_rows=50,
        )
        deadline = time.monotonic() + 120
        while len(list(folder.glob("out/ledger/run=*/part-*.parquet"))) < COMMITS_BEFORE_KILL:
            assert summarize.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        find_actor(ray_folder).kill()
        assert summarize.wait(180) == 0
        train = job(
            "train",
            data__train=command_pairs / "train",
            data__dev=command_pairs / "dev",
            data__tokenizer=command_pairs / "tokenizer.model",
            model__hidden_size=32,
            training__epochs="null",
            training__max_minutes=0.25,
            training__validate_minutes=0.08,
            training__report_seconds=0.5,
            output__path=folder / "trained",
        )
        assert train.wait(180) == 0
        time.sleep(3)  # three scrapes
        yield Monitored(url, start, time.time(), *(folder / "out/runs").iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel["type"] != "row"], ids=lambda panel: str(panel["title"]))
def test_a_panel_has_data(monitored: Monitored, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "10s").replace("$name", ".*")
        series = ask(monitored.prometheus, expression, start=monitored.start, end=monitored.end)
        values = [float(value) for each in series for _, value in each["values"]]
        if panel["title"] in GPU_PANELS:
            assert not values
        else:
            assert any(math.isfinite(value) for value in values), expression
            assert all(all(each["metric"].values()) for each in series), series


@pytest.mark.faults
def test_a_repeated_window_is_counted_once(monitored: Monitored) -> None:
    manifest = json.loads((monitored.run_folder / "manifest.json").read_text())
    counts = manifest["counts"]

    def totals(metric: str, label: str = "name") -> dict[str, float]:
        series = ask(monitored.prometheus, f'sum by ({label}) (ray_nightshift_{metric}{{name="nightly"}})')
        return {each["metric"][label]: float(each["value"][1]) for each in series}

    [deaths] = ask(monitored.prometheus, 'sum(ray_node_manager_unexpected_worker_failure_total{Name=~".*MapWorker.*"})')
    assert float(deaths["value"][1]) >= 1
    assert totals("documents_total", "outcome") == {"summarized": counts["summarized"], "rejected": 100}
    assert totals("rejects_total", "reason") == counts["rejected"] == {"null_text": 100}
    assert totals("windows_total") == {"nightly": 40}
    assert totals("source_tokens_total") == {"nightly": counts["source_tokens"]}
    assert totals("target_tokens_total") == {"nightly": counts["summary_tokens"]}
    assert totals("read_tokens_total", "kind").get("padding", 0) == manifest["effort"]["padding"]
    decoding = totals("stage_seconds_total", "stage")["decoding"]
    assert decoding == pytest.approx(manifest["effort"]["decode_s"])


@pytest.mark.faults
def test_gauges_stay_until_the_run_ends(monitored: Monitored) -> None:
    """A gauge that is set once is exported during the whole run, so that alerts detect a run that commits nothing."""
    interval = {"start": monitored.start, "end": monitored.end}
    [active] = ask(monitored.prometheus, 'ray_nightshift_run_active{name="nightly"}', **interval)
    [started] = ask(monitored.prometheus, 'ray_nightshift_run_start_timestamp_seconds{name="nightly"}', **interval)
    for series in (active, started):
        times = [time_s for time_s, _ in series["values"]]
        assert max(later - earlier for earlier, later in itertools.pairwise(times)) <= 5
        assert times[-1] - times[0] > 10
    assert [value for _, value in active["values"]][:1] == ["1"]


@pytest.mark.faults
def test_logs_are_json(monitored: Monitored) -> None:
    folder, run = monitored.run_folder.parents[2], monitored.run_folder.name
    for name, runs in (("summarize", {run}), ("train", set[str]())):
        printed = (folder / f"nightly-{name}.out").read_text().splitlines()
        json_lines = [line for line in printed if line.startswith("{")]
        assert len(json_lines) > 5
        entries = [json.loads(line) for line in json_lines]
        assert {(entry["job"], entry["name"]) for entry in entries} == {(name, "nightly")}
        # Lines that are printed before the run has an id cannot name it.
        planned = list(itertools.dropwhile(lambda entry: "run" not in entry, entries))
        assert {entry["run"] for entry in planned if name == "summarize"} == runs
        # Ray itself prints plain lines about the actor that died.
        plain_lines = [line for line in printed if line not in json_lines]
        assert [line for line in plain_lines if "raylet" not in line and "retried" not in line] == []
        logged = (folder / f"nightly-{name}.err").read_text().splitlines()
        assert all(json.loads(line).keys() >= {"asctime", "levelname", "message"} for line in logged if line.startswith("{"))


@pytest.mark.faults
def test_no_alert_fires_for_a_successful_run(monitored: Monitored) -> None:
    with urlopen(f"{monitored.prometheus}/api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert ask(monitored.prometheus, 'ALERTS{alertstate="firing"}') == []
    successes = ask(monitored.prometheus, "time() - nightshift_success_timestamp_seconds")
    assert {each["metric"]["job"] for each in successes} == {"nightshift_summarize", "nightshift_train"}
    assert all(0 <= float(each["value"][1]) < time.time() - monitored.start for each in successes)
