"""A concept to be erased from a text-to-image model: named in words, or by what the rows to forget have in common."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from datasets import Dataset

from expunge.data.checkpoints import load_diffusion
from expunge.errors import BadInput
from expunge.problem import Concept, Problem

TEMPLATES = ("{}", "a picture of {}", "an image of {}", "a painting of {}")
"""How a concept and its anchor are asked for."""


def named_concept(name: str, anchor: str = "", preserve: Sequence[str] = ()) -> Concept:
    """The prompts that ask for `name`, those that ask for `anchor` instead ("": nothing in particular), and those to keep.

    The anchor's own prompts and the empty one are kept in any case.
    """
    if not name.strip():
        raise BadInput(
            "the concept has no name; say in words what is to be erased, such as --concept 'Van Gogh'"
        )
    if name.strip() == anchor.strip():
        raise BadInput(
            f"the anchor is the concept '{name.strip()}' itself; name what should be drawn instead"
        )
    prompts = tuple(t.format(name.strip()) for t in TEMPLATES)
    anchors = tuple(t.format(anchor.strip()) if anchor.strip() else "" for t in TEMPLATES)
    kept = dict.fromkeys((*preserve, *anchors, ""))
    return Concept(name.strip(), prompts, anchors, tuple(p for p in kept if p not in prompts))


def concept_problem(location: str, concept: Concept, name: str | None = None) -> Problem:
    """The problem of erasing `concept` from the Stable Diffusion pipeline at `location` (folder or hub id).

    Rows are prompts without images: methods that need images of the concept say so.
    """
    checkpoint = load_diffusion(location)
    assert checkpoint.family is not None
    rows = [
        {"id": f"concept-{i}", "prompt": p, "anchor_prompt": a}
        for i, (p, a) in enumerate(zip(concept.prompts, concept.anchors, strict=True))
    ]
    rows += [{"id": f"keep-{i}", "prompt": p, "anchor_prompt": p} for i, p in enumerate(concept.preserve)]
    return Problem(
        name=name or re.sub(r"[^a-z0-9]+", "-", concept.name.lower()).strip("-") or "concept",
        family=checkpoint.family,
        train=Dataset.from_list(rows),
        forget_ids=tuple(row["id"] for row in rows[: len(concept.prompts)]),
        model=checkpoint.model,
        architecture=checkpoint.architecture,
        scope=f"the concept '{concept.name}'",
        source={"model": location},
        concept=concept,
    )


def shared_values(rows: Dataset, forget_ids: Collection[str], columns: Sequence[str]) -> dict[str, str]:
    """What the rows to forget have in common and no other row has: the value of one column, or of two together.

    Empty where there is no such thing, so that no judge can be asked for it.
    """
    chosen = np.asarray([name in forget_ids for name in rows["id"][:]])
    values = {column: np.asarray(rows[column][:]) for column in columns}
    for size in (1, 2):
        for some in combinations(columns, size):
            pairs = list(zip(*(values[c] for c in some), strict=True))
            inside = {pair for pair, mine in zip(pairs, chosen, strict=True) if mine}
            if len(inside) == 1 and not inside & {
                p for p, mine in zip(pairs, chosen, strict=True) if not mine
            }:
                return dict(zip(some, map(str, inside.pop()), strict=True))
    return {}


def shows(row: Mapping[str, Any], values: Mapping[str, str | Sequence[str]]) -> bool:
    """Whether a row has one of the `values` in each of their columns; not where there are none."""
    return bool(values) and all(
        row[column] == wanted if isinstance(wanted, str) else row[column] in wanted
        for column, wanted in values.items()
    )
