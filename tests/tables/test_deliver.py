"""What a table holds after deliveries: each id once, with the right summary, in whatever order runs are delivered."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from table_kinds import FIRST, PASSWORD, SECOND, Store, delivery, finish_run, summaries

from pipeline.errors import UserError
from pipeline.tables.base import Summaries, Watermark
from pipeline.tables.deliver import deliver
from pipeline.tables.iceberg import IcebergSink


def test_run_after_run_in_any_order(store: Store, output: Path) -> None:
    deliver(delivery(store, output, run_id="a"))
    assert summaries(store.read("summaries")) == FIRST
    assert not deliver(delivery(store, output, run_id="a")).had_rows
    done = deliver(delivery(store, output))
    assert (done.before, done.run_id, done.had_rows) == ("a", "b", True)
    assert summaries(store.read("summaries")) == FIRST | SECOND
    late = deliver(delivery(store, output, run_id="a"))
    assert (late.run_id, late.had_rows) == ("b", False)
    rows = store.read("summaries")
    assert summaries(rows) == FIRST | SECOND
    assert {row["run"] for row in rows if row["id"] in SECOND} == {"b"}


@pytest.mark.parametrize("store", ["delta", "jsonl", "postgres"], indirect=True)
def test_a_run_that_was_left_out_comes_with_the_next(store: Store, output: Path) -> None:
    finish_run(output, "c", {"d0": "third 0"})
    deliver(delivery(store, output))
    assert summaries(store.read("summaries")) == FIRST | SECOND | {"d0": "third 0"}
    finish_run(output, "nothing new", {})
    deliver(delivery(store, output))
    assert summaries(store.read("summaries")) == FIRST | SECOND | {"d0": "third 0"}


def test_another_output_folder_is_refused_but_under_a_name_of_its_own(store: Store, output: Path, tmp_path: Path) -> None:
    deliver(delivery(store, output))
    for run_id in ("a", "b"):  # as if the folder had been removed, and written anew
        finish_run(tmp_path / "other", run_id, {"x": "another folder's"})
    way_out = "set another --output.table" if store.kind == "jsonl" else "another --output.name"
    with pytest.raises(UserError, match=f"up to run number 2 of another output folder .*{way_out}"):
        deliver(delivery(store, tmp_path / "other"))
    assert summaries(store.read("summaries")) == FIRST | SECOND
    if store.kind in ("delta", "postgres"):
        deliver(delivery(store, tmp_path / "other", output_name="other"))
        assert summaries(store.read("summaries")) == FIRST | SECOND | {"x": "another folder's"}


def test_kept_columns_come_as_they_are(store: Store, tmp_path: Path) -> None:
    day = datetime(2026, 1, 31, 23, 0, 0, 500, UTC)
    columns: dict[str, Any] = {
        "at": pa.array([day, None], pa.timestamp("us", "UTC")),
        "n": pa.array([2**53 + 1, None], pa.int64()),
        "small": pa.array([7, 8], pa.uint8()),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
        "kind": pa.array(["x", "y"]).dictionary_encode(),
        "tags": pa.array([["a", "b"], None], pa.list_(pa.string())),
        "real": pa.array([0.1, None], pa.float64()),
        "reals": pa.array([[0.5, float("inf")], None], pa.list_(pa.float64())),
    }
    finish_run(tmp_path / "out", "a", {1: "one", -(2**40): ""}, **columns)
    deliver(delivery(store, tmp_path / "out"))
    rows = {row["id"]: row for row in store.read("summaries")}
    first = {name: values[0].as_py() for name, values in columns.items()}
    if store.kind == "jsonl":
        first |= {"at": day.isoformat(), "price": "1.50", "reals": [0.5, None]}
    assert {name: rows[1][name] for name in first} == first
    assert [rows[-(2**40)][name] for name in ("summary", "at", "n", "price", "tags", "real")] == ["", *[None] * 5]


def test_times_finer_than_a_table_has_are_refused(store: Store, tmp_path: Path) -> None:
    finish_run(tmp_path / "out", "a", {"x": "one"}, at=pa.array([1], pa.timestamp("ns")))
    with pytest.raises(UserError, match="column 'at' has values that are not timestamp"):
        deliver(delivery(store, tmp_path / "out"))
    deliver(delivery(store, tmp_path / "out", "others", columns=["summary"]))
    assert store.read("others") == [{"id": "x", "summary": "one"}]


@pytest.mark.parametrize("store", ["iceberg", "delta", "postgres"], indirect=True)
def test_a_table_that_is_there_keeps_its_columns_and_types(store: Store, output: Path) -> None:
    there = pa.table({"id": ["d0", "mine"], "summary": ["old", "kept"], "score": [1.0, 2.0], "by": ["me", "me"]})
    store.write("summaries", there)
    if store.kind == "postgres":
        with pytest.raises(UserError, match="no unique or exclusion constraint"):
            deliver(delivery(store, output, columns=["summary", "score"]))
        store.sql(f"ALTER TABLE {store.schema}.summaries ADD PRIMARY KEY (id)")
    with pytest.raises(UserError, match=r"column 'run' is not in .* \(it has: id, summary, score, by\).*--input.columns"):
        deliver(delivery(store, output))
    deliver(delivery(store, output, columns=["summary", "score"]))
    rows = {row["id"]: row for row in store.read("summaries")}
    assert (rows["d0"]["summary"], rows["mine"]["summary"], rows["mine"]["by"]) == ("first 0", "kept", "me")
    assert rows["d0"]["by"] == (None if store.kind == "iceberg" else "me")
    assert rows["d20"] == {"id": "d20", "summary": "second 20", "score": -0.5, "by": None}
    store.write("texts", pa.table({"id": [1], "summary": ["x"]}))
    with pytest.raises(UserError, match=r"column 'id' is int64 in .*texts but string in the summaries"):
        deliver(delivery(store, output, "texts", columns=["summary"]))


@pytest.mark.parametrize("store", ["jsonl"], indirect=True)
def test_what_is_asked_for_must_be_there(store: Store, output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="run z is not finished in"):
        deliver(delivery(store, output, run_id="z"))
    with pytest.raises(UserError, match=r"no column 'sumary'; --input.columns can be of summary, score, run"):
        deliver(delivery(store, output, columns=["sumary"]))
    with pytest.raises(UserError, match="no run is finished in"):
        deliver(delivery(store, tmp_path / "none"))


@pytest.mark.parametrize("store", ["delta"], indirect=True)
def test_a_delta_table_has_one_commit_a_delivery_that_names_its_run(store: Store, output: Path) -> None:
    deliver(delivery(store, output, run_id="a"))
    deliver(delivery(store, output))
    deliver(delivery(store, output))
    last, before, created = DeltaTable(store.options("summaries")["table"]).history()
    assert '"run_id":"b"' in last["nightshift.nightshift"]
    assert '"run_id":"a"' in before["nightshift.nightshift"]
    assert created["operation"] == "CREATE TABLE"


@pytest.mark.parametrize("store", ["iceberg"], indirect=True)
def test_an_iceberg_table_has_one_snapshot_a_delivery_that_names_its_run(store: Store, output: Path) -> None:
    deliver(delivery(store, output, run_id="a"))
    deliver(delivery(store, output))
    table = store.catalog.load_table("night.summaries")
    said = [snapshot.summary["nightshift.nightshift"] for snapshot in table.snapshots()[1:] if snapshot.summary]
    assert [('"run_id":"a"' in one, '"run_id":"b"' in one) for one in said] == [(True, False), (False, True)]
    assert set(table.refs()) == {"main"}
    assert len(table.schemas()) == 1, "Ray Data's sink makes a schema of its own where it finds another"


@pytest.mark.parametrize("store", ["iceberg"], indirect=True)
def test_a_delivery_that_comes_second_writes_over_no_file_of_the_first(store: Store, tmp_path: Path) -> None:
    """Both rewrite the one file that there is, of which each leaves other rows."""
    store.write("summaries", pa.table({"id": [*FIRST, "mine"], "summary": [*FIRST.values(), "kept"]}))
    finish_run(tmp_path / "other", "a", {"d1": "another folder's", "d30": "another folder's"})
    finish_run(tmp_path / "one", "a", {"d0": "one's", "d30": "one's"})
    one, other = (delivery(store, tmp_path / name, columns=["summary"], output_name=name) for name in ("one", "other"))
    late = IcebergSink(other.output)
    deliver(one)
    expected = FIRST | {"mine": "kept", "d0": "one's", "d30": "one's"}
    assert not late.deliver(
        Summaries(str(tmp_path / "other"), 0, 1, ("summary",)), Watermark(run_id="a", sequence=1, manifest_sha256=None)
    )
    assert summaries(store.read("summaries")) == expected
    deliver(other)
    assert summaries(store.read("summaries")) == expected | {"d1": "another folder's", "d30": "another folder's"}


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_table_that_was_dropped_is_made_anew_with_all(store: Store, output: Path) -> None:
    deliver(delivery(store, output))
    store.sql(f"DROP TABLE {store.schema}.summaries")
    deliver(delivery(store, output))
    assert summaries(store.read("summaries")) == FIRST | SECOND


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_text_that_postgresql_has_none_of_is_told_by_its_id(store: Store, tmp_path: Path) -> None:
    finish_run(tmp_path / "out", "a", {"x": "one", "y": "t\0wo"})
    with pytest.raises(UserError, match=r"cannot write .*NUL.*, as 'y' has"):
        deliver(delivery(store, tmp_path / "out"))


# Passwords


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
@pytest.mark.parametrize(
    "said",
    ["postgresql://night:{}@localhost/db", "host=localhost password={}", "dbname=x {}", "host=/nowhere dbname=x user={}"],
)
def test_a_password_is_refused_and_not_told(store: Store, output: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UserError) as error:
        deliver(delivery(store, output, output_connection=said.format(PASSWORD)))
    if "user=" not in said:
        assert PASSWORD not in str(error.value)
    assert "--output.connection" in str(error.value)
    assert PASSWORD not in capsys.readouterr().out


@pytest.mark.parametrize("store", ["postgres"], indirect=True)
def test_a_wrong_password_is_told_without_it(store: Store, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "wrong-4712")
    with pytest.raises(UserError, match="password authentication failed") as error:
        deliver(delivery(store, output, output_password_env="WRONG"))
    assert "4712" not in str(error.value)
    with pytest.raises(UserError, match="no environment variable UNSET"):
        deliver(delivery(store, output, output_password_env="UNSET"))


@pytest.mark.parametrize("store", ["iceberg", "delta"], indirect=True)
def test_a_password_in_a_uri_is_refused_and_not_told(store: Store, output: Path) -> None:
    wrong = [{"output_table": f"s3://key:{PASSWORD}@bucket/table"}, {"output_table": f"s3://bucket/t?secret_key={PASSWORD}"}]
    wrong += [{"output_catalog_properties": {"uri": f"postgresql://u:{PASSWORD}@h/db"}}]  # type: ignore[dict-item]
    wrong += [{"output_catalog_properties": {"s3.secret-access-key": PASSWORD}}]  # type: ignore[dict-item]
    for options in wrong:
        with pytest.raises(UserError) as error:
            deliver(delivery(store, output, **options))
        assert PASSWORD not in str(error.value)
