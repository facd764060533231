import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.families.base import captured
from expunge.methods.cf_k import CFk
from expunge.methods.fine_tune import FineTune


def test_only_the_last_layers_move(normalized):
    """Of convs.0, convs.1, hidden, head the last three are trained; batch norm is part of its block."""
    before = normalized.target.state_dict()
    made = CFk(k=3, epochs=3, batch_size=6, momentum=0.9, weight_decay=0.1).forget(normalized)
    for name, value in made.model.state_dict().items():
        if name.startswith("convs.0."):
            assert torch.equal(value, before[name]), name
        elif value.is_floating_point():
            assert not torch.equal(value, before[name]), name
    assert sum(name.startswith("convs.0.1.running") for name in before) == 2


def test_the_head_is_trained_on_features_of_the_target_in_eval_mode(normalized):
    """With k = 1, plain training of a linear layer on stored features."""
    target, retain = normalized.target, normalized.batches("retain").take(torch.arange(22))
    with torch.no_grad(), captured(target, ["hidden"]) as caught:
        normalized.family.predict(target, retain)
    features = caught["hidden"].squeeze(1).relu()
    head = nn.Linear(8, 3)
    head.load_state_dict(target.get_submodule("head").state_dict())
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1, momentum=0.9, weight_decay=0.01)
    for _ in range(2):
        for x, y in zip(features.split(8), retain.targets[:, 0].split(8), strict=True):
            optimizer.zero_grad()
            F.cross_entropy(head(x), y).backward()
            optimizer.step()
    method = CFk(k=1, epochs=2, lr=0.1, batch_size=8, momentum=0.9, weight_decay=0.01, shuffle=False)
    made = method.forget(normalized).model
    for name, value in head.state_dict().items():
        torch.testing.assert_close(made.state_dict()[f"head.{name}"], value, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [4, 99])
def test_with_every_layer_it_is_fine_tuning(normalized, k):
    settings = {"epochs": 2, "lr": 0.05, "batch_size": 8}
    ours = CFk(k=k, **settings).forget(normalized).model.state_dict()
    plain = FineTune(**settings).forget(normalized).model.state_dict()
    assert all(torch.equal(ours[name], value) for name, value in plain.items())


def test_a_layer_is_not_mistaken_for_one_whose_name_begins_alike(classification):
    model = nn.Sequential(*(nn.Linear(3, 3) for _ in range(11)))
    problem = classification.with_model(model)
    made = CFk(k=10, epochs=1, weight_decay=0.1).forget(problem).model
    changed = {n for n, p in made.named_parameters() if not torch.equal(p, model.get_parameter(n))}
    assert changed == {f"{i}.{kind}" for i in range(1, 11) for kind in ("weight", "bias")}
