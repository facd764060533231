"""Whether the words that name a concept say anything to a tokenizer."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from expunge.errors import BadInput
from expunge.families import Batch, Diffusion
from expunge.problem import Problem


def last_word(family: Diffusion, ids: Tensor) -> Tensor:
    """`[n]` position before the first end token of each prompt; 0 where nothing but start and end is there."""
    return (first_end(family, ids) - 1).clamp(min=0)


def first_end(family: Diffusion, ids: Tensor) -> Tensor:
    """`[n]` position of the first end token of each prompt; the length where there is none."""
    ends = ids == family.tokenizer.eos_token_id
    return ends.int().argmax(1).where(ends.any(1), ids.shape[1])


def require_words(family: Diffusion, prompts: Sequence[str]) -> None:
    """Refuse prompts of which the tokenizer leaves nothing."""
    places = last_word(family, family.tokens(prompts)).tolist()
    blank = [p for p, place in zip(prompts, places, strict=True) if place == 0]
    if blank:
        raise BadInput(
            f"'{blank[0]}' has no token of its own in this tokenizer; name the concept in other words"
        )


def require_concept(problem: Problem, *, anchored: bool) -> None:
    """Refuse a concept whose prompts say nothing to the tokenizer, or to it the same as their anchors, where those are used.

    Rows to forget that do not name the concept have their own prompt as anchor; all of them having it is refused, too.
    """
    concept, family = problem.concept, problem.family
    assert concept is not None and isinstance(family, Diffusion)
    require_words(family, concept.prompts)
    same = (family.tokens(concept.prompts) == family.tokens(concept.anchors)).all(1).tolist()
    if anchored and any(same):
        which = same.index(True)
        raise BadInput(
            f"to this tokenizer the anchor '{concept.anchors[which]}' is the same as '{concept.prompts[which]}'; name "
            "something else to draw"
        )
    rows = problem.forget
    if "anchor_prompt" not in rows.column_names or rows["prompt"][:] == rows["anchor_prompt"][:]:
        raise BadInput(
            f"{problem.name}: no row to forget has an anchor_prompt that differs from its prompt, so none names the concept"
        )


def names_concept(batch: Batch) -> Tensor:
    """`[B]` bool: rows to forget that name the concept, as those do whose prompt is not their anchor's."""
    return (batch.inputs["input_ids"] != batch.inputs["anchor_ids"]).any(1)
