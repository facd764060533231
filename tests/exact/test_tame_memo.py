"""Experts by task and memories beside an executive: dropping equals never having added, bit by bit."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.exact.memo import Memo, detached
from expunge.exact.tame import Tame
from expunge.families.combined import Combined, Recall
from expunge.families.models import call, fingerprint
from expunge.families.routed import Routed
from expunge.methods import Method, Workplace
from expunge.problem import Problem, Training
from expunge.testing.problems import tiny_problem


def small(family: str = "classifier") -> Problem:
    tiny = tiny_problem(family)
    return replace(tiny, recipe=Training(epochs=2, batch_size=16, lr=0.02))


def weights(model: nn.Module) -> dict[str, Tensor]:
    return model.state_dict()


def equal(one: nn.Module, two: nn.Module) -> bool:
    a, b = weights(one), weights(two)
    return a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)


def made(method: Method, problem: Problem) -> nn.Module:
    return method.forget(problem, Workplace(seed=1)).model


def without(problem: Problem, gone: set[str], then: list[str]) -> Problem:
    """A problem that never had the rows `gone`, in another order, which is asked to forget `then`."""
    kept = [n for n, i in enumerate(problem.train["id"]) if i not in gone]
    return replace(problem, train=problem.train.select(kept[::-1]), forget_ids=tuple(then))


@pytest.mark.parametrize(
    ("method", "family"),
    [
        (Tame(), "classifier"),
        (Tame(tasks=3, buffer=0.5), "classifier"),
        (Memo(), "classifier"),
        (Memo(shards=3), "causal_lm"),
    ],
)
def test_dropping_equals_never_having_added(method: Method, family: str) -> None:
    problem = small(family)
    ids = list(problem.train["id"])
    first, later = ids[:5], ids[5:8]
    together = made(method, replace(problem, forget_ids=(*first, *later)))
    never = made(method, without(problem, set(first), later))
    assert equal(together, never)


def test_a_whole_task_leaves_nothing() -> None:
    problem = small()
    task = [i for i, c in zip(problem.train["id"], problem.train["label"], strict=True) if c == 2]
    one = next(i for i, c in zip(problem.train["id"], problem.train["label"], strict=True) if c == 0)
    dropped = Tame(tasks=3).forget(replace(problem, forget_ids=(*task, one)), Workplace(seed=1))
    never = made(Tame(tasks=3), without(problem, set(task), [one]))
    assert isinstance(dropped.model, Routed) and len(dropped.model.experts) == 2
    assert equal(dropped.model, never)
    assert any("no rows of group-0002 are left" in note for note in dropped.notes)


def test_a_deletion_leaves_the_experts_of_other_tasks_as_they_are() -> None:
    problem = small()
    by_task = {
        c: [i for i, x in zip(problem.train["id"], problem.train["label"], strict=True) if x == c]
        for c in range(3)
    }
    one, two = (made(Tame(tasks=3), replace(problem, forget_ids=tuple(by_task[1][:n]))) for n in (1, 4))
    assert isinstance(one, Routed) and isinstance(two, Routed)
    same = [equal(a, b) for a, b in zip(one.experts, two.experts, strict=True)]
    assert same == [True, False, True]


def test_the_selector_asks_one_expert_for_each_row() -> None:
    problem = small()
    column = ["left" if x < 0 else "right" for x in problem.train["a"]]
    problem = replace(problem, train=problem.train.add_column("side", column))  # pyright: ignore
    model = made(Tame(by="side", buffer=1.0, selector_epochs=200), problem)
    assert isinstance(model, Routed)
    batch = problem.batches("train").take(torch.arange(96))
    chosen = model.chosen(batch.inputs)
    right = torch.tensor([side == "right" for side in column])
    assert (chosen == right).float().mean() > 0.95
    said = problem.family.forward(model, batch).prediction[:, 0]
    for row in (0, 7, 95):
        alone = call(model.experts[int(chosen[row])], {k: v[row : row + 1] for k, v in batch.inputs.items()})
        torch.testing.assert_close(said[row], alone[0])
    with pytest.raises(BadInput, match="has no column 'sied' that names tasks"):
        made(Tame(by="sied"), problem)


def test_detached_is_the_executive_that_never_saw_a_row() -> None:
    problem = small("causal_lm")
    forget = tuple(problem.train["id"][:3])
    model = made(Memo(), replace(problem, forget_ids=forget))
    assert isinstance(model, Combined) and len(model.parts) == 3
    executive = problem.fresh_model(1 + 104_729)
    assert fingerprint(detached(model)) == fingerprint(executive)
    started = replace(problem, start=problem.target)
    assert fingerprint(detached(made(Memo(), started))) == fingerprint(problem.target)


def test_rows_made_of_a_deleted_document_go_with_it() -> None:
    problem = small()
    ids = list(problem.train["id"])
    # Row 20 was made of rows 20 and 3; all others of themselves.
    lists = [[i, ids[3]] if n == 20 else [i] for n, i in enumerate(ids)]
    asked = replace(problem, train=problem.train.add_column("sources", lists), forget_ids=(ids[3],))  # pyright: ignore
    method = Memo(provenance="sources")
    closed = method.forget(asked, Workplace(seed=1))
    both = made(method, replace(asked, forget_ids=(ids[3], ids[20])))
    open_ = made(Memo(), asked)
    assert equal(closed.model, both) and not equal(closed.model, open_)
    assert "1 further rows were made of the deleted documents too" in " ".join(closed.notes)


def test_a_deletion_leaves_other_memories_as_they_are() -> None:
    problem = small()
    ids = list(problem.train["id"])
    one = made(Memo(shards=3), replace(problem, forget_ids=(ids[0],)))
    two = made(Memo(shards=3), replace(problem, forget_ids=(ids[0], ids[1])))
    assert isinstance(one, Combined) and isinstance(two, Combined)
    assert sum(not equal(a, b) for a, b in zip(one.parts, two.parts, strict=True)) == 1


def test_recall_by_hand() -> None:
    executive, first, second = (torch.tensor(p).log() for p in ([0.5, 0.5], [0.9, 0.1], [0.7, 0.3]))
    said = Recall(weight=0.75)([executive, first, second]).exp()
    np.testing.assert_allclose(said, [0.25 * 0.5 + 0.75 * 0.8, 0.25 * 0.5 + 0.75 * 0.2], rtol=1e-6)
    np.testing.assert_allclose(Recall(weight=1.0)([executive, first]).exp(), [0.9, 0.1], rtol=1e-6)
    np.testing.assert_allclose(Recall()([executive]).exp(), [0.5, 0.5])
