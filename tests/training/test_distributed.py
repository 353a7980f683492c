"""Whole trainings on real Ray, with small models: learning, the bundle, going on, and what goes wrong in a worker."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.train import Checkpoint

from pipeline.config.train import TrainConfig
from pipeline.data.tokenizer import Tokenizer
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget
from pipeline.decoding.decode import decode_window
from pipeline.decoding.engine import Engine
from pipeline.errors import UserError
from pipeline.io.location import open_location
from pipeline.model.batching import Rows
from pipeline.model.bundle import load_bundle
from pipeline.training.checkpoints import WriterFence, upload_checkpoint
from pipeline.training.distributed import TrainingResult, train
from pipeline.training.learner import Learner
from pipeline.training.validation import DevSet

PAIRS, DEV_PAIRS, EPOCHS = 600, 18, 4


def config(pairs: Path, folder: Path, **sections: dict[str, Any]) -> TrainConfig:
    values: dict[str, Any] = {
        "data": {"train": f"{pairs}/train", "dev": f"{pairs}/dev", "tokenizer": f"{pairs}/tokenizer.model"},
        "model": {"embedding_size": 32, "hidden_size": 64, "bidirectional": False, "copy": False, "dropout": 0.1},
        "training": {
            "epochs": EPOCHS,
            "token_budget": 60,
            "learning_rate": 0.02,
            "warmup_steps": 10,
            "validate_rows": 100,
            "report_seconds": 0,
            "precision": "float32",
        },
        "decoding": {"no_repeat_ngram": 0},
        "scaling": {"num_workers": 2, "threads": 1},
        "output": {"path": str(folder)},
    }
    for name, options in sections.items():
        values[name] = {**values[name], **options}
    return TrainConfig.model_validate(values)


def run(config: TrainConfig) -> tuple[TrainingResult, list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    trained = train(config, records.append)
    return trained, [record for record in records if record["kind"] != "waiting"]  # as it does on a busy machine


@pytest.fixture(scope="module")
def finished(command_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, list[dict[str, Any]]]:
    """A training that reached its end, its configuration and records."""
    settings = config(command_pairs, tmp_path_factory.mktemp("trained"))
    _, records = run(settings)
    return settings, records


def test_the_loss_falls_and_the_bundle_decodes(finished: tuple[TrainConfig, list[dict[str, Any]]]) -> None:
    settings, records = finished
    assert [record["kind"] for record in records[:1] + records[-1:]] == ["start", "validation"]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["loss"] < 0.2 * steps[0]["loss"]
    assert steps[-1]["minutes_left"] == 0.0
    assert records[-1]["epoch"] == EPOCHS
    assert records[-1]["pairs_seen"] == EPOCHS * PAIRS
    assert records[-1]["dev_rows"] == DEV_PAIRS

    bundle = load_bundle(Path(settings.output.path) / "bundle")
    tokenizer = Tokenizer(bundle.tokenizer_file)
    dev = pq.read_table(settings.data.dev)
    engine = Engine(bundle.model, backend_for("float32", torch.device("cpu")))
    found = decode_window(engine, *tokenizer.encode(dev["source"].to_pylist()), bundle.decoding, BatchBudget(4096))
    hypotheses = tokenizer.decode(found.values, found.offsets)
    exact = sum(a == b for a, b in zip(hypotheses, dev["target"].to_pylist(), strict=True))
    assert 100 * exact / DEV_PAIRS == records[-1]["exact_match"]
    assert exact > DEV_PAIRS / 2


def test_the_model_card_tells_how_the_bundle_came_about(finished: tuple[TrainConfig, list[dict[str, Any]]]) -> None:
    settings, records = finished
    card = (Path(settings.output.path) / "bundle/README.md").read_text()
    last = records[-1]
    for fact in (
        f"`{settings.data.train}`: 600 |",
        f"{last['step']} steps, 2,400 pairs seen, 4.00 epochs",
        f"{last['dev_loss']:.3f} | {last['rouge1']:.1f} |",
        "2 × cpu, float32",
        "torch 2.",
        "Greedy search. ",
        "1 to 48 subwords are written; repeats are allowed",
        "  token_budget: 60\n",
    ):
        assert fact in card
    assert card.split("```yaml\n")[1].split("```")[0] == (Path(settings.output.path) / "config.yaml").read_text()


def test_a_finished_training_is_left_as_it_is(finished: tuple[TrainConfig, list[dict[str, Any]]]) -> None:
    settings, records = finished
    files = {path: path.stat().st_mtime_ns for path in Path(settings.output.path).rglob("*") if path.is_file()}
    trained, more = run(settings)
    assert trained.was_finished
    assert more == []
    assert trained.last["step"] == records[-1]["step"]
    assert files.keys() == {path for path in Path(settings.output.path).rglob("*") if path.is_file()}
    assert all(path.stat().st_mtime_ns == time for path, time in files.items())


def test_a_finished_training_gives_its_bundle_what_only_the_bundle_follows_from(
    finished: tuple[TrainConfig, list[dict[str, Any]]],
) -> None:
    settings, _ = finished
    values = settings.model_dump(by_alias=True)
    values["decoding"]["max_target_tokens"] = 5
    values["training"]["export_dtype"] = "float16"
    bundle = Path(settings.output.path) / "bundle"
    size = (bundle / "model.safetensors").stat().st_size
    trained, records = run(TrainConfig.model_validate(values))
    assert (trained.was_finished, records) == (True, [])
    assert load_bundle(bundle).decoding.max_target_tokens == 5
    assert (bundle / "model.safetensors").stat().st_size < 0.6 * size


def test_more_epochs_go_on_from_there_with_another_number_of_workers(
    finished: tuple[TrainConfig, list[dict[str, Any]]], command_pairs: Path
) -> None:
    settings, records = finished
    longer = config(
        command_pairs,
        Path(settings.output.path),
        training={**dict(settings.training), "epochs": EPOCHS + 1},
        scaling={"num_workers": 1},
    )
    trained, more = run(longer)
    assert not trained.was_finished
    assert more[0]["step"] == records[-1]["step"]
    assert more[1]["step"] == records[-1]["step"] + 1
    assert more[1]["loss"] < 0.3 * records[1]["loss"]
    assert trained.last["pairs_seen"] == (EPOCHS + 1) * PAIRS
    checkpoints = [path for path in (Path(settings.output.path) / "checkpoints").iterdir() if path.is_dir()]
    assert 1 <= len(checkpoints) <= 2, "the best and the last"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"data": {"train": "/nowhere"}}, "--data.train"),
        ({"data": {"dev": "/nowhere"}}, "--data.dev"),
        ({"data": {"tokenizer": "/nowhere.model"}}, "--data.tokenizer"),
        ({"output": {"path": "/proc/version/out"}}, "/proc/version/out"),
        ({"output": {"path": "s4://bucket"}}, "s4://bucket"),
    ],
)
def test_what_is_missing_is_named(change: dict[str, dict[str, str]], message: str, command_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=message):
        run(config(command_pairs, tmp_path, **change))


def test_no_pairs_and_other_columns_are_named(command_pairs: Path, tmp_path: Path) -> None:
    pairs = pq.read_table(command_pairs / "train")
    pq.write_table(pairs.slice(0, 0), tmp_path / "no.parquet")
    with pytest.raises(UserError, match=r"no.parquet has no rows; set --data\.train"):
        run(config(command_pairs, tmp_path / "out", data={"train": str(tmp_path / "no.parquet")}))
    pq.write_table(pairs.rename_columns(["id", "source", "summary"]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"no column 'target' \(it has: id, source, summary\); set --data\.dev"):
        run(config(command_pairs, tmp_path / "out", data={"dev": str(tmp_path / "other.parquet")}))


@pytest.mark.faults
def test_bytes_that_are_no_text_are_learnt_from_and_rows_with_a_null_are_skipped_and_counted(
    command_pairs: Path, tmp_path: Path
) -> None:
    raw = pa.array([b"walk", b"jump\xff", None, b"run", b"look"])
    sources = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    targets = pa.array(["WALK", "JUMP", "TURN", "RUN", None])
    pq.write_table(pa.table({"id": list("abcde"), "source": sources, "target": targets}), tmp_path / "pairs.parquet")
    data = {"train": str(tmp_path / "pairs.parquet"), "dev": str(tmp_path / "pairs.parquet")}
    trained, records = run(config(command_pairs, tmp_path / "out", data=data, training={"epochs": 1}))
    assert (records[0]["kind"], records[0]["train"], records[0]["dev"]) == ("skipped", 2, 2)
    assert (trained.last["pairs_seen"], trained.last["dev_rows"]) == (3, 3)


def test_another_network_is_not_trained_into_the_same_folder(
    finished: tuple[TrainConfig, list[dict[str, Any]]], command_pairs: Path
) -> None:
    settings, _ = finished
    other = config(command_pairs, Path(settings.output.path), model={**settings.model.model_dump(by_alias=True), "cell": "gru"})
    with pytest.raises(UserError, match=r"with another --model; set what it was, or another --output\.path"):
        run(other)


def test_checkpoints_are_not_compared_by_other_figures(
    finished: tuple[TrainConfig, list[dict[str, Any]]], command_pairs: Path
) -> None:
    settings, _ = finished
    folder = Path(settings.output.path)
    with pytest.raises(UserError, match=r"with another --training\.best_by; set what it was, or another --output\.path"):
        run(config(command_pairs, folder, training={"best_by": "dev_loss"}))
    with pytest.raises(UserError, match=r"with another --data\.dev or --training\.validate_rows; set what it was"):
        run(config(command_pairs, folder, training={"validate_rows": DEV_PAIRS - 1}))


def test_what_a_kill_leaves_midway_neither_stops_a_training_nor_stays(
    finished: tuple[TrainConfig, list[dict[str, Any]]], command_pairs: Path, tmp_path: Path
) -> None:
    """Half of Ray Train's record, half of an upload, and a checkpoint that was never uploaded."""
    settings, _ = finished
    shutil.copytree(settings.output.path, tmp_path / "out")
    more = config(command_pairs, tmp_path / "out", training={"epochs": EPOCHS + 2})
    record = tmp_path / "out/checkpoints/checkpoint_manager_snapshot.json"
    whole = record.read_text().replace(settings.output.path, str(tmp_path / "out"))
    (tmp_path / "out/checkpoints.json").write_text(whole)
    record.write_text(whole[: len(whole) // 2])
    (tmp_path / "out/checkpoints/checkpoint_1").mkdir()
    (tmp_path / "out/checkpoints/checkpoint_1/state.pt").write_bytes(b"half")
    (tmp_path / "out/checkpoints/checkpoint_9999").mkdir()
    local = Path(WriterFence(open_location(str(tmp_path / "out"), "--output.path"), "killed").local_folder())
    trained, further = run(more)
    assert trained.last["epoch"] == EPOCHS + 2
    assert further[0]["epoch"] >= EPOCHS, "it goes on"
    assert not (tmp_path / "out/checkpoints/checkpoint_1").exists()
    assert (tmp_path / "out/checkpoints/checkpoint_9999").exists(), "it may be another run's, and count soon"
    assert not local.exists()
    assert (tmp_path / "out/checkpoints.json").read_bytes() == record.read_bytes()


def test_an_upload_that_ends_after_another_run_began_does_not_count(tmp_path: Path) -> None:
    fence = WriterFence(open_location(str(tmp_path / "out"), "--output.path"), "first")
    fence.file.write(b"second")
    local = Path(fence.local_folder())
    (local / "state.pt").write_bytes(b"state")
    with pytest.raises(UserError, match="another run has been started"):
        upload_checkpoint(fence, Checkpoint.from_directory(local), "checkpoint_1")
    fence.file.write(b"first")
    fence.clear_local()
    assert not local.exists()


def test_weights_that_are_no_numbers_have_no_figures(finished: tuple[TrainConfig, list[dict[str, Any]]]) -> None:
    settings, _ = finished
    bundle = load_bundle(Path(settings.output.path) / "bundle")
    tokenizer, dev = Tokenizer(bundle.tokenizer_file), pq.read_table(settings.data.dev)
    texts = dev["source"].to_pylist(), dev["target"].to_pylist()
    rows = [Rows(*tokenizer.encode(column)) for column in texts]
    dev_set = DevSet(rows[0], rows[1], texts[0], texts[1], tokenizer, settings, memory_share=0.5)
    learner = Learner(bundle.model, settings.training, torch.device("cpu"))
    assert dev_set.measure(learner) is not None
    with torch.no_grad():
        bundle.model.decoder.output.bias[7] = torch.nan
    assert dev_set.measure(learner) is None
