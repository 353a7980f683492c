"""Night after night over one output folder: what is new is done, what is not is skipped, what was cut off goes on."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as pads
import pyarrow.parquet as pq
import pytest
from incremental import Killed, kill_after, night, planned, texts, write, written
from pyarrow import fs

from pipeline.data.hashing import id_keys
from pipeline.errors import Stopped, UserError
from pipeline.inference.plan import _new_id
from pipeline.inference.removed import _find_ids
from pipeline.inference.run import execute
from pipeline.io.location import open_location
from pipeline.runs.ledger import compact
from pipeline.runs.manifest import RemovedDocuments
from pipeline.runs.progress import RunProgress


def test_the_next_night_does_what_is_new_or_changed(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 100))
    write(tmp_path, "b", texts(100, 120) | {120: None, 121: " "})
    first = night(tmp_path, tiny_bundle, "first")
    assert (first.manifest.counts.summarized, first.manifest.counts.skipped) == (120, {})

    write(tmp_path, "b", texts(100, 110) | texts(110, 113, "trees") | {121: " "})  # 7 are gone, and one that was rejected
    write(tmp_path, "c", texts(200, 215))
    second = night(tmp_path, tiny_bundle, "second").manifest
    assert written(tmp_path, "second") == [*range(110, 113), *range(200, 215)]
    assert second.counts.skipped == {"summarized": 110, "rejected": 1}
    assert second.counts.read == 129 == sum(second.counts.skipped.values()) + second.counts.done
    assert (second.removed.documents, second.removed.ids) == (8, sorted(str(n) for n in range(113, 121)))
    assert pq.read_table(tmp_path / "out/runs/second/gone.parquet")["id"].to_pylist() == second.removed.ids
    assert written(tmp_path, "first") == list(range(120)), "nothing of it is touched"

    # Whoever is gone already is named by the run that found it out: the outputs need not be looked through again.
    (tmp_path / "out/summaries/run=first").rename(tmp_path / "away")
    other = night(tmp_path, tiny_bundle, "other", decoding={"max_target_tokens": 5}).manifest
    (tmp_path / "away").rename(tmp_path / "out/summaries/run=first")
    assert other.removed == second.removed
    assert (other.counts.summarized, other.counts.skipped, other.removed.documents) == (128, {}, 8)
    again = night(tmp_path, tiny_bundle, "again", full=True).manifest
    assert (again.counts.summarized, again.counts.skipped) == (128, {})


@pytest.mark.faults
def test_the_last_entry_counts_in_a_compacted_ledger_too(tmp_path: Path, tiny_bundle: Path) -> None:
    """A text that turns back is done again: the last summary is that of the text in between."""
    output = open_location(str(tmp_path / "out"), "--output.path")
    for number, word in enumerate(["graphs", "trees"]):
        write(tmp_path, "a", texts(0, 20, word) | texts(20, 40))
        night(tmp_path, tiny_bundle, f"night{number}")
    assert compact(output) == (40, 6)
    assert compact(output) == (40, 0)
    assert [path.name for path in (tmp_path / "out/ledger").iterdir()] == ["compacted"]
    write(tmp_path, "b", texts(40, 45))
    write(tmp_path, "a", texts(0, 40))
    third = night(tmp_path, tiny_bundle, "night2").manifest
    assert (third.counts.summarized, third.counts.skipped) == (25, {"summarized": 20})
    assert compact(output) == (45, 3)


def test_ids_that_come_twice(tmp_path: Path, tiny_bundle: Path) -> None:
    """The first is kept, in whichever file; the others are rejected, and so they are the next night."""
    (tmp_path / "in").mkdir()
    for name, ids in (("a", ["x", "y", "x"]), ("b", ["z", "y"])):
        pq.write_table(pa.table({"id": ids, "text": [f"{name} {n}" for n in range(len(ids))]}), tmp_path / f"in/{name}.parquet")
    first = night(tmp_path, tiny_bundle, "first").manifest
    assert written(tmp_path, "first") == ["x", "y", "z"]
    rejects = pads.dataset(tmp_path / "out/rejects/run=first").to_table().to_pylist()
    assert sorted((row["id"], row["reason"]) for row in rejects) == [("x", "duplicate_id"), ("y", "duplicate_id")]
    assert "row 1 of input file 0" in next(row["detail"] for row in rejects if row["id"] == "y")
    assert first.counts.rejected == {"duplicate_id": 2}
    windows = {"resources": {"actors": 1, "window_rows": 10, "window_tokens": 100}}  # of a night with nothing to do, too
    second = night(tmp_path, tiny_bundle, "second", **windows).manifest
    assert (second.counts.skipped, second.counts.rejected) == ({"summarized": 3}, {"duplicate_id": 2})


def test_a_run_that_was_cut_off_goes_on(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 95))
    with pytest.raises(Killed):
        night(tmp_path, tiny_bundle, None, kill_after(4))
    [run_id] = [path.name for path in (tmp_path / "out/runs").iterdir()]
    # A task that outlives the driver may still be writing what has no segment of the ledger yet.
    committed = [path.name for path in (tmp_path / f"out/ledger/run={run_id}").glob("part-*.parquet")]
    files = [tmp_path / f"out/summaries/run={run_id}" / name for name in committed]
    before = {path: path.stat().st_mtime_ns for path in files}
    assert len(before) >= 4
    write(tmp_path, "b", texts(200, 205))  # the next run's
    finished = night(tmp_path, tiny_bundle, None)
    assert finished.manifest.run_id == run_id
    assert finished.manifest.resumed >= 40
    assert finished.manifest.counts.summarized == 95
    assert all(path.stat().st_mtime_ns == before[path] for path in before), "what was written is not done again"
    assert Counter(written(tmp_path, run_id)) == Counter(range(95))
    after = night(tmp_path, tiny_bundle, "after").manifest
    assert (written(tmp_path, "after"), after.counts.skipped) == (list(range(200, 205)), {"summarized": 95})


def test_no_run_is_named_as_another_though_the_clock_is(tmp_path: Path) -> None:
    output, now = open_location(str(tmp_path / "out"), "--output.path"), datetime(2026, 1, 31, 23, tzinfo=UTC)
    names = []
    for _ in range(3):
        names.append(_new_id(output, now))
        (tmp_path / "out/runs" / names[-1]).mkdir(parents=True)
    assert names == ["20260131T230000Z", "20260131T230000Z-2", "20260131T230000Z-3"]


@pytest.mark.faults
def test_what_was_cut_off_is_not_there_for_other_runs(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 30))
    with pytest.raises(Killed):
        night(tmp_path, tiny_bundle, "cut", kill_after(1))
    assert night(tmp_path, tiny_bundle, "other").manifest.counts.summarized == 30
    # It goes on with what was done when it began.
    assert night(tmp_path, tiny_bundle, "cut").manifest.counts.summarized == 30


def test_what_another_run_has_done_since_is_not_gone_on_with(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 30))
    cut_off = planned(tmp_path, tiny_bundle, "cut")
    late = planned(tmp_path, tiny_bundle, "late")
    cut_off.write()
    assert planned(tmp_path, tiny_bundle, None).run_id == "cut"
    assert night(tmp_path, tiny_bundle, "other").manifest.counts.summarized == 30
    assert planned(tmp_path, tiny_bundle, None).run_id != "cut"
    assert planned(tmp_path, tiny_bundle, "cut").begun, "it is there for who asks for it"
    assert planned(tmp_path, tiny_bundle, None, full=True).run_id != "cut"
    # One that was planned before the other was published looks again once it holds the lease.
    assert execute(late, lambda _: None).manifest.counts.skipped == {"summarized": 30}


@pytest.mark.faults
def test_a_run_whose_input_has_changed_begins_anew(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 30))
    write(tmp_path, "b", texts(30, 60))
    with pytest.raises(Killed):
        night(tmp_path, tiny_bundle, "r", kill_after(2))
    (tmp_path / "in/a.parquet").unlink()
    write(tmp_path, "b", texts(30, 55, "trees"))
    (tmp_path / "out/runs/r/gone.parquet").write_text("what another input made of it")
    finished = night(tmp_path, tiny_bundle, "r").manifest
    assert (finished.resumed, written(tmp_path, "r")) == (0, list(range(30, 55)))
    assert not (tmp_path / "out/runs/r/gone.parquet").exists()


@pytest.mark.faults
def test_a_run_that_was_cut_off_wants_the_same_options(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 30))
    with pytest.raises(Killed):
        night(tmp_path, tiny_bundle, "r", kill_after(1))
    with pytest.raises(UserError, match=r"run r was cut off, and asked for something else .*other decoding options"):
        night(tmp_path, tiny_bundle, "r", decoding={"max_target_tokens": 5})
    # How it is computed is no part of what was asked for: it stays as it was.
    finished = night(tmp_path, tiny_bundle, "r", resources={"actors": 1, "window_rows": 7, "precision": "auto"}).manifest
    assert finished.config["resources"]["window_rows"] == 10
    assert finished.config["resources"]["precision"] == "float32"
    assert (finished.counts.summarized, len(finished.output_files)) == (30, 3)
    assert written(tmp_path, "r") == list(range(30))


@pytest.mark.faults
def test_a_written_file_that_is_gone_is_made_again(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 50))

    def lose(_: RunProgress) -> None:
        for file in (tmp_path / "out/summaries/run=r").iterdir():
            file.unlink()

    with pytest.raises(Stopped, match=r"files are not in .* as they were written"):
        night(tmp_path, tiny_bundle, "r", lose)
    assert night(tmp_path, tiny_bundle, "r").manifest.counts.summarized == 50
    assert written(tmp_path, "r") == list(range(50))


def test_too_many_rejects(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", {**texts(0, 7), 7: None, 8: "", 9: " "})
    finished = night(tmp_path, tiny_bundle, "r", input={"max_reject_share": 0.29})
    assert not finished.published
    assert (tmp_path / "out/runs/r/manifest.json").exists()
    assert not (tmp_path / "out/runs/r/_SUCCESS").exists()
    again = night(tmp_path, tiny_bundle, "r", input={"max_reject_share": 0.3})
    assert (again.published, again.manifest.resumed) == (True, 10)


def test_a_mended_file_begins_a_run_anew_that_was_refused_for_it(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", texts(0, 20))
    write(tmp_path, "b", texts(20, 40))
    broken = tmp_path / "in/b.parquet"
    broken.write_bytes(broken.read_bytes()[:-100])
    skip = {"on_bad_file": "skip", "max_reject_share": 0.05}
    refused = night(tmp_path, tiny_bundle, None, input=skip)
    assert not refused.published
    assert night(tmp_path, tiny_bundle, None, input=skip).manifest.resumed == 20, "nothing is mended"
    write(tmp_path, "b", texts(20, 40))
    mended = night(tmp_path, tiny_bundle, None, input=skip)
    assert (mended.published, mended.manifest.run_id) == (True, refused.manifest.run_id)
    assert (mended.manifest.resumed, written(tmp_path, mended.manifest.run_id)) == (0, list(range(40)))


def test_files_that_cannot_be_read_are_left_out(tmp_path: Path, tiny_bundle: Path) -> None:
    for name, start in (("broken", 0), ("cut", 25), ("other", 50), ("sound", 75)):
        write(tmp_path, name, texts(start, start + 25))
    broken, cut = tmp_path / "in/broken.parquet", tmp_path / "in/cut.parquet"
    content = bytearray(broken.read_bytes())
    content[8:60] = bytes(52)  # the first page
    broken.write_bytes(content)
    cut.write_bytes(cut.read_bytes()[:100])
    pq.write_table(pa.table({"id": [1], "body": ["x"]}), tmp_path / "in/other.parquet")
    with pytest.raises(UserError, match=r"cut\.parquet is not a readable Parquet file: .*--input\.on_bad_file skip"):
        night(tmp_path, tiny_bundle, "r")
    skipping = night(tmp_path, tiny_bundle, "skipping", input={"on_bad_file": "skip"}).manifest
    assert written(tmp_path, "skipping") == list(range(75, 100))
    unread = {path.rpartition("/")[2]: file for path, file in skipping.unread.items()}
    assert {name: file.rows for name, file in unread.items()} == {
        "broken.parquet": 25,
        "cut.parquet": None,
        "other.parquet": None,
    }
    assert "column 'text' is not in" in unread["other.parquet"].error
    assert skipping.counts.unread == 25
    assert skipping.removed == RemovedDocuments()
    cut.unlink()
    broken.rename(tmp_path / "aside")
    left_out = night(tmp_path, tiny_bundle, "left_out", input={"on_bad_file": "skip", "max_reject_share": 0.2})
    assert (left_out.published, left_out.manifest.counts.reject_share) == (False, 0), "half of the bytes are of another kind"
    assert left_out.manifest.removed == RemovedDocuments()
    (tmp_path / "aside").rename(broken)
    (tmp_path / "in/other.parquet").unlink()
    with pytest.raises(UserError, match=r"cannot read .*broken\.parquet: .*--input\.on_bad_file skip"):
        night(tmp_path, tiny_bundle, "failing")
    write(tmp_path, "broken", texts(0, 25))  # mended
    assert night(tmp_path, tiny_bundle, "failing").manifest.counts.skipped == {"summarized": 25}
    assert written(tmp_path, "failing") == list(range(25))


def test_what_is_gone_is_named_beside_an_id_that_is_no_text(tmp_path: Path) -> None:
    raw = pa.array([b"a\xff", b"b"])
    pq.write_table(pa.table({"id": pa.Array.from_buffers(pa.string(), 2, raw.buffers())}), tmp_path / "part.parquet")
    wanted = id_keys(["a\ufffd"])[:, 0]
    assert _find_ids([str(tmp_path / "part.parquet")], fs.LocalFileSystem(), wanted) == {int(wanted[0]): "a\ufffd"}
