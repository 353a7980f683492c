"""The order in which pairs reach the workers, on real Ray: in an epoch, in the next one, and after a resume."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from ray.data import DataIterator

from pipeline import cluster
from pipeline.config.prepare import TokenizerConfig
from pipeline.config.train import TrainConfig
from pipeline.data.pairs import open_pairs
from pipeline.data.special_tokens import UNK
from pipeline.data.tokenizer import Tokenizer, train_tokenizer
from pipeline.model.batching import PairBatch
from pipeline.training.dataloader import PairDataLoader
from pipeline.training.dataset import (
    CACHE_BYTES,
    TRAIN,
    RoundRobinSplit,
    TokenizePairs,
    WindowLayout,
    plan_windows,
    training_windows,
)

PAIRS = 600
Steps = list[list[PairBatch | None]]
"""The batch of each worker, for each step."""


def make_config(pairs: Path, workers: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "data": {"train": str(pairs / "train"), "window_rows": 70},
            "training": {"token_budget": 100},
            "scaling": {"num_workers": workers},
        }
    )


class WorkerGroup:
    """Several workers in this process, in step as DDP keeps them.

    Args:
        workers: number of workers that run.
        configured: number of workers in the configuration, if it differs.
    """

    def __init__(self, folder: Path, workers: int, configured: int | None = None, cache_bytes: int = CACHE_BYTES) -> None:
        cluster.connect()
        self.config, self.workers = make_config(folder, configured or workers), workers
        pairs = open_pairs(self.config.data.train, "--data.train")
        self.layout = plan_windows(self.config, pairs.rows, pairs.count_pairs())
        tokenizer_file = (folder / "tokenizer.model").read_bytes()
        dataset = training_windows(self.config, pairs, self.layout, tokenizer_file, cache_bytes)
        self.shards: list[DataIterator] = [shard[TRAIN] for shard in RoundRobinSplit().configure({TRAIN: dataset}, workers)]

    def loaders(self, state: dict[str, Any] | None = None) -> list[PairDataLoader]:
        loaders = [
            PairDataLoader(shard, self.config, self.layout, rank, self.workers) for rank, shard in enumerate(self.shards)
        ]
        for loader in loaders:
            if state:
                loader.load_state_dict(state)
        return loaders

    def run(self, loaders: list[PairDataLoader], max_steps: int | None = None) -> Steps:
        """Return the steps to the end of the epoch, or the first ``max_steps``."""
        epochs, steps = [loader.epoch() for loader in loaders], Steps()
        with ThreadPoolExecutor(self.workers) as pool:  # an epoch starts when all workers ask for it
            while any(batches := list(pool.map(next, epochs))):
                if max_steps is None or len(steps) < max_steps:
                    steps.append(batches)
                    for loader in loaders:
                        loader.advance(len(pairs_in([batches])))
        if max_steps is None:
            for loader in loaders:
                loader.end_epoch()
        return steps


def state_of(loaders: list[PairDataLoader]) -> dict[str, Any]:
    """Return the state that the workers save together."""
    parts: list[torch.Tensor] = []
    for loader in loaders:
        loader.state_dict(lambda trained: parts.append(trained) or trained)
    return loaders[0].state_dict(lambda _: torch.stack(parts).sum(0))


def pairs_in(steps: Steps) -> list[tuple[int, ...]]:
    return [
        (*source[:length].tolist(), 0, *target[:target_length].tolist())
        for batch in itertools.chain.from_iterable(steps)
        if batch
        for source, length, target, target_length in zip(*vars(batch).values(), strict=True)
    ]


@pytest.fixture(scope="module")
def all_pairs(command_pairs: Path) -> list[tuple[int, ...]]:
    tokenize = TokenizePairs((command_pairs / "tokenizer.model").read_bytes(), 128, 48)
    ids = tokenize(pq.read_table(command_pairs / "train")).to_pylist()
    return sorted((*row["source"], 0, *row["target"]) for row in ids)


@pytest.fixture(scope="module")
def cached_group(command_pairs: Path) -> WorkerGroup:
    """Two workers whose pairs fit in the cache."""
    return WorkerGroup(command_pairs, workers=2)


@pytest.fixture(scope="module", params=["cached", "streamed"])
def group(request: pytest.FixtureRequest, cached_group: WorkerGroup, command_pairs: Path) -> WorkerGroup:
    """Two workers."""
    return cached_group if request.param == "cached" else WorkerGroup(command_pairs, workers=2, cache_bytes=0)


@pytest.fixture(scope="module")
def first_epoch(group: WorkerGroup) -> Steps:
    return group.run(group.loaders())


def test_epoch_has_each_pair_once_and_repeats_exactly(
    group: WorkerGroup, first_epoch: Steps, all_pairs: list[tuple[int, ...]]
) -> None:
    repeated = group.run(group.loaders())
    assert [pairs_in([step]) for step in first_epoch] == [pairs_in([step]) for step in repeated]
    assert sorted(pairs_in(first_epoch)) == all_pairs
    assert len(all_pairs) == PAIRS
    shares = [len(pairs_in([[batch] for batch in worker])) for worker in zip(*first_epoch, strict=True)]
    assert abs(shares[0] - shares[1]) <= 3, "windows are as even as the number of pairs allows"


def test_next_epoch_has_other_batches(group: WorkerGroup, first_epoch: Steps) -> None:
    loaders = group.loaders()
    for loader in loaders:
        loader.end_epoch()
    assert loaders[0].epochs == 1.0
    second_epoch = group.run(loaders)
    assert loaders[0].epochs == 2.0
    assert sorted(pairs_in(first_epoch)) == sorted(pairs_in(second_epoch))
    assert pairs_in(first_epoch) != pairs_in(second_epoch)


def test_resume_continues_with_the_next_batch(group: WorkerGroup, first_epoch: Steps) -> None:
    stopped = group.loaders()
    steps = group.run(stopped, max_steps=5)
    assert stopped[0].pairs_seen == stopped[1].pairs_seen == len(pairs_in(steps))
    resumed = group.loaders(state_of(stopped))
    steps += group.run(resumed)
    assert [pairs_in([step]) for step in steps] == [pairs_in([step]) for step in first_epoch]
    assert resumed[0].epochs == 1.0


def test_resume_with_other_number_of_workers_has_each_pair_once(
    cached_group: WorkerGroup, all_pairs: list[tuple[int, ...]], command_pairs: Path
) -> None:
    state, steps = None, Steps()
    for workers, max_steps in ((2, 3), (1, 4), (3, 2), (2, None)):
        resized = cached_group if workers == 2 else WorkerGroup(command_pairs, workers, configured=2)
        loaders = resized.loaders(state)
        steps += resized.run(loaders, max_steps)
        state = state_of(loaders)
        assert loaders[0].pairs_seen == len(pairs_in(steps))
    assert sorted(pairs_in(steps)) == all_pairs


def test_resume_with_other_windows_skips_about_as_many_pairs(cached_group: WorkerGroup, command_pairs: Path) -> None:
    stopped = cached_group.loaders()
    trained = len(pairs_in(cached_group.run(stopped, max_steps=5)))
    single = WorkerGroup(command_pairs, workers=1)
    assert single.layout.windows != cached_group.layout.windows
    rest = len(pairs_in(single.run(single.loaders(state_of(stopped)))))
    assert rest == pytest.approx(PAIRS - trained, abs=40), "within a batch"


def test_windows_are_kept_for_any_number_of_workers() -> None:
    two, three = make_config(Path(), 2), make_config(Path(), 3)
    layout = plan_windows(two, PAIRS, PAIRS)
    assert layout == WindowLayout(rows=PAIRS, pairs=PAIRS, asked_rows=70, windows=10, window_rows=60)
    assert plan_windows(two, PAIRS, PAIRS, asdict(layout)) == layout
    assert plan_windows(three, PAIRS, PAIRS, asdict(layout)) == layout
    assert plan_windows(three, PAIRS, PAIRS).windows == 9
    assert plan_windows(three, PAIRS + 1, PAIRS + 1, asdict(layout)) == plan_windows(three, PAIRS + 1, PAIRS + 1)


def test_files_that_are_counted_are_the_files_that_are_read(command_pairs: Path, tmp_path: Path) -> None:
    cluster.connect()
    table, folder = pq.read_table(command_pairs / "train"), tmp_path / "train"
    (folder / "nested").mkdir(parents=True)
    for name, rows in (("a.parquet", 3), ("b.pq", 4), ("c.txt", 5), ("nested/d.parquet", 6)):
        pq.write_table(table.slice(0, rows), folder / name)
    config, tokenizer_file = make_config(tmp_path, 1), (command_pairs / "tokenizer.model").read_bytes()
    for path, rows in ((folder, 7), (folder / "b.pq", 4)):
        pairs = open_pairs(str(path), "--data.train")
        windows = training_windows(config, pairs, plan_windows(config, pairs.rows, pairs.rows), tokenizer_file)
        assert pairs.rows == windows.count() == rows


def test_empty_source_becomes_unknown_and_null_row_is_empty(abstracts: list[str]) -> None:
    normalizing = TokenizerConfig(vocabulary_size=400, normalization="nmt_nfkc")  # which treats U+FFFD as white space
    tokenizer_file = train_tokenizer(abstracts[:80], normalizing)
    sources, targets = ["", "the", "\ufffd", None, "model", ""], ["a", "", "of", "in", None, ""]
    ids = TokenizePairs(tokenizer_file, 3, 2)(pa.table({"source": sources, "target": targets}))
    words, offsets = Tokenizer(tokenizer_file).encode(["the", "a", "of"])
    the, a, of = (part.tolist() for part in np.split(words, offsets[1:-1]))
    assert ids["source"].to_pylist() == [[UNK], the[:3], [UNK], [UNK], [], []]
    assert ids["target"].to_pylist() == [a[:2], [], of[:2], [], [], []]


def test_long_texts_are_cut(command_pairs: Path) -> None:
    tokenizer_file = (command_pairs / "tokenizer.model").read_bytes()
    ids, _ = Tokenizer(tokenizer_file).encode(["walk walk walk"])
    cut = TokenizePairs(tokenizer_file, 2, 2)(pa.table({"source": ["walk walk walk"], "target": ["WALK WALK WALK"]}))
    assert cut["source"].to_pylist() == [ids[:2].tolist()]
    assert len(cut["target"].to_pylist()[0]) == 2
