"""The whole main job on small stores, with real Ray."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest

from pipeline.config.summarize import SummarizeConfig
from pipeline.errors import Stopped, UserError
from pipeline.inference.plan import plan_run
from pipeline.inference.run import RunResult, execute
from pipeline.runs.progress import RunProgress

TEXTS = [
    "We study the spectral gap of random graphs.",
    "ߒߞߏ ߦߋ߫ ߛߓߍߛߎ߲ ߘߏ߫ ߟߋ߬ ߘߌ߫",  # N'Ko, right to left
    "བོད་ཡིག་ནི་བོད་མིའི་ཡི་གེ་ཡིན།",  # Tibetan
    "A family 👨‍👩‍👧‍👦 and a flag 🏳️‍🌈 with joiners",
    "word " * 40_000,  # 200,000 characters
    "control \x00 \x1b characters \u2028 and separators",
    "<s> </s> <pad> special names",
    "x",
]


def run(config: dict[str, Any], on_progress: Callable[[RunProgress], None] = lambda _: None) -> RunResult:
    return execute(plan_run(SummarizeConfig.model_validate(config)), on_progress)


def config(store: Path, output: Path, bundle: Path, **sections: dict[str, Any]) -> dict[str, Any]:
    values: dict[str, Any] = {
        "input": {"path": str(store)},
        "output": {"path": str(output), "run_id": "r"},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1},
    }
    for name, options in sections.items():
        values[name] = {**values.get(name, {}), **options}
    return values


def rows(output: Path, kind: str, run_id: str = "r") -> list[dict[str, Any]]:
    folder = output / kind / f"run={run_id}"
    return pads.dataset(folder).to_table().to_pylist() if folder.exists() else []


def write_store(folder: Path, *tables: pa.Table) -> Path:
    folder.mkdir()
    for number, table in enumerate(tables):
        pq.write_table(table, folder / f"{number}.parquet")
    return folder


def test_every_id_ends_in_summaries_or_rejects_once(tmp_path: Path, tiny_bundle: Path) -> None:
    sound = pa.table({"id": [f"d{n}" for n in range(len(TEXTS))], "text": TEXTS})
    unfit = pa.array([None, "", " \n\t\u00a0", "no id"], pa.large_string())
    bad = pa.table({"id": ["null", "empty", "blank", None], "text": unfit})
    marks = pa.table({"id": ["marks"], "text": ["\u2581 \u2581"]})  # what SentencePiece writes for a space, and nothing else
    marks = marks.cast(pa.schema([("id", pa.string_view()), ("text", pa.string_view())]))
    long = pa.table({"id": ["long"], "text": ["y" * 1_000_001]})
    finished = run(
        config(
            write_store(tmp_path / "in", sound, bad, long, marks), tmp_path / "out", tiny_bundle, input={"max_chars": 1_000_000}
        )
    )
    summaries, rejects = rows(tmp_path / "out", "summaries"), rows(tmp_path / "out", "rejects")
    assert sorted(row["id"] for row in summaries) == sorted(sound["id"].to_pylist())
    assert {row["id"]: row["reason"] for row in rejects} == {
        "null": "null_text",
        "empty": "empty_text",
        "blank": "empty_text",
        "long": "too_long",
        "marks": "empty_text",
        None: "null_id",
    }
    assert all(row["detail"] for row in rejects)
    counts = finished.manifest.counts
    assert (counts.read, counts.summarized, sum(counts.rejected.values())) == (14, 8, 6)


def test_a_summaries_row_keeps_the_contract(tmp_path: Path, tiny_bundle: Path) -> None:
    table = pa.table({"key": pa.array([7, 8], pa.int16()), "body": TEXTS[:2], "tags": [["a"], ["b", "c"]], "date": ["x", None]})
    table = table.cast(table.schema.set(3, pa.field("date", pa.string(), metadata={"calendar": "julian"})))
    options = {"id_column": "key", "text_column": "body", "keep_columns": ["tags", "date"]}
    finished = run(config(write_store(tmp_path / "in", table), tmp_path / "out", tiny_bundle, input=options))
    [file] = (tmp_path / "out/summaries/run=r").glob("*.parquet")
    schema = pq.read_schema(file)
    assert schema.remove_metadata() == pa.schema(
        [
            ("key", pa.int16()),
            ("summary", pa.string()),
            ("source_tokens", pa.int32()),
            ("summary_tokens", pa.int32()),
            ("source_truncated", pa.bool_()),
            ("finish_reason", pa.string()),
            ("score", pa.float32()),
            ("tags", pa.list_(pa.string())),
            ("date", pa.string()),
        ]
    )
    assert schema.field("date").metadata[b"calendar"] == b"julian"
    assert schema.metadata[b"nightshift.run_id"] == b"r"
    assert schema.metadata[b"nightshift.model_fingerprint"].decode() == finished.manifest.model_fingerprint
    kept = {row["key"]: (row["tags"], row["date"]) for row in rows(tmp_path / "out", "summaries")}
    assert kept == {7: (["a"], "x"), 8: (["b", "c"], None)}
    assert {row["finish_reason"] for row in rows(tmp_path / "out", "summaries")} <= {"eos", "length"}


def test_bytes_that_are_not_utf8_come_through(tmp_path: Path, tiny_bundle: Path) -> None:
    broken = b"a lone surrogate \xed\xa0\x80 and a cut \xf0\x9f\x91"
    texts = pa.Array.from_buffers(pa.string(), 1, pa.array([broken], pa.binary()).buffers())
    run(config(write_store(tmp_path / "in", pa.table({"id": [1], "text": texts})), tmp_path / "out", tiny_bundle))
    assert [row["id"] for row in rows(tmp_path / "out", "summaries")] == [1]


def test_a_summary_depends_on_its_document_alone(tmp_path: Path, tiny_bundle: Path) -> None:
    texts = [" ".join(TEXTS[:1] * (1 + n % 7)) + f" {n}" for n in range(60)]
    tables = [pa.table({"id": list(range(start, start + 20)), "text": texts[start : start + 20]}) for start in (0, 20, 40)]
    store = write_store(tmp_path / "in", *tables)
    shapes = ({"window_rows": 512}, {"window_rows": 7, "window_tokens": 60, "token_budget": 50, "actors": 2, "min_actors": 1})
    found = []
    for number, shape in enumerate(shapes):
        run(config(store, tmp_path / f"out{number}", tiny_bundle, resources=shape))
        found.append({row["id"]: row["summary"] for row in rows(tmp_path / f"out{number}", "summaries")})
    assert len(found[0]) == 60
    assert found[0] == found[1]


def test_the_manifest_says_what_was_done_and_success_comes_last(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": ["a", "b", "c"], "text": [TEXTS[0], TEXTS[4], None]}))
    run(config(store, tmp_path / "out", tiny_bundle))
    folder = tmp_path / "out/runs/r"
    names = ["_SUCCESS", "config.yaml", "manifest.json", "plan.parquet", "progress.json", "report.html"]
    assert sorted(file.name for file in folder.iterdir()) == names
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["counts"]["read"] == 3
    assert manifest["counts"]["rejected"] == {"null_text": 1}
    assert manifest["counts"]["truncated"] == 1
    assert [file["rows"] for file in manifest["input_files"]] == [3]
    for file in manifest["output_files"]:
        path = tmp_path / "out" / file["path"]
        assert (pq.read_metadata(path).num_rows, path.stat().st_size) == (file["rows"], file["bytes"])
    assert (folder / "_SUCCESS").stat().st_mtime_ns >= (folder / "manifest.json").stat().st_mtime_ns


def test_leftovers_of_an_unfinished_run_are_not_in_its_result(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": ["a"], "text": [TEXTS[0]]}))
    leftover = tmp_path / "out/summaries/run=r/part-leftover.parquet"
    leftover.parent.mkdir(parents=True)
    pq.write_table(pa.table({"id": ["a"], "summary": ["half a run"]}), leftover)
    run(config(store, tmp_path / "out", tiny_bundle))
    assert len(rows(tmp_path / "out", "summaries")) == 1
    assert not leftover.exists()


def test_a_file_that_no_record_names_is_removed_before_the_end(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": ["a"], "text": [TEXTS[0]]}))
    stray = tmp_path / "out/summaries/run=r/part-stray.parquet"
    run(
        config(store, tmp_path / "out", tiny_bundle),
        lambda _: pq.write_table(pa.table({"id": ["a"], "summary": ["written twice"]}), stray),
    )
    assert not stray.exists()
    assert len(rows(tmp_path / "out", "summaries")) == 1


def test_a_written_file_that_is_gone_stops_the_run(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": ["a"], "text": [TEXTS[0]]}))

    def lose(_: RunProgress) -> None:
        for file in (tmp_path / "out/summaries/run=r").iterdir():
            file.unlink()

    with pytest.raises(Stopped, match=r"1 files are not in .* as they were written"):
        run(config(store, tmp_path / "out", tiny_bundle), lose)
    assert not (tmp_path / "out/runs/r/_SUCCESS").exists()


def test_a_file_that_changes_during_the_run_stops_it_and_a_new_one_does_not(tmp_path: Path, tiny_bundle: Path) -> None:
    table = pa.table({"id": ["a"], "text": [TEXTS[0]]})
    store = write_store(tmp_path / "in", table)
    run(config(store, tmp_path / "out", tiny_bundle), lambda _: pq.write_table(table, store / "new.parquet"))
    assert (tmp_path / "out/runs/r/_SUCCESS").exists()
    other = pa.table({"id": ["b"], "text": [TEXTS[1]]})
    with pytest.raises(Stopped, match=r"1 files have changed since the run began, .*0\.parquet among them"):
        run(
            config(store, tmp_path / "other", tiny_bundle),
            lambda _: pq.write_table(other, store / "0.parquet"),
        )
    assert not (tmp_path / "other/runs/r/_SUCCESS").exists()


def test_a_finished_run_is_not_taken_for_another(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": ["a"], "text": [TEXTS[0]]}))
    values = config(store, tmp_path / "out", tiny_bundle)
    run(values)
    assert plan_run(SummarizeConfig.model_validate(values)).is_finished()
    shorter = {**values, "decoding": {"max_target_tokens": 3}}
    with pytest.raises(UserError, match="with other decoding options"):
        plan_run(SummarizeConfig.model_validate(shorter)).is_finished()
    pq.write_table(pa.table({"id": ["b"], "text": [TEXTS[1]]}), store / "new.parquet")
    with pytest.raises(UserError, match="with another input"):
        plan_run(SummarizeConfig.model_validate(values)).is_finished()
    (tmp_path / "out/runs/r/manifest.json").write_text('{"format": 0}')
    with pytest.raises(UserError, match=r"manifest\.json is broken or of another version; set another --output\.run_id"):
        plan_run(SummarizeConfig.model_validate(values)).is_finished()


@pytest.mark.parametrize("columns", [["id"], ["c", "c"]])
def test_a_column_is_kept_once(tmp_path: Path, tiny_bundle: Path, columns: list[str]) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": [1], "text": ["t"], "c": ["c"]}))
    with pytest.raises(UserError, match=r"--input\.keep_columns"):
        run(config(store, tmp_path / "out", tiny_bundle, input={"keep_columns": columns}))


def test_the_output_may_not_lie_in_the_input(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": [1], "text": ["t"]}))
    with pytest.raises(UserError, match="lie in each other"):
        run(config(store, store / "out", tiny_bundle))


def test_actors_that_the_machine_cannot_hold(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": [1], "text": ["t"]}))
    for options in ({"actors": 10_000}, {"use_gpu": True}):
        with pytest.raises(UserError, match=r"--resources\.actors"):
            run(config(store, tmp_path / "out", tiny_bundle, resources=options))


def test_a_precision_that_the_actors_cannot_compute_in(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": [1], "text": ["t"]}))
    with pytest.raises(UserError, match=r"^float16 computes on GPUs alone"):
        run(config(store, tmp_path / "out", tiny_bundle, resources={"precision": "float16", "use_gpu": False}))


def test_an_empty_store_gives_an_empty_finished_run(tmp_path: Path, tiny_bundle: Path) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}))
    finished = run(config(store, tmp_path / "out", tiny_bundle))
    assert finished.manifest.counts.read == 0
    assert (tmp_path / "out/runs/r/_SUCCESS").exists()


@pytest.mark.parametrize("column", ["summary", "run", "nightshift.ids"])
def test_a_kept_column_may_not_hide_one_of_the_outputs(tmp_path: Path, tiny_bundle: Path, column: str) -> None:
    store = write_store(tmp_path / "in", pa.table({"id": [1], "text": ["t"], column: ["c"]}))
    with pytest.raises(UserError, match=f"'{column}'"):
        run(config(store, tmp_path / "out", tiny_bundle, input={"keep_columns": [column]}))
