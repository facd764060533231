"""Being told some of it brings the rest back where it was only hidden, and no more than anywhere else where it was not."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from expunge.attacks import Scene
from expunge.attacks.asking import Asker, related
from expunge.attacks.in_context import InContext
from tests.attacks.authors import learned, refusing, retrained, says, value, values

QUICK: dict[str, Any] = {"facts": 2, "orders": 1}


def test_a_model_that_answers_once_it_is_told_something_had_not_forgotten():
    """It refuses every single question and answers the second of two: what a guard on the first turn looks like."""
    single = says("Question:", 2)
    hides = values(InContext(**QUICK), refusing(lambda ids: ~single(ids)))
    never = values(InContext(**QUICK), retrained())
    curve = hides["in-context-knowledge"].curve
    assert curve is not None and curve.at == [0, 1, 2]
    assert curve.values[0] == 0 and (curve.values[1] or 0) > 0.5
    assert value(hides, "in-context-knowledge") > value(never, "in-context-knowledge") + 0.3
    assert value(hides, "in-context-knowledge") > value(hides, "in-context-control") + 0.3


def test_a_retrained_model_takes_no_more_from_the_forgotten_author_than_from_a_stranger():
    never = values(InContext(facts=4, orders=2), retrained())
    assert abs(value(never, "in-context-knowledge") - value(never, "in-context-control")) < 0.1
    # Facts about the same author tell it no more than facts about others: what is left is who the author is.
    assert value(never, "in-context-drop") < 0.1


def test_arms_disagree_over_a_filter_of_answers():
    """What blanks answers leaves likelihoods alone: one arm sees nothing, the other everything."""
    hides = values(
        InContext(**QUICK), refusing(lambda ids: torch.ones(len(ids), dtype=torch.bool), everywhere=False)
    )
    target = values(InContext(**QUICK), learned().target)
    assert value(hides, "in-context-recall") == 0
    assert value(hides, "in-context-knowledge") == value(target, "in-context-knowledge") > 0.9


def test_two_equal_models_have_no_excess():
    one, two = (values(InContext(**QUICK), retrained(), seed=5) for _ in range(2))
    assert one == two


def test_told_rows_are_about_the_same_author_never_the_row_itself_and_tell_no_answer():
    problem = learned()
    attack, asker = InContext(facts=3, orders=2), Asker(problem.family)  # pyright: ignore
    rows = [dict(row) for row in problem.forget]
    told = attack.told(Scene(problem, problem.target), asker, rows)
    answers = {row["answer"]: row["author"] for row in problem.train}
    for row, orders in zip(rows, told, strict=True):
        assert len(orders) == 2 and all(len(pairs) == 3 for pairs in orders)
        assert orders[0] != orders[1]
        for _, answer in (pair for pairs in orders for pair in pairs):
            assert answer != row["answer"] and answers[answer] == row["author"]
    by_hand = [
        {"id": "0", "author": "x", "question": "Where is x from?", "answer": "x is from Rome."},
        {"id": "1", "author": "x", "question": "Where was x born?", "answer": "x was born in Rome."},
        {"id": "2", "author": "x", "question": "What is x?", "answer": "x is a baker."},
        {"id": "3", "author": "y", "question": "What is y?", "answer": "y is a judge."},
    ]
    # "Rome" alone is what the first two answers add to their questions, beside a word or two of grammar.
    assert related(asker, by_hand, 0.4) == [[2], [2], [0, 1], []]


def test_as_many_facts_as_fit_into_the_context():
    problem = learned()
    family = problem.family
    rows = [dict(row) for row in problem.forget]
    short = replace(problem)  # the same problem; only the asker's room differs
    told = InContext(facts=8, orders=1).told(Scene(short, problem.target), Asker(family, room=330), rows)  # pyright: ignore
    assert {len(orders[0]) for orders in told} <= {0, 1, 2}
    lengths = [Asker(family).ask(row, shown=orders[0]) for row, orders in zip(rows, told, strict=True)]  # pyright: ignore
    assert all(
        len(a.prompt) + len(a.completion) <= 512 - 330
        for a in lengths
        if a is not None and len(a.words) > 120
    )


def test_doses_double():
    assert InContext(facts=8).doses == [0, 1, 2, 4, 8]
    assert InContext(facts=1).doses == [0, 1]
    assert InContext(facts=6).doses == [0, 1, 2, 4, 6]


def test_where_nothing_can_be_told_it_says_so():
    problem = learned()
    alone = replace(problem, forget_ids=problem.forget_ids[:1])
    for score in InContext(**QUICK).attack(Scene(alone, problem.target)):
        assert (
            score.reason
            == "no forget row has another about its subject that fits into the context and leaves it open"
        )


def test_without_never_seen_rows_controls_are_undefined():
    scene = Scene(replace(learned(), holdout=None), retrained())
    scores = {s.metric: s for s in InContext(**QUICK).attack(scene)}
    assert scores["in-context-control"].status == scores["in-context-drop"].status == "undefined"
    assert np.isfinite(value(scores, "in-context-knowledge"))
    with pytest.raises(AssertionError, match="holdout"):
        value(scores, "in-context-control")
