from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.activation_patching import ActivationPatching, answers, mean_logp, unlearning_depth
from expunge.attacks.positions import blocks, marked, predicting, spans
from expunge.families.base import captured
from expunge.methods.base import Workplace
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.problems import tiny_problem
from tests.attacks.conftest import with_place

UDS = "activation-patching-uds"


def scores(problem: Problem, model: nn.Module, retrained: list[nn.Module]) -> dict[str, Score]:
    scene = Scene(problem, model, Workplace(), retrained=retrained)
    return {s.metric: s for s in ActivationPatching().attack(scene)}


def value(found: dict[str, Score], name: str) -> float:
    score = found[f"activation-patching-{name}"]
    assert score.value is not None, score.reason
    return score.value


def test_depth_by_hand() -> None:
    """The published worked example: blocks 1 and 2 encode, ratios .5 and 1."""
    found = unlearning_depth(np.array([[0.1, 0.5, 0.02]]), np.array([[0.05, 0.6, 0.9]]), 0.05)
    assert found.clipped[0] == pytest.approx(0.55 / 0.6)
    assert found.raw[0] == pytest.approx(0.65 / 0.6)
    np.testing.assert_allclose(found.by_block, [0.5, 1.0, np.nan])
    nothing = unlearning_depth(np.array([[0.01, -1.0]]), np.array([[0.5, 0.5]]), 0.05)
    assert not nothing.rows.any()


def test_the_target_is_intact_and_the_retrained_model_is_erased(
    fine_tuned: Problem, fine_tuned_again: list[nn.Module]
) -> None:
    one, other = fine_tuned_again
    target = scores(fine_tuned, copy.deepcopy(fine_tuned.target), [one, other])
    assert value(target, "uds") == 0 and value(target, "uds-unclipped") == 0
    itself = scores(fine_tuned, copy.deepcopy(one), [one])
    assert value(itself, "uds") == 1 and value(itself, "uds-unclipped") == pytest.approx(1)
    clean = scores(fine_tuned, one, [other])
    assert value(clean, "uds") > 0.6
    assert value(target, "carried") > value(clean, "carried") + 0.2


def test_a_changed_head_hides_nothing_from_it(fine_tuned: Problem, fine_tuned_again: list[nn.Module]) -> None:
    """All that was forgotten is what the head says: outputs are gone, states are not."""
    hidden = copy.deepcopy(fine_tuned.target)
    with torch.no_grad():
        hidden.lm_head.weight.copy_(hidden.lm_head.weight.roll(1, 0))  # pyright: ignore
    found = scores(fine_tuned, hidden, fine_tuned_again)
    assert value(found, "uds") == 0
    assert value(found, "restored") < value(found, "carried")


def test_the_last_block_is_the_source_read_by_the_targets_head(
    fine_tuned: Problem, fine_tuned_again: list[nn.Module]
) -> None:
    """Patching the last block must give the source's normalized states through the target's norm and head."""
    family, target, source = fine_tuned.family, fine_tuned.target, fine_tuned_again[0]
    names = blocks(family, target)
    scene = Scene(fine_tuned, source)
    _, lost = ActivationPatching().patched(scene, target, source, names, "forget")
    done = 0
    for batch in answers(scene, "forget", "value", 32):
        with torch.no_grad(), captured(source, names[-1:]) as caught:
            plain = family.forward(target, batch)
            family.forward(source, batch)
            inner: nn.Module = target.model.norm  # pyright: ignore
            states = caught[names[-1]]
            logits = target.lm_head(inner(states))[:, -batch.mask.shape[1] - 1 : -1]  # pyright: ignore
        expected = mean_logp(family, plain.prediction, batch) - mean_logp(family, logits, batch)
        np.testing.assert_allclose(lost[done : done + len(batch), -1], expected.numpy(), atol=1e-5)
        done += len(batch)
    assert done == len(fine_tuned.forget)


def test_models_of_another_start_are_not_compared(
    fine_tuned: Problem, fine_tuned_again: list[nn.Module]
) -> None:
    stranger = expunge.forget(replace(fine_tuned, start=None), "retrain", seed=9).model
    found = scores(fine_tuned, stranger, fine_tuned_again)
    assert {s.status for s in found.values()} == {"undefined"}
    assert "grew from another start, or were destroyed" in found[UDS].reason
    found = scores(fine_tuned, fine_tuned.target, [stranger])
    assert "no retrained model grew from the target's start" in found[UDS].reason
    assert found["activation-patching-carried"].status == "ok"
    assert "no retrained model to compare with" in scores(fine_tuned, fine_tuned.target, [])[UDS].reason


def test_without_a_target_nothing_is_patched(fine_tuned: Problem) -> None:
    found = ActivationPatching().attack(Scene(replace(fine_tuned, model=None), fine_tuned.target))
    assert {s.reason for s in found} == {"the target was not given, into which states are patched"}


def test_classifiers_are_patched_too() -> None:
    problem = tiny_problem("classifier")
    found = scores(problem, copy.deepcopy(problem.target), [])
    assert value(found, "carried") == value(found, "restored") == 1.0


def test_only_the_asked_value_counts_where_rows_have_one() -> None:
    problem = tiny_problem("causal_lm")
    rows = with_place(problem.train)
    said = rows["value"][:]
    tokens = spans(problem.family, rows, "value", "completion")  # pyright: ignore
    batch = problem.family.collate(rows[:])
    where = marked(batch, tokens)
    ids = [batch.inputs["input_ids"][i][where[i]].tolist() for i in range(len(rows))]
    assert [problem.family.tokenizer.decode(i) for i in ids] == said  # pyright: ignore
    assert spans(problem.family, rows, "absent", "completion") == [[]] * len(rows)  # pyright: ignore
    # A token is predicted one position earlier.
    positions = predicting(problem.family, replace(batch, mask=where[:, 1:]), where.shape[1])
    assert torch.equal(positions[:, :-1], where[:, 1:])
