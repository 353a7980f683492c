"""Trainings that start from another model: what they take over, what they report, and which options contradict the model."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from trainings import run

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.train import TrainConfig
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.model.bundle import load_bundle, save_bundle
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.plan import plan_training

LEARNING = {"epochs": 2, "token_budget": 60, "learning_rate": 0.02, "report_seconds": 0, "precision": "float32"}


@pytest.fixture(scope="module")
def parent(command_pairs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A bundle that always writes subword 7, and so has a much higher loss than random weights."""
    folder = tmp_path_factory.mktemp("parent")
    tokenizer_file = (command_pairs / "tokenizer.model").read_bytes()
    network = ModelConfig.model_validate({"embedding_size": 32, "hidden_size": 64, "bidirectional": False, "copy": False})
    model = Seq2Seq(network, Tokenizer(tokenizer_file).vocabulary_size)
    model.decoder.output.bias.data[7] = 30.0
    save_bundle(folder, model, tokenizer_file, DecodingConfig(max_source_tokens=64, max_target_tokens=50, no_repeat_ngram=2))
    return folder


def child_config(pairs: Path, parent: str | Path, **sections: dict[str, Any]) -> TrainConfig:
    """Return a configuration that sets the data, the parent and the options in ``sections``, and nothing else."""
    values = {"data": {"train": f"{pairs}/train", "dev": f"{pairs}/dev"}, "model": {"init_from": str(parent)}}
    return TrainConfig.model_validate({name: values.get(name, {}) | sections.get(name, {}) for name in values | sections})


def test_training_starts_from_the_parent_and_names_it(command_pairs: Path, parent: Path, tmp_path: Path) -> None:
    scaling, output = {"num_workers": 2, "threads": 1}, {"path": str(tmp_path)}
    config = child_config(command_pairs, parent, training=LEARNING, scaling=scaling, output=output)
    result, records = run(config)
    first, *_, last = [record for record in records if record["kind"] == "validation"]
    parent_fingerprint = load_bundle(parent).fingerprint
    assert first["step"] == first["pairs_seen"] == 0
    assert first["dev_loss"] > 20, "random weights have a loss of log 340, which is 5.8"
    assert last["dev_loss"] < first["dev_loss"]
    assert result.fingerprint == load_bundle(tmp_path / "bundle").fingerprint != parent_fingerprint
    card = (tmp_path / "bundle/README.md").read_text()
    assert f"| started from | `{parent}`, fingerprint `{parent_fingerprint}` |" in card

    shutil.copytree(parent, tmp_path / "other")
    config_file = tmp_path / "other/config.json"
    config_file.write_text(config_file.read_text().replace('"beam_size": 1', '"beam_size": 2'))
    with pytest.raises(UserError, match=r"another --model\.init_from;"):
        run(child_config(command_pairs, tmp_path / "other", output=output))


@pytest.mark.faults
def test_parent_that_is_not_improved_is_kept(command_pairs: Path, parent: Path, tmp_path: Path) -> None:
    training = LEARNING | {"epochs": 0.1, "learning_rate": 100.0, "max_loss_rise": None, "best_by": "dev_loss"}
    run(child_config(command_pairs, parent, training=training, output={"path": str(tmp_path)}))
    kept, original = (load_bundle(folder).model.state_dict() for folder in (tmp_path / "bundle", parent))
    assert all(kept[name].equal(original[name]) for name in original)


def test_network_and_tokenizer_come_from_the_parent(command_pairs: Path, parent: Path) -> None:
    data = {"max_source_tokens": 300}
    plan = plan_training(child_config(command_pairs, parent, data=data, model={"dropout": 0.3}, decoding={"beam_size": 4}))
    config = plan.config
    assert config.model.network == load_bundle(parent).model.config.model_copy(update={"dropout": 0.3})
    assert plan.tokenizer_file == (command_pairs / "tokenizer.model").read_bytes()
    assert config.data.max_source_tokens == config.decoding.max_source_tokens == 300
    assert config.data.max_target_tokens == config.decoding.max_target_tokens == 50
    assert (config.decoding.no_repeat_ngram, config.decoding.beam_size) == (2, 4)
    assert (config.training.learning_rate, config.training.coverage) == (5e-4, 0.5)
    given = child_config(command_pairs, parent, training={"learning_rate": 1e-4})
    assert plan_training(given).config.training.learning_rate == 1e-4


def test_sample_is_the_shipped_bundle(command_pairs: Path) -> None:
    config = plan_training(child_config(command_pairs, "sample")).config
    assert config.data.max_source_tokens == load_bundle("pipeline/sample/model").decoding.max_source_tokens


@pytest.mark.parametrize(
    ("sections", "named"),
    [
        ({"model": {"hidden_size": 512}}, r"--model\.hidden_size is 512, but .* has hidden_size 64"),
        ({"model": {"copy": True}}, r"--model\.copy is True, but .* has copy False"),
        ({"model": {"init_from": "/nowhere"}}, r"/nowhere; set --model\.init_from"),
        (
            {"data": {"max_target_tokens": 40}, "decoding": {"min_target_tokens": 45}},
            r"do not fit --model\.init_from .*45 is over",
        ),
    ],
)
def test_option_that_contradicts_the_parent_is_named(
    command_pairs: Path, parent: Path, sections: dict[str, Any], named: str
) -> None:
    with pytest.raises(UserError, match=named):
        plan_training(child_config(command_pairs, parent, **sections))


def test_encoder_of_another_size_is_refused(command_pairs: Path) -> None:
    with pytest.raises(UserError, match=r"--model\.encoder_hidden_size is 32, but"):
        plan_training(child_config(command_pairs, "sample", model={"encoder_hidden_size": 32}))


def test_another_tokenizer_is_refused(command_pairs: Path, parent: Path) -> None:
    other = {"tokenizer": "pipeline/sample/model/tokenizer.model"}
    with pytest.raises(UserError, match=r"--data\.tokenizer .* is not the tokenizer"):
        run(child_config(command_pairs, parent, data=other))
