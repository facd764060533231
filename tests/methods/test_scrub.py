from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch.distributions import Categorical, kl_divergence

from expunge.errors import BadInput
from expunge.families import Batch, Outputs
from expunge.methods.fine_tune import FineTune
from expunge.methods.scrub import Scrub, _holdout_weights, nearest

PLAIN = {
    "optimizer": "sgd",
    "momentum": 0.0,
    "weight_decay": 0.0,
    "lr": 0.1,
    "batch_size": 8,
    "forget_batch_size": 5,
}


def divergence(family, teacher, student, temperature):
    n = len(teacher)
    batch = Batch([""] * n, {}, torch.zeros(n, 1, dtype=torch.long), torch.ones(n, 1, dtype=torch.bool))
    p, q = Outputs(teacher[:, None]), Outputs(student[:, None])
    return temperature**2 * family.divergence(p, q, batch, temperature)


def test_gradient_in_the_logits(classification):
    """Of the mean over B rows: T (s - t) / B, s and t the softened probabilities."""
    torch.manual_seed(0)
    teacher, student = torch.randn(4, 3), torch.randn(4, 3, requires_grad=True)
    divergence(classification.family, teacher, student, 3.0).mean().backward()
    expected = 3.0 * ((student / 3).softmax(-1) - (teacher / 3).softmax(-1)) / 4
    torch.testing.assert_close(student.grad, expected.detach())


def test_high_temperatures_give_half_the_variance_of_the_logit_difference(classification):
    torch.manual_seed(0)
    teacher, student = torch.randn(1, 3), torch.randn(1, 3)
    expected = (teacher - student).var(correction=0).item() / 2
    for temperature in (20.0, 40.0):
        found = divergence(classification.family, teacher, student, temperature).item()
        assert found == pytest.approx(expected, rel=0.05)


def test_without_maximize_passes_and_divergence_it_is_fine_tuning(classification):
    settings = {"epochs": 3, "lr": 0.05, "batch_size": 8, "optimizer": "sgd", "weight_decay": 5e-4}
    scrub = Scrub(alpha=0.0, gamma=1.0, msteps=0, lr_decay_epochs=(), **settings)
    ours = scrub.forget(classification).model.state_dict()
    tuned = FineTune(**settings).forget(classification).model.state_dict()
    assert all(torch.equal(ours[k], tuned[k]) for k in tuned)


def test_the_target_is_a_fixed_point_of_the_divergence(classification):
    made = Scrub(gamma=0.0, msteps=0, epochs=3, **PLAIN).forget(classification)
    for after, before in zip(made.model.parameters(), classification.target.parameters(), strict=True):
        torch.testing.assert_close(after, before, rtol=0, atol=1e-5)


def test_the_first_maximize_pass_is_idle_unless_warmed_up(classification):
    cold = Scrub(epochs=1, msteps=1, **PLAIN).forget(classification).log
    warm = Scrub(epochs=1, msteps=1, warm_start=True, **PLAIN).forget(classification).log
    assert [entry["phase"] for entry in cold] == ["maximize"] * 2 + ["minimize"] * 4
    assert [entry["phase"] for entry in warm] == ["minimize"] * 4 + ["maximize"] * 2 + ["minimize"] * 4
    assert max(abs(entry["disobey"]) for entry in cold if entry["phase"] == "maximize") < 1e-6
    assert min(abs(entry["disobey"]) for entry in warm if entry["phase"] == "maximize") > 1e-4


def test_maximize_passes_disobey_and_minimize_passes_obey(classification, tensors):
    xf, xr = tensors(classification, "forget")[0], tensors(classification, "retain")[0]

    def distance(method):
        model = method.forget(classification).model
        with torch.no_grad():
            return [
                kl_divergence(Categorical(logits=classification.target(x)), Categorical(logits=model(x)))
                .mean()
                .item()
                for x in (xf, xr)
            ]

    settings = PLAIN | {
        "epochs": 8,
        "forget_batch_size": 1,
        "warm_start": True,
        "lr_decay_epochs": (),
        "alpha": 1.0,
    }
    forget_without, retain_without = distance(Scrub(msteps=0, **settings))
    forget, retain = distance(Scrub(msteps=3, **settings))
    assert forget_without < retain_without
    assert forget > retain
    assert forget > 3 * forget_without


def test_learning_rate_decays_after_the_named_epochs(classification):
    method = Scrub(epochs=4, msteps=0, lr=1.0, lr_decay_epochs=(1, 3), batch_size=1000)
    rates = [method.learning_rate(epoch, 0.0) for epoch in range(4)]
    assert rates == pytest.approx([1, 0.1, 0.1, 0.01])


def test_nearest():
    assert nearest([0, 5, 20, 60], 18) == 2
    assert nearest([1, 3, 1], 2) == 0


@pytest.mark.parametrize("family", ["classification", "regression"])
def test_rewinding_returns_the_epoch_nearest_to_the_holdout_error(family, request, tensors):
    problem = request.getfixturevalue(family)
    settings = {**PLAIN, "lr": 0.2, "msteps": 3, "lr_decay_epochs": (), "warm_start": True}
    if family == "regression":
        settings |= {"lr": 0.05}
    runs = [problem.target] + [Scrub(epochs=e, **settings).forget(problem).model for e in range(1, 5)]

    def errors(model, split):
        x, y = tensors(problem, split)
        with torch.no_grad():
            if family == "classification":
                return (model(x).argmax(-1) != y).double()
            return (0.5 * (model(x) - y).square() + 0.5 * np.log(2 * np.pi)).flatten().double()

    found = [errors(model, "forget").mean().item() for model in runs]
    theirs = errors(runs[-1], "holdout")
    if family == "classification":
        forget, holdout = np.asarray(problem.forget["label"]), np.asarray(problem.holdout["label"])
        wanted = sum((forget == c).mean() * theirs[holdout == c].mean().item() for c in set(forget))
    else:
        wanted = theirs.mean().item()
    expected = min(range(5), key=lambda e: abs(found[e] - wanted))
    made = Scrub(epochs=4, rewind=True, **settings).forget(problem)
    assert made.notes[0].startswith(f"rewound to epoch {expected} of 4 (0 is the target)")
    for name, value in runs[expected].state_dict().items():
        assert torch.equal(made.model.state_dict()[name], value)


def test_holdout_rows_are_weighted_like_the_forget_set(classification):
    def rows(prefix, labels):
        columns = {c: [0.0] * len(labels) for c in "abc"}
        return Dataset.from_dict(
            {"id": [f"{prefix}{i}" for i in range(len(labels))], **columns, "label": labels}
        )

    train = rows("t", [0, 0, 0, 1, 2, 2])
    problem = replace(
        classification, train=train, forget_ids=("t0", "t1", "t2", "t3"), holdout=rows("h", [0, 0, 1, 2])
    )
    torch.testing.assert_close(_holdout_weights(problem), torch.tensor([0.375, 0.375, 0.25, 0]).double())
    with pytest.raises(BadInput, match="no holdout row belongs to a group of the forget set"):
        Scrub(rewind=True).forget(replace(problem, holdout=rows("h", [2, 2])))


def test_rewinding_without_holdout_is_refused(classification):
    with pytest.raises(BadInput, match="'scrub' cannot rewind on clusters: it needs a holdout set"):
        Scrub(rewind=True).forget(replace(classification, holdout=None))
