"""A training's figures as TensorBoard reads them: a file of events for each run of the job.

The writer that Ray comes with writes them, to a local file; where they are to be, they are copied whole.
"""

from __future__ import annotations

import tempfile
import uuid
from pathlib import Path
from typing import Any

from tensorboardX import SummaryWriter  # type: ignore[import-untyped]

_TAGS = {
    "loss": "loss/training",
    "dev_loss": "loss/development",
    "rouge1": "rouge/1",
    "rouge2": "rouge/2",
    "rougeL": "rouge/L",
    "exact_match": "exact_match",
    "learning_rate": "learning_rate",
    "gradient_norm": "gradient_norm",
    "tokens_per_s": "tokens_per_s",
    "wait_share": "wait_share",
}


class Events:
    """The events of a run. after_step: what an earlier run did after that does not count."""

    def __init__(self, after_step: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(
            self._folder.name, purge_step=after_step + 1, flush_secs=10**6, filename_suffix=f".{uuid.uuid4().hex}"
        )

    def add(self, record: dict[str, Any]) -> None:
        """Write a record's figures, and the samples of a validation."""
        for name, tag in _TAGS.items():
            if record.get(name) is not None:
                self._writer.add_scalar(tag, record[name], record["step"], record["at"])
        for number, sample in enumerate(record.get("samples", []), 1):
            text = "\n\n".join(f"{name}: {sample[name]}" for name in ("source", "reference", "hypothesis"))
            self._writer.add_text(f"sample {number}", text, record["step"], record["at"])

    def file(self) -> tuple[str, bytes]:
        """The file's name and its content so far."""
        self._writer.flush()
        [file] = Path(self._folder.name).iterdir()
        return file.name, file.read_bytes()

    def close(self) -> None:
        """Remove the local file."""
        self._writer.close()
        self._folder.cleanup()
