"""Training on Ray, from the driver: check the input, start the workers, hand on their records, write the bundle.

    pairs ── Ray Data (windows.py) ──> DDP workers (worker.py) ──> checkpoints ──> bundle (checkpoints.py)

Ray Train places the workers, sets up their process group (gloo, or NCCL on GPUs) and keeps their checkpoints. Running a
training again goes on from the last checkpoint, or, if its end was reached, makes sure that the bundle is there.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import time
from collections.abc import Callable
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
from pipeline.data.pairs import PairSet, open_pairs, pair_texts
from pipeline.data.tokenizer import Tokenizer
from pipeline.errors import Stopped, UserError
from pipeline.io.location import Location, open_location
from pipeline.model.malloc import KEEP_FREED_MEMORY
from pipeline.training.checkpoints import CHECKPOINTS, TrainingFolder, WriterFence, copy_record
from pipeline.training.dataset import TRAIN, RoundRobinSplit, plan_windows, training_windows
from pipeline.training.learner import progress_fraction
from pipeline.training.worker import WorkerJob, train_worker

_DATA_CPUS = 1.0
"""Left to Ray Data beside the workers: what its listing of the files asks for, and without which they would wait for ever."""
_WAITING_EVERY_S = 60.0

Record = dict[str, Any]


@dataclass(frozen=True)
class TrainingResult:
    """A training that has reached its end. last: record of its last validation. was_finished: it had been there before.

    ran_out: of patience, not of what else bounds it.
    """

    bundle: str
    last: Record
    was_finished: bool
    ran_out: bool


def train(config: TrainConfig, on_record: Callable[[Record], None]) -> TrainingResult:
    """Train until the configured end, going on from the last checkpoint if there is one, and write the bundle.

    Args:
        on_record: called with each record: of rows that are no pairs, if there are any, and from the workers when they
            start, every few seconds, where they roll back, and of each validation once its checkpoint is kept.

    Raises:
        UserError: the data, the tokenizer, the output folder or an option is not usable.
        Stopped: workers failed or were lost.
    """
    logging.getLogger("ray.train").setLevel(logging.WARNING)
    data = _read_data(config)
    folder = TrainingFolder(config)
    folder.claim(data.tokenizer_file, data.dev)
    kept = folder.kept()
    was_finished = kept is not None and _is_finished(config, kept.last_metrics)
    if not was_finished:
        if any(data.skipped.values()):
            on_record({"kind": "skipped", "step": 0, "at": time.time(), **data.skipped})
        fence = folder.take_over(kept)
        cluster.connect()
        _run_workers(config, data, folder, fence, on_record, kept.last_metrics["layout"] if kept else None)
        kept = folder.kept()
    assert kept is not None, "workers end with a checkpoint"
    folder.write_bundle(kept, data.pairs)
    return TrainingResult(folder.bundle.uri, kept.last_metrics, was_finished, _ran_out(config, kept.last_metrics))


@dataclass(frozen=True)
class _Data:
    """What is read before workers start.

    pairs: in ``train``. dev: the development pairs that are used, by column. skipped: rows of both with a null text.
    """

    tokenizer_file: bytes
    train: PairSet
    pairs: int
    dev: dict[str, list[str]]
    skipped: dict[str, int]


def _read_data(config: TrainConfig) -> _Data:
    data, dev_rows = config.data, config.training.validate_rows
    tokenizer_file = open_location(data.tokenizer, "--data.tokenizer").read()
    Tokenizer(tokenizer_file, data.tokenizer)
    store = open_pairs(data.train, "--data.train")
    pairs = store.count_pairs()
    rows = pa.concat_tables(open_pairs(data.dev, "--data.dev").windows(dev_rows, dev_rows))
    sources, targets = pair_texts(rows)
    if not sources:
        raise UserError(f"the first {len(rows):,} rows of {data.dev} have a null source or target; set --data.dev to pairs")
    skipped = {"train": store.rows - pairs, "dev": len(rows) - len(sources)}
    return _Data(tokenizer_file, store, pairs, {"source": sources, "target": targets}, skipped)


def _is_finished(config: TrainConfig, last: Record) -> bool:
    return _ran_out(config, last) or progress_fraction(config.training, last["epoch"], last["minutes"], last["step"]) >= 1.0


def _ran_out(config: TrainConfig, last: Record) -> bool:
    patience = config.training.patience
    return patience is not None and last["validations_since_best"] >= patience


def _run_workers(
    config: TrainConfig,
    data: _Data,
    folder: TrainingFolder,
    fence: WriterFence,
    on_record: Callable[[Record], None],
    layout_before: dict[str, int] | None,
) -> None:
    """From the first step, or the last checkpoint, to the end."""
    scaling = config.scaling
    resources, threads = _resources(scaling)
    layout = plan_windows(config, data.train.rows, data.pairs, layout_before)
    # On the driver's own node: wherever else a queue is, it can be lost while the driver and the workers live on.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    records = Queue(actor_options={"num_cpus": 0, "scheduling_strategy": here})
    job = WorkerJob(
        config=config.model_dump_json(by_alias=True),
        tokenizer_file=data.tokenizer_file,
        layout=layout,
        dev=data.dev,
        threads=threads,
        fence=fence,
        records=records,
    )
    with ThreadPoolExecutor(1) as pool:
        forwarding = pool.submit(_forward, records, on_record)
        try:
            TorchTrainer(
                train_worker,  # type: ignore[arg-type]  # a TypedDict is a dict
                train_loop_config=dict(job),
                scaling_config=ray.train.ScalingConfig(
                    num_workers=_num_workers(scaling),  # type: ignore[arg-type]  # typed as of before it could change
                    use_gpu="GPU" in resources,
                    resources_per_worker=resources,
                    placement_strategy=scaling.placement,
                ),
                run_config=_run_config(config, folder, records, use_gpu="GPU" in resources),
                datasets={TRAIN: training_windows(config, data.train, layout, data.tokenizer_file)},
                dataset_config=RoundRobinSplit(),
            ).fit()
        except (ray.train.TrainingFailedError, RayError) as error:
            raise _to_user_error(error) from None
        except SystemExit as ended:
            if ended.code == signal.SIGTERM:
                raise
            raise KeyboardInterrupt from None  # Ray Train's own answer to Ctrl-C, once it has stopped the workers
        finally:
            with contextlib.suppress(RayError):  # a queue that is lost has ended the forwarding too
                records.put(None)
        forwarding.result()


class _Listener(ray.train.UserCallback):
    """Beside Ray Train's controller: tells of checkpoints once they are kept, and ends a training that the user must mend."""

    def __init__(self, records: Queue, root: Location) -> None:
        self._records, self._root = records, root

    def after_report(self, run_context: Any, metrics: list[Record], checkpoint: Any) -> None:  # noqa: ARG002
        """The first worker's record has come with a checkpoint, which is in the output folder and on Ray Train's list."""
        with contextlib.suppress(UserError):  # without a copy of this one a training goes on as well
            copy_record(self._root)
        self._records.put(metrics[0])

    def after_exception(self, run_context: Any, worker_exceptions: dict[int, Exception]) -> None:  # noqa: ARG002
        """Raising here keeps Ray Train from starting again what would fail again."""
        for failure in worker_exceptions.values():
            if isinstance(failure, UserError):
                raise failure


def _run_config(config: TrainConfig, folder: TrainingFolder, records: Queue, use_gpu: bool) -> ray.train.RunConfig:
    by = config.training.best_by
    return ray.train.RunConfig(  # type: ignore[call-arg]  # typed as it was before Ray Train's second version
        name=CHECKPOINTS,
        storage_path=folder.root.path,
        storage_filesystem=folder.root.filesystem,
        worker_runtime_env={} if use_gpu else {"env_vars": KEEP_FREED_MEMORY},
        callbacks=[_Listener(records, folder.root)],  # type: ignore[list-item]
        failure_config=ray.train.FailureConfig(max_failures=config.scaling.max_restarts),
        checkpoint_config=ray.train.CheckpointConfig(
            num_to_keep=1,  # by score; the last one is always kept too
            checkpoint_score_attribute=by,
            checkpoint_score_order="min" if by == "dev_loss" else "max",
        ),
    )


def _resources(scaling: ScalingSection) -> tuple[dict[str, float], int]:
    """What Ray is asked for, for each worker, and the CPU threads that it computes with.

    Raises:
        UserError: this machine has not so much. A cluster may yet grow: there, the workers wait.
    """
    workers, cpus, gpus = scaling.num_workers, cluster.total_resource("CPU"), int(cluster.total_resource("GPU"))
    alone = (os.environ.get("RAY_ADDRESS") or "local") == "local"
    use_gpu = gpus > 0 if scaling.use_gpu is None else scaling.use_gpu
    fewest = scaling.min_workers or workers
    if use_gpu and gpus < fewest and alone:
        raise UserError(f"{fewest} workers need a GPU each and this machine has {gpus}; set --scaling.num_workers or use_gpu")
    share = int(100 * (cpus - _DATA_CPUS) / workers) / 100
    if share <= 0 and alone:
        raise UserError(
            f"{workers} workers, and 1 CPU that reads for them, do not fit on {cpus:g} CPUs; set --scaling.num_workers"
        )
    resources = {"CPU": min(share, 1.0) if share > 0 else 1.0, **({"GPU": 1.0} if use_gpu else {})}
    return resources, scaling.threads or max(1, int(cpus) // workers)


def _num_workers(scaling: ScalingSection) -> int | tuple[int, int]:
    """As Ray Train takes it: two numbers let it change between them."""
    return scaling.num_workers if scaling.min_workers is None else (scaling.min_workers, scaling.num_workers)


def _forward(records: Queue, on_record: Callable[[Record], None]) -> None:
    """Hand on what arrives, until None does: on a thread, since the driver's own waits for the workers."""
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


def _to_user_error(error: Exception) -> Exception:
    """A worker's UserError as it was raised there; anything else as Stopped."""
    if isinstance(error, ray.train.ControllerError) and isinstance(error.controller_failure, UserError):
        return error.controller_failure
    failures = error.worker_failures if isinstance(error, ray.train.WorkerGroupError) else {}
    for failure in failures.values():
        if isinstance(failure, UserError):
            return failure
    # Where a worker is lost, the others fail too, over and over the same: that nobody answers.
    lost = {rank: str(failure) for rank, failure in failures.items() if type(failure).__module__.startswith("ray.")}
    told = str(error).strip() or type(error).__name__
    if lost:
        reasons = {rank: re.search(r"dead because ([^.]+)", reason) for rank, reason in lost.items()}
        told = "; ".join(f"worker {rank} was lost: {match[1] if match else lost[rank]}" for rank, match in reasons.items())
    return Stopped(f"{told}\nRun the same command again to go on from the last checkpoint.")
