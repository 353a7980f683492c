"""The order in which pairs reach the workers, with real Ray: what is promised, and what a resume makes of it."""

from __future__ import annotations

import itertools
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from ray.data import DataIterator

from pipeline import cluster
from pipeline.config import UNK, TokenizerConfig, TrainConfig
from pipeline.model.batching import PairBatch
from pipeline.text.pair_store import open_pairs
from pipeline.text.tokenizer import Tokenizer, train_tokenizer
from pipeline.training.stream import PairStream
from pipeline.training.windows import TRAIN, InTurn, TokenizePairs, windows_of

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
    """Runs epochs of several workers in this process, in step as DDP keeps them."""

    def __init__(self, folder: Path, workers: int) -> None:
        cluster.connect()
        self.config, self.workers = config(folder, workers), workers
        store = open_pairs(self.config.data.train, "--data.train")
        dataset = windows_of(self.config, store, (folder / "tokenizer.model").read_bytes())
        self.shards: list[DataIterator] = [shard[TRAIN] for shard in InTurn().configure({TRAIN: dataset}, workers)]

    def streams(self, state: dict[str, Any] | None = None) -> list[PairStream]:
        streams = [PairStream(shard, self.config, PAIRS, rank, self.workers) for rank, shard in enumerate(self.shards)]
        for stream in streams:
            if state:
                stream.load_state_dict(state)
        return streams

    def run(self, streams: list[PairStream]) -> Steps:
        """What each worker gets in each step, to the end of the epoch."""

        def batches(stream: PairStream) -> list[PairBatch | None]:
            return list(itertools.takewhile(lambda batch: batch is not None, stream.epoch()))

        with ThreadPoolExecutor(self.workers) as pool:  # an epoch begins when all workers ask for it
            return [list(step) for step in itertools.zip_longest(*pool.map(batches, streams))]


def count(streams: list[PairStream], steps: Steps) -> None:
    """Tell the streams that these steps were taken."""
    for stream, step in itertools.product(streams, steps):
        stream.advance(sum(len(batch.target_lengths) for batch in step if batch))


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
            patch.setattr("pipeline.training.windows._HELD_BYTES", 0)
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
    assert sorted(pairs_in(whole)) == sorted(pairs_in(second))
    assert pairs_in(whole) != pairs_in(second)


def test_a_resumed_epoch_goes_on_with_the_batch_after_the_last(two: Epochs, whole: Steps) -> None:
    stopped = two.streams()
    begun = whole[:5]
    count(stopped, begun)
    state = stopped[0].state_dict()
    assert state == stopped[1].state_dict()
    assert stopped[0].pairs_seen == len(pairs_in(begun))
    resumed = two.streams(state)
    rest = two.run(resumed)
    assert [pairs_in([step]) for step in begun + rest] == [pairs_in([step]) for step in whole]
    count(resumed, rest)
    assert resumed[0].epochs == 1.0


def test_a_resumed_epoch_with_another_number_of_workers_leaves_out_about_what_was_learnt(
    two: Epochs, whole: Steps, command_pairs: Path
) -> None:
    stopped = two.streams()
    count(stopped, whole[:5])
    begun = stopped[0].pairs_seen
    one = Epochs(command_pairs, workers=1)
    rest = len(pairs_in(one.run(one.streams(stopped[0].state_dict()))))
    assert rest == pytest.approx(PAIRS - begun, abs=40), "to within a batch"


def test_the_files_that_are_read_are_those_that_are_counted(command_pairs: Path, tmp_path: Path) -> None:
    cluster.connect()
    pairs, folder = pq.read_table(command_pairs / "train"), tmp_path / "train"
    (folder / "below").mkdir(parents=True)
    for name, rows in (("a.parquet", 3), ("b.pq", 4), ("c.txt", 5), ("below/d.parquet", 6)):
        pq.write_table(pairs.slice(0, rows), folder / name)
    for path, rows in ((folder, 7), (folder / "b.pq", 4)):
        store = open_pairs(str(path), "--data.train")
        windows = windows_of(config(tmp_path, 1), store, (command_pairs / "tokenizer.model").read_bytes())
        assert store.rows == windows.count() == rows


def test_a_source_without_a_subword_is_read_as_unknown_and_a_row_with_a_null_is_left_out(abstracts: list[str]) -> None:
    normalizing = TokenizerConfig(vocabulary_size=400, normalization="nmt_nfkc")  # U+FFFD is white space to it
    tokenizer_file = train_tokenizer(abstracts[:80], normalizing)
    sources, targets = ["", "the", "\ufffd", None, "model", ""], ["a", "", "of", "in", None, ""]
    ids = TokenizePairs(tokenizer_file, longest_source=3, longest_target=2)(pa.table({"source": sources, "target": targets}))
    words, offsets = Tokenizer(tokenizer_file).encode(["the", "a", "of"])
    the, a, of = (part.tolist() for part in np.split(words, offsets[1:-1]))
    assert ids["source"].to_pylist() == [[UNK], the[:3], [UNK], [UNK]]
    assert ids["target"].to_pylist() == [a[:2], [], of[:2], []]


def test_texts_are_cut_to_the_longest_that_is_learnt_from(command_pairs: Path) -> None:
    tokenizer_file = (command_pairs / "tokenizer.model").read_bytes()
    whole, _ = Tokenizer(tokenizer_file).encode(["walk walk walk"])
    cut = TokenizePairs(tokenizer_file, 2, 2)(pa.table({"source": ["walk walk walk"], "target": ["WALK WALK WALK"]}))
    assert cut["source"].to_pylist() == [whole[:2].tolist()]
    assert len(cut["target"].to_pylist()[0]) == 2
