"""How much of each row a model knows: one scale from 0 to 1 for every family, so that recovery can be compared."""

from __future__ import annotations

import numpy as np
from torch import nn

from expunge.errors import BadInput
from expunge.evidence import Evidence, collect, observed
from expunge.families import Batch, Batches, Family, Outputs
from expunge.families.regressor import Regressor
from expunge.metrics.memorization import answer_tokens, exact_memorization
from expunge.problem import Problem

KNOWLEDGE: dict[str, tuple[str, tuple[str, ...]]] = {
    "classifier": ("1 where the most likely class is the label, else 0", ("correct",)),
    "regressor": (
        "1 / (1 + |error| / s), s the standard deviation of the training targets: 1 without error, 1/2 at one deviation",
        ("absolute_error",),
    ),
    "estimator": ("of classes as for a classifier, of values as for a regressor", ("correct",)),
    "causal_lm": (
        "share of the answer's tokens, its end-of-sequence token left out, that are the most likely ones given the true "
        "tokens before (exact memorization)",
        ("token_correct", "ends"),
    ),
    "diffusion": (
        "1 where the judge sees in the image sampled from the row's prompt what it asks for of the concept's attribute, else 0",
        ("concept_correct",),
    ),
    "gan": (
        "1 where one of the model's samples lies nearer to the row's image, in a judge's features, than its 5th nearest row "
        "(coverage), else 0",
        ("covered",),
    ),
}
"""By family: the definition, and the quantities that it is read from."""


def knowledge(problem: Problem, model: nn.Module, rows: Batches | str, device: str = "cpu") -> np.ndarray:
    """`[n]` how much `model` knows of each row, from 0 to 1, by its family's definition in `KNOWLEDGE`.

    `rows` is the name of a split or batches of the problem's family. NaN where a row has nothing to know (an empty
    answer) or the model has diverged.
    """
    family = problem.family
    batches = problem.batches(rows, device) if isinstance(rows, str) else rows
    evidence = collect(family, model, batches.dataset, sorted(reads(family)), device=device, batches=batches)
    return knowledge_of(family, evidence)


def knowledge_in(family: Family, outputs: Outputs, batch: Batch) -> np.ndarray:
    """`[B]` the same of one batch, from outputs that exist already, as of a model whose activations were altered."""
    return knowledge_of(family, observed(family, outputs, batch, sorted(reads(family))))


def reads(family: Family) -> set[str]:
    """The quantities that knowledge is computed from."""
    if family.name not in KNOWLEDGE:
        raise BadInput(f"for family '{family.name}' no scale of knowledge is defined")
    if isinstance(family, Regressor):  # estimators of values among them
        return set(KNOWLEDGE["regressor"][1])
    return set(KNOWLEDGE[family.name][1])


def knowledge_of(family: Family, evidence: Evidence) -> np.ndarray:
    """The same from evidence that holds the quantities of `reads`."""
    if family.name == "causal_lm":
        return np.asarray([exact_memorization(row) for row in answer_tokens(evidence, "token_correct")])
    if isinstance(family, Regressor):
        error = evidence["absolute_error"].astype(np.float64)
        return 1 / (1 + np.where(np.isfinite(error), error, np.nan) / float(np.mean(family.scale)))
    (quantity,) = KNOWLEDGE[family.name][1]
    return evidence[quantity].astype(np.float64)
