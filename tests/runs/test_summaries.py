"""What those who read the output get: the latest summary of each document, by our reader and by DuckDB."""

from __future__ import annotations

import random
import re
import subprocess
import sys
from pathlib import Path

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import pipeline
from pipeline.errors import UserError
from pipeline.runs.summaries import _IdSet

README = Path(__file__).parents[2] / "README.md"


def read(output: Path) -> pa.Table:
    return pipeline.read_summaries(str(output)).read_all()


def by_duckdb(output: Path) -> pa.Table:
    [query] = re.findall(r"```sql\n(.*?)```", README.read_text(), re.DOTALL)
    return duckdb.sql(query.replace("'out/", f"'{output}/")).to_arrow_table()


def test_the_latest_summary_of_each_document(nights: Path) -> None:
    table = read(nights / "out")
    found = {row["id"]: row for row in table.to_pylist()}
    assert len(found) == len(table)
    assert found.keys() == {f"d{n}" for n in range(70) if n != 59}
    last = dict.fromkeys(range(70), "2026") | dict.fromkeys((*range(50, 55), *range(60, 65)), "2027")
    last |= dict.fromkeys((*range(20), *range(65, 70)), "2029")
    assert {name: row["run"] for name, row in found.items()} == {name: last[int(name[1:])] for name in found}
    assert (found["d21"]["n"], found["d21"]["tag"]) == (21, None)
    assert (found["d60"]["n"], found["d60"]["tag"]) == (60, "td60")
    assert (found["d0"]["n"], found["d0"]["tag"]) == (None, None)
    of_one_run = {row["id"]: row for row in pq.read_table(nights / "out/summaries/run=2027").to_pylist()}
    assert found["d52"]["summary"] == of_one_run["d52"]["summary"]
    kinds = {"id": "string", "summary": "string", "source_tokens": "int32", "score": "float", "n": "int64", "run": "string"}
    assert {name: str(table.schema.field(name).type) for name in kinds} == kinds


def test_the_query_of_the_readme_gives_the_same(nights: Path, output: Path) -> None:
    table = read(nights / "out").sort_by("id")
    assert by_duckdb(nights / "out").select(table.column_names).sort_by("id").cast(table.schema).equals(table)
    (output / "runs/2029/_SUCCESS").unlink()
    without = read(output).sort_by("id")
    assert by_duckdb(output).select(without.column_names).sort_by("id").cast(without.schema).equals(without)
    assert "2029" not in without["run"].to_pylist()
    assert len(without) == len(table) - 5


def rewrite(output: Path, run_id: str, column: str, values: pa.Array) -> None:
    """Put a column of constant values into all files of a run."""
    for path in (output / f"summaries/run={run_id}").iterdir():
        table = pq.read_table(path, partitioning=None)
        at = table.column_names.index(column) if column in table.column_names else table.num_columns
        fields = [*table.column_names[:at], column, *table.column_names[at + 1 :]]
        columns = [*table.columns[:at], pa.concat_arrays([values] * len(table)), *table.columns[at + 1 :]]
        pq.write_table(pa.table(columns, fields), path)


@pytest.mark.parametrize(
    ("newer", "older"),
    [
        (pa.array(["x"]), pa.array([1], pa.int32())),
        (pa.array([0.5]), pa.array([2**53 + 1])),
        (pa.array([2**63], pa.uint64()), pa.array([-1], pa.int32())),
    ],
    ids=["string and int32", "double and int64", "uint64 and int32"],
)
def test_types_that_no_type_holds_are_told(output: Path, newer: pa.Array, older: pa.Array) -> None:
    rewrite(output, "2027", "n", newer)
    rewrite(output, "2026", "n", older)
    with pytest.raises(UserError, match=rf"column 'n' is {newer.type} in run 2027 but {older.type} in run 2026"):
        read(output)


def test_a_type_that_holds_both_is_taken(output: Path) -> None:
    rewrite(output, "2027", "n", pa.array([0.5]))
    found = {row["id"]: row["n"] for row in read(output).to_pylist()}
    assert (found["d21"], found["d60"]) == (21.0, 0.5)


def test_an_id_column_of_another_name_takes_that_of_the_newest_run(output: Path) -> None:
    for path in (output / "summaries/run=2026").iterdir():
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.rename_columns(["key", *table.column_names[1:]]), path)
    table = read(output)
    assert "key" not in table.column_names
    assert len(table) == len(set(table["id"].to_pylist())) == 69


def test_a_column_of_ones_own_may_not_be_called_run(output: Path) -> None:
    rewrite(output, "2026", "run", pa.array(["x"]))
    with pytest.raises(UserError, match="run 2026 has a column 'run'"):
        read(output)


def test_a_file_that_is_broken_is_named_while_rows_stream(output: Path) -> None:
    [*_, last] = sorted((output / "summaries/run=2026").iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    reader = pipeline.read_summaries(str(output))
    assert reader.read_next_batch()["run"].to_pylist()[:1] == ["2029"]
    with pytest.raises(UserError, match=rf"cannot read .*{last.name}"):
        reader.read_all()


def test_a_folder_without_a_finished_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is finished in"):
        read(tmp_path)


def test_importing_the_package_loads_no_arrow() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, pipeline; assert not {'pyarrow', 'ray', 'torch'} & sys.modules.keys()"], check=True
    )


def test_ids_are_told_apart_by_all_16_bytes() -> None:
    rng = random.Random(0)
    ids, known = _IdSet(), set[tuple[int, int]]()
    for size in (1000, 10, 300, 1, 2500):
        new = {(rng.randrange(40), rng.randrange(10**6)) for _ in range(size)} - known  # few first halves: they collide
        ids.add(np.array(sorted(new), np.uint64).reshape(-1, 2))
        known |= new
        asked = [(rng.randrange(40), rng.randrange(10**6)) for _ in range(500)] + rng.sample(sorted(known), 200)
        found = ids.have(np.array(asked, np.uint64))
        assert found.tolist() == [pair in known for pair in asked]
