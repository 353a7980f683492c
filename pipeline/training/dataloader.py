"""The batches of one worker: windows of pairs in, batches of similar length out, epoch after epoch.

Guarantees:

- In an epoch, each pair goes to exactly one worker, once.
- The order of windows is the same for the same files and Ray version. Windows go to the workers round-robin (dataset.py).
  Within a window, pairs of similar length form batches, whose order is drawn from (seed, epoch, window).
- A checkpoint holds how many pairs of each window were trained on. A resumed training, with any number of workers, continues
  with the next batch of each window, so no pair is repeated or skipped in the epoch. With the same number of workers, each
  gets the same batches as in an uninterrupted training.
- If files, Ray version, seed, ``window_rows``, ``max_source_tokens``, ``max_target_tokens`` or ``token_budget`` change,
  windows or batches differ. A resume then skips as many pairs as were trained on, give or take one batch per window.
- Skipped pairs are still read and tokenized, in the background.
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
from pipeline.model.batching import PairBatch, PairLimits, Rows, pair_batches
from pipeline.model.malloc import give_back_freed_memory
from pipeline.training.dataset import WindowLayout


class PairDataLoader:
    """The batches of one worker.

    Args:
        shard: windows of this worker.
        layout: windows of all workers.
        rank: rank of this worker in the DDP group.
        workers: size of the DDP group.
    """

    def __init__(self, shard: DataIterator, config: TrainConfig, layout: WindowLayout, rank: int, workers: int) -> None:
        self._shard, self._config, self._layout, self._rank, self._workers = shard, config, layout, rank, workers
        self._epoch = self._pairs_in_epoch = 0
        # Pairs of each window trained on in this epoch: at the resume, and since then by this worker.
        self._trained_at_start = torch.zeros(layout.windows, dtype=torch.int64)
        self._trained = torch.zeros_like(self._trained_at_start)
        self._pending: list[tuple[int, int]] = []

    @property
    def pairs_seen(self) -> int:
        """Pairs that all workers have trained on, in all epochs."""
        return self._epoch * self._layout.pairs + self._pairs_in_epoch

    @property
    def epochs(self) -> float:
        """Epochs done, including the current fraction."""
        return self.pairs_seen / self._layout.pairs

    def epoch(self) -> Iterator[PairBatch | None]:
        """Return the remaining batches of the epoch, followed by None forever, since other workers may have more."""
        return itertools.chain(self._batches(), itertools.repeat(None))

    def advance(self, pairs: int) -> None:
        """Count a step of all workers on ``pairs`` pairs in total: the batches since the last call have been used."""
        self._pairs_in_epoch += pairs
        for window, worker_pairs in self._pending:
            self._trained[window] += worker_pairs
        self._pending = []

    def end_epoch(self) -> None:
        """Start the next epoch. No worker has a batch left."""
        self._epoch += 1
        self._pairs_in_epoch = 0
        self._trained_at_start.zero_()
        self._trained.zero_()

    def state_dict(self, sum_over_workers: Callable[[Tensor], Tensor]) -> dict[str, Any]:
        """Return the position in the data, the same in all workers. A collective call."""
        trained = self._trained_at_start + sum_over_workers(self._trained.clone())
        return {"epoch": self._epoch, "pairs_in_epoch": self._pairs_in_epoch, "learnt": trained}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Resume from a ``state_dict``, which may come from a group with another number of workers."""
        self._epoch, self._pairs_in_epoch = state["epoch"], state["pairs_in_epoch"]
        if len(state["learnt"]) == self._layout.windows:
            self._trained_at_start = state["learnt"].cpu()
        else:  # the windows changed: skip as many pairs from the start
            remaining = self._pairs_in_epoch - self._layout.window_rows * torch.arange(self._layout.windows)
            self._trained_at_start = remaining.clamp(0, self._layout.window_rows)

    def _batches(self) -> Iterator[PairBatch]:
        data, training = self._config.data, self._config.training
        limits = PairLimits(data.max_source_tokens, data.max_target_tokens, training.token_budget)
        windows = self._shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1)  # type: ignore[arg-type]
        for turn, window in enumerate(windows):
            index = self._rank + turn * self._workers
            pairs_to_skip = int(self._trained_at_start[index])
            for batch in pair_batches(
                Rows(*flatten_column(window["source"])),
                Rows(*flatten_column(window["target"])),
                limits,
                np.random.default_rng([training.seed, self._epoch, index]),
            ):
                pairs = len(batch.target_lengths)
                if pairs_to_skip > 0:
                    pairs_to_skip -= pairs
                    continue
                self._pending.append((index, pairs))
                yield batch
            give_back_freed_memory()
