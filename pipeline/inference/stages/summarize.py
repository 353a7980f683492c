"""The stage of a run that hosts the model: a window's source ids in, its summary ids out. See passport.py."""

from __future__ import annotations

import functools
import logging
import os
import time
from collections.abc import Mapping
from dataclasses import replace

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
from pipeline.model.bundle import bundle_from_files
from pipeline.runs.timings import StageTimings, peak_bytes

_LOG = logging.getLogger(__name__)

Tokens = npt.NDArray[np.int32]
Offsets = npt.NDArray[np.int64]

_WARM_UP_TOKENS = 8
_WARM_UP = np.full(_WARM_UP_TOKENS, EOS, np.int32), np.array([0, _WARM_UP_TOKENS], np.int64)


class SummarizeWindow:
    """Hosts the model and decodes windows.

    Args:
        bundle_files: the bundle's files by name, in Ray's object store. gpus: this actor's part of the GPU that Ray assigned;
            0 to compute on CPUs. cpus: its part of the machine's. token_budget: padded source tokens of a batch; None for what
            memory has room for, of whose free part an actor takes as large a part as of the device. precision: of matrix
            products. threads: CPU threads to compute with, no more of them than the machine has cores. attempts: that are
            counted, of the run (attempts.py); None: none are.
    """

    def __init__(
        self,
        bundle_files: ray.ObjectRef[Mapping[str, bytes]],
        options: DecodingConfig,
        gpus: float,
        cpus: float,
        token_budget: int | None,
        precision: str,
        threads: int,
        attempts: AttemptCounter | None = None,
    ) -> None:
        self._threads = min(threads, available_cpus())
        torch.set_num_threads(self._threads)
        self._device = torch.device("cuda" if gpus else "cpu")
        if 0 < gpus < 1:  # what torch keeps of freed memory would be missing to those that share the GPU
            torch.cuda.set_per_process_memory_fraction(gpus)
        self._model = bundle_from_files(ray.get(bundle_files), "the model bundle", self._device).model
        self._options = options
        self._token_budget, self._memory_share = token_budget, gpus or min(1.0, cpus / available_cpus())
        self._precision = precision
        self._attempts = attempts
        self._idle_since: float | None = None

    @functools.cached_property
    def _engine(self) -> Engine:
        return Engine(self._model, backend_for(self._precision, self._device))

    @functools.cached_property
    def _budget(self) -> BatchBudget:
        if self._token_budget is not None:
            return BatchBudget(self._token_budget)
        return BatchBudget.by_memory(self._engine, self._options, self._memory_share, self._threads)

    def __call__(self, row: pa.Table) -> pa.Table:
        """Of a window, as a row: ids give way to summary ids, mean log-probability of a token, and whether ``</s>`` came.

        Raises:
            UserError: the device does not compute in the precision asked for. (An actor that fails earlier, while it is
                made, is tried again, and Ray shows each failure in full.)
        """
        if self._idle_since is None:  # the first window makes what its time shall not count
            self._warm_up()
            self._idle_since = time.monotonic()
        _ = self._budget
        started = time.monotonic()
        waited_s = started - self._idle_since
        window, passport = row_to_window(row)
        found, failed = self._decode(passport.name, *flatten_column(window[IDS]))
        decoded = (
            reject_failures(window, failed)
            .drop_columns([IDS])
            .append_column(SUMMARY_IDS, list_column(found.values, found.offsets))
            .append_column(SCORE, pa.array(found.scores, pa.float32()))
            .append_column(FINISHED, pa.array(found.finished))
        )
        self._idle_since = time.monotonic()
        own = StageTimings(
            waited_s=waited_s, decode_s=self._idle_since - started, padding=found.padding, actor_bytes=peak_bytes()
        )
        actor = ray.get_runtime_context().get_actor_id() or ""
        return window_to_row(decoded, replace(passport, actor=actor, timings=passport.timings + own))

    def _decode(self, window: str, values: Tokens, offsets: Offsets) -> tuple[Hypotheses, dict[int, str]]:
        """A window's hypotheses; and what is said of rows that the decoder fails on, which stay empty, by row."""

        def decode(rows: Offsets) -> Hypotheses:
            """With these rows alone, the others being empty."""
            lengths = np.zeros(len(offsets) - 1, np.int64)
            lengths[rows] = np.diff(offsets)[rows]
            kept = np.repeat(lengths > 0, np.diff(offsets))
            ends = np.concatenate(([0], np.cumsum(lengths)))
            try:
                return decode_window(self._engine, values[kept], ends, self._options, self._budget, self._threads)
            except torch.AcceleratorError as error:
                if is_out_of_memory(error):
                    raise
                # Nothing more can be computed in a process whose GPU has failed; a new one is counted as an attempt.
                _LOG.exception("the GPU failed; this actor ends")
                os._exit(1)

        search = FailureBisection(self._attempts, window)
        return search.run(np.flatnonzero(np.diff(offsets)), decode, self._warm_up)

    def _warm_up(self) -> None:
        """Decode next to nothing, which loads what is compiled, or compiles it."""
        decode_window(self._engine, *_WARM_UP, self._options, BatchBudget(_WARM_UP_TOKENS))


def reject_failures(window: pa.Table, failed: Mapping[int, str]) -> pa.Table:
    """The window, of which the decoder failed on some rows, by row: these are rejected, with what it said."""
    for column, values in ((REASON, dict.fromkeys(failed, RejectReason.DECODE_ERROR)), (DETAIL, failed)) if failed else ():
        told = [values.get(row, before) for row, before in enumerate(window[column].to_pylist())]
        window = window.set_column(window.schema.get_field_index(column), column, pa.array(told, pa.string()))
    return window
