"""Decode a window of sources: sort them by length into batches, search each batch, return hypotheses in the original order.

Works on token ids only; texts and files are not known here. A hypothesis depends on its source, the weights and the options,
not on the other rows. (Below float32 precision, ties may resolve differently in another batch.)

    decode_window -> BatchBudget.batches -> search -> greedy_search or beam_search
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pipeline.config.model import DecodingConfig
from pipeline.data.special_tokens import PAD
from pipeline.decoding.batch_budget import BatchBudget, is_out_of_memory
from pipeline.decoding.batch_state import BatchState, SearchResult, first_positions
from pipeline.decoding.beam import beam_search
from pipeline.decoding.engine import Engine
from pipeline.decoding.greedy import greedy_search
from pipeline.errors import UserError
from pipeline.model.batching import Ints, Rows, longest_first


@dataclass(frozen=True)
class Hypotheses:
    """N hypotheses.

    Attributes:
        values: token ids without ``</s>``, flat.
        offsets: [N + 1] into ``values``.
        scores: mean log-probability of a token [N] (nat), including ``</s>`` where there is one.
        finished: [N], True if the hypothesis ended with ``</s>``, False if the length limit cut it.
        padding: padded source positions that were computed.
        row_steps: decoder steps that were computed, summed over rows, including those beyond a row's end.
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    finished: npt.NDArray[np.bool_]
    padding: int
    row_steps: int


def decode_window(
    engine: Engine,
    sources: Rows,
    options: DecodingConfig,
    budget: BatchBudget,
    limits: npt.NDArray[np.int64] | None = None,
) -> Hypotheses:
    """Decode N sources. A source without tokens gives an empty, finished hypothesis with score 0.

    Args:
        sources: cut to ``options.max_source_tokens``.
        budget: for batches. If a batch runs out of memory, it is decoded in halves, and the budget is lowered for good.
        limits: maximum tokens of each hypothesis [N], 1 to ``max_target_tokens``; None to follow the options.

    Returns:
        Hypotheses in the order of the sources.

    Raises:
        UserError: memory is too small for a single source, or the model computes NaN.
    """
    window = _Window(engine, sources, options, budget, limits)
    order = longest_first(window.lengths)
    threads = budget.threads if engine.device.type == "cpu" else 1
    batches = budget.batches(window.lengths, order[window.lengths[order] > 0], threads)
    with _single_threaded_pool(threads) as pool:
        failed = [rows for part in pool.map(window.decode_halving, batches) for rows in part]
        for rows in failed:  # nothing else is decoded now
            if error := pool.submit(_out_of_memory_error, window.decode, rows).result():
                raise UserError(
                    f"a source of {window.lengths[rows[0]]} tokens does not fit in memory ({error}); "
                    "set --decoding.max_source_tokens lower"
                )
    if np.isnan(window.scores).any():
        raise UserError(
            f"the model computes NaN for {np.isnan(window.scores).sum()} of {len(sources)} sources; "
            "set --resources.precision float32, or train it again"
        )
    return window.hypotheses()


class _Window:
    """Sources of a window and their hypotheses so far."""

    def __init__(
        self,
        engine: Engine,
        sources: Rows,
        options: DecodingConfig,
        budget: BatchBudget,
        limits: npt.NDArray[np.int64] | None,
    ) -> None:
        self._engine, self._sources, self._options = engine, sources, options
        self._budget, self._limits = budget, limits
        rows = len(sources)
        self.lengths = sources.lengths(options.max_source_tokens)
        self.scores = np.zeros(rows, np.float32)
        self._tokens = np.full((rows, options.max_target_tokens), PAD, np.int32)
        self._counts = np.zeros(rows, np.int64)
        self._finished = np.ones(rows, np.bool_)
        self._padding = np.zeros(rows, np.int64)
        self._row_steps: list[int] = []

    def decode(self, rows: Ints) -> None:
        engine = self._engine
        source, source_lengths = self._sources.padded(rows, self._options.max_source_tokens)
        limits = None if self._limits is None else torch.from_numpy(self._limits[rows]).to(engine.device)
        result = search(engine, source.to(engine.device), source_lengths.to(engine.device), self._options, limits)
        self._tokens[rows] = result.tokens.cpu().numpy()
        self._counts[rows] = result.lengths.cpu().numpy()
        self.scores[rows] = result.scores.cpu().numpy()
        self._finished[rows] = result.finished.cpu().numpy()
        self._row_steps.append(result.row_steps)
        self._padding[rows] = 0 if engine.backend.is_stepwise else source.shape[1] - self.lengths[rows]

    def decode_halving(self, rows: Ints) -> list[Ints]:
        """Decode a batch, in halves if it runs out of memory. Return the single rows that failed even alone."""
        needed = self._budget.needed(self.lengths[rows])
        if len(rows) == 1 or needed <= self._budget.tokens:
            if _out_of_memory_error(self.decode, rows) is None:
                return []
            _release_memory(self._engine)
            self._budget.lower(needed)
        if len(rows) == 1:
            return [rows]
        middle = len(rows) // 2
        return self.decode_halving(rows[:middle]) + self.decode_halving(rows[middle:])

    def hypotheses(self) -> Hypotheses:
        return Hypotheses(
            values=self._tokens[np.arange(self._tokens.shape[1]) < self._counts[:, None]],
            offsets=np.concatenate(([0], np.cumsum(self._counts))),
            scores=self.scores,
            finished=self._finished,
            padding=int(self._padding.sum()),
            row_steps=sum(self._row_steps),
        )


@torch.inference_mode()
def search(
    engine: Engine, source: Tensor, source_lengths: Tensor, options: DecodingConfig, limits: Tensor | None = None
) -> SearchResult:
    """Search one batch: source[B, S] with source_lengths[B] ≥ 1, in descending order.

    Args:
        limits: maximum tokens of each hypothesis [B], 1 to ``max_target_tokens``; None to follow the options.
    """
    source, source_lengths = source.clone(), source_lengths.clone()  # compaction moves rows in place
    if limits is None:
        limits = torch.full_like(source_lengths, options.max_target_tokens)
        if options.max_target_ratio is not None:
            by_length = (options.max_target_ratio * source_lengths).long() + options.max_target_extra
            limits = by_length.clamp(max(1, options.min_target_tokens), options.max_target_tokens)
    encoded, state = engine.read(source, source_lengths)
    positions = first_positions(source) if engine.config.copy_source else None
    batch = BatchState(torch.arange(len(source), device=engine.device), encoded, state, positions)
    run = greedy_search if options.beam_size == 1 else beam_search
    return run(engine, batch, limits.clone(), options)


def _out_of_memory_error(decode: Callable[[Ints], None], rows: Ints) -> str | None:
    """Decode rows. Return the first line of an out-of-memory error, or None."""
    try:
        decode(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        return str(error).split("\n")[0] or type(error).__name__
    return None


def _release_memory(engine: Engine) -> None:
    """Free the device memory that is cached for later batches."""
    if engine.graphs is not None:
        engine.graphs.clear()
    torch.cuda.empty_cache()  # does nothing without a GPU


@contextmanager
def _single_threaded_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """Yield a pool whose threads do not share products: small products are faster on one thread each."""
    previous = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "decode", initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(previous)
