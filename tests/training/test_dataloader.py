"""The order in which pairs reach the workers, with real Ray: what is promised, and what a resume makes of it."""

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
from pipeline.training.dataset import TRAIN, RoundRobinSplit, TokenizePairs, plan_windows, training_windows

PAIRS = 600
Steps = list[list[PairBatch | None]]
"""For each step, the batch of each worker."""


def config(pairs: Path, workers: int) -> TrainConfig:
    return TrainConfig.model_validate(
        {
            "data": {"train": str(pairs / "train"), "window_rows": 70},
            "training": {"token_budget": 100},
            "scaling": {"num_workers": workers},
        }
    )


class Epochs:
    """Runs epochs of several workers in this process, in step as DDP keeps them.

    planned: the workers that the configuration knows of, some of whom may be gone.
    """

    def __init__(self, folder: Path, workers: int, planned: int | None = None) -> None:
        cluster.connect()
        self.config, self.workers = config(folder, planned or workers), workers
        store = open_pairs(self.config.data.train, "--data.train")
        self.layout = plan_windows(self.config, store.rows, store.count_pairs())
        dataset = training_windows(self.config, store, self.layout, (folder / "tokenizer.model").read_bytes())
        self.shards: list[DataIterator] = [shard[TRAIN] for shard in RoundRobinSplit().configure({TRAIN: dataset}, workers)]

    def streams(self, state: dict[str, Any] | None = None) -> list[PairDataLoader]:
        streams = [
            PairDataLoader(shard, self.config, self.layout, rank, self.workers) for rank, shard in enumerate(self.shards)
        ]
        for stream in streams:
            if state:
                stream.load_state_dict(state)
        return streams

    def run(self, streams: list[PairDataLoader], steps: int | None = None) -> Steps:
        """What each worker gets in each step, to the end of the epoch or for some steps."""
        epochs, taken = [stream.epoch() for stream in streams], Steps()
        with ThreadPoolExecutor(self.workers) as pool:  # an epoch begins when all workers ask for it
            while any(batches := list(pool.map(next, epochs))):
                if steps is None or len(taken) < steps:
                    taken.append(batches)
                    for stream in streams:
                        stream.advance(len(pairs_in([batches])))
        if steps is None:
            for stream in streams:
                stream.end_epoch()
        return taken


def state_of(streams: list[PairDataLoader]) -> dict[str, Any]:
    """What each of the workers keeps, together."""
    own: list[torch.Tensor] = []
    for stream in streams:
        stream.state_dict(lambda learnt: own.append(learnt) or learnt)
    return streams[0].state_dict(lambda _: torch.stack(own).sum(0))


def pairs_in(steps: Steps) -> list[tuple[int, ...]]:
    return [
        (*source[:length].tolist(), 0, *target[:target_length].tolist())
        for batch in itertools.chain.from_iterable(steps)
        if batch
        for source, length, target, target_length in zip(*vars(batch).values(), strict=True)
    ]


@pytest.fixture(scope="module", params=["held", "streamed"])
def two(request: pytest.FixtureRequest, command_pairs: Path) -> Epochs:
    with pytest.MonkeyPatch.context() as patch:
        if request.param == "streamed":
            patch.setattr("pipeline.training.dataset._CACHE_BYTES", 0)
        return Epochs(command_pairs, workers=2)


@pytest.fixture(scope="module")
def whole(two: Epochs) -> Steps:
    """The first epoch, undisturbed."""
    return two.run(two.streams())


def test_an_epoch_brings_each_pair_once_and_in_the_same_batches_again(two: Epochs, whole: Steps, command_pairs: Path) -> None:
    again = two.run(two.streams())
    assert [pairs_in([step]) for step in whole] == [pairs_in([step]) for step in again]
    tokenize = TokenizePairs((command_pairs / "tokenizer.model").read_bytes(), 128, 48)
    ids = tokenize(pq.read_table(command_pairs / "train")).to_pylist()
    assert sorted(pairs_in(whole)) == sorted((*row["source"], 0, *row["target"]) for row in ids)
    assert len(pairs_in(whole)) == PAIRS
    shares = [len(pairs_in([[batch] for batch in worker])) for worker in zip(*whole, strict=True)]
    assert abs(shares[0] - shares[1]) <= 3, "windows are as even as the number of pairs allows"


def test_another_epoch_puts_pairs_together_otherwise(two: Epochs, whole: Steps) -> None:
    streams = two.streams()
    for stream in streams:
        stream.end_epoch()
    assert streams[0].epochs == 1.0
    second = two.run(streams)
    assert streams[0].epochs == 2.0
    assert sorted(pairs_in(whole)) == sorted(pairs_in(second))
    assert pairs_in(whole) != pairs_in(second)


def test_a_resumed_epoch_goes_on_with_the_batch_after_the_last(two: Epochs, whole: Steps) -> None:
    stopped = two.streams()
    begun = two.run(stopped, steps=5)
    assert stopped[0].pairs_seen == stopped[1].pairs_seen == len(pairs_in(begun))
    resumed = two.streams(state_of(stopped))
    rest = two.run(resumed)
    assert [pairs_in([step]) for step in begun + rest] == [pairs_in([step]) for step in whole]
    assert resumed[0].epochs == 1.0


def test_workers_may_come_and_go_and_no_pair_is_lost_or_learnt_twice(two: Epochs, whole: Steps, command_pairs: Path) -> None:
    state, learnt = None, Steps()
    for workers, steps in ((2, 3), (1, 4), (3, 2), (2, None)):
        group = two if workers == 2 else Epochs(command_pairs, workers, planned=2)
        streams = group.streams(state)
        learnt += group.run(streams, steps)
        state = state_of(streams)
        assert streams[0].pairs_seen == len(pairs_in(learnt))
    assert sorted(pairs_in(learnt)) == sorted(pairs_in(whole))


def test_windows_stay_as_they_are_whatever_the_number_of_workers(two: Epochs) -> None:
    before = asdict(two.layout)
    assert plan_windows(two.config, PAIRS, PAIRS, before) == two.layout
    three = two.config.model_copy(update={"scaling": two.config.scaling.model_copy(update={"num_workers": 3})})
    assert plan_windows(three, PAIRS, PAIRS, before) == two.layout
    assert plan_windows(three, PAIRS, PAIRS).windows == 9
    assert plan_windows(three, PAIRS + 1, PAIRS + 1, before) == plan_windows(three, PAIRS + 1, PAIRS + 1)


def test_other_windows_leave_out_about_as_much_as_was_learnt(two: Epochs, command_pairs: Path) -> None:
    stopped = two.streams()
    begun = len(pairs_in(two.run(stopped, steps=5)))
    one = Epochs(command_pairs, workers=1)
    assert one.layout.windows != two.layout.windows
    rest = len(pairs_in(one.run(one.streams(state_of(stopped)))))
    assert rest == pytest.approx(PAIRS - begun, abs=40), "to within a batch"


def test_the_files_that_are_read_are_those_that_are_counted(command_pairs: Path, tmp_path: Path) -> None:
    cluster.connect()
    pairs, folder = pq.read_table(command_pairs / "train"), tmp_path / "train"
    (folder / "below").mkdir(parents=True)
    for name, rows in (("a.parquet", 3), ("b.pq", 4), ("c.txt", 5), ("below/d.parquet", 6)):
        pq.write_table(pairs.slice(0, rows), folder / name)
    for path, rows in ((folder, 7), (folder / "b.pq", 4)):
        store = open_pairs(str(path), "--data.train")
        cut = plan_windows(config(tmp_path, 1), store.rows, store.rows)
        windows = training_windows(config(tmp_path, 1), store, cut, (command_pairs / "tokenizer.model").read_bytes())
        assert store.rows == windows.count() == rows


def test_a_source_without_a_subword_is_read_as_unknown_and_a_row_with_a_null_has_no_token(abstracts: list[str]) -> None:
    normalizing = TokenizerConfig(vocabulary_size=400, normalization="nmt_nfkc")  # U+FFFD is white space to it
    tokenizer_file = train_tokenizer(abstracts[:80], normalizing)
    sources, targets = ["", "the", "\ufffd", None, "model", ""], ["a", "", "of", "in", None, ""]
    ids = TokenizePairs(tokenizer_file, longest_source=3, longest_target=2)(pa.table({"source": sources, "target": targets}))
    words, offsets = Tokenizer(tokenizer_file).encode(["the", "a", "of"])
    the, a, of = (part.tolist() for part in np.split(words, offsets[1:-1]))
    assert ids["source"].to_pylist() == [[UNK], the[:3], [UNK], [UNK], [], []]
    assert ids["target"].to_pylist() == [a[:2], [], of[:2], [], [], []]


def test_texts_are_cut_to_the_longest_that_is_learnt_from(command_pairs: Path) -> None:
    tokenizer_file = (command_pairs / "tokenizer.model").read_bytes()
    whole, _ = Tokenizer(tokenizer_file).encode(["walk walk walk"])
    cut = TokenizePairs(tokenizer_file, 2, 2)(pa.table({"source": ["walk walk walk"], "target": ["WALK WALK WALK"]}))
    assert cut["source"].to_pylist() == [whole[:2].tolist()]
    assert len(cut["target"].to_pylist()[0]) == 2
