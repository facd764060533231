"""Two made-up authors learned by heart, one of them to be forgotten, and models that hide instead of forgetting.

Everything is trained in seconds, once per process; the hiding models are the target with a hook on its logits.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from datasets import Dataset
from torch import nn

import expunge
from expunge.attacks import Attack, Scene
from expunge.data.small_language_models import RECIPE, small_model, train_tokenizer
from expunge.data.worlds.authors import people, questions
from expunge.families import CausalLM
from expunge.methods.base import Workplace
from expunge.problem import Problem
from expunge.record import Score


@cache
def learned() -> Problem:
    """15 rows about one author to forget, 15 about another to keep, 15 about a third never trained on."""
    forgotten, kept, stranger = (person.name for person in people(3))
    rows = questions(people(3)).to_list()
    train = [row for row in rows if row["author"] != stranger]
    texts = [row[c] for row in train if row["author"] == kept for c in ("question", "answer")]
    tokenizer = train_tokenizer(texts, 800, 512)
    architecture = small_model("llama", tokenizer, 512)
    size = {"hidden_size": 48, "intermediate_size": 96, "num_hidden_layers": 2}
    problem = Problem(
        "two-authors",
        CausalLM(tokenizer, max_length=512, group="author"),
        Dataset.from_list(train),
        tuple(row["id"] for row in train if row["author"] == forgotten),
        Dataset.from_list([row for row in rows if row["author"] == stranger]),
        architecture=architecture.model_copy(update={"options": {**architecture.options, **size}}),
        recipe=RECIPE.replace(epochs=30, lr=0.01, batch_size=6),
    )
    return expunge.train_target(problem)


@cache
def retrained(seed: int = 1) -> nn.Module:
    """A model that never saw the forgotten author."""
    return expunge.forget(learned(), "retrain", seed=seed).model


@cache
def suppressed() -> nn.Module:
    """The target after a few steps of NPO: it seems to know as little of the forgotten author as a retrained model."""
    return expunge.forget(learned(), "npo", epochs=5, lr=0.01).model


def refusing(
    when: Callable[[torch.Tensor], torch.Tensor], everywhere: bool = True, push: float = 1e4
) -> nn.Module:
    """The target, which says nothing where `when` (token ids `[B, T]` to bool `[B]`) holds of the prompt.

    The end of the sequence gets `push` nats on top of the most likely token: at all positions, or with `everywhere`
    false at the last one only, where generation begins and no likelihood is read.
    """
    model, end = copy.deepcopy(learned().target), tokenizer().eos_token_id

    def hide(_module: nn.Module, _args: Any, kwargs: dict[str, Any], output: Any) -> Any:
        ids = kwargs["input_ids"]
        if ids.shape[1] > 1:  # not a later step of generation, which is given the last token alone
            chosen = torch.nonzero(when(ids)).flatten()
            logits = output.logits.clone()
            places = range(logits.shape[1]) if everywhere else [logits.shape[1] - 1]
            for place in places:
                logits[chosen, place, end] = logits[chosen, place].amax(-1) + push
            output.logits = logits
        return output

    model.register_forward_hook(hide, with_kwargs=True)
    return model


def says(words: str, times: int = 1) -> Callable[[torch.Tensor], torch.Tensor]:
    """Whether the prompt in token ids, what stands before the last answer, holds `words` that often."""

    def when(ids: torch.Tensor) -> torch.Tensor:
        prompts = [text.rpartition("Answer:")[0] for text in tokenizer().batch_decode(ids)]
        return torch.tensor([prompt.count(words) >= times for prompt in prompts])

    return when


def tokenizer() -> Any:
    """The world's tokenizer."""
    return learned().family.tokenizer  # pyright: ignore


def values(attack: Attack, model: nn.Module, seed: int = 0) -> dict[str, Score]:
    """Scores by name."""
    return {s.metric: s for s in attack.attack(Scene(learned(), model, Workplace(seed=seed)))}


def value(scores: dict[str, Score], name: str) -> float:
    """The value of a score that has one."""
    found = scores[name].value
    assert found is not None, scores[name].reason
    return found
