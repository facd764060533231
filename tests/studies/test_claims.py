"""Claims from scores: numbers made up so that the right finding is plain."""

from __future__ import annotations

from typing import Any

import pytest

from expunge.attacks.base import ATTACKS, Attack, Measure
from expunge.record import Claim, Claimed, ClaimTest, Judged, Score
from expunge.studies.claim_findings import Findings, judge_all, resolves
from expunge.studies.claim_words import said
from expunge.studies.claims import _facts, _gather, claims

PROBLEM = {"name": "p", "family": "classifier", "train_digest": "t1", "forget_digest": "f1"}
KNOWS = {"retain": 0.99, "test": 0.95, "forget": 0.98, "mia": 0.80, "holdout": 0.30}
RETRAINED = {"retain": 0.99, "test": 0.95, "forget": 0.30, "mia": 0.50, "holdout": 0.30}
SPREAD = (-0.01, 0.0, 0.01, -0.005, 0.005)


def model(
    method: str, values: dict[str, float | None], seed: int = 0, shift: float = 0.0, **facts: Any
) -> Judged:
    scores = []
    for name, value in values.items():
        metric, split = ("mia-loss-logistic", "forget") if name == "mia" else ("accuracy", name)
        missing: dict[str, Any] = (
            {} if value is not None else {"status": "undefined", "reason": "nothing to attack"}
        )
        scores.append(
            Score(
                metric=metric, split=split, unit="share", direction="match", attack=name == "mia",
                value=None if value is None else value + shift, **missing,
            )  # type: ignore[arg-type]
        )  # fmt: skip
    return Judged(
        problem="p", problem_id="x", method=method, label=method if method in ("retrain", "target") else "m", seed=seed,
        model_id=str(facts.pop("model_id", method)), scores=scores, **facts,
    )  # fmt: skip  # type: ignore[arg-type]


def claim(values: dict[str, float | None], references: int = 5, target: bool = True, **facts: Any) -> Claim:
    judged = [model("target", dict(KNOWS))] if target else []
    judged += [model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(references)]
    found = claims(PROBLEM, [*judged, model("audited", values, **facts)])
    return next(c for c in found if c.label == "m")


def finding(found: Claim, kind: str) -> str:
    return next(t.finding for t in found.tests if t.kind == kind)


def test_the_target_has_not_forgotten() -> None:
    found = claims(
        PROBLEM,
        [model("target", dict(KNOWS)), *(model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(5))],
    )
    assert [c.label for c in found] == ["target"]  # retraining is the yardstick and claims nothing
    assert (found[0].standing, found[0].residue) == ("not forgotten", "found")
    assert finding(found[0], "output") == "residue" and finding(found[0], "membership") == "residue"


def test_the_targets_weights_under_another_name_have_not_forgotten_whatever_they_score() -> None:
    found = claim(dict(RETRAINED), model_id="target")
    assert found.standing == "not forgotten"
    assert "nothing was forgotten" in found.breaks[0]


def test_as_retrained_in_all_that_was_run_and_what_was_not_run_is_named() -> None:
    found = claim(dict(RETRAINED))
    assert (found.standing, found.residue) == ("suppression", "inconclusive")
    assert found.levels["removal"] == "undecided" and not found.breaks
    assert any(line.startswith("relearning: no such test was run") for line in found.missing)
    assert any("accuracy on forget: 30 %, retrained 30 %" in line for line in found.supports)


@pytest.mark.parametrize("claimed", ["removal", "suppression", "exact"])
def test_a_destroyed_model_never_passes(claimed: Claimed) -> None:
    found = claim({**RETRAINED, "retain": 0.1, "test": 0.1}, claimed=claimed, guarantee="bitwise")
    assert found.standing == "damaged" and found.levels["utility"] == "contradicted"


def test_membership_on_either_side_contradicts_removal_but_not_suppression() -> None:
    for mia in (0.9, 0.1):
        found = claim({**RETRAINED, "mia": mia})
        assert found.levels["removal"] == "contradicted" and found.standing == "suppression"
        assert found.residue == "found"
        assert any(line.startswith("membership") for line in found.breaks)


def test_a_model_that_says_less_than_retrained_ones_is_called_suppression() -> None:
    found = claim({**RETRAINED, "forget": 0.0})
    assert finding(found, "output") == "away"
    assert found.standing == "suppression" and found.levels["removal"] == "contradicted"


def test_an_output_filter_is_suppression_at_most() -> None:
    found = claim(dict(RETRAINED), keeps_target=True)
    assert found.standing == "suppression" and found.residue == "found"
    assert found.levels["removal"] == "contradicted"
    assert "who holds it holds them" in found.breaks[0]


def test_exact_needs_a_record_of_these_weights() -> None:
    assert claim(dict(RETRAINED), claimed="exact").standing == "suppression"
    proven = claim(dict(RETRAINED), claimed="exact", guarantee="bitwise")
    assert proven.standing == "exact"
    assert "t1" in proven.sentence and "f1" in proven.sentence and "bitwise" in proven.sentence
    assert claim(dict(KNOWS), claimed="exact", guarantee="bitwise").standing == "not forgotten"
    assert claim(dict(RETRAINED), guarantee="certified (1, 1e-5)").claimed == "removal"


def test_what_is_undefined_is_missing_with_its_reason_and_never_a_number() -> None:
    found = claim({**RETRAINED, "mia": None})
    test = next(t for t in found.tests if t.kind == "membership")
    assert test.finding == "missing" and test.unlearned is None and test.excess is None
    assert any("undefined: nothing to attack" in line for line in found.missing)


def test_what_has_no_meaning_here_is_not_needed_beside_another_of_its_kind_but_what_failed_is() -> None:
    for status, needed in (("undefined", False), ("not_applicable", False), ("failed", True)):
        fine = model("audited", dict(RETRAINED))
        other = Score(
            metric="mia-text-min-k",
            split="forget",
            unit="share",
            direction="match",
            attack=True,
            status=status,
            reason="so",
        )  # type: ignore[arg-type]
        judged = [fine.model_copy(update={"scores": [*fine.scores, other]})]
        everyone = [
            model("target", dict(KNOWS)),
            *(model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(5)),
        ]
        found = Findings(judged, everyone[:1], everyone[1:])
        _gather(found, "classifier", "removal")
        judge_all(found)
        tests = [(t.metric, bool(f.needed)) for t, f in zip(found.tests, _facts(found), strict=True)]
        assert ("mia-loss-logistic", True) in tests and ("mia-text-min-k", needed) in tests


def test_without_retrained_models_only_refusals_and_proxies_are_left() -> None:
    found = claim(dict(RETRAINED), references=0)
    assert found.standing == "undecided" and found.residue == "inconclusive"
    assert "no retrained model was given" in found.proxies[0]
    still = claim(dict(KNOWS), references=0)
    assert still.standing == "not forgotten"  # as the target is on rows that only training explains
    assert any(line.startswith("rest on proxies: ") for line in still.proxies)
    said = next(line for line in still.breaks if line.startswith("output: "))
    assert said.startswith("output: as much as the target") and "retrained models (" not in said
    assert claim({**RETRAINED, "retain": 0.2}, references=0).standing == "damaged"
    alone = claim(dict(KNOWS), references=0, target=False)
    assert alone.standing == "undecided"
    assert any("give --target and --reference" in line for line in alone.proxies)
    one = claim(dict(RETRAINED), references=1)
    assert one.standing == "undecided" and "one retrained model has no spread" in one.proxies[0]


def test_without_a_positive_control_nothing_is_cleared() -> None:
    alike = {**RETRAINED, "mia": 0.51}  # a target that no test tells from retrained models
    judged = [model("target", alike), *(model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(5))]
    found = claims(PROBLEM, [*judged, model("audited", dict(RETRAINED))])[-1]
    assert found.residue == "inconclusive" and found.levels["removal"] == "undecided"
    assert any("do not tell the target from retrained models" in line for line in found.missing)
    lone = claim(dict(RETRAINED), target=False)
    assert any("the target was not given" in line for line in lone.missing)


def test_failed_seeds_leave_the_claim_undecided() -> None:
    judged = [
        model("target", dict(KNOWS)),
        *(model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(5)),
    ]
    mine = [model("audited", {**RETRAINED, "mia": None if i == 2 else 0.5}, i, SPREAD[i]) for i in range(3)]
    found = claims(PROBLEM, [*judged, *mine])[-1]
    test = next(t for t in found.tests if t.kind == "membership")
    assert test.finding == "undecided" and test.reason == "for 1 of 3 models undefined: nothing to attack"


def test_the_adjustment_is_over_all_tests_but_utility() -> None:
    found = claim({**RETRAINED, "mia": 0.58})
    tests = {t.kind: t.p for t in found.tests if t.kind in ("output", "membership")}
    # se = 0.0125 sqrt(6/5) = 0.013693, t = (0.08 - 0.05) / se = 2.1909, df 4: 0.04681 on a side, 0.09362 on both,
    # of two tests 0.18724.
    assert tests["membership"] == pytest.approx(0.18724, abs=1e-4)
    assert tests["output"] is not None and tests["output"] >= tests["membership"]


def test_no_sentence_says_deleted() -> None:
    for values in (KNOWS, RETRAINED, {**RETRAINED, "retain": 0.1}):
        text = claim(dict(values)).model_dump_json().lower()
        assert not any(word in text for word in ("deleted", "erased", "gone"))


def test_a_measure_in_which_retrained_models_differ_too_much_does_not_stand_in_the_way() -> None:
    """Spread 0.2 at a margin of 0.05: no single model could be told apart by it, whatever it scores."""
    wide = [{**RETRAINED, "mia": 0.5 + x} for x in (-0.3, -0.1, 0.0, 0.1, 0.3)]
    retrained = [model("retrain", dict(values), i) for i, values in enumerate(wide)]
    found = Findings([model("audited", {**RETRAINED, "mia": 0.6})], [model("target", dict(KNOWS))], retrained)
    _gather(found, "classifier", "removal")
    judge_all(found)
    i = next(k for k, t in enumerate(found.tests) if t.metric == "mia-loss-logistic")
    assert found.tests[i].finding == "undecided" and not resolves(found.tests[i])
    assert "differ too much from one another" in found.tests[i].reason
    assert _facts(found)[i].needed == ("removal",)  # it is the only one of its kind: nothing else could tell
    found.tests.append(
        found.tests[i].model_copy(update={"finding": "none", "interval": None, "metric": "lira-auc"})
    )
    found.kinds.append(found.kinds[i])
    assert _facts(found)[i].needed == ("removal",)  # and one without an interval could not either
    tight = found.tests[0].interval
    found.tests[-1] = found.tests[-1].model_copy(update={"interval": tight})
    assert _facts(found)[i].needed == ()


def test_less_than_retrained_models_is_not_called_more() -> None:
    # A target that knows all has nothing for an attack to bring back, and so has a model that forgot nothing.
    test = ClaimTest(
        kind="output", metric="mae", split="forget", finding="residue", needed=True, unit="years",
        original=0.0, unlearned=0.1, reference=0.9, excess=-0.8, margin=0.1,
    )  # fmt: skip
    assert said(test).startswith("output: nearer to the target than retrained models are (mae")
    assert said(test.model_copy(update={"excess": 0.8})).startswith(
        "output: more than from retrained models ("
    )


def attacked(
    values: dict[str, float], name: str, value: float, seed: int = 0, shift: float = 0.0, **facts: Any
) -> Judged:
    """A model with the score of one attack beside what `model` gives it."""
    made = model(facts.pop("method", "audited"), dict(values), seed, shift, **facts)
    score = Score(
        metric=name, split="forget", unit="share", direction="match", attack=True, value=value + shift
    )  # type: ignore[arg-type]
    return made.model_copy(update={"scores": [*made.scores, score]})


def claim_of_attack(name: str, target: float, retrained: float, ours: float) -> tuple[Claim, ClaimTest]:
    judged = [
        attacked(KNOWS, name, target, method="target"),
        *(attacked(RETRAINED, name, retrained, i, SPREAD[i], method="retrain") for i in range(5)),
        attacked(RETRAINED, name, ours),
    ]
    found = next(c for c in claims(PROBLEM, judged) if c.label == "m")
    return found, next(t for t in found.tests if t.metric == name)


@pytest.mark.parametrize(
    "name", ["lira-auc", "u-lira-auc", "population-mia-auc", "inversion-accuracy", "self-report-knows"]
)
def test_whatever_attack_finds_more_than_in_retrained_models_contradicts_removal(name: str) -> None:
    found, test = claim_of_attack(name, 0.99, 0.5, 0.99)
    assert (
        test.finding == "residue" and found.levels["removal"] == "contradicted" and found.residue == "found"
    )
    clean, test = claim_of_attack(name, 0.99, 0.5, 0.5)
    assert test.finding == "none" and clean.levels["removal"] != "contradicted"


def test_an_attack_of_ones_own_counts_and_is_named_where_it_fails() -> None:
    class Ours(Attack):
        """Two numbers out of nothing."""

        name = "test-claims-ours"
        paper = "none"
        threat_model = "none"
        access = "text"
        measures = (
            Measure("test-claims-ours-found", "found", "share", margin=0.1),
            Measure("test-claims-ours-other", "beside it", "share"),
        )

        def run(self, scene: Any) -> list[Score]:
            return self.unanswered("undefined", "it only has scores that others made up")

    try:
        found, test = claim_of_attack("test-claims-ours-found", 0.9, 0.1, 0.9)
        assert test.finding == "residue" and test.kind == "test-claims-ours" and not test.needed
        assert found.standing == "not forgotten"  # it reads text: whoever asks gets it
        broken = model("audited", dict(RETRAINED))
        broken = broken.model_copy(
            update={"scores": [*broken.scores, *Ours().unanswered("failed", "out of ideas")]}
        )
        others = [
            model("target", dict(KNOWS)),
            *(model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(5)),
        ]
        found = next(c for c in claims(PROBLEM, [*others, broken]) if c.label == "m")
        assert any(
            line == "test-claims-ours: test-claims-ours-found on forget: failed: out of ideas"
            for line in found.missing
        )
    finally:
        ATTACKS._items.pop("test-claims-ours")


def test_an_attack_that_fails_without_a_margin_is_named_too() -> None:
    broken = model("audited", dict(RETRAINED))
    failed = ATTACKS["watermark"]().unanswered("failed", "the mark is gone astray")
    broken = broken.model_copy(update={"scores": [*broken.scores, *failed]})
    others = [
        model("target", dict(KNOWS)),
        *(model("retrain", dict(RETRAINED), i, SPREAD[i]) for i in range(5)),
    ]
    found = next(c for c in claims(PROBLEM, [*others, broken]) if c.label == "m")
    assert "watermark: the mark is gone astray" in found.missing


def test_bringing_back_less_than_retrained_models_is_no_residue() -> None:
    # The target knows all before and after its head is fitted again, so that nothing rises; retrained models rise by 0.6.
    found, test = claim_of_attack("head-refit-rise", 0.0, 0.6, 0.0)
    assert test.finding in ("none", "away") and found.levels["removal"] != "contradicted"
    found, test = claim_of_attack("head-refit-rise", 0.0, 0.6, 0.95)
    assert test.finding == "residue" and found.levels["removal"] == "contradicted"


def test_a_record_that_anybody_can_write_is_exact_only_where_tests_could_have_contradicted_it() -> None:
    for references in (0, 1):
        forged = claim(dict(RETRAINED), references=references, claimed="exact", guarantee="bitwise")
        assert forged.standing == "undecided" and forged.levels["exact"] == "undecided"
        assert any("which anybody can write" in line for line in forged.missing)
    ours = [
        model("target", dict(KNOWS)),
        model("sisa", dict(RETRAINED), guarantee="bitwise", claimed="exact"),
    ]
    assert claims(PROBLEM, ours)[-1].standing == "exact"  # made here, by code that is known


def test_what_cannot_be_run_on_a_family_is_no_requirement_of_it() -> None:
    found = Findings([model("audited", dict(RETRAINED))], [model("target", dict(KNOWS))], [])
    _gather(found, "estimator", "removal")
    kinds = {t.kind for t in found.tests}
    assert "relearning" not in kinds and "quantization" not in kinds  # they work on weights
    _gather(again := Findings(found.ours, found.targets, []), "classifier", "removal")
    assert {"relearning", "quantization"} <= {t.kind for t in again.tests}
