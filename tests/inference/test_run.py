"""One run on a small input, with real Ray: what it writes, and what stops it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_runs import make_plan, read_rows, run, write_documents

from pipeline.errors import Stopped, UserError
from pipeline.inference.run import RunResult, execute
from pipeline.runs.progress import RunProgress

TEXTS = {
    "english": "We study the spectral gap of random graphs.",
    "right to left": "ߒߞߏ ߦߋ߫ ߛߓߍߛߎ߲ ߘߏ߫ ߟߋ߬ ߘߌ߫",  # N'Ko
    "tibetan": "བོད་ཡིག་ནི་བོད་མིའི་ཡི་གེ་ཡིན།",
    "joiners": "A family 👨‍👩‍👧‍👦 and a flag 🏳️‍🌈 with joiners",
    "200,000 characters": "word " * 40_000,
    "controls": "control \x00 \x1b characters \u2028 and separators",
    "special names": "<s> </s> <pad> special names",
    "short": "x",
}
REJECTS = {"null": None, "empty": "", "blank": " \n\t\u00a0", None: "no id"}
TOKENLESS = "\u2581 \u2581"  # SentencePiece writes spaces so, and finds nothing else in it
NOT_UTF8 = b"a lone surrogate \xed\xa0\x80 and a truncated \xf0\x9f\x91"
OPTIONS: dict[str, Any] = {"id_column": "key", "keep_columns": ["tags", "date"], "max_chars": 1_000_000}


def make_table(texts: dict[str | None, str | None] | pa.Array, text_type: pa.DataType) -> pa.Table:
    """Return documents with an id, a text and two more columns."""
    if isinstance(texts, dict):
        keys, column = list(texts), pa.array(texts.values(), text_type)
    else:
        keys, column = ["not UTF-8"], texts
    dates = pa.field("date", pa.string(), metadata={"calendar": "julian"})
    tags = pa.array([["a"], *[["b", "c"]] * (len(keys) - 1)])
    schema = pa.schema([("key", pa.string()), ("text", column.type), ("tags", tags.type), dates])
    return pa.table([pa.array(keys), column, tags, pa.array(["x", *[None] * (len(keys) - 1)])], schema)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An input with texts of all kinds, and the leftover of an interrupted run."""
    folder = tmp_path_factory.mktemp("run")
    write_documents(folder, "0", make_table(dict(TEXTS), pa.string()))
    write_documents(folder, "1", make_table(dict(REJECTS), pa.large_string()))
    write_documents(folder, "2", make_table({"tokenless": TOKENLESS, "long": "y" * 1_000_001}, pa.string_view()))
    not_utf8 = pa.Array.from_buffers(pa.string(), 1, pa.array([NOT_UTF8], pa.binary()).buffers())
    write_documents(folder, "3", make_table(not_utf8, pa.string()))
    write_stray_file(folder, "leftover")
    return folder


def write_stray_file(folder: Path, name: str) -> None:
    path = folder / f"out/summaries/run=r/part-{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({"key": ["english"], "summary": ["written twice"]}), path)


@pytest.fixture(scope="module")
def result(folder: Path, tiny_bundle: Path) -> RunResult:
    """A finished run; while it ran, a stray file and a later input file were written."""
    phases: list[str] = []

    def disturb(_: RunProgress) -> None:
        write_stray_file(folder, "stray")
        write_documents(folder, "later", make_table({"later": "text"}, pa.string()))

    plan = make_plan(folder, tiny_bundle, input=OPTIONS, resources={"window_rows": 512})
    finished = execute(plan, disturb, phases.append)
    (folder / "in/later.parquet").unlink()
    assert phases[0] == "starting Ray"
    assert "loading the model and reading documents" in phases
    return finished


def test_every_document_is_summarized_or_rejected_once(folder: Path, result: RunResult) -> None:
    rejects = read_rows(folder, table="rejects")
    assert sorted(row["key"] for row in read_rows(folder)) == sorted([*TEXTS, "not UTF-8"])
    assert {row["key"]: row["reason"] for row in rejects} == {
        "null": "null_text",
        "empty": "empty_text",
        "blank": "empty_text",
        "long": "too_long",
        "tokenless": "empty_text",
        None: "null_id",
    }
    assert all(row["detail"] for row in rejects)
    counts = result.manifest.counts
    assert (counts.read, counts.summarized, sum(counts.rejected.values())) == (15, 9, 6)


def test_summaries_have_the_documented_columns(folder: Path, result: RunResult) -> None:
    file, *_ = (folder / "out/summaries/run=r").glob("*.parquet")
    schema = pq.read_schema(file)
    assert schema.remove_metadata() == pa.schema(
        [
            ("key", pa.string()),
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
    assert schema.metadata[b"nightshift.model_fingerprint"].decode() == result.manifest.model_fingerprint
    rows = {row["key"]: row for row in read_rows(folder)}
    assert (rows["english"]["tags"], rows["english"]["date"]) == (["a"], "x")
    assert (rows["short"]["tags"], rows["short"]["date"]) == (["b", "c"], None)
    assert {row["finish_reason"] for row in rows.values()} <= {"eos", "length"}


def test_manifest_describes_the_run_and_success_is_written_last(folder: Path, result: RunResult) -> None:
    run_folder = folder / "out/runs/r"
    names = ["_SUCCESS", "config.yaml", "manifest.json", "plan.parquet", "progress.json", "report.html"]
    assert sorted(file.name for file in run_folder.iterdir()) == names
    manifest = json.loads((run_folder / "manifest.json").read_text())
    assert manifest == json.loads(result.manifest.model_dump_json())
    assert manifest["counts"]["read"] == 15
    assert manifest["counts"]["truncated"] >= 1
    assert [file["rows"] for file in manifest["input_files"]] == [8, 4, 2, 1], "a file that comes later is left to the next run"
    for file in manifest["output_files"]:
        path = folder / "out" / file["path"]
        assert (pq.read_metadata(path).num_rows, path.stat().st_size) == (file["rows"], file["bytes"])
    assert (run_folder / "_SUCCESS").stat().st_mtime_ns >= (run_folder / "manifest.json").stat().st_mtime_ns


def test_files_without_a_record_are_removed(folder: Path, result: RunResult) -> None:
    recorded = {Path(file.path).name for file in result.manifest.output_files}
    written = {path.name for table in ("summaries", "rejects") for path in (folder / f"out/{table}/run=r").iterdir()}
    assert written == recorded


def test_summary_depends_only_on_its_document(folder: Path, result: RunResult, tiny_bundle: Path) -> None:
    shape = {"window_rows": 3, "window_tokens": 60, "token_budget": 50, "actors": 2, "min_actors": 1}
    other = run(folder, tiny_bundle, "other", input=OPTIONS, resources=shape, full=True)
    assert len(other.manifest.output_files) > len(result.manifest.output_files)
    assert {r["key"]: r["summary"] for r in read_rows(folder, "other")} == {r["key"]: r["summary"] for r in read_rows(folder)}


@pytest.mark.usefixtures("result")
def test_finished_run_is_not_run_again_with_another_input_or_options(folder: Path, tiny_bundle: Path, tmp_path: Path) -> None:
    assert make_plan(folder, tiny_bundle, input=OPTIONS).is_finished()
    with pytest.raises(UserError, match="r has already finished"):
        make_plan(folder, tiny_bundle, input=OPTIONS, decoding={"max_target_tokens": 3}).is_finished()
    with pytest.raises(UserError, match="r has already finished"):
        make_plan(folder, tiny_bundle, input={**OPTIONS, "path": str(folder / "in/0.parquet")}).is_finished()
    with pytest.raises(UserError, match=r"another driver .* run r\b"):
        run(folder, tiny_bundle, input=OPTIONS)
    manifest = tmp_path / "out/runs/r/manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"format": 0}')
    (manifest.parent / "_SUCCESS").write_text('{"sequence": 1}')
    write_documents(tmp_path, "0", {"a": "text"})
    with pytest.raises(UserError, match=r"manifest\.json.*--output\.run_id"):
        make_plan(tmp_path, tiny_bundle).is_finished()


def test_changed_input_file_stops_the_run(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "0", {"a": TEXTS["english"]})
    with pytest.raises(Stopped, match=r"0\.parquet"):
        run(tmp_path, tiny_bundle, on_progress=lambda _: write_documents(tmp_path, "0", {"b": "another text"}) and None)
    assert not (tmp_path / "out/runs/r/_SUCCESS").exists()


def test_actor_errors_reach_the_user(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "0", {"a": "text"})
    with pytest.raises(UserError, match=r"^float16 "):
        run(tmp_path, tiny_bundle, resources={"precision": "float16", "use_gpu": False})


def test_too_many_actors_are_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "0", {"a": "text"})
    for options in ({"actors": 10_000}, {"use_gpu": True}):
        with pytest.raises(UserError, match=r"--resources\.actors"):
            run(tmp_path, tiny_bundle, resources=options)


def test_input_without_documents_gives_an_empty_finished_run(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "0", {})
    write_documents(tmp_path, "0", pa.table({"id": pa.array([], pa.string()), "text": pa.array([], pa.string())}))
    assert run(tmp_path, tiny_bundle).manifest.counts.read == 0
    assert (tmp_path / "out/runs/r/_SUCCESS").exists()


@pytest.mark.parametrize("columns", [["id"], ["c", "c"], ["summary"], ["run"], ["nightshift.ids"]])
def test_kept_columns_may_not_repeat_or_hide_others(tmp_path: Path, tiny_bundle: Path, columns: list[str]) -> None:
    write_documents(tmp_path, "0", pa.table({"id": [1], "text": ["t"], "c": ["c"]} | {name: ["c"] for name in columns}))
    with pytest.raises(UserError, match=rf"--input\.keep_columns .*'{columns[0]}'"):
        make_plan(tmp_path, tiny_bundle, input={"keep_columns": columns})


def test_output_in_the_input_is_refused(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "0", {"a": "text"})
    with pytest.raises(UserError, match=r"--output\.path"):
        make_plan(tmp_path, tiny_bundle, output={"path": str(tmp_path / "in/out")})
