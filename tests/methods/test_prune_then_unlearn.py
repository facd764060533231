from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import prune

from expunge.errors import BadInput
from expunge.families.models import clone
from expunge.methods import METHODS, Workplace, checkpoint
from expunge.methods.fine_tune import FineTune
from expunge.methods.loop import fit
from expunge.methods.npo import NPO
from expunge.methods.prune_then_unlearn import MethodChoice, PruneThenUnlearn, prunable
from expunge.problem import Training

UNTRAINED = {"epochs": 0, "then": {"name": "fine-tune", "epochs": 0}}
STEPS = {"epochs": 3, "lr": 0.05, "batch_size": 8, "weight_decay": 0.05}


class Interrupted(Exception):
    pass


def pruning(**settings):
    return PruneThenUnlearn(**settings)


def pruned_by_torch(model, sparsity):
    """A copy of `model` pruned by torch's own utility, which computes with weight_orig * weight_mask."""
    copy = clone(model)
    layers = [(m, "weight") for m in copy.modules() if isinstance(m, (nn.Linear, nn.Conv2d))]
    prune.global_unstructured(layers, pruning_method=prune.L1Unstructured, amount=sparsity)
    return copy


def sealed(model):
    """The same numbers as plain weights."""
    for module in model.modules():
        if hasattr(module, "weight_orig"):
            prune.remove(module, "weight")
    return model.state_dict()


def close(made, expected):
    assert set(made) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(made[name], value, rtol=1e-5, atol=1e-6)


def zeros(model):
    return {name: p == 0 for name, p in prunable(model).items()}


@pytest.mark.parametrize("sparsity", [0.1, 0.5, 0.9, 0.95])
def test_the_mask_is_that_of_torch(normalized, sparsity):
    made = pruning(sparsity=sparsity, **UNTRAINED).forget(normalized).model
    expected = sealed(pruned_by_torch(normalized.target, sparsity))
    assert all(torch.equal(made.state_dict()[name], value) for name, value in expected.items())
    total = sum(z.numel() for z in zeros(made).values())
    assert sum(int(z.sum()) for z in zeros(made).values()) == round(sparsity * total)


def test_by_hand(classification):
    """Six weights; the smallest two of |w| over both layers are 0.1 and 0.2; biases are left alone."""
    model = nn.Sequential(nn.Linear(3, 1), nn.Linear(1, 3))
    weights = [[[0.5, -0.1, 0.3]], [0.01], [[-0.2], [0.4], [-0.6]], [0.0, 0.02, 0.03]]
    for parameter, value in zip(model.parameters(), weights, strict=True):
        parameter.data = torch.tensor(value)
    made = pruning(sparsity=2 / 6, **UNTRAINED).forget(classification.with_model(model))
    found = [p.tolist() for p in made.model.parameters()]
    assert found == [
        torch.tensor(v).tolist()
        for v in ([[0.5, 0.0, 0.3]], [0.01], [[0.0], [0.4], [-0.6]], [0.0, 0.02, 0.03])
    ]
    assert made.notes == [
        "2 of 6 weights of linear and convolutional layers pruned; then fine-tune(epochs=0)"
    ]


def test_recovery_and_fine_tuning_move_what_torch_leaves_to_move(normalized):
    """Momentum and weight decay included, as plain training of weight_orig * weight_mask."""
    method = pruning(sparsity=0.6, then={"name": "fine-tune", **STEPS}, **STEPS)
    made = method.forget(normalized, Workplace(seed=2))
    expected = pruned_by_torch(normalized.target, 0.6)
    for split in ("train", "retain"):
        fit(normalized, expected, split, Training(**STEPS), Workplace(seed=2))
    close(made.model.state_dict(), sealed(expected))
    assert made.cost.changed > 0


def test_retraining_after_pruning_is_the_sparse_architecture_from_scratch(classification):
    problem = replace(classification, recipe=Training(**STEPS))
    settings = {"sparsity": 0.6, "epochs": 0}
    mask = zeros(pruning(**settings, then=UNTRAINED["then"]).forget(problem).model)
    made = pruning(**settings, then="retrain").forget(problem, Workplace(seed=2)).model
    expected = problem.fresh_model(2 + 7_919)
    for name, module in expected.named_modules():
        if f"{name}.weight" in mask:
            prune.custom_from_mask(module, "weight", ~mask[f"{name}.weight"])
    fit(problem, expected, "retain", Training(**STEPS), Workplace(seed=2))
    close(made.state_dict(), sealed(expected))


def test_without_pruning_and_recovery_it_is_the_other_method(normalized):
    other = {"name": "scrub", "epochs": 2, "lr": 0.01, "batch_size": 8}
    made = pruning(sparsity=0.0, epochs=0, then=other).forget(normalized).model.state_dict()
    expected = MethodChoice(**other).method().forget(normalized).model.state_dict()
    assert all(torch.equal(made[name], value) for name, value in expected.items())


TRAINING = ["eu-k", "salun", "npo", "scrub", "bad-teacher", "l1-sparse", "random-labeling", "unsir"]
EDITING = ["task-vector", "ssd", "boundary-expand"]


@pytest.mark.parametrize("then", TRAINING + EDITING)
def test_pruned_weights_stay_zero_and_others_move(normalized, then):
    fast = {"epochs": 2, "lr": 0.05, "batch_size": 8, "alpha": 1.0, "noise_size": 4, "noise_repeats": 2}
    chosen = {k: v for k, v in fast.items() if k in METHODS[then].model_fields}
    settings = {"sparsity": 0.7, "epochs": 1, "lr": 0.05}
    mask = zeros(pruning(**settings, then=UNTRAINED["then"]).forget(normalized).model)
    method = pruning(**settings, then={"name": then, **chosen})
    made = method.forget(normalized).model
    assert sum(int(m.sum()) for m in mask.values()) == round(0.7 * sum(m.numel() for m in mask.values()))
    for name, parameter in prunable(made).items():
        assert (parameter[mask[name]] == 0).all(), name
    start = pruning(**settings, then=UNTRAINED["then"]).forget(normalized).model.state_dict()
    assert any((made.state_dict()[name] != value).any() for name, value in start.items())
    assert not any(p._backward_hooks for p in made.parameters())


def test_a_pruned_weight_is_zero_while_the_other_method_works(classification, monkeypatch):
    """Not only at the end: what the method computes on the way comes from the sparse model."""
    seen = []
    loss = FineTune.loss

    def note(self, step):
        seen.append([int((p == 0).sum()) for p in prunable(step.model).values()])
        return loss(self, step)

    monkeypatch.setattr(FineTune, "loss", note)
    pruning(sparsity=0.5, epochs=1, then={"name": "fine-tune", **STEPS}).forget(classification)
    assert len(seen) == 3 * 4
    assert all(sum(counts) == 24 for counts in seen)  # of 3 * 8 + 8 * 3 weights


def test_an_interrupted_run_ends_with_the_same_weights(classification, tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    method = pruning(sparsity=0.5, then={"name": "fine-tune", **STEPS}, **STEPS)
    expected = method.forget(classification).model.state_dict()
    for interrupted_at in (4, 20):  # in the recovery (15 steps); in the fine-tuning after it
        count = []

        def stop(entry, count=count, interrupted_at=interrupted_at):
            count.append(entry)
            if len(count) == interrupted_at:
                raise Interrupted

        folder = tmp_path / str(interrupted_at)
        with pytest.raises(Interrupted):
            method.forget(classification, Workplace(checkpoint=folder, on_step=stop))
        assert list(folder.rglob("*.safetensors"))
        made = method.forget(classification, Workplace(checkpoint=folder)).model.state_dict()
        assert all(torch.equal(made[name], value) for name, value in expected.items())


def test_a_choice_is_read_from_a_name_or_a_mapping():
    by_name, short = MethodChoice.model_validate("npo"), pruning(then={"name": "npo", "beta": 0.2})
    assert by_name.method() == NPO()
    assert short.then.method() == NPO(beta=0.2)
    assert str(short.then) == "npo(beta=0.2)" and str(by_name) == "npo"
    assert pruning(**short.model_dump()) == short


@pytest.mark.parametrize(
    ("then", "message"),
    [
        ("nopo", "unknown method 'nopo'; did you mean 'npo'?"),
        ({"name": "npo", "betta": 1}, "npo: unknown key 'betta'; did you mean 'beta'?"),
        ({"beta": 1}, "'name' should be a valid string, got None"),
        (3, "'then' should be a valid dictionary"),
    ],
)
def test_a_wrong_choice_is_refused_before_anything_runs(then, message):
    with pytest.raises(BadInput) as caught:
        pruning(then=then)
    assert message in str(caught.value)


def test_a_method_that_does_not_fit_the_problem_is_refused(classification):
    with pytest.raises(
        BadInput, match="cannot hand clusters to 'gaussian-amnesiac': it fits .*, not classifier"
    ):
        pruning(then="gaussian-amnesiac", epochs=0).forget(classification)


def test_a_model_without_layers_to_prune_is_refused(classification):
    model = nn.Sequential(nn.BatchNorm1d(3))
    with pytest.raises(BadInput, match="Sequential has no linear or convolutional layer to prune"):
        pruning().forget(classification.with_model(model))


def test_the_target_is_left_alone(classification):
    before = {k: v.clone() for k, v in classification.target.state_dict().items()}
    pruning(epochs=1, then="task-vector").forget(classification)
    after = classification.target.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())
    assert not any(p._backward_hooks for p in classification.target.parameters())
