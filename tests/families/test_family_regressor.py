"""Regressor quantities against scipy, numeric integration and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.integrate
import scipy.stats
import torch
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput
from expunge.families import Batch, Outputs, Regressor, Table, restore_family

DATA = Dataset.from_dict(
    {"id": list("abcd"), "x": [1.0, 2.0, 3.0, 4.0], "y": [10.0, 20.0, 30.0, 60.0], "z": [1.0, 1.0, 3.0, 3.0]}
)


class Fixed(nn.Module):
    """Predicts what it was given, whatever it sees."""

    def __init__(self, values: list[float]) -> None:
        super().__init__()
        self.values = nn.Parameter(torch.tensor(values))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.values.reshape(len(features), -1)


def test_values_worked_out_by_hand() -> None:
    family = Regressor(Table(["x"]), "y", center=30.0, scale=10.0)
    batch = family.collate(DATA.with_format("numpy")[:])
    assert batch.targets.flatten().tolist() == [-2.0, -1.0, 0.0, 3.0]
    made = family.forward(Fixed([-1.0, -1.0, 0.5, 0.0]), batch)
    seen = family.observe(made, batch, ["predicted", "target", "error", "absolute_error", "loss"])
    assert seen["predicted"].tolist() == [20.0, 20.0, 35.0, 30.0] and seen["target"].tolist() == [
        10.0,
        20.0,
        30.0,
        60.0,
    ]
    assert seen["error"].tolist() == [10.0, 0.0, 5.0, -30.0] and seen["absolute_error"].tolist() == [
        10.0,
        0.0,
        5.0,
        30.0,
    ]
    expected = -scipy.stats.norm.logpdf([-2.0, -1.0, 0.0, 3.0], loc=[-1.0, -1.0, 0.5, 0.0])
    np.testing.assert_allclose(seen["loss"].detach().numpy(), expected, rtol=1e-6)


def test_raw_model_gives_the_same_evidence_as_a_standardized_one() -> None:
    standard = Regressor(Table(["x"]), "y", center=30.0, scale=10.0)
    raw = Regressor(Table(["x"]), "y", center=30.0, scale=10.0, raw=True)
    batch = raw.collate(DATA.with_format("numpy")[:])
    quantities = ["predicted", "target", "error", "absolute_error", "loss"]
    ours = raw.observe(raw.forward(Fixed([20.0, 20.0, 35.0, 30.0]), batch), batch, quantities)
    theirs = standard.observe(standard.forward(Fixed([-1.0, -1.0, 0.5, 0.0]), batch), batch, quantities)
    for quantity in quantities:
        torch.testing.assert_close(ours[quantity], theirs[quantity])


def test_several_targets_are_summed_in_the_likelihood_and_averaged_in_the_error() -> None:
    family = Regressor.fit(Table(["x"]), DATA, ["y", "z"])
    assert family.center.tolist() == [30.0, 2.0] and family.scale.tolist() == pytest.approx(
        [math.sqrt(350), 1.0]
    )
    batch = family.collate(DATA.with_format("numpy")[:])
    seen = family.observe(Outputs(torch.zeros(4, 1, 2)), batch, ["loss", "absolute_error", "error"])
    standard = (np.array([[10, 1], [20, 1], [30, 3], [60, 3]]) - family.center) / family.scale
    np.testing.assert_allclose(seen["loss"].numpy(), -scipy.stats.norm.logpdf(standard).sum(1), rtol=1e-6)
    np.testing.assert_allclose(seen["absolute_error"].numpy(), [10.5, 5.5, 0.5, 15.5], rtol=1e-6)
    assert seen["error"].shape == (4, 2)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_divergence_by_numeric_integration(temperature: float) -> None:
    """Raising N(m, 1) to 1/t and normalizing gives N(m, t)."""
    family = Regressor(Table(["x"]), "y")
    batch = Batch(["a"], {}, torch.zeros(1, 1, 1), torch.ones(1, 1, dtype=torch.bool))
    ours = family.divergence(
        Outputs(torch.tensor([[[0.3]]])), Outputs(torch.tensor([[[1.7]]])), batch, temperature
    )
    normal: Any = scipy.stats.norm
    p, q = (normal(loc=m, scale=math.sqrt(temperature)) for m in (0.3, 1.7))
    integral, _ = scipy.integrate.quad(lambda y: p.pdf(y) * (p.logpdf(y) - q.logpdf(y)), -20, 20)
    assert ours.item() == pytest.approx(integral, rel=1e-6)


def test_gradient_of_nll_is_the_error() -> None:
    family = Regressor(Table(["x"]), "y", center=30.0, scale=10.0)
    batch = family.collate(DATA.with_format("numpy")[:])
    model = Fixed([-1.0, -1.0, 0.5, 0.0])
    family.nll(family.forward(model, batch), batch).sum().backward()
    assert model.values.grad is not None and model.values.grad.tolist() == [1.0, 0.0, 0.5, -3.0]


def test_relabeling_laws() -> None:
    family = Regressor(Table(["x"]), "y", center=30.0, scale=10.0, low=10.0, high=60.0)
    n = 20_000
    batch = Batch([str(i) for i in range(n)], {}, torch.ones(n, 1, 1), torch.ones(n, 1, dtype=torch.bool))
    drawn = family.relabel(batch, "random", torch.Generator().manual_seed(0)).targets
    assert drawn.min() == -2.0 and drawn.max() <= 3.0
    # Mean of N(0, 1) clipped to [-2, 3]: integral of the tails that are moved to the bounds.
    norm = scipy.stats.norm
    mean = norm.pdf(-2) - norm.pdf(3) - 2 * norm.cdf(-2) + 3 * norm.sf(3)
    assert drawn.mean().item() == pytest.approx(mean, abs=4 / math.sqrt(n))
    assert (family.relabel(batch, "mean", torch.Generator()).targets == 0).all()
    with pytest.raises(BadInput, match="regressor cannot relabel by 'random-other'; known: random, mean"):
        family.relabel(batch, "random-other", torch.Generator())


@pytest.mark.parametrize("raw", [False, True])
def test_description_round_trip_and_groups(raw: bool) -> None:
    family = Regressor.fit(Table.fit(DATA, ["x"]), DATA, ["y", "z"], group="z", raw=raw)
    again = restore_family(family.describe())
    assert again.describe() == family.describe() and isinstance(again, Regressor) and again.raw == raw
    batch, other = (f.collate(DATA.with_format("numpy")[:]) for f in (family, again))
    assert torch.equal(batch.targets, other.targets) and torch.equal(
        batch.inputs["features"], other.inputs["features"]
    )
    groups = again.groups(DATA)
    assert groups is not None and groups.tolist() == ["1.0", "1.0", "3.0", "3.0"]
    assert Regressor(Table(["x"]), "y").groups(DATA) is None


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0, 2.0]}, "probe has no target column 'y'; it has id, x"),
        (
            {"x": [1.0, 2.0], "y": [None, 1.0]},
            r"probe has 1 rows with NaN or infinity in 'y' \(first: id 'a'\)",
        ),
    ],
)
def test_refused_data(columns: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        Regressor(Table(["x"]), "y").check(Dataset.from_dict({"id": ["a", "b"], **columns}), "probe")


def test_refused_scale_and_quantity() -> None:
    with pytest.raises(BadInput, match=r"the targets' scale must be above 0, got \[0.0\]"):
        Regressor(Table(["x"]), "y", scale=0.0)
    family = Regressor(Table(["x"]), "y")
    batch = family.collate(DATA.with_format("numpy")[:])
    with pytest.raises(BadInput, match="regressor has no quantity 'correct'; known: loss, predicted"):
        family.observe(Outputs(torch.zeros(4, 1, 1)), batch, ["correct"])
