"""One check of a contract."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


class ContractBroken(AssertionError):
    """What a contract promises does not hold; the message says what and where."""


@dataclass(frozen=True)
class Check:
    """A named check; call it to run it."""

    subject: str
    name: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Raise `ContractBroken` if the promise does not hold."""
        self.run()

    def __str__(self) -> str:
        return f"{self.subject}: {self.name}"


def require(condition: bool, message: str) -> None:
    """Raise `ContractBroken` with `message` unless `condition` holds; unlike assert, also under ``python -O``."""
    if not condition:
        raise ContractBroken(message)
