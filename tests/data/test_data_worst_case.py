"""The worst-case wrapper: the rows of the search, on the base benchmark's data."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from expunge.api import train_target
from expunge.data.benchmarks.digits import Digits
from expunge.data.benchmarks.worst_case import WorstCase, _found
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.find.worst_case import Search, find_worst_case

SMALL: dict[str, Any] = {"options": {"model": "mlp"}, "size": 20, "rounds": 2}


def test_it_is_the_base_with_the_rows_of_the_search() -> None:
    built = ProblemSpec(benchmark="worst-case", options=SMALL).build()
    target = train_target(Digits(model="mlp").problem())
    found = find_worst_case(target, Search(size=20, rounds=2))
    assert built.forget_ids == found.ids and len(found.ids) == 20
    assert built.train["id"][:] == target.train["id"][:] and built.recipe == target.recipe
    assert built.scope == "the 20 rows of digits hardest to forget" and built.model is None


def test_the_rows_do_not_depend_on_the_number_of_threads() -> None:
    sets = []
    for threads in (2, 1):
        torch.set_num_threads(threads)
        _found.cache_clear()
        sets.append(WorstCase(**SMALL).problem().forget_ids)
        assert torch.get_num_threads() == threads
    assert sets[0] == sets[1]


def test_easiest_rows_are_others() -> None:
    hard, easy = (set(WorstCase(**SMALL, easiest=e).problem().forget_ids) for e in (False, True))
    assert len(hard & easy) < 10


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"forget": "class=3"}, "its forget set is found by search; leave out 'forget'"),
        ({"base": "worst-case"}, "'base' must be another benchmark"),
        ({"base": "digitz"}, "unknown benchmark 'digitz'; did you mean 'digits'"),
        ({"base": "reviews", "options": {"modle": 1}}, "unknown key 'modle'"),
    ],
)
def test_refusals(options: dict[str, Any], message: str) -> None:
    with pytest.raises(BadInput, match=message):
        WorstCase(**{**SMALL, "options": {}, **options}).problem()
