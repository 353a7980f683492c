"""A worker's batches: windows of pairs in, buckets of similar length out, epoch after epoch, from where it stands.

What is promised about order:

- An epoch brings each pair once, to one worker.
- Windows come in one order, the same for the same files and Ray version, and go to the workers in turn (windows.py).
  Within a window, pairs of similar length are put together, and the batches then come in an order drawn from (seed,
  epoch, window).
- A checkpoint knows how many pairs of each window have been learnt. Whoever goes on, with as many workers or with fewer or
  more, gets the window's batches after those: none comes twice in the epoch, and none is left out. With as many workers
  they are the very batches that each would have got undisturbed.
- Where files, Ray version, seed, ``window_rows``, ``max_source_tokens``, ``max_target_tokens`` or ``token_budget`` have
  changed, so have batches or windows: then as many pairs are passed over as were learnt, to within a batch a window.
- Passing over costs reading and tokenizing, in the background, but no learning.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import torch
from ray.data import DataIterator
from torch import Tensor

from pipeline.config.train import TrainConfig
from pipeline.data.token_columns import flatten_column
from pipeline.model.batching import PairBatch, Rows, pair_batches
from pipeline.model.malloc import give_back_freed_memory
from pipeline.training.dataset import WindowLayout


class PairDataLoader:
    """One worker's batches, epoch after epoch.

    Args:
        shard: this worker's windows. layout: all workers' windows. rank, workers: of the DDP group.
    """

    def __init__(self, shard: DataIterator, config: TrainConfig, layout: WindowLayout, rank: int, workers: int) -> None:
        self._shard, self._config, self._layout, self._rank, self._workers = shard, config, layout, rank, workers
        self._epoch = self._pairs_in_epoch = 0
        # Pairs learnt in this epoch, of each window: where it was begun from here, and since then by this worker.
        self._learnt_at_start = torch.zeros(layout.windows, dtype=torch.int64)
        self._learnt = torch.zeros_like(self._learnt_at_start)
        self._pending: list[tuple[int, int]] = []

    @property
    def pairs_seen(self) -> int:
        """Pairs learnt so far, by all workers, counted each time that they came."""
        return self._epoch * self._layout.pairs + self._pairs_in_epoch

    @property
    def epochs(self) -> float:
        """Passes over the pairs so far."""
        return self.pairs_seen / self._layout.pairs

    def epoch(self) -> Iterator[PairBatch | None]:
        """Batches to the end of the epoch, from where it stands, and then None for ever: other workers may have more."""
        return itertools.chain(self._batches(), itertools.repeat(None))

    def advance(self, pairs: int) -> None:
        """Count a step that all workers took with the batches they were given since the last, so many pairs together."""
        self._pairs_in_epoch += pairs
        for window, own in self._pending:
            self._learnt[window] += own
        self._pending = []

    def end_epoch(self) -> None:
        """Count the epoch as done: no worker has a batch left of it."""
        self._epoch += 1
        self._pairs_in_epoch = 0
        self._learnt_at_start.zero_()
        self._learnt.zero_()

    def state_dict(self, sum_over_workers: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """The position, the same in all workers, who must ask for it together."""
        learnt = self._learnt_at_start + sum_over_workers(self._learnt.clone())
        return {"epoch": self._epoch, "pairs_in_epoch": self._pairs_in_epoch, "learnt": learnt}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``'s value, which a group with another number of workers may have written."""
        self._epoch, self._pairs_in_epoch = state["epoch"], state["pairs_in_epoch"]
        if len(state["learnt"]) == self._layout.windows:
            self._learnt_at_start = state["learnt"].cpu()
        else:  # these are other windows: the first ones stand for what was learnt
            filled = self._pairs_in_epoch - self._layout.window_rows * torch.arange(self._layout.windows)
            self._learnt_at_start = filled.clamp(0, self._layout.window_rows)

    def _batches(self) -> Iterator[PairBatch]:
        data, training = self._config.data, self._config.training
        windows = self._shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)  # type: ignore[arg-type]
        for turn, window in enumerate(windows):
            number = self._rank + turn * self._workers
            passed_over = int(self._learnt_at_start[number])
            for batch in pair_batches(
                Rows(*flatten_column(window["source"])),
                Rows(*flatten_column(window["target"])),
                data.max_source_tokens,
                data.max_target_tokens,
                training.token_budget,
                np.random.default_rng([training.seed, self._epoch, number]),
            ):
                pairs = len(batch.target_lengths)
                if passed_over > 0:
                    passed_over -= pairs
                    continue
                self._pending.append((number, pairs))
                yield batch
            give_back_freed_memory()
