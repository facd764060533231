"""Several answers to each row, and how likely refusals are: against slow versions, on the tiny problem."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from datasets import Dataset

from expunge.evidence import Evidence, collect
from expunge.families import CausalLM, Generation, Template
from expunge.families.base import captured
from expunge.families.refusals import probes, refusals
from expunge.problem import Problem
from expunge.stats.umpire import semantic_volume
from expunge.testing import tiny_problem

SAMPLED = ["sample_text", "sample_logp", "sample_tokens", "sample_similarity"]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("causal_lm")


@pytest.fixture(scope="module")
def family(problem: Problem) -> CausalLM:
    made = problem.family
    assert isinstance(made, CausalLM)
    return CausalLM(
        made.tokenizer, made.template, made.max_length, generation=Generation(max_new_tokens=8, samples=3)
    )


@pytest.fixture(scope="module")
def found(problem: Problem, family: CausalLM) -> Evidence:
    return collect(family, problem.target, problem.forget, [*SAMPLED, "text", "loss"])


def test_the_likelihood_of_a_refusal_is_that_of_a_row_that_says_it(problem: Problem, family: CausalLM):
    rows = problem.forget
    together = collect(family, problem.target, rows, ["loss", "refusal_loss"])
    alone = collect(family, problem.target, rows, ["loss"])["loss"]
    np.testing.assert_allclose(together["loss"], alone, atol=1e-5)
    assert len(probes()) == 5 and set(probes()) <= set(refusals())
    as_answers = family.answered(rows, [text for _ in range(len(rows)) for text in probes()])
    expected = collect(family, problem.target, as_answers, ["loss"])["loss"].reshape(len(rows), 5)
    np.testing.assert_allclose(together["refusal_loss"], expected, atol=1e-5)
    # Beside further answers each keeps its own.
    all_of_them = collect(family, problem.target, rows, ["perturbed_loss", "refusal_loss"])
    np.testing.assert_allclose(all_of_them["refusal_loss"], expected, atol=1e-5)


def test_plain_text_asks_nothing(problem: Problem, family: CausalLM):
    raw = CausalLM(family.tokenizer, Template(kind="text"), 32)
    seen = collect(
        raw, problem.target, problem.forget.select_columns(["id", "answer"]), ["refusal_loss", "loss"]
    )
    assert np.isnan(seen["refusal_loss"]).all() and np.isfinite(seen["loss"]).all()


def test_likelihood_and_likeness_of_samples_token_by_token(
    problem: Problem, family: CausalLM, found: Evidence
):
    tokenizer, model = family.tokenizer, problem.target
    layer = family.compared_layers(model)[-1]
    assert found["sample_logp"].shape == (len(problem.forget), 3)
    for number in range(3):
        row = problem.forget[number]
        ids, n_prompt = family.tokens(*family.template.render(row, tokenizer))
        prompt, states = ids[:n_prompt], []
        for answer in range(3):
            n = int(found["sample_tokens"][number, answer])
            said = tokenizer(found["sample_text"][number][answer], add_special_tokens=False)["input_ids"]
            said = said if len(said) == n else [*said, tokenizer.eos_token_id]
            assert len(said) == n
            total, whole = 0.0, torch.tensor([[*prompt, *said]])
            with torch.no_grad():
                for position in range(n):
                    logits = model(input_ids=whole[:, : len(prompt) + position]).logits[0, -1].double()
                    total += float(torch.log_softmax(logits, -1)[said[position]])
                with captured(model, [layer]) as caught:
                    model(input_ids=whole)
            states.append(caught[layer][0, -1].double().numpy())
            assert found["sample_logp"][number, answer] == pytest.approx(total, abs=1e-3)
        cosines = found["sample_similarity"][number].reshape(3, 3)
        expected = np.stack(states) / np.linalg.norm(states, axis=1, keepdims=True)
        np.testing.assert_allclose(cosines, expected @ expected.T, atol=1e-4)
        assert semantic_volume(states, eps=1e-3) == pytest.approx(
            float(np.linalg.slogdet(cosines + 1e-3 * np.eye(3))[1]) / 6, abs=0.05
        )


def test_samples_are_the_same_again_and_stand_in_a_file(
    problem: Problem, family: CausalLM, found: Evidence, tmp_path
):
    again = collect(family, problem.target, problem.forget, SAMPLED)
    for name in SAMPLED:
        assert all(np.array_equal(a, b) for a, b in zip(again[name], found[name], strict=True)), name
    found.write(tmp_path / "e.parquet")
    read = Evidence.read(tmp_path / "e.parquet")
    assert list(read["sample_text"][4]) == list(found["sample_text"][4]) and len(read["sample_text"][4]) == 3


def test_more_samples_are_the_users_affair_and_the_default_changes_no_address(problem: Problem):
    made = problem.family
    assert isinstance(made, CausalLM)
    described = made.describe()
    assert "samples" not in described["generation"] and CausalLM.restore(described).generation.samples == 5
    more = CausalLM(made.tokenizer, made.template, made.max_length, generation=Generation(samples=9))
    assert more.describe()["generation"]["samples"] == 9
    assert CausalLM.restore(more.describe()).generation.samples == 9
    rows = Dataset.from_dict(problem.forget[:2])
    seen = collect(more, problem.target, rows, ["sample_tokens"])
    assert seen["sample_tokens"].shape == (2, 9) and (seen["sample_tokens"] >= 1).all()
