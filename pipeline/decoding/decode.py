"""A window of sources to hypotheses: sorted by length into batches, each searched (search.py), back in order.

Works on token ids alone. What a row becomes depends on that row, the weights and the options, not on its neighbours; in lower
precision a tie may fall the other way in another batch.
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

    values, offsets[N + 1]: token ids, flat, without ``</s>``. scores[N]: mean log-probability of a token (nat), with
    ``</s>`` where it was written. finished[N]: True if ``</s>`` was written, False if the maximum length cut the row.
    padding: source positions that were computed beside real ones. row_steps: of the decoder, with those beyond a row's end.
    """

    values: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    scores: npt.NDArray[np.float32]
    finished: npt.NDArray[np.bool_]
    padding: int
    row_steps: int


def decode_window(
    engine: Engine,
    values: npt.NDArray[np.int32],
    offsets: npt.NDArray[np.int64],
    options: DecodingConfig,
    budget: BatchBudget,
    threads: int = 1,
    limits: npt.NDArray[np.int64] | None = None,
) -> Hypotheses:
    """Decode a window of N sources.

    Args:
        values, offsets[N + 1]: source ids, flat; a source without tokens gives an empty, finished hypothesis with score 0.
        options: of the search; sources are cut to ``max_source_tokens``.
        budget: of a batch. One that does not find room in memory is decoded in halves, and the budget is halved for good.
        threads: batches that a CPU decodes side by side, one thread each.
        limits: the most tokens of each hypothesis [N], 1 to ``max_target_tokens``; without them the options say.

    Returns:
        Hypotheses in the order of the sources.

    Raises:
        UserError: a source does not find room in memory on its own, or what the model computes is no number.
    """
    sources = Rows(values, offsets)
    lengths = sources.lengths(options.max_source_tokens)
    tokens = np.full((len(sources), options.max_target_tokens), PAD, np.int32)
    counts = np.zeros(len(sources), np.int64)
    scores = np.zeros(len(sources), np.float32)
    finished = np.ones(len(sources), np.bool_)
    padding = np.zeros(len(sources), np.int64)
    row_steps: list[int] = []

    def decode(rows: Ints) -> None:
        source, source_lengths = sources.padded(rows, options.max_source_tokens)
        most = None if limits is None else torch.from_numpy(limits[rows]).to(engine.device)
        batch = search(engine, source.to(engine.device), source_lengths.to(engine.device), options, most)
        tokens[rows] = batch.tokens.cpu().numpy()
        counts[rows] = batch.lengths.cpu().numpy()
        scores[rows] = batch.scores.cpu().numpy()
        finished[rows] = batch.finished.cpu().numpy()
        row_steps.append(batch.row_steps)
        padding[rows] = 0 if engine.arithmetic.stepwise else source.shape[1] - lengths[rows]

    def decode_what_fits(rows: Ints) -> list[Ints]:
        """Decode rows, in parts if they find no room together; those that find none even alone."""
        needed = budget.needed(lengths[rows])
        if len(rows) == 1 or needed <= budget.tokens:
            if _out_of_memory(decode, rows) is None:
                return []
            _release_memory(engine)
            budget.lower(needed)
        if len(rows) == 1:
            return [rows]
        middle = len(rows) // 2
        return decode_what_fits(rows[:middle]) + decode_what_fits(rows[middle:])

    order = longest_first(lengths)
    threads = threads if engine.device.type == "cpu" else 1
    batches = budget.batches(lengths, order[lengths[order] > 0], threads)
    with _single_threaded_pool(threads) as pool:
        left = [rows for some in pool.map(decode_what_fits, batches) for rows in some]
        for rows in left:  # nothing else is decoded beside it now
            if error := pool.submit(_out_of_memory, decode, rows).result():
                raise UserError(
                    f"a source of {lengths[rows[0]]} tokens does not find room in memory ({error}); "
                    "set --decoding.max_source_tokens lower"
                )
    if np.isnan(scores).any():
        raise UserError(
            f"the model computes what is no number for {np.isnan(scores).sum()} of {len(sources)} sources; "
            "set --resources.precision float32, or train it again"
        )
    return Hypotheses(
        values=tokens[np.arange(tokens.shape[1]) < counts[:, None]],
        offsets=np.concatenate(([0], np.cumsum(counts))),
        scores=scores,
        finished=finished,
        padding=int(padding.sum()),
        row_steps=sum(row_steps),
    )


def _out_of_memory(decode: Callable[[Ints], None], rows: Ints) -> str | None:
    """Decode rows; what was said if they found no room."""
    try:
        decode(rows)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        told = str(error).split("\n")[0] or type(error).__name__
    else:
        return None
    return told


def _release_memory(engine: Engine) -> None:
    """Of memory on the device that is held for later batches."""
    if engine.graphs is not None:
        engine.graphs.clear()
    torch.cuda.empty_cache()  # nothing where there is no GPU


@contextmanager
def _single_threaded_pool(threads: int) -> Iterator[ThreadPoolExecutor]:
    """A pool whose threads compute alone: one that does all of a small product is quicker than two that share it."""
    before = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, "decode", initializer=lambda: torch.set_num_threads(1)) as pool:
            yield pool
    finally:
        torch.set_num_threads(before)


@torch.inference_mode()
def search(
    engine: Engine, source: Tensor, source_lengths: Tensor, options: DecodingConfig, limits: Tensor | None = None
) -> SearchResult:
    """Find hypotheses for source[B, S] with source_lengths[B] ≥ 1, in falling order.

    limits[B]: the most tokens of each, 1 to ``max_target_tokens``; without them the options say.
    """
    source, source_lengths = source.clone(), source_lengths.clone()  # rows move in their place
    if limits is None:
        limits = torch.full_like(source_lengths, options.max_target_tokens)
        if options.max_target_ratio is not None:
            grown = (options.max_target_ratio * source_lengths).long() + options.max_target_extra
            limits = grown.clamp(max(1, options.min_target_tokens), options.max_target_tokens)
    limits = limits.clone()
    sources, carry = engine.read(source, source_lengths)
    first = first_positions(source) if engine.config.copy_source else None
    slots = BatchState(torch.arange(len(source), device=engine.device), sources, carry, first)
    return (greedy_search if options.beam_size == 1 else beam_search)(engine, slots, limits, options)
