"""Classifier quantities against closed forms, scipy and numbers worked out by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.stats
import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.families import Batch, Classifier, Outputs, Table, restore_family

FAMILY = Classifier(Table(["x"]), 3)


def batch(*targets: int) -> Batch:
    column = torch.tensor(targets).reshape(-1, 1)
    return Batch([str(i) for i in range(len(targets))], {}, column, torch.ones_like(column, dtype=torch.bool))


def outputs(
    *probabilities: tuple[float, ...], shift: float = 0.0, dtype: torch.dtype = torch.float64
) -> Outputs:
    return Outputs((torch.tensor(probabilities, dtype=dtype).log() + shift).unsqueeze(1))


def test_quantities_of_a_known_distribution() -> None:
    """p = (.7, .2, .1), for the label 0 and for the label 1; logits are log p up to a constant."""
    p = (0.7, 0.2, 0.1)
    names = [
        "loss",
        "correct",
        "confidence",
        "margin",
        "entropy",
        "modified_entropy",
        "predicted",
        "target",
        "logp",
    ]
    seen = FAMILY.observe(outputs(p, p, shift=2.5), batch(0, 1), names)
    assert seen["loss"].tolist() == pytest.approx([-math.log(0.7), -math.log(0.2)])
    assert (
        seen["correct"].tolist() == [1, 0]
        and seen["predicted"].tolist() == [0, 0]
        and seen["target"].tolist() == [0, 1]
    )
    assert seen["confidence"].tolist() == pytest.approx([0.7, 0.2])
    assert seen["margin"].tolist() == pytest.approx([math.log(0.7 / 0.3), math.log(0.2 / 0.8)])
    assert seen["entropy"].tolist() == pytest.approx([scipy.stats.entropy(p)] * 2)
    # -(0.3)(ln 0.7) - 0.2 ln 0.8 - 0.1 ln 0.9, and -(0.8)(ln 0.2) - 0.7 ln 0.3 - 0.1 ln 0.9
    assert seen["modified_entropy"].tolist() == pytest.approx([0.1622, 2.1409], abs=5e-5)
    np.testing.assert_allclose(seen["logp"].exp().numpy(), [p, p])


def test_extreme_logits_stay_finite_and_exact() -> None:
    sure = Outputs(torch.tensor([[[100.0, 0.0, 0.0]], [[100.0, 0.0, 0.0]]]))
    seen = FAMILY.observe(sure, batch(0, 1), ["loss", "margin", "entropy", "modified_entropy"])
    assert all(torch.isfinite(v).all() for v in seen.values())
    assert seen["margin"].tolist() == pytest.approx([100 - math.log(2), -100.0], rel=1e-6)
    # For a confident wrong answer: -(1) ln p_1 - p_0 ln(1 - p_0) = 100 + (100 - ln 2).
    assert seen["modified_entropy"][1].item() == pytest.approx(200 - math.log(2), rel=1e-6)


def test_half_precision_is_widened() -> None:
    logits = torch.randn(4, 1, 3, generator=torch.Generator().manual_seed(0)).half()
    seen = FAMILY.nll(Outputs(logits), batch(0, 1, 2, 0))
    assert seen.dtype == torch.float32
    expected = -scipy.special.log_softmax(logits.squeeze(1).double().numpy(), axis=-1)[range(4), [0, 1, 2, 0]]
    np.testing.assert_allclose(seen.numpy(), expected, rtol=1e-6)


def test_nll_is_a_sum_over_valid_positions_and_terms_count_them() -> None:
    p = torch.tensor(
        [[[0.7, 0.2, 0.1], [0.1, 0.1, 0.8]], [[0.5, 0.25, 0.25], [0.2, 0.2, 0.6]]], dtype=torch.float64
    )
    targets = torch.tensor([[0, 2], [1, 0]])
    masked = Batch(["a", "b"], {}, targets, torch.tensor([[True, True], [True, False]]))
    expected = [-math.log(0.7) - math.log(0.8), -math.log(0.25)]
    assert FAMILY.nll(Outputs(p.log()), masked).tolist() == pytest.approx(expected)
    assert FAMILY.terms(masked).tolist() == [2, 1]
    other = torch.full_like(p, 1 / 3)
    uniform = FAMILY.divergence(Outputs(p.log()), Outputs(other.log()), masked).tolist()
    single: Any = scipy.stats.entropy(p.numpy(), np.full(3, 1 / 3)[None, None], axis=-1)
    assert uniform == pytest.approx([single[0, 0] + single[0, 1], single[1, 0]])


@pytest.mark.parametrize("temperature", [1.0, 2.0, 0.5])
def test_divergence_is_scipys_relative_entropy(temperature: float) -> None:
    generator = np.random.default_rng(1)
    p, q = generator.normal(size=(5, 3)), generator.normal(size=(5, 3))
    ours = FAMILY.divergence(
        Outputs(torch.from_numpy(p).unsqueeze(1)),
        Outputs(torch.from_numpy(q).unsqueeze(1)),
        batch(0, 0, 0, 0, 0),
        temperature,
    )
    soft = [scipy.special.softmax(z / temperature, axis=-1) for z in (p, q)]
    np.testing.assert_allclose(ours.numpy(), scipy.stats.entropy(soft[0], soft[1], axis=-1), rtol=1e-9)
    same = Outputs(torch.from_numpy(p).unsqueeze(1))
    assert FAMILY.divergence(same, same, batch(0, 0, 0, 0, 0)).abs().max() < 1e-12


def test_gradient_of_nll_is_p_minus_one_hot() -> None:
    logits = torch.tensor([[[0.3, -1.0, 2.0]]], dtype=torch.float64, requires_grad=True)
    FAMILY.nll(Outputs(logits), batch(1)).sum().backward()
    expected = torch.softmax(logits.detach(), -1) - torch.tensor([0.0, 1.0, 0.0])
    assert logits.grad is not None
    torch.testing.assert_close(logits.grad, expected, atol=1e-7, rtol=1e-7)


def test_relabeling_laws() -> None:
    many = batch(*([0] * 3000))
    other = FAMILY.relabel(many, "random-other", torch.Generator().manual_seed(0)).targets
    counts = torch.bincount(other.flatten(), minlength=3).tolist()
    assert counts[0] == 0 and abs(counts[1] - 1500) < 4 * math.sqrt(3000 * 0.25)
    anyone = FAMILY.relabel(many, "random", torch.Generator().manual_seed(0)).targets
    assert all(abs(c - 1000) < 4 * math.sqrt(3000 * 2 / 9) for c in torch.bincount(anyone.flatten()).tolist())
    assert many.targets.sum() == 0  # the batch itself is untouched
    with pytest.raises(BadInput, match="classifier cannot relabel by 'mean'; known: random, random-other"):
        FAMILY.relabel(many, "mean", torch.Generator())


def test_description_round_trip_and_groups() -> None:
    family = Classifier(Table(["x"], [1.0], [2.0]), ["no", "yes"], "y", "who")
    assert restore_family(family.describe()).describe() == family.describe()
    data = Dataset.from_dict({"id": ["a", "b"], "x": [1.0, 3.0], "y": [1, 0], "who": ["ann", "bob"]})
    assert family.groups(data).tolist() == ["ann", "bob"]
    assert Classifier(family.inputs, ["no", "yes"], "y").groups(data).tolist() == ["yes", "no"]
    made = family.collate(data.with_format("numpy")[:])
    assert (
        made.ids == ["a", "b"]
        and made.inputs["features"].tolist() == [[0.0], [1.0]]
        and made.targets.tolist() == [[1], [0]]
    )


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"x": [1.0, 2.0]}, "probe has no label column 'label'; it has id, x"),
        (
            {"x": [1.0, 2.0], "label": [0, 3]},
            r"probe: label 3 of id 'b' is outside 0\.\.2; the model has 3 classes",
        ),
        ({"x": [1.0, 2.0], "label": [0, -1]}, r"probe: label -1 of id 'b' is outside 0\.\.2"),
        (
            {"x": [1.0, None], "label": [0, 1]},
            r"probe has 1 rows with NaN or infinity in 'x' \(first: id 'b'\)",
        ),
        ({"x": [1.0, math.inf], "label": [0, 1]}, "probe has 1 rows with NaN or infinity in 'x'"),
        ({"x": ["u", "v"], "label": [0, 1]}, "probe: column 'x' is not numeric; encode it or leave it out"),
        ({"label": [0, 1]}, "probe has no column 'x'; it has id, label"),
    ],
)
def test_refused_data(columns: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        FAMILY.check(Dataset.from_dict({"id": ["a", "b"], **columns}), "probe")


def test_refused_questions() -> None:
    with pytest.raises(BadInput, match="classifier has no quantity 'perplexity'; known: loss, correct"):
        FAMILY.observe(outputs((0.7, 0.2, 0.1)), batch(0), ["perplexity"])
    with pytest.raises(BadInput, match="needs two or more classes, got 1"):
        Classifier(Table(["x"]), 1)
    with pytest.raises(BadInput, match="unknown family 'clasifier'; did you mean 'classifier'"):
        restore_family({"family": "clasifier"})
