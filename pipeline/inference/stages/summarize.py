"""Summarize stage: an actor that hosts the model and turns the source token ids of a window into summary ids."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import ray
import torch

from pipeline.cluster import available_cpus
from pipeline.config.model import DecodingConfig
from pipeline.data.rejects import RejectReason
from pipeline.data.special_tokens import EOS
from pipeline.data.token_columns import flatten_column, list_column
from pipeline.decoding.backends import backend_for
from pipeline.decoding.batch_budget import BatchBudget, is_out_of_memory
from pipeline.decoding.decode import Hypotheses, decode_window
from pipeline.decoding.engine import Engine
from pipeline.inference.failure_isolation import AttemptCounter, FailureBisection
from pipeline.inference.stages.window import DETAIL, FINISHED, IDS, REASON, SCORE, SUMMARY_IDS, row_to_window, window_to_row
from pipeline.model.batching import Rows
from pipeline.model.bundle import bundle_from_files
from pipeline.runs.timings import StageTimings, peak_bytes

_LOG = logging.getLogger(__name__)

_WARM_UP_TOKENS = 8
_WARM_UP = Rows(np.full(_WARM_UP_TOKENS, EOS, np.int32), np.array([0, _WARM_UP_TOKENS], np.int64))


@dataclass(frozen=True)
class ActorSettings:
    """Options and resources of an actor.

    Attributes:
        bundle_files: Files of the bundle by name, in Ray's object store: all actors use the bundle that the plan read.
        gpus: Share of a GPU that the actor has; 0 to compute on CPUs.
        cpus: CPUs that the actor has, which set its share of the machine's memory.
        threads: CPU threads; not more than the machine has CPUs are used.
        token_budget: Padded source tokens of a batch; None for as many as memory holds.
    """

    bundle_files: ray.ObjectRef[Mapping[str, bytes]]
    decoding: DecodingConfig
    gpus: float
    cpus: float
    threads: int
    precision: str
    token_budget: int | None


class SummarizeWindow:
    """Hosts the model and decodes windows.

    Args:
        attempts: Counts attempts, to find documents that crash the process; None to count none.
    """

    def __init__(self, settings: ActorSettings, attempts: AttemptCounter | None = None) -> None:
        self._settings, self._attempts = settings, attempts
        self._threads = min(settings.threads, available_cpus())
        torch.set_num_threads(self._threads)
        self._device = torch.device("cuda" if settings.gpus else "cpu")
        if 0 < settings.gpus < 1:  # torch keeps freed memory, which the other actors of the GPU would lack
            torch.cuda.set_per_process_memory_fraction(settings.gpus)
        self._model = bundle_from_files(ray.get(settings.bundle_files), "the model bundle", self._device).model
        self._idle_since: float | None = None

    @functools.cached_property
    def _engine(self) -> Engine:
        return Engine(self._model, backend_for(self._settings.precision, self._device))

    @functools.cached_property
    def _budget(self) -> BatchBudget:
        if self._settings.token_budget is not None:
            return BatchBudget(self._settings.token_budget, threads=self._threads)
        memory_share = self._settings.gpus or min(1.0, self._settings.cpus / available_cpus())
        return BatchBudget.by_memory(self._engine, self._settings.decoding, memory_share, self._threads)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Replace the token ids of a window by summary ids, scores, and whether each summary ended with ``</s>``.

        Raises:
            UserError: The device cannot compute in this precision. (Not raised by the constructor, which Ray would retry, with
                a traceback on the screen each time.)
        """
        if self._idle_since is None:  # warm up before the clock of the first window starts
            self._warm_up()
            self._idle_since = time.monotonic()
        _ = self._budget
        started = time.monotonic()
        waited_s = started - self._idle_since
        window, metadata = row_to_window(row)
        hypotheses, failures = self._decode(metadata.name, Rows(*flatten_column(window[IDS])))
        decoded = (
            reject_failures(window, failures)
            .drop_columns([IDS])
            .append_column(SUMMARY_IDS, list_column(hypotheses.values, hypotheses.offsets))
            .append_column(SCORE, pa.array(hypotheses.scores, pa.float32()))
            .append_column(FINISHED, pa.array(hypotheses.finished))
        )
        self._idle_since = time.monotonic()
        timings = StageTimings(
            waited_s=waited_s, decode_s=self._idle_since - started, padding=hypotheses.padding, actor_bytes=peak_bytes()
        )
        actor = ray.get_runtime_context().get_actor_id() or ""
        return window_to_row(decoded, replace(metadata, actor=actor, timings=metadata.timings + timings))

    def _decode(self, window: str, sources: Rows) -> tuple[Hypotheses, dict[int, str]]:
        """Return hypotheses, and the errors of rows that the decoder fails on, by row; their hypotheses are empty."""
        lengths = sources.lengths()

        def decode(rows: npt.NDArray[np.int64]) -> Hypotheses:
            """Decode these rows alone; all others are empty."""
            kept_lengths = np.zeros_like(lengths)
            kept_lengths[rows] = lengths[rows]
            values = sources.values[np.repeat(kept_lengths > 0, lengths)]
            try:
                offsets = np.concatenate(([0], np.cumsum(kept_lengths)))
                return decode_window(self._engine, Rows(values, offsets), self._settings.decoding, self._budget)
            except torch.AcceleratorError as error:
                if is_out_of_memory(error):
                    raise
                # A process cannot compute on a GPU that has failed; its successor counts this as an attempt.
                _LOG.exception("the GPU failed; this actor ends")
                os._exit(1)

        return FailureBisection(self._attempts, window).run(np.flatnonzero(lengths), decode, self._warm_up)

    def _warm_up(self) -> None:
        """Decode a few tokens, which compiles functions or loads them from a cache."""
        decode_window(self._engine, _WARM_UP, self._settings.decoding, BatchBudget(_WARM_UP_TOKENS))


def reject_failures(window: pa.Table, failures: Mapping[int, str]) -> pa.Table:
    """Return the window with the rows that the decoder failed on, given their errors, as rejects."""
    if not failures:
        return window
    for column, values in ((REASON, dict.fromkeys(failures, RejectReason.DECODE_ERROR)), (DETAIL, failures)):
        replaced = [values.get(row, value) for row, value in enumerate(window[column].to_pylist())]
        window = window.set_column(window.schema.get_field_index(column), column, pa.array(replaced, pa.string()))
    return window
