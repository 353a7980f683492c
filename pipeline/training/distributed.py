"""Training on Ray, from the driver: read the input, run the workers, forward their records, write the bundle.

    pairs ── Ray Data (dataset.py) ──> DDP workers (worker.py) ──> checkpoints ──> bundle (output_folder.py)

Ray Train places the workers, sets up their process group (gloo, or NCCL on GPUs) and keeps track of their checkpoints. To run
a training again is to resume it from the last checkpoint, or, if it had finished, to make sure that the bundle exists.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.train
from ray.exceptions import RayError
from ray.train.torch import TorchTrainer
from ray.util.queue import Empty, Queue
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline import cluster
from pipeline.config.train import ScalingSection, TrainConfig
from pipeline.data.pairs import STYLE, PairSet, open_pairs, pair_styles, pair_texts
from pipeline.errors import Stopped, UserError
from pipeline.io.location import Location
from pipeline.model.malloc import KEEP_FREED_MEMORY, NO_PRIMITIVE_CACHE
from pipeline.training.checkpoints import CHECKPOINTS, WriterFence
from pipeline.training.dataset import TRAIN, RoundRobinSplit, WindowLayout, plan_windows, training_windows
from pipeline.training.learner import progress_fraction
from pipeline.training.output_folder import TrainingFolder, copy_record
from pipeline.training.plan import TrainingPlan
from pipeline.training.worker import WorkerJob, train_worker

_DATA_CPUS = 1.0
"""CPUs left to Ray Data: its task that lists the files asks for one, and without it the workers would wait forever."""

_WAITING_EVERY_S = 60.0

Record = dict[str, Any]


@dataclass(frozen=True)
class TrainingResult:
    """A finished training.

    Attributes:
        bundle: URI of the bundle.
        fingerprint: fingerprint of the bundle.
        last: record of the last validation.
        was_finished: True if the training had finished before this call.
        stopped_early: True if it ended by ``training.patience`` and not by another limit.
    """

    bundle: str
    fingerprint: str
    last: Record
    was_finished: bool
    stopped_early: bool


def train(plan: TrainingPlan, on_record: Callable[[Record], None]) -> TrainingResult:
    """Train until the configured end, resuming from the last checkpoint if there is one, and write the bundle.

    Args:
        on_record: called with each record: skipped rows, if any; then from the workers at their start, every few seconds, at
            rollbacks, and for each validation once its checkpoint is kept.

    Raises:
        UserError: the data, the output folder or an option is not usable.
        Stopped: workers failed or were lost.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    config, data = plan.config, _read_data(plan.config)
    folder = TrainingFolder(plan)
    folder.claim(data.dev)
    kept = folder.kept_checkpoints()
    was_finished = kept is not None and _is_finished(config, kept.last_metrics)
    if not was_finished:
        if any(data.skipped.values()):
            on_record({"kind": "skipped", "step": 0, "at": time.time(), **data.skipped})
        fence = folder.start_run(kept)
        cluster.connect()
        layout = plan_windows(config, data.train.rows, data.pairs, kept.last_metrics["layout"] if kept else None)
        with _forwarding(on_record) as records:
            _run_workers(plan, data, layout, fence, records)
        kept = folder.kept_checkpoints()
    assert kept is not None, "workers end with a checkpoint"
    fingerprint = folder.write_bundle(kept, data.pairs)
    last = kept.last_metrics
    return TrainingResult(folder.bundle.uri, fingerprint, last, was_finished, _stopped_early(config, last))


@dataclass(frozen=True)
class _InputData:
    """Input that the driver reads before it starts the workers."""

    train: PairSet
    pairs: int  # rows of train without a null
    dev: dict[str, list[Any]]  # development pairs, by column
    skipped: dict[str, int]  # rows of train and dev with a null


def _read_data(config: TrainConfig) -> _InputData:
    data, dev_rows = config.data, config.training.validate_rows
    train_set = open_pairs(data.train, "--data.train")
    pairs = train_set.count_pairs()
    rows = pa.concat_tables(open_pairs(data.dev, "--data.dev").windows(dev_rows, dev_rows))
    sources, targets = pair_texts(rows)
    if not sources:
        raise UserError(
            f"source or target is null in each of the first {len(rows):,} rows of {data.dev}; set --data.dev to complete pairs"
        )
    skipped = {"train": train_set.rows - pairs, "dev": len(rows) - len(sources)}
    dev: dict[str, list[Any]] = {"source": sources, "target": targets}
    if config.model.styles:
        dev[STYLE] = pair_styles(rows)
        if unknown := sorted({style for style in dev[STYLE] if style} - set(config.model.styles)):
            raise UserError(f"style {unknown[0]} of {data.dev} is not in {data.train}; set --data.dev to pairs of its styles")
    return _InputData(train_set, pairs, dev, skipped)


def _is_finished(config: TrainConfig, last: Record) -> bool:
    progress = progress_fraction(config.training, last["epoch"], last["minutes"], last["step"])
    return progress >= 1.0 or _stopped_early(config, last)


def _stopped_early(config: TrainConfig, last: Record) -> bool:
    patience = config.training.patience
    return patience is not None and last["validations_since_best"] >= patience


@contextlib.contextmanager
def _forwarding(on_record: Callable[[Record], None]) -> Iterator[Queue]:
    """Yield a queue whose records are passed to ``on_record`` by a thread: the driver's own waits for the workers."""
    # On the driver's node: elsewhere the queue could be lost while the driver and the workers live on.
    driver_node = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    records = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": driver_node})
    with ThreadPoolExecutor(1) as pool:
        forwarding = pool.submit(_forward, records, on_record)
        try:
            yield records
        finally:
            with contextlib.suppress(RayError):  # a lost queue has ended the thread too
                records.put(None)
        forwarding.result()


def _forward(records: Queue, on_record: Callable[[Record], None]) -> None:
    """Pass records on until a None arrives."""
    started = False
    while True:
        try:
            record = records.get(timeout=_WAITING_EVERY_S)
        except Empty:
            if not started:
                on_record({"kind": "waiting", "cpus": cluster.total_resource("CPU"), "gpus": cluster.total_resource("GPU")})
            continue
        if record is None:
            return
        started = True
        on_record(record)


def _run_workers(plan: TrainingPlan, data: _InputData, layout: WindowLayout, fence: WriterFence, records: Queue) -> None:
    """Train from the first step, or the last checkpoint, to the end."""
    config, scaling = plan.config, plan.config.scaling
    resources, threads = _worker_resources(scaling)
    job = WorkerJob(
        config=config.model_dump_json(by_alias=True),
        tokenizer_file=plan.tokenizer_file,
        parent_files=plan.parent.files if plan.parent else None,
        layout=layout,
        dev=data.dev,
        threads=threads,
        fence=fence,
        records=records,
    )
    # Two numbers let Ray Train change the number of workers between them.
    num_workers = scaling.num_workers if scaling.min_workers is None else (scaling.min_workers, scaling.num_workers)
    try:
        TorchTrainer(
            train_worker,  # type: ignore[arg-type]  # a TypedDict is a dict
            train_loop_config=dict(job),
            scaling_config=ray.train.ScalingConfig(
                num_workers=num_workers,  # type: ignore[arg-type]  # Ray's annotation lacks the tuple
                use_gpu="GPU" in resources,
                resources_per_worker=resources,
                placement_strategy=scaling.placement,
            ),
            run_config=_run_config(config, fence.folder, records, uses_gpu="GPU" in resources),
            datasets={TRAIN: training_windows(config, data.train, layout, plan.tokenizer_file)},
            dataset_config=RoundRobinSplit(),
        ).fit()
    except (ray.train.TrainingFailedError, RayError) as error:
        raise _to_user_error(error) from None
    except SystemExit as exit_:
        if exit_.code == signal.SIGTERM:
            raise
        raise KeyboardInterrupt from None  # Ray Train exits at Ctrl-C, after it has stopped the workers


def _worker_resources(scaling: ScalingSection) -> tuple[dict[str, float], int]:
    """Return the resources to request for each worker, and its number of CPU threads.

    Raises:
        UserError: this machine is too small. On a cluster, which may grow, the workers wait.
    """
    workers, cpus, gpus = scaling.num_workers, cluster.total_resource("CPU"), int(cluster.total_resource("GPU"))
    is_local = (os.environ.get("RAY_ADDRESS") or "local") == "local"
    use_gpu = gpus > 0 if scaling.use_gpu is None else scaling.use_gpu
    min_workers = scaling.min_workers or workers
    if use_gpu and gpus < min_workers and is_local:
        raise UserError(
            f"{min_workers} workers need one GPU each, but this machine has {gpus}; "
            "lower --scaling.num_workers or set --scaling.use_gpu false"
        )
    share = int(100 * (cpus - _DATA_CPUS) / workers) / 100
    if share <= 0 and is_local:
        raise UserError(f"{workers} workers and 1 CPU to read data do not fit on {cpus:g} CPUs; lower --scaling.num_workers")
    resources = {"CPU": min(share, 1.0) if share > 0 else 1.0, **({"GPU": 1.0} if use_gpu else {})}
    return resources, scaling.threads or max(1, int(cpus) // workers)


def _run_config(config: TrainConfig, root: Location, records: Queue, *, uses_gpu: bool) -> ray.train.RunConfig:
    by = config.training.best_by
    return ray.train.RunConfig(  # type: ignore[call-arg]  # annotated as in Ray Train's first version
        name=CHECKPOINTS,
        storage_path=root.path,
        storage_filesystem=root.filesystem,
        worker_runtime_env={} if uses_gpu else {"env_vars": KEEP_FREED_MEMORY | NO_PRIMITIVE_CACHE},
        callbacks=[_ControllerCallback(records, root)],  # type: ignore[list-item]
        failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_restarts),
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=1,  # by score; the last one is always kept too
            checkpoint_score_attribute=by,
            checkpoint_score_order="min" if by == "dev_loss" else "max",
        ),
    )


class _ControllerCallback(ray.train.UserCallback):
    """Runs in Ray Train's controller: report kept checkpoints, and end a training that fails with a UserError."""

    def __init__(self, records: Queue, root: Location) -> None:
        self._records, self._root = records, root

    def after_report(self, run_context: Any, metrics: list[Record], checkpoint: Any) -> None:  # noqa: ARG002
        """Forward the first worker's record once its checkpoint is in the output folder and in Ray Train's record."""
        with contextlib.suppress(UserError):  # the copy is optional
            copy_record(self._root)
        self._records.put(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raise a UserError here, which keeps Ray Train from restarting workers that would fail again."""
        for failure in worker_exceptions.values():
            if isinstance(failure, UserError):
                raise failure


def _to_user_error(error: Exception) -> Exception:
    """Return a worker's UserError as it was raised there, and any other error as Stopped."""
    if isinstance(error, ray.train.ControllerError) and isinstance(error.controller_failure, UserError):
        return error.controller_failure
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    for failure in failures.values():
        if isinstance(failure, UserError):
            return failure
    # If a worker is lost, the others fail too, each with a long message that it does not answer.
    lost = {rank: str(failure) for rank, failure in failures.items() if type(failure).__module__.startswith("ray.")}
    message = str(error).strip() or type(error).__name__
    if lost:
        reasons = {rank: re.search(r"dead because ([^.]+)", text) for rank, text in lost.items()}
        message = "; ".join(f"worker {rank} was lost: {match[1] if match else lost[rank]}" for rank, match in reasons.items())
    return Stopped(f"{message}\nRun the same command again to resume from the last checkpoint.")
