"""Training on Ray: data streamed to DDP workers, progress, validation, checkpoints, resuming.

What a step is stands in loop.py; here is where batches come from, when to validate and keep a checkpoint, and how a
run goes on after it was stopped. Ray Train places the workers, sets up their process group and keeps the checkpoints.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.dataset as pads
import ray
import ray.train
import ray.train.torch
import torch
from ray.data import FileShuffleConfig

from pipeline.config import TrainConfig
from pipeline.errors import UserError
from pipeline.evaluation.metrics import rouge_f1
from pipeline.model.batching import PairBatch, Rows, pair_batches
from pipeline.model.bundle import load_bundle, save_bundle
from pipeline.model.decoding import decode_window
from pipeline.model.seq2seq import Seq2Seq
from pipeline.text.tokenizer import Tokenizer
from pipeline.training.loop import Learner

_BUNDLE, _STATE = "bundle", "state.pt"
_PROGRESS_EVERY_S = 10.0
_DECODE_BUDGET = 16384


def train(config: TrainConfig, on_record: Callable[[dict[str, Any]], None]) -> Path:
    """Train until the configured end, going on from the last checkpoint if there is one, and write the bundle.

    Args:
        on_record: called on the driver with each progress or validation record.

    Returns:
        The folder of the bundle with the best validation.

    Raises:
        UserError: the data, the tokenizer or the output folder are not usable.
    """
    tokenizer_file = _read_tokenizer(config)
    pairs = _count_pairs(config.data.train, "--data.train")
    _count_pairs(config.data.dev, "--data.dev")
    output = Path(config.output.path).absolute()
    _claim_output(output, config, tokenizer_file)
    progress = _Progress.options(num_cpus=0).remote()  # type: ignore[attr-defined]
    dataset = (
        ray.data.read_parquet(
            config.data.train,
            columns=["source", "target"],
            shuffle=FileShuffleConfig(seed=config.training.seed),
        )
        .map_batches(
            _tokenize,
            batch_format="pyarrow",
            batch_size=2048,
            num_cpus=0.5,
            fn_kwargs={
                "tokenizer_file": tokenizer_file,
                "longest": {"source": config.data.max_source_tokens, "target": config.data.max_target_tokens},
            },
        )
    )
    trainer = ray.train.torch.TorchTrainer(
        _train_worker,
        train_loop_config={
            "config": config.model_dump(by_alias=True),
            "tokenizer_file": tokenizer_file,
            "pairs": pairs,
            "progress": progress,
        },
        scaling_config=ray.train.ScalingConfig(
            num_workers=config.scaling.num_workers,
            use_gpu=config.scaling.use_gpu,
            resources_per_worker={"CPU": 0.5, **({"GPU": 1} if config.scaling.use_gpu else {})},
        ),
        run_config=ray.train.RunConfig(
            name="checkpoints",
            storage_path=str(output),
            checkpoint_config=ray.train.CheckpointConfig(
                num_to_keep=2, checkpoint_score_attribute="rougeL", checkpoint_score_order="max"
            ),
        ),
        datasets={"train": dataset},
    )
    with _Forwarding(progress, on_record):
        result = trainer.fit()
    best = result.get_best_checkpoint("rougeL", "max")
    if best is None:
        raise UserError(f"{output}/checkpoints holds no checkpoint; give the training more time")
    with best.as_directory() as folder:
        trained = load_bundle(Path(folder) / _BUNDLE)
    save_bundle(
        output / "bundle",
        trained.model,
        trained.tokenizer_file,
        config.decoding,
        getattr(torch, config.training.export_dtype),
        _model_card(config, result),
    )
    return output / "bundle"


def _train_worker(job: dict[str, Any]) -> None:
    """What each DDP worker runs."""
    config = TrainConfig.model_validate(job["config"])
    context = ray.train.get_context()
    workers, first = context.get_world_size(), context.get_world_rank() == 0
    cores = os.cpu_count() or 1
    torch.set_num_threads(config.scaling.threads or max(1, cores // context.get_local_world_size()))
    torch.manual_seed(config.training.seed)
    tokenizer = Tokenizer.from_bytes(job["tokenizer_file"])
    device = ray.train.torch.get_device()
    model = Seq2Seq(config.model, tokenizer.vocabulary_size).to(device)
    learner = Learner(model, config.training, device, distributed=workers > 1)
    clock = _Position(config, job["pairs"])
    if checkpoint := ray.train.get_checkpoint():
        with checkpoint.as_directory() as folder:
            clock.restore(_restore(Path(folder), learner))
    # Each worker draws its own dropout, and goes on after a resume with numbers that were not drawn before it.
    torch.manual_seed(config.training.seed + 1000 * learner.steps + context.get_world_rank())
    dev = _DevSet(config, tokenizer) if first else None
    meter = _Meter(job["progress"] if first else None, learner, clock)
    since_validation = clock.minutes

    def validate() -> None:
        nonlocal since_validation
        since_validation = clock.minutes
        if dev is None:
            ray.train.report({}, checkpoint=None)
            return
        metrics = dev.measure(learner)
        record = {"step": learner.steps, "epoch": clock.epochs, "minutes": clock.minutes, **metrics}
        job["progress"].add.remote({"kind": "validation", **record})
        with tempfile.TemporaryDirectory() as folder:
            _save(Path(folder), learner, clock, job["tokenizer_file"], config)
            ray.train.report(record, checkpoint=ray.train.Checkpoint.from_directory(folder))

    while clock.progress < 1.0:
        for batch in _and_then_none(_batches(config, clock)):
            step = learner.step(batch, clock.progress)
            if step is None:
                break
            clock.advance(learner, step.pairs)
            meter.add(step)
            if clock.progress >= 1.0:
                break
            if clock.minutes - since_validation >= config.training.validate_minutes:
                validate()
        else:
            raise AssertionError("unreachable: the batches end with None for ever")
    validate()


class _Position:
    """How far the training has come; the same in all workers, whose clocks differ: the first one's minutes count."""

    def __init__(self, config: TrainConfig, pairs: int) -> None:
        self._training = config.training
        self._pairs = pairs
        self._started = time.monotonic()
        self._minutes_before = 0.0
        self.pairs_done = 0
        self.minutes = 0.0

    @property
    def epochs(self) -> float:
        return self.pairs_done / self._pairs

    @property
    def progress(self) -> float:
        by_time = self.minutes / self._training.max_minutes if self._training.max_minutes else 0.0
        return max(self.epochs / self._training.epochs, by_time)

    def advance(self, learner: Learner, pairs: int) -> None:
        self.pairs_done += pairs
        first = ray.train.get_context().get_world_rank() == 0
        minutes = self._minutes_before + (time.monotonic() - self._started) / 60 if first else 0.0
        self.minutes = learner.sum_over_workers(torch.tensor(minutes, dtype=torch.float32))

    def state_dict(self) -> dict[str, float]:
        return {"pairs_done": self.pairs_done, "minutes": self.minutes}

    def restore(self, state: dict[str, float]) -> None:
        self.pairs_done = int(state["pairs_done"])
        self.minutes = self._minutes_before = state["minutes"]

    def skip_in_epoch(self) -> int:
        """Pairs of the current epoch that were learnt before."""
        return self.pairs_done % self._pairs


def _batches(config: TrainConfig, position: _Position) -> Iterator[PairBatch]:
    """This worker's batches of one epoch, from where the position stands."""
    workers = ray.train.get_context().get_world_size()
    skip = position.skip_in_epoch() // workers
    epoch = int(position.epochs)
    rng = np.random.default_rng([config.training.seed, epoch, ray.train.get_context().get_world_rank()])
    windows = ray.train.get_dataset_shard("train").iter_batches(
        batch_size=config.data.window_rows,
        batch_format="pyarrow",
        local_shuffle_buffer_size=config.data.window_rows,
        local_shuffle_seed=config.training.seed + epoch,
        prefetch_batches=1,
    )
    for window in windows:
        if skip >= len(window):
            skip -= len(window)
            continue
        window, skip = window.slice(skip), 0
        yield from pair_batches(
            rows_of(window["source"]),
            rows_of(window["target"]),
            config.data.max_source_tokens,
            config.data.max_target_tokens,
            config.training.token_budget,
            rng,
        )


def _and_then_none(batches: Iterator[PairBatch]) -> Iterator[PairBatch | None]:
    yield from batches
    while True:
        yield None


def rows_of(column: pa.ChunkedArray) -> Rows:
    """An Arrow list<int32> column as flat rows, without a copy where it is in one chunk."""
    array = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    offsets = array.offsets.to_numpy().astype(np.int64)
    return Rows(array.flatten().to_numpy(), offsets - offsets[0])


def _tokenize(table: pa.Table, tokenizer_file: bytes, longest: dict[str, int]) -> pa.Table:
    """Texts to ids, cut: columns source, target: list<int32>."""
    tokenizer = _cached_tokenizer(tokenizer_file)
    return pa.table({name: _encoded(tokenizer, table[name].to_pylist(), cut) for name, cut in longest.items()})


@functools.lru_cache(maxsize=1)
def _cached_tokenizer(tokenizer_file: bytes) -> Tokenizer:
    return Tokenizer.from_bytes(tokenizer_file)


def _encoded(tokenizer: Tokenizer, texts: list[str], longest: int) -> pa.ListArray:
    values, offsets = tokenizer.encode(texts)
    lengths = np.diff(offsets)
    kept = np.arange(len(values)) - np.repeat(offsets[:-1], lengths) < longest
    cut: npt.NDArray[np.int32] = np.concatenate(([0], np.cumsum(np.minimum(lengths, longest)))).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(cut), pa.array(values[kept]))


class _DevSet:
    """The first development pairs, and what a model makes of them."""

    def __init__(self, config: TrainConfig, tokenizer: Tokenizer) -> None:
        self._config, self._tokenizer = config, tokenizer
        table = pads.dataset(config.data.dev).head(config.training.validate_rows, columns=["source", "target"])
        self._references = [[target] for target in table["target"].to_pylist()]
        self._sources = Rows(*tokenizer.encode(table["source"].to_pylist()))
        self._targets = Rows(*tokenizer.encode(table["target"].to_pylist()))

    def measure(self, learner: Learner) -> dict[str, float]:
        """Validation loss and ROUGE F1 (percent) of greedy hypotheses."""
        data = self._config.data
        batches = pair_batches(
            self._sources, self._targets, data.max_source_tokens, data.max_target_tokens, _DECODE_BUDGET, rng=None
        )
        loss = learner.validation_loss(batches)
        found = decode_window(
            learner.model, self._sources.values, self._sources.offsets, self._config.decoding, _DECODE_BUDGET
        )
        texts = self._tokenizer.decode(found.values, found.offsets)
        rouge = rouge_f1(texts, self._references).mean(0)
        exact = 100 * float(np.mean([text == reference[0] for text, reference in zip(texts, self._references, strict=True)]))
        return {
            "dev_loss": loss,
            "rouge1": float(rouge[0]),
            "rouge2": float(rouge[1]),
            "rougeL": float(rouge[2]),
            "exact_match": exact,
        }


class _Meter:
    """Loss and speed since the last record, sent to the driver every few seconds."""

    def __init__(self, progress: Any, learner: Learner, position: _Position) -> None:
        self._progress, self._learner, self._position = progress, learner, position
        self._reset()

    def _reset(self) -> None:
        self._since = self._position.minutes
        self._at_progress = self._position.progress
        self._nll = torch.zeros((), device=self._learner.device)
        self._target_tokens = self._tokens = 0

    def add(self, step: Any) -> None:
        self._nll += step.nll
        self._target_tokens += step.target_tokens
        self._tokens += step.tokens
        minutes = self._position.minutes - self._since
        if minutes * 60 < _PROGRESS_EVERY_S:
            return
        nll = self._learner.sum_over_workers(self._nll)
        gained = self._position.progress - self._at_progress
        if self._progress is not None:
            self._progress.add.remote(
                {
                    "kind": "step",
                    "step": self._learner.steps,
                    "epoch": self._position.epochs,
                    "minutes": self._position.minutes,
                    "loss": nll / self._target_tokens,
                    "tokens_per_s": self._tokens / (60 * minutes),
                    "learning_rate": step.rate,
                    "gradient_norm": float(step.gradient_norm),
                    "minutes_left": (1 - self._position.progress) * minutes / gained if gained > 0 else None,
                }
            )
        self._reset()


@ray.remote
class _Progress:
    """Carries records from the first worker to the driver."""

    def __init__(self) -> None:
        self._records: list[dict[str, Any]] = []

    def add(self, record: dict[str, Any]) -> None:
        self._records.append(record)

    def take(self) -> list[dict[str, Any]]:
        records, self._records = self._records, []
        return records


class _Forwarding:
    """While open, passes on what arrives at the progress actor, from a thread: ``fit`` blocks the driver's own."""

    def __init__(self, progress: Any, on_record: Callable[[dict[str, Any]], None]) -> None:
        import threading

        self._progress, self._on_record = progress, on_record
        self._closing = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> None:
        self._thread.start()

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self._thread.join()
        self._forward()

    def _run(self) -> None:
        while not self._closing.wait(1.0):
            self._forward()

    def _forward(self) -> None:
        for record in ray.get(self._progress.take.remote()):
            self._on_record(record)


def _save(folder: Path, learner: Learner, position: _Position, tokenizer_file: bytes, config: TrainConfig) -> None:
    save_bundle(folder / _BUNDLE, learner.model, tokenizer_file, config.decoding)
    torch.save({"learner": learner.state_dict(), "position": position.state_dict()}, folder / _STATE)


def _restore(folder: Path, learner: Learner) -> dict[str, float]:
    """Load weights and optimizer, and return the position."""
    bundle = load_bundle(folder / _BUNDLE, learner.device)
    learner.model.load_state_dict(bundle.model.state_dict())
    state = torch.load(folder / _STATE, map_location=learner.device, weights_only=True)
    learner.load_state_dict(state["learner"])
    position: dict[str, float] = state["position"]
    return position


def _read_tokenizer(config: TrainConfig) -> bytes:
    Tokenizer.load(config.data.tokenizer)
    return Path(config.data.tokenizer).read_bytes()


def _count_pairs(path: str, option: str) -> int:
    try:
        dataset = pads.dataset(path, format="parquet")
        missing = {"source", "target"} - set(dataset.schema.names)
        rows = dataset.count_rows()
    except (OSError, pa.ArrowInvalid) as error:
        raise UserError(f"cannot read pairs from {path} ({' '.join(str(error).split())}); set {option}") from None
    if missing:
        raise UserError(f"{path} has no column {sorted(missing)[0]!r} (it has: {', '.join(dataset.schema.names)})")
    if rows == 0:
        raise UserError(f"{path} holds no pairs; set {option} to a folder that jobs.prepare wrote")
    return rows


def _claim_output(output: Path, config: TrainConfig, tokenizer_file: bytes) -> None:
    """Make the output folder this training's; going on with another network or tokenizer than it was begun with is an error."""
    identity = {
        "model": config.model.model_dump(by_alias=True),
        "tokenizer_sha256": hashlib.sha256(tokenizer_file).hexdigest(),
    }
    claim = output / "identity.json"
    try:
        output.mkdir(parents=True, exist_ok=True)
        if claim.exists() and json.loads(claim.read_text()) != identity:
            raise UserError(
                f"{output} holds the training of another model or tokenizer; set --output.path to another folder"
            )
        claim.write_text(json.dumps(identity, indent=2) + "\n")
    except OSError as error:
        raise UserError(f"cannot write {output}: {error.strerror}; set --output.path") from None


def _model_card(config: TrainConfig, result: Any) -> str:
    shape = config.model.model_dump(by_alias=True)
    return "\n".join(
        [
            "# Nightshift model",
            "",
            f"Trained on `{config.data.train}`; configuration: `{json.dumps(shape)}`.",
            "",
            "Last validation: "
            + ", ".join(f"{name} {value:.4g}" for name, value in (result.metrics or {}).items() if isinstance(value, float)),
            "",
        ]
    )
