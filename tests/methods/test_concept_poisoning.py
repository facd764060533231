from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Dataset

from expunge.data.benchmarks.digits import Digits
from expunge.errors import BadInput
from expunge.evidence.collect import collect
from expunge.families import Architecture, Classifier, Table
from expunge.find.concepts import embed
from expunge.methods import Workplace
from expunge.methods.concept_poisoning import ConceptPoisoning, regions
from expunge.methods.loop import fit
from expunge.methods.objective import State
from expunge.problem import Problem


def poisoned(problem, **settings):
    """The forget rows as the method trains on them, and the notes."""
    state = State(problem, {}, Workplace())
    ConceptPoisoning(**settings).prepare(problem, problem.target, state)
    pool = state.sources["forget"]
    return pool.take(torch.arange(len(pool))), state.workplace.notes


def test_embedding_is_what_the_last_layer_reads(classification, normalized, tensors):
    x, _ = tensors(classification, "forget")
    batch = classification.batches("forget").take(torch.arange(10))
    features = embed(classification.family, classification.target, batch)
    torch.testing.assert_close(features, classification.target.layers[0](x).relu())
    batch = normalized.batches("forget").take(torch.arange(4))
    features = embed(normalized.family, normalized.target, batch)
    logits = normalized.family.forward(normalized.target, batch).prediction[:, 0]
    torch.testing.assert_close(normalized.target.head(features), logits)


def test_the_window_has_the_largest_positive_mass():
    """Against a search over all windows."""
    torch.manual_seed(0)
    attributed = torch.randn(6, 2, 5, 7)
    mask = regions("localized", attributed, 0.4, torch.Generator())
    positive = attributed.clamp(min=0).sum(1)
    for i in range(6):
        mass = {(r, c): float(positive[i, r : r + 2, c : c + 3].sum()) for r in range(4) for c in range(5)}
        r, c = max(mass, key=mass.__getitem__)
        expected = torch.zeros(5, 7, dtype=torch.bool)
        expected[r : r + 2, c : c + 3] = True
        assert torch.equal(mask[i, 0], expected)
        assert torch.equal(mask[i, 1], expected)


def test_regions_by_hand():
    values = torch.tensor([[0.1, 3.0, -9.0, 2.0, 0.0]])
    generator = torch.Generator().manual_seed(0)
    assert regions("localized", values, 0.4, generator).tolist() == [[False, True, False, True, False]]
    assert regions("center", values, 0.6, generator).tolist() == [[False, True, True, True, False]]
    picture = torch.zeros(1, 1, 6, 6)
    assert regions("center", picture, 1 / 3, generator)[0, 0].nonzero().tolist() == [
        [2, 2],
        [2, 3],
        [3, 2],
        [3, 3],
    ]
    assert regions("full", values, 0.1, generator).all()
    assert not regions("none", values, 0.9, generator).any()


def test_random_regions_come_from_the_generator_and_differ():
    shape = torch.zeros(40, 1, 6, 6)
    masks = [regions("random", shape, 0.5, torch.Generator().manual_seed(s)) for s in (0, 0, 1)]
    assert torch.equal(masks[0], masks[1]) and not torch.equal(masks[0], masks[2])
    assert (masks[0].flatten(1).sum(1) == 9).all()
    assert len(masks[0].flatten(1).unique(dim=0)) > 10
    flat = regions("random", torch.zeros(40, 8), 0.25, torch.Generator().manual_seed(0))
    assert (flat.sum(1) == 2).all() and flat.any(0).all()


@pytest.fixture(scope="module")
def planted():
    """Six independent concepts, the label made of the first two; the model's features are the inputs."""
    rng = np.random.default_rng(0)
    present = rng.integers(2, size=(300, 6))
    label = present[:, 0] + 2 * present[:, 1]
    mixing = np.linalg.qr(np.random.default_rng(1).normal(size=(6, 6)))[0]
    x = (2 * present - 1 + 0.2 * rng.normal(size=(300, 6))) @ mixing
    columns = {f"x{j}": x[:, j] for j in range(6)} | {f"c{j}": present[:, j] for j in range(6)}
    train = Dataset.from_dict({"id": [str(i) for i in range(300)], **columns, "label": label})
    architecture = Architecture(kind="builtin", name="mlp", options={"inputs": 6, "outputs": 4, "hidden": []})
    ids = tuple(i for i, y in zip(train["id"], label, strict=True) if y == 2)
    family = Classifier(Table([f"x{j}" for j in range(6)]), 4)
    problem = Problem("planted", family, train, ids, architecture=architecture)
    return problem.with_model(problem.fresh_model(0)), x, label


def test_full_and_targeted_are_donor_rows(classification, tensors):
    """Every poisoned row is a retain row with its own label, which is another than the forget row's."""
    batch, notes = poisoned(classification, region="full", labels="targeted")
    x, y = tensors(classification, "retain")
    (made,) = batch.inputs.values()
    for row, label in zip(made, batch.targets[:, 0], strict=True):
        same = (x == row).all(1)
        assert same.any() and (y[same] == label).all()
    own = dict(zip(classification.train["id"], classification.train["label"], strict=True))
    assert all(own[i] != t for i, t in zip(batch.ids, batch.targets[:, 0].tolist(), strict=True))
    assert sorted(batch.ids) == sorted(classification.forget_ids)
    assert len(notes) == 1 + len(set(classification.forget["label"]))


def test_none_and_random_are_random_labels(classification, tensors):
    batch, _ = poisoned(classification, region="none", labels="random")
    x, y = tensors(classification, "forget")
    order = [list(classification.forget["id"]).index(i) for i in batch.ids]
    (made,) = batch.inputs.values()
    assert torch.equal(made, x[order])
    assert (batch.targets[:, 0] != y[order]).all()


def test_localized_rows_differ_from_their_own_in_the_region_only(normalized):
    batch, notes = poisoned(normalized, patch=0.5)
    own = normalized.batches("forget").take(torch.arange(8))
    order = [own.ids.index(i) for i in batch.ids]
    changed = (batch.inputs["pixel_values"] != own.inputs["pixel_values"][order]).flatten(1).sum(1)
    assert (changed == 16).all()  # 4 x 4 of 8 x 8 pixels
    assert "attributions miss" in notes[-1]


def test_a_step_learns_retain_rows_and_poisoned_rows(classification, tensors, gradient, step_gradient):
    batch, _ = poisoned(classification)
    (x, y), model = tensors(classification, "retain"), classification.target
    (made,) = batch.inputs.values()
    loss = F.cross_entropy(model(x), y) + F.cross_entropy(model(made), batch.targets[:, 0])
    found = step_gradient(classification, "concept-poisoning")
    for name, value in gradient(model, loss).items():
        torch.testing.assert_close(found[name], value, rtol=1e-4, atol=1e-6)


def test_a_planted_class_moves_into_the_confused_one(planted):
    """The notes name the planted concepts, and the end-to-end classifier takes the class for another."""
    problem, x, label = planted
    x, label = torch.tensor(x, dtype=torch.float32), torch.tensor(label)
    model = problem.fresh_model(0)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        F.cross_entropy(model(x), label).backward()
        optimizer.step()
    assert (model(x).argmax(1) == label).float().mean() > 0.95
    method = ConceptPoisoning(
        concepts=tuple(f"c{j}" for j in range(6)), top=2, epochs=60, lr=0.3, batch_size=32, region="none"
    )
    made = method.forget(problem.with_model(model.eval()))
    with torch.no_grad():
        right = made.model(x).argmax(1) == label
    assert right[label == 2].float().mean() < 0.05
    assert right[label != 2].float().mean() > 0.9
    assert made.notes[0].startswith("6 concepts predict ")
    carried = made.notes[1].removeprefix("class 2 is carried by ").split("; ")[0]
    assert {part.split(" ")[0] for part in carried.split(", ")} == {"c0", "c1"}


@pytest.mark.parametrize(
    ("concepts", "message"),
    [
        (("c9",), "no column 'c9' to learn a concept from; did you mean 'c"),
        (("x1",), "column 'x1' is no concept: it must hold 0 and 1"),
        (("id",), "column 'id' is no concept"),
    ],
)
def test_columns_that_are_no_concepts_are_refused(planted, concepts, message):
    with pytest.raises(BadInput, match=message):
        ConceptPoisoning(concepts=concepts).forget(planted[0])


class Counts(Table):
    def encode(self, rows):
        return {k: v.long() for k, v in super().encode(rows).items()}


def test_inputs_that_are_not_real_numbers_are_refused(classification):
    problem = replace(classification, family=Classifier(Counts(["a", "b", "c"]), 3))
    with pytest.raises(
        BadInput, match="'concept-poisoning' cannot run on clusters: it needs real-valued inputs"
    ):
        ConceptPoisoning().forget(problem)


@pytest.fixture(scope="module")
def digits():
    problem = Digits(model="cnn").problem()
    return problem.with_model(
        fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace()).eval()
    )


@pytest.mark.parametrize(("region", "low", "high"), [("localized", 0.0, 0.05), ("full", 0.9, 1.0)])
def test_rows_that_keep_something_of_the_class_forget_it(digits, region, low, high):
    """The control replaces the whole picture: nothing of the class is left to learn, and nothing is forgotten."""
    made = ConceptPoisoning(region=region).forget(digits).model

    def accuracy(split):
        return collect(digits.family, made, digits.splits[split], ["correct"])["correct"].mean()

    assert low <= accuracy("forget") <= high
    assert accuracy("retain") > 0.9
