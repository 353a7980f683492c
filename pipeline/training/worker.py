"""The DDP worker: training steps, validations and checkpoints until the end of the training.

Ray Train has set up the process group, this worker's share of the data and the checkpoint to resume from. Step records go to
the driver through a queue at once; validation records go with their checkpoints through Ray Train.
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
from pipeline.model.bundle import bundle_from_files
from pipeline.model.seq2seq import Seq2Seq
from pipeline.training.checkpoints import WriterFence, load_checkpoint, save_checkpoint, upload_checkpoint
from pipeline.training.dataloader import PairDataLoader
from pipeline.training.dataset import TRAIN, TokenizePairs, WindowLayout
from pipeline.training.learner import Learner, progress_fraction
from pipeline.training.meter import Meter
from pipeline.training.validation import DevPairs, DevSet

_MAX_ROLLBACKS = 3
"""After this many rollbacks without a good validation in between, the training fails."""


class WorkerJob(TypedDict):
    """Arguments that the driver passes to each worker."""

    config: str  # JSON
    tokenizer_file: bytes
    parent_files: Mapping[str, bytes] | None  # bundle to start from; None: random weights
    layout: WindowLayout
    dev: dict[str, list[Any]]  # development pairs, by column
    threads: int
    fence: WriterFence
    records: Queue  # to the driver


def train_worker(job: WorkerJob) -> None:
    """Train until the configured end, together with the other workers."""
    Worker(job).run()


class Worker:
    """One worker of a training."""

    def __init__(self, job: WorkerJob) -> None:
        context = ray.train.get_context()
        self.config = config = TrainConfig.model_validate_json(job["config"])
        self.rank, self.workers = context.get_world_rank(), context.get_world_size()
        self._tokenizer_file, self._fence, self._records = job["tokenizer_file"], job["fence"], job["records"]
        torch.set_num_threads(min(job["threads"], os.cpu_count() or 1))
        torch.manual_seed(config.training.seed)
        tokenizer = Tokenizer(self._tokenizer_file)
        device = ray.train.torch.get_device()
        model = Seq2Seq(config.model.network, tokenizer.vocabulary_size)
        if (parent_files := job["parent_files"]) is not None:
            model.load_state_dict(bundle_from_files(parent_files, "--model.init_from").model.state_dict())
        model.to(device)
        self._fence.remove_local_folders()  # before the learner's first collective, so before any worker writes a new one
        self.learner = Learner(
            model, config.training, device, distributed=self.workers > 1, compress=config.scaling.compress_gradients
        )
        self.loader = PairDataLoader(ray.train.get_dataset_shard(TRAIN), config, job["layout"], self.rank, self.workers)
        self._started: float | None = None
        self._resumed_minutes, self._best_score, self._since_best = 0.0, -math.inf, 0
        self._starts_from_parent = parent_files is not None
        if checkpoint := ray.train.get_checkpoint():
            self._starts_from_parent = False
            with checkpoint.as_directory() as folder:
                position = load_checkpoint(folder, self.learner)
            self.loader.load_state_dict(position["stream"])
            self._resumed_minutes = position["minutes"]
            self._best_score, self._since_best = position["best"], position["since_best"]
        self.minutes = self._resumed_minutes
        self._tokens = 0
        self._rollbacks = 0
        self._rollback_step: int | None = None
        self._meter = Meter(self.learner, self.minutes, self.progress, config.training.max_loss_rise)
        if checkpoint:
            self._meter.snapshot()
        memory_share = 1.0 if device.type == "cuda" else 1 / context.get_local_world_size()
        self._dev_set = DevSet(self._dev_share(job["dev"]), tokenizer, config, memory_share)
        self._facts = {
            "workers": self.workers,
            "device": device.type,
            "precision": str(self.learner.dtype).removeprefix("torch."),
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dev_rows": len(job["dev"]["source"]),
            "layout": asdict(job["layout"]),
        }

    def _dev_share(self, pairs: dict[str, list[Any]]) -> DevPairs:
        share = {name: texts[self.rank :: self.workers] for name, texts in pairs.items()}
        table = pa.table({name: pa.array(texts, pa.string()) for name, texts in share.items()})
        data = self.config.data
        max_source_tokens = max(data.max_source_tokens, self.config.decoding.max_source_tokens)
        tokenize = TokenizePairs(
            self._tokenizer_file,
            max_source_tokens,
            data.max_target_tokens,
            styles=tuple(self.config.model.styles),
            default_style=self.config.decoding.style,
        )
        ids = tokenize(table)
        source_ids, target_ids = (Rows(*flatten_column(ids[name])) for name in ("source", "target"))
        return DevPairs(share["source"], share["target"], source_ids, target_ids)

    def run(self) -> None:
        """Train to the end."""
        training, meter = self.config.training, self._meter
        self._send("start", self._facts)
        self.learner.snapshot()
        if self._starts_from_parent:
            self._validate()  # shows what the training gains, and keeps the parent's weights if it gains nothing
            meter.snapshot()
            self._started, self.minutes = None, 0.0
        last_validation_minutes, validated_progress = self.minutes, 0.0
        while not self._is_done:
            epoch = self.loader.epoch()
            while not self._is_done:
                requested = time.monotonic()
                batches = list(itertools.islice(epoch, training.gradient_accumulation))
                # Training time starts with the first batch; the wait for that one is start-up.
                waited_s = 0.0 if self._started is None else time.monotonic() - requested
                totals = self.learner.totals(batches, self._clock())
                if totals.pairs == 0:
                    self.loader.end_epoch()
                    break
                step = self.learner.step(batches, totals, self.progress)
                self.loader.advance(totals.pairs)
                self.minutes, self._tokens = totals.minutes, self._tokens + totals.tokens
                meter.add(step, totals, waited_s)
                validates = self.minutes - last_validation_minutes >= training.validate_minutes or self.progress >= 1.0
                reports = (self.minutes - meter.minutes) * 60 >= training.report_seconds
                if not validates and not reports:
                    continue
                record = meter.record(step, self.minutes, self.progress)
                if divergence := meter.divergence():
                    self._roll_back(divergence)
                elif reports:  # not for the few steps before a validation
                    self._send("step", record)
                if validates:
                    validated_progress = self._validate()
                    meter.snapshot()
                    last_validation_minutes = self.minutes
                    meter.skip_to(self.minutes, self.progress)
        if validated_progress < 1.0 <= self.progress:  # the time limit passed while the last checkpoint was saved
            self._validate()

    @property
    def progress(self) -> float:
        """Share of the training that is done, the same in all workers."""
        return progress_fraction(self.config.training, self.loader.epochs, self.minutes, self.learner.steps)

    @property
    def _is_done(self) -> bool:
        patience = self.config.training.patience
        return self.progress >= 1.0 or (patience is not None and self._since_best >= patience)

    def _clock(self) -> float:
        """Return the minutes of training so far, earlier runs included. The clock starts with the first batch."""
        self._started = self._started or time.monotonic()
        return self._resumed_minutes + (time.monotonic() - self._started) / 60

    def _sync_clock(self) -> None:
        self.minutes = self.learner.totals([], self._clock()).minutes

    def _roll_back(self, reason: str) -> None:
        """Restore weights and optimizer from the last checkpoint, or the start, and continue with the pairs that follow.

        The data position stays, so that the batches differ: the loss spikes of PaLM did not recur with other batches
        (Chowdhery et al. 2022, section 5.1).

        Raises:
            UserError: too many rollbacks in a row.
        """
        training = self.config.training
        if self._rollbacks == _MAX_ROLLBACKS:
            rate, norm = f"{training.learning_rate:g}", f"{training.clip_norm:g}"
            precision = "" if self.learner.dtype == torch.float32 else ", or with --training.precision float32"
            raise UserError(
                f"{reason} at step {self.learner.steps}, after {_MAX_ROLLBACKS} rollbacks; run again with a lower "
                f"--training.learning_rate (now {rate}) or --training.clip_norm (now {norm}){precision}"
            )
        self._rollbacks, self._rollback_step = self._rollbacks + 1, self.learner.steps
        self.learner.roll_back()
        self._meter.roll_back()
        self._send("fault", {"fault": reason})

    def _validate(self) -> float:
        """Validate with the other workers and save a checkpoint. Return the progress that its record states."""
        while (measured := self._dev_set.measure(self.learner)) is None:
            self._roll_back("the loss of the development pairs is not a number")
        figures, samples = measured
        if self._rollback_step != self.learner.steps:  # else these are the weights of the last checkpoint
            by = self.config.training.best_by
            score = -figures[by] if by == "dev_loss" else figures[by]
            self._since_best = 0 if score > self._best_score else self._since_best + 1
            self._best_score = max(score, self._best_score)
        if self._rollback_step is None:
            self._rollbacks = 0
        self._rollback_step = None
        self.learner.snapshot()
        self._sync_clock()
        progress = self.progress
        position = {
            "stream": self.loader.state_dict(self.learner.sum_over_workers),
            "minutes": self.minutes,
            "best": self._best_score,
            "since_best": self._since_best,
        }
        if self.rank == 0:
            validation = {"validations_since_best": self._since_best, "samples": samples}
            self._save(self._record("validation", {**figures, **self._facts, **validation}), position)
        else:
            ray.train.report({})
        self._sync_clock()
        return progress

    def _save(self, record: dict[str, Any], position: dict[str, Any]) -> None:
        """Save a checkpoint; it is uploaded while training continues, and the driver gets its record after the upload."""
        self._fence.check()
        folder = self._fence.new_local_folder()  # Ray Train removes it after the upload
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

    def _send(self, kind: str, figures: Mapping[str, Any]) -> None:
        """Send a record to the driver, from the first worker only."""
        if self.rank == 0:
            self._records.put(self._record(kind, figures))

    def _record(self, kind: str, figures: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "kind": kind,
            "at": time.time(),
            "step": self.learner.steps,
            "epoch": self.loader.epochs,
            "pairs_seen": self.loader.pairs_seen,
            "minutes": self.minutes,
            "tokens": self._tokens,
            **figures,
        }
