from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from expunge.errors import BadInput
from expunge.families import Classifier, Table
from expunge.methods.random_labeling import RandomLabeling


class Noted(Classifier):
    """Remembers every draw."""

    draws: list[Any]

    def relabel(self, batch, how, generator):
        drawn = super().relabel(batch, how, generator)
        self.draws.append((how, batch, drawn))
        return drawn


@pytest.fixture
def noted(classification):
    family = Noted(Table(["a", "b", "c"]), 3)
    family.draws = []
    return replace(classification, family=family)


def test_mixed_gradient(noted, tensors, gradient, step_gradient):
    """The mean cross-entropy over all rows, with drawn labels on forget rows and true ones elsewhere."""
    found = step_gradient(noted, "random-labeling", mix="mixed", shuffle=False)
    ((_, _, drawn),) = noted.family.draws
    (xf, yf), (xr, yr) = tensors(noted, "forget"), tensors(noted, "retain")
    labels = torch.cat([drawn.targets[:10, 0], yr])
    assert not torch.equal(labels[:10], yf)
    model = noted.target
    expected = gradient(model, F.cross_entropy(model(torch.cat([xf, xr])), labels))
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=2e-6)


def test_sequential_epochs_visit_forget_then_retain_and_draw_anew(noted):
    made = RandomLabeling(epochs=2, batch_size=13, lr=0.0).forget(noted)
    assert [entry["phase"] for entry in made.log] == ["forget", "retain", "retain"] * 2
    labels = [dict(zip(b.ids, d.targets[:, 0].tolist(), strict=True)) for _, b, d in noted.family.draws]
    assert [set(drawn) for drawn in labels] == [set(noted.forget_ids)] * 2
    assert labels[0] != labels[1]


@pytest.mark.parametrize(("how", "chance"), [("random", 1 / 3), ("random-other", 0.0)])
def test_how_often_a_drawn_label_is_right(noted, how, chance):
    RandomLabeling(epochs=60, lr=0.0, labels=how).forget(noted)
    right = torch.cat([(b.targets == d.targets).flatten() for _, b, d in noted.family.draws]).float()
    assert len(right) == 600
    # Three standard errors of a proportion.
    assert abs(right.mean().item() - chance) <= 3 * (chance * (1 - chance) / 600) ** 0.5


def test_labels_that_the_family_does_not_know_are_refused(regression):
    with pytest.raises(BadInput, match="'random-labeling': family regressor has no labels 'random-other'"):
        RandomLabeling(labels="random-other").forget(regression)


def test_regressors_learn_gaussian_targets(regression, tensors):
    """Training on redrawn targets turns forget predictions away from the true ones."""
    x, y = tensors(regression, "forget")
    made = RandomLabeling(epochs=40, lr=0.02, batch_size=8).forget(regression)
    with torch.no_grad():
        before, after = ((m(x) - y).square().mean() for m in (regression.target, made.model))
    assert after > before
