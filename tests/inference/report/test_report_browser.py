"""The report in a browser: nothing of it runs or loads, and it fits screens that are wide, narrow, light and dark."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, night, write

playwright = pytest.importorskip("playwright.sync_api", reason="playwright, which drives the browser, is not installed")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium: the system's, or the one that playwright installs."""
    with playwright.sync_playwright() as driver:
        found = next(filter(None, map(shutil.which, _NAMES)), None) or driver.chromium.executable_path
        if not Path(found).exists():
            pytest.skip("there is no Chromium: apt install chromium, or playwright install chromium")
        browser = driver.chromium.launch(executable_path=found, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """Of a run over hostile documents, long words among them, and hostile rejects."""
    folder = tmp_path_factory.mktemp("report")
    texts = [*HOSTILE, "w" * 5000, "שלום עולם", "<script>document.title = 'run'; fetch('https://evil.example/')</script>"] * 4
    write(folder, "a", [f"{text[:200]} {n}" for n, text in enumerate(texts)], list(texts))
    write(folder, "b", [f"null {text}" for text in HOSTILE], [None] * len(HOSTILE))
    night(folder, tiny_bundle, "r")
    return folder / "out/runs/r/report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_runs_or_loads_and_all_fits(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, told = list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: told.append(message.text))
    page.on("pageerror", lambda error: told.append(str(error)))
    page.on("dialog", lambda dialog: (told.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri(), wait_until="networkidle")
    page.hover("article >> nth=0")
    assert (requests, told) == ([report.as_uri()], [])
    assert page.title() == "r – Nightshift"
    assert page.evaluate("document.querySelectorAll('script, img, iframe, link, b i').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no need to scroll sideways"
    assert page.locator("article").count() == 30
    assert page.locator("article", has_text="</style></script></title>").first.is_visible()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 64)")
    assert dark == (scheme == "dark")
    for plot in page.locator("svg").all():
        box = plot.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 80
    # What the plots take from the page is known there: no bar is drawn in no colour.
    fill = "getComputedStyle(document.querySelector('svg [style*=\"--accent\"]')).fill"
    accent = {"light": "rgb(59, 111, 212)", "dark": "rgb(111, 155, 240)"}
    assert page.evaluate(fill) == accent[scheme]
    page.close()
