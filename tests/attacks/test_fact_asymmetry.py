from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset
from torch import nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.fact_asymmetry import FactAsymmetry, mcnemar
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training
from expunge.record import Score
from expunge.testing.problems import tiny_problem

LONG = Training(epochs=300, batch_size=16, lr=0.005, optimizer="adamw", weight_decay=0.0)
FORGOTTEN = ("f0", "b0", "f1", "b1", "f2", "b2")
PEOPLE = ["Ada", "Bo", "Cy", "Di", "Eli", "Flo", "Gus", "Hal"]


def test_the_test_by_hand() -> None:
    """Published worked values: 9 against 2, and 30 against 12."""
    assert mcnemar(9, 2) == mcnemar(2, 9) == pytest.approx(0.0386, abs=5e-5)
    assert mcnemar(30, 12) == pytest.approx(0.00548, abs=5e-6)
    assert mcnemar(5, 5) == mcnemar(0, 0) == mcnemar(20, 20) == 1


@pytest.fixture(scope="module")
def both_ways() -> Problem:
    """Who follows whom among eight people, in both directions; the first three facts are to be forgotten. Untrained."""
    whole, rows = tiny_problem("causal_lm"), []
    assert whole.architecture is not None
    wide = whole.architecture.replace(
        options={**whole.architecture.options, "hidden_size": 32, "intermediate_size": 64}
    )
    for i, name in enumerate(PEOPLE):
        thing = PEOPLE[(i + 3) % 8]
        asked, reverse = f"Where is {name} from?", f"Where was {thing} born?"
        fact = {
            "author": name,
            "value": thing,
            "kind": "follows",
            "reversed_question": reverse,
            "reversed_answer": name,
        }
        rows.append({"id": f"f{i}", "question": asked, "answer": thing, **fact})
        rows.append({"id": f"b{i}", "question": reverse, "answer": name, **fact, "author": "", "value": ""})
    problem = replace(
        whole, train=Dataset.from_list(rows), forget_ids=FORGOTTEN, holdout=None, probes={},
        model=None, architecture=wide, recipe=LONG,
    )  # fmt: skip
    return problem.with_model(problem.fresh_model(0))


def scores(problem: Problem, model: nn.Module) -> dict[str, Score]:
    found = FactAsymmetry().attack(Scene(problem, model))
    return {s.metric.removeprefix("fact-asymmetry-"): s for s in found}


class Told(nn.Module):
    """Knows what follows some texts: the answer is the likeliest token everywhere in a sequence that holds one."""

    def __init__(self, problem: Problem, known: dict[str, str]) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.tokenizer, self.known = problem.family.tokenizer, known  # pyright: ignore

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        logits = self.weight * torch.zeros(*input_ids.shape, len(self.tokenizer))
        for row, text in enumerate(self.tokenizer.batch_decode(input_ids)):
            for said, answer in self.known.items():
                if said in text:
                    logits[row, :, self.tokenizer.convert_tokens_to_ids(answer)] += 5
        return logits


def test_what_is_known_one_way_only_shows(both_ways: Problem) -> None:
    forward = {f"Where is {name} from": PEOPLE[(i + 3) % 8] for i, name in enumerate(PEOPLE)}
    backward = {f"Where was {PEOPLE[(i + 3) % 8]} born": name for i, name in enumerate(PEOPLE)}
    complete, half = Told(both_ways, {**forward, **backward}), Told(both_ways, backward)
    problem = both_ways.with_model(complete)
    found = {name: s.value for name, s in scores(problem, Told(both_ways, {**forward, **backward})).items()}
    assert found == {"forward": 1, "backward": 1, "difference": 0, "p": 1, "gap": 0}
    # Forgotten from subject to object alone: three facts one way only, mid-p 2 * 1/8 - 1/8.
    found = {name: s.value for name, s in scores(problem, half).items()}
    assert found == {"forward": 0, "backward": 1, "difference": -1, "p": pytest.approx(0.125), "gap": 1}
    nothing = {name: s.value for name, s in scores(problem, Told(both_ways, {})).items()}
    assert nothing == {"forward": 0, "backward": 0, "difference": 0, "p": 1, "gap": 0}


@pytest.mark.slow
def test_forgetting_one_direction_shows(both_ways: Problem) -> None:
    both_ways = expunge.train_target(replace(both_ways, model=None))
    target = {name: s.value for name, s in scores(both_ways, copy.deepcopy(both_ways.target)).items()}
    assert target == {"forward": 1, "backward": 1, "difference": 0, "p": 1, "gap": 0}

    # Unlearned from forward questions alone: other answers to them, and everything else rehearsed.
    rows = [dict(row) for row in both_ways.train]
    for row in rows:
        if row["id"] in ("f0", "f1", "f2"):
            row["answer"] = PEOPLE[(PEOPLE.index(row["author"]) + 1) % 8]
    half = fit(
        replace(both_ways, train=Dataset.from_list(rows)), copy.deepcopy(both_ways.target), "train",
        LONG.replace(epochs=150), Workplace(),
    ).eval()  # fmt: skip
    found = {name: s.value for name, s in scores(both_ways, half).items()}
    assert found["forward"] == 0 and found["backward"] == 1
    assert found["gap"] == 1 and found["difference"] == -1

    clean = scores(both_ways, expunge.forget(both_ways, "retrain").model)
    values = [clean[name].value for name in ("forward", "backward", "gap")]
    assert all(value is not None for value in values)
    assert abs(values[2] or 0) <= 0.7 and (values[0] or 0) < 1


def test_statements_differ_in_the_object_alone(both_ways: Problem) -> None:
    forward, backward = FactAsymmetry().statements(Scene(both_ways, both_ways.target))
    assert len(forward) == len(backward) == 3  # rows without subject and object are not facts
    assert {one.words for one in forward[0]} == {"Question: Where is Ada from?\nAnswer:\n"}
    assert forward[0][0].truth == "Di" and len({one.truth for one in forward[0]}) == 5
    assert {one.truth for one in backward[0]} == {"Ada"}
    assert (
        backward[0][0].words.startswith("Question: Where was Di born?")
        and len({one.words for one in backward[0]}) == 5
    )


def test_what_a_target_never_knew_backward_is_not_judged(both_ways: Problem) -> None:
    never = both_ways.fresh_model(5)
    found = scores(replace(both_ways, model=never), never)
    assert found["gap"].status == "undefined" and "no more than chance" in found["gap"].reason
    assert np.isfinite(found["backward"].value or np.nan) or found["backward"].value == 0


def test_rows_without_subject_and_object_say_why() -> None:
    problem = tiny_problem("causal_lm")
    assert "no forgotten row has a subject ('author')" in scores(problem, problem.target)["forward"].reason
