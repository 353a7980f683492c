"""The training pairs as a Ray Data dataset of tokenized windows, dealt to the workers round-robin.

    read_parquet ── repartition into windows ── TokenizePairs ── RoundRobinSplit

The order of pairs is the same for the same files and Ray version; dataloader.py makes batches of them. Ray's object store
holds a few windows at a time, or all of a small dataset, so that short epochs do not read and tokenize the same pairs again.
This module does not import torch, which would take longer than many of its tasks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import ray.data
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from pipeline.cluster import LIGHT_CPUS
from pipeline.config.train import TrainConfig
from pipeline.data.pairs import STYLE, PairSet, pair_styles, pair_texts
from pipeline.data.special_tokens import UNK, style_token
from pipeline.data.token_columns import encode_column, flatten_column, list_column
from pipeline.data.tokenizer import cached_tokenizer
from pipeline.io.location import PARQUET_SUFFIXES

TRAIN = "train"
CACHE_BYTES = 200_000_000
"""A dataset whose token ids fit in this many bytes is tokenized once and kept in memory."""


@dataclass(frozen=True)
class TokenizePairs:
    """Tokenize texts and cut them to a maximum number of subwords.

    Args:
        tokenizer_file: the bytes of a SentencePiece model.
        styles: styles of the model; a pair's style token comes first in its source.
        default_style: style of the pairs that have none; None for no token.
    """

    tokenizer_file: bytes
    max_source_tokens: int
    max_target_tokens: int
    styles: tuple[str, ...] = ()
    default_style: str | None = None

    def __call__(self, pairs: pa.Table) -> pa.Table:
        """Convert the columns source and target from string to list<int32>.

        Rows with a null come last, as empty lists. A source without subwords becomes ``<unk>``: an encoder needs a token.
        """
        tokenizer, (source_texts, target_texts) = cached_tokenizer(self.tokenizer_file), pair_texts(pairs)
        prefixes = np.array([style_token(self.styles, style or self.default_style) for style in pair_styles(pairs)], np.int64)
        sources, lengths = encode_column(tokenizer, source_texts, self.max_source_tokens, prefixes)
        if (empty := lengths == 0).any():
            values, offsets = flatten_column(sources)
            values = np.insert(values, offsets[:-1][empty], UNK)
            sources = list_column(values, offsets + np.concatenate(([0], np.cumsum(empty))))
        targets, _ = encode_column(tokenizer, target_texts, self.max_target_tokens)
        # Keep the number of rows: the round-robin split relies on windows of equal size.
        nulls = pa.array([[]] * (len(pairs) - len(sources)), sources.type)
        return pa.table({"source": pa.concat_arrays([sources, nulls]), "target": pa.concat_arrays([targets, nulls])})


@dataclass(frozen=True)
class WindowLayout:
    """How the training pairs are cut into windows. The last window may be shorter. Saved in checkpoints.

    Attributes:
        rows: rows of the training files.
        pairs: rows without a null.
        asked_rows: the configured ``window_rows``.
        windows: number of windows.
        window_rows: rows of each window.
    """

    rows: int
    pairs: int
    asked_rows: int
    windows: int
    window_rows: int


def plan_windows(config: TrainConfig, rows: int, pairs: int, previous: dict[str, int] | None = None) -> WindowLayout:
    """Plan windows of about ``window_rows`` rows that divide evenly among the workers, so that none waits long.

    Args:
        rows: rows of the training files.
        pairs: rows without a null.
        previous: layout of the last checkpoint. It is kept, whatever the number of workers, if the other values are the same.
    """
    workers, asked_rows = config.scaling.num_workers, config.data.window_rows
    if previous is not None and (previous["rows"], previous["pairs"], previous["asked_rows"]) == (rows, pairs, asked_rows):
        return WindowLayout(**previous)
    windows = workers * -(-rows // (workers * asked_rows))
    window_rows = -(-rows // windows)
    return WindowLayout(rows, pairs, asked_rows, -(-rows // window_rows), window_rows)


def training_windows(
    config: TrainConfig, pairs: PairSet, layout: WindowLayout, tokenizer_file: bytes, cache_bytes: int = CACHE_BYTES
) -> Dataset:
    """Return the training pairs as a dataset with one window per block, in order; a small one is already materialized."""
    data = config.data
    dataset = (
        ray.data.read_parquet(
            pairs.dataset.files,
            filesystem=pairs.root.filesystem,
            file_extensions=PARQUET_SUFFIXES,
            partitioning=None,
            num_cpus=LIGHT_CPUS,
        )
        .select_columns([name for name in pairs.columns if name in ("source", "target", STYLE)])
        .repartition(target_num_rows_per_block=layout.window_rows, strict=True)
        .map_batches(
            TokenizePairs(
                tokenizer_file,
                data.max_source_tokens,
                data.max_target_tokens,
                styles=tuple(config.model.styles),
                default_style=config.decoding.style,
            ),
            batch_format="pyarrow",
            batch_size=None,
            num_cpus=LIGHT_CPUS,
        )
    )
    dataset.context.execution_options.preserve_order = True
    row_bytes = 4 * (data.max_source_tokens + data.max_target_tokens)
    # Ray Data splits blocks above this size.
    dataset.context.target_max_block_size = max(dataset.context.target_max_block_size or 0, 2 * row_bytes * layout.window_rows)
    return dataset.materialize() if row_bytes * pairs.rows <= cache_bytes else dataset


class RoundRobinSplit(DataConfig):
    """Deal whole windows to the workers round-robin. Ray Train's default split would drop rows to equalize the shares."""

    def configure(self, datasets: dict[str, Dataset], world_size: int, *_: Any, **__: Any) -> list[dict[str, DataIterator]]:
        """Return one iterator per worker."""
        return [{TRAIN: shard} for shard in datasets[TRAIN].streaming_split(world_size, equal=False)]
