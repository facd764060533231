"""The search of a suffix: its optimum and gradient against brute force, and what it finds in models."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from expunge.attacks import Scene
from expunge.attacks.asking import Asker
from expunge.attacks.gcg import GCG, Search, plain_tokens, slot
from tests.attacks.authors import learned, retrained, suppressed, tokenizer, value, values

QUICK = GCG(steps=8, width=32, rows=4)


def search(rows: int = 2, length: int = 1, **changed: object) -> Search:
    scene, asker = Scene(learned(), learned().target), Asker(learned().family)  # pyright: ignore
    made = GCG(length=length).search_on(scene, asker, list(learned().forget)[:rows])
    for name, new in changed.items():
        setattr(made, name, new)
    made.__post_init__()
    return made


def test_npo_hides_what_a_suffix_finds():
    hides, never = values(QUICK, suppressed()), values(QUICK, retrained())
    assert value(hides, "gcg-knowledge") > value(never, "gcg-knowledge") + 0.1
    assert abs(value(never, "gcg-knowledge") - value(never, "gcg-control")) < 0.1
    for scores in (hides, never):
        curve = scores["gcg-loss"].curve
        assert curve is not None and len(curve.values) == 9
        assert (np.diff(np.asarray(curve.values, dtype=float)) <= 0).all()


def test_with_one_place_and_three_tokens_it_finds_the_best():
    """Brute force over the whole space."""
    made = search(allowed=plain_tokens(tokenizer())[40:43])
    losses = made.losses([[token] for token in made.allowed])
    best = made.allowed[int(losses.argmin())]
    generator = torch.Generator().manual_seed(0)
    worst = int(losses.argmax())
    suffix, loss = made.step([made.allowed[worst]], float(losses[worst]), 3, 16, generator)
    assert suffix == [best] and loss == pytest.approx(losses.min())
    again, same = made.step(suffix, loss, 3, 16, generator)
    assert again == suffix and same == loss  # the incumbent is kept where nothing is better


def test_the_gradient_is_that_of_the_loss_along_embeddings():
    """Moving the suffix's vector a little towards a token's changes the loss as the gradient says."""
    from expunge.attacks.vectors import placed, with_room

    made = search(length=2, allowed=plain_tokens(tokenizer())[:30])
    suffix = list(made.allowed[:2])
    gradient = made.gradient(suffix)
    base = made.embedding(torch.tensor(suffix)).detach()

    def loss(vectors: torch.Tensor) -> float:
        from expunge.attacks.asking import batches

        asked = [with_room(one, at, suffix) for one, at in zip(made.asked, made.slots, strict=True)]
        total = 0.0
        for which, batch in batches(made.family, asked):
            with torch.no_grad(), placed(made.embedding, vectors, list(made.slots)[which]):
                outputs = made.family.forward(made.scene.model, batch)
                total += float((made.family.nll(outputs, batch) / made.family.terms(batch)).sum())
        return total / len(asked)

    step = 1e-2
    for place, token in ((0, 5), (1, 17)):
        moved = torch.zeros_like(base)
        moved[place] = made.table[token] * step
        slope = (loss(base + moved) - loss(base - moved)) / (2 * step)
        assert slope == pytest.approx(float(gradient[place, token]), rel=0.05, abs=1e-3)


def test_the_suffix_stands_behind_the_question():
    asker = Asker(learned().family)  # pyright: ignore
    for row in list(learned().forget)[:3]:
        asked = asker.ask(row)
        assert asked is not None
        at = slot(asker, row)
        assert tokenizer().decode(asked.prompt[:at]) == f"Question: {row['question']}"
        assert tokenizer().decode(asked.prompt[at:]) == "\nAnswer:\n"


def test_candidates_are_read_as_the_tokens_they_are():
    made = search(length=4)
    rng = np.random.default_rng(0)
    survived = [s for s in (list(rng.choice(made.allowed, 4)) for _ in range(50)) if made.survives(s)]
    assert 0 < len(survived) < 50
    row = learned().forget[0]
    for suffix in survived:
        text = f"Question: {row['question']}{tokenizer().decode(suffix)}\nAnswer:\n"
        assert tokenizer()(text)["input_ids"] == [*made.asked[0].prompt[: made.slots[0]], *suffix,
                                                  *made.asked[0].prompt[made.slots[0] :]]  # fmt: skip


def test_the_transcript_is_what_anyone_could_type():
    scene = Scene(learned(), suppressed())
    QUICK.attack(scene)
    assert len(scene.transcripts) == 11  # of 15 rows 4 were searched on
    rows = {row["id"]: row for row in learned().forget}
    for said in scene.transcripts:
        assert said["asked"] == f"Question: {rows[said['id']]['question']}{said['suffix']}\nAnswer:\n"


def test_an_affirmative_sentence_can_be_the_target():
    scene, asker = Scene(learned(), learned().target), Asker(learned().family)  # pyright: ignore
    made = GCG(target="affirmative").search_on(scene, asker, list(learned().forget)[:2])
    assert {tokenizer().decode(one.completion) for one in made.asked} == {"Sure, here is the answer:"}


def test_the_seed_decides():
    quick = GCG(steps=2, width=8, rows=2)
    assert values(quick, retrained(), 1) == values(quick, retrained(), 1)
    assert values(quick, retrained(), 1) != values(quick, retrained(), 2)
