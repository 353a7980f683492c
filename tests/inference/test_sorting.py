"""``--resources.sort global``: the same rows and counts, from windows of all documents by length."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from a_night import Killed, kill_after, night, write, written

from pipeline import watching
from pipeline.errors import Stopped
from pipeline.inference import counting
from pipeline.inference.counting import RunMetrics

GLOBAL = {"resources": {"actors": 1, "window_rows": 10, "sort": "global"}}


def mixed(start: int, end: int) -> dict[Any, str | None]:
    """Of many lengths, in no order; every tenth has no text."""
    texts = {n: f"Document {n} speaks of {'trees and ' * (n * 7 % 11)}graphs." for n in range(start, end)}
    return {n: None if n % 10 == 9 else text for n, text in texts.items()}


def rows(folder: Path, run_id: str, kind: str) -> list[dict[str, Any]]:
    """In the order of the files."""
    files = sorted((folder / f"out/{kind}/run={run_id}").glob("*.parquet"))
    return [row for file in files for row in pq.ParquetFile(file).read().to_pylist()]


def test_the_rows_and_counts_of_any_other_order(tmp_path: Path, tiny_bundle: Path) -> None:
    """On a second night: some are skipped, some have changed, ids come twice, a file is broken."""
    plain, ordered = tmp_path / "plain", tmp_path / "ordered"
    plain.mkdir()
    for name, start in (("a", 0), ("b", 40), ("c", 80)):
        write(plain, name, mixed(start, start + 40))
    night(plain, tiny_bundle, "first")
    write(plain, "a", mixed(0, 20) | {n: f"Document {n} now speaks of {'shrubs, ' * (n % 7)}." for n in range(20, 40)})
    write(plain, "b", {n + 100: text for n, text in mixed(0, 55).items()})  # 100 to 119 are in c, too
    broken = bytearray((plain / "in/c.parquet").read_bytes())
    broken[8:60] = bytes(52)
    (plain / "in/d.parquet").write_bytes(broken)
    shutil.copytree(plain, ordered)
    skip = {"input": {"on_bad_file": "skip"}}
    expected = night(plain, tiny_bundle, "r", **skip).manifest
    found = night(ordered, tiny_bundle, "r", **skip, **GLOBAL).manifest
    assert found.counts == expected.counts
    assert found.counts.skipped
    assert found.counts.rejected["duplicate_id"] == 20
    assert (found.counts.unread, [*found.unread.values()]) == (40, [*expected.unread.values()])
    assert found.gone == expected.gone
    for kind in ("summaries", "rejects"):
        theirs, ours = rows(plain, "r", kind), rows(ordered, "r", kind)
        assert sorted(map(str, ours)) == sorted(map(str, theirs))
    lengths = [len(mixed(0, 200)[row["id"] % 100] or "") for row in rows(ordered, "r", "summaries") if row["id"] >= 120]
    assert lengths == sorted(lengths)
    assert not list((ordered / "out/runs/r").glob("sorted*")), "the copy is removed at the end"


@pytest.mark.faults
def test_one_that_is_cut_off_goes_on_from_the_copy(tmp_path: Path, tiny_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    skipped: list[float] = []  # as Prometheus is told, and then where the run stands
    seen: list[float] = []
    monkeypatch.setattr(counting, "count", lambda _, n, **tags: tags.get("outcome") == "skipped" and skipped.append(n))
    monkeypatch.setattr(RunMetrics, "set", lambda _, gauge, n, **__: gauge is watching.RUN_SEEN and seen.append(n))
    write(tmp_path, "before", mixed(200, 220))
    night(tmp_path, tiny_bundle, "before")
    seen.clear()
    write(tmp_path, "a", mixed(0, 95))
    with pytest.raises(Killed):
        night(tmp_path, tiny_bundle, None, kill_after(4), **GLOBAL)
    assert (seen[:2], max(seen)) == ([0, 20], 60)
    seen.clear()
    [run] = (path for path in (tmp_path / "out/runs").iterdir() if path.name != "before")
    before = {path: path.stat().st_mtime_ns for path in (run / "sorted").iterdir()}
    assert before
    kept: dict[Path, int] = {}
    look = lambda _: kept.update({path: path.stat().st_mtime_ns for path in before})  # noqa: E731
    manifest = night(tmp_path, tiny_bundle, None, look).manifest  # with whatever order it began
    assert manifest.run_id == run.name
    assert manifest.taken_over >= 40
    assert kept == before
    assert sum(skipped) == 20, "the second command does not count again what the first did"
    assert seen[0] == 0
    assert 60 <= seen[1] < seen[-1] == 115
    assert len(written(tmp_path, run.name)) + len(written(tmp_path, run.name, "rejects")) == 95
    assert not (run / "sorted").exists()


@pytest.mark.faults
def test_one_whose_copy_is_not_whole_begins_anew(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", mixed(0, 95))

    def lose(_: Any) -> None:
        for file in (tmp_path / "out/runs/r/sorted").iterdir():
            file.unlink()
        raise Stopped("lost")

    with pytest.raises(Stopped):
        night(tmp_path, tiny_bundle, "r", lose, **GLOBAL)
    manifest = night(tmp_path, tiny_bundle, "r", **GLOBAL).manifest
    assert (manifest.taken_over, manifest.counts.read) == (0, 95)
