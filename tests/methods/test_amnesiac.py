import numpy as np
import pytest
import torch
import torch.nn.functional as F

from expunge.errors import BadInput
from expunge.methods import Workplace
from expunge.methods.amnesiac import Amnesiac, Relabeled
from expunge.methods.objective import State
from expunge.methods.random_labeling import RandomLabeling

EVERY_ROW = torch.arange(36)


def targets(problem, seed=0):
    """Labels of all training rows, as the method sees them."""
    state = State(problem, {}, Workplace(seed=seed))
    Amnesiac().prepare(problem, problem.target, state)
    return state.sources["train"].take(EVERY_ROW).targets[:, 0]


def test_relabeled_rows_follow_their_numbers(classification):
    plain = classification.batches("train")
    true = plain.take(EVERY_ROW).targets
    other = Relabeled(plain, torch.tensor([4, 2]), torch.tensor([[7], [8]]))
    found = other.take(torch.tensor([2, 3, 4, 2]))
    assert found.targets[:, 0].tolist() == [8, int(true[3]), 7, 8]
    assert found.ids == [plain.ids[i] for i in (2, 3, 4, 2)]
    assert len(other) == 36
    assert torch.equal(plain.take(EVERY_ROW).targets, true)  # what it was made from is as it was


def test_the_gradient_is_that_of_wrong_labels_on_forget_rows(
    classification, tensors, gradient, step_gradient
):
    (xf, yf), (xr, yr) = tensors(classification, "forget"), tensors(classification, "retain")
    drawn = targets(classification)
    assert torch.equal(drawn[classification.retain_rows], yr)
    wrong = drawn[classification.forget_rows]
    assert (wrong != yf).all()
    model = classification.target
    expected = gradient(model, F.cross_entropy(model(torch.cat([xf, xr])), torch.cat([wrong, yr])))
    found = step_gradient(classification, "amnesiac")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)


def test_labels_are_kept_over_epochs(classification):
    """At learning rate zero the loss over all rows says whether labels changed; redrawn ones change it."""
    settings = {"epochs": 4, "lr": 0.0, "batch_size": 36, "shuffle": False}

    def losses(method):
        return {entry["train"] for entry in method.forget(classification).log}

    assert len(losses(Amnesiac(**settings))) == 1
    assert len(losses(RandomLabeling(mix="mixed", labels="random-other", **settings))) > 1


def test_each_wrong_class_is_as_likely(classification):
    true = torch.tensor(classification.forget["label"])
    draws = torch.stack([targets(classification, seed)[classification.forget_rows] for seed in range(60)])
    shift = ((draws - true) % 3).flatten()
    assert set(shift.tolist()) == {1, 2}
    # Three standard errors of a proportion of one half in 600 draws.
    assert abs(float((shift == 1).double().mean()) - 0.5) < 3 * np.sqrt(0.25 / 600)


def test_regressors_are_refused(regression):
    with pytest.raises(BadInput, match="'amnesiac' cannot run on values: it fits classifier, not regressor"):
        Amnesiac().forget(regression)
