"""Write the figures of a training as TensorBoard events, one file for each start of its workers.

tensorboardX, which comes with Ray, writes to a local file; TrainingLog copies that to the output folder as a whole.
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


class EventFile:
    """A local file of events.

    Args:
        start_step: TensorBoard ignores events of earlier files after this step.
    """

    def __init__(self, start_step: int) -> None:
        self._folder = tempfile.TemporaryDirectory()
        self._writer = SummaryWriter(
            self._folder.name, purge_step=start_step + 1, flush_secs=10**6, filename_suffix=f".{uuid.uuid4().hex}"
        )

    def add(self, record: dict[str, Any]) -> None:
        """Add the figures of a record, and the samples of a validation."""
        for name, tag in _TAGS.items():
            if record.get(name) is not None:
                self._writer.add_scalar(tag, record[name], record["step"], record["at"])
        for number, sample in enumerate(record.get("samples", []), 1):
            text = "\n\n".join(f"{name}: {sample[name]}" for name in ("source", "reference", "hypothesis"))
            self._writer.add_text(f"sample {number}", text, record["step"], record["at"])

    def read(self) -> tuple[str, bytes]:
        """Return the name of the file and its content so far."""
        self._writer.flush()
        [file] = Path(self._folder.name).iterdir()
        return file.name, file.read_bytes()

    def close(self) -> None:
        """Remove the local file."""
        self._writer.close()
        self._folder.cleanup()
