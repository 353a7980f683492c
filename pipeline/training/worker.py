"""What each DDP worker runs: batches into steps, now and then a validation and a checkpoint, until the end.

Ray Train has set up the process group, the worker's share of the data and the checkpoint to go on from. Records of
progress go to the driver through a queue.
"""

from __future__ import annotations

import os
import tempfile
import time
from typing import Any, TypedDict

import pyarrow as pa
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue

from pipeline.config import TrainConfig
from pipeline.model.batching import Rows
from pipeline.model.seq2seq import Seq2Seq
from pipeline.text.columns import flat_rows
from pipeline.text.tokenizer import Tokenizer
from pipeline.training.checkpoints import Lease, load_checkpoint, save_checkpoint
from pipeline.training.loop import Learner, Step, Totals, share_done
from pipeline.training.stream import PairStream
from pipeline.training.validation import DevSet
from pipeline.training.windows import TRAIN, TokenizePairs


class WorkerJob(TypedDict):
    """What the driver gives to each worker.

    config: as JSON. pairs: of the training data. dev: development pairs, by column. lease: to be checked before a
    checkpoint is written. records: to the driver.
    """

    config: str
    tokenizer_file: bytes
    pairs: int
    dev: dict[str, list[str]]
    threads: int
    lease: Lease
    records: Queue


def train_worker(job: WorkerJob) -> None:
    """Train until the configured end, together with the other workers."""
    Worker(job).run()


class Worker:
    """One worker's part of a training."""

    def __init__(self, job: WorkerJob) -> None:
        context = ray.train.get_context()
        self.config = config = TrainConfig.model_validate_json(job["config"])
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self._tokenizer_file, self._lease, self._records = job["tokenizer_file"], job["lease"], job["records"]
        torch.set_num_threads(min(job["threads"], os.cpu_count() or 1))
        torch.manual_seed(config.training.seed)
        tokenizer = Tokenizer(self._tokenizer_file)
        device = ray.train.torch.get_device()
        model = Seq2Seq(config.model, tokenizer.vocabulary_size).to(device)
        self.learner = Learner(model, config.training, device, distributed=self.workers > 1)
        self.stream = PairStream(ray.train.get_dataset_shard(TRAIN), config, job["pairs"], self.rank, self.workers)
        self._started: float | None = None
        self._minutes_before = 0.0
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                position = load_checkpoint(folder, self.learner)
            self.stream.load_state_dict(position["stream"])
            self._minutes_before = position["minutes"]
        self.minutes = self._minutes_before
        self._dev = self._dev_set(job["dev"], tokenizer)
        self._facts = {
            "workers": self.workers,
            "device": device.type,
            "precision": str(self.learner.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dev_rows": len(job["dev"]["source"]),
        }

    def run(self) -> None:
        """Steps and validations, to the end."""
        self._report("start", self._facts)
        meter = _Meter(self)
        validated_at = self.minutes
        while self.progress < 1.0:
            for batch in self.stream.epoch():
                totals = self.learner.totals(batch, self._clock())
                if totals.pairs == 0:
                    self.stream.end_epoch()
                    break
                step = self.learner.step(batch, totals, self.progress)
                self.stream.advance(totals.pairs)
                self.minutes = totals.minutes
                if record := meter.add(step, totals):
                    self._report("step", record)
                if self.progress >= 1.0:
                    break
                if self.minutes - validated_at >= self.config.training.validate_minutes:
                    self._validate()
                    validated_at = self.minutes
                    meter = _Meter(self)
        self._validate()

    @property
    def progress(self) -> float:
        """Share of the training that is done, the same in all workers."""
        return share_done(self.config.training, self.stream.epochs, self.minutes, self.learner.steps)

    def _clock(self) -> float:
        """Minutes of training so far, the runs before this one included; starts with the first batch."""
        self._started = self._started or time.monotonic()
        return self._minutes_before + (time.monotonic() - self._started) / 60

    def _validate(self) -> None:
        """Measure with the other workers, and keep a checkpoint."""
        self.learner.check()
        figures = {**self._dev.measure(self.learner), **self._facts}
        self._agree_on_time()
        if self.rank == 0:
            self._keep(self._record("validation", figures))
        else:
            ray.train.report({})
        self._agree_on_time()

    def _keep(self, record: dict[str, Any]) -> None:
        """Write a checkpoint; the driver hears of it once it is there to go on from, whatever happens next."""
        with tempfile.TemporaryDirectory() as folder:
            position = {"stream": self.stream.state_dict(), "minutes": self.minutes}
            save_checkpoint(folder, self.learner, position, self._tokenizer_file, self.config)
            self._lease.check()
            ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))
        ray.train.get_all_reported_checkpoints(consistency_mode=ray.train.CheckpointConsistencyMode.COMMITTED)
        self._records.put(record)

    def _agree_on_time(self) -> None:
        self.minutes = self.learner.totals(None, self._clock()).minutes

    def _report(self, kind: str, figures: dict[str, Any]) -> None:
        if self.rank == 0:
            self._records.put(self._record(kind, figures))

    def _record(self, kind: str, figures: dict[str, Any]) -> dict[str, Any]:
        return {
            "kind": kind,
            "step": self.learner.steps,
            "epoch": self.stream.epochs,
            "pairs_seen": self.stream.pairs_seen,
            "minutes": self.minutes,
            **figures,
        }

    def _dev_set(self, pairs: dict[str, list[str]], tokenizer: Tokenizer) -> DevSet:
        """This worker's share of the development pairs."""
        share = {name: texts[self.rank :: self.workers] for name, texts in pairs.items()}
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in share.items()})
        data, decoding = self.config.data, self.config.decoding
        longest_source = max(data.max_source_tokens, decoding.max_source_tokens)
        ids = TokenizePairs(self._tokenizer_file, longest_source, data.max_target_tokens)(table)
        sources, targets = Rows(*flat_rows(ids["source"])), Rows(*flat_rows(ids["target"]))
        return DevSet(sources, targets, share["target"], tokenizer, self.config)


class _Meter:
    """Loss and speed since the last record."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._reset()

    def _reset(self) -> None:
        self._minutes, self._progress = self._worker.minutes, self._worker.progress
        self._loss = torch.zeros((), device=self._worker.learner.device)
        self._target_tokens = self._tokens = 0

    def add(self, step: Step, totals: Totals) -> dict[str, float | None] | None:
        """Count a step; a record if it is time for one, by the clock that all workers share."""
        self._loss += step.loss
        self._target_tokens += totals.target_tokens
        self._tokens += totals.tokens
        worker, minutes = self._worker, self._worker.minutes - self._minutes
        if minutes * 60 < worker.config.training.report_seconds:
            return None
        worker.learner.check()
        loss = float(worker.learner.sum_over_workers(self._loss.double().cpu()))
        gained = worker.progress - self._progress
        record = {
            "loss": loss / self._target_tokens,
            "tokens_per_s": self._tokens / max(60 * minutes, 1e-9),
            "learning_rate": step.learning_rate,
            "gradient_norm": float(step.gradient_norm),
            "minutes_left": (1 - worker.progress) * minutes / gained if gained > 0 else None,
        }
        self._reset()
        return record
