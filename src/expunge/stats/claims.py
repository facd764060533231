"""What may be claimed of a model: a small state machine over findings, without any words or numbers.

A claim starts as its maker's and is only ever lowered. Each level has requirements; a level is

- contradicted, where one finding excludes it;
- supported, where every requirement is met;
- undecided, where neither: something it needs failed, is undefined, was not run or is too uncertain.

``standing`` is the strongest supported level that is not above the claim. So whatever is added (an attack that failed, a larger
excess, a test nobody had thought of) can lower it and never raise it.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from expunge.record import Claimed, Standing, Support

LEVELS: tuple[Claimed, ...] = ("exact", "removal", "suppression")
"""Strongest first."""

Finding = Literal["none", "residue", "away", "undecided", "missing"]
"""``none``: no difference from retraining larger than the margin. ``residue``: more of what was to be forgotten than retrained
models show. ``away``: different, but not towards the target. ``missing``: not run, failed, undefined."""
Utility = Literal["kept", "damaged", "undecided", "missing"]


@dataclass(frozen=True)
class Test:
    """One finding, and what it bears on."""

    finding: Finding
    said: bool = False
    """Whether it is about what the model says to whoever asks: such a residue contradicts suppression too."""
    output: bool = False
    """Whether it is the plain behavior on the forget set."""
    needed: Collection[Claimed] = ()
    """Levels that cannot be supported without it."""
    symmetric: bool = False
    """Whether a difference away from the target is as telling, as in membership inference."""


@dataclass(frozen=True)
class Facts:
    """Everything a claim is judged on."""

    claimed: Claimed
    utility: Utility
    tests: Sequence[Test] = ()
    is_target: bool = False
    """Its weights are the target's, bit by bit, and nothing stands before them."""
    keeps_target: bool = False
    """The target's weights stand in it, behind a filter or beside an adapter."""
    sensitive: Collection[Claimed] = ("removal", "suppression")
    """Levels whose tests tell the target from retrained models: where they do not, finding nothing means nothing."""
    exact_by_construction: bool = False
    """A method with an exact guarantee made these very weights, by a record that names them."""


@dataclass(frozen=True)
class Conclusion:
    """What is left of the claim."""

    standing: Standing
    levels: dict[Claimed, Support]
    residue: Literal["found", "not found", "inconclusive"]


def conclude(facts: Facts) -> Conclusion:
    """Judge a claim. Utility first: of a model that lost its use, nothing is said but that."""
    levels: dict[Claimed, Support] = {level: _level(level, facts) for level in LEVELS}
    return Conclusion(_standing(facts, levels), levels, _residue(facts))


def _standing(facts: Facts, levels: Mapping[Claimed, Support]) -> Standing:
    if facts.utility == "damaged":
        return "damaged"
    if facts.is_target:
        return "not forgotten"
    for level in LEVELS:
        if levels[level] == "supported":
            return level
    return "not forgotten" if levels["suppression"] == "contradicted" else "undecided"


def _level(level: Claimed, facts: Facts) -> Support:
    if LEVELS.index(level) < LEVELS.index(facts.claimed):
        return "not claimed"
    if facts.utility == "damaged" or facts.is_target:
        return "contradicted"
    if level == "exact":
        if facts.keeps_target or any(tells(t) for t in facts.tests):
            return "contradicted"
        return "supported" if facts.exact_by_construction else "undecided"
    if level == "removal" and (
        facts.keeps_target
        or any(tells(t) for t in facts.tests)
        or any(t.output and t.finding == "away" for t in facts.tests)
    ):
        return "contradicted"
    if level == "suppression" and any(t.said and t.finding == "residue" for t in facts.tests):
        return "contradicted"
    needed = [t for t in facts.tests if level in t.needed]
    met = bool(needed) and all(t.finding in ("none", "away") for t in needed)
    met = met and level in facts.sensitive
    return "supported" if met and facts.utility == "kept" else "undecided"


def tells(test: Test) -> bool:
    """Whether the finding is that something is left."""
    return test.finding == "residue" or (test.symmetric and test.finding == "away")


def _residue(facts: Facts) -> Literal["found", "not found", "inconclusive"]:
    """Whether something is left, whatever is claimed; a model that only behaves otherwise than a retrained one has no residue."""
    if facts.is_target or facts.keeps_target or any(tells(t) for t in facts.tests):
        return "found"
    needed = [t for t in facts.tests if "removal" in t.needed]
    clear = bool(needed) and all(t.finding in ("none", "away") for t in needed)
    return (
        "not found" if clear and "removal" in facts.sensitive and facts.utility == "kept" else "inconclusive"
    )
