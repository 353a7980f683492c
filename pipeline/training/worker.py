"""What each DDP worker runs: batches into steps, now and then a validation and a checkpoint, until the end.

Ray Train has set up the process group, the worker's share of the data and the checkpoint to go on from. Records go to the
driver: those of steps through a queue at once, those of validations with their checkpoints, through Ray Train.
"""

from __future__ import annotations

import itertools
import math
import os
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from typing import Any, TypedDict

import pyarrow as pa
import ray.train
import ray.train.torch
import torch
from ray.util.queue import Queue

from pipeline.config.train import TrainConfig
from pipeline.data.token_columns import flatten_column
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import UserError
from pipeline.model.batching import Rows
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.checkpoints import WriterFence, load_checkpoint, save_checkpoint, upload_checkpoint
from pipeline.training.dataloader import PairDataLoader
from pipeline.training.dataset import TRAIN, TokenizePairs, WindowLayout
from pipeline.training.learner import Learner, progress_fraction
from pipeline.training.meter import Meter
from pipeline.training.validation import DevSet

_MOST_ROLLBACKS = 3
"""In a row, before a training gives up."""


class WorkerJob(TypedDict):
    """What the driver gives to each worker.

    config: as JSON. layout: of the training pairs. dev: development pairs, by column. fence: to be checked before a
    checkpoint is written. records: to the driver.
    """

    config: str
    tokenizer_file: bytes
    layout: WindowLayout
    dev: dict[str, list[str]]
    threads: int
    fence: WriterFence
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
        self._tokenizer_file, self._fence, self._records = job["tokenizer_file"], job["fence"], job["records"]
        torch.set_num_threads(min(job["threads"], os.cpu_count() or 1))
        torch.manual_seed(config.training.seed)
        tokenizer = Tokenizer(self._tokenizer_file)
        device = ray.train.torch.get_device()
        model = Seq2Seq(config.model, tokenizer.vocabulary_size).to(device)
        self._fence.clear_local()  # no worker gets past the learner's first collective, and writes, before all were here
        self.learner = Learner(model, config.training, device, self.workers > 1, config.scaling.compress_gradients)
        self.stream = PairDataLoader(ray.train.get_dataset_shard(TRAIN), config, job["layout"], self.rank, self.workers)
        self._started: float | None = None
        self._minutes_before, self._best, self._since_best = 0.0, -math.inf, 0
        if checkpoint := ray.train.get_checkpoint():
            with checkpoint.as_directory() as folder:
                position = load_checkpoint(folder, self.learner)
            self.stream.load_state_dict(position["stream"])
            self._minutes_before = position["minutes"]
            self._best, self._since_best = position["best"], position["since_best"]
        self.minutes = self._minutes_before
        self._rollbacks, self._tokens = 0, 0
        self._rolled_back_at: int | None = None
        self._meter = Meter(self.learner, self.minutes, self.progress, config.training.max_loss_rise)
        if checkpoint:
            self._meter.remember()
        memory_share = 1.0 if device.type == "cuda" else 1 / context.get_local_world_size()
        self._dev = self._dev_set(job["dev"], tokenizer, memory_share)
        self._facts = {
            "workers": self.workers,
            "device": device.type,
            "precision": str(self.learner.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dev_rows": len(job["dev"]["source"]),
            "layout": asdict(job["layout"]),
        }

    def run(self) -> None:
        """Steps and validations, to the end."""
        training, meter = self.config.training, self._meter
        self._report("start", self._facts)
        self.learner.remember()
        validated_at, progress_told = self.minutes, 0.0
        while not self._is_done:
            epoch = self.stream.epoch()
            while not self._is_done:
                asked = time.monotonic()
                batches = list(itertools.islice(epoch, training.gradient_accumulation))
                # Until the first batch is there, the clock stands: what comes before it is start-up.
                waited_s = 0.0 if self._started is None else time.monotonic() - asked
                totals = self.learner.totals(batches, self._clock())
                if totals.pairs == 0:
                    self.stream.end_epoch()
                    break
                step = self.learner.step(batches, totals, self.progress)
                self.stream.advance(totals.pairs)
                self.minutes, self._tokens = totals.minutes, self._tokens + totals.tokens
                meter.add(step, totals, waited_s)
                validates = self.minutes - validated_at >= training.validate_minutes or self.progress >= 1.0
                reports = (self.minutes - meter.minutes) * 60 >= training.report_seconds
                if not validates and not reports:
                    continue
                record = meter.record(step, self.minutes, self.progress)
                if fault := meter.fault():
                    self._roll_back(fault)
                elif reports:  # the few steps before a validation would say little
                    self._report("step", record)
                if validates:
                    progress_told = self._validate()
                    meter.remember()
                    validated_at = self.minutes
                    meter.skip_to(self.minutes, self.progress)
        if progress_told < 1.0 and self.progress >= 1.0:  # time ran out while a checkpoint was kept
            self._validate()

    @property
    def progress(self) -> float:
        """Share of the training that is done, the same in all workers."""
        return progress_fraction(self.config.training, self.stream.epochs, self.minutes, self.learner.steps)

    @property
    def _is_done(self) -> bool:
        patience = self.config.training.patience
        return self.progress >= 1.0 or (patience is not None and self._since_best >= patience)

    def _clock(self) -> float:
        """Minutes of training so far, the runs before this one included; starts with the first batch."""
        self._started = self._started or time.monotonic()
        return self._minutes_before + (time.monotonic() - self._started) / 60

    def _roll_back(self, fault: str) -> None:
        """Take weights and optimizer back to the last checkpoint, or the start, and go on with the pairs that follow.

        What is learnt between the two is lost on purpose: it led there. PaLM's authors (Chowdhery et al. 2022, section 5.1)
        saw leaps of the loss not come again with other batches.

        Raises:
            UserError: it has happened so often, and before each checkpoint, that other batches are no cure.
        """
        training = self.config.training
        if self._rollbacks == _MOST_ROLLBACKS:
            precise = "" if self.learner.dtype == torch.float32 else ", or with --training.precision float32"
            raise UserError(
                f"{fault} at step {self.learner.steps}, as {_MOST_ROLLBACKS} times before it; run again with a lower "
                f"--training.learning_rate than {training.learning_rate:g} or --training.clip_norm than {training.clip_norm:g}"
                f"{precise}"
            )
        self._rollbacks, self._rolled_back_at = self._rollbacks + 1, self.learner.steps
        self.learner.roll_back()
        self._meter.roll_back()
        self._report("fault", {"fault": fault})

    def _validate(self) -> float:
        """Measure with the other workers, and keep a checkpoint; the share of the training that its record tells of."""
        while (measured := self._dev.measure(self.learner)) is None:
            self._roll_back("the loss of the development pairs is not a number")
        figures, samples = measured
        if self._rolled_back_at != self.learner.steps:  # else it is the last checkpoint's again
            by = self.config.training.best_by
            score = -figures[by] if by == "dev_loss" else figures[by]
            self._since_best = 0 if score > self._best else self._since_best + 1
            self._best = max(score, self._best)
        if self._rolled_back_at is None:
            self._rollbacks = 0
        self._rolled_back_at = None
        self.learner.remember()
        self._agree_on_time()
        told = self.progress
        position = {
            "stream": self.stream.state_dict(self.learner.sum_over_workers),
            "minutes": self.minutes,
            "best": self._best,
            "since_best": self._since_best,
        }
        if self.rank == 0:
            kept = {"validations_since_best": self._since_best, "samples": samples}
            self._keep(self._record("validation", {**figures, **self._facts, **kept}), position)
        else:
            ray.train.report({})
        self._agree_on_time()
        return told

    def _keep(self, record: dict[str, Any], position: dict[str, Any]) -> None:
        """Write a checkpoint, uploaded beside what is learnt next; the driver hears of it once it is there to go on from."""
        self._fence.check()
        folder = self._fence.local_folder()  # Ray Train removes it once it is uploaded
        try:
            save_checkpoint(folder, self.learner, position, self._tokenizer_file, self.config)
            ray.train.report(
                record,
                checkpoint=ray.train.Checkpoint.from_directory(folder),
                checkpoint_upload_mode=ray.train.CheckpointUploadMode.ASYNC,
                checkpoint_upload_fn=partial(upload_checkpoint, self._fence),
            )
        except BaseException:
            shutil.rmtree(folder, ignore_errors=True)
            raise

    def _agree_on_time(self) -> None:
        self.minutes = self.learner.totals([], self._clock()).minutes

    def _report(self, kind: str, figures: Mapping[str, Any]) -> None:
        if self.rank == 0:
            self._records.put(self._record(kind, figures))

    def _record(self, kind: str, figures: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "kind": kind,
            "at": time.time(),
            "step": self.learner.steps,
            "epoch": self.stream.epochs,
            "pairs_seen": self.stream.pairs_seen,
            "minutes": self.minutes,
            "tokens": self._tokens,
            **figures,
        }

    def _dev_set(self, pairs: dict[str, list[str]], tokenizer: Tokenizer, memory_share: float) -> DevSet:
        """This worker's share of the development pairs."""
        share = {name: texts[self.rank :: self.workers] for name, texts in pairs.items()}
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in share.items()})
        data, decoding = self.config.data, self.config.decoding
        longest_source = max(data.max_source_tokens, decoding.max_source_tokens)
        ids = TokenizePairs(self._tokenizer_file, longest_source, data.max_target_tokens)(table)
        sources, targets = Rows(*flatten_column(ids["source"])), Rows(*flatten_column(ids["target"]))
        return DevSet(sources, targets, share["source"], share["target"], tokenizer, self.config, memory_share)
