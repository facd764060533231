"""Trained vectors bring out what NPO hides, also of rows they were not trained on, and little of what was never there."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from expunge.attacks import Scene
from expunge.attacks.asking import Asker, batches, scored
from expunge.attacks.knowledge import knowledge
from expunge.attacks.soft_prompt import SoftPrompt
from expunge.attacks.vectors import divided, embedding_of, placed, with_room
from expunge.metrics.base import Undefined
from tests.attacks.authors import learned, retrained, suppressed, value, values

QUICK = SoftPrompt(steps=40, lr=0.02)


def test_npo_hides_what_vectors_find():
    hides, never = values(QUICK, suppressed()), values(QUICK, retrained())
    before = hides["soft-prompt-knowledge"].curve
    assert before is not None and before.at == [0, 10, 20, 40] and (before.values[0] or 0) < 0.2
    assert value(hides, "soft-prompt-knowledge") > value(never, "soft-prompt-knowledge") + 0.3
    assert value(hides, "soft-prompt-knowledge") > value(hides, "soft-prompt-control") + 0.3
    assert abs(value(never, "soft-prompt-knowledge") - value(never, "soft-prompt-control")) < 0.1


def test_vectors_in_place_of_embeddings_are_those_embeddings():
    """Put the embeddings of tokens where these tokens would stand, and nothing changes."""
    problem, model, family = learned(), learned().target, learned().family
    asked = [a for row in problem.forget if (a := Asker(family).ask(row)) is not None]  # pyright: ignore
    ids = family.tokenizer("Once upon")["input_ids"]  # pyright: ignore
    with torch.no_grad():
        vectors = embedding_of(model)(torch.tensor(ids))
    plain = scored(family, model, [with_room(a, 3, ids) for a in asked], "cpu")[0]  # pyright: ignore
    room = [with_room(a, 3, [family.pad] * len(ids)) for a in asked]  # pyright: ignore
    assert not np.allclose(scored(family, model, room, "cpu")[0], plain)  # pyright: ignore
    put = np.full(len(room), np.nan)
    with torch.no_grad():
        for which, batch in batches(family, room):  # pyright: ignore
            with placed(embedding_of(model), vectors, [3] * len(batch)):
                loss = family.observe(family.forward(model, batch), batch, ["loss"])["loss"]
            put[which] = np.exp(-loss.numpy())
    np.testing.assert_allclose(put, plain, rtol=1e-5)


def test_a_plain_question_is_the_common_scale_of_knowledge():
    scene = Scene(learned(), retrained())
    asked = QUICK.questions(scene, "forget")
    np.testing.assert_allclose(
        QUICK.knowledge(scene, asked, None), knowledge(learned(), retrained(), "forget"), rtol=1e-6
    )


def test_own_rows_are_never_measured():
    scene = Scene(learned(), retrained())
    QUICK.attack(scene)
    asked = {said["id"] for said in scene.transcripts}
    own, rest = divided(scene, 15, 64, 63)
    assert len(own) == 7 and len(rest) == 8 and not set(own) & set(rest)
    assert asked == {learned().forget_ids[i] for i in rest}
    with pytest.raises(Undefined, match="there are 1"):
        divided(scene, 1, 4, 0)


def test_the_model_keeps_its_gradients_and_the_seed_decides():
    model = retrained()
    assert all(p.grad is None for p in model.parameters())
    one, two = values(QUICK, model, 2), values(QUICK, model, 2)
    assert one == two and one != values(QUICK, model, 3)
    assert all(p.grad is None for p in model.parameters())


def test_never_seen_rows_are_asked_for():
    scores = {s.metric: s for s in QUICK.attack(Scene(replace(learned(), holdout=None), retrained()))}
    assert scores["soft-prompt-control"].reason == "no never-seen rows (holdout) fit in as a control"


def test_a_model_that_hides_its_embeddings_is_said_so():
    with pytest.raises(Undefined, match="Linear does not say which of its modules embeds tokens"):
        embedding_of(nn.Linear(1, 1))
