"""The pages in a real browser, over the records of a real small study: what a reader does, and what must not happen."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytestmark = pytest.mark.browser
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-sync",
]
CHROMIUM = os.environ.get("EXPUNGE_CHROMIUM") or shutil.which("chromium") or shutil.which("chromium-browser")
AXE = Path(__file__).resolve().parents[2] / "app" / "node_modules" / "axe-core" / "axe.min.js"
CHOSEN = "run=small&problem=digits"
PAIR = f"{CHOSEN}&a=gradient-ascent%400&b=retrain%400"
PAGES = {
    "build": "#/build",
    "screen": f"#/screen?{CHOSEN}",
    "all": "#/screen?scope=all",
    "contrast": f"#/contrast?{PAIR}",
    "residuals": "#/contrast?run=small&problem=diabetes",
    "attack": f"#/attack?{PAIR}",
    "retrained": f"#/attack?{PAIR}&against=retrained",
    "data": f"#/data?{CHOSEN}",
    "report": f"#/report?{CHOSEN}",
    "ledger": "#/ledger",
    "nothing": "#/contrast?run=none&problem=nothing&a=x&b=y",
}


@pytest.fixture(scope="module")
def folder(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy, because studies are started in it."""
    return Path(shutil.copytree(runs, tmp_path_factory.mktemp("browser") / "runs"))


@pytest.fixture(scope="module")
def address(folder: Path, ledger: Path) -> Iterator[str]:
    """The app as users start it."""
    command = [
        sys.executable,
        "-c",
        "from expunge.cli import main; main()",
        "app",
        str(folder),
        "--port",
        "0",
        "--ledger",
        str(ledger),
    ]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=folder.parent)
    assert process.stdout is not None
    found = re.search(r"http://\S+/", process.stdout.readline())
    assert found is not None
    yield found[0]
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=20)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    api = pytest.importorskip("playwright.sync_api")
    if CHROMIUM is None:
        pytest.skip("Chromium is not on this machine")
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield started
        started.close()


def until(page: Any, holds: str, seconds: float = 20) -> None:
    """Wait for an expression; not by `wait_for_function`, whose code made from a string the page's policy refuses."""
    deadline = time.monotonic() + seconds
    while not page.evaluate(holds):
        assert time.monotonic() < deadline, f"still not: {holds}"
        page.wait_for_timeout(60)


class Reader:
    """A page that remembers what was logged and fetched."""

    def __init__(self, browser: Any, address: str, scheme: str = "light", width: int = 1380) -> None:
        self.page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
        self.said: list[str] = []
        self.fetched: list[str] = []
        self.address = address
        self.page.on("console", lambda message: self.said.append(f"{message.type}: {message.text}"))
        self.page.on("pageerror", lambda error: self.said.append(str(error)))
        self.page.on(
            "response", lambda r: self.said.append(f"{r.status} {r.url}") if r.status >= 400 else None
        )
        self.page.on("request", lambda request: self.fetched.append(request.url))

    def open(self, where: str) -> Any:
        self.page.goto(f"{self.address}{where}")
        self.page.wait_for_selector("main[data-ready=yes] h1")
        until(self.page, "!document.querySelector('main [aria-busy=true]')")
        return self.page

    def close(self) -> None:
        self.page.close()
        assert self.said == []
        assert [u for u in self.fetched if not u.startswith((self.address, "data:", "blob:"))] == []


@pytest.fixture
def reader(browser: Any, address: str) -> Iterator[Reader]:
    made = Reader(browser, address)
    yield made
    made.close()


def _text(page: Any, selector: str) -> str:
    return page.locator(selector).inner_text()


def _down(place: Any) -> float:
    """How far down a group is moved."""
    return float(place.get_attribute("transform").rpartition(",")[2].rstrip(")"))


def _percent(text: str) -> float:
    return float(text.replace("%", "").replace("−", "-")) / 100


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_pages_are_quiet_and_accessible(browser: Any, address: str, scheme: str, tmp_path: Path) -> None:
    shots = Path(os.environ.get("EXPUNGE_SCREENSHOTS", tmp_path))
    reader = Reader(browser, address, scheme)
    faults: dict[str, list[str]] = {}
    for name, where in PAGES.items():
        page = reader.open(where)
        assert page.evaluate("document.documentElement.scrollWidth") <= 1380, name
        page.screenshot(path=shots / f"{name}-{scheme}.png", full_page=True)
        assert (shots / f"{name}-{scheme}.png").stat().st_size > 10_000
        expected = {"light": "rgb(252, 252, 250)", "dark": "rgb(21, 24, 27)"}[scheme]
        assert page.evaluate("getComputedStyle(document.documentElement).backgroundColor") == expected
        if AXE.exists():
            page.evaluate(AXE.read_text())
            found = page.evaluate("axe.run(document, {resultTypes: ['violations']}).then(r => r.violations)")
            serious = [v for v in found if v["impact"] in ("serious", "critical")]
            if serious:
                faults[name] = [f"{v['id']}: {n['target']}" for v in serious for n in v["nodes"][:3]]
    # A run that the address names is asked for at once, also where there is none: the page says so, and Chromium too.
    reader.said = [s for s in reader.said if "/api/runs/none" not in s and "404 (Not Found)" not in s]
    reader.close()
    assert faults == {}
    if not AXE.exists():
        pytest.skip("axe-core is not installed (npm install in app/); all else was checked")


def test_pages_fit_a_telephone(browser: Any, address: str) -> None:
    reader = Reader(browser, address, width=400)
    for name in ("screen", "contrast", "attack", "build", "data", "report"):
        page = reader.open(PAGES[name])
        assert page.evaluate("document.documentElement.scrollWidth") <= 400, name
    reader.close()


def test_the_table_sorts(reader: Reader, runs: Path) -> None:
    page = reader.open(PAGES["screen"])
    table = page.get_by_role("table", name="models")
    header = table.get_by_role("columnheader").filter(has_text="Accuracy").filter(has_text="forget set").first
    scores = json.loads((runs / "small" / "scores.json").read_text())
    means: dict[str, list[float]] = {}
    for judged in scores["judged"]:
        for s in judged["scores"]:
            if judged["problem"] == "digits" and (s["metric"], s["split"]) == ("accuracy", "forget"):
                means.setdefault(judged["label"], []).append(s["value"])
    wanted = [label for label, v in sorted(means.items(), key=lambda item: np.mean(item[1]))]
    values = {label: np.mean(v) for label, v in means.items()}
    for descending in (False, True):
        header.get_by_role("button").click()
        assert header.get_attribute("aria-sort") == ("descending" if descending else "ascending")
        shown = [t.strip() for t in table.get_by_role("rowheader").all_inner_texts()]
        assert sorted(shown) == sorted(wanted)
        ordered = [values[label] for label in shown]
        assert ordered == sorted(ordered, reverse=descending)
    page.get_by_label("Filter").fill("npo")
    assert table.get_by_role("rowheader").all_inner_texts() == ["npo (epochs=2)"]
    assert "filter=npo" in page.url and "sort=accuracy" in page.url  # the view can be shared


def test_a_shared_address_opens_the_same_view(reader: Reader) -> None:
    page = reader.open(f"#/screen?{CHOSEN}&filter=gradient&columns=costs")
    assert page.get_by_label("Filter").input_value() == "gradient"
    assert page.get_by_role("button", name="Costs").get_attribute("aria-pressed") == "true"
    assert page.get_by_role("table", name="models").get_by_role("rowheader").count() == 1


def test_the_pair_is_linked(reader: Reader, runs: Path) -> None:
    page = reader.open(PAGES["contrast"])
    page.wait_for_selector("g[data-group='3']")
    page.locator("g[data-group='3']").hover()
    assert page.locator(".matrix tr.lit th").all_inner_texts() == ["3", "3"]
    page.mouse.move(5, 5)
    row = page.get_by_role("table", name="examples").get_by_role("rowheader").nth(2)
    row.scroll_into_view_if_needed()
    example = row.inner_text()
    row.hover()
    tips = page.locator(".tip")
    until(page, "document.querySelectorAll('.tip').length == 2")
    assert all(text.startswith(example) for text in tips.all_inner_texts())
    # The matrices are those of the records: their diagonal is the accuracy.
    scores = json.loads((runs / "small" / "scores.json").read_text())
    for i, label in enumerate(("gradient-ascent", "retrain")):
        cells = (
            page.locator(".matrix")
            .nth(i)
            .locator("tbody tr")
            .evaluate_all(
                "rows => rows.map(row => [...row.querySelectorAll('td')].map(cell => Number(cell.textContent || 0)))"
            )
        )
        counts = np.asarray(cells)
        record = next(
            j for j in scores["judged"] if (j["problem"], j["label"], j["seed"]) == ("digits", label, 0)
        )
        accuracy = next(
            s["value"] for s in record["scores"] if (s["metric"], s["split"]) == ("accuracy", "test")
        )
        assert np.trace(counts) / counts.sum() == pytest.approx(accuracy)


def test_the_examples_table_asks_the_server(reader: Reader) -> None:
    page = reader.open(PAGES["contrast"])
    table = page.get_by_role("table", name="examples")
    header = table.get_by_role("columnheader").filter(has_text="loss").filter(has_text="B − A")
    header.get_by_role("button").click()
    header.get_by_role("button").click()
    until(page, "document.querySelector('[aria-label=examples] [aria-sort=descending]')")
    page.wait_for_timeout(500)
    place = table.get_by_role("columnheader").all_inner_texts().index("loss ▾\nB − A")
    shown = [
        row.get_by_role("cell").nth(place - 1).inner_text() for row in table.get_by_role("row").all()[1:9]
    ]
    values = [float(v.replace("−", "-").replace("+", "")) for v in shown]
    assert values == sorted(values, reverse=True)
    page.get_by_label("Rows").select_option("worse")
    until(page, "/ of 400/.test(document.querySelector('[aria-label=Examples] .caption').textContent)")


def test_the_threshold_drags_and_its_numbers_are_those_of_the_record(reader: Reader, runs: Path) -> None:
    page = reader.open(PAGES["attack"])
    scores = json.loads((runs / "small" / "scores.json").read_text())
    record = next(
        j
        for j in scores["judged"]
        if (j["problem"], j["label"], j["seed"]) == ("digits", "gradient-ascent", 0)
    )
    recorded = {s["metric"]: s["value"] for s in record["scores"] if s["split"] == "forget"}
    assert _text(page, "#auc") == _text(page, "#recorded-auc") == f"{recorded['mia-loss-logistic']:.4f}"
    efficacy = f"{100 * recorded['mia-efficacy-loss-logistic']:.1f} %"
    assert _text(page, "#non-members") == _text(page, "#recorded-efficacy") == efficacy

    # What the page says at a threshold elsewhere, worked out from the evidence.
    from expunge.evidence import Evidence
    from expunge.metrics.base import Readings
    from expunge.metrics.membership import inquire

    index = json.loads((runs / "small" / "jobs.json").read_text())
    row = next(
        r for r in index["rows"] if (r["problem"], r["label"], r["seed"]) == ("digits", "gradient-ascent", 0)
    )
    at = runs / "store" / "jobs" / row["observe"]
    read = {("model", s): Evidence.read(at / f"{s}.parquet") for s in ("forget", "retain", "holdout")}
    attacker, asked, matched = inquire(Readings("forget", read), "logistic", "loss")  # pyright: ignore
    below = attacker.classifier.coef_[0, 0] < 0  # pyright: ignore

    slider = page.get_by_role("slider", name="threshold")
    before = float(slider.get_attribute("aria-valuenow"))
    box = slider.bounding_box()
    page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 60)
    page.mouse.down()
    page.mouse.move(box["x"] - 150, box["y"] + 60, steps=6)
    page.mouse.up()
    threshold = float(slider.get_attribute("aria-valuenow"))
    assert threshold < before
    members = [(v["loss"] < threshold) if below else (v["loss"] > threshold) for v in (asked, matched)]
    assert _percent(_text(page, "#tpr")) == pytest.approx(members[0].mean(), abs=6e-4)
    assert _percent(_text(page, "#fpr")) == pytest.approx(members[1].mean(), abs=6e-4)
    assert _text(page, "#non-members") != efficacy
    slider.focus()
    page.keyboard.press("Shift+ArrowRight")
    assert float(slider.get_attribute("aria-valuenow")) > threshold
    page.get_by_role("button", name="Attacker's own threshold").click()
    assert _text(page, "#non-members") == efficacy


def test_the_worst_case_is_found_and_shown(reader: Reader) -> None:
    page = reader.open(PAGES["attack"])
    page.get_by_role("button", name="Worst case").click()
    page.wait_for_selector("#attack-score")
    advantage = float(_text(page, "#advantage"))
    rows = page.locator("table:has(th:text-is('privacy score')) tbody tr")
    shown = [
        float(row.locator("td").nth(1).inner_text())
        for row in rows.all()
        if not row.inner_text().startswith("chance")
    ]
    assert advantage == pytest.approx(max(shown), abs=2e-3)


def test_curves_are_those_of_the_record(reader: Reader, runs: Path) -> None:
    page = reader.open(PAGES["attack"])
    scores = json.loads((runs / "small" / "scores.json").read_text())
    of = {
        (j["label"], j["seed"]): {s["metric"]: s["curve"] for s in j["scores"] if s["curve"]}
        for j in scores["judged"] if j["problem"] == "digits"
    }  # fmt: skip
    for kind in ("pruning", "quantization"):
        box = page.locator(".panel:has(> h3)").filter(has_text=f"Knowledge after {kind}")
        lines = box.locator("svg[role=img] > g:has(> path[fill=none])")
        assert lines.count() == 3  # the retrained models' mean over their band, the target, and this one
        assert box.locator("svg[role=img] > g.band > path").count() == 2
        points = lines.last.locator("circle").all()
        recorded = of["gradient-ascent", 0][f"{kind}-knowledge"]["values"]
        mine = [v for v in recorded if v is not None]  # what is undefined is not drawn
        x, y = ([float(c.get_attribute(k)) for c in points] for k in ("cx", "cy"))
        assert (np.diff(x) > 0).all()  # effort goes to the right, also where it is counted down, as bits are
        ticks = box.locator("svg .axis").first.locator("g").all()
        axis = {float(t.text_content()): _down(t) for t in ticks}
        assert {0, 1} <= set(axis)
        assert (np.asarray(y) - axis[0]) / (axis[1] - axis[0]) == pytest.approx(mine, abs=0.005)


def test_bars_lie_over_the_band_of_the_retrained_models(reader: Reader, runs: Path) -> None:
    page = reader.open(f"{PAGES['contrast']}&metric=accuracy")
    scores = json.loads((runs / "small" / "scores.json").read_text())
    values = [
        s["groups"]["3"]
        for j in scores["judged"] if (j["problem"], j["method"]) == ("digits", "retrain")
        for s in j["scores"] if (s["metric"], s["split"]) == ("accuracy", "test")
    ]  # fmt: skip
    chart = page.locator("svg[aria-label^='Accuracy by group']")
    ticks = chart.locator(".axis > g").all()
    place = {
        float(t.text_content().rstrip(" %")) / 100: float(t.get_attribute("transform")[10:].split(",")[0])
        for t in ticks
    }
    scale = place[1.0] - place[0.0]
    pale, dark = chart.locator("g[data-group='3'] .band rect").all()
    ends = [
        [(float(r.get_attribute("x")) + w - place[0.0]) / scale for w in (0, float(r.get_attribute("width")))]
        for r in (dark, pale)
    ]
    assert ends[0] == pytest.approx([min(values), max(values)], abs=2e-3)
    assert ends[1][0] <= ends[0][0] + 1e-9 and ends[1][1] >= ends[0][1] - 1e-9
    assert ends[1][0] + 1e-9 >= 0 and ends[1][1] <= 1 + 1e-9
    page.get_by_role("button", name="B − A", exact=True).click()
    assert chart.locator(".band").count() == 0


def test_every_chart_with_retrained_models_has_their_band(reader: Reader) -> None:
    page = reader.open(PAGES["screen"])
    assert page.locator("svg[aria-label*=' against '] .band rect").count() == 2
    page = reader.open(PAGES["attack"])
    for name in ("distributions, loss (nats)", "ROC curves"):
        assert page.locator(f"svg[aria-label='{name}'] > g.band > path").count() == 2, name
    page = reader.open(PAGES["contrast"])
    assert page.locator("svg[aria-label='CKA'] > g.band > path").count() == 2


def test_the_ledger_is_shown(reader: Reader, ledger: Path) -> None:
    page = reader.open(PAGES["ledger"])
    assert _text(page, "dl.facts dd.ne") == "1"
    requests = page.get_by_role("region", name="requests, table")
    assert requests.locator("tbody tr").count() == 4
    assert "none of the 1 records" in requests.inner_text()
    certificate = page.get_by_role("region", name="certificates, table").locator("tbody tr")
    assert certificate.count() == 1 and "row-list, bitwise" in certificate.inner_text()
    certificate.locator("summary").click()
    shown = json.loads(certificate.locator("pre").inner_text())
    assert shown == json.loads((ledger / "log.jsonl").read_text())["body"]


def test_contents_are_fetched_only_when_revealed(reader: Reader) -> None:
    page = reader.open(PAGES["data"])
    assert page.locator(".pictures img").count() == 0 and page.locator(".redacted").count() > 10
    page.get_by_role("button", name="Reveal contents").click()
    page.wait_for_selector(".pictures img")
    assert page.locator(".redacted").count() == 0
    page = reader.open(PAGES["attack"])
    transcripts = page.get_by_role("region", name="transcripts, table").first
    assert "secret" not in transcripts.inner_text()
    page.get_by_label("Transcripts").get_by_role("button", name="Reveal contents").click()
    page.wait_for_selector("text=secret question 2")


def test_a_study_is_started_watched_cancelled_and_resumed(reader: Reader, folder: Path) -> None:
    page = reader.open("#/build")
    page.evaluate(
        """draft => { sessionStorage.setItem('draft', JSON.stringify(draft)); }""",
        {
            "name": "watched", "seeds": "0", "attacks": "none", "chosen": [], "device": "cpu", "rest": {"metrics": ["mae"]},
            "problems": [
                {
                    "own": False, "benchmark": "diabetes", "name": "", "forget": "fraction=0.1", "options": {}, "fields": {},
                    "rest": {"recipe": {"epochs": 400, "lr": 0.01}},
                }
            ],
            "methods": [{"name": "npo", "label": "", "values": {"beta": "-1"}}],
        },
    )  # fmt: skip
    page.reload()
    page.wait_for_selector("main[data-ready=yes] h1")
    # A value out of range is told at once, and nothing can be started with it.
    page.wait_for_selector("text=npo: 'beta' must be above 0")
    assert page.get_by_role("button", name="Start the study").is_disabled()
    page.get_by_label("beta", exact=False).first.fill("0.1, 0.2")
    page.wait_for_selector("text=2 settings")
    start = page.get_by_role("button", name="Start the study")
    until(page, "!document.querySelector('aside button.primary').disabled", 30)
    start.click()
    page.wait_for_selector("[data-run=watched][data-state=running]", timeout=30_000)
    page.wait_for_selector("text=/step \\d+ of/", timeout=60_000)
    page.get_by_role("button", name="Cancel").click()
    page.wait_for_selector("[data-run=watched][data-state=interrupted]", timeout=20_000)
    assert not (folder / "watched" / "scores.json").exists()
    page.get_by_role("button", name="Resume").click()
    page.wait_for_selector("[data-run=watched][data-state=running]", timeout=30_000)
    page.wait_for_selector("[data-run=watched][data-state=finished]", timeout=120_000)
    page.get_by_role("link", name="See the results").click()
    page.wait_for_selector("text=npo (beta=0.2)")
    record = json.loads((folder / "watched" / "scores.json").read_text())
    assert {j["label"] for j in record["judged"]} == {"target", "retrain", "npo", "npo (beta=0.2)"}
