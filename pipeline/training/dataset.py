"""The training pairs as a Ray Data dataset: tokenized, in windows that are dealt to the workers in turn.

    read_parquet ── repartition into windows ── TokenizePairs ── deal in turn

Pairs come in one order, the same for the same files and Ray version; stream.py says what becomes of them. Ray's object
store holds a few windows at a time, or all of them where they are small: epochs of seconds would else be spent on reading
and tokenizing the same pairs again.

Nothing here needs torch, whose import would take longer than many a task does.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from pipeline.config.train import TrainConfig
from pipeline.data.pairs import PairSet, pair_texts
from pipeline.data.special_tokens import UNK
from pipeline.data.token_columns import encode_column, flatten_column, list_column
from pipeline.data.tokenizer import cached_tokenizer
from pipeline.io.location import PARQUET_SUFFIXES

TRAIN = "train"
_READ_CPUS = 0.25
"""CPUs asked for by a task that reads or tokenizes: it must find room beside the workers, which take the rest."""
_CACHE_BYTES = 200_000_000
"""Token ids that are held, and not made anew in each epoch, take no more than this."""


@dataclass(frozen=True)
class TokenizePairs:
    """Texts to ids. tokenizer_file: a SentencePiece model's bytes. longest_*: subwords kept of a text."""

    tokenizer_file: bytes
    longest_source: int
    longest_target: int

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Columns source, target: string to list<int32>. Rows with a null come last, as ones without a token.

        A source that has no subword becomes ``<unk>``, which no text does, since an encoder needs a token to read.
        """
        tokenizer, (source_texts, target_texts) = cached_tokenizer(self.tokenizer_file), pair_texts(pairs)
        sources, lengths = encode_column(tokenizer, source_texts, self.longest_source)
        if (empty := lengths == 0).any():
            values, offsets = flatten_column(sources)
            values = np.insert(values, offsets[:-1][empty], UNK)
            sources = list_column(values, offsets + np.concatenate(([0], np.cumsum(empty))))
        targets, _ = encode_column(tokenizer, target_texts, self.longest_target)
        # Windows go to workers in turn as long as they have as many rows.
        nothing = pa.array([[]] * (len(pairs) - len(sources)), sources.type)
        return pa.table({"source": pa.concat_arrays([sources, nothing]), "target": pa.concat_arrays([targets, nothing])})


@dataclass(frozen=True)
class WindowLayout:
    """How the training pairs are cut: so many windows of so many rows, the last one shorter.

    rows: of the store. pairs: those that are no null among them. asked_rows: of a window, by the configuration.
    """

    rows: int
    pairs: int
    asked_rows: int
    windows: int
    window_rows: int


def plan_windows(config: TrainConfig, rows: int, pairs: int, before: dict[str, int] | None = None) -> WindowLayout:
    """Windows of about ``window_rows`` rows that divide evenly among the workers, so that none waits long for the others.

    Args:
        rows, pairs: of the store. before: the layout that the training's last checkpoint knows, which is kept, whatever the
            number of workers, where it is of the same store and ``window_rows``.
    """
    workers, asked = config.scaling.num_workers, config.data.window_rows
    if before is not None and (before["rows"], before["pairs"], before["asked_rows"]) == (rows, pairs, asked):
        return WindowLayout(**before)
    wanted = workers * -(-rows // (workers * asked))
    window_rows = -(-rows // wanted)
    return WindowLayout(rows, pairs, asked, -(-rows // window_rows), window_rows)


def training_windows(config: TrainConfig, store: PairSet, layout: WindowLayout, tokenizer_file: bytes) -> Dataset:
    """The training pairs as a dataset of windows, a block each, in their promised order; read already if they are few."""
    data = config.data
    dataset = (
        ray.data.read_parquet(
            store.dataset.files,
            filesystem=store.root.filesystem,
            file_extensions=PARQUET_SUFFIXES,
            partitioning=None,
            num_cpus=_READ_CPUS,
        )
        .select_columns(["source", "target"])
        .repartition(target_num_rows_per_block=layout.window_rows, strict=True)
        .map_batches(
            TokenizePairs(tokenizer_file, data.max_source_tokens, data.max_target_tokens),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=_READ_CPUS,
        )
    )
    dataset.context.execution_options.preserve_order = True
    longest = data.max_source_tokens + data.max_target_tokens
    # Ray Data would cut larger blocks in two.
    least = 2 * 4 * longest * layout.window_rows
    dataset.context.target_max_block_size = max(dataset.context.target_max_block_size or 0, least)
    return dataset.materialize() if 4 * longest * store.rows <= _CACHE_BYTES else dataset


class RoundRobinSplit(DataConfig):
    """Deals whole windows to the workers in turn, where Ray Train's own splitting cuts the last rows off to equalize."""

    def configure(self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any) -> list[dict[str, DataIterator]]:
        """One iterator a worker."""
        return [{TRAIN: shard} for shard in datasets[TRAIN].streaming_split(world_size, equal=False)]
