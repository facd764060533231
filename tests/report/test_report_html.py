"""The page: its numbers are the score file's, nothing in it can break out, and nothing is fetched."""

from __future__ import annotations

import base64
import hashlib
import json
import re
from decimal import Decimal
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
    """Tables of results as {(table id, row label, metric, split): (number, whole text)}, and every tag.

    A cell across all columns stands for each of them.
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.cells: dict[tuple[str, str, str, str], tuple[str, str]] = {}
        self.scripts: list[str] = []
        self._table, self._columns, self._row, self._label = "", [], -1, ""
        self._open: list[str] = []
        self._in_value = self._in_cell = self._in_label = False
        self._span = 1
        self._shown = self._whole = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = dict(attrs)
        self.tags.append((tag, given))
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
            self._span = int(given.get("colspan") or 1)
        elif tag == "b" and self._in_cell:
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
        if tag == "b":
            self._in_value = False
        elif tag == "th":
            self._in_label = False
        elif tag == "td" and self._in_cell:
            for metric, split in self._columns[self._row : self._row + self._span]:
                key = (self._table, self._label.strip(), metric, split)
                self.cells[key] = (self._shown.strip(), " ".join(self._whole.split()))
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
    for (table, label, metric, split), (number, _) in page.cells.items():
        problem = names[table.split("-")[0]]
        found = [
            s.value
            for m in file.judged
            if (m.problem, m.label) == (problem, label)
            for s in m.scores
            if (s.metric, s.split) == (metric, split) and s.value is not None
        ]
        assert (number == "") == (not found), (label, metric, split)
        if found:
            unit = next(s.unit for m in file.judged for s in m.scores if s.metric == metric)
            mean = sum(found) / len(found) * scale(unit).factor
            read = Decimal(number.replace(",", "").replace("−", "-"))
            # Right to the last digit shown.
            half_a_unit = Decimal((0, (5,), int(read.as_tuple().exponent) - 1))
            assert abs(float(read) - mean) <= float(half_a_unit) * (1 + 1e-9), (label, metric, split)
            checked += 1
    with_value = {(m.label, s.metric, s.split) for m in file.judged for s in m.scores if s.value is not None}
    assert with_value <= {(k[1], k[2], k[3]) for k in page.cells}
    assert checked > 60


def test_undefined_is_said_with_its_reason(page: Page, text: str) -> None:
    assert "No model has a value of Members found at 1 % false positives (loss), forget set." in text
    assert text.count("only 20 non-members of the same class; 100 are needed") == 1  # with count, not per row
    assert page.cells["p1-results-table", "blindspot", "accuracy", "test"] == (
        "",
        "Not applicable: it fits regressor, not classifier",
    )
    number, whole = page.cells["p1-results-table", "bad-teacher", "accuracy", "test"]
    assert number and f" {number}1" in whole  # a value over fewer seeds refers to the note
    assert "Failed for 1 of 3 seeds: bad-teacher produced NaN" in text
    assert all(whole for _, whole in page.cells.values())


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
    assert EVIL in data["specs"]["chart-0-losses"]["params"][0]["value"]
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
    assert path.stat().st_size < 1_200_000  # of which Vega takes 0.9 MB
    written = (tmp_path / "run" / "report.json").read_text()
    report = Report.model_validate_json(written)
    assert report.model_dump() == compose(report_input()).model_dump()
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
    # The strip is 66 px wide and spans three times the margin on either side, so 0.01 of 0.15 is 2.2 px.
    assert strip(verdict) == {"low": 35.2, "high": 39.6, "difference": 37.4, "beyond": 0}
    assert verdict.interval is not None
    wide = verdict.interval.model_copy(update={"high": 1.0})
    drawn = strip(verdict.model_copy(update={"interval": wide}))
    assert drawn is not None and (drawn["high"], drawn["beyond"]) == (66.0, 0)  # cut at the edge
    for difference, side in ((0.16, 1), (-0.16, -1), (0.15, 0)):
        drawn = strip(verdict.model_copy(update={"difference": difference}))
        assert drawn is not None and drawn["beyond"] == side
    assert strip(verdict.model_copy(update={"difference": None})) is None
    assert strip(verdict.model_copy(update={"margin": 0.0})) is None  # nothing to compare with


@pytest.fixture(scope="module")
def matrix_text(text: str) -> str:
    table = re.search(r'<table class="findings">(.*?)</table>', text, re.S)
    assert table
    return table[1]


def test_findings_say_what_the_verdicts_say(matrix_text: str) -> None:
    head, *rows = matrix_text.split("<tr")[1:]
    assert head.count('scope="col"') == 4  # method, count, and two properties
    readable = re.sub(r"<[^>]+>", " ", head)
    assert (
        re.findall(r"percentage points, +margin ±5\.0", readable) == ["percentage points,  margin ±5.0"] * 2
    )
    labels = [re.findall(r'<span class="label \w+">([^<]+)</span>', row)[0] for row in rows]
    # Three methods with one agreement each, then none; equal ones in the order they were run.
    assert labels == ["target", "scrub (alpha=0.1, msteps=2)", "ssd", "salun (rho=0.5)", "bad-teacher"]
    by_label = dict(zip(labels, rows, strict=True))
    for verdict in scores().verdicts:
        row = by_label[verdict.label]
        assert f'title="{verdict.sentence}"' in row
        if verdict.difference is not None:
            assert f"<span>{shown(verdict.difference, 'share', signed=True)}</span>" in row
    assert ">1 of 2</td>" in by_label["ssd"] and ">0 of 2</td>" in by_label["bad-teacher"]
    assert ">undefined</span>" in by_label["bad-teacher"] and "no test" in by_label["bad-teacher"]
    # Signs are read out in words.
    assert 'aria-label="Different from retraining">≠' in by_label["target"]


def test_verdicts_in_words_are_folded_away(text: str) -> None:
    folded = re.search(r"<details><summary>In words</summary>(.*?)</details>", text, re.S)
    assert folded
    assert all(f"{verdict.sentence}." in folded[1] for verdict in scores().verdicts)


def test_summary_names_every_method_once(text: str) -> None:
    summary = re.search(r'<dl class="summary">(.*?)</dl>', text, re.S)
    assert summary
    readable = " ".join(re.sub(r"<[^>]+>", "", summary[1]).split())
    assert readable == (
        "digits ≡ no larger difference on all 2 properties: none. ≠ different on at least one: ssd. "
        "? undecided: scrub (alpha=0.1, msteps=2), salun (rho=0.5) and bad-teacher. "
        "Not judged: gradient-ascent and blindspot. "
        "pressure No equivalence test was made. Not judged: fine-tune."
    )
    assert 'href="#p1"' in summary[1] and 'href="#p2"' in summary[1]


def test_only_the_main_parts_are_unfolded(text: str) -> None:
    assert "<details open" not in text
    titles = re.findall(r"<summary>([^<]+)</summary>", text)
    expected = (
        "In words",
        "Other measurements",
        "Spread of the retrained models",
        "Loss distributions",
    )
    assert set(expected) <= set(titles)


def test_samples_stand_under_their_prompts_with_the_target_first():
    def png(name: str) -> str:
        return f"data:image/png;base64,{name}"

    given = report_input()
    report = compose(given)
    section = report.problems[0]
    unlearned = next(label for label, role in section.labels if role == "unlearned")
    images = {
        "concept": {
            unlearned: [["a <cat>", png("AAAA")], ["a dog", png("BBBB")]],
            "target": [["a <cat>", png("CCCC")], ["a dog", png("DDDD")]],
            "somebody else": [["a <cat>", png("EEEE")], ["a dog", png("FFFF")]],
        }
    }
    page = Page(render(report, {}, {section.name: images}))
    shown = [(attrs["alt"], attrs["src"]) for tag, attrs in page.tags if tag == "img"]
    assert shown == [
        ("target: a <cat>", png("CCCC")), ("target: a dog", png("DDDD")),
        (f"{unlearned}: a <cat>", png("AAAA")), (f"{unlearned}: a dog", png("BBBB")),
    ]  # fmt: skip
    assert not [tag for tag, _ in Page(render(report)).tags if tag == "img"]
