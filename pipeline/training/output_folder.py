"""The output folder of a training.

    <output>/config.yaml     configuration of the latest run
    <output>/train.jsonl     records shown by jobs.train; written with each checkpoint
    <output>/training.html   the same as a report (report/); tensorboard/ holds it for TensorBoard
    <output>/identity.json   what must stay the same: network, parent, tokenizer, and how the best checkpoint is chosen
    <output>/run_id          id of the latest run, the only one that may write checkpoints
    <output>/checkpoints/    Ray Train's folder: the best and the last checkpoint, and its record of them. It overwrites the
                             record in place; checkpoints.json is a copy in case a kill truncates it
    <output>/bundle/         model of the best checkpoint; README.md is written last and marks it complete

The folder can be any URI that pyarrow's filesystems support.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import tempfile
import time
import uuid
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ray.train
import torch

from pipeline.errors import UserError, describe_error
from pipeline.io.location import Location, open_location
from pipeline.model.bundle import FILES, load_bundle, save_bundle
from pipeline.training.checkpoints import BUNDLE, CHECKPOINTS, WriterFence
from pipeline.training.model_card import config_yaml, model_card
from pipeline.training.plan import TrainingPlan

_RECORD, _RECORD_COPY = "checkpoint_manager_snapshot.json", "checkpoints.json"
_RECORD_WRITE_S = 2.0
"""A record that is still being written is complete after this time."""

_IDENTITY_OPTIONS = {
    "model": "--model",
    "parent": "--model.init_from",
    "tokenizer_sha256": "--data.tokenizer",
    "best_by": "--training.best_by",
    "dev_sha256": "--data.dev or --training.validate_rows",
}
"""Keys of identity.json and the options that set them. With other development pairs, figures could not be compared."""


@dataclass(frozen=True)
class KeptCheckpoints:
    """Folder names of a training's checkpoints, the best one, and the validation records of the best and the last."""

    names: frozenset[str]
    best: ray.train.Checkpoint
    best_metrics: dict[str, Any]
    last_metrics: dict[str, Any]


class TrainingFolder:
    """The output folder of a training.

    Args:
        plan: the training.

    Raises:
        UserError: the URI is not supported.
    """

    def __init__(self, plan: TrainingPlan) -> None:
        self._config, self._parent, self._tokenizer_file = plan.config, plan.parent, plan.tokenizer_file
        self.root: Location = open_location(self._config.output.path, "--output.path")
        self.bundle = self.root.child(BUNDLE)

    def claim(self, dev: dict[str, list[Any]]) -> None:
        """Check that the folder belongs to this training, or write its identity. ``dev`` holds the development pairs by column.

        Raises:
            UserError: it holds a training with another identity, or it cannot be written.
        """
        identity = {
            "model": self._config.model.network.model_dump(by_alias=True),
            "parent": self._parent.fingerprint if self._parent else None,
            "tokenizer_sha256": hashlib.sha256(self._tokenizer_file).hexdigest(),
            "best_by": self._config.training.best_by,
            "dev_sha256": hashlib.sha256(json.dumps(dev).encode()).hexdigest(),
        }
        file = self.root.child("identity.json")
        if not file.exists():
            file.write((json.dumps(identity, indent=2) + "\n").encode())
            return
        try:
            previous = {"parent": None, **json.loads(file.read())}
        except (ValueError, TypeError):
            raise UserError(f"{file.uri} is broken; set another --output.path") from None
        changed = [option for key, option in _IDENTITY_OPTIONS.items() if previous.get(key, identity[key]) != identity[key]]
        if changed:
            raise UserError(
                f"{self.root.uri} holds a training with another {', '.join(changed)}; "
                "set the previous value or another --output.path"
            )

    def start_run(self, kept: KeptCheckpoints | None) -> WriterFence:
        """Start a run and save its configuration. An earlier run that still writes here stops at its next checkpoint.

        Remains of killed uploads are removed if they are older than the last kept checkpoint; newer ones may still complete.
        """
        fence = WriterFence(self.root, uuid.uuid4().hex)
        fence.file.write(fence.run_id.encode())
        self.root.child("config.yaml").write(config_yaml(self._config).encode())
        if kept is not None:
            copy_record(self.root)
            checkpoints = self.root.child(CHECKPOINTS)
            for name in checkpoints.names():
                # Ray Train names them by time, so names sort by age.
                if name.startswith("checkpoint_") and name < max(kept.names) and name not in kept.names:
                    with contextlib.suppress(UserError):  # the earlier run may be removing it
                        checkpoints.child(name).remove_folder()
        return fence

    def kept_checkpoints(self) -> KeptCheckpoints | None:
        """Return the checkpoints so far, or None if there are none. Raises UserError if Ray Train's record is broken."""
        checkpoints = self.root.child(CHECKPOINTS)
        try:
            result = ray.train.Result.from_path(checkpoints.path, storage_filesystem=checkpoints.filesystem)
        except RuntimeError:  # Ray Train found no record
            return None
        except OSError as error:
            raise UserError(f"cannot read {checkpoints.uri}: {describe_error(error)}; set --output.path") from None
        except Exception as error:  # Ray Train does not document what it raises for a broken record
            if self._restore_record():
                return self.kept_checkpoints()
            raise UserError(
                f"cannot resume from {checkpoints.uri} ({describe_error(error)}); delete it to start over"
            ) from None
        with_metrics = result.best_checkpoints or []
        if result.metrics is None or not with_metrics:
            return None
        by = self._config.training.best_by
        best, metrics = max(with_metrics, key=lambda item: item[1][by] * (-1 if by == "dev_loss" else 1))
        names = frozenset(checkpoint.path.rstrip("/").rpartition("/")[2] for checkpoint, _ in with_metrics)
        return KeptCheckpoints(names, best, metrics, result.metrics)

    def _restore_record(self) -> bool:
        """Replace Ray Train's broken record by its copy; return False if there is no copy that differs."""
        record, copy = self.root.child(CHECKPOINTS).child(_RECORD), self.root.child(_RECORD_COPY)
        broken = record.read()
        if not copy.exists() or copy.read() == broken:
            return False
        time.sleep(_RECORD_WRITE_S)
        if record.read() == broken:  # else another run was writing it
            record.write(copy.read())
        return True

    def write_bundle(self, kept: KeptCheckpoints, pairs: int) -> str:
        """Write the best checkpoint's model and a model card for ``pairs`` training pairs, unless the same bundle is there.

        Returns:
            The bundle's fingerprint.
        """
        card = model_card(self._config, pairs, kept.best_metrics, kept.last_metrics, self._parent)
        with kept.best.as_directory() as checkpoint, tempfile.TemporaryDirectory() as folder:
            best = load_bundle(Path(checkpoint) / BUNDLE)
            dtype = getattr(torch, self._config.training.export_dtype)
            fingerprint = save_bundle(folder, best.model, best.tokenizer_file, self._config.decoding, dtype)
            files = [(self.bundle.child(name), (Path(folder) / name).read_bytes()) for name in FILES]
        readme = self.bundle.child("README.md")
        if readme.exists():
            if all(file.exists() and file.read() == content for file, content in files):
                return fingerprint
            readme.remove()
        for file, content in [*files, (readme, card.encode())]:
            file.write(content)
        return fingerprint


def copy_record(root: Location) -> None:
    """Copy Ray Train's record of checkpoints next to their folder.

    The checkpoints in the copy still exist while Ray Train writes the next record: it deletes old ones afterwards.
    """
    root.child(_RECORD_COPY).write(root.child(CHECKPOINTS).child(_RECORD).read())
