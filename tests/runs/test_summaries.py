"""Readers get the latest summary of each document, with read_summaries and with DuckDB."""

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
from pipeline.runs.summaries import IdSet

README = Path(__file__).parents[2] / "docs/output.md"


def read(output: Path) -> pa.Table:
    return pipeline.read_summaries(str(output)).read_all()


def read_with_duckdb(output: Path) -> pa.Table:
    [query] = re.findall(r"```sql\n(.*?)```", README.read_text(), re.DOTALL)
    return duckdb.sql(query.replace("'out/", f"'{output}/")).to_arrow_table()


def test_latest_summary_of_each_document(nights: Path) -> None:
    table = read(nights / "out")
    rows = {row["id"]: row for row in table.to_pylist()}
    assert len(rows) == len(table)
    assert rows.keys() == {f"d{n}" for n in range(70) if n != 59}
    latest_run = dict.fromkeys(range(70), "2026") | dict.fromkeys((*range(50, 55), *range(60, 65)), "2027")
    latest_run |= dict.fromkeys((*range(20), *range(65, 70)), "2029")
    assert {name: row["run"] for name, row in rows.items()} == {name: latest_run[int(name[1:])] for name in rows}
    assert (rows["d21"]["n"], rows["d21"]["tag"]) == (21, None)
    assert (rows["d60"]["n"], rows["d60"]["tag"]) == (60, "td60")
    assert (rows["d0"]["n"], rows["d0"]["tag"]) == (None, None)
    run_rows = {row["id"]: row for row in pq.read_table(nights / "out/summaries/run=2027").to_pylist()}
    assert rows["d52"]["summary"] == run_rows["d52"]["summary"]
    types = {"id": "string", "summary": "string", "source_tokens": "int32", "score": "float", "n": "int64", "run": "string"}
    assert {name: str(table.schema.field(name).type) for name in types} == types


def test_query_of_the_readme_returns_the_same_rows(nights: Path, output: Path) -> None:
    table = read(nights / "out").sort_by("id")
    assert read_with_duckdb(nights / "out").select(table.column_names).sort_by("id").cast(table.schema).equals(table)
    (output / "runs/2029/_SUCCESS").unlink()
    without = read(output).sort_by("id")
    assert read_with_duckdb(output).select(without.column_names).sort_by("id").cast(without.schema).equals(without)
    assert "2029" not in without["run"].to_pylist()
    assert len(without) == len(table) - 5


def rewrite(output: Path, run_id: str, column: str, values: pa.Array) -> None:
    """Set a column to a constant in all files of a run."""
    for path in (output / f"summaries/run={run_id}").iterdir():
        table = pq.read_table(path, partitioning=None)
        index = table.column_names.index(column) if column in table.column_names else table.num_columns
        fields = [*table.column_names[:index], column, *table.column_names[index + 1 :]]
        columns = [*table.columns[:index], pa.concat_arrays([values] * len(table)), *table.columns[index + 1 :]]
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
def test_types_without_a_common_type_are_an_error(output: Path, newer: pa.Array, older: pa.Array) -> None:
    rewrite(output, "2027", "n", newer)
    rewrite(output, "2026", "n", older)
    with pytest.raises(UserError, match=rf"'n' is {newer.type} in run 2027 but {older.type} in run 2026"):
        read(output)


def test_common_type_holds_the_values_of_both_runs(output: Path) -> None:
    rewrite(output, "2027", "n", pa.array([0.5]))
    values = {row["id"]: row["n"] for row in read(output).to_pylist()}
    assert (values["d21"], values["d60"]) == (21.0, 0.5)


def test_id_column_has_the_name_of_the_newest_run(output: Path) -> None:
    for path in (output / "summaries/run=2026").iterdir():
        table = pq.read_table(path, partitioning=None)
        pq.write_table(table.rename_columns(["key", *table.column_names[1:]]), path)
    table = read(output)
    assert "key" not in table.column_names
    assert len(table) == len(set(table["id"].to_pylist())) == 69


def test_column_named_run_is_an_error(output: Path) -> None:
    rewrite(output, "2026", "run", pa.array(["x"]))
    with pytest.raises(UserError, match="'run' of run 2026"):
        read(output)


def test_broken_file_is_named_while_rows_stream(output: Path) -> None:
    [*_, last] = sorted((output / "summaries/run=2026").iterdir())
    last.write_bytes(last.read_bytes()[:-20])
    reader = pipeline.read_summaries(str(output))
    assert reader.read_next_batch()["run"].to_pylist()[:1] == ["2029"]
    with pytest.raises(UserError, match=rf"cannot read .*{last.name}"):
        reader.read_all()


def test_folder_without_a_finished_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no run is finished"):
        read(tmp_path)


def test_import_of_the_package_does_not_load_arrow() -> None:
    subprocess.run(
        [sys.executable, "-c", "import sys, pipeline; assert not {'pyarrow', 'ray', 'torch'} & sys.modules.keys()"], check=True
    )


def test_ids_are_distinguished_by_all_16_bytes() -> None:
    rng = random.Random(0)
    ids, added = IdSet(), set[tuple[int, int]]()
    for size in (1000, 10, 300, 1, 2500):
        new = {(rng.randrange(40), rng.randrange(10**6)) for _ in range(size)} - added  # few first halves, so they collide
        ids.add(np.array(sorted(new), np.uint64).reshape(-1, 2))
        added |= new
        candidates = [(rng.randrange(40), rng.randrange(10**6)) for _ in range(500)] + rng.sample(sorted(added), 200)
        is_member = ids.contains(np.array(candidates, np.uint64))
        assert is_member.tolist() == [pair in added for pair in candidates]
