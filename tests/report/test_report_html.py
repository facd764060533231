"""The page: its numbers are the score file's, nothing in it can break out, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import pytest
from factory import report_input, scores

from expunge.record import ScoreFile, Verdict
from expunge.report import Report, compose, render, write_report
from expunge.report.html import json_for_html, strip, vega_bundle
from expunge.report.notation import scale, shown

EVIL = "</script><script>alert(1)</script>"


class Page(HTMLParser):
    """Tables of results as {(table id, row label, metric, split): (value attribute, text)}, and every tag."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[tuple[str, str, str, str], tuple[float | None, str, str]] = {}
        self.scripts: list[str] = []
        self._table, self._columns, self._row, self._label = "", [], -1, ""
        self._open: list[str] = []
        self._in_value = self._in_cell = self._in_label = False
        self._value: float | None = None
        self._shown = self._whole = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
        kind = given.get("class") or ""
        if tag == "table":
            self._table, self._columns = given.get("id") or "", []
        elif tag == "th" and "data-metric" in given:
            self._columns.append((given["data-metric"], given["data-split"]))
        elif tag == "tr":
            self._row, self._label = -1, ""
        elif tag == "th" and given.get("scope") == "row":
            self._in_label = True
        elif tag == "td" and self._columns:
            self._row += 1
            self._in_cell, self._shown, self._whole = True, "", ""
            value = given.get("data-value")
            self._value = None if value is None else float(value)
        elif tag == "span" and self._in_cell and kind == "value":
            self._in_value = True
        elif tag == "script":
            self.scripts.append("")
            self._open.append("script")

    def handle_data(self, data: str) -> None:
        if self._in_label:
            self._label += data
        if self._in_cell:
            self._whole += data
        if self._in_value:
            self._shown += data
        if self._open:
            self.scripts[-1] += data

    def handle_endtag(self, tag: str) -> None:
        if tag == "span":
            self._in_value = False
        elif tag == "th":
            self._in_label = False
        elif tag == "td" and self._in_cell:
            metric, split = self._columns[self._row]
            key = (self._table, self._label.strip(), metric, split)
            self.cells[key] = (self._value, self._shown.strip(), " ".join(self._whole.split()))
            self._in_cell = False
        elif tag == "script" and self._open:
            self._open.pop()


@pytest.fixture(scope="module")
def text() -> str:
    given = report_input()
    return render(compose(given), given.losses)


@pytest.fixture(scope="module")
def page(text: str) -> Page:
    return Page(text)


def test_every_number_is_the_score_files(page: Page) -> None:
    file = scores()
    names = {f"p{i + 1}": card["name"] for i, card in enumerate(file.problems)}
    checked = 0
    for (table, label, metric, split), (value, number, _) in page.cells.items():
        problem = names[table.split("-")[0]]
        found = [
            s.value
            for m in file.judged
            if (m.problem, m.label) == (problem, label)
            for s in m.scores
            if (s.metric, s.split) == (metric, split) and s.value is not None
        ]
        assert (value is None) == (not found), (label, metric, split)
        if value is not None:
            mean = sum(found) / len(found)
            unit = next(s.unit for m in file.judged for s in m.scores if s.metric == metric)
            assert value == pytest.approx(mean, rel=1e-12)
            read = float(number.replace(",", "").replace("−", "-"))
            assert read == pytest.approx(mean * scale(unit).factor, rel=6e-3, abs=0.06)
            checked += 1
    shown_pairs = {(k[1], k[2], k[3]) for k in page.cells}
    assert {(m.label, s.metric, s.split) for m in file.judged for s in m.scores} <= shown_pairs
    assert checked > 60


def test_undefined_is_said_with_its_reason(page: Page, text: str) -> None:
    value, _, whole = page.cells["p1-attacks-table", "ssd", "tpr-at-1-percent-fpr", "forget"]
    assert value is None
    assert whole.startswith("undefined")
    assert (
        text.count("only 20 non-members of the same class; 100 are needed") >= 3
    )  # tooltip, note, list of failures
    assert page.cells["p1-results-table", "blindspot", "accuracy", "test"][2].startswith("not applicable")
    assert page.cells["p1-cost-table", "target", "seconds", "run"][2] == "not measured"
    assert all(whole for _, _, whole in page.cells.values())


def test_nothing_is_fetched(page: Page, text: str) -> None:
    sources = [
        v
        for _, given in page.tags
        for k, v in given.items()
        if k in ("src", "href", "data", "poster", "srcset")
    ]
    assert sources
    assert all((v or "").startswith(("#", "data:")) for v in sources)
    assert not [tag for tag, _ in page.tags if tag in ("iframe", "object", "embed", "img", "base")]
    style = re.search(r"<style>(.*?)</style>", text, re.S)
    assert style and "url(" not in style[1] and "@import" not in style[1]


def test_policy_names_the_scripts_it_allows(page: Page) -> None:
    policy = next(g["content"] or "" for tag, g in page.tags if tag == "meta" and "http-equiv" in g)
    assert policy.startswith("default-src 'none'; script-src 'sha256-")
    assert "unsafe-eval" not in policy and "http" not in policy
    runnable = [s for s in page.scripts if not s.lstrip().startswith("{")]
    assert len(runnable) == 2
    for script in runnable:
        assert base64.b64encode(hashlib.sha256(script.encode()).digest()).decode() in policy


def test_malicious_labels_stay_text() -> None:
    file = scores()
    evil = ScoreFile.model_validate_json(file.model_dump_json().replace("salun (rho=0.5)", EVIL))
    evil.problems[0]["scope"] = EVIL
    evil.judged[0].scores[0].groups[EVIL] = 0.5
    given = report_input(evil)
    text = render(compose(given), {"digits": {EVIL: {EVIL: [0.5]}}})
    assert "<script>alert" not in text
    parsed = Page(text)
    assert len(parsed.scripts) == 3  # data, Vega, ours
    data = json.loads(parsed.scripts[0])
    labels = {r["label"] for r in data["specs"]["chart-0-utility"]["data"]["values"]}
    assert EVIL in labels
    assert any(label == EVIL for _, label, _, _ in parsed.cells)


@pytest.mark.parametrize("value", ["</script>", "<!--<script>", "a & b", "\u2028", "é"])
def test_json_survives_a_script_element(value: str) -> None:
    text = str(json_for_html({"x": value}))
    assert json.loads(text) == {"x": value}
    assert not set("<>&\u2028") & set(text)


def test_bundle_cannot_end_its_element() -> None:
    assert "</script" not in vega_bundle().lower()
    assert "window.vegaEmbed" in vega_bundle()


def test_written_files(tmp_path: Path) -> None:
    path = write_report(report_input(), tmp_path / "run")
    assert path == tmp_path / "run" / "report.html"
    assert path.stat().st_size < 2_500_000
    report = Report.model_validate_json((tmp_path / "run" / "report.json").read_text())
    assert report == compose(report_input())
    assert sorted(p.name for p in path.parent.iterdir()) == [
        "report.html",
        "report.json",
    ]  # no temporary files left


def test_page_without_charts_carries_no_scripts() -> None:
    text = render(compose(report_input(ScoreFile(name="empty", problems=[{"name": "p"}], judged=[]))))
    assert "script-src 'none'" in unescape(text)
    assert "vegaEmbed" not in text
    assert "No attack was run" in text


def test_no_contents_and_no_forbidden_word(text: str) -> None:
    readable = re.sub(r"<script.*?</script>", "", text, flags=re.S)
    assert "deleted" not in readable.lower()
    assert "expunge run class-three.yaml" in readable
    assert "0d11aa" in readable  # fingerprints are there


def test_strip_places_margin_and_interval() -> None:
    verdict = Verdict.model_validate(
        {
            "problem": "p",
            "label": "l",
            "metric": "accuracy",
            "split": "test",
            "judgement": "no larger difference",
            "margin": 0.05,
            "difference": 0.02,
            "interval": {"low": 0.01, "high": 0.03, "method": "welch"},
            "n": 3,
            "n_reference": 3,
            "sentence": "s",
        }
    )
    # The strip spans twice the margin on either side: 0.05 of 0.1 is half way from the middle to the end.
    assert strip(verdict) == {
        "low": 55.0,
        "high": 65.0,
        "difference": 60.0,
        "margin_low": 25.0,
        "margin_high": 75.0,
    }
    assert verdict.interval is not None
    wide = verdict.interval.model_copy(update={"high": 1.0})
    drawn = strip(verdict.model_copy(update={"interval": wide}))
    assert drawn is not None and drawn["high"] < 100
    assert strip(verdict.model_copy(update={"difference": None})) is None


def test_verdicts_are_in_the_order_of_the_tables(text: str) -> None:
    table = re.search(r'<table class="verdicts">(.*?)</table>', text, re.S)
    assert table
    labels = re.findall(r'<span class="label \w+">([^<]+)</span>', table[1])
    assert labels == ["target", "scrub (alpha=0.1, msteps=2)", "ssd", "salun (rho=0.5)", "bad-teacher"]
    assert shown(0.21, "share", signed=True) in table[1]
