from dataclasses import replace

import pytest
import torch

from expunge.errors import BadInput
from expunge.methods.blindspot import Blindspot, attention_map, attention_transfer
from expunge.problem import Problem


def test_attention_maps():
    torch.manual_seed(0)
    a = torch.randn(2, 5, 3)
    torch.testing.assert_close(attention_map(7 * a), attention_map(a))
    assert attention_transfer(a, a).tolist() == [0, 0]
    here, there = torch.zeros(1, 5, 3), torch.zeros(1, 5, 3)
    here[0, 1], there[0, 4] = 2.0, 1.0
    assert attention_transfer(here, there).item() == pytest.approx(2 / 5)
    assert attention_transfer(torch.randn(3, 1, 4), torch.randn(3, 1, 4)).tolist() == [0, 0, 0]


@pytest.mark.parametrize("beta", [0.0, 50.0])
def test_first_gradient_equals_a_slow_version(pictures, gradient, step_gradient, monkeypatch, beta):
    """With an untrained blindspot model; maps of the two convolutional blocks, row by row."""
    blind = pictures.fresh_model(5).eval()
    monkeypatch.setattr(Problem, "fresh_model", lambda self, seed: blind)
    found = step_gradient(pictures, "blindspot", beta=beta, blindspot_epochs=0, lr=1.0)
    model, total = pictures.target, torch.zeros(())

    def maps(net, x):
        first = net.convs[0](x)
        return [(a[0] ** 2).mean(0).flatten() for a in (first, net.convs[1](first))]

    for row in pictures.train:
        x, y = torch.tensor(row["image"])[None], row["y"]
        if row["id"] in pictures.forget_ids:
            total = total + (model(x) - blind(x).detach()).abs().squeeze()
            for own, other in zip(maps(model, x), maps(blind, x), strict=True):
                total = (
                    total + beta * ((own / own.norm() - other.detach() / other.norm().detach()) ** 2).mean()
                )
        else:
            total = total + (model(x) - y).abs().squeeze()
    for name, value in gradient(model, total / len(pictures.train)).items():
        torch.testing.assert_close(found[name], value, rtol=1e-3, atol=1e-5)


def test_targets_of_forget_rows_are_never_seen(regression):
    moved = regression.train.map(lambda row: {"y": 1e3 if row["id"] in regression.forget_ids else row["y"]})
    a, b = (
        Blindspot(epochs=2, batch_size=8).forget(p) for p in (regression, replace(regression, train=moved))
    )
    assert a.cost.changed > 0
    for one, other in zip(a.model.parameters(), b.model.parameters(), strict=True):
        assert torch.equal(one, other)


def test_micro_batches_and_batches_without_forget_rows(pictures):
    settings = {"epochs": 1, "optimizer": "sgd", "lr": 0.01, "blindspot_epochs": 0}
    whole = Blindspot(batch_size=8, **settings).forget(pictures).model
    pieces = Blindspot(batch_size=8, micro_batch_size=3, **settings).forget(pictures).model
    for one, other in zip(whole.parameters(), pieces.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-5)
    single = Blindspot(batch_size=1, **settings).forget(pictures)  # most batches hold no forget row
    assert all(entry["forget"] == 0 or entry["retain"] == 0 for entry in single.log)


def test_moves_forget_predictions_towards_the_blindspot_model(regression, tensors, monkeypatch):
    blind = regression.fresh_model(5)
    monkeypatch.setattr(Problem, "fresh_model", lambda self, seed: blind)
    made = Blindspot(epochs=60, lr=0.01, batch_size=12, blindspot_epochs=0).forget(regression)
    x, _ = tensors(regression, "forget")
    with torch.no_grad():
        before, after = ((m(x) - blind(x)).abs().mean() for m in (regression.target, made.model))
    assert after < 0.7 * before


def test_classifiers_are_refused(classification):
    with pytest.raises(
        BadInput, match="'blindspot' cannot run on clusters: it fits regressor, not classifier"
    ):
        Blindspot().forget(classification)
