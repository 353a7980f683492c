"""How a job ended, as a real Pushgateway stores it."""

from __future__ import annotations

import logging
import socket
import sys
import time
from pathlib import Path
from urllib.request import urlopen

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_server import free_port, pushgateway

from pipeline.config.loader import load_config
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import EXIT_INTERRUPTED, EXIT_OK, EXIT_STOPPED, EXIT_TOO_MANY_REJECTS, EXIT_USER_ERROR, Stopped, UserError
from pipeline.monitoring import pushgateway as pushgateway_module
from pipeline.monitoring.pushgateway import JobOutcome


def stored_metrics(url: str, job: str) -> dict[str, float]:
    """Return the values that the gateway has of a job named "nightly"."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        samples = [sample for family in text_string_to_metric_families(answer.read().decode()) for sample in family.samples]
    return {
        sample.name.removeprefix("nightshift_") + sample.labels.get("outcome", ""): sample.value
        for sample in samples
        if sample.name.startswith("nightshift_") and (sample.labels["job"], sample.labels["name"]) == (job, "nightly")
    }


def fail(watch: MonitoringSection, error: BaseException) -> None:
    with JobOutcome("train", watch) as outcome:
        outcome.succeeded = True
        raise error


def test_failure_keeps_the_time_of_the_last_success(tmp_path: Path) -> None:
    with pushgateway(tmp_path) as url:
        watch = MonitoringSection(name="nightly", pushgateway=url)
        with JobOutcome("train", watch) as outcome:
            assert stored_metrics(url, "nightshift_train").keys() == {"start_timestamp_seconds"}
            outcome.succeeded = True
        success = stored_metrics(url, "nightshift_train")
        assert success["exit_status"] == EXIT_OK
        assert success["start_timestamp_seconds"] <= success["success_timestamp_seconds"] == success["end_timestamp_seconds"]
        for error, status in (
            (UserError("no"), EXIT_USER_ERROR),
            (Stopped("no"), EXIT_STOPPED),
            (KeyboardInterrupt(), EXIT_INTERRUPTED),
        ):
            with pytest.raises(type(error)):
                fail(watch, error)
            failure = stored_metrics(url, "nightshift_train")
            assert failure["exit_status"] == status
            assert failure["success_timestamp_seconds"] == success["success_timestamp_seconds"]
        assert stored_metrics(url, "nightshift_summarize") == {}


@pytest.mark.faults
def test_run_pushes_its_outcome(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from jobs.summarize import main  # slow to import, and only used here

    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["one text", "another", None]}), tmp_path / "in.parquet")
    options = {"input.path": tmp_path / "in.parquet", "output.path": tmp_path / "out", "model.path": tiny_bundle}
    with pushgateway(tmp_path) as url:
        options |= {"resources.actors": 1, "watch.name": "nightly", "watch.pushgateway": url}

        def run(*more_options: str) -> dict[str, float]:
            argv = [word for option, value in options.items() for word in (f"--{option}", str(value))]
            monkeypatch.setattr(sys, "argv", ["summarize", *argv, *more_options])
            status = main()
            metrics = stored_metrics(url, "nightshift_summarize")
            assert metrics["exit_status"] == status
            return metrics

        metrics = run("--input.max_reject_share", "0.1")
        documents = {name.removeprefix("last_documents"): metrics[name] for name in metrics if name.startswith("last_doc")}
        assert documents.pop("_per_second") > 0
        assert documents == {"summarized": 2, "rejected": 1, "skipped": 0, "unread": 0}
        assert metrics["exit_status"] == EXIT_TOO_MANY_REJECTS
        assert "success_timestamp_seconds" not in metrics
        metrics = run()
        assert metrics["exit_status"] == EXIT_OK
        assert time.time() - metrics["success_timestamp_seconds"] < 60


def test_unreachable_gateway_is_only_a_warning(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(pushgateway_module, "PUSH_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent_server:
        for port, reason in ((free_port(), "Connection refused"), (silent_server.getsockname()[1], "timed out")):
            caplog.clear()
            watch = MonitoringSection(pushgateway=f"http://127.0.0.1:{port}")
            with caplog.at_level(logging.WARNING), JobOutcome("train", watch):
                pass
            assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
            assert reason in caplog.text


@pytest.mark.parametrize("url", ["ftp://host", "host:9091", "http://", "http://user:secret@host:9091", "http://:secret@host"])
def test_invalid_url_or_password_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"watch\.pushgateway") as error:
        load_config(SummarizeConfig, "summarize", ["--watch.pushgateway", url])
    assert "secret" not in str(error.value)
