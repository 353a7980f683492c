"""The report of real runs: what it says is true, and what documents say in it is inert."""

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
from pipeline.inference.report.report import error_page, previous_run, render
from pipeline.inference.report.warnings import PreviousRun
from pipeline.inference.run import RunResult, execute
from pipeline.inference.totals import RunTotals
from pipeline.io.location import open_location
from pipeline.runs import ledger
from pipeline.runs.manifest import StatsSummary, UnreadRows
from pipeline.runs.progress import RunProgress

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
    """The elements of a page, by name, their attributes, and its words."""

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
    def words(self) -> str:
        """Its text, with a space for each run of white space."""
        return " ".join(" ".join(self._data).split())


def night(tmp_path: Path, bundle: Path, run_id: str, on_progress: Any = lambda _: None, **sections: Any) -> RunResult:
    """A run over tmp_path/in."""
    values: dict[str, Any] = {
        "input": {"path": str(tmp_path / "in"), **sections.pop("input", {})},
        "output": {"path": str(tmp_path / "out"), "run_id": run_id},
        "model": {"path": str(bundle)},
        "resources": {"actors": 1, "window_rows": 40},
        **sections,
    }
    return execute(plan_run(SummarizeConfig.model_validate(values)), on_progress)


def write(tmp_path: Path, name: str, ids: list[str | None], texts: list[str | None]) -> None:
    (tmp_path / "in").mkdir(exist_ok=True)
    table = pa.table({"id": pa.array(ids, pa.string()), "text": pa.array(texts, pa.string())})
    pq.write_table(table, tmp_path / f"in/{name}.parquet")


def page_of(tmp_path: Path, run_id: str) -> Page:
    return Page((tmp_path / f"out/runs/{run_id}/report.html").read_text())


def figure(page: Page, name: str, value: str) -> bool:
    """Whether the page's figures say so."""
    return re.search(rf"(^| ){re.escape(value)} {re.escape(name)}", page.words) is not None


def test_what_documents_say_is_inert(tmp_path: Path, tiny_bundle: Path) -> None:
    # 30 sound documents are all in the sample, with ids that are as hostile, and rejects of each.
    sound = [f"{text} {n}" for n, text in enumerate((HOSTILE * 4)[:30])]
    write(tmp_path, "sound", [f"{text} id{n}" for n, text in enumerate((HOSTILE * 4)[:30])], list(sound))
    write(tmp_path, "bad", [f"null {text}" for text in HOSTILE], [None] * len(HOSTILE))
    write(tmp_path, "plain", [], [])
    night(tmp_path, tiny_bundle, "hostile")
    hostile = page_of(tmp_path, "hostile")

    write(tmp_path, "sound", [f"s{n}" for n in range(30)], [f"plain words {n}" for n in range(30)])
    write(tmp_path, "bad", [f"b{n}" for n in range(len(HOSTILE))], [None] * len(HOSTILE))
    night(tmp_path, tiny_bundle, "plain", full=True, output={"path": str(tmp_path / "other"), "run_id": "plain"})
    plain = Page((tmp_path / "other/runs/plain/report.html").read_text())

    of_documents = ("script", "img", "b", "style", "title", "meta", "article", "iframe", "link", "textarea")
    assert {name: hostile.elements[name] for name in of_documents} == {name: plain.elements[name] for name in of_documents}
    assert set(hostile.elements) == set(plain.elements)
    assert hostile.elements["article"] == 30
    assert hostile.elements["script"] == hostile.elements["img"] == hostile.comments == 0
    names = {name for name, _ in hostile.attributes}
    assert not {name for name in names if name.startswith("on")} | names & {"src", "srcset", "action", "background", "data"}
    links = [value for name, value in hostile.attributes if name in ("href", "xlink:href")]
    assert all(link is not None and link.startswith("#") for link in links)
    html = (tmp_path / "out/runs/hostile/report.html").read_text()
    style = html[html.index("<style>") : html.index("</style>")]
    assert "@import" not in style
    assert "url(" not in style
    assert all(value is None or "://" not in value for _, value in hostile.attributes)
    assert ("content", "default-src 'none'; style-src 'unsafe-inline'") in hostile.attributes
    for text in HOSTILE[:6]:
        assert text in hostile.words, "it is shown as it is"
    assert "\x00" not in html
    assert "\x1b" not in html


def test_the_counts_are_those_of_the_manifest(tmp_path: Path, tiny_bundle: Path) -> None:
    count = 100
    write(tmp_path, "a", [f"d{n}" for n in range(count)], [f"Document {n} speaks of graphs." for n in range(count)])
    write(tmp_path, "b", ["null", "empty", None, "d1"], [None, " ", "no id", "again"])
    first = night(tmp_path, tiny_bundle, "first")
    page = page_of(tmp_path, "first")
    assert first.published
    assert figure(page, "summarized", "100")
    assert figure(page, "rejected", "4")
    assert "no earlier run of this output folder to compare with" in page.words
    for reason, detail in (
        ("null_text", "null the text is null"),
        ("empty_text", "empty the text is 1 characters of white space"),
        ("null_id", "(none) the row has no id"),
        ("duplicate_id", "d1 row 1 of input file 0"),
    ):
        assert f"{reason} 1 {detail}" in page.words
    assert first.manifest.model_fingerprint in page.words
    assert page.elements["svg"] == 2
    assert page.elements["article"] == 30
    assert len(first.examples) == 5

    write(tmp_path, "a", [f"d{n}" for n in range(1, count)], [f"Document {n} speaks of graphs." for n in range(1, count)])
    write(tmp_path, "c", [f"n{n}" for n in range(count)], ["🜁🜂🜃🜄 " * 20 + str(n) for n in range(count)])
    (tmp_path / "in/broken.parquet").write_bytes(b"no Parquet")
    second = night(tmp_path, tiny_bundle, "second", input={"on_bad_file": "skip"}).manifest
    page = page_of(tmp_path, "second")
    assert figure(page, "skipped: done before, unchanged", "101")
    assert figure(page, "summarized", "100")
    assert "documents of earlier runs are not in the input" not in page.words, "they may be in the file"
    assert "1 file was not read, or not wholly" in page.words
    assert "broken.parquet" in page.words
    assert "Compared with the last run first, 100 summarized" in page.words
    assert second.stats.byte_tokens is not None
    assert second.stats.byte_tokens > 0.5
    assert f"{second.stats.byte_tokens:.1%} of what the model read has no place in its vocabulary" in page.words
    assert re.search(r"Different from run first: .*subwords without a place in the vocabulary", page.words)
    assert PreviousRun.model_validate(second.model_dump()).stats == second.stats

    (tmp_path / "in/broken.parquet").unlink()
    third = night(tmp_path, tiny_bundle, "third").manifest
    page = page_of(tmp_path, "third")
    assert "1 documents of earlier runs are not in the input any more" in page.words
    assert third.stats == StatsSummary()
    assert figure(page, "summarized", "0")
    assert page.elements["svg"] == page.elements["article"] == 0
    before = previous_run(open_location(str(tmp_path / "out"), "--output.path"), "fourth")
    assert before is not None
    assert before.run_id == "second", "the last that has something to compare with"


def test_a_run_with_nothing_to_do_says_so(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", [], [])
    night(tmp_path, tiny_bundle, "empty")
    page = page_of(tmp_path, "empty")
    assert "The input holds no document." in page.words
    assert "Finished, nothing to look at" in page.words

    write(tmp_path, "a", ["x", "y"], ["one", "two"])
    night(tmp_path, tiny_bundle, "all")
    night(tmp_path, tiny_bundle, "skipped")
    page = page_of(tmp_path, "skipped")
    assert "All documents were as an earlier run found them: there was nothing to do." in page.words
    assert page.elements["article"] == 0


@pytest.mark.faults
def test_a_run_without_a_sound_document_is_not_well(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", ["x", "y"], [None, ""])
    finished = night(tmp_path, tiny_bundle, "bad", input={"max_reject_share": 0.5})
    assert not finished.published
    page = page_of(tmp_path, "bad")
    assert "Not published, 1 thing to look at" in page.words
    assert "Not published: 100.0% of the documents were rejected or unread" in page.words
    assert page.elements["svg"] == page.elements["article"] == 0
    night(tmp_path, tiny_bundle, "bad", input={"max_reject_share": 1.0})
    page = page_of(tmp_path, "bad")
    assert "Finished, 1 thing to look at 100.0%" not in page.words
    assert "100.0% of the documents were rejected or unread" in page.words
    assert "2 of these done before the run was cut off" in page.words


class Killed(Exception):
    pass


@pytest.mark.faults
def test_a_run_that_was_cut_off_reports_all_of_it(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", [f"d{n}" for n in range(200)], [f"Document {n} speaks of graphs." for n in range(199)] + [None])
    whole = night(tmp_path, tiny_bundle, "whole", output={"path": str(tmp_path / "other"), "run_id": "whole"})

    def kill(at: RunProgress) -> None:
        if at.counts.done >= 80:
            raise Killed

    with pytest.raises(Killed):
        night(tmp_path, tiny_bundle, "cut", kill)
    kept = sum(1 for _ in ledger.window_records(open_location(str(tmp_path / "out"), "--output.path"), "cut"))
    assert kept >= 2
    finished = night(tmp_path, tiny_bundle, "cut")
    assert finished.manifest.resumed >= 80
    assert finished.manifest.stats == whole.manifest.stats
    assert finished.examples == whole.examples
    page = page_of(tmp_path, "cut")
    assert page.elements["article"] == 30
    assert "null_text 1 d199 the text is null" in page.words
    assert f"{finished.manifest.resumed} of these done before the run was cut off" in page.words
    tally = RunTotals()
    for record in ledger.window_records(open_location(str(tmp_path / "out"), "--output.path"), "cut"):
        tally.take_over(record)
    assert tally.stats.throughput.windows == 5
    assert sum(tally.stats.throughput.documents.values()) == 200


@pytest.mark.faults
def test_unread_files_and_passwords(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", ["x"], ["one"])
    manifest = night(tmp_path, tiny_bundle, "r").manifest
    manifest.config["input"]["path"] = "s3://key:secret@bucket/in"
    manifest.unread = {f"<i>{n}</i>": UnreadRows(rows=None if n else 7, error="</td> & broken") for n in range(30)}
    page = Page(render(manifest, RunTotals().stats, None, True))
    assert "secret" not in page.words
    assert "s3://…@bucket/in" in page.words
    assert "30 files were not read, or not wholly" in page.words
    assert "of 29 not even the number of rows is known" in page.words
    assert "the first 20 of 30" in page.words
    assert page.elements["i"] == 0


def test_a_fault_of_the_report_leaves_a_page_that_says_so() -> None:
    page = Page(error_page("r", ValueError("<script>")))
    assert "The report of run r could not be made: ValueError: <script>" in page.words
    assert page.elements["script"] == 0


@pytest.mark.faults
def test_an_earlier_manifest_that_cannot_be_read_is_not_compared_with(tmp_path: Path, tiny_bundle: Path) -> None:
    write(tmp_path, "a", ["x"], ["one"])
    night(tmp_path, tiny_bundle, "old")
    (tmp_path / "out/runs/old/manifest.json").write_text('{"run_id": 3}')
    write(tmp_path, "b", ["y"], ["two"])
    night(tmp_path, tiny_bundle, "new")
    assert "no earlier run of this output folder to compare with" in page_of(tmp_path, "new").words


def test_a_job_starts_without_what_only_the_report_needs() -> None:
    code = (
        "import sys, jobs.summarize, pipeline.inference.stages.write; print([m for m in ('matplotlib', 'PIL') if m in sys.modules])"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip() == "[]"
