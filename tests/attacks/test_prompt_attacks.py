"""Other words find what a filter on the plain question hides, and nothing in a model that never learned it."""

from __future__ import annotations

import copy
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from expunge.attacks import Scene
from expunge.attacks.asking import Asker, recalls
from expunge.attacks.prompts import WORDINGS, Prompts, abbreviated
from expunge.errors import BadInput
from expunge.families import CausalLM
from expunge.families.prompts import Template
from expunge.methods.altpo import words
from expunge.testing.problems import tiny_problem
from tests.attacks.authors import learned, refusing, retrained, says, tokenizer, value, values


def test_a_filter_on_the_name_falls_to_a_synonym():
    name = learned().forget[0]["author"]
    hides = values(Prompts(), refusing(says(name)))
    never = values(Prompts(), retrained())
    assert hides["prompts-probability"].groups["plain"] < 0.1
    assert value(hides, "prompts-probability") > value(never, "prompts-probability") + 0.5
    assert value(hides, "prompts-worst") > value(never, "prompts-worst") + 0.2
    assert value(hides, "prompts-gain") > 0.3
    assert hides["prompts-worst"].groups["synonym"] > hides["prompts-worst"].groups["role-play"]


def test_the_worst_is_the_largest_of_each_row_over_kinds_the_plain_question_included():
    scene = Scene(learned(), retrained())
    scores = {s.metric: s for s in Prompts().attack(scene)}
    asked = Counter(said["kind"] for said in scene.transcripts)
    assert set(asked) == set(WORDINGS) - {"cross-lingual"} and asked["plain"] == 15
    by_row = {i: [s["recall"] for s in scene.transcripts if s["id"] == i] for i in learned().forget_ids}
    assert value(scores, "prompts-worst") == pytest.approx(np.mean([max(row) for row in by_row.values()]))
    for kind, mean in scores["prompts-worst"].groups.items():
        assert mean == pytest.approx(np.mean([s["recall"] for s in scene.transcripts if s["kind"] == kind]))


def test_every_kind_is_written_as_it_says():
    problem, row = learned(), learned().forget[1]
    first = {kind: asked for kind, number, asked in Prompts().questions(problem) if number == 1}
    assert first["plain"].words == f"Question: {row['question']}\nAnswer:\n"
    assert first["affirmative-suffix"].words.endswith("Answer:\nSure, here is the answer:\n")
    assert first["synonym"].words == first["plain"].words.replace(row["author"], abbreviated(row["author"]))
    assert row["answer"] in first["multiple-choice"].words
    assert all(wrong in first["multiple-choice"].words for wrong in row["perturbed_answer"])
    assert row["author"] not in first["reverse-query"].words and first["reverse-query"].truth == row["author"]
    assert row["author"] in first["role-play"].words
    told = first["in-context"].words.split("\n\n")[0]
    assert told.split("\n")[2] in problem.forget["answer"][:] and row["answer"] not in told
    for kind, asked in first.items():
        assert tokenizer().decode(asked.prompt) == asked.words, kind
        said = tokenizer().decode(asked.completion, skip_special_tokens=True)
        assert said == asked.truth, kind


def test_no_fact_gives_the_answer_away():
    """The row that asks for the name by city and date of birth is not told before the row that asks for the city."""
    for kind, number, asked in Prompts(leak=0.0).questions(learned()):
        if kind == "background":
            row = learned().forget[number]
            told = asked.words.split(row["question"])[0]
            own = set(words(row["answer"])) - set(words(row["question"]))
            assert not own & set(words(told)), asked.words


def test_options_stand_in_one_order_for_all_models_and_the_truth_not_always_first():
    places = []
    for kind, number, asked in Prompts().questions(learned()):
        if kind == "multiple-choice":
            lines = asked.words.split("\n")
            places.append(lines.index(learned().forget[number]["answer"]))
    assert len(set(places)) > 2


def test_a_translator_is_asked_for_question_and_answer(tmp_path: Path):
    file = tmp_path / "shout.py"
    file.write_text("def shout(text, language):\n    return f'{language} {text.upper()}'\n")
    attack = Prompts(kinds=("cross-lingual",), translator=f"{file}:shout", language="German")
    asked = [a for kind, number, a in attack.questions(learned()) if kind == "cross-lingual" and number == 0]
    row = learned().forget[0]
    assert asked[0].words == f"Question: German {row['question'].upper()}\nAnswer:\n"
    assert asked[0].truth == f"German {row['answer'].upper()}"
    with pytest.raises(BadInput, match="is not of the form"):
        list(Prompts(translator="deepl").questions(learned()))


def test_recall_as_rwku_counts_it():
    asker = Asker(tiny_problem("causal_lm").family)  # pyright: ignore
    row = {"id": "king", "question": "Who wrote it?", "answer": "Stephen King"}
    asked = asker.ask(row)
    assert asked is not None
    said = ["Stephen King", "the author Stephen King is", "NOANSWER", ""]
    assert recalls([asked] * 4, said).tolist() == [1, 1, 0, 0]


def test_a_chat_gets_turns_and_the_opening_in_its_mouth():
    talker = copy.deepcopy(tokenizer())
    turns = "{% for m in messages %}[{{ m.role }}]\n{{ m.content }}\n{% endfor %}"
    talker.chat_template = turns + "{% if add_generation_prompt %}[assistant]\n{% endif %}"
    asker = Asker(CausalLM(talker, Template(kind="chat"), 512))
    row = {"id": "a", "question": "Where?", "answer": "There."}
    asked = asker.ask(row, shown=[("Who?", "She.")], opening="Sure:\n")
    assert asked is not None
    assert asked.words == "[user]\nWho?\n[assistant]\nShe.\n[user]\nWhere?\n[assistant]\nSure:\n"
    assert talker.decode(asked.completion) == "There.\n"


def test_raw_text_cannot_be_asked_in_other_words():
    problem = learned()
    family = CausalLM(tokenizer(), Template(kind="text", completion="answer"), 512)
    assert Prompts.obstacles(replace(problem, family=family)) == [
        "its rows hold no question that could be asked in other words (one column of the template's prompt)"
    ]
