"""Whatever is done to a run's output, verify finds it: real files, spoilt one way at a time."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs.verify import main
from pipeline.config.summarize import SummarizeConfig
from pipeline.data import partition
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.io.location import open_location
from pipeline.runs.ledger import compact
from pipeline.verify.findings import VerificationReport
from pipeline.verify.verify import verify

RUN = "2029"


def check(output: Path, run_id: str | None = None) -> VerificationReport:
    return verify(open_location(str(output), "--output.path"), run_id)


def faults(output: Path, run_id: str | None = None) -> list[str]:
    return [str(finding).replace(str(output), "OUT") for finding in check(output, run_id).findings]


def files(output: Path, kind: str = "summaries") -> list[Path]:
    return sorted((output / f"{kind}/run={RUN}").glob("*"))


def within(output: Path, path: Path) -> str:
    return str(path.relative_to(output))


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change a file's rows, and leave it a valid file that says what it did of its run."""
    table = pq.read_table(path, partitioning=None)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)


def seal(output: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Make the manifest say what files there are now, and _SUCCESS that it is the one: nothing but ids can tell."""
    path, marker = output / f"runs/{RUN}/manifest.json", output / f"runs/{RUN}/_SUCCESS"
    manifest = json.loads(path.read_text())
    manifest["output_files"] = [
        {
            "path": within(output, file),
            "rows": pq.read_metadata(file).num_rows,
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for kind in ("summaries", "rejects")
        for file in files(output, kind)
    ]
    change(manifest)
    path.write_text(json.dumps(manifest))
    said = json.loads(marker.read_text())
    marker.write_text(json.dumps(said | {"manifest_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    shutil.rmtree(output / f"ledger/run={RUN}", ignore_errors=True)


def test_what_is_sound_is_proved(nights: Path) -> None:
    verdict = check(nights / "out")
    assert (verdict.run_id, verdict.findings, verdict.notes) == (RUN, [], [])
    assert verdict.proved["files"] == "4, and no others"
    assert verdict.proved["rows"] == "27: 25 summaries, 2 rejects"
    assert verdict.proved["ids"] == "71 of the input: 26 written, 45 done by earlier runs"
    size = sum(file.stat().st_size for kind in ("summaries", "rejects") for file in files(nights / "out", kind))
    assert verdict.proved["bytes"].startswith(f"{size:,}, ")


def test_a_run_whose_input_has_changed_since(nights: Path) -> None:
    for run_id in ("2026", "2028"):
        verdict = check(nights / "out", run_id)
        assert (verdict.run_id, verdict.findings) == (run_id, [])
        assert "2 of 2 input files have changed since the run" in verdict.notes[0]
        assert verdict.proved["ids"].startswith("0 of the input")


def test_a_file_that_is_deleted(output: Path) -> None:
    [*_, path] = files(output)
    gone = set(pq.read_table(path, partitioning=None)["id"].to_pylist())
    path.unlink()
    found = faults(output)
    assert found[0] == f"{within(output, path)}: is not there"
    assert any(f"{len(gone & {f'd{n}' for n in range(65, 70)}):,} rows of the input are not here" in fault for fault in found)


@pytest.mark.parametrize("at", [0, 0.3, 0.6, -6, -1], ids=["magic", "pages", "footer", "length", "end"])
def test_a_flipped_byte(output: Path, at: float) -> None:
    path = files(output)[0]
    content = bytearray(path.read_bytes())
    content[int(at * len(content)) if 0 <= at < 1 else int(at)] ^= 1
    path.write_bytes(content)
    assert f"{within(output, path)}: has another sha256 than the manifest says: its content was changed" in faults(output)


def test_a_doubled_row(output: Path) -> None:
    first, second, *_ = files(output)
    taken = pq.read_table(first, partitioning=None).to_pylist()[0]
    rewrite(second, lambda rows: [*rows, taken])
    found = faults(output)
    assert f"{within(output, second)}: has 11 rows where the manifest says 10" in found
    doubled = [fault for fault in found if "1 rows here or in rejects have an id that another has: " in fault]
    assert doubled
    assert repr(taken["id"]) in doubled[0]
    seal(output, lambda manifest: manifest["counts"].update(read=manifest["counts"]["read"] + 1, summarized=26))
    found = faults(output)
    assert any(repr(taken["id"]) in fault and "have an id that another has" in fault for fault in found)


def without(lost: str) -> Callable[[list[dict[str, Any]]], list[dict[str, Any]]]:
    return lambda rows: [row for row in rows if row["id"] != lost]


def test_a_lost_row_though_all_else_was_adapted(output: Path) -> None:
    """Even the counts."""

    def count(manifest: dict[str, Any]) -> None:
        manifest["counts"]["summarized"] -= 1
        manifest["counts"]["read"] -= 1

    for path in files(output):
        rewrite(path, without("d67"))
    seal(output, count)
    found = faults(output)
    lost = f"summaries/run={RUN}: 1 rows of the input are not here, nor in rejects, nor done before: 'd67' (row 27 of "
    assert any(fault.startswith(lost) for fault in found)


@pytest.mark.faults
def test_ids_that_make_many_parts(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(partition, "_ROWS_PER_PARTITION", 10)
    assert partition.partition_count(98) == 16
    verdict = check(output)
    assert verdict.findings == []
    assert verdict.proved["ids"] == "71 of the input: 26 written, 45 done by earlier runs"
    for path in files(output):
        rewrite(path, lambda rows: [row for row in rows if row["id"] not in ("d65", "d67", "d68", "d69")])
    seal(output)
    [lost] = [fault for fault in faults(output) if "4 rows of the input are not here" in fault]
    assert lost.count("row 2") == 3, "three examples are enough"


def test_a_lost_row_of_a_document_that_an_earlier_run_did_too(output: Path) -> None:
    for path in files(output):
        rewrite(path, without("d3"))
    seal(output)
    found = faults(output)
    said = "46 ids of the input are not here, nor in rejects, where the manifest says that 45 were done before"
    assert f"summaries/run={RUN}: {said}" in found
    assert any("manifest.json: counts 25 summarized documents, which add up to 24" in fault for fault in found)


def test_a_row_under_another_id(output: Path) -> None:
    path = files(output)[0]
    rewrite(path, lambda rows: [{**rows[0], "id": "stranger"}, *rows[1:]])
    seal(output)
    found = faults(output)
    assert any(
        "1 rows here or in rejects have an id that the input has not so often: 'stranger' (row 0 of" in fault for fault in found
    )


def test_a_file_of_another_run(output: Path) -> None:
    path = files(output)[0]
    other = next((output / "summaries/run=2026").iterdir())
    shutil.copy(other, path)
    seal(output)
    assert f"{within(output, path)}: does not say that it is of this run and this model" in faults(output)


def test_a_reject_without_an_id_that_is_lost(output: Path) -> None:
    for path in files(output, "rejects"):
        rewrite(path, lambda rows: [{**row, "id": row["id"] or "d21"} for row in rows])
    seal(output)
    found = faults(output)
    assert f"rejects/run={RUN}: has 0 rows without an id, where 1 of the input have none or cannot be read" in found


@pytest.mark.parametrize("name", ["part-more.parquet", "deeper/part.parquet", "part-0.parquet.abc.part"])
def test_a_file_that_the_manifest_does_not_name(output: Path, name: str) -> None:
    path, [some, *_] = output / f"summaries/run={RUN}" / name, files(output)
    path.parent.mkdir(exist_ok=True)
    shutil.copy(some, path)
    assert faults(output) == [f"{within(output, path)}: the manifest does not name it"]


def test_a_manifest_that_was_edited(output: Path) -> None:
    path = output / f"runs/{RUN}/manifest.json"
    content = path.read_text()
    edited = f"runs/{RUN}/manifest.json: is not the one that the run wrote: _SUCCESS says another sha256"
    path.write_text(content.replace('"seconds"', '"seconds" '))
    assert faults(output) == [edited]
    manifest = json.loads(content)
    manifest["output_files"].pop()
    path.write_text(json.dumps(manifest))
    found = faults(output)
    assert edited in found
    assert any(fault.endswith("the manifest does not name it") for fault in found)
    path.write_text("{}")
    assert f"runs/{RUN}/manifest.json: is broken, or of another version: nothing can be proved by it" in faults(output)
    path.unlink()
    assert faults(output) == [f"runs/{RUN}/manifest.json: is not there: nothing can be proved without it"]


def test_the_ledger_tells_of_a_manifest_that_was_adapted(output: Path) -> None:
    shutil.copytree(output / f"ledger/run={RUN}", output / "kept")
    path = files(output)[0]
    rewrite(path, lambda rows: rows)
    seal(output)
    shutil.copytree(output / "kept", output / f"ledger/run={RUN}")
    said = "the manifest says otherwise of it than the ledger's segment, which was written with it"
    assert faults(output) == [f"{within(output, path)}: {said}"]


def test_a_marker_that_was_removed_or_edited(output: Path) -> None:
    marker = output / f"runs/{RUN}/_SUCCESS"
    content = marker.read_text()
    marker.unlink()
    gone = f"runs/{RUN}/_SUCCESS: is not there, though the run came to its end: its command publishes it"
    assert faults(output) == [gone]
    assert faults(output, RUN) == [f"runs/{RUN}/_SUCCESS: is not there: the run is not published"]
    marker.write_text("")
    edited = f"runs/{RUN}/_SUCCESS: does not say which run of its folder it was the end of: it was edited"
    assert edited in faults(output, RUN)
    assert edited in faults(output)
    marker.write_text(content.replace("4", "3", 1))
    assert f"runs/{RUN}/_SUCCESS: says that the run is number 3, as that of run 2028 does: one was edited" in faults(
        output, RUN
    )
    marker.write_text(content.replace("4", "9", 1))
    assert "runs: number 4 of the published runs is missing: its _SUCCESS was removed or edited" in faults(output)


@pytest.fixture
def touched(nights: Path) -> Iterator[Path]:
    """The first file of the input, whose time is other than the run knew it."""
    path = nights / "in/0.parquet"
    before = path.stat()
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 10**9))
    yield path
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_the_rest_is_proved_where_input_files_have_changed(output: Path, touched: Path) -> None:
    verdict = check(output)
    assert verdict.findings == []
    assert "1 of 2 input files have changed since the run" in verdict.notes[0]
    assert str(touched) in verdict.notes[0]
    assert verdict.proved["ids"].startswith("31 of the input")
    for path in files(output):
        rewrite(path, without("d67"))
    assert any("1 rows of the input are not here" in fault and "'d67'" in fault for fault in faults(output))


def test_a_compacted_ledger(output: Path) -> None:
    compact(open_location(str(output), "--output.path"))
    verdict = check(output)
    assert verdict.findings == []
    assert [note.partition(":")[0] for note in verdict.notes] == ["the ledger was compacted", "the ledger was compacted since"]
    for path in files(output):
        rewrite(path, without("d67"))
    seal(output)
    said = "46 ids of the input are not here, nor in rejects, where the manifest says that 45 were done before"
    assert f"summaries/run={RUN}: {said}" in faults(output)


def test_a_run_that_is_not_there(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run 1999 has begun in .*; set --output\.path .* or --output\.run_id"):
        check(output, "1999")
    with pytest.raises(UserError, match="no run is finished in"):
        check(tmp_path / "nowhere")


def test_files_that_the_run_could_not_read_are_no_findings(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        ids = [f"{name}{n}" for n in range(20)]
        pq.write_table(pa.table({"id": ids, "text": [f"Of {i}." for i in ids]}), tmp_path / f"in/{name}.parquet")
    broken = tmp_path / "in/b.parquet"
    content, start = bytearray(broken.read_bytes()), pq.read_metadata(broken).row_group(0).column(1).data_page_offset
    content[start : start + 20] = bytes(20)  # of the texts alone
    broken.write_bytes(content)
    (tmp_path / "in/c.parquet").write_bytes(b"PAR1 and no more")
    values: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in"), "on_bad_file": "skip"},
        "output": {"path": str(tmp_path / "out"), "run_id": RUN},
        "model": {"path": str(tiny_bundle)},
        "resources": {"actors": 1},
    }
    manifest = execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest
    assert (manifest.counts.summarized, manifest.counts.unread, len(manifest.unread)) == (20, 20, 2)
    verdict = check(tmp_path / "out")
    assert verdict.findings == []
    assert verdict.proved["ids"] == "40 of the input: 20 written, 0 done by earlier runs"
    assert "20 rows that the run could not read" in verdict.notes[0]
    [path] = files(tmp_path / "out")
    rewrite(path, without("a7"))
    seal(tmp_path / "out")
    assert any("1 rows of the input are not here" in fault and "'a7'" in fault for fault in faults(tmp_path / "out"))


def test_the_job(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def job(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["verify", "--output.path", str(output), *options])
        return main(), capsys.readouterr().out

    status, told = job()
    assert status == 0
    for said in (f"run {RUN} is what its manifest says", "4, and no others", "27: 25 summaries, 2 rejects"):
        assert said in told
    shutil.rmtree(output / "summaries/run=2026")
    status, told = job("--output.run_id", "2026")
    assert status == 1
    lines = told.splitlines()
    assert len([line for line in lines if line.startswith("summaries/run=2026/part-") and line.endswith(": is not there")]) == 6
    assert lines[-1].startswith("run 2026 is not what its manifest says: ")
    for number in range(20):
        (files(output)[0].parent / f"part-more-{number}.parquet").touch()
    status, told = job()
    assert status == 1
    assert told.count("the manifest does not name it") == 12
    assert "and 8 more" in told
