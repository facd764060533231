"""What each test of a model found: scores of three kinds of models in, findings out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from expunge.record import Claimed, ClaimTest, Judged, Score, mean_of
from expunge.stats.claims import Finding, Utility
from expunge.stats.equivalence import ALPHA, default_margin
from expunge.stats.excess import RESOLUTION, Excess, excess
from expunge.stats.multiplicity import holm

ERRORS = frozenset({"mae", "rmse", "mean-loss"})
"""Metrics of which less means that more is known."""


@dataclass(frozen=True)
class Kind:
    """A kind of test, and which claims cannot stand without one."""

    name: str
    metrics: tuple[str, ...]
    """Patterns of metric names, which begin with the attack's."""
    needed: tuple[Claimed, ...] = ()
    attacks: tuple[str, ...] = ()
    """Attacks of which one is needed, as far as there are any for the family."""
    symmetric: bool = False


@dataclass
class Findings:
    """The tests of one label as they are gathered."""

    ours: Sequence[Judged]
    targets: Sequence[Judged]
    retrained: Sequence[Judged]
    tests: list[ClaimTest] = field(default_factory=list)
    orientations: list[int] = field(default_factory=list)
    """By test: 1 where an excess above 0 is knowledge, -1 where one below is."""
    kinds: list[Kind | None] = field(default_factory=list)
    excesses: list[Excess | None] = field(default_factory=list)

    def add(self, test: ClaimTest, kind: Kind | None, one: Excess | None = None) -> None:
        """Append a test with what is known of its difference."""
        self.tests.append(test)
        self.orientations.append(_orientation(test))
        self.kinds.append(kind)
        self.excesses.append(one)


def measured(
    found: Findings, name: str, metric: str, split: str, margin: float | None
) -> tuple[ClaimTest, Excess | None]:
    """The numbers of one test, and its difference from the retrained models where there is something to compare."""
    scores, original, theirs = (
        _scores(side, metric, split) for side in (found.ours, found.targets, found.retrained)
    )
    ours, before, references = (_values(side) for side in (scores, original, theirs))
    if margin is None and references + before:
        declared = default_margin(metric)
        margin = declared.value * (abs(mean_of(references or before)) if declared.relative else 1.0) or None
    test = ClaimTest(
        kind=name, metric=metric, split=split, unit=scores[0].unit if scores else "", finding="missing", needed=False,
        original=mean_of(before) if before else None, unlearned=mean_of(ours) if ours else None,
        reference=mean_of(references) if references else None, margin=margin, budget=scores[0].budget if scores else {},
    )  # fmt: skip
    reasons = list(dict.fromkeys(_reason(s) for s in scores if s.status != "ok"))
    compared, status = None, "ok"
    if not ours:
        status = scores[0].status if scores else "not run"
        why = "; ".join(reasons) or "it was not measured"
    elif len(references) < 2:
        lost = next((s for s in theirs if s.status != "ok"), None)
        status = lost.status if lost else "undefined"
        have = f"there {'is 1' if len(references) == 1 else 'are none'}"
        why = (
            f"of retrained models {_reason(lost)}"
            if lost
            else f"at least 2 retrained models are needed, {have}"
        )
    elif margin is None:
        status = "undefined"
        why = "the retrained models' mean is 0, and so is a margin relative to it"
    else:
        compared = excess(ours, references, margin)
        why = f"for {len(scores) - len(ours)} of {len(scores)} models {'; '.join(reasons)}" if reasons else ""
    test = test.model_copy(update={"reason": why, "status": status})
    if compared is None:
        return test, None
    known = {"finding": "undecided", "excess": compared.difference, "interval": compared.interval}
    return test.model_copy(update=known), compared


def _scores(models: Sequence[Judged], metric: str, split: str) -> list[Score]:
    return [s for j in models if (s := j.score(metric, split)) is not None]


def _values(scores: Sequence[Score]) -> list[float]:
    return [s.value for s in scores if s.value is not None]


def _reason(score: Score) -> str:
    return f"{score.status.replace('_', ' ')}: {score.reason}"


def _orientation(test: ClaimTest) -> int:
    """Which sign of the excess is towards knowing more: the target's own side, where it stands out from the retrained models.

    Elsewhere more is more, and always of a rise: a target that knows all already has nothing for an attack to bring back, so
    its side of a rise is no side.
    """
    natural = -1 if test.metric in ERRORS else 1
    if (
        test.metric.endswith("-rise")
        or test.original is None
        or test.reference is None
        or test.margin is None
    ):
        return natural
    gap = test.original - test.reference
    return natural if abs(gap) <= test.margin else (1 if gap > 0 else -1)


def judge_all(found: Findings) -> None:
    """Turn differences into findings, with Holm's adjustment over all tests at once."""
    raw: list[float | None] = []
    for way, kind, one in zip(found.orientations, found.kinds, found.excesses, strict=True):
        both = kind is not None and kind.symmetric
        if one is None:
            raw.append(None)
        elif both:
            raw.append(min(1.0, 2 * min(one.p_more, one.p_less)))
        else:
            raw.append(one.p_more if way > 0 else one.p_less)
    for i, p in holm(dict(enumerate(raw))).items():
        one, test, way, kind = found.excesses[i], found.tests[i], found.orientations[i], found.kinds[i]
        if one is None or p is None:
            continue
        finding = _finding(one, test, way, p, symmetric=kind is not None and kind.symmetric)
        if finding == "none" and test.reason:
            finding = "undecided"  # some of the models have no value
        update: dict[str, Any] = {"finding": finding, "p": p}
        if finding == "undecided" and not test.reason and not resolves(test):
            update["reason"] = "the retrained models differ too much from one another for it to tell"
        found.tests[i] = test.model_copy(update=update)


def resolves(test: ClaimTest) -> bool:
    """Whether a single model could have been told apart: retrained ones lie within `RESOLUTION` margins of one another."""
    if test.interval is None or test.margin is None or not test.interval.method.startswith("prediction"):
        return test.interval is not None
    return (test.interval.high - test.interval.low) / 2 <= RESOLUTION * test.margin


def spared(test: ClaimTest, tests: Sequence[ClaimTest]) -> bool:
    """Whether a claim can do without a test: it has no meaning for these models (undefined, not applicable, or retrained
    models differ too much in it), and another of its kind could tell."""  # fmt: skip
    mute = test.finding == "missing" and test.status in ("undefined", "not_applicable")
    mute = mute or (test.finding == "undecided" and not resolves(test))
    return mute and any(t.kind == test.kind and t.finding != "missing" and resolves(t) for t in tests)


def left_open(tests: Sequence[ClaimTest]) -> list[str]:
    """Names of the tests of a claim that neither found nor excluded a residue and that it cannot do without."""
    unsure = [t for t in tests if t.needed and t.finding in ("undecided", "missing") and not spared(t, tests)]
    return [f"{t.metric} on {t.split}" if t.kind == "utility" else t.metric or t.kind for t in unsure]


def _finding(one: Excess, test: ClaimTest, way: int, p: float, *, symmetric: bool) -> Finding:
    if p <= ALPHA:
        return "residue" if one.difference * way > 0 else "away"
    if not symmetric and (one.p_less if way > 0 else one.p_more) <= ALPHA:
        return "away"
    if one.judgement == "no larger difference":
        return "none"
    # An attack that brings back less than from retrained models need not be as bad at it as at them.
    if test.kind != "output" and not symmetric and _at_most(one, test, way):
        return "none"
    return "undecided"


def _at_most(one: Excess, test: ClaimTest, way: int) -> bool:
    """Whether the excess towards the target is within the margin, however far it lies on the other side."""
    assert test.margin is not None
    interval = one.interval
    if interval.method.startswith("prediction"):
        half = (interval.high - interval.low) / 2
        return one.difference * way <= max(test.margin, half) and half <= RESOLUTION * test.margin
    return (interval.high if way > 0 else -interval.low) <= test.margin


def by_proxy(found: Findings, test: ClaimTest) -> ClaimTest:
    """Without retrained models: whether what only training on the rows can explain is still there.

    The target's own value on rows that it was never trained on stands for a retrained model's. Where it falls short of that on
    the forget set by more than the margin, a model that is still at the target's level has not forgotten. Nothing else
    follows.
    """
    elsewhere = [
        s.value for split in ("holdout", "test") for j in found.targets
        if (s := j.score(test.metric, split)) is not None and s.value is not None
    ]  # fmt: skip
    if test.original is None or test.unlearned is None or test.margin is None or not elsewhere:
        return test
    sign = -1 if test.metric in ERRORS else 1
    memorized = (test.original - elsewhere[0]) * sign > test.margin
    if memorized and (test.unlearned - test.original) * sign >= -test.margin:
        why = "compared with the target's value on rows that it was never trained on, for want of retrained models"
        return test.model_copy(update={"finding": "residue", "proxy": True, "reason": why})
    return test


def utility(found: Findings, metric: str, split: str) -> ClaimTest | None:
    """Whether a number is at least as good as in retrained models; without those, only whether it is far below the target's."""
    if not any(j.score(metric, split) is not None for j in found.ours):
        return None
    test, one = measured(found, "utility", metric, split, None)
    sign = -1 if metric in ERRORS else 1
    update: dict[str, Any] = {"needed": True}
    if one is not None and test.margin is not None:
        p_worse = one.p_less if sign > 0 else one.p_more
        kept = one.judgement == "no larger difference" or _at_most(one, test, -sign)
        update["finding"] = (
            "damaged" if p_worse <= ALPHA else "kept" if kept and not test.reason else "undecided"
        )
        update["p"] = p_worse
    elif test.unlearned is not None and test.margin:
        against = test.original if test.reference is None else test.reference
        if against is not None:
            worse = (against - test.unlearned) * sign > 2 * test.margin
            update |= {
                "finding": "damaged" if worse else "undecided",
                "proxy": True,
                "excess": test.unlearned - against,
            }
    return test.model_copy(update=update)


def together(tests: Sequence[ClaimTest]) -> Utility:
    """All utility tests as one finding."""
    found = {t.finding for t in tests if t.finding != "missing"}
    if not found:
        return "missing"
    if "damaged" in found:
        return "damaged"
    return "kept" if found == {"kept"} else "undecided"
