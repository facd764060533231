"""expunge: find it, forget it, prove it."""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from expunge.api import audit, forget, run, train_target
    from expunge.data.specification import ProblemSpec
    from expunge.methods.base import Method
    from expunge.problem import Problem

__version__ = version("expunge")
__all__ = ["Method", "Problem", "ProblemSpec", "__version__", "audit", "forget", "run", "train_target"]

_HOMES = {
    "Problem": "expunge.problem",
    "ProblemSpec": "expunge.data.specification",
    "Method": "expunge.methods.base",
    "forget": "expunge.api",
    "audit": "expunge.api",
    "run": "expunge.api",
    "train_target": "expunge.api",
}


def __getattr__(name: str) -> Any:
    """Import on first use: ``expunge --help`` should not wait for torch."""
    if name in _HOMES:
        import importlib

        return getattr(importlib.import_module(_HOMES[name]), name)
    raise AttributeError(f"module 'expunge' has no attribute '{name}'")
