"""Named things (methods, metrics, benchmarks, families, attacks): registration beside the class, lookup with suggestions."""

from __future__ import annotations

import importlib
import importlib.util
import pkgutil
import re
import sys
from collections.abc import Iterator
from importlib.metadata import entry_points
from pathlib import Path
from typing import Generic, TypeVar

from expunge.errors import BadInput, did_you_mean

T = TypeVar("T")
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


class Registry(Generic[T]):
    """A catalogue of one kind of thing.

    The modules of `packages` are imported on first use, so that adding a thing is adding a file; other distributions
    add theirs through the entry-point group ``expunge.<kind>s``.
    """

    def __init__(self, kind: str, *packages: str) -> None:
        self.kind = kind
        self._packages = packages
        self._items: dict[str, T] = {}
        self._loaded = False

    def add(self, name: str, item: T) -> T:
        """Register `item` under `name`, which must be new, lower-case and hyphenated."""
        if not _NAME.fullmatch(name):
            raise BadInput(
                f"{self.kind} name {name!r} must be lower-case words joined by hyphens, such as 'my-{self.kind}'"
            )
        known = self._items.get(name)
        if known is not None and getattr(known, "__module__", None) != getattr(item, "__module__", None):
            raise BadInput(f"a {self.kind} named '{name}' is registered already; choose another name")
        self._items[name] = item
        return item

    def _load(self) -> None:
        if self._loaded:
            return
        self._loaded = True
        for package_name in self._packages:
            package = importlib.import_module(package_name)
            for module in pkgutil.iter_modules(package.__path__):
                importlib.import_module(f"{package_name}.{module.name}")
        for entry in entry_points(group=f"expunge.{self.kind}s"):
            entry.load()

    def __getitem__(self, name: str) -> T:
        self._load()
        if name in self._items:
            return self._items[name]
        prefixed = [known for known in self._items if known.startswith(name)] if name else []
        if len(prefixed) == 1:
            return self._items[prefixed[0]]
        raise BadInput(f"unknown {self.kind} '{name}'{did_you_mean(name, self._items)}")

    def __iter__(self) -> Iterator[str]:
        self._load()
        return iter(sorted(self._items))

    def __contains__(self, name: str) -> bool:
        self._load()
        return name in self._items

    def items(self) -> list[tuple[str, T]]:
        """All (name, thing), by name."""
        return [(name, self._items[name]) for name in self]


def load_object(reference: str) -> object:
    """Import ``./file.py:Name`` or ``package.module:name`` and return the object.

    This runs the code in that file; callers say so to the user before they call it.
    """
    module_name, _, attribute = reference.rpartition(":")
    if not module_name or not attribute:
        raise BadInput(f"'{reference}' is not of the form ./file.py:Name or package.module:name")
    if module_name.endswith(".py"):
        path = Path(module_name).expanduser()
        if not path.is_file():
            raise BadInput(f"no file '{path}' to take '{attribute}' from")
        name = f"expunge_user_{path.stem}"
        spec = importlib.util.spec_from_file_location(name, path)
        if spec is None or spec.loader is None:
            raise BadInput(f"'{path}' cannot be imported as Python")
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            raise BadInput(
                f"'{path}' failed while it was imported: {type(error).__name__}: {error}"
            ) from error
    else:
        try:
            module = importlib.import_module(module_name)
        except ImportError as error:
            raise BadInput(f"cannot import '{module_name}': {error}; is its folder on PYTHONPATH?") from None
    if not hasattr(module, attribute):
        raise BadInput(f"'{module_name}' has no '{attribute}'{did_you_mean(attribute, vars(module))}")
    return getattr(module, attribute)
