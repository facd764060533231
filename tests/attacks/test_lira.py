"""LiRA and U-LiRA against closed forms, against worlds whose best attacker is known, and against their controls."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy import stats

import expunge
from expunge.attacks import Scene, Shadow
from expunge.attacks.lira import Gaussians, Lira, ULira, statistic_of
from expunge.attacks.shadows import ShadowModels
from expunge.errors import BadInput
from expunge.evidence import Evidence
from expunge.methods.base import METHODS
from expunge.metrics.base import Undefined
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing import tiny_problem


def auc(scores: list[Score]) -> Score:
    return next(s for s in scores if s.metric.endswith("-auc"))


def around(score: Score, value: float) -> bool:
    assert score.interval is not None
    return score.interval.low < value < score.interval.high


# Closed forms


def one(mean: float, deviation: float) -> Gaussians:
    return Gaussians(np.array([[mean]]), np.array([[deviation]]))


def test_the_likelihood_ratio_by_hand() -> None:
    # ln N(2; 2, 1) - ln N(2; 0, 1) = 0 + 2²/2 = 2, a posterior of 1 / (1 + e^-2) at even odds.
    ratio = one(2, 1).log_density(np.array([[2.0]])) - one(0, 1).log_density(np.array([[2.0]]))
    assert ratio == pytest.approx([2.0])
    assert 1 / (1 + math.exp(-ratio[0])) == pytest.approx(0.8808, abs=5e-5)


def test_one_sided_probabilities_by_hand() -> None:
    assert np.exp(one(0, 1).log_below(np.array([[1.0]]))) == pytest.approx([0.8413], abs=5e-5)
    # At least as far from 0 as -1, of N(0, 1): 2 (1 - 0.8413); of N(3, 2): P(> 1) + P(< -1) = 0.8413 + 0.0228.
    assert np.exp(one(0, 1).log_farther(np.array([[-1.0]]))) == pytest.approx([0.3173], abs=5e-5)
    assert np.exp(one(3, 2).log_farther(np.array([[-1.0]]))) == pytest.approx([0.8641], abs=5e-5)


def test_several_target_columns_are_independent() -> None:
    both = Gaussians(np.array([[0.0, 1.0]]), np.array([[1.0, 2.0]]))
    expected = stats.norm.logpdf(0.3, 0, 1) + stats.norm.logpdf(-1.0, 1, 2)
    assert both.log_density(np.array([[0.3, -1.0]])) == pytest.approx([expected])


@pytest.mark.parametrize("per_row", [True, False])
def test_gaussians_are_fitted_to_the_chosen_models(per_row: bool) -> None:
    rng = np.random.default_rng(0)
    values, chosen = rng.normal(3, 2, (9, 5, 1)), rng.random((9, 5)) < 0.6
    fitted = Gaussians.fit(values, chosen, per_row=per_row)
    mine = [values[chosen[:, row], row, 0] for row in range(5)]
    assert fitted.mean[:, 0] == pytest.approx([m.mean() for m in mine])
    if per_row:
        assert fitted.deviation[:, 0] == pytest.approx([m.std(ddof=1) for m in mine])
    else:
        squares, degrees = sum(((m - m.mean()) ** 2).sum() for m in mine), sum(len(m) - 1 for m in mine)
        assert fitted.deviation[:, 0] == pytest.approx([math.sqrt(squares / degrees)] * 5)


def test_nothing_to_calibrate_with_is_undefined() -> None:
    everyone = np.ones((4, 3), dtype=bool)
    with pytest.raises(Undefined, match="all shadow models say the same"):
        Gaussians.fit(np.ones((4, 3, 1)), everyone, per_row=True)
    with pytest.raises(Undefined, match="fewer than two shadow models on one side"):
        Gaussians.fit(np.ones((1, 3, 1)), everyone[:1], per_row=False)


# A world of Gaussian margins, where the best attacker is known


@dataclass
class Margins:
    """A scene whose margins are drawn, not measured: row i has N(c_i + 1.5, 1) where trained on, else N(c_i, 1)."""

    problem: Any
    said: dict[str, Evidence]
    shadows: list[Shadow] = field(default_factory=list)

    def evidence(self, split: str, quantities: list[str]) -> Evidence:
        return self.said[split]


SHIFT, ROWS = 1.5, 400


def margins(shadows: int, seed: int, *, labels: str = "true") -> Margins:
    """Forget rows are members of the attacked model, holdout rows are not; `labels` may be permuted."""
    rng = np.random.default_rng(seed)
    ids = {s: [f"{s}{i}" for i in range(ROWS)] for s in ("forget", "holdout")}
    difficulty = {s: rng.normal(0, 5, ROWS) for s in ids}

    def say(split: str, member: np.ndarray) -> Evidence:
        drawn = difficulty[split] + SHIFT * member + rng.normal(size=ROWS)
        return Evidence(pa.table({"id": ids[split], "margin": drawn}))

    made = Margins(
        tiny_problem("classifier"),
        {"forget": say("forget", np.ones(ROWS)), "holdout": say("holdout", np.zeros(ROWS))},
    )
    for _ in range(shadows // 2):
        drawn, other = ({s: rng.permutation(ROWS) < ROWS // 2 for s in ids} for _ in range(2))
        for side in (True, False):
            member = {s: d == side for s, d in drawn.items()}
            told = {s: other[s] == side for s in ids} if labels == "permuted" else member
            known = {i: bool(t) for s in ids for i, t in zip(ids[s], told[s], strict=True)}
            views = {s: say(s, member[s]) for s in ids}
            made.shadows.append(Shadow(known, views, views))
    return made


def test_with_many_shadows_it_is_the_best_attacker() -> None:
    # Two unit Gaussians 1.5 apart: AUC = P(difference of two unit normals < 1.5) = Phi(1.5 / sqrt 2).
    best = stats.norm.cdf(SHIFT / math.sqrt(2))
    for attack in (Lira(shadows=128, variance="row"), ULira(shadows=128, variance="global")):
        assert auc(attack.run(margins(128, 1))).value == pytest.approx(best, abs=0.03)  # type: ignore[arg-type]
    # The loss of a row alone, without calibration, is drowned by the spread of difficulties (5 against 1).
    said = margins(4, 1).said
    order = np.concatenate([said["forget"]["margin"], said["holdout"]["margin"]])
    uncalibrated = stats.mannwhitneyu(order[:ROWS], order[ROWS:]).statistic / ROWS**2
    assert uncalibrated < best - 0.15


def test_one_variance_for_all_rows_does_better_with_few_shadows() -> None:
    few = margins(8, 2)
    values = {v: auc(Lira(shadows=8, variance=v).run(few)).value for v in ("row", "global")}
    assert values["global"] > values["row"] + 0.02  # type: ignore[operator]
    assert auc(Lira(shadows=8).run(few)).value == values["global"]  # what 'auto' takes


def test_offline_ranks_by_models_without_the_row() -> None:
    scene = margins(64, 3)
    scores = Lira(shadows=64, variant="offline", variance="global").run(scene)
    best = stats.norm.cdf(SHIFT / math.sqrt(2))
    assert auc(scores).value == pytest.approx(best, abs=0.04)
    accuracy = next(s for s in scores if s.metric == "lira-accuracy")
    assert accuracy.status == "undefined" and "no threshold" in accuracy.reason


def test_accuracy_is_that_of_the_best_threshold() -> None:
    # Halfway between the two means, 0.75 from each: Phi(0.75) of either side are right.
    scores = Lira(shadows=128).run(margins(128, 4))
    accuracy = next(s.value for s in scores if s.metric == "lira-accuracy")
    assert accuracy == pytest.approx(stats.norm.cdf(SHIFT / 2), abs=0.03)


@pytest.mark.parametrize("attack", [Lira(shadows=16), ULira(shadows=16)])
def test_permuted_membership_labels_leave_nothing(attack: Lira) -> None:
    true, permuted = (auc(attack.run(margins(16, 5, labels=labels))) for labels in ("true", "permuted"))
    assert not around(true, 0.5)
    assert around(permuted, 0.5)


def test_rows_are_matched_by_id() -> None:
    scene = margins(16, 6)
    before = auc(Lira(shadows=16).run(scene)).value
    rng = np.random.default_rng(0)
    scene.said = {s: e.select(rng.permutation(ROWS)) for s, e in scene.said.items()}
    for i, shadow in enumerate(scene.shadows):
        turned = {k: e.select(rng.permutation(ROWS)) for k, e in shadow.before.items()}
        scene.shadows[i] = replace(shadow, before=turned)
    assert auc(Lira(shadows=16).run(scene)).value == pytest.approx(before, abs=1e-12)


# Real networks


def test_lira_finds_members_of_the_target(target_scene: Scene, shadows: ShadowModels) -> None:
    attack = Lira(shadows=8)
    found = auc(attack.attack(replace(target_scene, shadows=shadows.trained(attack))))
    assert found.interval is not None and found.interval.low > 0.7
    assert (found.n, found.split, found.attack, found.direction) == (40, "forget", True, "match")


def test_lira_finds_nothing_in_a_retrained_model(retrained_scene: Scene, shadows: ShadowModels) -> None:
    attack = Lira(shadows=8)
    assert around(auc(attack.attack(replace(retrained_scene, shadows=shadows.trained(attack)))), 0.5)


def test_u_lira_on_a_retrained_model_is_guessing(retrained_scene: Scene, shadows: ShadowModels) -> None:
    attack = ULira(shadows=8)
    unlearned = shadows.unlearned(attack, METHODS["retrain"]())
    assert around(auc(attack.attack(replace(retrained_scene, shadows=unlearned))), 0.5)


def test_u_lira_on_the_untouched_target_is_far_above(target_scene: Scene, shadows: ShadowModels) -> None:
    attack = ULira(shadows=8)
    untouched = [replace(s, after=s.before) for s in shadows.trained(attack)]
    found = auc(attack.attack(replace(target_scene, shadows=untouched)))
    assert found.interval is not None and found.interval.low > 0.7


def test_u_lira_sees_what_a_weak_method_leaves(memorized: Problem, shadows: ShadowModels) -> None:
    weak = METHODS["fine-tune"](epochs=1, lr=1e-4)
    model = expunge.forget(memorized, weak).model
    attack = ULira(shadows=8)
    found = auc(attack.attack(Scene(memorized, model, shadows=shadows.unlearned(attack, weak))))
    assert found.interval is not None and found.interval.low > 0.6


# Refusals


def test_u_lira_must_know_the_method(target_scene: Scene, shadows: ShadowModels) -> None:
    attack = ULira(shadows=4)
    scores = attack.attack(replace(target_scene, shadows=shadows.trained(attack)))
    assert {s.status for s in scores} == {"not_applicable"}
    assert "which method made the model is not known" in scores[0].reason


def test_too_few_rows_in_question_are_an_obstacle(memorized: Problem) -> None:
    few = replace(memorized, forget_ids=memorized.forget_ids[:9])
    with pytest.raises(BadInput, match="it needs at least 10 forget rows, not 9"):
        Lira().attack(Scene(few, memorized.target))


def test_an_odd_number_of_shadows_is_refused() -> None:
    with pytest.raises(BadInput, match="'shadows' should be a multiple of 2, got 5"):
        Lira(shadows=5)


def test_a_model_that_diverged_leaves_it_undefined() -> None:
    scene = margins(8, 7)
    broken = pa.table({"id": scene.said["forget"].ids, "margin": np.full(ROWS, np.nan)})
    scene.said["forget"] = Evidence(broken)
    with pytest.raises(Undefined, match="the model has diverged"):
        Lira(shadows=8).run(scene)  # type: ignore[arg-type]


def test_the_statistic_is_one_that_is_near_gaussian() -> None:
    assert statistic_of(tiny_problem("classifier").family) == "margin"
    assert statistic_of(tiny_problem("regressor").family) == "error"
