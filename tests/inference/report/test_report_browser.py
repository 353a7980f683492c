"""The report in a browser: it runs and loads nothing, and fits wide, narrow, light and dark screens."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from test_report import HOSTILE, summarize, write

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome", "chromium-headless-shell")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Start Chromium, the system's or the one that playwright installs."""
    with playwright.sync_playwright() as driver:
        path = next(filter(None, map(shutil.which, _NAMES)), None) or driver.chromium.executable_path
        if not Path(path).exists():
            pytest.skip("Chromium is not installed; run: playwright install chromium")
        browser = driver.chromium.launch(executable_path=path, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory, tiny_bundle: Path) -> Path:
    """The report of a run over hostile documents, some with very long words, and hostile rejects."""
    folder = tmp_path_factory.mktemp("report")
    texts = [*HOSTILE, "w" * 5000, "שלום עולם", "<script>document.title = 'run'; fetch('https://evil.example/')</script>"] * 4
    write(folder, "a", [f"{text[:200]} {n}" for n, text in enumerate(texts)], list(texts))
    write(folder, "b", [f"null {text}" for text in HOSTILE], [None] * len(HOSTILE))
    summarize(folder, tiny_bundle, "r")
    return folder / "out/runs/r/report.html"


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_page_runs_and_loads_nothing_and_fits_the_screen(browser: Any, report: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    requests, messages = list[str](), list[str]()
    page.on("request", lambda request: requests.append(request.url))
    page.on("console", lambda message: messages.append(message.text))
    page.on("pageerror", lambda error: messages.append(str(error)))
    page.on("dialog", lambda dialog: (messages.append(dialog.message), dialog.dismiss()))
    page.goto(report.as_uri(), wait_until="networkidle")
    page.hover("article >> nth=0")
    assert (requests, messages) == ([report.as_uri()], [])
    assert page.title() == "r – Nightshift"
    assert page.evaluate("document.querySelectorAll('script, img, iframe, link, b i').length") == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= width, "no horizontal scrolling"
    assert page.locator("article").count() == 30
    assert page.locator("article", has_text="</style></script></title>").first.is_visible()
    dark = page.evaluate("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).every(part => part < 64)")
    assert dark == (scheme == "dark")
    for plot in page.locator("svg").all():
        box = plot.bounding_box()
        assert box["width"] > 250
        assert box["height"] > 80
    # The colors of the plots are variables that the page defines.
    fill = "getComputedStyle(document.querySelector('svg [style*=\"--accent\"]')).fill"
    accent = {"light": "rgb(59, 111, 212)", "dark": "rgb(111, 155, 240)"}
    assert page.evaluate(fill) == accent[scheme]
    page.close()
