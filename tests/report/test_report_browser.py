"""The page in a real browser: charts are drawn, nothing is logged or fetched, nothing overflows."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from factory import report_input

from expunge.report import write_report

pytestmark = pytest.mark.browser
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
CHROMIUM = os.environ.get("EXPUNGE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")


@pytest.fixture(scope="module")
def page_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(report_input(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


@pytest.mark.parametrize(
    ("width", "scheme"), [(1440, "light"), (1440, "dark"), (900, "light"), (400, "dark")]
)
def test_page_draws_quietly(browser: Any, page_file: Path, width: int, scheme: str) -> None:
    page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
    said: list[str] = []
    requests: list[str] = []
    page.on("console", lambda message: said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: requests.append(request.url))
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    # What is folded is drawn when it is opened.
    assert 0 < page.locator("figure svg").count() < page.locator("figure").count()
    page.evaluate("for (const folded of document.querySelectorAll('details')) folded.open = true")
    page.wait_for_function("document.querySelectorAll('figure svg.marks').length == 7")
    assert said == []
    assert [url for url in requests if not url.startswith(("file:", "data:"))] == []
    assert page.locator("figure svg").count() == page.locator("figure").count() == 7
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    # Colors come from the page's variables, so a chart follows its color scheme.
    tick = page.evaluate("getComputedStyle(document.querySelector('figure .role-axis-title text')).fill")
    assert tick == {"light": "rgb(27, 32, 37)", "dark": "rgb(230, 232, 234)"}[scheme]
    page.close()


def test_dropdown_changes_the_chart(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900})
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    page.locator("details:has(#chart-0-classes) > summary").click()
    page.wait_for_selector("#chart-0-classes .mark-rect path")
    marks = "document.querySelectorAll('#chart-0-classes .mark-rect path')"
    bars = f"[...{marks}].map(mark => mark.getAttribute('d')).join()"
    before = page.evaluate(bars)
    page.select_option("#chart-0-classes select >> nth=0", label="salun (rho=0.5)")
    page.wait_for_function(f"before => {bars} !== before", arg=before, timeout=5000)
    page.close()


def test_without_scripts_the_tables_remain(browser: Any, page_file: Path) -> None:
    context = browser.new_context(java_script_enabled=False)
    page = context.new_page()
    page.goto(page_file.as_uri())
    assert page.locator("figure .undrawn").first.is_visible()
    assert page.locator("#p1-results-table").is_visible()
    context.close()


def test_prints(browser: Any, page_file: Path) -> None:
    page = browser.new_page(viewport={"width": 1200, "height": 900}, color_scheme="dark")
    page.goto(page_file.as_uri())
    page.wait_for_selector("html[data-ready=yes]")
    assert page.pdf(format="A4").startswith(b"%PDF")
    page.emulate_media(media="print", color_scheme="dark")
    # Paper is light whatever the screen was.
    assert page.evaluate("getComputedStyle(document.body).color") == "rgb(27, 32, 37)"
    # What was folded is left out, which the page then says; what was opened is printed.
    words = page.locator("details:has(> .words)")
    assert not words.is_visible() and page.locator(".print-only").is_visible()
    page.evaluate("document.querySelector('details:has(> .words)').open = true")
    assert words.is_visible()
    page.close()
