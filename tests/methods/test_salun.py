from dataclasses import replace

import pytest
import torch
from datasets import concatenate_datasets
from torch import nn

from expunge.families import Classifier, Table
from expunge.methods import Workplace
from expunge.methods.objective import State
from expunge.methods.random_labeling import RandomLabeling
from expunge.methods.salun import SalUn, largest


def mask_of(problem, **settings):
    return SalUn(**settings).mask(problem, problem.target, State(problem, {}, Workplace()))


def test_the_largest_are_taken_over_all_names():
    found = largest({"a": torch.tensor([[3.0, 1.0], [0.5, 4.0]]), "b": torch.tensor([2.0])}, 0.6)
    assert found["a"].tolist() == [[True, False], [False, True]]
    assert found["b"].tolist() == [True]


def test_ties_are_taken_by_position():
    found = largest({"a": torch.tensor([1.0, 0.0, 1.0]), "b": torch.tensor([1.0, 2.0])}, 0.6)
    assert found["a"].tolist() == [True, False, True]
    assert found["b"].tolist() == [False, True]
    frozen = largest({"a": torch.zeros(4)}, 0.5)  # all tie at zero
    assert frozen["a"].tolist() == [True, True, False, False]


@pytest.mark.parametrize("share", [0.0, 0.1, 0.37, 0.5, 1.0])
def test_the_share_is_exact(share):
    torch.manual_seed(0)
    values = {"a": torch.randint(5, (7, 11)).float(), "b": torch.randint(5, (13,)).float()}
    chosen = largest(values, share)
    assert sum(int(m.sum()) for m in chosen.values()) == int(share * 90)
    kept = torch.cat([v[chosen[k]] for k, v in values.items()])
    left = torch.cat([v[~chosen[k]] for k, v in values.items()])
    assert not len(kept) or not len(left) or kept.min() >= left.max()


def test_with_rho_one_it_is_random_labeling(classification):
    settings = {"epochs": 3, "lr": 0.05, "batch_size": 8}
    salun = SalUn(rho=1.0, **settings).forget(classification).model.state_dict()
    plain = RandomLabeling(**settings).forget(classification).model.state_dict()
    assert all(torch.equal(salun[k], plain[k]) for k in plain)


def test_with_rho_zero_nothing_moves(classification):
    made = SalUn(rho=0.0, epochs=3, lr=0.05, weight_decay=0.1).forget(classification)
    assert made.cost.changed == 0


def test_doubling_every_forget_row_keeps_the_mask(classification):
    train = classification.train
    copies = train.map(lambda row: {"id": row["id"] + "-copy"})
    doubled = replace(
        classification,
        train=concatenate_datasets([train, copies]),
        forget_ids=tuple(i + end for i in classification.forget_ids for end in ("", "-copy")),
    )
    once, twice = mask_of(classification, rho=0.3), mask_of(doubled, rho=0.3)
    assert all(torch.equal(once[k], twice[k]) for k in once)


def test_a_linear_model_keeps_the_row_of_the_forgotten_class(classification):
    """At zero weights the gradient is -2/3 of the summed inputs in its row, 1/3 of them in each other row."""
    label = classification.train["label"]
    forget = tuple(i for i, y in zip(classification.train["id"], label, strict=True) if y == 1)
    model = nn.Linear(3, 3, bias=False)
    nn.init.zeros_(model.weight)
    problem = replace(
        classification, family=Classifier(Table(["a", "b", "c"]), 3), model=model, forget_ids=forget
    )
    for n_chosen in range(1, 9):
        mask = mask_of(problem, rho=(n_chosen + 0.5) / 9)["weight"]
        assert int(mask.sum()) == n_chosen
        assert (mask[1] | ~mask[0]).all()
        assert (mask[1] | ~mask[2]).all()
