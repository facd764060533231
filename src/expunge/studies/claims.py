"""From scores to claims: which tests there are, what each found, and what may be said in the end.

The judging is `expunge.stats.claims.conclude`; here scores become findings, and findings become sentences.
"""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from typing import Any

from expunge.attacks.base import ATTACKS, Attack, Measure, find_measure
from expunge.families import FAMILIES
from expunge.methods.base import METHODS, Method
from expunge.record import Claim, Claimed, ClaimTest, Judged, Support
from expunge.stats.claims import Facts, Finding, Test, Utility, conclude, tells
from expunge.studies.claim_findings import (
    Findings,
    Kind,
    by_proxy,
    judge_all,
    measured,
    spared,
    together,
    utility,
)
from expunge.studies.claim_words import HEADLINES, limits, statements

UTILITY = (
    *((metric, split) for metric in ("accuracy", "mae") for split in ("retain", "test")),
    *((metric, "retain") for metric in ("probability", "rouge-l-recall")),
    *((f"{domain}-domain-retain-accuracy", "test") for domain in ("in", "cross")),
    ("coverage", "test"),
)
"""What must not be worse than in retrained models."""
OUTPUT = (
    *((metric, "forget") for metric in ("accuracy", "mae", "probability", "rouge-l-recall")),
    *((metric, "concept") for metric in ("unlearning-accuracy", "concept-probability")),
    ("undesired-rate", "samples"),
)
"""Plain behavior on what was to be forgotten."""
MEMBERSHIP = (("mia-loss-logistic", "forget"), ("mia-text-min-k", "forget"))

KINDS = (
    Kind("membership", ("mia-*", "population-mia*", "lira*", "u-lira*", "gradient-norm*", "gaussian-poison*", "watermark*"),
         ("removal",), symmetric=True),
    Kind("relearning", ("relearning*",), ("removal",), ("relearning",)),
    Kind("quantization", ("quantization*",), ("removal",), ("quantization",)),
    Kind("inner layers", ("logit-lens*", "linear-probe*", "head-refit*", "activation-patching*", "concept-vectors*"),
         ("removal",), ("linear-probe", "head-refit", "logit-lens", "activation-patching")),
    Kind("prompting", ("prompts*", "in-context*", "soft-prompt*", "gcg*", "fact-asymmetry*", "unlearndiffatk*", "p4d*",
                       "ring-a-bell*"), ("removal", "suppression"), ("prompts", "unlearndiffatk", "ring-a-bell")),
    Kind("sampling", ("extraction*",), ("removal", "suppression"), ("extraction",)),
    Kind("pruning", ("pruning*",)),
    Kind("perturbation", ("activation-perturbation*", "direction-ablation*")),
    Kind("guard", ("detach-guard*",)),
    Kind("inversion", ("inversion*", "concept-inversion*")),
)  # fmt: skip
"""Kinds of tests other than output and utility, in the order of tables; an attack of none of them is a kind of its own."""


GATE: dict[Utility, Support] = {
    "kept": "supported", "damaged": "contradicted", "undecided": "undecided", "missing": "undecided",
}  # fmt: skip


def claims(problem: dict[str, Any], judged: Sequence[Judged]) -> list[Claim]:
    """One claim per method of `problem`, over all its seeds; `judged` are the models of this problem."""
    ran = [j for j in judged if j.status == "ok"]
    retrained = [j for j in ran if j.method == "retrain"]
    targets = [j for j in ran if j.method == "target"]
    labels = dict.fromkeys(j.label for j in judged if j.method != "retrain" and j.status != "not_applicable")
    control = Findings(targets, targets, retrained)
    _gather(control, problem.get("family", ""), "removal")
    judge_all(control)
    seen = _facts(control)
    sensitive: list[Claimed] = ["removal"] if any(tells(test) for test in seen) else []
    if any(test.said and test.finding == "residue" for test in seen):
        sensitive.append("suppression")
    return [
        _claim(problem, label, [j for j in judged if j.label == label], targets, retrained, sensitive)
        for label in labels
    ]


def intent(judged: Judged) -> tuple[Claimed, str]:
    """What is claimed of a model, and the guarantee it rests on: the record's own, else what its method declares."""
    guarantee = judged.guarantee
    claimed = judged.claimed
    if judged.method in METHODS:
        method = METHODS[judged.method]
        guarantee = guarantee or method.guarantee
        claimed = claimed or claimed_of(None, method)
    return claimed or "removal", guarantee


def claimed_of(stated: Claimed | None, method: Method | type[Method] | None) -> Claimed | None:
    """What is claimed of a model that `method` made: what was stated, else what such methods claim; None where nobody knows."""
    if stated is not None or method is None:
        return stated
    return "exact" if _is_exact(method.guarantee) else method.claims


def _is_exact(guarantee: str) -> bool:
    """Guarantees of the whole model; ``certified`` ones bound a leak and say nothing about equality."""
    return guarantee.startswith(("bitwise", "numeric", "distributional")) and "alone" not in guarantee


def _claim(
    problem: dict[str, Any], label: str, models: Sequence[Judged], targets: Sequence[Judged], retrained: Sequence[Judged],
    sensitive: Sequence[Claimed],
) -> Claim:  # fmt: skip
    first = models[0]
    claimed, guarantee = intent(first)
    ours = [m for m in models if m.status == "ok"]
    found = Findings(ours, targets, retrained)
    kept = [t for key in UTILITY if (t := utility(found, *key)) is not None]
    _gather(found, problem.get("family", ""), claimed)
    judge_all(found)
    weights = {t.model_id for t in targets} - {None}
    recorded = _is_exact(guarantee) and bool(ours) and (first.method in METHODS or bool(first.guarantee))
    # What this study made itself it knows; a record that came with a model has to stand where it could have fallen.
    contradictable = len(retrained) > 1 and "removal" in sensitive
    facts = Facts(
        claimed=claimed,
        utility=together(kept),
        tests=_facts(found),
        is_target=first.method == "target" or any(m.model_id in weights for m in ours),
        keeps_target=any(m.keeps_target for m in ours),
        sensitive=sensitive,
        exact_by_construction=recorded and (first.method in METHODS or contradictable),
    )
    conclusion = conclude(facts)
    tests = [*kept, *found.tests]
    words = statements(facts, conclusion, tests, len(retrained), bool(targets), recorded)
    missing = words.missing + [f"seed {m.seed}: {m.status}: {m.reason}" for m in models if m.status != "ok"]
    return Claim(
        problem=problem["name"], label=label, claimed=claimed, standing=conclusion.standing, residue=conclusion.residue,
        levels={"utility": GATE[facts.utility], **conclusion.levels},
        sentence=HEADLINES[conclusion.standing].format(
            budgets=limits(tests) or "none", guarantee=guarantee or "none",
            by=f" by {first.method}" if first.method in METHODS else "",
            data=problem.get("train_digest", "unknown"), asked=problem.get("forget_digest", "unknown"),
        ),
        supports=words.supports, breaks=words.breaks, missing=missing, proxies=words.proxies, tests=tests,
    )  # fmt: skip


def _gather(found: Findings, family: str, claimed: Claimed) -> None:
    """Every test of what was to be forgotten: output, membership, attacks; and those kinds that are needed and not there."""
    there = {(s.metric, s.split) for j in found.ours for s in j.scores}
    measures = [
        hit
        for name in dict.fromkeys(s.metric for j in found.ours for s in j.scores if s.attack)
        if (hit := find_measure(name)) is not None and hit[1].margin is not None
    ]
    for metric, split in OUTPUT:
        if (metric, split) in there:
            test, one = measured(found, "output", metric, split, None)
            test = test if one is not None else by_proxy(found, test)
            found.add(test.model_copy(update={"needed": claimed != "exact"}), None, one)
    if not found.tests:
        nothing = "no metric of the plain behavior on the forget set was computed"
        found.add(_absent("output", nothing, claimed != "exact"), None)
    for kind in KINDS:
        keys = [(m, s, None) for m, s in MEMBERSHIP if (m, s) in there and _of(kind, m)]
        keys += [(m.name, m.split, m.margin) for _, m in measures if _of(kind, m.name)]
        for metric, split, margin in keys:
            test, one = measured(found, kind.name, metric, split, margin)
            found.add(test.model_copy(update={"needed": claimed in kind.needed}), kind, one)
        attacks = _fitting(kind, family)
        if not keys and kind.needed and (attacks or not kind.attacks):
            how = f"; --attacks {','.join(attacks)} would" if attacks else ""
            ran = any(_of(kind, metric) for metric, _ in there)
            why = "what was run has no margin to be judged by" if ran else f"no such test was run{how}"
            found.add(_absent(kind.name, why, claimed in kind.needed), kind)
    _add_others(found, measures)


def _add_others(found: Findings, measures: Sequence[tuple[type[Attack], Measure]]) -> None:
    """Attacks of no known kind, such as a user's own, and attacks that failed where their kind is not needed."""
    for attack, measure in measures:
        if not any(_of(kind, measure.name) for kind in KINDS):
            test, one = measured(found, attack.name, measure.name, measure.split, measure.margin)
            found.add(test, Kind(attack.name, ()), one)
    told = {test.metric for test in found.tests}
    failed = {
        hit[0].name: score.reason
        for j in found.ours for score in j.scores
        if score.attack and score.status == "failed" and (hit := find_measure(score.metric)) is not None
        and not any(m.name in told for m in hit[0].measures)
    }  # fmt: skip
    for name, reason in failed.items():
        test = _absent(name, reason, needed=False).model_copy(update={"status": "failed"})
        found.add(test, Kind(name, ()))


def _of(kind: Kind, metric: str) -> bool:
    return any(fnmatchcase(metric, pattern) for pattern in kind.metrics)


def _fitting(kind: Kind, family: str) -> list[str]:
    """Attacks of this kind that there are for the family: what nobody can run is no requirement."""
    known = [name for name in kind.attacks if name in ATTACKS]
    return [name for name in known if family not in FAMILIES or ATTACKS[name].fits(FAMILIES[family])]


def _absent(name: str, reason: str, needed: bool) -> ClaimTest:
    return ClaimTest(kind=name, metric="", finding="missing", status="not run", needed=needed, reason=reason)


def _facts(found: Findings) -> list[Test]:
    """The tests as the claim is judged on them; one that is spared is not needed, one that failed is."""
    made = []
    for test, kind in zip(found.tests, found.kinds, strict=True):
        levels: tuple[Claimed, ...] = ("removal", "suppression") if kind is None else kind.needed
        attack = find_measure(test.metric) if test.metric else None
        made.append(
            Test(
                finding=_plain(test),
                output=kind is None,
                symmetric=kind is not None and kind.symmetric,
                said=kind is None or (attack is not None and attack[0].access == "text"),
                needed=() if spared(test, found.tests) else levels,
            )
        )
    return made


def _plain(test: ClaimTest) -> Finding:
    assert test.finding != "kept" and test.finding != "damaged"  # those are of utility
    return test.finding
