"""Pairs are read from the files directly in a folder; rows with nulls are not pairs."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.data.pairs import drop_incomplete, open_pairs
from pipeline.errors import UserError


def write_pairs(path: Path, ids: list[str], targets: list[str | None] | None = None) -> None:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(pa.table({"id": ids, "source": ids, "target": pa.array(targets or ids, pa.string())}), path)


def test_windows_contain_each_row_once_in_order(tmp_path: Path) -> None:
    ids = [f"{shard}-{row}" for shard in range(2) for row in range(15)]
    write_pairs(tmp_path / "0.parquet", ids[:15])
    write_pairs(tmp_path / "1.pq", ids[15:])
    write_pairs(tmp_path / "subfolder/2.parquet", ["not read"])
    (tmp_path / "_SUCCESS").write_text("")
    pairs = open_pairs(str(tmp_path), "--input.path")
    assert pairs.rows == pairs.count_pairs() == 30
    for max_rows, expected in ((None, 30), (17, 17), (100, 30)):
        tables = list(pairs.windows(4, max_rows))
        assert max(map(len, tables)) <= 4
        assert [pair_id for table in tables for pair_id in table["id"].to_pylist()] == ids[:expected]


def test_rows_with_nulls_are_not_pairs(tmp_path: Path) -> None:
    without_statistics = "x" * 5_000  # Parquet keeps no statistics of long values
    for targets, complete in ((["x", None, "y"], 2), (["x", "y", "z"], 3), ([without_statistics, None, None], 1)):
        write_pairs(tmp_path / "a.parquet", ["a", "b", "c"], targets)
        pairs = open_pairs(str(tmp_path / "a.parquet"), "--input.path")
        assert (pairs.rows, pairs.count_pairs()) == (3, complete)
        assert [len(drop_incomplete(window)) for window in pairs.windows(10)] == [complete]
    write_pairs(tmp_path / "a.parquet", ["a"], [None])
    with pytest.raises(UserError, match=r"null .*--data\.dev"):
        open_pairs(str(tmp_path / "a.parquet"), "--data.dev").count_pairs()
