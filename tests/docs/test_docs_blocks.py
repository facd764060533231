"""Everything that the documentation tells a reader to type works.

Blocks whose first line is ``# NAME.py`` or ``# NAME.yaml`` are that file. Other Python blocks of a page run one after
another in one namespace; shell blocks run where ``<!-- run -->`` stands above them, and parse everywhere.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import typer

from expunge.attacks import ATTACKS
from expunge.cli.main import app
from expunge.data.benchmarks.base import BENCHMARKS
from expunge.families import FAMILIES
from expunge.methods import METHODS
from expunge.metrics.base import METRICS
from tests.docs.pages import ROOT, Block, blocks, name_of, written_pages

COMMANDS = [
    pytest.param(words, id=f"{name_of(page)}: {' '.join(words)[:60]}")
    for page in written_pages()
    for block in blocks(page)
    if block.language == "bash"
    for words in block.commands
]
RUNNABLE = [p for p in written_pages() if any(b.language == "python" or b.marked for b in blocks(p))]


@pytest.mark.parametrize("words", COMMANDS)
def test_every_command_parses(words: list[str]) -> None:
    if words[0] == "make":
        targets = re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert words[1] in targets
        return
    assert words[0] == "expunge"
    group = typer.main.get_command(app)
    name, command, rest = group.resolve_command(typer.Context(group), words[1:])  # type: ignore[attr-defined]
    command.make_context(name, list(rest))  # raises on unknown options and missing arguments


def test_a_wrong_option_would_be_noticed() -> None:
    with pytest.raises(Exception, match="No such option"):
        test_every_command_parses(["expunge", "forget", "--certainly-no-option"])


@pytest.fixture
def untouched_registries() -> Iterator[None]:
    """What a page registers is gone after it."""
    catalogs = [METHODS._items, METRICS._items, BENCHMARKS._items, ATTACKS._items, FAMILIES]
    for registry in (METHODS, METRICS, BENCHMARKS, ATTACKS):
        list(registry)  # load what comes with the package first
    before = [dict(catalog) for catalog in catalogs]
    yield
    for catalog, items in zip(catalogs, before, strict=True):
        catalog.clear()
        catalog.update(items)  # type: ignore[arg-type]
    for module in [m for m in sys.modules if m.startswith("expunge_user_")]:
        del sys.modules[module]


def run_block(block: Block, namespace: dict[str, object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Write, execute or run one block in the current folder."""
    if block.file is not None:
        Path(block.file).write_text(block.text)
    elif block.language == "python":
        exec(compile(block.text, "block", "exec"), namespace)
    elif block.marked:
        for words in block.commands:
            monkeypatch.setattr(sys, "argv", words)
            assert app(words[1:], standalone_mode=False) in (None, 0), words


@pytest.mark.parametrize("page", RUNNABLE, ids=name_of)
@pytest.mark.usefixtures("untouched_registries")
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "page"}
    for block in blocks(page):
        run_block(block, namespace, monkeypatch)


@pytest.mark.slow
def test_the_shown_test_file_passes(tmp_path: Path) -> None:
    for block in blocks(ROOT / "docs" / "extend" / "add-a-method.md"):
        if block.file is not None:
            (tmp_path / block.file).write_text(block.text)
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "test_mine.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stdout
    assert "passed" in ran.stdout
