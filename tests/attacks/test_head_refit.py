"""A new output layer brings back what only the old one hid; where features hold nothing it brings back nothing."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from scipy.optimize import minimize
from scipy.special import logsumexp, softmax
from torch import nn

import expunge
from expunge.attacks import Scene, head_refit
from expunge.attacks.head_refit import HeadRefit
from expunge.attacks.knowledge import knowledge
from expunge.attacks.states import BEFORE_HEAD, answers, hidden_states
from expunge.families.models import fingerprint
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

from .conftest import value


def test_an_edited_head_is_undone(wide: Problem, clean: list[Scene], new_head: nn.Module) -> None:
    assert knowledge(wide, new_head, "forget").mean() < 0.1
    found = HeadRefit().attack(Scene(wide, new_head))
    assert value(found, "head-refit-rise") > 0.7 and value(found, "head-refit-retain") > 0.9
    assert found[0].curve is not None and found[0].curve.at == [0, 5, 10] and found[0].n == 30
    one, two = (HeadRefit().attack(scene) for scene in clean)
    for theirs in (one, two):
        assert value(found, "head-refit-knowledge") > value(theirs, "head-refit-knowledge") + 0.2
        assert value(theirs, "head-refit-rise") < 0.15
    assert abs(value(one, "head-refit-knowledge") - value(two, "head-refit-knowledge")) < 0.1


def test_a_head_of_values_is_undone() -> None:
    """A regressor whose output was halved and shifted: the features are all there."""
    problem = tiny_problem("regressor")
    edited = copy.deepcopy(problem.target)
    with torch.no_grad():
        edited.get_parameter("head.weight").mul_(-0.5)
        edited.get_parameter("head.bias").add_(2)
    attack = HeadRefit()
    found = attack.attack(Scene(problem, edited))
    assert value(found, "head-refit-rise") > 0.3
    retrained = expunge.forget(problem, "retrain", seed=3).model
    assert value(attack.attack(Scene(problem, retrained)), "head-refit-rise") < 0.1


def test_a_language_model_gets_a_head_of_its_own(facts: Problem, never_told: list[Scene]) -> None:
    """The head was shuffled: places stand for other places. With tied weights the embeddings stay what they are."""
    shuffled = copy.deepcopy(facts.target)
    places = [facts.family.tokenizer.convert_tokens_to_ids(p) for p in ("Rome", "Oslo", "Lima", "Bern")]  # pyright: ignore
    with torch.no_grad():
        head = shuffled.get_parameter("lm_head.weight")
        head[places] = head[places[1:] + places[:1]]
    before = fingerprint(shuffled)
    found = HeadRefit(share=0.5, iterations=25).attack(Scene(facts, shuffled))
    # The gate compares with a model that knows nothing of its retained rows any more either.
    assert value(found, "head-refit-rise") > 0.5
    assert fingerprint(shuffled) == before
    theirs = HeadRefit(share=0.5, iterations=25).attack(never_told[0])
    assert value(theirs, "head-refit-rise") < 0.15

    tied = copy.deepcopy(facts.target)
    tied.lm_head.weight = tied.model.embed_tokens.weight  # type: ignore
    refitted = HeadRefit(iterations=2).refitted(Scene(facts, tied), [facts.batches("retain")])
    assert torch.equal(refitted.model.embed_tokens.weight, facts.target.model.embed_tokens.weight)  # type: ignore
    assert not torch.equal(refitted.lm_head.weight, refitted.model.embed_tokens.weight)  # type: ignore


def test_values_agree_with_the_closed_form() -> None:
    """Half the squared error, and a penalty on weights and bias alike: one linear system."""
    problem = tiny_problem("regressor")
    attack = HeadRefit(decay=0.05)
    retain = problem.batches("retain")
    head = attack.refitted(Scene(problem, problem.target), [retain]).get_submodule("head")
    found = hidden_states(problem.family, problem.target, retain, [BEFORE_HEAD], answers)
    x = np.column_stack([found.layers[BEFORE_HEAD], np.ones(len(retain))]).astype(np.float64)
    y = found.targets.reshape(-1).astype(np.float64)
    expected = np.linalg.solve(x.T @ x / len(x) + 0.05 * np.eye(x.shape[1]), x.T @ y / len(x))
    weights = torch.cat([p.detach().flatten() for p in head.parameters()]).numpy()
    np.testing.assert_allclose(weights, expected, atol=2e-3)


def test_classes_agree_with_an_independent_minimizer(wide: Problem) -> None:
    """The forgotten rows that are held count as much as all retained ones."""
    scene, attack = Scene(wide, wide.target), HeadRefit(decay=0.05, iterations=200)
    sources = [wide.batches("retain"), wide.batches("forget")]
    model = attack.refitted(scene, sources)
    data = [hidden_states(wide.family, wide.target, rows, [BEFORE_HEAD], answers) for rows in sources]

    def loss(flat: np.ndarray) -> tuple[float, np.ndarray]:
        w, b = flat[:-2].reshape(2, -1), flat[-2:]
        total, gradient = 0.5 * 0.05 * float(flat @ flat), 0.05 * flat
        for part in data:
            x, n = part.layers[BEFORE_HEAD].astype(np.float64), len(part.rows)
            logits = x @ w.T + b
            total += 0.5 * float((logsumexp(logits, axis=1) - logits[np.arange(n), part.targets]).mean())
            residual = 0.5 * (softmax(logits, axis=1) - np.eye(2)[part.targets]) / n
            gradient = gradient + np.concatenate([(residual.T @ x).ravel(), residual.sum(0)])
        return total, gradient

    head = model.get_submodule("head")
    weights = torch.cat([p.detach().flatten() for p in head.parameters()]).double().numpy()
    other = minimize(loss, np.zeros_like(weights), jac=True, method="L-BFGS-B", options={"maxiter": 2000})
    assert loss(weights)[0] == pytest.approx(other.fun, abs=1e-5)
    np.testing.assert_allclose(weights, other.x, atol=5e-3)


def test_passes_through_what_stays_are_made_once(
    facts: Problem, wide: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The head is fitted on what it read in one pass; a model with something behind its head is asked in full."""
    for problem in (facts, wide):
        scene, attack, seen = Scene(problem, problem.target), HeadRefit(iterations=3), []
        family = type(problem.family)
        plain = family.predict

        def counted(self: object, model: nn.Module, batch: object, ask=plain, seen=seen) -> torch.Tensor:
            seen.append(type(model))
            return ask(self, model, batch)

        monkeypatch.setattr(family, "predict", counted)
        fast = attack.refitted(scene, [problem.batches("retain")])
        assert seen.count(type(problem.target)) * 2 < len(seen)
        monkeypatch.setattr(head_refit, "_stand_in", lambda _family, model, _batch: model)
        slow = attack.refitted(scene, [problem.batches("retain")])
        monkeypatch.undo()
        for ours, theirs in zip(fast.parameters(), slow.parameters(), strict=True):
            torch.testing.assert_close(ours, theirs)


def test_what_stands_behind_the_head_is_not_left_out(wide: Problem) -> None:
    class Doubled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = copy.deepcopy(wide.target)

        def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
            return 2 * self.model(*inputs)

    doubled = HeadRefit(decay=0.2).refitted(Scene(wide, Doubled()), [wide.batches("retain")])
    single = HeadRefit(decay=0.05).refitted(Scene(wide, wide.target), [wide.batches("retain")])
    # Twice the logits: the same products come from half the weights, of which the penalty is a quarter.
    batch = next(wide.batches("retain").sequential(64))[1]
    torch.testing.assert_close(
        wide.family.predict(doubled, batch), wide.family.predict(single, batch), atol=2e-2, rtol=2e-2
    )
