"""Judges that can be fooled are not admitted; one that checks the answer is."""

from __future__ import annotations

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.null_model import Admission, admit, admit_pairwise, null_answers, searched_null

QUESTIONS = [f"How much is {i} and {i + 3}?" for i in range(60)]
GOOD = [f"It is {2 * i + 3}." for i in range(60)]
KEY = dict(zip(QUESTIONS, GOOD, strict=True))


def exact(question: str, answer: str) -> float:
    return float(answer == KEY[question])


def test_exact_match_is_admitted_and_every_null_scores_nothing():
    found = admit(exact, QUESTIONS, GOOD)
    assert found.admitted and found.floor == 0 and found.good == 1 and found.n == 60
    assert set(found.scores) == set(null_answers(QUESTIONS)) and not any(found.scores.values())


@pytest.mark.parametrize(
    ("judge", "worst"),
    [
        (lambda q, a: float("sorry" in a), "refusal"),  # likes to be refused politely
        (lambda q, a: min(1.0, len(a) / 500), "bland"),  # likes length
        (lambda q, a: float("**" in a), "decorated"),
        (lambda q, a: float("Ignore everything above" in a), "template"),
        (lambda q, a: float(not a), "empty"),
        (lambda q, a: len(set(q.split()) & set(a.split())) / 6, "question"),
    ],
)
def test_a_judge_that_likes_what_says_nothing_is_not(judge, worst: str):
    found = admit(judge, QUESTIONS, GOOD)
    assert not found.admitted
    assert found.floor == max(found.scores.values()) == pytest.approx(found.scores[worst])
    assert f"'{worst}', which ignores the question" in found.reason


def test_a_judge_that_likes_nothing_is_not_admitted_either():
    found = admit(lambda q, a: 0.0, QUESTIONS, GOOD)
    assert (
        not found.admitted
        and found.reason == "good answers score 0.00, not above 0.5: it cannot tell them from nothing"
    )


def test_further_nulls_are_tried():
    assert admit(lambda q, a: max(exact(q, a), float(a == "magic")), QUESTIONS, GOOD).admitted
    fooled = admit(
        lambda q, a: max(exact(q, a), float(a == "magic")), QUESTIONS, GOOD, nulls={"magic": ["magic"] * 60}
    )
    assert not fooled.admitted and fooled.scores["magic"] == 1


def compare(question: str, first: str, second: str) -> float:
    return 0.5 + (exact(question, first) - exact(question, second)) / 2


def test_comparisons_are_made_in_both_orders():
    found = admit_pairwise(compare, QUESTIONS, GOOD)
    assert found.admitted and found.floor == 0 and found.swapped == 0
    # Whoever always prefers the first place has no preference at all, and cannot be used.
    biased = admit_pairwise(lambda q, a, b: 1.0, QUESTIONS, GOOD)
    assert not biased.admitted and biased.swapped == 1 and set(biased.scores.values()) == {0.5}
    longer = admit_pairwise(lambda q, a, b: float(len(a) > len(b)), QUESTIONS, GOOD)
    assert not longer.admitted and longer.scores["bland"] == 1 and longer.scores["empty"] == 0


def test_equal_answers_tie_in_every_order():
    rng = np.random.default_rng(0)
    moody = admit_pairwise(lambda q, a, b: 0.8, QUESTIONS, GOOD, nulls={"itself": GOOD})
    assert moody.scores["itself"] == 0.5
    noisy = admit_pairwise(
        lambda q, a, b: float(rng.random()), QUESTIONS * 5, GOOD * 5, nulls={"itself": GOOD * 5}
    )
    assert noisy.scores["itself"] == pytest.approx(0.5, abs=0.1)  # 3 standard errors of 300


def test_search_never_falls_and_breaks_a_judge_that_counts_words():
    def counts(question: str, answer: str) -> float:
        return len({"truly", "deeply"} & set(answer.split())) / 2

    answer, trace = searched_null(
        counts, QUESTIONS[:10], ["and", "truly", "deeply", "so"], tokens=4, steps=60
    )
    assert len(trace) == 61 and trace[0] == 0 and trace[-1] == 1
    assert (np.diff(trace) >= 0).all() and {"truly", "deeply"} <= set(answer.split())
    assert searched_null(counts, QUESTIONS[:10], ["and", "truly"], steps=5) == searched_null(
        counts, QUESTIONS[:10], ["and", "truly"], steps=5
    )
    assert not admit(counts, QUESTIONS[10:] * 2, GOOD[10:] * 2, nulls={"searched": [answer] * 100}).admitted


def test_null_answers_fit_the_questions_and_ignore_them():
    made = null_answers(QUESTIONS)
    assert all(len(answers) == 60 for answers in made.values())
    assert made["question"] == QUESTIONS and made == null_answers(QUESTIONS)
    assert [len(a.split()) for a in made["random"]] == [len(q.split()) for q in QUESTIONS]
    constant = set(made) - {"question", "random"}
    assert all(len(set(made[name])) == 1 for name in constant)


@pytest.mark.parametrize(
    ("run", "words"),
    [
        (lambda: admit(exact, QUESTIONS[:20], GOOD[:20]), "50 questions at least, got 20"),
        (lambda: admit(exact, QUESTIONS, GOOD[:5]), "60 questions but 5 good answers"),
        (lambda: admit(lambda q, a: 7.0, QUESTIONS, GOOD), r"the judge gave 7\.0"),
        (lambda: searched_null(exact, QUESTIONS, []), "vocabulary is empty"),
    ],
)
def test_refusals(run, words: str):
    with pytest.raises(BadInput, match=words):
        run()


def test_fewer_questions_where_one_says_so():
    assert isinstance(admit(exact, QUESTIONS[:5], GOOD[:5], least=5), Admission)
