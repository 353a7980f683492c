"""The training pairs as a Ray Data dataset: tokenized, in windows that are dealt to the workers in turn.

    read_parquet ── repartition into windows ── TokenizePairs ── deal in turn

Pairs keep the order of their files, by name, and of their rows, which prepare has mixed; stream.py says what becomes of
them. Ray's object store holds a few windows at a time, or all of them where they are small: epochs of seconds would else
be spent on reading and tokenizing the same pairs again.

Nothing here needs torch, whose import would take longer than many a task does.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import ray.data
from ray.data import DataIterator, Dataset
from ray.train import DataConfig

from pipeline.config import TrainConfig
from pipeline.storage import place
from pipeline.text.columns import encode_column
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
    source = place(data.train, "--data.train")
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
