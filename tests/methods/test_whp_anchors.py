"""Anchored terms: replacement and alignment by hand, and the loss against a walk over the words of each row."""

from __future__ import annotations

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from expunge.errors import BadInput
from expunge.families import CausalLM, Template
from expunge.families.models import clone
from expunge.methods import Workplace
from expunge.methods.anchors import aligned, translate
from expunge.methods.loop import fit
from expunge.methods.whp import WHP
from expunge.problem import Training
from expunge.testing import tiny_problem

ANCHORS = {"Flo Hal": "Gus", "Hal Ada": "Cy Bo", "Bern": "Rome", "was born": "is"}


def test_replacement_by_hand():
    terms = {"Hogwarts": "the school", "Harry": "Jon", "Harry Potter": "Jon Smith", "wand": "stick"}
    said = "Harry Potter left Hogwarts; Harry, not harry, waved wands and a wand."
    assert translate(said, terms) == "Jon Smith left the school; Jon, not harry, waved wands and a stick."
    assert translate("$5 (a.b) axb", {"a.b": "c", "$5": "€4"}) == "€4 (c) axb"
    assert translate(said, {}) == said


def test_alignment_by_hand():
    family: Any = tiny_problem("causal_lm").family
    row = {
        "id": "x",
        "question": "Where is Flo Hal from?",
        "answer": "Flo Hal is from Bern. Flo Hal was born in Bern.",
    }
    # Own: Question : Where is Flo Hal from ? \n Answer : \n Flo Hal is from Bern . Flo Hal was born in Bern . <eos>
    # Made: Question : Where is Gus from ? \n Answer : \n Gus is from Rome . Gus is in Rome . <eos>
    found = aligned(family, row, ANCHORS)
    ids, n_prompt = family.tokens(*family.template.render(row, family.tokenizer))
    words = family.tokenizer.convert_ids_to_tokens(ids)
    flo = [i for i, word in enumerate(words) if word == "Flo"]
    assert n_prompt == flo[1]
    is_, bern, second, was, in_, end = (
        n_prompt + 2,
        n_prompt + 4,
        flo[2],
        flo[2] + 2,
        flo[2] + 4,
        len(ids) - 1,
    )
    # The name stands in the prompt, so both its later occurrences are left out; "born" lies inside a term.
    assert found.left_out == {flo[0] + 1, flo[1], flo[1] + 1, second, second + 1, was + 1, in_ + 1}
    # Every "Flo Hal" is one word shorter: one before the prompt's end, two before "is", three behind the third.
    expected = {
        is_: is_ - 2,
        is_ + 1: is_ - 1,
        bern: bern - 2,
        bern + 1: bern - 1,
        was: was - 3,
        in_: in_ - 4,
        end - 1: end - 5,
        end: end - 4,
    }
    assert {own: place for own, place in found.places.items() if own >= n_prompt} == expected
    tokens = family.tokenizer.convert_tokens_to_ids(["Gus", "Rome", "is"])
    assert found.replaced == dict(zip(tokens, [flo[0], bern, was], strict=True))


def test_alignment_of_terms_of_many_tokens():
    """Letters as tokens: the first of a term stands for the first of its replacement, the others for nothing."""
    letters = {c: i for i, c in enumerate(["<eos>", *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    backend = Tokenizer(models.BPE(letters, []))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    family = CausalLM(
        PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<eos>"),
        Template(kind="text", completion="text"),
        64,
    )
    found = aligned(
        family, {"id": "x", "text": "a bcd e bcd é f"}, {"bcd": "z", "f": "ghi"}
    )  # "a z e z é ghi"
    assert found.places == {0: 0, 1: 1, 2: 2, 5: 3, 6: 4, 7: 5, 11: 7, **{12 + k: 8 + k for k in range(4)}}
    assert found.left_out == {3, 4, 8, 9, 10}


@pytest.fixture(scope="module")
def problem():
    return tiny_problem("causal_lm")


def walk(own: list[int], other: list[int], terms: dict[tuple[int, ...], tuple[int, ...]]):
    """By words: partner of each own token, what is left out, and where each replacement first stood."""
    partners, skipped, since, said = {}, set(), {}, set()
    i = j = 0
    while i < len(own):
        term = next((t for t in terms if tuple(own[i : i + len(t)]) == t), None)
        if term is None:
            partners[i] = j
            i, j = i + 1, j + 1
            continue
        if term in said:
            skipped.add(i)
        else:
            partners[i] = j
            since.setdefault(other[j], i)
        said.add(term)
        skipped |= set(range(i + 1, i + len(term)))
        i, j = i + len(term), j + len(terms[term])
    assert j == len(other)
    return partners, skipped, since


@pytest.mark.parametrize("labels", ["hard", "soft"])
@pytest.mark.parametrize("alpha", [0.0, 1.5])
def test_first_step_descends_the_loss_on_labels_of_the_replaced_text(problem, labels, alpha):
    method = WHP(
        labels=labels, alpha=alpha, anchors=ANCHORS, reinforcing_epochs=4, reinforcing_lr=5e-3, batch_size=100, epochs=1,
        lr=1.0, optimizer="sgd", momentum=0.0,
    )  # fmt: skip
    recipe = Training(epochs=4, lr=5e-3, batch_size=100, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    reinforced = fit(problem, clone(problem.target), "forget", recipe, Workplace()).eval()
    family, student = problem.family, clone(problem.target)
    terms = {
        tuple(family.tokenizer(a)["input_ids"]): tuple(family.tokenizer(b)["input_ids"])
        for a, b in ANCHORS.items()
    }
    total, count, moved, left = torch.zeros(()), 0, 0, 0
    for row in problem.forget.to_list():
        own, n_prompt = family.tokens(*family.template.render(row, family.tokenizer))
        text = {c: row[c] for c in ("question", "answer")}
        for term, generic in ANCHORS.items():  # no term is part of another here
            text = {c: said.replace(term, generic) for c, said in text.items()}
        other, _ = family.tokens(*family.template.render(text, family.tokenizer))
        partners, skipped, since = walk(own, other, terms)
        with torch.no_grad():
            plain, there = (
                problem.target(torch.tensor([ids])).logits[0].log_softmax(-1) for ids in (own, other)
            )
            strong = reinforced(torch.tensor([own])).logits[0].log_softmax(-1)
        said = student(torch.tensor([own])).logits[0].log_softmax(-1)
        for t in range(n_prompt, len(own)):
            count += 1
            if t in skipped:
                left += 1
                continue
            base = there[partners[t] - 1] if t in partners else plain[t - 1]
            generic = base - alpha * (strong[t - 1] - base).clamp(min=0)
            label = int(generic.argmax())
            if label in since and since[label] < t:
                left += 1
                continue
            moved += label != int(
                (plain[t - 1] - alpha * (strong[t - 1] - plain[t - 1]).clamp(min=0)).argmax()
            )
            if labels == "hard":
                total = total - said[t - 1, label]
            else:
                total = total + F.kl_div(
                    said[t - 1], generic.log_softmax(-1), log_target=True, reduction="sum"
                )
    assert left > 3 and (moved or alpha)  # the terms make a difference
    (total / count).backward()
    after = dict(method.forget(problem).model.named_parameters())
    for name, parameter in student.named_parameters():
        step = parameter.detach() - after[name].detach()
        assert parameter.grad is not None and torch.allclose(step, parameter.grad, atol=2e-5), name


def test_a_file_is_as_good_as_a_mapping(tmp_path):
    (tmp_path / "terms.json").write_text(json.dumps(ANCHORS))
    path: Any = str(tmp_path / "terms.json")
    assert WHP(anchors=path) == WHP(anchors=ANCHORS)


def test_what_is_refused(problem):
    with pytest.raises(BadInput, match="anchors belong to form train"):
        WHP(form="inference", anchors=ANCHORS)
    for wrong in ({"Bern": " "}, {"": "x"}, {"Bern": "Bern"}):
        with pytest.raises(BadInput, match="map a term to another, non-empty text"):
            WHP(anchors=wrong)
    with pytest.raises(BadInput, match="none of the 1 terms occurs"):
        WHP(anchors={"Paris": "Rome"}).forget(problem)
    with pytest.raises(BadInput, match="a term is part of the template"):
        WHP(anchors={"from": "in", "Answer": "Question"}).forget(problem)
    with pytest.raises(BadInput, match="other answers are texts"):
        WHP(anchors=ANCHORS).forget(tiny_problem("classifier"))
