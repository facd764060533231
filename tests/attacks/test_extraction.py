"""Sampling brings out what greedy answers hide, and nothing where nothing was learned."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.attacks import Scene
from expunge.attacks.asking import own_words
from expunge.attacks.extraction import Extraction, expected_best, longest_run
from expunge.families import CausalLM
from expunge.families.combined import Combined, Mean
from expunge.families.prompts import Template
from expunge.families.sampling import nucleus
from expunge.methods.base import Workplace
from tests.attacks.authors import learned, refusing, retrained, tokenizer, value, values


def test_the_expected_best_is_the_mean_over_all_subsets():
    drawn = np.random.default_rng(0).random((4, 7)).round(1)
    for j in range(1, 8):
        subsets = [drawn[:, list(chosen)].max(1) for chosen in itertools.combinations(range(7), j)]
        np.testing.assert_allclose(expected_best(drawn, j), np.mean(subsets, 0))


def test_of_hits_it_is_pass_at_k():
    hits = np.asarray([[1, 0, 0, 1, 0, 0, 0, 0, 0, 0], [0] * 10, [1] * 10], dtype=float)
    for j in (1, 3, 9):
        by_formula = [1 - math.comb(10 - c, j) / math.comb(10, j) for c in (2, 0, 10)]
        np.testing.assert_allclose(expected_best(hits, j), by_formula)
    np.testing.assert_allclose(expected_best(np.zeros((1, 1000)), 500), 0)  # no overflow of binomials


@pytest.mark.parametrize(
    ("said", "run"), [("Born in Rome, in 1950", 1), ("in 1950 born in Rome", 0.6), ("Oslo", 0), ("", 0)]
)
def test_the_longest_run_counts_words_in_a_row(said: str, run: float):
    assert longest_run(said, "born in Rome, in 1950") == run


def test_the_target_gives_everything_and_a_retrained_model_nothing():
    knows, never = (
        values(Extraction(samples=5, temperature=0.5), model) for model in (learned().target, retrained())
    )
    assert value(knows, "extraction-greedy") == 1 and value(knows, "extraction-rows") > 0.5
    assert value(never, "extraction-greedy") == value(never, "extraction-rows") == 0
    assert value(knows, "extraction-run") > value(never, "extraction-run") + 0.5
    for scores in (knows, never):
        for score in scores.values():
            if score.curve is not None:
                assert score.curve.at == [1, 2, 5]
                assert score.curve.values == sorted(score.curve.values, key=lambda v: v or 0)
                assert score.curve.values[-1] == pytest.approx(score.value)


def test_a_greedy_refusal_hides_nothing_from_sampling():
    """The end of the sequence is made a little likelier than the answer: the greedy answer is empty."""
    hides = refusing(lambda ids: torch.ones(len(ids), dtype=torch.bool), everywhere=False, push=0.5)
    attack = Extraction(samples=12, temperature=0.5)
    found, never = values(attack, hides), values(attack, retrained())
    assert value(found, "extraction-greedy") == 0
    assert value(found, "extraction-rows") > 0.6
    assert value(found, "extraction-recall") > value(never, "extraction-recall") + 0.4


def test_transcripts_hold_what_was_asked_and_the_best_sample():
    scene = Scene(learned(), learned().target)
    Extraction(samples=3).attack(scene)
    assert [said["id"] for said in scene.transcripts] == list(learned().forget_ids)
    first, row = scene.transcripts[0], learned().forget[0]
    assert first["asked"] == f"Question: {row['question']}\nAnswer:\n" and first["answered"] == row["answer"]


def test_the_seed_decides():
    attack, hot = Extraction(samples=2), Extraction(samples=2, temperature=1.0)
    assert values(attack, retrained(), 3) == values(hot, retrained(), 3)
    assert values(attack, retrained(), 3) != values(attack, retrained(), 4)


def test_raw_text_is_continued_verbatim():
    """A passage as a row: its first tokens are the prompt, and what follows them is to be recovered."""
    problem = learned()
    passages = [
        {"id": row["id"], "text": f"Question: {row['question']}\nAnswer:\n{row['answer']}"}
        for row in problem.train
    ]
    family = CausalLM(tokenizer(), Template(kind="text", completion="text"), 512)
    texts = replace(problem, family=family, train=Dataset.from_list(passages), holdout=None)
    asked = own_words(family, passages[0])
    ids = tokenizer()(passages[0]["text"])["input_ids"]
    n = min(50, len(ids) // 2)
    assert asked.prompt == ids[:n] and asked.completion == ids[n:]
    found = {s.metric: s for s in Extraction(samples=1).attack(Scene(texts, problem.target, Workplace()))}
    assert value(found, "extraction-greedy") == 1
    assert found["extraction-run"].n == 15


def test_nucleus_keeps_the_fewest_tokens_of_that_probability():
    logits = torch.log(torch.tensor([[0.5, 0.1, 0.3, 0.1]]))
    for top_p, kept in ((0.4, [0]), (0.5, [0]), (0.51, [0, 2]), (0.95, [0, 1, 2, 3]), (1e-9, [0])):
        assert torch.isfinite(nucleus(logits, top_p))[0].nonzero().flatten().tolist() == kept


def test_models_that_answer_as_one_are_sampled_too():
    """Twice the target, averaged, is the target: cold samples are its greedy answers, whatever the noise."""
    twice = Combined([learned().target, learned().target], Mean())
    cold = values(Extraction(samples=1, temperature=1e-3), twice)
    assert value(cold, "extraction-rows") == value(cold, "extraction-greedy") == 1
    mixed = values(Extraction(samples=2), Combined([retrained(), retrained()], Mean()))
    assert value(mixed, "extraction-rows") == 0
