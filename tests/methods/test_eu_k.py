from dataclasses import replace

import pytest
import torch

from expunge.errors import BadInput
from expunge.families.models import clone
from expunge.methods import Workplace
from expunge.methods.cf_k import CFk
from expunge.methods.eu_k import EUk
from expunge.methods.loop import fit
from expunge.problem import Problem, Training


@pytest.fixture
def built(monkeypatch):
    """The fresh models that are built, as they were, with their seeds."""
    made = []
    build = Problem.fresh_model

    def noted(self, seed):
        model = build(self, seed)
        made.append((seed, clone(model)))
        return model

    monkeypatch.setattr(Problem, "fresh_model", noted)
    return made


def test_every_weight_of_the_last_layers_is_fresh_before_training(normalized, built):
    made = EUk(k=3, epochs=1, lr=0.0, batchnorm="freeze").forget(normalized).model.state_dict()
    ((_, fresh),) = built
    fresh, before = fresh.state_dict(), normalized.target.state_dict()
    for name, value in made.items():
        expected = before if name.startswith("convs.0.") else fresh
        assert torch.equal(value, expected[name]), name
    reset = [name for name in made if not name.startswith("convs.0.") and made[name].is_floating_point()]
    assert all((made[name] != before[name]).all() for name in reset)
    assert {"convs.1.1.running_mean", "hidden.weight", "head.bias"} <= set(reset)


def test_after_that_it_is_cf_k(normalized, built):
    settings = {"k": 2, "epochs": 2, "lr": 0.05, "batch_size": 8}
    made = EUk(**settings).forget(normalized).model.state_dict()
    start = clone(normalized.target)
    ((_, fresh),) = built
    for layer in ("hidden", "head"):
        start.get_submodule(layer).load_state_dict(fresh.get_submodule(layer).state_dict())
    expected = CFk(**settings).forget(normalized.with_model(start)).model.state_dict()
    assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_with_every_layer_it_is_retraining(normalized, built):
    recipe = {"epochs": 3, "lr": 0.05, "batch_size": 8, "weight_decay": 0.01}
    made = EUk(k=9, **recipe).forget(normalized, Workplace(seed=4)).model.state_dict()
    ((_, fresh),) = built
    retrained = fit(normalized, fresh, "retain", Training(**recipe), Workplace(seed=4)).state_dict()
    assert all(torch.equal(made[name], value) for name, value in retrained.items())


def test_the_fresh_weights_differ_between_seeds_and_from_those_of_retraining(normalized, built):
    for seed in (0, 1):
        EUk(epochs=1, lr=0.0).forget(normalized, Workplace(seed=seed))
    first, second = (seed for seed, _ in built)
    assert first != second
    assert not {first, second} & {0, 1, 7919, 7920}


def test_without_an_architecture_it_is_refused(normalized):
    with pytest.raises(BadInput, match="'eu-k' cannot run on images: it needs a model whose architecture"):
        EUk().forget(replace(normalized, architecture=None))
