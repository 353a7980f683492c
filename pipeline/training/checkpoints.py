"""What a training leaves in its output folder: checkpoints to go on from, and the bundle of the best one.

    <output>/config.yaml     the configuration of the last start
    <output>/train.jsonl     the records that jobs.train has shown; written when a checkpoint is kept
    <output>/training.html   the same for people (reporting/), and tensorboard/ for TensorBoard
    <output>/identity.json   network and tokenizer, which must stay the same
    <output>/run_id          the run that may write checkpoints: the one that was started last
    <output>/checkpoints/    Ray Train's folder: the best and the last checkpoint, and its record of them
    <output>/bundle/         the best checkpoint's model; README.md is written last, so with it the bundle is whole

A checkpoint is a bundle and ``state.pt``: optimizer, steps, position in the data. The state of random generators is not in
it: loop.py does without. Any URI that pyarrow's filesystems know can be the output folder.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import tempfile
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch
import yaml

from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.model.bundle import FILES, load_bundle, save_bundle
from pipeline.storage import Place, in_words, place
from pipeline.training.card import model_card
from pipeline.training.loop import Learner

CHECKPOINTS = "checkpoints"
_BUNDLE, _STATE, _CARD = "bundle", "state.pt", "README.md"


def save_checkpoint(
    folder: str, learner: Learner, position: dict[str, Any], tokenizer_file: bytes, config: TrainConfig
) -> None:
    """Write a checkpoint to a local folder. position: tensors, numbers, strings, and lists and dicts of them."""
    save_bundle(Path(folder) / _BUNDLE, learner.average, tokenizer_file, config.decoding)
    torch.save({"learner": learner.state_dict(), "position": position}, Path(folder) / _STATE)


def upload_checkpoint(root: Place, local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copy a local checkpoint to its place in the output folder; the one that is there.

    Ray Train itself would do it by ``pyarrow.fs.copy_files``, which says nothing of an object that could not be written.

    Raises:
        OSError: a file could not; a restart may mend it.
    """
    folder = root.child(CHECKPOINTS).child(name)
    try:
        for path in sorted(Path(local.path).rglob("*")):
            if path.is_file():
                with pa.memory_map(str(path)) as file:
                    folder.child(path.relative_to(local.path).as_posix()).write_patiently(file.read_buffer())
    except BaseException as error:
        shutil.rmtree(local.path, ignore_errors=True)  # Ray Train does it after those alone that were uploaded
        if isinstance(error, UserError):
            raise OSError(str(error)) from None
        raise
    return ray.train.Checkpoint(folder.path, folder.filesystem)


def load_checkpoint(folder: str, learner: Learner) -> dict[str, Any]:
    """Give the learner its state of a checkpoint in a local folder; returns the position.

    Raises:
        UserError: the checkpoint is broken. Nothing in it is run: tensors and plain values alone are unpickled.
        OSError, MemoryError, torch.OutOfMemoryError: it cannot be read now.
    """
    bundle = load_bundle(Path(folder) / _BUNDLE, learner.device)
    try:
        learner.average.load_state_dict(bundle.model.state_dict())
        state = torch.load(Path(folder) / _STATE, map_location=learner.device, weights_only=True)
        learner.load_state_dict(state["learner"])
        position: dict[str, Any] = state["position"]
    except (OSError, MemoryError, torch.OutOfMemoryError):  # which a restart may mend
        raise
    except Exception as error:  # what a broken one makes torch raise is no part of its interface
        raise UserError(
            f"{_STATE} of a checkpoint is broken, or of another network ({in_words(error)[:200]}); delete the checkpoint"
        ) from None
    return position


@dataclass(frozen=True)
class Kept:
    """The checkpoints of a training. *_metrics: what the validation of one found."""

    best: ray.train.Checkpoint
    best_metrics: dict[str, Any]
    last_metrics: dict[str, Any]


@dataclass(frozen=True)
class Fence:
    """Keeps a run from writing checkpoints once another run has been started.

    The workers of a driver that was killed live on for seconds. They must not write beside those of the next run. folder: the
    output folder, as the driver found it: where paths are relative, workers may start from elsewhere.
    """

    folder: Place
    run_id: str

    @property
    def file(self) -> Place:
        """Holds the id of the run that was started last."""
        return self.folder.child("run_id")

    def check(self) -> None:
        """Raises UserError if another run was started, and OSError, which a restart may mend, if that cannot be known."""
        try:
            holder = self.file.read().decode()
        except UserError as error:
            raise OSError(str(error)) from None
        if holder != self.run_id:
            raise UserError(f"another run has been started that writes to {self.folder.uri}; this one ends")


class TrainingFolder:
    """The output folder of a training.

    Raises:
        UserError: its URI is not understood.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.root: Place = place(config.output.path, "--output.path")
        self.bundle = self.root.child("bundle")

    def claim(self, tokenizer_file: bytes) -> None:
        """Make the folder this training's.

        Raises:
            UserError: it holds the training of another network or tokenizer, or cannot be written.
        """
        identity = {
            "model": self._config.model.model_dump(by_alias=True),
            "tokenizer_sha256": hashlib.sha256(tokenizer_file).hexdigest(),
        }
        content = (json.dumps(identity, indent=2) + "\n").encode()
        noted = self.root.child("identity.json")
        if not noted.exists():
            noted.write(content)
        elif noted.read() != content:
            raise UserError(f"{self.root.uri} holds the training of another model or tokenizer; set another --output.path")

    def take_over(self) -> Fence:
        """Begin a run, and note its configuration; one that still writes here ends at its next checkpoint."""
        fence = Fence(self.root, uuid.uuid4().hex)
        fence.file.write(fence.run_id.encode())
        self.root.child("config.yaml").write(config_yaml(self._config).encode())
        return fence

    def kept(self) -> Kept | None:
        """The checkpoints so far; None if there is none yet.

        Raises:
            UserError: Ray Train's record of them cannot be read.
        """
        checkpoints = self.root.child(CHECKPOINTS)
        try:
            result = ray.train.Result.from_path(checkpoints.path, storage_filesystem=checkpoints.filesystem)
        except RuntimeError:  # how Ray Train says that there is no record
            return None
        except OSError as error:
            raise UserError(f"cannot read {checkpoints.uri}: {in_words(error)}; set --output.path") from None
        except Exception as error:  # what it raises for a broken one is no part of its interface
            raise UserError(f"{checkpoints.uri} cannot be gone on from ({in_words(error)}); delete it to begin anew") from None
        found = result.best_checkpoints or []
        if result.metrics is None or not found:
            return None
        by = self._config.training.best_by
        best, metrics = max(found, key=lambda each: each[1][by] * (-1 if by == "dev_loss" else 1))
        return Kept(best, metrics, result.metrics)

    def write_bundle(self, kept: Kept, pairs: int) -> None:
        """Write the best checkpoint's model, with a model card, unless this very bundle is there whole already.

        Args:
            pairs: of the training data.
        """
        card = model_card(self._config, config_yaml(self._config), pairs, kept.best_metrics, kept.last_metrics)
        with kept.best.as_directory() as checkpoint, tempfile.TemporaryDirectory() as folder:
            trained = load_bundle(Path(checkpoint) / _BUNDLE)
            dtype = getattr(torch, self._config.training.export_dtype)
            save_bundle(folder, trained.model, trained.tokenizer_file, self._config.decoding, dtype, card)
            files = [(self.bundle.child(name), (Path(folder) / name).read_bytes()) for name in (*FILES, _CARD)]
        readme = self.bundle.child(_CARD)
        if readme.exists():
            if all(file.exists() and file.read() == content for file, content in files[:-1]):
                return
            readme.filesystem.delete_file(readme.path)
        for file, content in files:
            file.write(content)


def config_yaml(config: TrainConfig) -> str:
    """The whole configuration, as jobs.train reads it."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
