from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from statsmodels.duration.survfunc import SurvfuncRight
from torch import nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.knowledge import knowledge
from expunge.attacks.relearning import Relearning, restricted_times
from expunge.methods.base import Workplace
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.problems import tiny_problem


def hidden(model: nn.Module, push: float = 8.0) -> nn.Module:
    """The model with one output pushed so far up that it names one class only; everything else is still there."""
    made = copy.deepcopy(model)
    last = [m for m in made.modules() if isinstance(m, nn.Linear)][-1]
    with torch.no_grad():
        last.bias[0] += push
    return made


def scores(attack: Relearning, scene: Scene) -> dict[str, Score]:
    return {s.metric: s for s in attack.attack(scene)}


def steps(attack: Relearning, scene: Scene) -> float:
    value = scores(attack, scene)["relearning-steps"].value
    assert value is not None
    return value


def test_target_needs_no_step_and_what_was_hidden_comes_back_sooner_than_retraining(
    memorized: Problem, target_scene: Scene, retrained_scene: Scene
) -> None:
    attack = Relearning(lr=0.02, share=1)
    assert steps(attack, target_scene) == 0
    first_time = steps(attack, retrained_scene)
    back = steps(attack, Scene(memorized, hidden(memorized.target)))
    assert 0 < back < first_time / 3


def test_agrees_with_training_by_hand(memorized: Problem, retrained_scene: Scene) -> None:
    """All forgotten rows in one batch: nothing random is left, and plain PyTorch must come to the same count."""
    rows = memorized.forget.with_format("numpy")[:]
    x = torch.tensor(np.column_stack([rows[f"x{j}"] for j in range(12)]), dtype=torch.float32)
    y = torch.tensor(rows["label"])
    model = copy.deepcopy(retrained_scene.model)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
    accuracy = []
    for _ in range(301):
        with torch.no_grad():
            accuracy.append(int((model(x).argmax(-1) == y).sum()))
        optimizer.zero_grad()
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
    aim = int((memorized.target(x).argmax(-1) == y).sum())
    by_hand = next(i for i, value in enumerate(accuracy) if 10 * value >= 9 * aim)

    found = scores(Relearning(lr=0.02, margin=0.1, batch_size=40, share=1), retrained_scene)
    assert found["relearning-steps"].value == by_hand
    assert found["relearning-steps"].n == 40
    assert found["relearning-level"].value == pytest.approx(accuracy[1] / aim)


def test_a_budget_that_does_not_suffice_is_said(retrained_scene: Scene) -> None:
    found = scores(Relearning(lr=1e-6, budget=7), retrained_scene)
    assert found["relearning-steps"].reason == "censored: not back within the budget of 7 steps"
    assert found["relearning-level"].status == "ok"


def test_a_row_that_does_not_come_back_counts_with_the_budget() -> None:
    """Restricted mean survival time: the area under the Kaplan-Meier curve of an independent implementation."""
    at = [0, 1, 2, 4, 8, 10]
    rng = np.random.default_rng(0)
    known = np.cumsum(rng.random((6, 50)) < 0.15, axis=0) > 0
    times = restricted_times(at, known)
    back = known.any(0)
    assert 0 < back.sum() < 50
    # statsmodels leaves times of 0 out; half a step is as good.
    curve = SurvfuncRight(np.maximum(times, 0.5), back.astype(int))
    edges, heights = [0.0, *curve.surv_times], [1.0, *curve.surv_prob]
    area = sum((b - a) * h for a, b, h in zip(edges, [*edges[1:], 10.0], heights, strict=True))
    assert np.maximum(times, 0.5).mean() == pytest.approx(area)


def test_peak_and_area_by_hand() -> None:
    """After 0, 1, 3, 7 steps: log2(1 + steps) is 0, 1, 2, 3, so that the three trapezoids count the same."""
    curve = {
        0: np.array([0.0, 0.0]),
        1: np.array([0.0, 1.0]),
        3: np.array([1.0, 1.0]),
        7: np.array([1.0, 0.0]),
    }
    peak, area, control = Relearning(budget=7).recovered(curve, {})
    assert area.value == pytest.approx((0.25 + 0.75 + 0.75) / 3)
    assert peak.value == 1 and peak.curve is not None and peak.curve.values == [0, 0.5, 1, 0.5]
    assert control.status == "undefined"
    # After 3 steps the model has lost half of what it should keep: the peak is one of the other steps.
    kept = {step: np.array([1.0, 0.0 if step == 3 else 0.9]) for step in curve}
    peak, _, control = Relearning(budget=7).recovered(curve, kept)
    assert peak.value == 0.5 and control.value == 0.95


def test_the_attacked_model_is_left_alone_and_the_seed_fixes_the_run(
    memorized: Problem, retrained_scene: Scene
) -> None:
    before = copy.deepcopy(retrained_scene.model.state_dict())
    attack = Relearning(budget=20)
    one = attack.attack(retrained_scene)
    assert all(torch.equal(v, before[k]) for k, v in retrained_scene.model.state_dict().items())
    assert not retrained_scene.model.training
    assert one == attack.attack(Scene(memorized, retrained_scene.model, Workplace(seed=0)))


def test_a_share_is_measured_on_the_other_rows(wide: Problem, clean: list[Scene]) -> None:
    """Noise in the labels cannot be learned from other rows: only a model that knew them gets them back."""
    attack = Relearning(share=0.25, budget=60)
    held, own, asked = attack.divide(clean[0])
    assert own is held and (len(held), len(asked)) == (10, 30)
    assert not set(held.ids) & set(asked.ids)
    assert set(held.ids) | set(asked.ids) == set(wide.forget_ids)
    # Models of all seeds are asked about the same rows.
    again = attack.divide(Scene(wide, wide.target, Workplace(seed=9)))
    assert [part.ids for part in again] == [held.ids, own.ids, asked.ids]
    back, one, two = (scores(attack, scene) for scene in (Scene(wide, hidden(wide.target, push=5.5)), *clean))
    for name, more, margin in (("relearning-knowledge", 0.2, 0.1), ("relearning-area", 0.1, 0.1)):
        values = [found[name].value or 0 for found in (back, one, two)]
        assert values[0] > max(values[1:]) + more and abs(values[1] - values[2]) < margin, name
    times = [found["relearning-time"].value or 0 for found in (back, one, two)]
    assert times[0] < 0.6 * min(times[1:])


@pytest.mark.parametrize("data", ["related", "unrelated"])
def test_benign_rows_bring_back_what_was_hidden(wide: Problem, clean: list[Scene], data: str) -> None:
    attack = Relearning(data=data, budget=60)  # type: ignore[arg-type]
    held, _, asked = attack.divide(clean[0])
    assert len(held) == 40 and asked.ids == list(wide.forget_ids)
    source = wide.retain if data == "related" else wide.holdout
    assert source is not None and set(held.ids) <= set(source["id"][:])
    back, one, two = (
        scores(attack, scene)["relearning-knowledge"].value or 0
        for scene in (Scene(wide, hidden(wide.target)), *clean)
    )
    assert back > max(one, two) + 0.2 and abs(one - two) < 0.1


def test_related_rows_are_the_nearest_by_hand(memorized: Problem) -> None:
    """Ten forgotten rows; of the retained rows of their classes the ten whose activations point most their way."""
    few = replace(memorized, forget_ids=memorized.forget_ids[:10])
    held, _, _ = Relearning(data="related").divide(Scene(few, memorized.target))

    def states(split: str) -> torch.Tensor:
        rows = few.splits[split].with_format("numpy")[:]
        x = torch.tensor(np.column_stack([rows[f"x{j}"] for j in range(12)]), dtype=torch.float32)
        return F.normalize(memorized.target.get_submodule("layers.0")(x), dim=1)

    with torch.no_grad():
        nearness = (states("retain") @ states("forget").T).amax(1)
    expected = {few.retain["id"][int(i)] for i in nearness.topk(10).indices}
    assert set(held.ids) == expected


def test_adapters_relearn_as_weights_do(memorized: Problem, retrained_scene: Scene) -> None:
    attack = Relearning(lora=4, budget=60)
    back = scores(attack, Scene(memorized, hidden(memorized.target, push=4)))
    clean = scores(attack, retrained_scene)
    assert (back["relearning-knowledge"].value or 0) > (clean["relearning-knowledge"].value or 1) + 0.2
    assert not any("lora" in name for name, _ in retrained_scene.model.named_parameters())


def test_language_models_relearn_what_was_hidden_only(
    facts: Problem, silenced: nn.Module, never_told: list[Scene]
) -> None:
    """Half of the people bring back the other half where they were silenced; not where they were never told."""
    assert knowledge(facts, facts.target, "forget").mean() > 0.9
    assert knowledge(facts, silenced, "forget").mean() < 0.3
    attack = Relearning(budget=32, lr=0.002)
    back, *clean = (scores(attack, scene) for scene in (Scene(facts, silenced), *never_told))
    for found in clean:
        assert (back["relearning-knowledge"].value or 0) > (found["relearning-knowledge"].value or 1) + 0.2
        assert (back["relearning-time"].value or 99) < (found["relearning-time"].value or 0)
        assert (back["relearning-steps"].value or 99) < 0.5 * (found["relearning-steps"].value or 0)


def test_regressors_are_measured_by_their_error() -> None:
    problem = tiny_problem("regressor")
    assert steps(Relearning(budget=4), Scene(problem, problem.target)) == 0
    retrained = Scene(problem, expunge.forget(problem, "retrain", seed=3).model)
    own = retrained.evidence("forget", ["absolute_error"])["absolute_error"].mean()
    target = Scene(problem, problem.target).evidence("forget", ["absolute_error"])["absolute_error"].mean()
    # Hardly any rate, all rows in one step: the level stays the ratio of the errors.
    found = scores(Relearning(lr=1e-9, batch_size=64, budget=1, share=1), retrained)
    assert found["relearning-level"].value == pytest.approx(target / own, rel=1e-4)


def test_without_a_target_there_is_no_level(memorized: Problem, retrained_scene: Scene) -> None:
    found = scores(Relearning(budget=4), Scene(replace(memorized, model=None), retrained_scene.model))
    for name in ("steps", "level", "time"):
        assert (
            found[f"relearning-{name}"].reason == "the target was not given, whose level the attack waits for"
        )
    assert found["relearning-area"].status == found["relearning-retain"].status == "ok"


def test_frozen_parameters_stay_where_the_attacker_may_not_open_them(memorized: Problem) -> None:
    """With all of the model frozen there is nothing to train; opened, it is trained as any other."""
    model = copy.deepcopy(memorized.target)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    closed = Relearning(budget=2, unfreeze=False).attack(Scene(memorized, model))
    assert {s.status for s in closed} == {"undefined"} and "frozen" in (closed[0].reason or "")
    assert Relearning(budget=2).attack(Scene(memorized, model))[1].status == "ok"
    assert not any(p.requires_grad for p in model.parameters())
