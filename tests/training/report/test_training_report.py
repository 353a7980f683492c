"""training.html, train.jsonl and the events for TensorBoard, from records such as a training gives."""

from __future__ import annotations

import json
import logging
import re
import shutil
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tensorboardX.proto.event_pb2 import Event

from pipeline.config.train import TrainConfig
from pipeline.training.report.log import TrainingLog
from pipeline.training.report.report import render

HOSTILE = "<script>document.title = 'run'</script> \x00\x1b & \u202e ]]>"


def start(step: int = 0) -> dict[str, Any]:
    facts = {"workers": 2, "device": "cpu", "precision": "float32", "parameters": 1234, "dev_rows": 3}
    return {"kind": "start", **where(step), **facts}


def where(step: int) -> dict[str, Any]:
    return {"at": 1.7e9 + step, "step": step, "epoch": step / 100, "pairs_seen": 8 * step, "minutes": step / 60}


def step(number: int, **others: Any) -> dict[str, Any]:
    figures = {"loss": 9 / number, "tokens_per_s": 1000.0, "wait_share": 0.01, "learning_rate": 0.001, "gradient_norm": 1.5}
    return {"kind": "step", **where(number), **figures, "minutes_left": 1.0, **others}


def validation(number: int, rouge: float, **others: Any) -> dict[str, Any]:
    samples = [{"source": f"source {HOSTILE}", "reference": "reference", "hypothesis": f"after {number} {HOSTILE}"}]
    rouges = {"rouge1": rouge + 5, "rouge2": rouge / 2, "rougeL": rouge, "exact_match": 1.0, "dev_loss": 4.0}
    return {**start(number), "kind": "validation", **rouges, "validations_since_best": 0, "samples": samples, **others}


def records() -> list[dict[str, Any]]:
    steps = [step(number) for number in range(1, 41)]
    return [start(), *steps[:20], validation(20, 20.0), *steps[20:], validation(40, 30.0)]


def page(of: list[dict[str, Any]], is_finished: bool = True) -> str:
    return render(TrainConfig(), of, is_finished)


def test_figures_curves_and_samples_are_there() -> None:
    text = page(records())
    for shown in (
        "<b>30.0</b>",
        "ROUGE-1 35.0, ROUGE-2 15.0; step 40",
        "Finished",
        "1,234",
        "1,000",
        "after 20",
        "after 40",
        "training.learning_rate",
    ):
        assert shown in text
    assert text.count("<svg") == 5
    assert "things to look at" not in text
    assert "Training</div>" in page(records()[:22], is_finished=False)


def test_texts_are_escaped() -> None:
    text = page(records())
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\x00" not in text


def test_a_training_that_has_just_begun_has_a_page() -> None:
    text = page([start(), step(1)], is_finished=False)
    assert "<svg" not in text
    assert "ROUGE" not in text


@pytest.mark.parametrize(
    ("added", "said"),
    [
        ({"kind": "fault", **where(30), "fault": "the loss is not a number"}, "Step 30: the loss is not a number."),
        ({"kind": "skipped", "step": 0, "at": 1.7e9, "train": 5, "dev": 0}, "5 rows of train were skipped."),
        (step(41, wait_share=30.0), "of the time was spent waiting for pairs."),
    ],
)
def test_what_to_look_at_is_said(added: dict[str, Any], said: str) -> None:
    text = page([*records()[:10], added, *records()[10:]])
    assert "1 thing to look at" in text
    assert said in text


def test_a_best_validation_that_is_long_ago_is_said() -> None:
    text = page([*records(), *(validation(number, 10.0) for number in range(41, 46))])
    assert "The best validation was 5 before the last one." in text


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig.model_validate({"output": {"path": str(tmp_path / "out")}})


def logged(config: TrainConfig, of: list[dict[str, Any]]) -> TrainingLog:
    log = TrainingLog(config)
    for record in of:
        log.add(record)
    return log


def lines(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output.path) / "train.jsonl").read_text().splitlines()]


def test_what_followed_the_checkpoint_that_a_run_goes_on_from_is_forgotten(config: TrainConfig) -> None:
    logged(config, [start(), *(step(n) for n in range(1, 6)), validation(5, 20.0), step(6), validation(6, 25.0)])
    logged(config, [start(5), step(6, loss=7.0), validation(6, 22.0)])
    found = lines(config)
    assert [(record["kind"], record["step"]) for record in found] == [
        ("start", 0),
        *(("step", n) for n in range(1, 6)),
        ("validation", 5),
        ("start", 5),
        ("step", 6),
        ("validation", 6),
    ]
    assert found[-2]["loss"] == 7.0
    assert len(list((Path(config.output.path) / "tensorboard").iterdir())) == 2


def test_workers_that_start_again_within_a_run_begin_where_they_go_on(config: TrainConfig) -> None:
    logged(config, [start(), step(1), validation(1, 20.0), step(2), step(3), start(1), step(2, loss=7.0), validation(2, 22.0)])
    assert [(record["kind"], record["step"]) for record in lines(config)] == [
        ("start", 0), ("step", 1), ("validation", 1), ("start", 1), ("step", 2), ("validation", 2),
    ]  # fmt: skip


def events(config: TrainConfig) -> Iterator[Event]:
    """Of the file, as TensorFlow frames records: a length, its checksum, the bytes, their checksum."""
    [file] = (Path(config.output.path) / "tensorboard").iterdir()
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_tensorboard_finds_the_figures(config: TrainConfig) -> None:
    logged(config, records()).finish()
    scalars: dict[str, list[tuple[int, float]]] = {}
    for event in events(config):
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert len(scalars["loss/training"]) == 40
    assert [at for at, _ in scalars["rouge/L"]] == [20, 40]
    assert [value for _, value in scalars["rouge/L"]] == [20.0, 30.0]
    assert any("sample 1" in tag for tag in scalars)


def test_what_cannot_be_written_is_tried_again(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    log = logged(config, [start(), step(1)])
    Path(config.output.path).write_text("in the way")
    log.add(validation(1, 20.0))
    assert "it is tried again at the next validation" in caplog.text
    Path(config.output.path).unlink()
    log.add(validation(2, 20.0))
    assert [record["step"] for record in lines(config)] == [0, 1, 1, 2]


def test_a_page_that_cannot_be_made_does_not_end_a_training(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    broken = validation(2, 20.0)
    del broken["rouge1"]
    logged(config, [start(), step(1), broken])
    assert "training.html could not be made" in caplog.text
    assert lines(config)[-1]["kind"] == "validation"
    assert not (Path(config.output.path) / "training.html").exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_in_a_browser_it_loads_nothing_and_fits(tmp_path: Path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")
    long = validation(41, 20.0, samples=[{"source": "w" * 600, "reference": "r" * 600, "hypothesis": HOSTILE}])
    file = tmp_path / "training.html"
    file.write_text(page([*records(), long]))
    with playwright.sync_playwright() as driver:
        found = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("there is no Chromium: apt install chromium, or playwright install chromium")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests, told = list[str](), list[str]()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: told.append(message.text))
        tab.goto(file.as_uri(), wait_until="networkidle")
        assert (requests, told) == ([file.as_uri()], [])
        assert re.search(r"trained – Nightshift", tab.title())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert all(plot.bounding_box()["width"] > 250 for plot in tab.locator("svg").all())
        browser.close()
