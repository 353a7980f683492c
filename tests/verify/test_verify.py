"""Verification finds every defect of an output: real files, damaged in one way at a time."""

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
from pipeline.errors import UserError
from pipeline.inference.plan import plan_run
from pipeline.inference.run import execute
from pipeline.io.location import open_location
from pipeline.runs.ledger import compact_ledger
from pipeline.verify.findings import VerificationReport
from pipeline.verify.verify import verify

RUN = "2029"
SUMMARIES, REJECTS = f"summaries/run={RUN}", f"rejects/run={RUN}"
MANIFEST, SUCCESS = f"runs/{RUN}/manifest.json", f"runs/{RUN}/_SUCCESS"


def check(output: Path, run_id: str | None = None) -> VerificationReport:
    return verify(open_location(str(output), "--output.path"), run_id)


def problems(output: Path, path: str, run_id: str | None = None) -> list[str]:
    """Verify the output and return the problems of one of its paths."""
    return [finding.problem for finding in check(output, run_id).findings if finding.path == path]


def files(output: Path, folder: str = SUMMARIES) -> list[Path]:
    return sorted((output / folder).glob("*"))


def relative(output: Path, path: Path) -> str:
    return str(path.relative_to(output))


def rewrite(path: Path, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    """Change the rows of a file and keep its metadata."""
    table = pq.read_table(path, partitioning=None)
    pq.write_table(pa.Table.from_pylist(change(table.to_pylist()), table.schema), path)


def remove_row(output: Path, id_: str) -> None:
    for path in files(output):
        rewrite(path, lambda rows: [row for row in rows if row["id"] != id_])


def reseal(output: Path, change: Callable[[dict[str, Any]], None] = lambda _: None) -> None:
    """Make manifest, _SUCCESS and ledger consistent with the files, so that only the ids show a defect."""
    path, success = output / MANIFEST, output / SUCCESS
    manifest = json.loads(path.read_text())
    manifest["output_files"] = [
        {
            "path": relative(output, file),
            "rows": pq.read_metadata(file).num_rows,
            "bytes": file.stat().st_size,
            "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
        }
        for folder in (SUMMARIES, REJECTS)
        for file in files(output, folder)
    ]
    change(manifest)
    path.write_text(json.dumps(manifest))
    content = json.loads(success.read_text())
    success.write_text(json.dumps(content | {"manifest_sha256": hashlib.sha256(path.read_bytes()).hexdigest()}))
    shutil.rmtree(output / f"ledger/run={RUN}", ignore_errors=True)


def test_intact_run_is_verified(nights: Path) -> None:
    report = check(nights / "out")
    assert (report.run_id, report.findings, report.notes) == (RUN, [], [])
    assert report.verified["files"].startswith("4,")
    assert report.verified["rows"] == "27: 25 summaries, 2 rejects"
    assert report.verified["ids"] == "71 of the input: 26 written, 45 done by earlier runs"
    size = sum(file.stat().st_size for folder in (SUMMARIES, REJECTS) for file in files(nights / "out", folder))
    assert report.verified["bytes"].startswith(f"{size:,}, ")


def test_changed_input_is_noted(nights: Path) -> None:
    report = check(nights / "out", "2026")
    assert (report.run_id, report.findings) == ("2026", [])
    assert "2 of 2 input files have changed" in report.notes[0]
    assert report.verified["ids"].startswith("0 of the input")


def test_deleted_file(output: Path) -> None:
    *_, path = files(output)
    ids = set(pq.read_table(path, partitioning=None)["id"].to_pylist())
    path.unlink()
    report = check(output)
    assert (report.findings[0].path, report.findings[0].problem) == (relative(output, path), "missing")
    new = ids & {f"d{n}" for n in range(65, 70)}
    assert any(f"{len(new)} input rows are missing" in finding.problem for finding in report.findings)


@pytest.mark.parametrize("offset", [0, 0.3, 0.6, -6, -1], ids=["magic", "pages", "footer", "length", "end"])
def test_flipped_bit(output: Path, offset: float) -> None:
    path = files(output)[0]
    content = bytearray(path.read_bytes())
    content[int(offset * len(content)) if 0 <= offset < 1 else int(offset)] ^= 1
    path.write_bytes(content)
    assert any("SHA-256" in problem for problem in problems(output, relative(output, path)))


def test_duplicated_row(output: Path) -> None:
    first, second, *_ = files(output)
    row = pq.read_table(first, partitioning=None).to_pylist()[0]
    rewrite(second, lambda rows: [*rows, row])
    report = check(output)
    assert any("11 rows" in finding.problem and finding.path == relative(output, second) for finding in report.findings)
    assert any("1 rows" in finding.problem and repr(row["id"]) in finding.problem for finding in report.findings)
    reseal(output, lambda manifest: manifest["counts"].update(read=manifest["counts"]["read"] + 1, summarized=26))
    assert any("repeat" in problem and repr(row["id"]) in problem for problem in problems(output, SUMMARIES))


def test_missing_row_with_adapted_counts(output: Path) -> None:
    def adapt(manifest: dict[str, Any]) -> None:
        manifest["counts"]["summarized"] -= 1
        manifest["counts"]["read"] -= 1

    remove_row(output, "d67")
    reseal(output, adapt)
    assert any(
        "1 input rows are missing" in problem and "'d67' (row 27 of " in problem for problem in problems(output, SUMMARIES)
    )


@pytest.mark.faults
def test_many_partitions(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.verify.verify.partition_count", lambda _: 16)
    report = check(output)
    assert report.findings == []
    assert report.verified["ids"] == "71 of the input: 26 written, 45 done by earlier runs"
    for id_ in ("d65", "d67", "d68", "d69"):
        remove_row(output, id_)
    reseal(output)
    [problem] = [problem for problem in problems(output, SUMMARIES) if "4 input rows are missing" in problem]
    assert problem.count("row 2") == 3, "three examples are enough"


def test_missing_row_that_an_earlier_run_did_too(output: Path) -> None:
    remove_row(output, "d3")
    reseal(output)
    findings = [str(finding) for finding in check(output).findings]
    assert any(finding.startswith(SUMMARIES) and "46 input ids" in finding and "45" in finding for finding in findings)
    assert any(finding.startswith(MANIFEST) and "25 summarized" in finding and "24" in finding for finding in findings)


def test_unexpected_id(output: Path) -> None:
    path = files(output)[0]
    rewrite(path, lambda rows: [{**rows[0], "id": "stranger"}, *rows[1:]])
    reseal(output)
    assert any("1 rows" in problem and "'stranger' (row 0 of" in problem for problem in problems(output, SUMMARIES))


def test_file_of_another_run(output: Path) -> None:
    path = files(output)[0]
    shutil.copy(next((output / "summaries/run=2026").iterdir()), path)
    reseal(output)
    assert any("another run" in problem for problem in problems(output, relative(output, path)))


def test_missing_reject_without_id(output: Path) -> None:
    for path in files(output, REJECTS):
        rewrite(path, lambda rows: [{**row, "id": row["id"] or "d21"} for row in rows])
    reseal(output)
    [problem] = problems(output, REJECTS)
    assert "0 rows without an id" in problem


@pytest.mark.parametrize("name", ["part-more.parquet", "deeper/part.parquet", "part-0.parquet.abc.part"])
def test_file_that_is_not_in_the_manifest(output: Path, name: str) -> None:
    path = output / SUMMARIES / name
    path.parent.mkdir(exist_ok=True)
    shutil.copy(next(file for file in files(output) if file.is_file()), path)
    [finding] = check(output).findings
    assert (finding.path, finding.problem) == (relative(output, path), "not in the manifest")


def test_edited_manifest(output: Path) -> None:
    path = output / MANIFEST
    content = path.read_text()
    path.write_text(content.replace('"seconds"', '"seconds" '))
    [finding] = check(output).findings
    assert finding.path == MANIFEST
    assert "SHA-256" in finding.problem
    manifest = json.loads(content)
    manifest["output_files"].pop()
    path.write_text(json.dumps(manifest))
    report = check(output)
    assert any("SHA-256" in finding.problem for finding in report.findings)
    assert any(finding.problem == "not in the manifest" for finding in report.findings)
    path.write_text("{}")
    assert any("invalid" in problem for problem in problems(output, MANIFEST))
    path.unlink()
    assert [finding.path for finding in check(output).findings] == [MANIFEST]


def test_manifest_that_differs_from_the_ledger(output: Path) -> None:
    shutil.copytree(output / f"ledger/run={RUN}", output / "kept")
    path = files(output)[0]
    rewrite(path, lambda rows: rows)
    reseal(output)
    shutil.copytree(output / "kept", output / f"ledger/run={RUN}")
    [finding] = check(output).findings
    assert finding.path == relative(output, path)
    assert "ledger" in finding.problem


def test_removed_success_file(output: Path) -> None:
    (output / SUCCESS).unlink()
    for run_id in (None, RUN):
        [problem] = problems(output, SUCCESS, run_id)
        assert problem.startswith("missing")


@pytest.mark.parametrize("run_id", [None, RUN])
def test_empty_success_file(output: Path, run_id: str | None) -> None:
    (output / SUCCESS).write_text("")
    assert any("edited" in problem for problem in problems(output, SUCCESS, run_id))


@pytest.mark.parametrize(("sequence", "path", "words"), [(3, SUCCESS, "run 2028"), (9, "runs", "sequence number 4")])
def test_edited_sequence_number(output: Path, sequence: int, path: str, words: str) -> None:
    success = output / SUCCESS
    success.write_text(json.dumps({**json.loads(success.read_text()), "sequence": sequence}))
    assert any(words in problem for problem in problems(output, path))


@pytest.fixture
def touched(nights: Path) -> Iterator[Path]:
    """The first input file, with another modification time than during the run."""
    path = nights / "in/0.parquet"
    times = path.stat()
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns + 10**9))
    yield path
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_unchanged_input_files_are_still_checked(output: Path, touched: Path) -> None:
    report = check(output)
    assert report.findings == []
    assert "1 of 2 input files have changed" in report.notes[0]
    assert str(touched) in report.notes[0]
    assert report.verified["ids"].startswith("31 of the input")
    remove_row(output, "d67")
    assert any("1 input rows are missing" in problem and "'d67'" in problem for problem in problems(output, SUMMARIES))


def test_compacted_ledger(output: Path) -> None:
    compact_ledger(open_location(str(output), "--output.path"))
    report = check(output)
    assert report.findings == []
    assert ["compacted" in note for note in report.notes] == [True, True]
    remove_row(output, "d67")
    reseal(output)
    assert any("46 input ids" in problem and "45" in problem for problem in problems(output, SUMMARIES))


def test_unknown_run(output: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no run 1999.*--output\.path.*--output\.run_id"):
        check(output, "1999")
    with pytest.raises(UserError, match="no finished run"):
        check(tmp_path / "nowhere")


def test_files_that_the_run_skipped_as_unreadable(tmp_path: Path, tiny_bundle: Path) -> None:
    (tmp_path / "in").mkdir()
    for name in ("a", "b", "c"):
        ids = [f"{name}{n}" for n in range(20)]
        pq.write_table(pa.table({"id": ids, "text": [f"Of {i}." for i in ids]}), tmp_path / f"in/{name}.parquet")
    broken = tmp_path / "in/b.parquet"
    content, start = bytearray(broken.read_bytes()), pq.read_metadata(broken).row_group(0).column(1).data_page_offset
    content[start : start + 20] = bytes(20)  # only the texts cannot be read
    broken.write_bytes(content)
    (tmp_path / "in/c.parquet").write_bytes(b"PAR1 and nothing else")
    values: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in"), "on_bad_file": "skip"},
        "output": {"path": str(tmp_path / "out"), "run_id": RUN},
        "model": {"path": str(tiny_bundle)},
        "resources": {"actors": 1},
    }
    manifest = execute(plan_run(SummarizeConfig.model_validate(values)), lambda _: None).manifest
    assert (manifest.counts.summarized, manifest.counts.unread, len(manifest.unread)) == (20, 20, 2)
    report = check(tmp_path / "out")
    assert report.findings == []
    assert report.verified["ids"] == "40 of the input: 20 written, 0 done by earlier runs"
    assert "20 rows" in report.notes[0]
    remove_row(tmp_path / "out", "a7")
    reseal(tmp_path / "out")
    assert any("1 input rows are missing" in problem and "'a7'" in problem for problem in problems(tmp_path / "out", SUMMARIES))


def test_job_prints_findings_and_exits_with_1(
    output: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def run_job(*options: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["verify", "--output.path", str(output), *options])
        return main(), capsys.readouterr().out

    status, printed = run_job()
    assert status == 0
    for words in (RUN, "4, and no others", "27: 25 summaries, 2 rejects"):
        assert words in printed
    shutil.rmtree(output / "summaries/run=2026")
    status, printed = run_job("--output.run_id", "2026")
    assert status == 1
    lines = printed.splitlines()
    assert len([line for line in lines if line.startswith("summaries/run=2026/part-") and line.endswith(": missing")]) == 6
    assert "2026" in lines[-1]
    for number in range(20):
        (files(output)[0].parent / f"part-more-{number}.parquet").touch()
    status, printed = run_job()
    assert status == 1
    assert printed.count("not in the manifest") == 12
    assert "8 more" in printed
