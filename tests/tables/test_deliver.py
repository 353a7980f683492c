"""Contents of a table after deliveries: each id once, with the right summary, whatever the order of deliveries."""

from __future__ import annotations

from datetime import UTC, datetime
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from deltalake import DeltaTable
from native_tables import FIRST_RUN, PASSWORD, SECOND_RUN, NativeTables, finish_run

from pipeline.errors import UserError
from pipeline.tables.base import Summaries, Watermark
from pipeline.tables.deliver import deliver
from pipeline.tables.iceberg import IcebergSink


def only(*table_types: str) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("tables", table_types, indirect=True)


def test_runs_are_delivered_once_in_any_order(tables: NativeTables, output: Path) -> None:
    deliver(tables.deliver_config(output, run_id="a"))
    assert tables.summaries() == FIRST_RUN
    assert not deliver(tables.deliver_config(output, run_id="a")).had_rows
    delivered = deliver(tables.deliver_config(output))
    assert (delivered.previous_run_id, delivered.run_id, delivered.had_rows) == ("a", "b", True)
    assert tables.summaries() == FIRST_RUN | SECOND_RUN
    late = deliver(tables.deliver_config(output, run_id="a"))
    assert (late.run_id, late.had_rows) == ("b", False)
    assert tables.summaries() == FIRST_RUN | SECOND_RUN
    assert {row["run"] for row in tables.read("summaries") if row["id"] in SECOND_RUN} == {"b"}


@only("delta", "jsonl", "postgres")
def test_a_delivery_includes_runs_that_were_left_out(tables: NativeTables, output: Path) -> None:
    finish_run(output, "c", {"d0": "third 0"})
    deliver(tables.deliver_config(output))
    assert tables.summaries() == FIRST_RUN | SECOND_RUN | {"d0": "third 0"}
    finish_run(output, "nothing new", {})
    deliver(tables.deliver_config(output))
    assert tables.summaries() == FIRST_RUN | SECOND_RUN | {"d0": "third 0"}


def test_a_second_output_folder_needs_a_name_of_its_own(tables: NativeTables, output: Path, tmp_path: Path) -> None:
    deliver(tables.deliver_config(output))
    for run_id in ("a", "b"):  # as if the folder had been removed and written again
        finish_run(tmp_path / "other", run_id, {"x": "from the other folder"})
    option = "--output.table" if tables.type == "jsonl" else "--output.name"
    with pytest.raises(UserError, match=rf"number 2 of another output folder .*{option}"):
        deliver(tables.deliver_config(tmp_path / "other"))
    assert tables.summaries() == FIRST_RUN | SECOND_RUN
    if tables.type in ("delta", "postgres"):
        deliver(tables.deliver_config(tmp_path / "other", output_name="other"))
        assert tables.summaries() == FIRST_RUN | SECOND_RUN | {"x": "from the other folder"}


def test_kept_columns_keep_their_values(tables: NativeTables, tmp_path: Path) -> None:
    time = datetime(2026, 1, 31, 23, 0, 0, 500, UTC)
    columns: dict[str, Any] = {
        "time": pa.array([time, None], pa.timestamp("us", "UTC")),
        "n": pa.array([2**53 + 1, None], pa.int64()),
        "small": pa.array([7, 8], pa.uint8()),
        "price": pa.array([Decimal("1.50"), None], pa.decimal128(9, 2)),
        "category": pa.array(["x", "y"]).dictionary_encode(),
        "tags": pa.array([["a", "b"], None], pa.list_(pa.string())),
        "real": pa.array([0.1, None], pa.float64()),
        "reals": pa.array([[0.5, float("inf")], None], pa.list_(pa.float64())),
    }
    finish_run(tmp_path / "out", "a", {1: "one", -(2**40): ""}, **columns)
    deliver(tables.deliver_config(tmp_path / "out"))
    rows = {row["id"]: row for row in tables.read("summaries")}
    expected = {name: values[0].as_py() for name, values in columns.items()}
    if tables.type == "jsonl":
        expected |= {"time": time.isoformat(), "price": "1.50", "reals": [0.5, None]}
    assert {name: rows[1][name] for name in expected} == expected
    assert [rows[-(2**40)][name] for name in ("summary", "time", "n", "price", "tags", "real")] == ["", *[None] * 5]


def test_times_that_a_table_would_round_are_refused(tables: NativeTables, tmp_path: Path) -> None:
    finish_run(tmp_path / "out", "a", {"x": "one"}, time=pa.array([1], pa.timestamp("ns")))
    with pytest.raises(UserError, match=r"'time' .* not timestamp"):
        deliver(tables.deliver_config(tmp_path / "out"))
    deliver(tables.deliver_config(tmp_path / "out", "others", columns=["summary"]))
    assert tables.read("others") == [{"id": "x", "summary": "one"}]


@only("iceberg", "delta", "postgres")
def test_an_existing_table_keeps_its_columns_and_types(tables: NativeTables, output: Path) -> None:
    rows = pa.table({"id": ["d0", "mine"], "summary": ["old", "kept"], "score": [1.0, 2.0], "author": ["me", "me"]})
    tables.write("summaries", rows)
    if tables.type == "postgres":
        with pytest.raises(UserError, match="constraint"):
            deliver(tables.deliver_config(output, columns=["summary", "score"]))
        tables.sql(f"ALTER TABLE {tables.schema}.summaries ADD PRIMARY KEY (id)")
    with pytest.raises(UserError, match=r"'run' .* id, summary, score, author\).*--input.columns"):
        deliver(tables.deliver_config(output))
    deliver(tables.deliver_config(output, columns=["summary", "score"]))
    by_id = {row["id"]: row for row in tables.read("summaries")}
    assert (by_id["d0"]["summary"], by_id["mine"]["summary"], by_id["mine"]["author"]) == ("first 0", "kept", "me")
    assert by_id["d0"]["author"] == (None if tables.type == "iceberg" else "me")
    assert by_id["d20"] == {"id": "d20", "summary": "second 20", "score": -0.5, "author": None}
    tables.write("texts", pa.table({"id": [1], "summary": ["x"]}))
    with pytest.raises(UserError, match=r"'id' is int64 in .*texts but string"):
        deliver(tables.deliver_config(output, "texts", columns=["summary"]))


@only("jsonl")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run_id": "z"}, "run z "),
        ({"columns": ["sumary"]}, r"'sumary' .*summary, score, run.*--input.columns"),
        ({"path": "none"}, "none; set --input.path"),
    ],
)
def test_missing_runs_and_columns_are_named(tables: NativeTables, output: Path, options: Any, message: str) -> None:
    path = output.parent / options.pop("path", output.name)
    with pytest.raises(UserError, match=message):
        deliver(tables.deliver_config(path, **options))


@only("delta")
def test_delta_has_one_commit_per_delivery_which_names_the_run(tables: NativeTables, output: Path) -> None:
    deliver(tables.deliver_config(output, run_id="a"))
    deliver(tables.deliver_config(output))
    deliver(tables.deliver_config(output))
    second, first, created = DeltaTable(tables.options("summaries")["table"]).history()
    assert '"run_id":"b"' in second["nightshift.nightshift"]
    assert '"run_id":"a"' in first["nightshift.nightshift"]
    assert created["operation"] == "CREATE TABLE"


@only("iceberg")
def test_iceberg_has_one_snapshot_per_delivery_which_names_the_run(tables: NativeTables, output: Path) -> None:
    deliver(tables.deliver_config(output, run_id="a"))
    deliver(tables.deliver_config(output))
    table = tables.catalog.load_table("night.summaries")
    watermarks = [snapshot.summary["nightshift.nightshift"] for snapshot in table.snapshots()[1:] if snapshot.summary]
    assert [Watermark.model_validate_json(watermark).run_id for watermark in watermarks] == ["a", "b"]
    assert set(table.refs()) == {"main"}
    assert len(table.schemas()) == 1, "Ray Data's sink adds a schema if the types differ"


@only("iceberg")
def test_concurrent_deliveries_do_not_overwrite_each_others_files(tables: NativeTables, tmp_path: Path) -> None:
    """Both deliveries rewrite the same file, and keep different rows of it."""
    tables.write("summaries", pa.table({"id": [*FIRST_RUN, "mine"], "summary": [*FIRST_RUN.values(), "kept"]}))
    finish_run(tmp_path / "slow", "a", {"d1": "slow", "d30": "slow"})
    finish_run(tmp_path / "fast", "a", {"d0": "fast", "d30": "fast"})
    fast, slow = (tables.deliver_config(tmp_path / name, columns=["summary"], output_name=name) for name in ("fast", "slow"))
    slow_sink = IcebergSink(slow.output)
    deliver(fast)
    expected = FIRST_RUN | {"mine": "kept", "d0": "fast", "d30": "fast"}
    watermark = Watermark(run_id="a", sequence=1, manifest_sha256=None)
    assert not slow_sink.deliver(Summaries(str(tmp_path / "slow"), 0, 1, ("summary",)), watermark)
    assert tables.summaries() == expected
    deliver(slow)
    assert tables.summaries() == expected | {"d1": "slow", "d30": "slow"}


@only("postgres")
def test_a_dropped_table_is_created_again_with_all_summaries(tables: NativeTables, output: Path) -> None:
    deliver(tables.deliver_config(output))
    tables.sql(f"DROP TABLE {tables.schema}.summaries")
    deliver(tables.deliver_config(output))
    assert tables.summaries() == FIRST_RUN | SECOND_RUN


@only("postgres")
def test_a_text_that_postgresql_cannot_store_is_named_by_id(tables: NativeTables, tmp_path: Path) -> None:
    finish_run(tmp_path / "out", "a", {"x": "one", "y": "t\0wo"})
    with pytest.raises(UserError, match=r"'y' .*NUL"):
        deliver(tables.deliver_config(tmp_path / "out"))


# Passwords


@only("postgres")
@pytest.mark.parametrize(
    "connection",
    ["postgresql://night:{}@localhost/db", "host=localhost password={}", "dbname=x {}", "host=/nowhere dbname=x user={}"],
)
def test_a_password_in_a_connection_is_refused_and_not_printed(
    tables: NativeTables, output: Path, connection: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(UserError, match=r"--output\.connection") as error:
        deliver(tables.deliver_config(output, output_connection=connection.format(PASSWORD)))
    if "user=" not in connection:
        assert PASSWORD not in str(error.value)
    assert PASSWORD not in capsys.readouterr().out


@only("postgres")
def test_a_wrong_password_is_not_printed(tables: NativeTables, output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WRONG", "wrong-4712")
    with pytest.raises(UserError, match="password authentication failed") as error:
        deliver(tables.deliver_config(output, output_password_env="WRONG"))
    assert "4712" not in str(error.value)
    with pytest.raises(UserError, match="variable UNSET"):
        deliver(tables.deliver_config(output, output_password_env="UNSET"))


@pytest.mark.parametrize(
    ("tables", "options"),
    [
        ("delta", {"output_table": f"s3://key:{PASSWORD}@bucket/table"}),
        ("delta", {"output_table": f"s3://bucket/t?secret_key={PASSWORD}"}),
        ("iceberg", {"output_catalog_properties": {"uri": f"postgresql://u:{PASSWORD}@h/db"}}),
        ("iceberg", {"output_catalog_properties": {"s3.secret-access-key": PASSWORD}}),
    ],
    indirect=["tables"],
)
def test_a_password_in_an_option_is_refused_and_not_printed(tables: NativeTables, output: Path, options: Any) -> None:
    with pytest.raises(UserError, match=r"--output\.") as error:
        deliver(tables.deliver_config(output, **options))
    assert PASSWORD not in str(error.value)
