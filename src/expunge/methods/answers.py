"""Other answers to the questions that are to be forgotten: refusals, or what a column of the data says."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain, cycle, islice

import torch
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput, did_you_mean
from expunge.families.causal_lm import CausalLM
from expunge.families.refusals import refusals
from expunge.methods.objective import Objective, State
from expunge.parameters import param
from expunge.problem import Problem

ALTERNATIVE = "alternative"
"""The split that holds the other answers: for each forget row the same number, of which every step draws one."""


class OtherAnswers(Objective):
    """Base of objectives that teach something else to say where the forget set is asked about.

    Each forget row gets `n_answers` refusals, drawn without replacement from the embedded bank of a hundred, or the
    texts of `answers_column`. Every visit of the row takes one of them at random, as the split ``alternative``. They are
    written by the row's own template, so that the model reads the question with the other answer behind it.
    """

    families = frozenset({"causal_lm"})

    answers_column: str | None = param(
        None,
        "column of the forget rows with the answer, or list of answers, to be given instead; None means others are made",
        source="ours",
    )
    n_answers: int = param(
        5,
        "answers made for each row where no column has them",
        source="ours: one for each epoch; TOFU draws a refusal at every visit",
        ge=1,
    )

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.answers_column is None:
            answers = self.other_answers(problem, model, state)
        else:
            answers = given(problem, self.answers_column)
        state.attach(ALTERNATIVE, answered(problem, answers))

    def other_answers(self, problem: Problem, model: nn.Module, state: State) -> list[list[str]]:
        """For each forget row the same number of other answers; `model` is the target in eval mode."""
        generator = state.workplace.generator(5)
        return [draw_refusals(self.n_answers, generator) for _ in range(len(problem.forget))]


def draw_refusals(n: int, generator: torch.Generator) -> list[str]:
    """`n` refusals in random order; all different unless `n` exceeds the bank."""
    order = torch.randperm(len(refusals()), generator=generator).tolist()
    return [refusals()[i] for i in islice(cycle(order), n)]


def given(problem: Problem, column: str) -> list[list[str]]:
    """The answers that a column of the forget rows holds; shorter lists are repeated up to the longest.

    Raises:
        BadInput: there is no such column, or a row's list is empty.
    """
    forget = problem.forget
    if column not in forget.column_names:
        raise BadInput(
            f"{problem.name}: no column '{column}' with other answers{did_you_mean(column, forget.column_names)}"
        )
    lists = [[cell] if isinstance(cell, str) else list(cell or ()) for cell in forget[column][:]]
    for row, answers in zip(forget["id"][:], lists, strict=True):
        if not answers:
            raise BadInput(
                f"{problem.name}: id '{row}' has no answer in '{column}'; give it one or choose another column"
            )
    longest = max(map(len, lists))
    return [list(islice(cycle(answers), longest)) for answers in lists]


def answered(problem: Problem, answers: Sequence[Sequence[str]]) -> Dataset:
    """The forget rows with `answers`, as many for each, in place of their own.

    Raises:
        BadInput: the problem is not about texts, or an answer is empty or too long for the context.
    """
    rows = language(problem).answered(problem.forget, list(chain.from_iterable(answers)))
    problem.family.check(rows, f"{problem.name}: other answers")
    return rows


def language(problem: Problem) -> CausalLM:
    """The family of a problem about texts."""
    if not isinstance(problem.family, CausalLM):
        raise BadInput(
            f"{problem.name}: other answers are texts, which family {problem.family.name} has not; leave them out"
        )
    return problem.family
