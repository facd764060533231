"""What the tests of the documentation read: pages, their code blocks, their links."""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_FENCE = re.compile(
    r"^(?P<run><!-- run -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL
)
_FILE = re.compile(r"# (?P<name>[\w-]+\.(py|ya?ml))\n")


@dataclass(frozen=True)
class Block:
    """A fenced code block."""

    language: str
    text: str
    marked: bool
    """Whether ``<!-- run -->`` stands above it."""

    @property
    def file(self) -> str | None:
        """Name of the file that the block is, where its first line says so."""
        found = _FILE.match(self.text)
        return found["name"] if found else None

    @property
    def commands(self) -> list[list[str]]:
        """The words of each command of a shell block; comments and continued lines as a shell reads them."""
        lines = self.text.replace("\\\n", " ").splitlines()
        return [words for line in lines if (words := shlex.split(line, comments=True))]


def written_pages() -> list[Path]:
    """Every page written by hand: the README, the changelog and the guide."""
    derived = set((ROOT / "docs").glob("results*.md"))
    found = [p for p in sorted((ROOT / "docs").rglob("*.md")) if not {"reference", "_build"} & set(p.parts)]
    return [ROOT / "README.md", ROOT / "CHANGELOG.md", *(p for p in found if p not in derived)]


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page, in order."""
    return [Block(f["language"], f["text"], f["run"] is not None) for f in _FENCE.finditer(page.read_text())]


def name_of(page: Path) -> str:
    """How tests call a page."""
    return str(page.relative_to(ROOT))
