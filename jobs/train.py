"""Train a sequence-to-sequence model on prepared pairs: ``python -m jobs.train --config configs/train.yaml``."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from rich.console import Console

from pipeline.config import TrainConfig, load_config
from pipeline.errors import exit_on_user_error
from pipeline.training.distributed import train


def main() -> int:
    """Run the job; the exit status."""
    config = load_config(TrainConfig, "train", sys.argv[1:])
    console = Console(highlight=False, soft_wrap=True)
    log = Path(config.output.path) / "train.jsonl"

    def on_record(record: dict[str, Any]) -> None:
        console.print(_line(record))
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")

    bundle = train(config, on_record)
    console.print(f"trained: {bundle}")
    console.print(f"next: python -m jobs.evaluate --model.path {bundle} --input.path {config.data.dev}")
    return 0


def _line(record: dict[str, Any]) -> str:
    at = f"{record['minutes']:6.1f} min  epoch {record['epoch']:6.2f}  step {record['step']:6d}"
    if record["kind"] == "validation":
        return (
            f"{at}  [bold]dev loss {record['dev_loss']:.3f}  ROUGE-1/2/L {record['rouge1']:.1f} / {record['rouge2']:.1f} / "
            f"{record['rougeL']:.1f}  exact match {record['exact_match']:.1f} %[/bold]"
        )
    left = "" if record["minutes_left"] is None else f"  {record['minutes_left']:.0f} min left"
    return f"{at}  loss {record['loss']:.3f}  {record['tokens_per_s']:,.0f} tokens/s  rate {record['learning_rate']:.2g}{left}"


if __name__ == "__main__":
    exit_on_user_error("train", main)
