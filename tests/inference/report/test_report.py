"""The report of real runs: its figures match the manifest, and texts of documents cannot change the page."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import Counter
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config.summarize import SummarizeConfig
from pipeline.inference.plan import plan_run
from pipeline.inference.report.report import error_page, previous_run, render_report
from pipeline.inference.report.warnings import PreviousRun
from pipeline.inference.run import RunResult, execute
from pipeline.io.location import open_location
from pipeline.runs import ledger
from pipeline.runs.manifest import StatsSummary, UnreadRows
from pipeline.runs.progress import RunProgress
from pipeline.runs.publish import finished_runs
from pipeline.runs.stats import RunStats

HOSTILE = [
    "<script>alert('text')</script> & <b>bold</b>",
    "</style></script></title></textarea></svg><img src=http://evil.example/x onerror=alert(1)>",
    "<!-- a comment that never ends, <![CDATA[ and <?php",
    '" onmouseover="alert(1)" x=\'',
    "&lt;script&gt; &amp; &#60; &nbsp",
    "{{ 7 * 7 }} {% raw %} {# c #}",
    "\x00\x1b[31m \x85 and \u202e right to left \u2066",
    "@import url(https://evil.example/a.css); }",
]


class Page(HTMLParser):
    """A parsed page: its elements by name, their attributes, and its text."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements = Counter[str]()
        self.attributes: list[tuple[str, str | None]] = []
        self.comments = 0
        self._data: list[str] = []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements[tag] += 1
        self.attributes += attrs

    def handle_comment(self, data: str) -> None:  # noqa: ARG002
        self.comments += 1

    def handle_data(self, data: str) -> None:
        self._data.append(data)

    @property
    def text(self) -> str:
        """The text of the page, with runs of white space as one space."""
        return " ".join(" ".join(self._data).split())


def summarize(folder: Path, bundle: Path, run_id: str, on_progress: Any = lambda _: None, **sections: Any) -> RunResult:
    """Run over folder/in."""
    values: dict[str, Any] = {
        "input": {"path": str(folder / "in"), **sections.pop("input", {})},
        "output": {"path": str(folder / "out"), "run_id": run_id},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1, "window_rows": 40},
        **sections,
    }
    return execute(plan_run(SummarizeConfig.model_validate(values)), on_progress)


def write(folder: Path, name: str, ids: list[str | None], texts: list[str | None]) -> None:
    (folder / "in").mkdir(exist_ok=True)
    table = pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, folder / f"in/{name}.parquet")


def page_of(folder: Path, run_id: str) -> Page:
    return Page((folder / f"out/runs/{run_id}/report.html").read_text())


def has_figure(page: Page, label: str, value: str) -> bool:
    return re.search(rf"(^| ){re.escape(value)} {re.escape(label)}", page.text) is not None


def test_texts_of_documents_are_inert(tmp_path: Path, tiny_bundle: Path) -> None:
    # All 30 documents are in the sample, with ids as hostile as their texts, and so are rejects of each.
    texts = [f"{text} {n}" for n, text in enumerate((HOSTILE * 4)[:30])]
    write(tmp_path, "good", [f"{text} id{n}" for n, text in enumerate((HOSTILE * 4)[:30])], list(texts))
    write(tmp_path, "bad", [f"null {text}" for text in HOSTILE], [None] * len(HOSTILE))
    write(tmp_path, "plain", [], [])
    summarize(tmp_path, tiny_bundle, "hostile")
    hostile = page_of(tmp_path, "hostile")

    write(tmp_path, "good", [f"s{n}" for n in range(30)], [f"plain words {n}" for n in range(30)])
    write(tmp_path, "bad", [f"b{n}" for n in range(len(HOSTILE))], [None] * len(HOSTILE))
    summarize(tmp_path, tiny_bundle, "plain", full=True, output={"path": str(tmp_path / "other"), "run_id": "plain"})
    plain = Page((tmp_path / "other/runs/plain/report.html").read_text())

    names = ("script", "img", "b", "style", "title", "meta", "article", "iframe", "link", "textarea")
    assert {name: hostile.elements[name] for name in names} == {name: plain.elements[name] for name in names}
    assert set(hostile.elements) == set(plain.elements)
    assert hostile.elements["article"] == 30
    assert hostile.elements["script"] == hostile.elements["img"] == hostile.comments == 0
    attributes = {name for name, _ in hostile.attributes}
    forbidden = {"src", "srcset", "action", "background", "data"}
    assert not {name for name in attributes if name.startswith("on")} | attributes & forbidden
    links = [value for name, value in hostile.attributes if name in ("href", "xlink:href")]
    assert all(link is not None and link.startswith("#") for link in links)
    html = (tmp_path / "out/runs/hostile/report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    assert all(value is None or "://" not in value for _, value in hostile.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in hostile.attributes
    for text in HOSTILE[:6]:
        assert text in hostile.text, "the text is shown unchanged"
    assert "\x00" not in html
    assert "\x1b" not in html


def test_figures_are_those_of_the_manifest(tmp_path: Path, tiny_bundle: Path) -> None:
    count = 100
    write(tmp_path, "a", [f"d{n}" for n in range(count)], [f"Document {n} speaks of graphs." for n in range(count)])
    write(tmp_path, "b", ["null", "empty", None, "d1"], [None, " ", "no id", "again"])
    first = summarize(tmp_path, tiny_bundle, "first")
    page = page_of(tmp_path, "first")
    assert first.published
    assert has_figure(page, "summarized", "100")
    assert has_figure(page, "rejected", "4")
    assert "no earlier run" in page.text
    for reason, id_ in (("null_text", "null"), ("empty_text", "empty"), ("null_id", "(none)"), ("duplicate_id", "d1")):
        assert f"{reason} 1 {id_} " in page.text
    assert first.manifest.model_fingerprint in page.text
    assert page.elements["svg"] == 2
    assert page.elements["article"] == 30
    assert len(first.examples) == 5

    write(tmp_path, "a", [f"d{n}" for n in range(1, count)], [f"Document {n} speaks of graphs." for n in range(1, count)])
    write(tmp_path, "c", [f"n{n}" for n in range(count)], ["🜁🜂🜃🜄 " * 20 + str(n) for n in range(count)])
    (tmp_path / "in/broken.parquet").write_bytes(b"no Parquet")
    second = summarize(tmp_path, tiny_bundle, "second", input={"on_bad_file": "skip"}).manifest
    page = page_of(tmp_path, "second")
    assert has_figure(page, "skipped", "101")
    assert has_figure(page, "summarized", "100")
    assert "gone.parquet" not in page.text, "removed documents may be in the unreadable file"
    assert "1 file could not be read" in page.text
    assert "broken.parquet" in page.text
    assert "Compared with the previous run first, 100 summarized" in page.text
    assert second.stats.byte_tokens is not None
    assert second.stats.byte_tokens > 0.5
    assert f"{second.stats.byte_tokens:.1%} of source tokens" in page.text
    assert re.search(r"Different from run first: .*tokens outside the vocabulary", page.text)
    assert PreviousRun.model_validate(second.model_dump()).stats == second.stats

    (tmp_path / "in/broken.parquet").unlink()
    third = summarize(tmp_path, tiny_bundle, "third").manifest
    page = page_of(tmp_path, "third")
    assert "1 documents of earlier runs" in page.text
    assert "gone.parquet" in page.text
    assert third.stats == StatsSummary()
    assert has_figure(page, "summarized", "0")
    assert page.elements["svg"] == page.elements["article"] == 0
    output = open_location(str(tmp_path / "out"), "--output.path")
    previous = previous_run(output, finished_runs(output))
    assert previous is not None
    assert previous.run_id == "second", "the latest that summarized documents"


def test_run_with_nothing_to_do(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", [], [])
    summarize(tmp_path, tiny_bundle, "empty")
    page = page_of(tmp_path, "empty")
    assert "The input has no documents." in page.text
    assert "Finished, no warnings" in page.text

    write(tmp_path, "a", ["x", "y"], ["one", "two"])
    summarize(tmp_path, tiny_bundle, "all")
    summarize(tmp_path, tiny_bundle, "skipped")
    page = page_of(tmp_path, "skipped")
    assert "nothing to do" in page.text
    assert page.elements["article"] == 0


@pytest.mark.faults
def test_run_that_rejects_every_document(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", ["x", "y"], [None, ""])
    result = summarize(tmp_path, tiny_bundle, "bad", input={"max_reject_share": 0.5})
    assert not result.published
    page = page_of(tmp_path, "bad")
    assert "Not finished, 1 warning" in page.text
    assert "100.0% of the documents were rejected" in page.text
    assert "--input.max_reject_share" in page.text
    assert page.elements["svg"] == page.elements["article"] == 0
    summarize(tmp_path, tiny_bundle, "bad", input={"max_reject_share": 1.0})
    page = page_of(tmp_path, "bad")
    assert "Finished, 1 warning" in page.text
    assert "100.0% of the documents were rejected" in page.text
    assert "resumed 2 " in page.text


class Killed(Exception):
    pass


@pytest.mark.faults
def test_resumed_run_reports_all_of_it(tmp_path: Path, tiny_bundle: Path) -> None:
    texts: list[str | None] = [f"Document {n} speaks of graphs." for n in range(199)]
    write(tmp_path, "a", [f"d{n}" for n in range(200)], [*texts, None])
    whole = summarize(tmp_path, tiny_bundle, "whole", output={"path": str(tmp_path / "other"), "run_id": "whole"})

    def kill(progress: RunProgress) -> None:
        if progress.counts.done >= 80:
            raise Killed

    with pytest.raises(Killed):
        summarize(tmp_path, tiny_bundle, "cut", kill)
    output = open_location(str(tmp_path / "out"), "--output.path")
    assert sum(1 for _ in ledger.window_records(output, "cut")) >= 2
    resumed = summarize(tmp_path, tiny_bundle, "cut")
    assert resumed.manifest.resumed >= 80
    assert resumed.manifest.stats == whole.manifest.stats
    assert resumed.examples == whole.examples
    page = page_of(tmp_path, "cut")
    assert page.elements["article"] == 30
    assert "null_text 1 d199 " in page.text
    assert f"resumed {resumed.manifest.resumed} " in page.text
    stats = sum((record.stats for record in ledger.window_records(output, "cut")), RunStats())
    assert stats.throughput.windows == 5
    assert sum(stats.throughput.documents.values()) == 200


@pytest.mark.faults
def test_unreadable_files_and_passwords(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", ["x"], ["one"])
    manifest = summarize(tmp_path, tiny_bundle, "r").manifest
    manifest.config["input"]["path"] = "s3://key:secret@bucket/in"
    manifest.unread = {f"<i>{n}</i>": UnreadRows(rows=None if n else 7, error="</td> & broken") for n in range(30)}
    page = Page(render_report(manifest, RunStats(), None))
    assert "secret" not in page.text
    assert "s3://…@bucket/in" in page.text
    assert "30 files could not be read" in page.text
    assert "For 29 files" in page.text
    assert "the first 20 of 30" in page.text
    assert page.elements["i"] == 0


def test_error_page_escapes_the_error() -> None:
    page = Page(error_page("r", ValueError("<script>")))
    assert "ValueError: <script>" in page.text
    assert page.elements["script"] == 0


@pytest.mark.faults
def test_invalid_manifest_of_an_earlier_run_is_not_compared(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", ["x"], ["one"])
    summarize(tmp_path, tiny_bundle, "old")
    (tmp_path / "out/runs/old/manifest.json").write_text('{"run_id": 3}')
    write(tmp_path, "b", ["y"], ["two"])
    summarize(tmp_path, tiny_bundle, "new")
    assert "no earlier run" in page_of(tmp_path, "new").text


def test_job_starts_without_matplotlib() -> None:
    code = (
        "import sys, jobs.summarize, pipeline.inference.stages.write; "
        "print([name for name in ('matplotlib', 'PIL') if name in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
