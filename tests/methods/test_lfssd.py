from dataclasses import replace

import torch
from torch import nn

from expunge.families import Classifier, Table
from expunge.methods.lfssd import LFSSD


def test_linear_model_in_closed_form(classification, tensors):
    """The gradient of mean ||W x||^2 is 2 W E[x x^T]; its absolute value is the importance."""
    torch.manual_seed(1)
    problem = replace(
        classification, family=Classifier(Table(["a", "b", "c"]), 3), model=nn.Linear(3, 3, bias=False)
    )
    weight = problem.target.weight.detach()
    xf, xr = tensors(problem, "forget")[0], tensors(problem, "retain")[0]
    everything = torch.cat([xf, xr])
    f = (2 * weight @ (xf.T @ xf / len(xf))).abs()
    d = (2 * weight @ (everything.T @ everything / len(everything))).abs()
    alpha = 1.01 * float((f / d).median())
    expected = weight * torch.where(f > alpha * d, (0.5 * d / f).clamp(max=1), torch.ones(3, 3))
    made = LFSSD(alpha=alpha, lam=0.5, batch_size=1000).forget(problem)
    torch.testing.assert_close(made.model.weight, expected, rtol=1e-4, atol=1e-6)
    assert 0 < made.cost.changed < 9


def test_labels_do_not_matter(classification):
    relabeled = replace(
        classification, train=classification.train.map(lambda row: {"label": (row["label"] + 1) % 3})
    )
    a, b = (LFSSD(alpha=1.2).forget(p).model.state_dict() for p in (classification, relabeled))
    assert all(torch.equal(a[k], b[k]) for k in a)
    assert "labels" not in LFSSD.needs
