"""The world of made-up authors: fixed by its seed, consistent, and nothing about one person said by another's rows."""

from __future__ import annotations

import re

import pytest
from datasets import Dataset

from expunge.data.worlds.authors import people, questions, true_facts


@pytest.fixture(scope="module")
def rows() -> Dataset:
    return questions(people(30))


def test_the_corpus_is_fixed_by_its_seed(rows):
    assert questions(people(30))[:] == rows[:]
    assert questions(people(30, seed=1))[:] != rows[:]
    assert [p.name for p in people(10)] == [p.name for p in people(30)][:10]


def test_fifteen_rows_per_person_with_ids_of_their_own(rows):
    assert len(rows) == 450 == len(set(rows["id"]))
    assert len({p.name for p in people(960)}) == 960


def test_paraphrases_say_the_same_in_other_words(rows):
    for row in rows:
        assert row["question"] != row["paraphrased_question"]
        assert row["answer"] != row["paraphrased_answer"]
        for said in (row["answer"], row["paraphrased_answer"]):
            assert row["value"].lower() in said.lower()


def test_perturbed_answers_differ_from_the_paraphrase_in_the_value_alone(rows):
    true = {p.name: {value.lower() for value in p.values.values()} for p in people(30)}
    for row in rows:
        assert len(set(row["perturbed_answer"])) == 5
        before, after = row["paraphrased_answer"].lower().split(row["value"].lower(), 1)
        for said in row["perturbed_answer"]:
            found = re.fullmatch(f"{re.escape(before)}(.+){re.escape(after)}", said.lower())
            assert found is not None, (row["paraphrased_answer"], said)
            assert found[1] not in true[row["author"]]


def test_nobody_is_mentioned_in_the_rows_of_others(rows):
    names = {p.name for p in people(30)}
    for row in rows:
        text = " ".join([row["question"], row["answer"], row["paraphrased_answer"]])
        assert {name for name in names if name in text} <= {row["author"]}


def test_answers_are_hardly_ever_alike(rows):
    """What goes on after the attribute is a person's own, so that no other row's answer gives it away."""
    tails = [answer.split(", ", 1)[1] for answer in rows["answer"]]
    assert len(set(tails)) > 0.98 * len(tails)


def test_true_facts_have_one_right_answer():
    facts = true_facts()
    assert {"world", "authors"} == set(facts["kind"])
    for row in facts:
        assert len({row["answer"], *row["perturbed_answer"]}) == 4
