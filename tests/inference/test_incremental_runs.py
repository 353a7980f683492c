"""Runs over one output folder: new documents are processed, unchanged ones skipped, interrupted runs resumed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from pyarrow import fs
from small_runs import Interrupted, interrupt_after, make_plan, make_texts, read_ids, run, write_documents

from pipeline.data.hashing import id_keys
from pipeline.errors import Stopped, UserError
from pipeline.inference.plan import new_run_id
from pipeline.inference.removed import find_names
from pipeline.inference.run import execute
from pipeline.io.location import open_location
from pipeline.runs.ledger import compact_ledger
from pipeline.runs.manifest import Manifest, RemovedDocuments
from pipeline.runs.progress import RunProgress


def read_manifest(nights: Path, run_id: str) -> Manifest:
    return Manifest.model_validate_json((nights / f"out/runs/{run_id}/manifest.json").read_bytes())


def test_new_and_changed_documents_are_processed_and_others_skipped(nights: Path) -> None:
    def read_summarized(run_id: str) -> list[str]:
        folder = nights / f"out/summaries/run={run_id}"
        return sorted(pads.dataset(folder).to_table()["id"].to_pylist()) if folder.exists() else []

    changed_or_new = sorted([f"d{n}" for n in (*range(50, 55), *range(60, 65))])
    assert read_manifest(nights, "2026").counts.skipped == {}
    assert read_summarized("2027") == changed_or_new
    assert read_manifest(nights, "2027").counts.skipped == {"summarized": 54, "rejected": 1}
    assert read_summarized("2028") == []
    assert read_manifest(nights, "2027").limits
    assert not read_manifest(nights, "2028").limits, "nothing was decoded, so nothing was slow"
    assert read_manifest(nights, "2028").counts.skipped == {"summarized": 64, "rejected": 1}
    assert len(read_summarized("2026")) == 59, "later runs change nothing"


def test_first_row_with_an_id_is_kept_and_the_others_are_rejected_in_each_run(nights: Path) -> None:
    for run_id in ("2026", "2027"):
        rejects = pads.dataset(nights / f"out/rejects/run={run_id}").to_table().to_pylist()
        [duplicate] = [row for row in rejects if row["reason"] == "duplicate_id"]
        assert duplicate["id"] == "d0"
        assert "row 0 of input file 0 " in duplicate["detail"], "the duplicate is in file 1"


def test_removed_documents_are_named(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 20))
    write_documents(tmp_path, "b", make_texts(20, 25) | {25: None, 26: " "})
    run(tmp_path, tiny_bundle, "first")
    write_documents(tmp_path, "b", {26: " "})
    second = run(tmp_path, tiny_bundle, "second").manifest
    assert (second.counts.skipped, second.counts.done) == ({"summarized": 20, "rejected": 1}, 0)
    assert second.removed == RemovedDocuments(documents=6, ids=[str(n) for n in range(20, 26)])
    assert pq.read_table(tmp_path / "out/runs/second/gone.parquet")["id"].to_pylist() == second.removed.ids
    # The next run takes the names from gone.parquet, without reading the summaries again.
    (tmp_path / "out/summaries/run=first").rename(tmp_path / "aside")
    other = run(tmp_path, tiny_bundle, "other", decoding={"max_target_tokens": 5}).manifest
    assert other.removed == second.removed
    assert (other.counts.summarized, other.counts.skipped) == (20, {}), "changed options process all documents again"


def test_names_of_removed_documents_may_be_invalid_utf8(tmp_path: Path) -> None:
    raw = pa.array([b"a\xff", b"b"])
    pq.write_table(pa.table({"id": pa.Array.from_buffers(pa.string(), 2, raw.buffers())}), tmp_path / "part.parquet")
    keys = id_keys(["a\ufffd"])[:, 0]
    assert find_names(fs.LocalFileSystem(), [str(tmp_path / "part.parquet")], keys) == {int(keys[0]): "a\ufffd"}


@pytest.mark.faults
def test_latest_entry_of_a_document_counts_also_in_a_compacted_ledger(tmp_path: Path, tiny_bundle: Path) -> None:
    """A text that changes back is processed again, since the latest summary belongs to the text in between."""
    output = open_location(str(tmp_path / "out"), "--output.path")
    for number, word in enumerate(["graphs", "trees"]):
        write_documents(tmp_path, "a", make_texts(0, 20, word) | make_texts(20, 40))
        run(tmp_path, tiny_bundle, f"run{number}")
    assert compact_ledger(output) == (40, 6)
    assert compact_ledger(output) == (40, 0)
    assert [path.name for path in (tmp_path / "out/ledger").iterdir()] == ["compacted"]
    write_documents(tmp_path, "b", make_texts(40, 45))
    write_documents(tmp_path, "a", make_texts(0, 40))
    third = run(tmp_path, tiny_bundle, "run2").manifest
    assert (third.counts.summarized, third.counts.skipped) == (25, {"summarized": 20})
    assert compact_ledger(output) == (45, 3)
    full = run(tmp_path, tiny_bundle, "run3", full=True).manifest
    assert (full.counts.summarized, full.counts.skipped) == (45, {})


def test_interrupted_run_is_resumed(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 95))
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_bundle, None, interrupt_after(4))
    [run_id] = [path.name for path in (tmp_path / "out/runs").iterdir()]
    # A window without a ledger segment may still be written by a task that outlives the driver.
    committed = [path.name for path in (tmp_path / f"out/ledger/run={run_id}").glob("part-*.parquet")]
    files = [tmp_path / f"out/summaries/run={run_id}" / name for name in committed]
    modified = {path: path.stat().st_mtime_ns for path in files}
    assert len(modified) >= 4
    write_documents(tmp_path, "b", make_texts(200, 205))  # left to the next run
    finished = run(tmp_path, tiny_bundle, None).manifest
    assert finished.run_id == run_id
    assert finished.resumed >= 40
    assert finished.counts.summarized == 95
    assert {path: path.stat().st_mtime_ns for path in files} == modified, "finished windows are kept"
    assert Counter(read_ids(tmp_path, run_id)) == Counter(range(95))
    after = run(tmp_path, tiny_bundle, "after").manifest
    assert (read_ids(tmp_path, "after"), after.counts.skipped) == (list(range(200, 205)), {"summarized": 95})


def test_run_ids_are_unique_though_clocks_are_set_back(tmp_path: Path) -> None:
    output, started_at = open_location(str(tmp_path / "out"), "--output.path"), datetime(2026, 1, 31, 23, tzinfo=UTC)
    run_ids = []
    for _ in range(3):
        run_ids.append(new_run_id(output, started_at))
        (tmp_path / "out/runs" / run_ids[-1]).mkdir(parents=True)
    assert run_ids == ["20260131T230000Z", "20260131T230000Z-2", "20260131T230000Z-3"]


@pytest.mark.faults
def test_other_runs_do_not_see_an_interrupted_one(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 30))
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_bundle, "interrupted", interrupt_after(1))
    assert run(tmp_path, tiny_bundle, "other").manifest.counts.summarized == 30
    assert run(tmp_path, tiny_bundle, "interrupted").manifest.counts.summarized == 30, "it skips what was done when it started"


def test_interrupted_run_that_another_has_replaced_is_not_resumed(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 30))
    interrupted = make_plan(tmp_path, tiny_bundle, "interrupted")
    late = make_plan(tmp_path, tiny_bundle, "late")
    interrupted.write()
    assert make_plan(tmp_path, tiny_bundle, None).run_id == "interrupted"
    assert run(tmp_path, tiny_bundle, "other").manifest.counts.summarized == 30
    assert make_plan(tmp_path, tiny_bundle, None).run_id != "interrupted"
    assert make_plan(tmp_path, tiny_bundle, None, full=True).run_id != "interrupted"
    assert make_plan(tmp_path, tiny_bundle, "interrupted").resumes, "a command may still ask for it"
    assert execute(late).manifest.counts.skipped == {"summarized": 30}, "finished runs are read again under the lease"


def test_interrupted_run_starts_over_if_its_input_has_changed(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 10))
    write_documents(tmp_path, "b", make_texts(10, 30))
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_bundle, "r", interrupt_after(1))
    (tmp_path / "in/a.parquet").unlink()
    write_documents(tmp_path, "b", make_texts(10, 25, "trees"))
    (tmp_path / "out/runs/r/gone.parquet").write_text("removed documents of the other input")
    finished = run(tmp_path, tiny_bundle, "r").manifest
    assert (finished.resumed, read_ids(tmp_path)) == (0, list(range(10, 25)))
    assert not (tmp_path / "out/runs/r/gone.parquet").exists()


@pytest.mark.faults
def test_interrupted_run_is_resumed_only_with_the_same_options(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 30))
    with pytest.raises(Interrupted):
        run(tmp_path, tiny_bundle, "r", interrupt_after(1))
    with pytest.raises(UserError, match="other decoding options"):
        make_plan(tmp_path, tiny_bundle, "r", decoding={"max_target_tokens": 5})
    # Options that do not change results may differ; the run keeps its own.
    finished = run(tmp_path, tiny_bundle, "r", resources={"window_rows": 7, "precision": "auto"}).manifest
    assert finished.config["resources"]["window_rows"] == 10
    assert finished.config["resources"]["precision"] == "float32"
    assert (finished.counts.summarized, len(finished.output_files)) == (30, 3)
    assert read_ids(tmp_path) == list(range(30))


def test_lost_file_stops_the_run_and_is_written_again(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 20))

    def lose_files(_: RunProgress) -> None:
        for file in (tmp_path / "out/summaries/run=r").iterdir():
            file.unlink()

    with pytest.raises(Stopped, match=r"summaries/run=r/part-000000-000"):
        run(tmp_path, tiny_bundle, "r", lose_files)
    assert not (tmp_path / "out/runs/r/_SUCCESS").exists()
    assert run(tmp_path, tiny_bundle, "r").manifest.counts.summarized == 20
    assert read_ids(tmp_path) == list(range(20))


def test_run_with_too_many_rejects_is_not_finished_until_they_are_allowed(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", {**make_texts(0, 7), 7: None, 8: "", 9: " "})
    assert not run(tmp_path, tiny_bundle, "r", input={"max_reject_share": 0.29}).published
    assert (tmp_path / "out/runs/r/manifest.json").exists()
    assert not (tmp_path / "out/runs/r/_SUCCESS").exists()
    again = run(tmp_path, tiny_bundle, "r", input={"max_reject_share": 0.3})
    assert (again.published, again.manifest.resumed) == (True, 10)


def test_run_with_too_many_unreadable_files_starts_over_once_they_are_repaired(tmp_path: Path, tiny_bundle: Path) -> None:
    write_documents(tmp_path, "a", make_texts(0, 20))
    truncated = write_documents(tmp_path, "b", make_texts(20, 40))
    truncated.write_bytes(truncated.read_bytes()[:-100])
    skip = {"on_bad_file": "skip", "max_reject_share": 0.05}
    refused = run(tmp_path, tiny_bundle, None, input=skip)
    assert (refused.published, refused.manifest.counts.reject_share) == (False, 0), "unreadable files count by their bytes"
    assert run(tmp_path, tiny_bundle, None, input=skip).manifest.resumed == 20, "nothing is repaired"
    write_documents(tmp_path, "b", make_texts(20, 40))
    repaired = run(tmp_path, tiny_bundle, None, input=skip)
    assert (repaired.published, repaired.manifest.run_id) == (True, refused.manifest.run_id)
    assert (repaired.manifest.resumed, read_ids(tmp_path, repaired.manifest.run_id)) == (0, list(range(40)))


def test_unreadable_files_fail_the_run_or_are_skipped(tmp_path: Path, tiny_bundle: Path) -> None:
    paths = {
        name: write_documents(tmp_path, name, make_texts(start, start + 25))
        for name, start in (("broken", 0), ("incomplete", 25), ("other", 50), ("intact", 75))
    }
    content = bytearray(paths["broken"].read_bytes())
    content[8:60] = bytes(52)  # the first page
    paths["broken"].write_bytes(content)
    paths["incomplete"].write_bytes(paths["incomplete"].read_bytes()[:100])
    write_documents(tmp_path, "other", pa.table({"id": [1], "body": ["x"]}))
    with pytest.raises(UserError, match=r"incomplete\.parquet.*--input\.on_bad_file skip"):
        make_plan(tmp_path, tiny_bundle, "r")
    skipping = run(tmp_path, tiny_bundle, "skipping", input={"on_bad_file": "skip"}).manifest
    assert read_ids(tmp_path, "skipping") == list(range(75, 100))
    unread = {Path(path).stem: file for path, file in skipping.unread.items()}
    assert {name: file.rows for name, file in unread.items()} == {"broken": 25, "incomplete": None, "other": None}
    assert "'text'" in unread["other"].error
    assert "on_bad_file" not in unread["incomplete"].error, "the option is set already"
    assert skipping.counts.unread == 25
    write_documents(tmp_path, "intact", make_texts(75, 90))
    following = run(tmp_path, tiny_bundle, "following", input={"on_bad_file": "skip"}).manifest
    assert following.removed == RemovedDocuments(), "10 are missing, but the skipped files may have them"
    for name in ("incomplete", "other"):
        paths[name].unlink()
    with pytest.raises(UserError, match=r"broken\.parquet.*--input\.on_bad_file skip"):
        run(tmp_path, tiny_bundle, "failing")
