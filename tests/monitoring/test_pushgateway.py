"""How a job ended, as a real Pushgateway keeps it."""

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

from jobs.summarize import main
from pipeline.config.loader import load_config
from pipeline.config.monitoring import MonitoringSection
from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import Stopped, UserError
from pipeline.monitoring import pushgateway as pushing
from pipeline.monitoring.pushgateway import JobOutcome


def kept(url: str, job: str) -> dict[str, float]:
    """What the gateway has of a job named nightly."""
    with urlopen(f"{url}/metrics", timeout=10) as answer:
        samples = [sample for family in text_string_to_metric_families(answer.read().decode()) for sample in family.samples]
    return {
        sample.name.removeprefix("nightshift_") + sample.labels.get("outcome", ""): sample.value
        for sample in samples
        if sample.name.startswith("nightshift_") and (sample.labels["job"], sample.labels["name"]) == (job, "nightly")
    }


def failing(watch: MonitoringSection, error: BaseException) -> None:
    with JobOutcome("train", watch) as told:
        told.succeeded = True
        raise error


def test_a_failure_leaves_the_time_of_the_last_success(tmp_path: Path) -> None:
    with pushgateway(tmp_path) as url:
        watch = MonitoringSection(name="nightly", pushgateway=url)
        with JobOutcome("train", watch) as told:
            assert kept(url, "nightshift_train").keys() == {"start_timestamp_seconds"}
            told.succeeded = True
        well = kept(url, "nightshift_train")
        assert well["exit_status"] == 0
        assert well["start_timestamp_seconds"] <= well["success_timestamp_seconds"] == well["end_timestamp_seconds"]
        for error, status in ((UserError("no"), 2), (Stopped("no"), 1), (KeyboardInterrupt(), 130)):
            with pytest.raises(type(error)):
                failing(watch, error)
            ill = kept(url, "nightshift_train")
            assert (ill["exit_status"], ill["success_timestamp_seconds"]) == (status, well["success_timestamp_seconds"])
        assert kept(url, "nightshift_summarize") == {}


@pytest.mark.faults
def test_a_run_tells_what_it_did(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pq.write_table(pa.table({"id": ["a", "b", "c"], "text": ["one text", "another", None]}), tmp_path / "in.parquet")
    given = {"input.path": tmp_path / "in.parquet", "output.path": tmp_path / "out", "model.path": tiny_bundle}
    with pushgateway(tmp_path) as url:
        given |= {"resources.actors": 1, "watch.name": "nightly", "watch.pushgateway": url}

        def run(*options: str) -> dict[str, float]:
            words = [word for option, value in given.items() for word in (f"--{option}", str(value))]
            monkeypatch.setattr(sys, "argv", ["summarize", *words, *options])
            status = main()
            found = kept(url, "nightshift_summarize")
            assert found["exit_status"] == status
            return found

        too_many = run("--input.max_reject_share", "0.1")
        documents = {name.removeprefix("last_documents"): too_many[name] for name in too_many if name.startswith("last_doc")}
        assert documents.pop("_per_second") > 0
        assert documents == {"summarized": 2, "rejected": 1, "skipped": 0, "unread": 0}
        assert too_many["exit_status"] == 3
        assert "success_timestamp_seconds" not in too_many
        well = run()
        assert well["exit_status"] == 0
        assert time.time() - well["success_timestamp_seconds"] < 60


def test_no_job_ends_by_a_gateway_that_does_not_answer(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(pushing, "_TIMEOUT_S", 0.2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        for port, said in ((free_port(), "Connection refused"), (silent.getsockname()[1], "timed out")):
            caplog.clear()
            with (
                caplog.at_level(logging.WARNING),
                JobOutcome("train", MonitoringSection(pushgateway=f"http://127.0.0.1:{port}")),
            ):
                pass
            assert [record.levelname for record in caplog.records] == ["WARNING"] * 2
            assert said in caplog.text


@pytest.mark.parametrize("url", ["ftp://host", "host:9091", "http://", "http://user:secret@host:9091", "http://:secret@host"])
def test_an_address_that_is_none_or_has_a_password_is_refused(url: str) -> None:
    with pytest.raises(UserError, match=r"watch\.pushgateway must") as error:
        load_config(SummarizeConfig, "summarize", ["--watch.pushgateway", url])
    assert "secret" not in str(error.value)
