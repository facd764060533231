from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.attacks import Scene
from expunge.attacks.activation_perturbation import ActivationPerturbation, _Work, cross_fitted
from expunge.attacks.knowledge import knowledge
from expunge.attacks.positions import asking, blocks, evenly
from expunge.families.base import altered, captured
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.problems import tiny_problem


def scores(problem: Problem, model: nn.Module) -> dict[str, Score]:
    found = ActivationPerturbation().attack(Scene(problem, model))
    return {s.metric.removeprefix("activation-perturbation-"): s for s in found}


def at(score: Score) -> float:
    assert score.value is not None, score.reason
    return score.value


def test_settings_are_chosen_on_the_other_half() -> None:
    """Each half is best at another setting; chosen across, neither gets its own maximum."""
    half = np.array([True, True, False, False])
    grid = np.zeros((4, 2, 3))
    grid[:2, 0, 1], grid[2:, 1, 2] = 1.0, 0.5
    values, curve = cross_fitted(grid, grid, half)
    assert values.tolist() == [0, 0, 0, 0]
    assert curve.tolist() == [0, 0.5, 0]
    grid[2:, 0, 1] = 0.75  # now the first setting is best of the second half, too
    values, curve = cross_fitted(grid, grid, half)
    assert values.tolist() == [1, 1, 0.75, 0.75]
    assert curve.tolist() == [0, 0.875, 0]


def test_without_a_push_everything_is_as_it_is(fine_tuned: Problem) -> None:
    own = knowledge(fine_tuned, fine_tuned.target, "forget")
    for score in scores(fine_tuned, fine_tuned.target).values():
        assert score.curve is not None and score.curve.at == [0.0, 0.1, 0.5, 1.0, 2.0]
        assert score.curve.values[0] == pytest.approx(own.mean())


def test_a_shift_that_hides_answers_is_found_and_a_retrained_model_has_nothing_to_find(
    fine_tuned: Problem, fine_tuned_again: list[nn.Module]
) -> None:
    """Half of what persons add to hidden states is taken away for good; pushed back, some answers return."""
    work = _Work(
        ActivationPerturbation(),
        Scene(fine_tuned, fine_tuned.target),
        blocks(fine_tuned.family, fine_tuned.target),
    )
    batch = fine_tuned.batches("forget").take(torch.arange(12))
    shift = 2 * work.delta("contrast", batch, 0)["model.layers.0"].mean(0)

    def subtract(_module: nn.Module, _inputs: object, output: Tensor) -> Tensor:
        return output - shift

    hidden = copy.deepcopy(fine_tuned.target)
    hidden.model.layers[0].register_forward_hook(subtract)  # pyright: ignore
    found, clean = scores(fine_tuned, hidden), scores(fine_tuned, fine_tuned_again[0])
    own = [float(knowledge(fine_tuned, m, "forget").mean()) for m in (hidden, fine_tuned_again[0])]
    assert own[0] < 0.5
    # A push as long in a random direction does not do it, and nothing comes back where nothing was learned.
    assert at(found["contrast"]) > own[0] + 0.07
    assert at(found["null"]) < own[0] + 0.02
    assert at(clean["contrast"]) < own[1] + 0.02 and at(clean["random"]) < own[1] + 0.02


def test_a_push_on_the_last_block_is_read_by_norm_and_head(fine_tuned: Problem) -> None:
    """Logits change to those of x + p; by hand, through the final norm and the head."""
    model, family = fine_tuned.target, fine_tuned.family
    batch = fine_tuned.batches("forget").take(torch.arange(3))
    last = blocks(family, model)[-1]
    push = torch.randn(16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad(), captured(model, [last]) as caught:
        family.forward(model, batch)
        by_hand = model.lm_head(model.model.norm(caught[last] + push))  # pyright: ignore
    with torch.no_grad(), altered(model, {last: lambda own: own + push}):
        pushed = family.forward(model, batch).prediction
    torch.testing.assert_close(pushed, by_hand[:, -batch.mask.shape[1] - 1 : -1])


def test_only_the_question_is_pushed(fine_tuned: Problem) -> None:
    batch = fine_tuned.batches("forget").take(torch.arange(2))
    ids = batch.inputs["input_ids"]
    where = asking(fine_tuned.family, batch, ids.shape[1])
    asked = fine_tuned.family.tokenizer.decode(ids[0][where[0]].tolist())  # pyright: ignore
    assert not where[:, 0].any()
    assert asked.startswith(": Where is") and asked.endswith("Answer : \n")


def test_rows_without_a_subject_and_other_families_say_why() -> None:
    for family in ("classifier", "regressor", "causal_lm"):
        problem = tiny_problem(family)
        found = scores(problem, problem.target)
        assert found["random"].status == found["any"].status == "ok"
        assert {found[kind].status for kind in ("contrast", "anonymized", "null")} == {"undefined"}
        why = (
            "no question of the forget rows has the text of a column 'author' in it"
            if family == "causal_lm"
            else f"rows of family {family} ask no question"
        )
        assert why in found["null"].reason


def test_one_row_is_enough(fine_tuned: Problem) -> None:
    one = replace(fine_tuned, forget_ids=fine_tuned.forget_ids[:1])
    assert scores(one, fine_tuned.target)["random"].status == "ok"


def test_layers_are_spread() -> None:
    assert evenly(list("abcdefg"), 3) == ["a", "d", "g"]
    assert evenly(list("ab"), 4) == ["a", "b"]


def test_rows_that_ask_nothing_are_not_missed_a_subject() -> None:
    problem = tiny_problem("classifier")
    reason = scores(problem, problem.target)["contrast"].reason
    assert reason == "rows of family classifier ask no question, so there is no subject to take away from one"
