"""Bundles load as they were saved, and errors name what is broken."""

from __future__ import annotations

import hashlib
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from random_models import random_model
from safetensors.torch import load_file, save_file

from pipeline.config.model import DecodingConfig
from pipeline.config.prepare import TokenizerConfig
from pipeline.data.tokenizer import train_tokenizer
from pipeline.errors import UserError
from pipeline.model.bundle import load_bundle, save_bundle

SHAPE = {"cell": "lstm", "attention": "additive", "bidirectional": True, "copy": True}
DECODING = DecodingConfig(max_source_tokens=30, max_target_tokens=7, min_target_tokens=2, no_repeat_ngram=4)


@pytest.fixture
def bundle(tokenizer_file: bytes, tmp_path: Path) -> Path:
    save_bundle(tmp_path / "bundle", random_model(SHAPE, 500), tokenizer_file, DECODING)
    return tmp_path / "bundle"


@pytest.mark.parametrize("shape", [SHAPE, {"cell": "gru", "attention": "none", "copy": False, "tied_embeddings": False}])
def test_bundle_loads_as_it_was_saved(shape: dict[str, Any], tokenizer_file: bytes, tmp_path: Path) -> None:
    model = random_model(shape, 500)
    fingerprint = save_bundle(tmp_path, model, tokenizer_file, DECODING)
    loaded = load_bundle(tmp_path)
    assert loaded.model.config == model.config
    assert loaded.decoding == DECODING
    assert loaded.tokenizer_file == tokenizer_file
    assert loaded.fingerprint == fingerprint
    assert not loaded.model.training
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.model.state_dict()[name], tensor), name


def test_float16_halves_the_file_and_loads_as_float32(tokenizer_file: bytes, tmp_path: Path) -> None:
    model = random_model(SHAPE, 500)
    save_bundle(tmp_path / "full", model, tokenizer_file, DECODING)
    save_bundle(tmp_path / "half", model, tokenizer_file, DECODING, dtype=torch.float16)
    full, half = ((tmp_path / name / "model.safetensors").stat().st_size for name in ("full", "half"))
    assert half < 0.6 * full
    loaded = load_bundle(tmp_path / "half").model.state_dict()
    for name, tensor in model.state_dict().items():
        assert loaded[name].dtype == torch.float32
        assert torch.equal(loaded[name], tensor.half().float()), name


def test_shared_embedding_is_stored_once(bundle: Path) -> None:
    names = set(load_file(bundle / "model.safetensors"))
    assert "encoder.embedding.weight" in names
    assert not {"decoder.embedding.weight", "decoder.output.weight"} & names
    loaded = load_bundle(bundle).model
    assert loaded.decoder.output.weight is loaded.encoder.embedding.weight


def test_format_1_keeps_its_names_and_shapes(bundle: Path) -> None:
    """A change here makes existing bundles unreadable. Such a format needs the next number."""
    assert {name: list(tensor.shape) for name, tensor in load_file(bundle / "model.safetensors").items()} == {
        "decoder.attention.to_keys.weight": [12, 12],
        "decoder.attention.to_query.bias": [12],
        "decoder.attention.to_query.weight": [12, 12],
        "decoder.attention.to_score.weight": [1, 12],
        "decoder.copy_gate.bias": [1],
        "decoder.copy_gate.weight": [1, 34],
        "decoder.output.bias": [500],
        "decoder.readout.0.bias": [10],
        "decoder.readout.0.weight": [10, 24],
        "decoder.recurrence.bias_hh_l0": [48],
        "decoder.recurrence.bias_ih_l0": [48],
        "decoder.recurrence.weight_hh_l0": [48, 12],
        "decoder.recurrence.weight_ih_l0": [48, 10],
        "encoder.bridges.0.bias": [12],
        "encoder.bridges.0.weight": [12, 24],
        "encoder.bridges.1.bias": [12],
        "encoder.bridges.1.weight": [12, 24],
        "encoder.embedding.weight": [500, 10],
        "encoder.layers.0.bias_hh_l0": [48],
        "encoder.layers.0.bias_hh_l0_reverse": [48],
        "encoder.layers.0.bias_ih_l0": [48],
        "encoder.layers.0.bias_ih_l0_reverse": [48],
        "encoder.layers.0.weight_hh_l0": [48, 12],
        "encoder.layers.0.weight_hh_l0_reverse": [48, 12],
        "encoder.layers.0.weight_ih_l0": [48, 11],
        "encoder.layers.0.weight_ih_l0_reverse": [48, 11],
        "encoder.memory_bridge.weight": [12, 24],
    }
    assert json.loads((bundle / "config.json").read_text()).keys() == {
        "format",
        "model",
        "vocabulary_size",
        "tokenizer_sha256",
        "decoding",
    }


def test_fingerprint_covers_all_three_files(bundle: Path, tokenizer_file: bytes, abstracts: list[str], tmp_path: Path) -> None:
    model = random_model(SHAPE, 500)
    other_model = random_model(SHAPE, 500, seed=2)
    other_tokenizer = train_tokenizer(abstracts[:50], TokenizerConfig(vocabulary_size=500, algorithm="bpe"))
    fingerprint = load_bundle(bundle).fingerprint
    assert save_bundle(tmp_path / "again", model, tokenizer_file, DECODING) == fingerprint
    changed = {
        save_bundle(tmp_path / "options", model, tokenizer_file, DecodingConfig()),
        save_bundle(tmp_path / "weights", other_model, tokenizer_file, DECODING),
        save_bundle(tmp_path / "tokenizer", model, other_tokenizer, DECODING),
    }
    assert len(changed | {fingerprint}) == 4
    (bundle / "README.md").write_text("a model card")
    assert load_bundle(bundle).fingerprint == fingerprint


def edited(**values: Any) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        config = json.loads((bundle / "config.json").read_text()) | values
        (bundle / "config.json").write_text(json.dumps({key: value for key, value in config.items() if value != "removed"}))

    return edit


def model_edited(**values: Any) -> Callable[[Path], None]:
    return lambda bundle: edited(model=json.loads((bundle / "config.json").read_text())["model"] | values)(bundle)


def tensors_edited(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(bundle: Path) -> None:
        tensors = load_file(bundle / "model.safetensors")
        change(tensors)
        save_file(tensors, bundle / "model.safetensors")

    return edit


def truncated(name: str, size: int) -> Callable[[Path], None]:
    return lambda bundle: (bundle / name).write_bytes((bundle / name).read_bytes()[:size]) and None


@pytest.mark.parametrize(
    ("break_bundle", "message"),
    [
        (lambda bundle: shutil.rmtree(bundle), "no model bundle at"),
        (lambda bundle: (bundle / "config.json").unlink(), "config.json"),
        (lambda bundle: (bundle / "model.safetensors").unlink(), "model.safetensors"),
        (lambda bundle: (bundle / "tokenizer.model").unlink(), "tokenizer.model"),
        (truncated("config.json", 40), "config.json is not JSON"),
        (lambda bundle: (bundle / "config.json").write_bytes(b"\xff\xfe"), "config.json is not JSON"),
        (lambda bundle: (bundle / "config.json").write_text("[]"), "bundle format None"),
        (edited(format=2, more="fields"), "bundle format 2"),
        (edited(decoding="removed"), "decoding must be set"),
        (edited(vocabulary_size="many"), "vocabulary_size"),
        (model_edited(cell="rnn"), "model.cell"),
        (model_edited(attention="none"), "copy: true"),
        (edited(vocabulary_size=400), "400 subwords"),
        (truncated("tokenizer.model", 999), "tokenizer.model is not"),
        (truncated("model.safetensors", 5000), "model.safetensors is broken"),
        (truncated("model.safetensors", 0), "model.safetensors is broken"),
        (model_edited(hidden_size=24), "23 tensors: decoder.attention.to_keys.weight is [12, 12], not [24, 24]"),
        (model_edited(layers=2), "decoder.recurrence.bias_hh_l1 is missing, not [48]"),
        (tensors_edited(lambda tensors: tensors.pop("decoder.output.bias")), "decoder.output.bias is missing, not [500]"),
        (tensors_edited(lambda tensors: tensors.update(more=torch.ones(1))), "1 tensors: more is [1], not missing"),
    ],
)
def test_error_names_what_is_broken(break_bundle: Callable[[Path], None], message: str, bundle: Path) -> None:
    break_bundle(bundle)
    with pytest.raises(UserError) as error:
        load_bundle(bundle)
    assert message in str(error.value)
    assert str(bundle) in str(error.value)
    assert "\n" not in str(error.value)


def test_file_that_is_not_a_tokenizer(bundle: Path) -> None:
    (bundle / "tokenizer.model").write_bytes(b"nothing")
    edited(tokenizer_sha256=hashlib.sha256(b"nothing").hexdigest())(bundle)
    with pytest.raises(UserError, match="SentencePiece"):
        load_bundle(bundle)


def test_nothing_is_unpickled(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("something was unpickled")

    for module, name in ((torch, "load"), (pickle, "load"), (pickle, "loads"), (pickle, "Unpickler")):
        monkeypatch.setattr(module, name, refuse)
    load_bundle(bundle)
