"""What a training leaves in its output folder: checkpoints to go on from, and the bundle of the best one.

    <output>/config.yaml     the configuration of the last start
    <output>/train.jsonl     the records that jobs.train has shown; written when a checkpoint is kept
    <output>/training.html   the same for people (reporting/), and tensorboard/ for TensorBoard
    <output>/identity.json   what must stay the same: network, tokenizer, and what the best checkpoint is chosen by
    <output>/run_id          the run that may write checkpoints: the one that was started last
    <output>/checkpoints/    Ray Train's folder: the best and the last checkpoint, and its record of them, which it writes in
                             place; checkpoints.json is a copy for when that was cut short
    <output>/bundle/         the best checkpoint's model; README.md is written last, so with it the bundle is whole

A checkpoint is a bundle and ``state.pt``: optimizer, loss scaler, steps, position in the data, and the weights where the
bundle has their moving average. The state of random generators is not in it: loop.py does without. Any URI that pyarrow's
filesystems know can be the output folder.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import re
import shutil
import tempfile
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch
import yaml

from pipeline.config.train import TrainConfig
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.model.bundle import FILES, bundle_from_files, load_bundle, save_bundle
from pipeline.training.learner import Learner
from pipeline.training.model_card import model_card

CHECKPOINTS = "checkpoints"
_RECORD, _RECORD_COPY = "checkpoint_manager_snapshot.json", "checkpoints.json"
_WRITTEN_S = 2.0
"""In which a record that is being written is whole."""
_IDENTITY = {
    "model": "--model",
    "tokenizer_sha256": "--data.tokenizer",
    "best_by": "--training.best_by",
    "dev_sha256": "--data.dev or --training.validate_rows",
}
"""What must stay the same, and what sets it: other development pairs would give figures that nothing compares with."""
_BUNDLE, _STATE, _CARD = "bundle", "state.pt", "README.md"


def save_checkpoint(
    folder: str, learner: Learner, position: dict[str, Any], tokenizer_file: bytes, config: TrainConfig
) -> None:
    """Write a checkpoint to a local folder. position: tensors, numbers, strings, and lists and dicts of them."""
    save_bundle(Path(folder) / _BUNDLE, learner.average, tokenizer_file, config.decoding)
    torch.save({"learner": learner.state_dict(), "position": position}, Path(folder) / _STATE)


def upload_checkpoint(fence: WriterFence, local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copy a local checkpoint to its place in the output folder; the one that is there.

    Ray Train itself would do it by ``pyarrow.fs.copy_files``, which says nothing of an object that could not be written.

    The local one stays where that fails, for Ray Train tries some failures again: workers that start anew remove it.

    Raises:
        OSError: a file could not; a restart may mend it.
        UserError: another run was started meanwhile; this checkpoint is not to count.
    """
    folder = fence.folder.child(CHECKPOINTS).child(name)
    for path in sorted(Path(local.path).rglob("*")):
        if path.is_file():
            with pa.memory_map(str(path)) as file, _mended_by_a_restart():
                folder.child(path.relative_to(local.path).as_posix()).write_with_retry(file.read_buffer())
    fence.check()
    return ray.train.Checkpoint(folder.path, folder.filesystem)


@contextlib.contextmanager
def _mended_by_a_restart() -> Iterator[None]:
    """Storage that fails is no error of the user's while workers may be started again."""
    try:
        yield
    except UserError as error:
        raise OSError(str(error)) from None


def load_checkpoint(folder: str, learner: Learner) -> dict[str, Any]:
    """Give the learner its state of a checkpoint in a local folder; returns the position.

    Raises:
        UserError: the checkpoint is broken. Nothing in it is run: tensors and plain values alone are unpickled.
        OSError, MemoryError, torch.OutOfMemoryError: it cannot be read now.
    """
    try:
        files = {name: (Path(folder) / _BUNDLE / name).read_bytes() for name in FILES}
        bundle = bundle_from_files(files, _BUNDLE, learner.device)
        learner.average.load_state_dict(bundle.model.state_dict())
        state = torch.load(Path(folder) / _STATE, map_location=learner.device, weights_only=True)
        learner.load_state_dict(state["learner"])
        position: dict[str, Any] = state["position"]
    except Exception as error:  # what a broken one makes torch raise is no part of its interface
        is_of_now = isinstance(error, (OSError, MemoryError, torch.OutOfMemoryError))
        if is_of_now and not isinstance(error, FileNotFoundError):  # a restart may mend it
            raise
        raise UserError(
            f"the last checkpoint is broken, or of another network ({re.split('; |[.] ', describe_error(error))[0][:200]}); "
            f"delete {CHECKPOINTS}/ in the folder of --output.path to start over"
        ) from None
    return position


@dataclass(frozen=True)
class KeptCheckpoints:
    """The checkpoints of a training. names: of their folders. *_metrics: what the validation of one found."""

    names: frozenset[str]
    best: ray.train.Checkpoint
    best_metrics: dict[str, Any]
    last_metrics: dict[str, Any]


@dataclass(frozen=True)
class WriterFence:
    """Keeps a run from writing checkpoints once another run has been started.

    The workers of a driver that was killed live on for seconds. They must not write beside those of the next run. folder: the
    output folder, as the driver found it: where paths are relative, workers may start from elsewhere.
    """

    folder: Location
    run_id: str

    @property
    def file(self) -> Location:
        """Holds the id of the run that was started last."""
        return self.folder.child("run_id")

    def check(self) -> None:
        """Raises UserError if another run was started, and OSError, which a restart may mend, if that cannot be known."""
        with _mended_by_a_restart():
            holder = self.file.read().decode()
        if holder != self.run_id:
            raise UserError(f"another run has been started that writes to {self.folder.uri}; this one ends")

    def local_folder(self) -> str:
        """A new folder on this machine for a checkpoint on its way to the output folder."""
        return tempfile.mkdtemp(prefix=self._local_prefix)

    def clear_local(self) -> None:
        """Remove what workers that are no more left here of such folders, before there is a new one.

        Raises:
            UserError, OSError: as ``check`` does.
        """
        self.check()
        for left in Path(tempfile.gettempdir()).glob(f"{self._local_prefix}*"):
            shutil.rmtree(left, ignore_errors=True)

    @property
    def _local_prefix(self) -> str:
        target = f"{self.folder.filesystem.type_name} {self.folder.uri} {self.folder.path}"
        return f"nightshift-checkpoint-{hashlib.sha256(target.encode()).hexdigest()[:16]}-"


class TrainingFolder:
    """The output folder of a training.

    Raises:
        UserError: its URI is not understood.
    """

    def __init__(self, config: TrainConfig) -> None:
        self._config = config
        self.root: Location = open_location(config.output.path, "--output.path")
        self.bundle = self.root.child("bundle")

    def claim(self, tokenizer_file: bytes, dev: dict[str, list[str]]) -> None:
        """Make the folder this training's. dev: the development pairs, by column.

        Raises:
            UserError: it holds a training with another network or tokenizer, or one whose checkpoints were compared by other
                figures; or it cannot be written.
        """
        identity = {
            "model": self._config.model.model_dump(by_alias=True),
            "tokenizer_sha256": hashlib.sha256(tokenizer_file).hexdigest(),
            "best_by": self._config.training.best_by,
            "dev_sha256": hashlib.sha256(json.dumps(dev).encode()).hexdigest(),
        }
        noted = self.root.child("identity.json")
        if not noted.exists():
            noted.write((json.dumps(identity, indent=2) + "\n").encode())
            return
        try:
            before = dict(json.loads(noted.read()))
        except (ValueError, TypeError):
            raise UserError(f"{noted.uri} is broken; set another --output.path") from None
        if others := [option for name, option in _IDENTITY.items() if before.get(name, identity[name]) != identity[name]]:
            raise UserError(
                f"{self.root.uri} holds a training with another {', '.join(others)}; set what it was, or another --output.path"
            )

    def take_over(self, kept: KeptCheckpoints | None) -> WriterFence:
        """Begin a run, and note its configuration; one that still writes here ends at its next checkpoint.

        What killed uploads left behind goes, if it is older than a checkpoint that counts: what is newer may yet count.
        """
        fence = WriterFence(self.root, uuid.uuid4().hex)
        fence.file.write(fence.run_id.encode())
        self.root.child("config.yaml").write(config_yaml(self._config).encode())
        if kept is not None:
            copy_record(self.root)
            checkpoints = self.root.child(CHECKPOINTS)
            for name in checkpoints.names():
                # Ray Train names them by the time.
                if name.startswith("checkpoint_") and name < max(kept.names) and name not in kept.names:
                    with contextlib.suppress(UserError):  # the run before may be removing it
                        checkpoints.child(name).remove_folder()
        return fence

    def kept(self) -> KeptCheckpoints | None:
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
            raise UserError(f"cannot read {checkpoints.uri}: {describe_error(error)}; set --output.path") from None
        except Exception as error:  # what it raises for a broken one is no part of its interface
            if self._restore_record():
                return self.kept()
            raise UserError(
                f"{checkpoints.uri} cannot be gone on from ({describe_error(error)}); delete it to begin anew"
            ) from None
        found = result.best_checkpoints or []
        if result.metrics is None or not found:
            return None
        by = self._config.training.best_by
        best, metrics = max(found, key=lambda each: each[1][by] * (-1 if by == "dev_loss" else 1))
        names = frozenset(checkpoint.path.rstrip("/").rpartition("/")[2] for checkpoint, _ in found)
        return KeptCheckpoints(names, best, metrics, result.metrics)

    def _restore_record(self) -> bool:
        """Put the copy of Ray Train's record in its place; whether there was one that is another."""
        record, copy = self.root.child(CHECKPOINTS).child(_RECORD), self.root.child(_RECORD_COPY)
        broken = record.read()
        if not copy.exists() or copy.read() == broken:
            return False
        time.sleep(_WRITTEN_S)
        if record.read() == broken:  # else another run has been writing it
            record.write(copy.read())
        return True

    def write_bundle(self, kept: KeptCheckpoints, pairs: int) -> None:
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


def copy_record(root: Location) -> None:
    """Copy Ray Train's record of checkpoints, once it is whole, beside their folder.

    While the next is written, the checkpoints of this one are still there: Ray Train removes old ones after it.
    """
    root.child(_RECORD_COPY).write(root.child(CHECKPOINTS).child(_RECORD).read())


def config_yaml(config: TrainConfig) -> str:
    """The whole configuration, as jobs.train reads it."""
    return yaml.safe_dump(config.model_dump(mode="json", by_alias=True), sort_keys=False, allow_unicode=True)
