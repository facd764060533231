"""Probes that were trained on, and rows to keep that repeat what is to be forgotten."""

from __future__ import annotations

from dataclasses import replace

import pytest
from datasets import Dataset, concatenate_datasets

from expunge.data.benchmarks.base import BENCHMARKS
from expunge.find.contamination import contamination
from expunge.problem import Problem
from expunge.stats.contamination import words_of
from expunge.testing.problems import tiny_problem


def with_rows(problem: Problem, **probes: list[dict[str, str]]) -> Problem:
    made = {name: problem.train.select([]) for name in probes}
    for name, rows in probes.items():
        columns = problem.train.column_names
        made[name] = Dataset.from_list([{c: r.get(c, "") for c in columns} for r in rows])
    return replace(problem, probes=made)


@pytest.fixture(scope="module")
def texts() -> Problem:
    return BENCHMARKS["tofu-mini"]().problem()


def test_copies_are_found_whatever_their_punctuation_and_strangers_are_not(texts: Problem):
    row = texts.train[0]
    copy = {**row, "id": "copy", "question": row["question"].upper().replace("?", " !?")}
    other = {
        **row,
        "id": "new",
        "question": "Which river of the north runs dry?",
        "answer": "None, I am afraid.",
    }
    found = {c.split: c for c in contamination(with_rows(texts, mixed=[copy, other]))}
    mixed = found["mixed"]
    assert (mixed.against, mixed.n, mixed.exact, mixed.near) == ("train", 2, 1, 1)
    assert mixed.longest == 1.0 and mixed.found
    assert [(p.probe, p.row, p.similarity) for p in mixed.pairs] == [("copy", row["id"], 1.0)]
    assert mixed.overlapping == 1


def test_a_forget_row_that_is_also_kept_is_found(texts: Problem):
    assert not {c.split: c for c in contamination(texts)}["forget"].exact
    forgotten = texts.forget[0]
    again = Dataset.from_list([{**forgotten, "id": "again", "answer": forgotten["answer"] + " indeed"}])
    twice = replace(texts, train=concatenate_datasets([texts.train, again.cast(texts.train.features)]))
    found = {c.split: c for c in contamination(twice)}["forget"]
    assert (found.against, found.exact, found.near) == ("retain", 0, 1)
    assert (found.pairs[0].probe, found.pairs[0].row) == (forgotten["id"], "again")
    # Of n words there are n - 4 shingles of five; one more word adds one more shingle.
    n = len(words_of(forgotten["question"] + " " + forgotten["answer"]))
    assert found.pairs[0].similarity == pytest.approx((n - 4) / (n - 3))


def test_rows_without_text_are_compared_by_their_inputs():
    problem = tiny_problem("classifier")
    assert not any(c.found for c in contamination(problem))
    rows = problem.train.select([3, 5])
    seen = Dataset.from_dict({**rows[:], "id": ["a", "b"], "label": [0, 0]})  # other labels, equal inputs
    found = {c.split: c for c in contamination(replace(problem, probes={"test": seen}))}
    assert found["test"].exact == 2 and found["test"].overlapping is None
    assert [(p.probe, p.row) for p in found["test"].pairs] == list(zip("ab", rows["id"], strict=True))
