"""Train a sequence-to-sequence model on prepared pairs: ``python -m jobs.train --config configs/train.yaml``."""

from __future__ import annotations

import shlex
import sys
from typing import Any

from jobs.console import new_console
from pipeline.config.loader import load_config
from pipeline.config.train import TrainConfig
from pipeline.errors import EXIT_OK, exit_on_user_error
from pipeline.monitoring.pushgateway import JobOutcome
from pipeline.training.distributed import TrainingResult, train
from pipeline.training.plan import plan_training
from pipeline.training.report.log import TrainingLog
from pipeline.training.report.metrics import TrainingMetrics


def main() -> int:
    """Run the job and return its exit status."""
    config = load_config(TrainConfig, "train", sys.argv[1:])
    with JobOutcome("train", config.watch) as outcome:
        outcome.succeeded = not _train(config).was_finished
    return EXIT_OK


def _train(config: TrainConfig) -> TrainingResult:
    """Train, and print each record and the result."""
    plan = plan_training(config)
    config, parent = plan.config, plan.parent
    console = new_console(job="train", name=config.watch.name)
    log, metrics = TrainingLog(plan), TrainingMetrics(config.watch.name)

    def on_record(record: dict[str, Any]) -> None:
        console.print(_line(record), style="bold" if record["kind"] == "validation" else None)
        log.add(record)
        metrics.add(record)

    if parent:
        console.print(f"starting from {parent.path}, model {parent.fingerprint[:12]}")
    console.print(f"training into {config.output.path}: starting Ray and the workers")
    with metrics:
        trained = train(plan, on_record)
    log.finish(trained.fingerprint)
    if trained.was_finished:
        limit = "patience" if trained.stopped_early else "epochs, max_minutes or max_steps"
        console.print(f"already finished, after {_duration(trained.last)}; to train further, raise --training.{limit}")
    console.print(f"trained: {trained.bundle}")
    options = ["--model.path", trained.bundle, "--input.path", config.data.dev]
    console.print(f"next: python -m jobs.evaluate {shlex.join(options)}")
    return trained


def _line(record: dict[str, Any]) -> str:
    """Return the console line of a record."""
    if record["kind"] == "waiting":
        return f"waiting for workers: the cluster has {record['cpus']:g} CPUs and {record['gpus']:g} GPUs"
    if record["kind"] == "skipped":
        rows = " and ".join(f"{record[role]:,} of {role}" for role in ("train", "dev") if record[role])
        return f"skipped rows with a null source or target: {rows}"
    if record["kind"] == "start":
        resumed = f", resumed at step {record['step']} after {_duration(record)}" if record["step"] else ""
        workers = f"{record['workers']} × {record['device']}"
        return f"training {record['parameters']:,} parameters in {record['precision']} on {workers}{resumed}"
    if record["kind"] == "fault":
        return f"step {record['step']}: {record['fault']}; rolled back to the last checkpoint, or to the start"
    position = f"{record['minutes']:6.1f} min  epoch {record['epoch']:6.2f}  step {record['step']:6d}"
    if record["kind"] == "validation":
        return (
            f"{position}  dev loss {record['dev_loss']:.3f}  ROUGE-1/2/L {record['rouge1']:.1f} / {record['rouge2']:.1f} / "
            f"{record['rougeL']:.1f}  exact match {record['exact_match']:.1f} %"
        )
    speed = f"{record['tokens_per_s']:,.0f} tokens/s  learning rate {record['learning_rate']:.2g}"
    time_left = "" if record["minutes_left"] is None else f"  {record['minutes_left']:.0f} min left"
    return f"{position}  loss {record['loss']:.3f}  {speed}{time_left}"


def _duration(record: dict[str, Any]) -> str:
    return f"{record['epoch']:.2f} epochs and {record['minutes']:.1f} minutes"


if __name__ == "__main__":
    exit_on_user_error("train", main)
