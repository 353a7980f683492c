"""training.html, train.jsonl and TensorBoard events, made from records like those of a training."""

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
from pipeline.training.plan import TrainingPlan
from pipeline.training.report.log import TrainingLog
from pipeline.training.report.report import render_training_page

HOSTILE = "<script>document.title = 'run'</script> \x00\x1b & \u202e ]]>"


def position(step: int) -> dict[str, Any]:
    return {"at": 1.7e9 + step, "step": step, "epoch": step / 100, "pairs_seen": 8 * step, "minutes": step / 60}


def start(step: int = 0) -> dict[str, Any]:
    facts = {"workers": 2, "device": "cpu", "precision": "float32", "parameters": 1234, "dev_rows": 3}
    return {"kind": "start", **position(step), **facts}


def step(number: int, **others: Any) -> dict[str, Any]:
    figures = {"loss": 9 / number, "tokens_per_s": 1000.0, "wait_share": 0.01, "learning_rate": 0.001, "gradient_norm": 1.5}
    return {"kind": "step", **position(number), **figures, "minutes_left": 1.0, **others}


def validation(number: int, rouge: float, **others: Any) -> dict[str, Any]:
    samples = [{"source": f"source {HOSTILE}", "reference": "reference", "hypothesis": f"after {number} {HOSTILE}"}]
    figures = {"rouge1": rouge + 5, "rouge2": rouge / 2, "rougeL": rouge, "exact_match": 1.0, "dev_loss": 4.0}
    return {**start(number), "kind": "validation", **figures, "validations_since_best": 0, "samples": samples, **others}


def records() -> list[dict[str, Any]]:
    """Return the records of 40 steps, with validations after steps 20 and 40."""
    steps = [step(number) for number in range(1, 41)]
    return [start(), *steps[:20], validation(20, 20.0), *steps[20:], validation(40, 30.0)]


def page(records: list[dict[str, Any]], fingerprint: str | None = "f" * 64) -> str:
    return render_training_page(TrainConfig(), records, fingerprint=fingerprint)


def test_figures_curves_and_samples_are_shown() -> None:
    text = page(records())
    for words in (
        "<b>30.0</b>",
        "ROUGE-1 35.0, ROUGE-2 15.0; step 40",
        "Finished",
        "1,234",
        "1,000",
        "after 20",
        "after 40",
        "training.learning_rate",
    ):
        assert words in text
    assert text.count("<svg") == 5
    assert "warning" not in text
    assert "Training</div>" in page(records()[:22], fingerprint=None)


def test_texts_are_escaped() -> None:
    text = page(records())
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    assert "\x00" not in text


def test_page_after_one_step() -> None:
    text = page([start(), step(1)], fingerprint=None)
    assert "<svg" not in text
    assert "ROUGE" not in text


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ({"kind": "fault", **position(30), "fault": "the loss is not a number"}, "Step 30: the loss is not a number."),
        ({"kind": "skipped", "step": 0, "at": 1.7e9, "train": 5, "dev": 0}, "5 rows of train"),
        (step(41, wait_share=30.0), "waited"),
    ],
)
def test_warnings(record: dict[str, Any], message: str) -> None:
    text = page([*records()[:10], record, *records()[10:]])
    assert "1 warning<" in text
    assert message in text


def test_warning_about_validations_without_progress() -> None:
    text = page([*records(), *(validation(number, 10.0) for number in range(41, 46))])
    assert "last 5 validations" in text
    assert "--training.patience" in text


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig.model_validate({"output": {"path": str(tmp_path / "out")}})


def write_log(config: TrainConfig, records: list[dict[str, Any]]) -> TrainingLog:
    log = TrainingLog(TrainingPlan(config, parent=None, tokenizer_file=b""))
    for record in records:
        log.add(record)
    return log


def read_log(config: TrainConfig) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (Path(config.output.path) / "train.jsonl").read_text().splitlines()]


def test_resumed_run_drops_records_after_its_checkpoint(config: TrainConfig) -> None:
    write_log(config, [start(), *(step(n) for n in range(1, 6)), validation(5, 20.0), step(6), validation(6, 25.0)])
    write_log(config, [start(5), step(6, loss=7.0), validation(6, 22.0)])
    written = read_log(config)
    assert [(record["kind"], record["step"]) for record in written] == [
        ("start", 0),
        *(("step", n) for n in range(1, 6)),
        ("validation", 5),
        ("start", 5),
        ("step", 6),
        ("validation", 6),
    ]
    assert written[-2]["loss"] == 7.0
    assert len(list((Path(config.output.path) / "tensorboard").iterdir())) == 2


def test_restarted_workers_drop_records_after_their_checkpoint(config: TrainConfig) -> None:
    steps = [start(), step(1), validation(1, 20.0), step(2), step(3), start(1), step(2, loss=7.0), validation(2, 22.0)]
    write_log(config, steps)
    assert [(record["kind"], record["step"]) for record in read_log(config)] == [
        ("start", 0), ("step", 1), ("validation", 1), ("start", 1), ("step", 2), ("validation", 2),
    ]  # fmt: skip


def events(config: TrainConfig) -> Iterator[Event]:
    """Read the event file: each record is its length, a checksum of that, the event, and a checksum of that."""
    [file] = (Path(config.output.path) / "tensorboard").iterdir()
    content = file.read_bytes()
    while content:
        (length,) = struct.unpack("<Q", content[:8])
        yield Event.FromString(content[12 : 12 + length])
        content = content[16 + length :]


def test_tensorboard_events(config: TrainConfig) -> None:
    write_log(config, records()).finish("f" * 64)
    scalars: dict[str, list[tuple[int, float]]] = {}
    for event in events(config):
        for value in event.summary.value:
            scalars.setdefault(value.tag, []).append((event.step, value.simple_value))
    assert len(scalars["loss/training"]) == 40
    assert scalars["rouge/L"] == [(20, 20.0), (40, 30.0)]
    assert any("sample 1" in tag for tag in scalars)


def test_failed_write_is_repeated_at_the_next_validation(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    log = write_log(config, [start(), step(1)])
    Path(config.output.path).write_text("a file where the folder should be")
    log.add(validation(1, 20.0))
    assert "next validation" in caplog.text
    Path(config.output.path).unlink()
    log.add(validation(2, 20.0))
    assert [record["step"] for record in read_log(config)] == [0, 1, 1, 2]


def test_error_in_the_page_does_not_end_a_training(config: TrainConfig, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    broken = validation(2, 20.0)
    del broken["rouge1"]
    write_log(config, [start(), step(1), broken])
    assert "training.html" in caplog.text
    assert read_log(config)[-1]["kind"] == "validation"
    assert not (Path(config.output.path) / "training.html").exists()


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_loads_nothing_and_fits_the_screen(tmp_path: Path, width: int, scheme: str) -> None:
    playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    long = validation(41, 20.0, samples=[{"source": "w" * 600, "reference": "r" * 600, "hypothesis": HOSTILE}])
    file = tmp_path / "training.html"
    file.write_text(page([*records(), long]))
    with playwright.sync_playwright() as driver:
        path = shutil.which("chromium") or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("Chromium is not installed; run: playwright install chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        tab = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        requests, messages = list[str](), list[str]()
        tab.on("request", lambda request: requests.append(request.url))
        tab.on("console", lambda message: messages.append(message.text))
        tab.goto(file.as_uri(), wait_until="networkidle")
        assert (requests, messages) == ([file.as_uri()], [])
        assert re.search(r"trained – Nightshift", tab.title())
        assert tab.evaluate("document.documentElement.scrollWidth") <= width
        assert all(plot.bounding_box()["width"] > 250 for plot in tab.locator("svg").all())
        browser.close()
