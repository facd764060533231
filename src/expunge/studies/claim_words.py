"""What a claim says. No sentence says more than was tested, and none says that something is gone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

from expunge.record import ClaimTest, Standing
from expunge.stats.claims import Conclusion, Facts

HEADLINES: dict[Standing, str] = {
    "exact": "The run record of these parameters says that they were made without the records{by} ({guarantee}; fingerprints of "
    "training data and request {data}, {asked}).",
    "removal": "Within the tested budgets ({budgets}) no recovery beyond the retrained models was found.",
    "suppression": "Under the tests that were run the content is produced no more than by retrained models; the parameters may "
    "still contain it.",
    "not forgotten": "What was to be forgotten is still there.",
    "damaged": "The model lost its use; whether it forgot anything is not a question that can be asked of it.",
    "undecided": "What was run does not support any claim.",
}
"""The claim as it may be quoted."""


class Statements(NamedTuple):
    """Sentences about a claim, by what they are for."""

    supports: list[str]
    breaks: list[str]
    missing: list[str]
    proxies: list[str]


def statements(
    facts: Facts,
    conclusion: Conclusion,
    tests: Sequence[ClaimTest],
    references: int,
    has_target: bool,
    recorded: bool,
) -> Statements:
    """Everything that stands under the headline; `recorded`, whether some record names an exact guarantee."""
    supports, breaks, missing, proxies = [], [], [], []
    if facts.is_target:
        breaks.append("its weights are the target's, bit by bit: nothing was forgotten")
    if facts.keeps_target:
        breaks.append(
            "the target's own weights stand in it, behind a filter or beside an adapter: who holds it holds them"
        )
    if facts.exact_by_construction and conclusion.levels["exact"] == "supported":
        supports.append("the record beside these very weights names a method whose guarantee is exact")
    elif facts.claimed == "exact" and not facts.exact_by_construction:
        missing.append(
            "a record beside these weights names a method with an exact guarantee, which anybody can write: without tests that "
            "tell the target from two or more retrained models nothing could contradict it"
            if recorded
            else "no record ties these weights to a method with an exact guarantee"
        )
    for test in tests:
        where = breaks if test.finding in ("residue", "damaged") else None
        if test.finding in ("none", "kept"):
            where = supports
        elif test.finding in ("undecided", "missing"):
            where = missing
        elif test.finding == "away":
            where = breaks if test.kind in ("output", "membership") else supports
        if where is not None:
            where.append(said(test))
    blind = [level for level in ("removal", "suppression") if level not in facts.sensitive]
    if references >= 2 and blind:
        missing.append(
            f"the tests that {' and '.join(blind)} would need do not tell the target from retrained models: that they find "
            "nothing here means nothing"
            if has_target
            else "the target was not given, so nobody knows whether these tests would tell it from retrained models"
        )
    if references < 2:
        proxies += _without_references(tests, references, has_target)
    return Statements(supports, breaks, missing, proxies)


def _without_references(tests: Sequence[ClaimTest], references: int, has_target: bool) -> list[str]:
    have = "one retrained model has no spread to judge by" if references else "no retrained model was given"
    lines = [
        f"{have}: that the model is as if it had never seen the rows cannot be said, neither of its outputs nor of any attack"
    ]
    stated = [t for t in tests if t.proxy]
    if stated:
        lines.append(
            f"rest on proxies: {', '.join(dict.fromkeys(f'{t.metric} on {t.split}' for t in stated))}"
        )
    elif not has_target:
        lines.append(
            "without the target either, nothing can be said of what was forgotten; give --target and --reference"
        )
    return lines


def said(test: ClaimTest) -> str:
    """One test in one sentence, with its numbers, margin and budget."""
    name = f"{test.metric} on {test.split}" if test.metric else test.kind
    if test.finding == "missing":
        return f"{test.kind}: {name}: {test.reason}" if test.metric else f"{test.kind}: {test.reason}"
    numbers = _numbers(test)
    spent = f" at {shown_budget(test.budget)}" if test.budget else ""
    verb = {
        "none": f"{test.kind}: not more than from retrained models{spent}",
        "kept": f"{test.kind}: not worse than retrained models",
        "away": f"{test.kind}: different from retrained models, away from the target{spent}",
        "residue": f"{test.kind}: {_more(test)}{spent}",
        "damaged": f"{test.kind}: worse than {'the target' if test.proxy and test.reference is None else 'retrained models'}",
        "undecided": f"{test.kind}: undecided{spent}",
    }[test.finding]
    also = f"; {test.reason}" if test.reason else ""
    return f"{verb} ({name}: {numbers}{also})"


def _more(test: ClaimTest) -> str:
    """What is known beyond retraining, whichever way the number runs: less error, or nothing for an attack to bring back."""
    if test.proxy:
        return "as much as the target, which was trained on the rows, and more than it knows of others"
    if test.excess is not None and test.excess < 0:
        return "nearer to the target than retrained models are"
    return "more than from retrained models"


def _numbers(test: ClaimTest) -> str:
    parts = [f"{number(test.unlearned, test.unit)}"]
    if test.reference is not None:
        parts.append(f"retrained {number(test.reference, test.unit)}")
    elif test.original is not None:
        parts.append(f"target {number(test.original, test.unit)}")
    if test.interval is not None:
        ends = f"{number(test.interval.low, test.unit)} to {number(test.interval.high, test.unit)}"
        parts.append(f"excess {ends}")
    if test.margin is not None:
        parts.append(f"margin {number(test.margin, test.unit)}")
    return ", ".join(parts)


def number(value: float | None, unit: str) -> str:
    """A value with its unit in a sentence; never 0 for what is not there."""
    if value is None:
        return "undefined"
    return f"{100 * value:.3g} %" if unit == "share" else f"{value:.3g} {unit}".strip()


def shown_budget(budget: Mapping[str, float]) -> str:
    """``300 steps, 16 rows per step``."""
    return ", ".join(f"{amount:g} {unit}" for unit, amount in budget.items())


def limits(tests: Sequence[ClaimTest]) -> str:
    """What attackers could spend, by attack, of the tests that have a value."""
    made = [t for t in tests if t.finding in ("none", "away") and t.kind not in ("utility", "output")]
    by_kind = {t.kind: shown_budget(t.budget) for t in made}
    return "; ".join(f"{kind}{': ' if spent else ''}{spent}" for kind, spent in by_kind.items())
