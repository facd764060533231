"""Internal links lead somewhere, down to the heading."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.docs.pages import ROOT, name_of, written_pages

_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_FENCED = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """Slugs of the headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#+ (.+)$", _FENCED.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).strip().replace(" ", "-") for h in headings}


def broken(page: Path) -> list[str]:
    """Links of a page that lead nowhere."""
    found = []
    for link in _LINK.finditer(_FENCED.sub("", page.read_text())):
        target, _, anchor = link["target"].partition("#")
        if "://" in target:
            continue
        to = (page.parent / target).resolve() if target else page
        if to.is_relative_to(ROOT / "docs" / "reference"):
            continue  # written before the build, and checked by it
        if not to.exists() or (anchor and anchor not in anchors(to)):
            found.append(link["target"])
    return found


@pytest.mark.parametrize("page", [*written_pages(), ROOT / "docs" / "results.md"], ids=name_of)
def test_links_resolve(page: Path) -> None:
    assert broken(page) == []


def test_a_broken_link_would_be_noticed(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("# Here it is\n\n[a](#here-it-is) [b](#there) [c](gone.md) [d](https://example.org/x)\n")
    assert broken(page) == ["#there", "gone.md"]


def test_every_page_is_in_the_table_of_contents() -> None:
    index = (ROOT / "docs" / "index.md").read_text()
    pages = {
        p.relative_to(ROOT / "docs").with_suffix("").as_posix()
        for p in written_pages()
        if (ROOT / "docs") in p.parents
    }
    assert pages - {"index"} <= set(index.split())
