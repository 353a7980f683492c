"""Malicious bundles and checkpoints: false sizes allocate no memory, and no code is executed."""

from __future__ import annotations

import json
import os
import pickle
import resource
import shutil
import struct
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.config.model import DecodingConfig, ModelConfig
from pipeline.config.train import TrainConfig, TrainingConfig
from pipeline.errors import UserError
from pipeline.model.bundle import load_bundle
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.checkpoints import load_checkpoint, save_checkpoint
from pipeline.training.learner import Learner


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))


def edit_config(bundle: Path, section: str | None, **values: Any) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (config[section] if section else config).update(values)
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (None, {"vocabulary_size": 1 << 40}, "1099511627776"),
        ("model", {"layers": 1_000_000_000}, "model.layers"),
        ("model", {"hidden_size": 1 << 40}, "model.hidden_size"),
        ("model", {"hidden_size": 1 << 16, "layers": 64}, "does not fit config.json"),
        ("model", {"embedding_size": 1 << 16, "tied_embeddings": False}, "does not fit config.json"),
        ("decoding", {"beam_size": 1 << 40}, "decoding.beam_size"),
        ("decoding", {"max_target_tokens": 1 << 62}, "decoding.max_target_tokens"),
    ],
)
def test_false_sizes_are_errors_before_memory_is_allocated(
    bundle: Path, section: str | None, values: dict[str, Any], message: str
) -> None:
    edit_config(bundle, section, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"config\.json") as error:
        load_bundle(bundle)
    assert message in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KB


def test_deeply_nested_json_is_an_error(bundle: Path) -> None:
    (bundle / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is not JSON"):
        load_bundle(bundle)


def test_a_header_beyond_the_end_of_the_file_is_an_error(bundle: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}}).encode()
    (bundle / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        load_bundle(bundle)
    (bundle / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + header)
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        load_bundle(bundle)


class Exploit:
    """Creates a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_instead_of_weights_is_not_executed(bundle: Path, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    (bundle / "model.safetensors").write_bytes(pickle.dumps(Exploit(proof)))
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        load_bundle(bundle)
    assert not proof.exists()


def test_a_pickle_in_a_checkpoint_is_not_executed(tokenizer_file: bytes, tmp_path: Path) -> None:
    learner = Learner(
        Seq2Seq(ModelConfig(embedding_size=2, hidden_size=2), 500), TrainingConfig(precision="float32"), torch.device("cpu")
    )
    save_checkpoint(str(tmp_path), learner, {"minutes": 1.0}, tokenizer_file, TrainConfig(decoding=DecodingConfig()))
    assert load_checkpoint(str(tmp_path), learner) == {"minutes": 1.0}
    proof = tmp_path / "it-ran"
    torch.save({"learner": Exploit(proof), "position": {}}, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert proof.exists()  # the pickle works if it is trusted
    proof.unlink()
    with pytest.raises(UserError, match="Weights only load failed"):
        load_checkpoint(str(tmp_path), learner)
    assert not proof.exists()


def test_yaml_tags_are_not_executed(tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    config = tmp_path / "config.yaml"
    config.write_text(f"input: !!python/object/apply:os.system ['touch {proof}']\n")
    result = subprocess.run(
        [sys.executable, "-m", "jobs.status", "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert result.returncode == 2
    assert "YAML" in result.stderr
    assert not proof.exists()
