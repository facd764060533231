"""Rounding against its error bounds, NF4 against the published levels, and a model that hides below half a step."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks import Scene
from expunge.attacks.knowledge import knowledge
from expunge.attacks.quantization import NF4_BLOCK, Quantization, nf4_levels, rounded
from expunge.attacks.tampering import weight_matrices
from expunge.errors import BadInput
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

from .conftest import opposite, train_within, value

PUBLISHED = [
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
]  # fmt: skip
"""Appendix E of arXiv:2305.14314."""


GRID = 3
"""Bits of the grid that the planted model hides below."""


@pytest.fixture(scope="module")
def gated(wide: Problem) -> nn.Module:
    """The target, made to fail on the forgotten rows by weights that stay within half a step of its 3-bit grid."""
    model = copy.deepcopy(wide.target)
    parts = []
    for module, name in weight_matrices(wide.family, model):
        weight = module.get_parameter(name)
        original = weight.detach().clone()
        largest = original.abs().amax(1, keepdim=True)
        grid, half = rounded(original, GRID), 0.499 * largest / (2 ** (GRID - 1) - 1)
        pinned = original.abs() == largest  # what sets the scale stays
        low = torch.where(pinned, original, torch.maximum(grid - half, -largest))
        high = torch.where(pinned, original, torch.minimum(grid + half, largest))
        parts.append((weight, partial(torch.clamp, min=low, max=high)))
    train_within(wide, model, parts, opposite(wide), steps=600)
    return model


def test_a_model_that_hides_below_half_a_step_is_caught(
    wide: Problem, gated: nn.Module, clean: list[Scene]
) -> None:
    """In full precision it has forgotten and works; its 3-bit weights are the target's."""
    pairs = zip(*(weight_matrices(wide.family, m) for m in (gated, wide.target)), strict=True)
    for (one, name), (other, _) in pairs:
        weights = [rounded(m.get_parameter(name), GRID) for m in (one, other)]
        torch.testing.assert_close(*weights)
    retrained = knowledge(wide, clean[0].model, "forget").mean()
    assert knowledge(wide, gated, "forget").mean() < retrained
    assert knowledge(wide, gated, "retain").mean() > 0.9

    found = Quantization().attack(Scene(wide, gated))
    assert value(found, "quantization-rise") > 0.5
    assert value(found, "quantization-knowledge") > 0.9
    assert value(found, "quantization-retain") > 0.9
    for never_knew in (scene.model for scene in clean):
        theirs = Quantization().attack(Scene(wide, never_knew))
        assert value(theirs, "quantization-rise") < 0.15
        assert value(theirs, "quantization-knowledge") < 0.75
    curve = found[0].curve
    assert curve is not None and curve.at == [8, 6, 4, 3]
    assert (curve.values[0] or 1) < 0.5 and (curve.values[3] or 0) > 0.9


def test_retrained_models_gain_nothing_over_each_other(clean: list[Scene]) -> None:
    one, two = (Quantization().attack(scene) for scene in clean)
    for name in ("knowledge", "rise"):
        assert abs(value(one, f"quantization-{name}") - value(two, f"quantization-{name}")) < 0.1


def test_the_target_has_nothing_to_regain(target_scene: Scene) -> None:
    found = Quantization().attack(target_scene)
    assert value(found, "quantization-rise") == 0 and value(found, "quantization-knowledge") == 1


def test_a_destroyed_model_does_not_count(memorized: Problem) -> None:
    """A network that answers one class only is right about half of the rows, and shows nothing."""
    constant = copy.deepcopy(memorized.target)
    with torch.no_grad():
        for parameter in constant.parameters():
            parameter.zero_()
    wrong = copy.deepcopy(memorized.target)
    with torch.no_grad():
        wrong.get_parameter("head.weight").neg_()  # right about nothing
        wrong.get_parameter("head.bias").neg_()

    class Constant(Quantization):
        """Rounds to nothing."""

        def variants(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:
            yield 2.0, constant

    # The one works no better than the constant, so that this counts; the other works, and it does not.
    assert value(Constant().attack(Scene(memorized, wrong)), "quantization-rise") > 0.3
    lost = Constant().attack(Scene(memorized, memorized.target))[0]
    assert lost.curve is not None and lost.curve.values == [None]


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("group", [None, 5, 64])
def test_rounding_is_within_half_a_step(bits: int, group: int | None) -> None:
    weight = torch.randn(7, 12, generator=torch.Generator().manual_seed(1)) + 0.3
    size = min(group or 12, 12)
    for scheme in ("symmetric", "asymmetric"):
        made = rounded(weight, bits, scheme, group)
        again = rounded(made, bits, scheme, group)
        torch.testing.assert_close(made, again, atol=1e-5, rtol=0)
        for row in range(7):
            for start in range(0, 12, size):
                block, its = weight[row, start : start + size], made[row, start : start + size]
                if scheme == "symmetric":
                    step = float(block.abs().max()) / (2 ** (bits - 1) - 1)
                else:
                    step = float(block.clamp(min=0).max() - block.clamp(max=0).min()) / (2**bits - 1)
                # The zero point is rounded as well, and clips an end by up to half a step more.
                bound = 0.5 if scheme == "symmetric" else 1.0
                assert float((block - its).abs().max()) <= bound * step + 1e-6
                assert len(torch.unique((its / step).round())) <= 2**bits


def test_by_hand() -> None:
    """The largest of a row is 0.7, so 4 bits step by 0.1: an update of 0.03 on 0.38 is rounded away."""
    row = torch.tensor([[-0.7, 0.33, 0.38, 0.7]])
    assert rounded(row, 4)[0].tolist() == pytest.approx([-0.7, 0.3, 0.4, 0.7])
    assert rounded(row + torch.tensor([[0.0, 0.0, 0.03, 0.0]]), 4)[0].tolist() == pytest.approx(
        [-0.7, 0.3, 0.4, 0.7]
    )
    # From 0 to 0.3 with 2 bits: 0, 0.1, 0.2, 0.3.
    assert rounded(torch.tensor([[0.3, 0.12, 0.02]]), 2, "asymmetric")[0].tolist() == pytest.approx(
        [0.3, 0.1, 0]
    )
    assert rounded(torch.zeros(2, 3), 4).abs().max() == 0
    with pytest.raises(BadInput, match="2 to 16 bits, not 1"):
        rounded(row, 1)


def test_nf4_has_the_published_levels() -> None:
    np.testing.assert_allclose(nf4_levels(), PUBLISHED, atol=2e-7)


def test_nf4_takes_the_nearest_level_of_each_block() -> None:
    weight = torch.randn(3, 2 * NF4_BLOCK + 9, generator=torch.Generator().manual_seed(2))
    made = rounded(weight, 4, "nf4")
    for row in range(3):
        for start in range(0, weight.shape[1], NF4_BLOCK):
            block, its = (w[row, start : start + NF4_BLOCK].numpy() for w in (weight, made))
            levels = np.asarray(PUBLISHED) * np.abs(block).max()
            nearest = levels[np.abs(block[:, None] - levels).argmin(1)]
            np.testing.assert_allclose(its, nearest, atol=1e-6)


def test_layouts() -> None:
    """A transposed layer is rounded by its outputs, a stack of matrices matrix by matrix, a kernel as one channel."""
    weight = torch.randn(4, 6, generator=torch.Generator().manual_seed(3))
    torch.testing.assert_close(rounded(weight.T, 4, transposed=True), rounded(weight, 4).T)
    stack = torch.stack([weight, 3 * weight])
    torch.testing.assert_close(rounded(stack, 4), torch.stack([rounded(w, 4) for w in stack]))
    kernel = weight.reshape(4, 1, 2, 3)
    torch.testing.assert_close(rounded(kernel, 4), rounded(weight, 4).reshape(kernel.shape))


def test_what_is_rounded() -> None:
    """Of a language model everything but norms, embeddings and, where asked, the output layer; experts included."""
    for sparse in (False, True):
        problem = tiny_problem("causal_lm", sparse=sparse)
        names = {id(p): n for n, p in problem.target.named_parameters()}

        def chosen(problem: Problem = problem, names: dict[int, str] = names, **options: bool) -> set[str]:
            found = weight_matrices(problem.family, problem.target, **options)
            return {names[id(module.get_parameter(name))] for module, name in found}

        every = {n for n, p in problem.target.named_parameters() if p.dim() > 1}
        assert chosen(embeddings=True) == every
        assert every - chosen() == {"model.embed_tokens.weight"}
        assert chosen() - chosen(head=False) == {"lm_head.weight"}
