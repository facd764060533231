"""A user's own language model and rows: questions and answers, chats, text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import expunge
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.families import CausalLM
from expunge.problem import Problem
from expunge.testing import tiny_problem


@pytest.fixture(scope="module")
def tiny() -> Problem:
    return tiny_problem("causal_lm")


@pytest.fixture(scope="module")
def folder(tiny: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A transformers folder with a model and its tokenizer."""
    path = tmp_path_factory.mktemp("model")
    model: Any = tiny.target
    model.save_pretrained(path)
    assert isinstance(tiny.family, CausalLM)
    tiny.family.tokenizer.save_pretrained(path)
    return path


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def rows_of(tiny: Problem, split: str) -> list[dict[str, Any]]:
    return [{k: row[k] for k in ("id", "question", "answer")} for row in tiny.splits[split].to_list()]


def test_forget_and_audit_from_files(tiny, folder, tmp_path):
    spec = ProblemSpec(
        name="own", model=str(folder), forget_data=write(tmp_path / "forget.jsonl", rows_of(tiny, "forget")),
        retain=write(tmp_path / "retain.jsonl", rows_of(tiny, "retain")),
        holdout=write(tmp_path / "holdout.jsonl", rows_of(tiny, "holdout")),
    )  # fmt: skip
    problem = spec.build()
    assert isinstance(problem.family, CausalLM) and problem.family.template.kind == "plain"
    assert len(problem.forget) == len(tiny.forget) and problem.family.max_length == 32
    unlearned = expunge.forget(problem, "gradient-ascent", lr=0.05, epochs=3)
    judged = expunge.audit(problem, {"ascent": unlearned.model}).judged
    before, after = (
        next(j for j in judged if j.label == label).score("probability", "forget")
        for label in ("target", "ascent")
    )
    assert before is not None and after is not None
    assert after.value < before.value - 0.05
    by_hand = next(j for j in judged if j.label == "target").score("exact-memorization", "forget")
    assert by_hand is not None and 0.3 < by_hand.value < 1


def test_the_columns_say_how_rows_are_read(tiny, folder, tmp_path):
    chat = [
        {
            "id": r["id"],
            "messages": [
                {"role": "user", "content": r["question"]},
                {"role": "assistant", "content": r["answer"]},
            ],
        }
        for r in rows_of(tiny, "forget")
    ]
    text = [{"id": r["id"], "text": r["answer"]} for r in rows_of(tiny, "forget")]
    told = ProblemSpec(
        model=str(folder), data=write(tmp_path / "text.jsonl", text), forget="fraction=0.2"
    ).build()
    assert isinstance(told.family, CausalLM) and told.family.template.kind == "text"
    with pytest.raises(BadInput, match="the tokenizer has no chat template"):
        ProblemSpec(
            model=str(folder), data=write(tmp_path / "chat.jsonl", chat), forget="fraction=0.2"
        ).build()
    other = [{"id": i, "prompt": "Where", "reply": "Rome"} for i in "ab"]
    with pytest.raises(BadInput, match="no columns messages, question and answer, or text"):
        ProblemSpec(
            model=str(folder), data=write(tmp_path / "other.jsonl", other), forget="fraction=0.5"
        ).build()


def test_a_template_of_ones_own(tiny, folder, tmp_path):
    rows = [{"id": r["id"], "asked": r["question"], "said": r["answer"]} for r in rows_of(tiny, "retain")]
    spec = ProblemSpec.model_validate(
        {
            "model": str(folder), "data": write(tmp_path / "own.jsonl", rows), "forget": "fraction=0.2",
            "template": {"prompt": "Question {asked} Answer \n", "completion": "said"},
        }
    )  # fmt: skip
    problem = spec.build()
    assert isinstance(problem.family, CausalLM)
    batch = problem.family.collate(problem.train[:1])
    shown = problem.family.tokenizer.decode(batch.targets[batch.mask].tolist())
    assert shown.replace(" ", "") == f"{rows[0]['said']}<eos>".replace(" ", "")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"id": "a", "question": "Where is Ada Bo from ?", "answer": ""}, "id 'a' has an empty 'answer'"),
        (
            {"id": "a", "question": "Where is Ada Bo from ?", "answer": "Rome " * 40},
            "more than the context of 32",
        ),
    ],
)
def test_bad_rows(row, message, tiny, folder, tmp_path):
    rows = [*rows_of(tiny, "forget")[:4], {**row}]
    spec = ProblemSpec(model=str(folder), data=write(tmp_path / "bad.jsonl", rows), forget="fraction=0.4")
    with pytest.raises(BadInput, match=message):
        spec.build()


def test_the_same_ids_in_forget_and_retain(tiny, folder, tmp_path):
    rows = rows_of(tiny, "forget")
    spec = ProblemSpec(
        model=str(folder),
        forget_data=write(tmp_path / "f.jsonl", rows[:5]),
        retain=write(tmp_path / "r.jsonl", rows[4:]),
    )
    with pytest.raises(BadInput, match="occurs more than once"):
        spec.build()
