"""Prometheus with the shipped configuration watches a real cluster, which summarizes and trains."""

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

PANELS: list[dict[str, Any]] = json.loads((DEPLOY / "nightshift.json").read_text())["panels"]
OF_GPUS = {"GPU", "GPU memory"}
"""Panels that have nothing to show here."""
COMMITS_BEFORE_THE_KILL = 5


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """A head node, as ``ray start --head`` begins one; the environment of what runs there."""
    port = free_port()
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled", "RAY_USAGE_STATS_ENABLED": "0"}
    environment |= {"RAY_metrics_report_interval_ms": "1000", "RAY_ADDRESS": f"127.0.0.1:{port}"}
    environment |= {"RAY_LOGGING_CONFIG_ENCODING": "JSON"}
    ray = str(Path(sys.executable).with_name("ray"))
    options = [f"--port={port}", f"--dashboard-port={free_port()}", f"--temp-dir={folder}", "--num-cpus=2"]
    started = {key: value for key, value in environment.items() if key != "RAY_ADDRESS"}
    subprocess.run([ray, "start", "--head", *options], env=started, check=True, capture_output=True)
    try:
        yield environment
    finally:
        own = [process for process in psutil.process_iter() if str(folder) in " ".join(cmdline(process))]
        for process in own:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(own, 30)


def cmdline(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []


def actor(folder: Path) -> psutil.Process:
    """The process that decodes."""
    raylets = [process for process in psutil.process_iter() if "raylet/raylet" in " ".join(cmdline(process)[:1])]
    [raylet] = [process for process in raylets if str(folder) in " ".join(cmdline(process))]
    [found] = [process for process in raylet.children(recursive=True) if "SummarizeWindow" in " ".join(cmdline(process)[:1])]
    return found


@dataclass(frozen=True)
class Watched:
    """A run whose actor was killed, and a training. start, end: when they were. nightly: the run's folder."""

    prometheus: str
    start: float
    end: float
    nightly: Path


@pytest.fixture(scope="module")
def watched(tmp_path_factory: pytest.TempPathFactory, abstracts: list[str], command_pairs: Path) -> Iterator[Watched]:
    for name in ("prometheus", "prometheus-pushgateway"):
        program(name)
    folder, ray_folder = tmp_path_factory.mktemp("watched"), Path(tempfile.mkdtemp(prefix="ray"))
    texts = [None if n % 20 == 7 else text[: 40 + 37 * n % 900] for n, text in enumerate(abstracts * 4)]
    pq.write_table(pa.table({"id": range(len(texts)), "text": pa.array(texts, pa.string())}), folder / "in.parquet")
    with contextlib.ExitStack() as running:
        running.callback(shutil.rmtree, ray_folder, ignore_errors=True)
        gateway = running.enter_context(pushgateway(folder))
        environment = running.enter_context(cluster(ray_folder))
        config = (DEPLOY / "prometheus.yaml").read_text()
        changes = {"alerts.yaml": f"{DEPLOY}/alerts.yaml", "/tmp/ray/": f"{ray_folder}/", "localhost:9091": gateway[7:]}
        for shipped, here in {**changes, "scrape_interval: 15s": "scrape_interval: 1s"}.items():
            assert shipped in config
            config = config.replace(shipped, here)
        (folder / "data").mkdir()
        url = running.enter_context(prometheus(folder, config))
        start = time.time()

        def job(name: str, **options: object) -> subprocess.Popen[bytes]:
            given = {"watch__name": "nightly", "watch__pushgateway": gateway} | options
            words = [f"--{option.replace('__', '.')}={value}" for option, value in given.items()]
            log = folder / f"{given['watch__name']}-{name}"
            with log.with_suffix(".out").open("w") as out, log.with_suffix(".err").open("w") as err:
                return subprocess.Popen([sys.executable, "-m", f"jobs.{name}", *words], env=environment, stdout=out, stderr=err)

        summarize = job(
            "summarize",
            input__path=folder / "in.parquet",
            output__path=folder / "out",
            resources__actors=1,
            resources__window_rows=50,
        )
        deadline = time.monotonic() + 120
        while len(list(folder.glob("out/ledger/run=*/part-*.parquet"))) < COMMITS_BEFORE_THE_KILL:
            assert summarize.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        actor(ray_folder).kill()
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
        yield Watched(url, start, time.time(), *(folder / "out/runs").iterdir())


@pytest.mark.faults
@pytest.mark.parametrize("panel", [panel for panel in PANELS if panel["type"] != "row"], ids=lambda panel: str(panel["title"]))
def test_a_panel_has_data(watched: Watched, panel: dict[str, Any]) -> None:
    for target in panel["targets"]:
        expression = target["expr"].replace("$__rate_interval", "10s").replace("$name", ".*")
        series = ask(watched.prometheus, expression, start=watched.start, end=watched.end)
        values = [float(value) for one in series for _, value in one["values"]]
        if panel["title"] in OF_GPUS:
            assert not values
        else:
            assert any(math.isfinite(value) for value in values), expression
            assert all(one["metric"].get(label) for one in series for label in one["metric"]), series


@pytest.mark.faults
def test_a_window_that_was_done_twice_is_counted_once(watched: Watched) -> None:
    manifest = json.loads((watched.nightly / "manifest.json").read_text())
    counts = manifest["counts"]

    def counted(metric: str, label: str = "name") -> dict[str, float]:
        found = ask(watched.prometheus, f'sum by ({label}) (ray_nightshift_{metric}{{name="nightly"}})')
        return {one["metric"][label]: float(one["value"][1]) for one in found}

    [deaths] = ask(watched.prometheus, 'sum(ray_node_manager_unexpected_worker_failure_total{Name=~".*MapWorker.*"})')
    assert float(deaths["value"][1]) >= 1
    assert counted("documents_total", "outcome") == {"summarized": counts["summarized"], "rejected": 100}
    assert counted("rejects_total", "reason") == counts["rejected"] == {"null_text": 100}
    assert counted("windows_total") == {"nightly": 40}
    assert counted("source_tokens_total") == {"nightly": counts["source_tokens"]}
    assert counted("target_tokens_total") == {"nightly": counts["summary_tokens"]}
    assert counted("read_tokens_total", "kind").get("padding", 0) == manifest["effort"]["padding"]
    decoding = counted("stage_seconds_total", "stage")["decoding"]
    assert decoding == pytest.approx(manifest["effort"]["decode_s"])


@pytest.mark.faults
def test_what_is_told_stays_until_the_end(watched: Watched) -> None:
    """A gauge that is set once is there for the whole run: by it, a run that commits nothing is seen."""
    between = {"start": watched.start, "end": watched.end}
    [active] = ask(watched.prometheus, 'ray_nightshift_run_active{name="nightly"}', **between)
    [started] = ask(watched.prometheus, 'ray_nightshift_run_start_timestamp_seconds{name="nightly"}', **between)
    seconds = [[at for at, _ in series["values"]] for series in (active, started)]
    assert max(after - before for at in seconds for before, after in itertools.pairwise(at)) <= 5
    assert min(at[-1] - at[0] for at in seconds) > 10
    assert [value for _, value in active["values"]][:1] == ["1"]


@pytest.mark.faults
def test_logs_are_json(watched: Watched) -> None:
    folder, run = watched.nightly.parents[2], watched.nightly.name
    for name, tags in (("summarize", {"job": "summarize", "name": "nightly", "run": run}), ("train", {"job": "train"})):
        printed = (folder / f"nightly-{name}.out").read_text().splitlines()
        own = [line for line in printed if line.startswith("{")]
        assert len(own) > 10
        assert all(json.loads(line).items() >= tags.items() for line in own)
        # Ray tells in words of its own of the actor that died.
        assert all("raylet" in line or "retried" in line for line in printed if line not in own)
        logged = (folder / f"nightly-{name}.err").read_text().splitlines()
        assert all(json.loads(line).keys() >= {"asctime", "levelname", "message"} for line in logged if line.startswith("{"))


@pytest.mark.faults
def test_a_sound_night_wakes_nobody_up(watched: Watched) -> None:
    with urlopen(f"{watched.prometheus}/api/v1/rules", timeout=10) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]
    assert {rule["health"] for rule in rules} == {"ok"}
    assert ask(watched.prometheus, 'ALERTS{alertstate="firing"}') == []
    successes = ask(watched.prometheus, "time() - nightshift_success_timestamp_seconds")
    assert {one["metric"]["job"] for one in successes} == {"nightshift_summarize", "nightshift_train"}
    assert all(0 <= float(one["value"][1]) < time.time() - watched.start for one in successes)
