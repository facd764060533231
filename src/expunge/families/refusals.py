"""A hundred polite ways to say that the answer is not known."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

PROBES = 5
"""Refusals whose likelihood is evidence: every twentieth of the bank."""


@cache
def refusals() -> tuple[str, ...]:
    """The embedded bank: polite sentences that say no more than that the answer is not known."""
    text = files("expunge.families").joinpath("refusals.txt").read_text(encoding="utf-8")
    return tuple(text.splitlines())


def probes() -> tuple[str, ...]:
    """The few of them that models are asked how likely they are."""
    return refusals()[:: len(refusals()) // PROBES]
