"""The examples run, and each prints its number and a second route to it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest

from expunge.methods import METHODS
from tests.docs.pages import ROOT

EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 4


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_runs(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = dict(METHODS._items)
    try:
        runpy.run_path(str(path), run_name="__main__")  # each compares its two numbers itself
    finally:
        METHODS._items.clear()
        METHODS._items.update(before)
    printed = capsys.readouterr().out
    assert "by hand" in printed or "by counting pairs" in printed


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.stem)
def test_example_is_short_and_says_how_to_run_it(path: Path) -> None:
    text = path.read_text()
    assert len(text.splitlines()) < 60
    assert f"Run: python examples/{path.name}" in text
