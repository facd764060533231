"""Published pages: the names of the files are those that the page computes, and nothing redacted is in them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.app.bundle import address, file_of, write_bundle
from expunge.errors import BadInput, Missing


@pytest.fixture(scope="module")
def published(runs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("published")
    assert write_bundle(runs, out) == sum(f.is_file() for f in out.rglob("*"))
    return out


def test_names_are_fnv_1a() -> None:
    """Of 'a' with the usual start, FNV-1a over 32 bits is e40c292c (Fowler, Noll & Vo's own table)."""
    assert file_of("a")[5:13] == "e40c292c"
    assert file_of("foobar")[5:13] == "bf9cf968"


def test_addresses_are_encoded_as_the_pages_do() -> None:
    assert (
        address("/x", b="l (a=1)@0", a="ü/é", none="", no=False, yes=True)
        == "/x?a=%C3%BC%2F%C3%A9&b=l%20(a%3D1)%400&yes=true"
    )
    assert address("/x") == "/x"


def test_what_the_pages_ask_for_is_there(published: Path) -> None:
    pair = {"problem": "digits", "a": "npo (epochs=2)@1", "b": "retrain@0"}
    for where in (
        "/api/session", "/api/runs", "/api/screen", "/api/runs/small", "/api/runs/small/charts",
        address("/api/runs/small/contrast", **pair, split="test"),
        address("/api/runs/small/examples", **pair, split="test", limit=200),
        address("/api/runs/small/embedding", **pair, split="forget", layer="hidden", method="pca"),
        address("/api/runs/small/separation", problem="digits", model="npo (epochs=2)@1", statistic="loss"),
        address("/api/runs/small/forget-set", problem="digits", limit=30),
    ):  # fmt: skip
        content = json.loads((published / file_of(where)).read_text())
        assert "error" not in content, where
    session = json.loads((published / file_of("/api/session")).read_text())
    assert session["bundle"] and session["token"] == ""
    assert 'name="expunge-bundle"' in (published / "index.html").read_text()
    assert (published / "assets" / "vega.js").stat().st_size > 100_000


def test_nothing_redacted_is_published(published: Path) -> None:
    text = "".join(f.read_text() for f in (published / "data").iterdir())
    assert "secret question" not in text and "data:image" not in text
    assert not list(published.rglob("*.safetensors")) and not list(published.rglob("*.parquet"))


def test_no_path_of_this_machine_is_published(published: Path, runs: Path) -> None:
    text = (published / "runs" / "small" / "run.yaml").read_text()
    there = (runs / "small" / "run.yaml").read_text()
    base = next(line for line in there.splitlines() if line.startswith("base: "))
    assert base.removeprefix("base: ").startswith("/") and text == there.replace(base, "base: .")
    named = [f for f in published.rglob("*") if f.is_file() and str(runs.parent).encode() in f.read_bytes()]
    assert named == []


def test_a_folder_of_something_else_is_not_overwritten(runs: Path, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").write_text("mine")
    with pytest.raises(BadInput, match="not empty"):
        write_bundle(runs, tmp_path)
    with pytest.raises(Missing, match="no run"):
        write_bundle(tmp_path / "none", tmp_path / "out")
