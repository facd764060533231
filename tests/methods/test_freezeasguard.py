import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset
from torch import nn
from torch.func import functional_call

from expunge.data.benchmarks.digits import Digits
from expunge.errors import BadInput
from expunge.families import Classifier, Table
from expunge.families.models import clone
from expunge.methods import Workplace, checkpoint
from expunge.methods.freezeasguard import FreezeAsGuard, gradients, mean_loss, place
from expunge.methods.loop import fit
from expunge.methods.random_labeling import RandomLabeling
from expunge.problem import Problem, Training


class Interrupted(Exception):
    pass


def guard(**settings):
    return FreezeAsGuard(**settings)


def other_weights(model, spread=0.3):
    """Weights near those of `model`, as a user's fine-tuning might leave them."""
    generator = torch.Generator().manual_seed(7)
    return {
        name: p.detach() + spread * torch.randn(p.shape, generator=generator)
        for name, p in model.named_parameters()
    }


def test_a_mask_of_one_is_the_start_and_of_zero_the_tuned_weights(classification):
    model, start = clone(classification.target), dict(classification.target.named_parameters())
    tuned = other_weights(model)
    before = {name: p.detach().clone() for name, p in start.items()}
    for mask, expected in ((torch.ones(4), before), (torch.zeros(4), tuned)):
        place(model, before, tuned, mask)
        assert all(torch.equal(p, expected[name]) for name, p in model.named_parameters())
    place(model, before, tuned, torch.full((4,), 0.25))
    for name, p in model.named_parameters():
        torch.testing.assert_close(p.detach(), 0.75 * tuned[name] + 0.25 * before[name])


def test_the_slope_of_the_mask_is_that_of_finite_differences(classification):
    """The objective of the mask, computed from its formula at logits moved by 1e-5, in double precision."""
    model = clone(classification.target).double()
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    tuned = other_weights(model)
    batches = {}
    for split, n in (("forget", 10), ("retain", 26)):
        batch = classification.batches(split).take(torch.arange(n))
        batches[split] = replace(batch, inputs={k: v.double() for k, v in batch.inputs.items()})
    method = guard(c_s=3.0, rho=0.3)
    logits = torch.tensor([0.1, -0.2, 0.3, 0.05], dtype=torch.float64)

    def objective(x):
        mask = torch.sigmoid(x / 0.2)
        place(model, start, tuned, mask)
        losses = {s: mean_loss(classification.family, model, b) for s, b in batches.items()}
        return 0.5 * (losses["retain"] - losses["forget"]), 3.0 * (0.3 - mask.mean()) ** 2

    loss, _ = objective(logits)
    found = method.slope(start, tuned, gradients(loss, model, tuned), torch.sigmoid(logits / 0.2))
    for j in range(4):
        moved = torch.zeros(4, dtype=torch.float64)
        moved[j] = 1e-5
        difference = (
            torch.stack(objective(logits + moved)).sum() - torch.stack(objective(logits - moved)).sum()
        )
        assert found[j].item() == pytest.approx(difference.item() / 2e-5, rel=1e-4, abs=1e-8)


def test_mask_and_user_follow_the_bilevel_definition(classification, tensors):
    """Both levels by automatic differentiation of the definition, over whole sets."""
    settings = {"c_s": 2.0, "rho": 0.4, "mask_lr": 0.3, "lr": 0.1, "user_interval": 2, "mask_steps": 7}
    method = guard(batch_size=1000, **settings)
    model = clone(classification.target)
    start, tuned = {n: p.detach().clone() for n, p in model.named_parameters()}, other_weights(model)
    ft = {name: value.clone() for name, value in tuned.items()}
    sets = [tensors(classification, s) for s in ("forget", "retain")]

    def losses(x, weights):
        m = torch.sigmoid(x / 0.2)
        theta = {n: weights[n] + m[j] * (start[n] - weights[n]) for j, n in enumerate(weights)}
        return m, [F.cross_entropy(functional_call(classification.target, theta, (x_,)), y) for x_, y in sets]

    x = torch.rand(4, generator=Workplace(seed=1).generator(12))
    for step in range(7):
        x.requires_grad_()
        m, (forget, retain) = losses(x, ft)
        (slope,) = torch.autograd.grad(0.5 * (-forget + retain) + 2.0 * (0.4 - m.mean()) ** 2, x)
        x = (x.detach() - 0.3 * slope).clamp(-1, 1)
        if step % 2 == 1:
            ft = {name: value.requires_grad_() for name, value in ft.items()}
            found = torch.autograd.grad(torch.stack(losses(x, ft)[1]).mean(), list(ft.values()))
            ft = {n: (v - 0.1 * g).detach() for (n, v), g in zip(ft.items(), found, strict=True)}
    mask = method.learn_mask(classification, model, tuned, Workplace(seed=1))
    torch.testing.assert_close(mask, torch.sigmoid(x / 0.2), rtol=1e-4, atol=1e-5)
    for name, value in ft.items():
        torch.testing.assert_close(tuned[name], value, rtol=1e-4, atol=1e-5)
    assert all(torch.equal(p, start[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("rho", [0.3, 0.7])
def test_a_heavy_share_term_freezes_that_share(classification, rho):
    model = clone(classification.target)
    method = guard(c_s=1e4, mask_lr=1e-4, rho=rho, mask_steps=400)
    mask = method.learn_mask(classification, model, other_weights(model), Workplace())
    assert mask.mean().item() == pytest.approx(rho, abs=0.01)


def test_where_both_sets_are_the_same_only_the_share_counts(classification):
    forget = classification.forget
    rows = forget.to_dict()
    twice = {k: v + (v if k != "id" else [f"{i}-again" for i in v]) for k, v in rows.items()}
    problem = replace(classification, train=Dataset.from_dict(twice))
    settings = {"batch_size": 1000, "mask_steps": 20, "mask_lr": 0.3}
    start = torch.rand(4, generator=Workplace().generator(12))
    for c_s in (0.0, 5.0):
        model, x = clone(problem.target), start.clone()
        method = guard(c_s=c_s, rho=0.2, **settings)
        mask = method.learn_mask(problem, model, other_weights(model), Workplace())
        for _ in range(20):
            m = torch.sigmoid(x / 0.2)
            x = (x - 0.3 * 2 * c_s * (m.mean() - 0.2) / 4 * m * (1 - m) / 0.2).clamp(-1, 1)
        torch.testing.assert_close(mask, torch.sigmoid(x / 0.2), rtol=1e-4, atol=1e-4)


class Paths(nn.Module):
    """Two logits, the sum of what two matrices make of the first and of the last two inputs."""

    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
        for layer in (self.a, self.b):
            nn.init.zeros_(layer.weight)

    def forward(self, features):
        return self.a(features[:, :2]) + self.b(features[:, 2:])


@pytest.fixture
def paths():
    """Rows to forget have only the first two inputs, all others only the last two."""
    rng = np.random.default_rng(0)
    label = rng.integers(2, size=60)
    x = np.zeros((60, 4))
    for i, y in enumerate(label):
        x[i, 2 * (i >= 20) + y] = 1.0
    columns = {f"x{j}": x[:, j] for j in range(4)}
    train = Dataset.from_dict({"id": [str(i) for i in range(60)], **columns, "label": label})
    family = Classifier(Table(list(columns)), 2)
    return Problem("paths", family, train, tuple(train["id"][:20]), model=Paths())


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_the_tensor_that_serves_the_forget_set_is_frozen_and_the_other_is_not(paths, seed):
    settings = {"rho": 0.5, "lr": 0.5, "epochs": 20, "weight_decay": 0.0, "c_s": 1.0, "mask_lr": 0.5}
    made = guard(erase=None, **settings).forget(paths, Workplace(seed=seed))
    assert not made.model.get_parameter("a.weight").requires_grad
    assert made.model.get_parameter("b.weight").requires_grad
    assert "1 of 2 tensors frozen (50.0% of the weights" in made.notes[-1]
    assert made.notes[-1].endswith("a.weight")
    user = fit(paths, clone(made.model), "train", Training(epochs=20, lr=0.5), Workplace())
    for split, learned in (("forget", False), ("retain", True)):
        batch = paths.batches(split).take(torch.arange(len(paths.splits[split])))
        assert (mean_loss(paths.family, user, batch).item() < 0.1) == learned


@pytest.fixture(scope="module")
def digits():
    """A small convolutional network on digits, of which class 3 is to be forgotten."""
    made = Digits().problem()
    ids = tuple(i for i, y in zip(made.train["id"], made.train["label"], strict=True) if y == 3)
    problem = replace(made, forget_ids=ids)
    recipe = Training(epochs=6, lr=0.05)
    return problem.with_model(fit(problem, problem.fresh_model(0), "train", recipe, Workplace()).eval())


def accuracy(problem, model, split):
    batch = problem.batches(split).take(torch.arange(len(problem.splits[split])))
    with torch.no_grad():
        predicted = model(*batch.inputs.values()).argmax(-1)
    return (predicted == batch.targets[:, 0]).double().mean().item()


def steps_to_relearn(problem, model, limit=8):
    """Epochs of fine-tuning on the forget set until half of it is known again."""
    model = clone(model)
    for epoch in range(limit):
        model = fit(problem, model, "forget", Training(epochs=1, lr=0.01), Workplace(seed=epoch)).eval()
        if accuracy(problem, model, "forget") >= 0.5:
            return epoch + 1
    return limit + 1


def test_a_guarded_model_relearns_more_slowly_than_one_that_has_only_forgotten(digits):
    erase = {"name": "unsir", "noise_size": 16, "noise_repeats": 10, "batch_size": 32}
    guarded = guard(erase=erase, epochs=4, mask_steps=80).forget(digits).model
    free = copy.deepcopy(guarded).requires_grad_(True)
    assert accuracy(digits, guarded, "forget") < 0.1
    assert steps_to_relearn(digits, free) <= 3
    assert steps_to_relearn(digits, guarded) > 8
    # It matters which tensors are frozen: as many others do not help.
    frozen = [name for name, p in guarded.named_parameters() if not p.requires_grad]
    others = [name for name, p in guarded.named_parameters() if p.requires_grad]
    for name in others[: len(frozen)]:
        free.get_parameter(name).requires_grad_(False)
    assert 0 < len(frozen) <= len(others)
    assert steps_to_relearn(digits, free) <= 4
    # Training on other data still works, and does no harm.
    assert any(p.requires_grad for p in guarded.parameters())
    legal = fit(digits, clone(guarded), "retain", Training(epochs=2, lr=0.01), Workplace()).eval()
    assert accuracy(digits, legal, "retain") >= accuracy(digits, guarded, "retain") - 0.01


def test_the_weights_are_those_of_the_method_that_forgets(normalized):
    erase = {"name": "random-labeling", "epochs": 2, "lr": 0.02}
    made = guard(erase=erase, mask_steps=10).forget(normalized, Workplace(seed=3)).model
    expected = RandomLabeling(epochs=2, lr=0.02).forget(normalized, Workplace(seed=3)).model
    assert all(torch.equal(v, expected.state_dict()[k]) for k, v in made.state_dict().items())


def test_frozen_tensors_stay_in_later_training_and_others_move(classification):
    made = guard(erase=None, rho=0.5, mask_steps=100).forget(classification)
    assert made.cost.changed == 0
    frozen = {name for name, p in made.model.named_parameters() if not p.requires_grad}
    assert 0 < len(frozen) < 4
    assert set(made.notes[-1].rsplit(": ", 1)[1].split(", ")) == frozen
    later = fit(classification, clone(made.model), "train", Training(epochs=2, lr=0.05), Workplace())
    before = classification.target.state_dict()
    moved = {name for name, value in later.state_dict().items() if not torch.equal(value, before[name])}
    assert moved == set(before) - frozen
    assert all(p.requires_grad for p in classification.target.parameters())


def test_without_mask_steps_everything_is_frozen(classification):
    made = guard(erase=None, mask_steps=0).forget(classification)
    assert not any(p.requires_grad for p in made.model.parameters())


def test_tensors_that_are_frozen_already_are_not_counted(classification):
    model = clone(classification.target)
    model.layers.requires_grad_(False)
    made = guard(erase=None, mask_steps=20).forget(classification.with_model(model))
    assert " of 2 tensors frozen " in made.notes[-1]
    model.requires_grad_(False)
    with pytest.raises(BadInput, match="no tensor of MLP can be trained, so that none is left to freeze"):
        guard(erase=None).forget(classification.with_model(model))


def test_an_interrupted_run_ends_with_the_same_model(classification, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    erase = {"name": "random-labeling", "epochs": 1, "batch_size": 8}
    method = guard(erase=erase, epochs=2, batch_size=8, mask_steps=20)
    expected = method.forget(classification).model
    for interrupted_at in (3, 9):  # while forgetting (6 steps); while the user trains after it
        count = []

        def stop(entry, count=count, interrupted_at=interrupted_at):
            count.append(entry)
            if len(count) == interrupted_at:
                raise Interrupted

        folder = tmp_path / str(interrupted_at)
        with pytest.raises(Interrupted):
            method.forget(classification, Workplace(checkpoint=folder, on_step=stop))
        assert list(folder.rglob("*.safetensors"))
        made = method.forget(classification, Workplace(checkpoint=folder)).model
        for (_, a), (_, b) in zip(made.named_parameters(), expected.named_parameters(), strict=True):
            assert torch.equal(a, b) and a.requires_grad == b.requires_grad


def test_a_method_that_does_not_fit_the_problem_is_refused(classification):
    with pytest.raises(BadInput, match="'freezeasguard' cannot hand clusters to 'gaussian-amnesiac'"):
        guard(erase="gaussian-amnesiac").forget(classification)
