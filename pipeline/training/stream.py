"""A worker's batches: windows of pairs in, buckets of similar length out, epoch after epoch, from where it stands.

What is promised about order:

- An epoch brings each pair once, to one worker.
- Windows come in one order, the same for the same files and Ray version, and go to the workers in turn (windows.py).
  Within a window, pairs of similar length are put together, and the batches then come in an order drawn from (seed,
  epoch, worker, the windows before).
- So with the same files, Ray version, seed, workers, ``window_rows`` and ``token_budget``, a training that goes on from a
  checkpoint gets the very batches that it would have got undisturbed. If one of them has changed, each worker passes over
  its share of the pairs that the begun epoch had learnt; some may then come twice in that epoch, and others not at all.
- Passing over costs reading and tokenizing, in the background, but no learning.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import numpy as np
import ray
from ray.data import DataIterator

from pipeline.config import TrainConfig
from pipeline.model.batching import PairBatch, Rows, pair_batches
from pipeline.text.columns import flat_rows


class PairStream:
    """One worker's batches, epoch after epoch.

    Args:
        shard: this worker's windows. pairs: of all workers in an epoch. rank, workers: of the DDP group.
    """

    def __init__(self, shard: DataIterator, config: TrainConfig, pairs: int, rank: int, workers: int) -> None:
        self._shard, self._config, self._pairs, self._rank, self._workers = shard, config, pairs, rank, workers
        self._epoch = self._steps_in_epoch = self._pairs_in_epoch = 0
        self._skip: dict[str, Any] | None = None

    @property
    def pairs_seen(self) -> int:
        """Pairs learnt so far, by all workers, counted each time that they came."""
        return self._epoch * self._pairs + self._pairs_in_epoch

    @property
    def epochs(self) -> float:
        """Passes over the pairs so far."""
        return self.pairs_seen / self._pairs

    def epoch(self) -> Iterator[PairBatch | None]:
        """Batches to the end of the epoch, from where it stands, and then None for ever: other workers may have more."""
        batches = self._batches()
        if self._skip is not None:
            if self._skip["layout"] == self._layout():
                batches = itertools.islice(batches, self._skip["steps_in_epoch"], None)
            else:
                batches = _without(batches, self._skip["pairs_in_epoch"] // self._workers)
            self._skip = None
        return itertools.chain(batches, itertools.repeat(None))

    def advance(self, pairs: int) -> None:
        """Count a step that all workers took, with so many pairs together."""
        self._steps_in_epoch += 1
        self._pairs_in_epoch += pairs

    def end_epoch(self) -> None:
        """Count the epoch as done: no worker has a batch left of it."""
        self._epoch += 1
        self._steps_in_epoch = self._pairs_in_epoch = 0

    def state_dict(self) -> dict[str, Any]:
        """The position, the same in all workers."""
        return {
            "epoch": self._epoch,
            "steps_in_epoch": self._steps_in_epoch,
            "pairs_in_epoch": self._pairs_in_epoch,
            "layout": self._layout(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from ``state_dict``'s value, which a group with another number of workers may have written."""
        self._epoch = state["epoch"]
        self._steps_in_epoch, self._pairs_in_epoch = state["steps_in_epoch"], state["pairs_in_epoch"]
        self._skip = state

    def _layout(self) -> list[int | str]:
        """What an epoch's batches follow from, besides the pairs themselves."""
        data, training = self._config.data, self._config.training
        longest = [data.max_source_tokens, data.max_target_tokens]
        return [ray.__version__, self._pairs, self._workers, data.window_rows, *longest, training.token_budget, training.seed]

    def _batches(self) -> Iterator[PairBatch]:
        rng = np.random.default_rng([self._config.training.seed, self._epoch, self._rank])
        data = self._config.data
        for window in self._shard.iter_batches(batch_size=None, batch_format="pyarrow", prefetch_batches=1):  # type: ignore[arg-type]
            yield from pair_batches(
                Rows(*flat_rows(window["source"])),
                Rows(*flat_rows(window["target"])),
                data.max_source_tokens,
                data.max_target_tokens,
                self._config.training.token_budget,
                rng,
            )


def _without(batches: Iterator[PairBatch], pairs: int) -> Iterator[PairBatch]:
    """Drop batches from the front until they held ``pairs``."""
    for batch in batches:
        if pairs <= 0:
            yield batch
        pairs -= len(batch.target_lengths)
