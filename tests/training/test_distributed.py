"""Whole trainings on real Ray with small models: learning, the bundle, resuming, and failures."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.train import Checkpoint
from trainings import DEV_PAIRS, EPOCHS, PAIRS, Records, make_config, run

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
from pipeline.training.learner import Learner
from pipeline.training.validation import DevPairs, DevSet


@pytest.fixture(scope="module")
def finished(command_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainConfig, Records]:
    """A finished training: its configuration and records."""
    config = make_config(command_pairs, tmp_path_factory.mktemp("trained"))
    _, records = run(config)
    return config, records


def test_loss_falls_and_bundle_decodes(finished: tuple[TrainConfig, Records]) -> None:
    config, records = finished
    assert [records[0]["kind"], records[-1]["kind"]] == ["start", "validation"]
    steps = [record for record in records if record["kind"] == "step"]
    assert [record["step"] for record in steps] == list(range(1, len(steps) + 1))
    assert steps[-1]["loss"] < 0.2 * steps[0]["loss"]
    assert steps[-1]["minutes_left"] == 0.0
    assert records[-1]["epoch"] == EPOCHS
    assert records[-1]["pairs_seen"] == EPOCHS * PAIRS
    assert records[-1]["dev_rows"] == DEV_PAIRS

    bundle = load_bundle(Path(config.output.path) / "bundle")
    tokenizer = Tokenizer(bundle.tokenizer_file)
    dev = pq.read_table(config.data.dev)
    engine = Engine(bundle.model, backend_for("float32", torch.device("cpu")))
    sources = Rows(*tokenizer.encode(dev["source"].to_pylist()))
    decoded = decode_window(engine, sources, bundle.decoding, BatchBudget(4096))
    hypotheses = tokenizer.decode(decoded.values, decoded.offsets)
    exact = sum(a == b for a, b in zip(hypotheses, dev["target"].to_pylist(), strict=True))
    assert 100 * exact / DEV_PAIRS == records[-1]["exact_match"]
    assert exact > DEV_PAIRS / 2


def test_model_card_describes_the_training(finished: tuple[TrainConfig, Records]) -> None:
    config, records = finished
    card = (Path(config.output.path) / "bundle/README.md").read_text()
    last = records[-1]
    for fact in (
        f"`{config.data.train}`: 600 |",
        f"{last['step']} steps, 2,400 pairs seen, 4.00 epochs",
        f"{last['dev_loss']:.3f} | {last['rouge1']:.1f} |",
        "2 × cpu, float32",
        "torch 2.",
        "Greedy search",
        "1 to 48 subwords",
        "  token_budget: 60\n",
    ):
        assert fact in card
    assert card.split("```yaml\n")[1].split("```")[0] == (Path(config.output.path) / "config.yaml").read_text()


def test_weights_that_are_nan_are_not_measured(finished: tuple[TrainConfig, Records]) -> None:
    config, _ = finished
    bundle = load_bundle(Path(config.output.path) / "bundle")
    tokenizer, dev = Tokenizer(bundle.tokenizer_file), pq.read_table(config.data.dev)
    texts = dev["source"].to_pylist(), dev["target"].to_pylist()
    pairs = DevPairs(*texts, *(Rows(*tokenizer.encode(column)) for column in texts))
    dev_set = DevSet(pairs, tokenizer, config, memory_share=0.5)
    learner = Learner(bundle.model, config.training, torch.device("cpu"))
    assert dev_set.measure(learner) is not None
    with torch.no_grad():
        bundle.model.decoder.output.bias[7] = torch.nan
    assert dev_set.measure(learner) is None


def test_finished_training_changes_nothing(finished: tuple[TrainConfig, Records]) -> None:
    config, records = finished
    files = {path: path.stat().st_mtime_ns for path in Path(config.output.path).rglob("*") if path.is_file()}
    result, new_records = run(config)
    assert result.was_finished
    assert new_records == []
    assert result.last["step"] == records[-1]["step"]
    assert files == {path: path.stat().st_mtime_ns for path in Path(config.output.path).rglob("*") if path.is_file()}


def test_finished_training_rewrites_bundle_for_new_export_options(finished: tuple[TrainConfig, Records]) -> None:
    config, _ = finished
    values = config.model_dump(by_alias=True)
    values["decoding"]["max_target_tokens"] = 5
    values["training"]["export_dtype"] = "float16"
    bundle = Path(config.output.path) / "bundle"
    size = (bundle / "model.safetensors").stat().st_size
    result, records = run(TrainConfig.model_validate(values))
    assert (result.was_finished, records) == (True, [])
    assert load_bundle(bundle).decoding.max_target_tokens == 5
    assert (bundle / "model.safetensors").stat().st_size < 0.6 * size


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"model": {"cell": "gru"}}, r"another --model;"),
        ({"training": {"best_by": "dev_loss"}}, r"--training\.best_by"),
        ({"training": {"validate_rows": DEV_PAIRS - 1}}, r"--training\.validate_rows"),
    ],
)
def test_folder_of_another_training_is_refused(
    finished: tuple[TrainConfig, Records], command_pairs: Path, change: dict[str, dict[str, Any]], named: str
) -> None:
    config, _ = finished
    with pytest.raises(UserError, match=named):
        run(make_config(command_pairs, Path(config.output.path), **change))


def test_resume_after_kill_repairs_and_cleans_the_folder(
    finished: tuple[TrainConfig, Records], command_pairs: Path, tmp_path: Path
) -> None:
    """Resume more epochs, with one worker, from a truncated record, a partial upload and a local checkpoint."""
    config, records = finished
    output = tmp_path / "out"
    shutil.copytree(config.output.path, output)
    record = output / "checkpoints/checkpoint_manager_snapshot.json"
    content = record.read_text().replace(config.output.path, str(output))
    (output / "checkpoints.json").write_text(content)
    record.write_text(content[: len(content) // 2])
    (output / "checkpoints/checkpoint_1").mkdir()
    (output / "checkpoints/checkpoint_1/state.pt").write_bytes(b"half")
    (output / "checkpoints/checkpoint_9999").mkdir()
    local = Path(WriterFence(open_location(str(output), "--output.path"), "killed").new_local_folder())

    longer = make_config(command_pairs, output, training={"epochs": EPOCHS + 1}, scaling={"num_workers": 1})
    result, new_records = run(longer)
    assert not result.was_finished
    assert [record["step"] for record in new_records[:2]] == [records[-1]["step"], records[-1]["step"] + 1]
    assert new_records[1]["loss"] < 0.3 * records[1]["loss"]
    assert result.last["pairs_seen"] == (EPOCHS + 1) * PAIRS
    folders = {path.name for path in (output / "checkpoints").iterdir() if path.is_dir()}
    assert "checkpoint_1" not in folders
    assert "checkpoint_9999" in folders, "another run may complete it"
    assert len(folders) in (2, 3), "the best and the last checkpoint are kept"
    assert not local.exists()
    assert (output / "checkpoints.json").read_bytes() == record.read_bytes()


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"data": {"train": "/nowhere"}}, "--data.train"),
        ({"data": {"dev": "/nowhere"}}, "--data.dev"),
        ({"data": {"tokenizer": "/nowhere.model"}}, "--data.tokenizer"),
        ({"output": {"path": "/proc/version/out"}}, "/proc/version/out"),
        ({"output": {"path": "s4://bucket"}}, "s4://bucket"),
    ],
)
def test_missing_input_is_named(change: dict[str, dict[str, str]], named: str, command_pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=named):
        run(make_config(command_pairs, tmp_path, **change))


def test_empty_file_and_missing_column_are_named(command_pairs: Path, tmp_path: Path) -> None:
    pairs = pq.read_table(command_pairs / "train")
    pq.write_table(pairs.slice(0, 0), tmp_path / "empty.parquet")
    with pytest.raises(UserError, match=r"empty\.parquet .*--data\.train"):
        run(make_config(command_pairs, tmp_path / "out", data={"train": str(tmp_path / "empty.parquet")}))
    pq.write_table(pairs.rename_columns(["id", "source", "summary"]), tmp_path / "other.parquet")
    with pytest.raises(UserError, match=r"'target' .*\(it has: id, source, summary\).*--data\.dev"):
        run(make_config(command_pairs, tmp_path / "out", data={"dev": str(tmp_path / "other.parquet")}))


@pytest.mark.faults
def test_invalid_utf8_is_used_and_nulls_are_skipped_and_counted(command_pairs: Path, tmp_path: Path) -> None:
    raw = pa.array([b"walk", b"jump\xff", None, b"run", b"look"])
    sources = pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    targets = pa.array(["WALK", "JUMP", "TURN", "RUN", None])
    pq.write_table(pa.table({"id": list("abcde"), "source": sources, "target": targets}), tmp_path / "pairs.parquet")
    data = {"train": str(tmp_path / "pairs.parquet"), "dev": str(tmp_path / "pairs.parquet")}
    result, records = run(make_config(command_pairs, tmp_path / "out", data=data, training={"epochs": 1}))
    assert (records[0]["kind"], records[0]["train"], records[0]["dev"]) == ("skipped", 2, 2)
    assert (result.last["pairs_seen"], result.last["dev_rows"]) == (3, 3)


def test_upload_does_not_count_after_another_run_started(tmp_path: Path) -> None:
    fence = WriterFence(open_location(str(tmp_path / "out"), "--output.path"), "first")
    fence.file.write(b"second")
    local = Path(fence.new_local_folder())
    (local / "state.pt").write_bytes(b"state")
    with pytest.raises(UserError, match="another run"):
        upload_checkpoint(fence, Checkpoint.from_directory(local), "checkpoint_1")
    fence.file.write(b"first")
    fence.remove_local_folders()
    assert not local.exists()
