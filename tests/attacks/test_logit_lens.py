"""What the last block turns away is still said by the block before it."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers import GPT2Config, GPT2LMHeadModel

from expunge.attacks import Scene
from expunge.attacks.knowledge import knowledge
from expunge.attacks.logit_lens import LogitLens, decode, final_norm
from expunge.attacks.states import hidden_layers
from expunge.problem import Problem

from .conftest import value


def test_a_last_block_that_turns_away_is_seen_through(
    facts: Problem, silenced: nn.Module, never_told: list[Scene]
) -> None:
    assert (
        knowledge(facts, silenced, "forget").mean() < 0.2
        and knowledge(facts, silenced, "retain").mean() > 0.8
    )
    found = LogitLens().attack(Scene(facts, silenced))
    assert value(found, "logit-lens-knowledge") > 0.9 and value(found, "logit-lens-rise") > 0.8
    curve = found[0].curve
    assert curve is not None and int(np.argmax(curve.values)) == 2  # type: ignore  # embeddings, first, second block
    one, two = (LogitLens().attack(scene) for scene in never_told)
    for theirs in (one, two):
        assert value(theirs, "logit-lens-knowledge") < 0.5 and value(theirs, "logit-lens-rise") < 0.1
    assert abs(value(one, "logit-lens-knowledge") - value(two, "logit-lens-knowledge")) < 0.1


def test_the_last_point_is_what_the_model_says(facts: Problem, silenced: nn.Module) -> None:
    """And that of the last block is the same, the norm being applied once only."""
    for model in (facts.target, silenced):
        scores = LogitLens().attack(Scene(facts, model))
        curve = scores[0].curve
        assert curve is not None
        own = knowledge(facts, model, "forget").mean()
        assert curve.values[-1] == pytest.approx(own, abs=1e-6) == curve.values[-2]
        assert value(scores, "logit-lens-rise") == pytest.approx(
            value(scores, "logit-lens-knowledge") - own, abs=1e-6
        )


def test_agrees_with_the_hidden_states_of_transformers(facts: Problem) -> None:
    """Probabilities of one row, read off the model's own `hidden_states`, whose last is normed already."""
    model: Any = facts.target
    row = facts.batches("forget").take(torch.tensor([3]))
    with torch.no_grad():
        states = model(**row.inputs, output_hidden_states=True).hidden_states
        n = row.targets.shape[1]
        expected = []
        for number, h in enumerate(states):
            h = h if number == len(states) - 1 else model.model.norm(h)
            p = model.lm_head(h)[0, -n - 1 : -1].softmax(-1)
            expected.append(p[torch.arange(n), row.targets[0]][row.mask[0]][:-1].mean().item())
    layers = hidden_layers(facts.family, model)
    assert layers == ["model.embed_tokens", "model.layers.0", "model.layers.1", "model.norm"]
    one = copy.copy(facts)
    object.__setattr__(one, "splits", {"forget": facts.forget.select([3])})
    object.__setattr__(one, "_batches", {})
    curve = LogitLens().attack(Scene(one, model))[2].curve
    assert curve is not None
    # transformers has no entry for the last block before the norm, which says the same.
    assert curve.values == pytest.approx([*expected, expected[-1]], rel=1e-5)


def test_the_final_norm_is_found_whatever_it_is_called(facts: Problem) -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(vocab_size=29, n_positions=32, n_embd=16, n_layer=2, n_head=2)).eval()
    batch = facts.batches("forget").take(torch.arange(4))
    layers = hidden_layers(facts.family, model)
    with torch.no_grad():
        assert final_norm(facts.family, model, batch, layers) == "transformer.ln_f"
        h = torch.randn(3, 16)
        torch.testing.assert_close(
            decode(facts.family, model, h, "transformer.ln_f"), model.lm_head(model.transformer.ln_f(h))
        )
    assert not model.lm_head._forward_pre_hooks
