"""Which files and rows make a store of pairs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.pairs import drop_incomplete, open_pairs
from pipeline.errors import UserError


def written(path: Path, ids: list[str], targets: list[str | None] | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ids, "source": ids, "target": pa.array(targets or ids, pa.string())}), path)


def test_windows_hold_every_row_once_in_order(tmp_path: Path) -> None:
    ids = [f"{shard}-{row}" for shard in range(2) for row in range(15)]
    written(tmp_path / "0.parquet", ids[:15])
    written(tmp_path / "1.pq", ids[15:])
    written(tmp_path / "below/2.parquet", ["another store"])
    (tmp_path / "_SUCCESS").write_text("")
    store = open_pairs(str(tmp_path), "--input.path")
    assert store.rows == store.count_pairs() == 30
    for max_rows, expected in ((None, 30), (17, 17), (100, 30)):
        tables = list(store.windows(4, max_rows))
        assert max(map(len, tables)) <= 4
        assert [identity for table in tables for identity in table["id"].to_pylist()] == ids[:expected]


def test_rows_with_nulls_are_no_pairs(tmp_path: Path) -> None:
    long = "x" * 5_000  # longer than the texts that a Parquet file has statistics of
    for targets, pairs in ((["x", None, "y"], 2), (["x", "y", "z"], 3), ([long, None, None], 1)):
        written(tmp_path / "a.parquet", ["a", "b", "c"], targets)
        store = open_pairs(str(tmp_path / "a.parquet"), "--input.path")
        assert (store.rows, store.count_pairs()) == (3, pairs)
        assert [len(drop_incomplete(window)) for window in store.windows(10)] == [pairs]
    written(tmp_path / "a.parquet", ["a"], [None])
    with pytest.raises(UserError, match=r"has a null source or target; set --data\.dev to pairs"):
        open_pairs(str(tmp_path / "a.parquet"), "--data.dev").count_pairs()
