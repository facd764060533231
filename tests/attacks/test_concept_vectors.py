from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.concept_vectors import ConceptVectors, compare, value_matrices
from expunge.families import Architecture
from expunge.problem import Problem
from expunge.record import Score
from expunge.testing.problems import tiny_problem


def scores(problem: Problem, model: nn.Module, **parameters: Any) -> dict[str, Score]:
    found = ConceptVectors(**parameters).attack(Scene(problem, model))
    return {s.metric.removeprefix("concept-vectors-"): s for s in found}


def values(found: dict[str, Score]) -> dict[str, float | None]:
    assert {s.status for s in found.values()} == {"ok"}, found["jaccard"].reason
    return {name: score.value for name, score in found.items()}


def test_traces_by_hand() -> None:
    """Token t is promoted by as much as v says in place t."""
    basis, concept = torch.eye(6), {1, 2, 5}
    v = torch.tensor([0.0, 3.0, 2.0, 1.0, 0.0, -1.0])
    same = compare(v, v, basis, concept, 3)
    assert (same.jaccard, same.distance, same.precise) == (1, 0, 1) and same.cosine == pytest.approx(1)
    twice = compare(v, 2 * v, basis, concept, 3)
    assert (twice.jaccard, twice.distance) == (1, 1) and twice.cosine == pytest.approx(1)
    against = compare(v, -v, basis, concept, 2)
    assert against.cosine == pytest.approx(-1) and against.jaccard == 0
    moved = compare(
        v, torch.tensor([0.0, 0.0, 3.0, 2.0, 1.0, 0.0]), basis, concept, 3
    )  # {1, 2, 3} and {2, 3, 4}
    assert moved.jaccard == 0.5 and moved.precise == 0.5
    gone = compare(v, torch.zeros(6), basis, concept, 3)
    assert (gone.jaccard, gone.cosine, gone.distance, gone.precise) == (0, 0, 1, 0)
    assert (
        compare(v, v, basis, {4}, 3).precise != compare(v, v, basis, {4}, 3).precise
    )  # NaN: nothing to lose


def test_an_intact_trace_is_told_from_a_removed_and_from_a_retrained_one(fine_tuned: Problem) -> None:
    """Suppression in the head leaves the vectors; noise on them, the oracle of the paper, does not; nor does retraining."""
    target: Any = fine_tuned.target
    suppressed: Any = copy.deepcopy(target)
    with torch.no_grad():
        suppressed.lm_head.weight.copy_(suppressed.lm_head.weight.roll(1, 0))
    intact = values(scores(fine_tuned, suppressed))
    assert (intact["jaccard"], intact["cosine"], intact["distance"]) == (1, pytest.approx(1), 0)

    needle = copy.deepcopy(target)
    chosen = ConceptVectors().located(Scene(fine_tuned, needle), target, centered(target))
    assert len(chosen) == len(set(chosen)) == 10
    with torch.no_grad():
        for name, j in chosen:
            value_matrices(needle)[name][j].neg_()
    removed = values(scores(fine_tuned, needle))
    assert removed["cosine"] == pytest.approx(-1) and removed["distance"] == pytest.approx(2)
    assert removed["jaccard"] is not None and removed["jaccard"] < 0.2

    stranger = expunge.forget(replace(fine_tuned, start=None), "retrain", seed=5).model
    clean = values(scores(fine_tuned, stranger))
    assert clean["jaccard"] is not None and clean["jaccard"] < 0.5


def test_contributions_are_those_to_the_logits(fine_tuned: Problem) -> None:
    """Zeroing a column of the last layer moves the residual by what it is said to add there."""
    target: Any = fine_tuned.target
    last = list(value_matrices(target))[-1]
    batch = fine_tuned.batches("forget").take(torch.arange(4))
    without = copy.deepcopy(target)
    with torch.no_grad():
        value_matrices(without)[last][3].zero_()
        keys: list[torch.Tensor] = []
        layer = target.get_submodule(last)
        handle = layer.register_forward_pre_hook(lambda _m, inputs: keys.append(inputs[0]))
        states = [m.model(**batch.inputs).last_hidden_state.shape for m in (target, without)]
        handle.remove()
        full = layer(keys[0])
        less = without.get_submodule(last)(keys[0])
    assert states[0] == states[1]
    expected = keys[0][..., 3:4] * value_matrices(target)[last][3]
    torch.testing.assert_close(full - less, expected, atol=1e-5, rtol=1e-4)


def test_vectors_that_carry_nothing_are_refused(fine_tuned: Problem) -> None:
    """In a model that treats forgotten and retained rows alike no column is the concept's own."""
    alike = replace(fine_tuned, model=fine_tuned.fresh_model(0))
    scrambled: Any = tiny_problem("causal_lm").fresh_model(3)
    found = scores(replace(alike, model=scrambled), scrambled)
    assert {s.status for s in found.values()} == {"undefined"}
    assert "none is the concept's" in found["jaccard"].reason


def test_where_there_is_no_known_mlp_it_says_so(fine_tuned: Problem) -> None:
    sparse = tiny_problem("causal_lm", sparse=True)
    assert ConceptVectors.obstacles(sparse) == [
        "MixtralForCausalLM has no MLP with a down-projection that is known"
    ]
    found = scores(replace(fine_tuned, model=None), fine_tuned.target)
    assert found["jaccard"].reason == "the target was not given, whose vectors are looked for"


@pytest.mark.parametrize(("kind", "size"), [("gpt2", "n_embd"), ("gpt_neox", "hidden_size")])
def test_other_architectures_have_value_vectors(kind: str, size: str) -> None:
    heads, layers = ("n_head", "n_layer") if kind == "gpt2" else ("num_attention_heads", "num_hidden_layers")
    options = {
        "model_type": kind,
        "vocab_size": 20,
        size: 8,
        heads: 2,
        layers: 2,
        "bos_token_id": None,
        "eos_token_id": 1,
    }
    model = Architecture(kind="transformers", name="causal-lm", options=options).build(0)
    assert [v.shape[1] for v in value_matrices(model).values()] == [8, 8]


def centered(model: Any) -> torch.Tensor:
    weight = model.lm_head.weight.detach()
    return weight - weight.mean(0)
