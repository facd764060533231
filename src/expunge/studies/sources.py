"""Fingerprints of code: a result is kept for as long as what computed it stays as it was."""

from __future__ import annotations

import hashlib
import inspect
import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import expunge
from expunge.attacks import Attack
from expunge.methods.base import Method


@cache
def code_digest(*places: str) -> str:
    """Fingerprint of the package's own source files under `places`: changed code must not meet old results."""
    root = Path(expunge.__file__).parent
    hasher = hashlib.sha256()
    for place in places:
        path = root / place
        for file in sorted(path.rglob("*.py")) if path.is_dir() else [path]:
            hasher.update(file.read_bytes())
    return hasher.hexdigest()[:20]


@cache
def source_digest(item: type[Method] | type[Attack] | Callable[..., Any]) -> str:
    """Fingerprint of the file that defines `item`, of those of its bases, and of what they import of the package."""
    core = (Method, Attack)
    classes = [c for c in item.__mro__ if issubclass(c, core)] if isinstance(item, type) else [item]
    files: dict[Path, None] = {}
    for one in classes:
        _add_imports(Path(inspect.getfile(one)), files)
    hasher = hashlib.sha256()
    for file in sorted(files):
        hasher.update(file.read_bytes())
    return hasher.hexdigest()[:20]


_FOLLOWED = ("attacks", "data", "exact", "find", "methods", "metrics", "oracles", "stats")
"""Rooms whose code can be part of what an item computes; the core has fingerprints of its own."""


def _add_imports(file: Path, found: dict[Path, None]) -> None:
    """Add `file` and the modules of the followed rooms that it imports, and those that they import."""
    if file in found:
        return
    found[file] = None
    for imported in _imports(file):
        _add_imports(imported, found)


@cache
def _imports(file: Path) -> list[Path]:
    root = Path(expunge.__file__).parent
    modules = re.findall(r"^\s*from expunge\.([\w.]+) import", file.read_text(), re.MULTILINE)
    files = [root.joinpath(*module.split(".")).with_suffix(".py") for module in modules]
    return [f for f in files if f.relative_to(root).parts[0] in _FOLLOWED and f.is_file()]
