"""A model that suppresses by its smallest weights is undone by taking them out; one that never knew is not."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from expunge.attacks import Scene
from expunge.attacks.knowledge import knowledge
from expunge.attacks.pruning import Pruning
from expunge.attacks.tampering import weight_matrices
from expunge.problem import Problem

from .conftest import opposite, train_within, value


def test_suppression_by_small_weights_is_caught(wide: Problem, clean: list[Scene]) -> None:
    """A network of three weights in ten; the others, smaller than all of these, are trained until the rows are missed."""
    model = copy.deepcopy(wide.target)
    matrices = [module.get_parameter(name) for module, name in weight_matrices(wide.family, model)]
    floor = float(torch.cat([p.detach().abs().flatten() for p in matrices]).quantile(0.7))
    large: dict[Tensor, Tensor] = {p: p.detach().abs() >= floor for p in matrices}

    def stay_large(p: Tensor) -> Tensor:
        return torch.where(large[p], p.sign() * p.abs().clamp(min=floor), 0.0)

    known = [wide.batches(split).take(torch.arange(40)) for split in ("forget", "retain")]
    train_within(wide, model, [(p, stay_large) for p in matrices], known)
    assert knowledge(wide, model, "forget").mean() == 1

    sparse: dict[Tensor, Tensor] = {p: p.detach().clone() for p in matrices}

    def stay_small(p: Tensor) -> Tensor:
        return torch.where(large[p], sparse[p], p.clamp(-0.99 * floor, 0.99 * floor))

    train_within(wide, model, [(p, stay_small) for p in matrices], opposite(wide))
    assert knowledge(wide, model, "forget").mean() < 0.2 and knowledge(wide, model, "retain").mean() == 1

    found = Pruning().attack(Scene(wide, model))
    assert value(found, "pruning-rise") > 0.8
    assert found[0].curve is not None and found[0].curve.values[found[0].curve.at.index(0.7)] == 1
    for scene in clean:
        theirs = Pruning().attack(scene)
        assert value(theirs, "pruning-rise") < 0.15
        assert value(theirs, "pruning-knowledge") < 0.75


def test_retrained_models_gain_nothing_over_each_other(clean: list[Scene]) -> None:
    one, two = (Pruning().attack(scene) for scene in clean)
    for name in ("knowledge", "rise"):
        assert abs(value(one, f"pruning-{name}") - value(two, f"pruning-{name}")) < 0.1, name


def test_prunes_what_it_says(memorized: Problem, target_scene: Scene) -> None:
    """Against sorting by hand: the share of all weights, or of each matrix, that is smallest."""
    own = [m.get_parameter(n).detach() for m, n in weight_matrices(memorized.family, memorized.target)]
    for scope in ("global", "layer"):
        _, model = next(Pruning(sparsities=(0.3,), scopes=(scope,)).variants(target_scene))
        for index, (module, name) in enumerate(weight_matrices(memorized.family, model)):
            ranked = torch.cat([w.flatten() for w in own]) if scope == "global" else own[index].flatten()
            border = ranked.abs().sort().values[round(0.3 * len(ranked))]
            expected = torch.where(own[index].abs() < border, 0.0, own[index])
            torch.testing.assert_close(module.get_parameter(name).detach(), expected)
        assert not any("mask" in n for n, _ in model.named_buffers())
