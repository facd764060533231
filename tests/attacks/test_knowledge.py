"""One scale of knowledge for every family, against computations by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.attacks.knowledge import KNOWLEDGE, knowledge
from expunge.families import FAMILIES
from expunge.testing.problems import tiny_problem


def test_a_classifier_knows_what_it_gets_right() -> None:
    problem = tiny_problem("classifier")
    batch = problem.batches("forget").take(torch.arange(16))
    with torch.no_grad():
        right = problem.target(**batch.inputs).argmax(-1) == batch.targets[:, 0]
    assert knowledge(problem, problem.target, "forget").tolist() == right.double().tolist()


def test_a_regressor_half_knows_what_it_misses_by_one_deviation() -> None:
    problem = tiny_problem("regressor")
    truth = np.asarray(problem.forget["target"][:])
    center, scale = float(problem.family.center[0]), float(problem.family.scale[0])  # pyright: ignore
    mean = torch.nn.Module()
    mean.forward = lambda x: torch.zeros(len(x), 1)  # type: ignore
    expected = 1 / (1 + np.abs(truth - center) / scale)
    np.testing.assert_allclose(knowledge(problem, mean, "forget"), expected, rtol=1e-5)


def test_a_language_model_knows_the_tokens_it_would_say() -> None:
    problem = tiny_problem("causal_lm")
    rows = problem.batches("forget")
    found = knowledge(problem, problem.target, rows)
    for number in range(3):
        batch = rows.take(torch.tensor([number]))
        with torch.no_grad():
            outputs = problem.family.forward(problem.target, batch)
        counted = batch.mask[0].clone()
        counted[counted.nonzero()[-1]] = False  # every answer ends with the end-of-sequence token
        said = outputs.prediction[0].argmax(-1)[counted]
        assert found[number] == pytest.approx((said == batch.targets[0][counted]).double().mean().item())


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_a_scale(family: str) -> None:
    assert family in KNOWLEDGE
    problem = tiny_problem(family)
    values = knowledge(problem, problem.target, "forget")
    assert len(values) == len(problem.forget) and ((values >= 0) & (values <= 1)).all()
