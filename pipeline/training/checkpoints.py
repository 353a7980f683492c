"""Checkpoints of a training: save, upload, load, and keep out the writers of an earlier run.

A checkpoint is a folder with a bundle and ``state.pt``: optimizer, loss scaler, steps, position in the data, and the weights
if the bundle holds their moving average. It has no state of random generators: learner.py reseeds them at each step.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import re
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray.train
import torch

from pipeline.config.train import TrainConfig
from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location
from pipeline.model.bundle import FILES, bundle_from_files, save_bundle
from pipeline.training.learner import Learner

CHECKPOINTS, BUNDLE = "checkpoints", "bundle"
_STATE = "state.pt"


def save_checkpoint(
    folder: str, learner: Learner, position: dict[str, Any], tokenizer_file: bytes, config: TrainConfig
) -> None:
    """Write a checkpoint to a local folder. ``position`` holds tensors, numbers, strings, and lists and dicts of them."""
    save_bundle(Path(folder) / BUNDLE, learner.average, tokenizer_file, config.decoding)
    torch.save({"learner": learner.state_dict(), "position": position}, Path(folder) / _STATE)


def load_checkpoint(folder: str, learner: Learner) -> dict[str, Any]:
    """Load a checkpoint from a local folder into the learner and return the position. Only tensors and values are unpickled.

    Raises:
        UserError: the checkpoint is broken.
        OSError, MemoryError, torch.OutOfMemoryError: it could not be read; a restart may help.
    """
    try:
        files = {name: (Path(folder) / BUNDLE / name).read_bytes() for name in FILES}
        content = (Path(folder) / _STATE).read_bytes()
    except FileNotFoundError as error:
        raise _broken(error) from None
    try:
        bundle = bundle_from_files(files, BUNDLE, learner.device)
        learner.average.load_state_dict(bundle.model.state_dict())
        # From memory: torch raises OSError for a broken file, too.
        state = torch.load(io.BytesIO(content), map_location=learner.device, weights_only=True)
        learner.load_state_dict(state["learner"])
        position: dict[str, Any] = state["position"]
    except (MemoryError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # torch does not document what it raises
        raise _broken(error) from None
    return position


def _broken(error: Exception) -> UserError:
    return UserError(
        f"the last checkpoint is broken or has another network ({re.split('; |[.] ', describe_error(error))[0][:200]}); "
        f"delete {CHECKPOINTS}/ in the folder of --output.path to start over"
    )


@dataclass(frozen=True)
class WriterFence:
    """Keep a run from writing checkpoints once a later run has started in the same output folder.

    The workers of a killed driver live on for seconds and must not write next to those of the next run.

    Attributes:
        folder: the output folder as the driver opened it: a worker may resolve relative paths differently.
        run_id: id of the run that this fence belongs to.
    """

    folder: Location
    run_id: str

    @property
    def file(self) -> Location:
        """The file with the id of the latest run."""
        return self.folder.child("run_id")

    def check(self) -> None:
        """Raise UserError if a later run has started, or OSError if the file cannot be read."""
        with _user_error_as_os_error():
            latest = self.file.read().decode()
        if latest != self.run_id:
            raise UserError(f"another run has started in {self.folder.uri}; this run stops")

    def new_local_folder(self) -> str:
        """Create a folder on this machine for a checkpoint that is about to be uploaded."""
        return tempfile.mkdtemp(prefix=self._local_prefix)

    def remove_local_folders(self) -> None:
        """Remove the local folders that killed workers left on this machine. Raises what ``check`` raises."""
        self.check()
        for folder in Path(tempfile.gettempdir()).glob(f"{self._local_prefix}*"):
            shutil.rmtree(folder, ignore_errors=True)

    @property
    def _local_prefix(self) -> str:
        target = f"{self.folder.filesystem.type_name} {self.folder.uri} {self.folder.path}"
        return f"nightshift-checkpoint-{hashlib.sha256(target.encode()).hexdigest()[:16]}-"


def upload_checkpoint(fence: WriterFence, local: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
    """Copy a local checkpoint to the output folder and return the copy.

    Ray Train would use ``pyarrow.fs.copy_files``, which does not name the object that failed. The local folder stays if the
    upload fails, since Ray Train may retry it; restarted workers remove it.

    Raises:
        OSError: a file could not be written; a restart may help.
        UserError: a later run has started, so this checkpoint does not count.
    """
    folder = fence.folder.child(CHECKPOINTS).child(name)
    for path in sorted(Path(local.path).rglob("*")):
        if path.is_file():
            with pa.memory_map(str(path)) as file, _user_error_as_os_error():
                folder.child(path.relative_to(local.path).as_posix()).write_with_retry(file.read_buffer())
    fence.check()
    return ray.train.Checkpoint(folder.path, folder.filesystem)


@contextlib.contextmanager
def _user_error_as_os_error() -> Iterator[None]:
    """Turn a storage failure into OSError: a UserError would end the training, although restarted workers may succeed."""
    try:
        yield
    except UserError as error:
        raise OSError(str(error)) from None
