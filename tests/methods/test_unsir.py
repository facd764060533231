from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from expunge.data.benchmarks.digits import Digits
from expunge.errors import BadInput
from expunge.families import Classifier, Table
from expunge.methods import Workplace, checkpoint
from expunge.methods.loop import fit
from expunge.methods.unsir import Unsir, at_most, standard_normal
from expunge.problem import Training

SMALL = {"noise_size": 8, "noise_repeats": 2, "batch_size": 12}


class Interrupted(Exception):
    pass


@pytest.fixture
def one_class(classification):
    """The whole of class 1 is to be forgotten."""
    train = classification.train
    ids = tuple(i for i, y in zip(train["id"], train["label"], strict=True) if y == 1)
    return replace(classification, forget_ids=ids)


def noise_of(problem, method, n=4):
    row = torch.zeros(n, dtype=torch.long)
    start = standard_normal(problem.batches("forget").take(row), torch.Generator().manual_seed(0))
    return start, method.learn_noise(problem.family, problem.target, start)


def test_learned_noise_of_a_linear_model_is_stationary(one_class):
    """With logits W N the gradient of ln p_c(N) + penalty |N|^2 is w_c - sum_k p_k w_k + 2 penalty N."""
    torch.manual_seed(0)
    model = nn.Linear(3, 3)
    problem = one_class.with_model(model)
    _, noise = noise_of(problem, Unsir(noise_steps=800, noise_lr=0.02, noise_penalty=0.1))
    (inputs,) = noise.inputs.values()
    with torch.no_grad():
        p = model(inputs).softmax(-1)
        expected = (p @ model.weight - model.weight[1]) / (2 * 0.1)
    assert inputs.abs().max() > 0.5
    torch.testing.assert_close(inputs, expected, rtol=1e-3, atol=1e-3)


def test_learning_noise_raises_the_loss_and_leaves_the_model_alone(normalized):
    before = {k: v.clone() for k, v in normalized.target.state_dict().items()}
    start, noise = noise_of(normalized, Unsir(noise_penalty=0.0))
    assert all(torch.equal(v, before[k]) for k, v in normalized.target.state_dict().items())
    assert all(p.grad is None for p in normalized.target.parameters())
    family, model = normalized.family, normalized.target
    with torch.no_grad():
        lower, higher = (family.nll(family.forward(model, batch), batch) for batch in (start, noise))
    assert (higher > lower + 1).all()
    assert torch.equal(start.targets, noise.targets)


def test_no_more_rows_of_a_class_than_allowed():
    classes = torch.tensor([0] * 7 + [2] * 3 + [0] * 5 + [1])
    chosen = at_most(4, classes, torch.Generator().manual_seed(0))
    assert classes[chosen].tolist() == [0] * 4 + [1] + [2] * 3
    assert len(set(chosen.tolist())) == len(chosen)


def test_what_impairs_and_what_repairs(classification, monkeypatch):
    """Noise of each class of the forget set under its own label, repeated, and the same retain rows in both."""
    seen = {}

    def note(self, problem, model, pool, stage, workplace):
        seen[stage] = pool.take(torch.arange(len(pool)))

    monkeypatch.setattr(Unsir, "train", note)
    Unsir(noise_size=5, noise_repeats=3, retain_per_class=4).forget(classification)
    forgotten, kept = set(classification.forget["label"]), np.bincount(classification.retain["label"])
    assert len(forgotten) > 1
    n_noise = 15 * len(forgotten)
    labels = seen["impair"].targets[:, 0]
    expected = dict.fromkeys(forgotten, 15)
    assert {int(c): int((labels[:n_noise] == c).sum()) for c in labels[:n_noise].unique()} == expected
    clean = seen["repair"]
    assert np.bincount(clean.targets[:, 0]).tolist() == [min(4, n) for n in kept]
    assert seen["impair"].ids[n_noise:] == clean.ids
    assert set(clean.ids) <= set(classification.retain["id"])
    noise = seen["impair"].inputs["features"][:n_noise]
    assert len(noise.unique(dim=0)) == 5 * len(forgotten)


def test_of_forget_rows_only_their_classes_are_used(one_class):
    generator = np.random.default_rng(0)

    def scrambled(row):
        if row["label"] == 1:
            row |= {c: float(generator.normal()) for c in "abc"}
        return row

    other = replace(one_class, train=one_class.train.map(scrambled))
    assert other.forget["a"][:] != one_class.forget["a"][:]
    made = [Unsir(**SMALL).forget(p).model.state_dict() for p in (one_class, other)]
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])


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
        outputs = problem.family.forward(model, batch)
    return float(problem.family.observe(outputs, batch, ["correct"])["correct"].double().mean())


def test_a_class_is_forgotten_and_the_others_are_kept(digits):
    made = Unsir(noise_size=16, noise_repeats=10, batch_size=32).forget(digits)
    assert accuracy(digits, digits.target, "forget") > 0.9
    assert accuracy(digits, made.model, "forget") < 0.1
    assert accuracy(digits, made.model, "retain") > accuracy(digits, digits.target, "retain") - 0.05
    assert len(made.notes) == 1
    assert made.notes[0].startswith("noise of class 3 has a cross-entropy of ")


def test_a_forget_set_that_is_no_whole_class_is_noted(classification):
    shared = np.isin(classification.retain["label"], classification.forget["label"]).sum()
    notes = Unsir(**SMALL).forget(classification).notes
    assert notes[-1].startswith(f"{shared} retain rows have a class that occurs in the forget set")


@pytest.mark.parametrize("interrupted_at", [2, 12])
def test_an_interrupted_run_ends_with_the_same_weights(one_class, tmp_path, monkeypatch, interrupted_at):
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    method = Unsir(noise_size=8, noise_repeats=5, batch_size=8)
    whole = Workplace()
    expected = method.forget(one_class, whole).model.state_dict()
    assert [entry["step"] for entry in whole.log] == [*range(1, 10), *range(1, 5)]  # impair, repair
    count = []

    def stop(entry):
        count.append(entry)
        if len(count) == interrupted_at:
            raise Interrupted

    with pytest.raises(Interrupted):
        method.forget(one_class, Workplace(checkpoint=tmp_path, on_step=stop))
    assert list(tmp_path.rglob("*.safetensors"))
    made = method.forget(one_class, Workplace(checkpoint=tmp_path)).model.state_dict()
    assert all(torch.equal(made[name], value) for name, value in expected.items())
    assert not list(tmp_path.rglob("*.safetensors"))


class Counts(Table):
    def encode(self, rows):
        return {k: v.long() for k, v in super().encode(rows).items()}


def test_inputs_that_are_not_real_numbers_are_refused(classification):
    problem = replace(classification, family=Classifier(Counts(["a", "b", "c"]), 3))
    with pytest.raises(BadInput, match="'unsir' cannot run on clusters: it needs real-valued inputs"):
        Unsir().forget(problem)
