"""The training pairs as Ray Data streams them: tokenized, dealt to the workers in windows, cut into batches.

    read_parquet ── repartition into windows ── TokenizePairs ── deal windows in turn ── batches of a worker

What is promised about order:

- An epoch brings each pair once, to one worker.
- Pairs keep the order of their files, by name, and of their rows, which prepare has mixed. A window of them goes to the
  workers in turn. Within a window, pairs of similar length are put together, and the batches then come in an order drawn
  from (seed, epoch, worker, the windows before).
- So with the same pairs, seed, workers, ``window_rows`` and ``token_budget``, a training that goes on from a checkpoint
  gets the very batches that it would have got undisturbed. If one of them has changed, each worker passes over its share
  of the pairs that the begun epoch had learnt; some of these may then come twice in that epoch, and others not at all.
- Passing over costs reading and tokenizing, in the background, but no learning.

Ray's object store holds a few windows at a time, or all of them where they are small: epochs of seconds would else be
spent on reading and tokenizing the same pairs again.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from pipeline.config import TrainConfig
from pipeline.model.batching import PairBatch, Rows, pair_batches
from pipeline.storage import place
from pipeline.text.columns import encode_column, flat_rows
from pipeline.text.documents import texts_of
from pipeline.text.tokenizer import Tokenizer

TRAIN = "train"
_READ_CPUS = 0.25
"""CPUs asked for by a task that reads or tokenizes: it must find room beside the workers, which take the rest."""
_HELD_BYTES = 128_000_000
"""Token ids that are held, and not made anew in each epoch, take no more than this."""
_NO_TOKEN = "\ufffd"
"""Read in place of a source that has no subword, since an encoder needs one."""


@dataclass(frozen=True)
class TokenizePairs:
    """Texts to ids. tokenizer_file: a SentencePiece model's bytes. longest_*: subwords kept of a text."""

    tokenizer_file: bytes
    longest_source: int
    longest_target: int

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Columns source, target: string to list<int32>. A null is read as an empty text."""
        tokenizer = _cached_tokenizer(self.tokenizer_file)
        sources = [text or "" for text in texts_of(pairs["source"])]
        ids, lengths = encode_column(tokenizer, sources, self.longest_source)
        if not lengths.all():
            sources = [text if length else _NO_TOKEN for text, length in zip(sources, lengths, strict=True)]
            ids, _ = encode_column(tokenizer, sources, self.longest_source)
        targets = [text or "" for text in texts_of(pairs["target"])]
        return pa.table({"source": ids, "target": encode_column(tokenizer, targets, self.longest_target)[0]})


@functools.lru_cache(maxsize=1)
def _cached_tokenizer(tokenizer_file: bytes) -> Tokenizer:
    return Tokenizer(tokenizer_file)


def windows_of(config: TrainConfig, pairs: int, tokenizer_file: bytes) -> Dataset:
    """The training pairs as a dataset of windows, a block each, in their promised order; read already if they are few.

    Args:
        pairs: how many there are.
    """
    data = config.data
    source = place(data.train)
    # As many windows as divide evenly among the workers, so that none waits long for the others at an epoch's end.
    rounds = -(-pairs // (config.scaling.num_workers * data.window_rows))
    rows = -(-pairs // (config.scaling.num_workers * rounds))
    dataset = (
        ray.data.read_parquet(source.path, filesystem=source.filesystem, partitioning=None, num_cpus=_READ_CPUS)
        .select_columns(["source", "target"])
        .repartition(target_num_rows_per_block=rows, strict=True)
        .map_batches(
            TokenizePairs(tokenizer_file, data.max_source_tokens, data.max_target_tokens),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=_READ_CPUS,
        )
    )
    dataset.context.execution_options.preserve_order = True
    longest = data.max_source_tokens + data.max_target_tokens
    return dataset.materialize() if 4 * longest * pairs <= _HELD_BYTES else dataset


class InTurn(DataConfig):
    """Deals whole windows to the workers in turn, where Ray Train's own splitting cuts the last rows off to equalize."""

    def configure(self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any) -> list[dict[str, DataIterator]]:
        """One iterator a worker."""
        return [{TRAIN: shard} for shard in datasets[TRAIN].streaming_split(world_size, equal=False)]


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

    def _layout(self) -> list[int]:
        """What an epoch's batches follow from, besides the pairs themselves."""
        data, training = self._config.data, self._config.training
        longest = [data.max_source_tokens, data.max_target_tokens]
        return [self._pairs, self._workers, data.window_rows, *longest, training.token_budget, training.seed]

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
