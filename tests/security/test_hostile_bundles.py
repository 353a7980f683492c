"""A bundle that lies about its size takes no memory, and runs nothing."""

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


def claim(bundle: Path, section: str | None, **values: Any) -> None:
    config = json.loads((bundle / "config.json").read_text())
    (config[section] if section else config).update(values)
    (bundle / "config.json").write_text(json.dumps(config))


@pytest.mark.parametrize(
    ("section", "values", "told"),
    [
        (None, {"vocabulary_size": 1 << 40}, "says 1099511627776 subwords, but tokenizer.model has 500"),
        ("model", {"layers": 1_000_000_000}, "model.layers: input should be less than or equal to 64"),
        ("model", {"hidden_size": 1 << 40}, "model.hidden_size: input should be less than or equal to 65536"),
        ("model", {"hidden_size": 1 << 16, "layers": 64}, "does not fit config.json"),
        ("model", {"embedding_size": 1 << 16, "tied_embeddings": False}, "does not fit config.json"),
        ("decoding", {"beam_size": 1 << 40}, "decoding.beam_size: input should be less than or equal to 1000"),
        (
            "decoding",
            {"max_target_tokens": 1 << 62},
            "decoding.max_target_tokens: input should be less than or equal to 1000000",
        ),
    ],
)
def test_what_a_bundle_claims_is_refused_before_memory_is_taken(
    bundle: Path, section: str | None, values: dict[str, Any], told: str
) -> None:
    claim(bundle, section, **values)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(UserError, match=r"config\.json") as error:
        load_bundle(bundle)
    assert told in str(error.value)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 * 1024  # KB


def test_json_of_any_depth_is_refused(bundle: Path) -> None:
    (bundle / "config.json").write_text("[" * 200_000)
    with pytest.raises(UserError, match="is not JSON"):
        load_bundle(bundle)


def test_a_header_that_claims_more_than_the_file_holds_is_refused(bundle: Path) -> None:
    header = json.dumps({"x": {"dtype": "F32", "shape": [1 << 30, 1 << 30], "data_offsets": [0, 1 << 62]}}).encode()
    (bundle / "model.safetensors").write_bytes(struct.pack("<Q", len(header)) + header)
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        load_bundle(bundle)
    (bundle / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + header)
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        load_bundle(bundle)


class _Runs:
    """What a pickle runs when it is read."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.proof}",)


def test_a_pickle_in_the_place_of_weights_is_not_run(bundle: Path, tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    (bundle / "model.safetensors").write_bytes(pickle.dumps(_Runs(proof)))
    with pytest.raises(UserError, match=r"model\.safetensors is broken"):
        load_bundle(bundle)
    assert not proof.exists()


def test_a_checkpoint_runs_nothing(tokenizer_file: bytes, tmp_path: Path) -> None:
    learner = Learner(
        Seq2Seq(ModelConfig(embedding_size=2, hidden_size=2), 500), TrainingConfig(precision="float32"), torch.device("cpu")
    )
    save_checkpoint(str(tmp_path), learner, {"minutes": 1.0}, tokenizer_file, TrainConfig(decoding=DecodingConfig()))
    assert load_checkpoint(str(tmp_path), learner) == {"minutes": 1.0}
    proof = tmp_path / "it-ran"
    torch.save({"learner": _Runs(proof), "position": {}}, tmp_path / "state.pt")
    torch.load(tmp_path / "state.pt", weights_only=False)
    assert proof.exists()  # the pickle works, where it is trusted
    proof.unlink()
    with pytest.raises(UserError, match=r"the last checkpoint is broken, or of another network \(Weights only load failed\)"):
        load_checkpoint(str(tmp_path), learner)
    assert not proof.exists()


def test_yaml_makes_plain_values_alone(tmp_path: Path) -> None:
    proof = tmp_path / "it-ran"
    config = tmp_path / "config.yaml"
    config.write_text(f"input: !!python/object/apply:os.system ['touch {proof}']\n")
    ran = subprocess.run(
        [sys.executable, "-m", "jobs.status", "--config", str(config)], capture_output=True, text=True, check=False
    )
    assert ran.returncode == 2
    assert "is not YAML that can be used" in ran.stderr
    assert not proof.exists()
