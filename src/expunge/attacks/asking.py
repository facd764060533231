"""Asking a language model in other words than a row's own, and grading what comes back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from expunge.errors import BadInput
from expunge.families.base import Batch
from expunge.families.causal_lm import CausalLM
from expunge.families.generation import continuations, request
from expunge.families.prompts import Template
from expunge.families.sampling import as_batch
from expunge.methods.altpo import overlap
from expunge.metrics.memorization import exact_memorization
from expunge.metrics.rouge import rouge
from expunge.problem import Problem

Shown = Sequence[tuple[str, str]]
"""Questions with their answers that stand before the question, in the form of rows."""


@dataclass(frozen=True)
class Asked:
    """One question as the model gets it, and what would be the true answer."""

    id: str
    words: str
    """The prompt as text."""
    prompt: list[int]
    """Its token ids, at least one."""
    truth: str
    completion: list[int]
    """Token ids of the true answer behind the prompt, the end of the sequence included where rows end with one."""


@dataclass(frozen=True)
class Graded:
    """How much of the true answers came back; each `[n]`, in [0, 1], NaN where there is nothing to grade."""

    said: list[str]
    """Greedy answers."""
    recall: np.ndarray
    """ROUGE-L recall of them: stemmed words of the true answer that they hold in its order, as a share."""
    probability: np.ndarray
    """exp of the mean log-probability of the true answer's tokens."""
    knowledge: np.ndarray
    """Share of its tokens, the end left out, that are the most likely ones given the true ones before."""


def language_of(problem: Problem) -> CausalLM:
    """The family of a problem about texts; attacks that ask declare that they fit no other."""
    return cast(CausalLM, problem.family)


def question_column(template: Template) -> str | None:
    """The column that asks: `question` where the prompt reads it, else the only one it reads; None where there is none."""
    if template.messages is not None:
        return template.messages
    columns = template.columns[:-1]
    if "question" in columns:
        return "question"
    return columns[0] if len(columns) == 1 else None


def without_questions(problem: Problem) -> list[str]:
    """Why nothing can be asked in other words here; empty where it can."""
    family = problem.family
    if not isinstance(family, CausalLM) or question_column(family.template) is not None:
        return []
    return [
        "its rows hold no question that could be asked in other words (one column of the template's prompt)"
    ]


class Asker:
    """Writes questions for a model by the template of its rows, so that nothing but what is asked differs."""

    def __init__(self, family: CausalLM, room: int = 0) -> None:
        """`room` tokens are left free in the context."""
        self.family, self.template, self.room = family, family.template, room
        self.column = question_column(family.template)

    def question(self, row: Mapping[str, Any]) -> str:
        """What the row asks."""
        if self.template.messages is not None:
            return str(row[self.template.messages][-2]["content"])
        return str(row[self.column])  # pyright: ignore

    def answer(self, row: Mapping[str, Any]) -> str:
        """What the row says."""
        if self.template.messages is not None:
            return str(row[self.template.messages][-1]["content"])
        return str(row[self.template.completion])

    def ask(
        self,
        row: Mapping[str, Any],
        *,
        question: str | None = None,
        answer: str | None = None,
        shown: Shown = (),
        opening: str = "",
    ) -> Asked | None:
        """The row's question, or `question` in its place; None where prompt and answer do not fit into the context.

        Args:
            row: as in the data set.
            question: what is asked; the row's own by default.
            answer: the true answer; the row's own by default.
            shown: questions and answers before it: rows of text, or earlier turns of a chat.
            opening: how the answer begins, put into the model's mouth.
        """
        question = self.question(row) if question is None else question
        truth = self.answer(row) if answer is None else answer
        prompt, completion = self._render(row, question, truth, shown)
        prompt += opening
        ids, n_prompt = self.family.tokens(prompt, completion)
        if len(ids) + self.room > self.family.max_length:
            return None
        return Asked(str(row["id"]), prompt, ids[:n_prompt], truth, ids[n_prompt:])

    def _render(self, row: Mapping[str, Any], question: str, truth: str, shown: Shown) -> tuple[str, str]:
        template, tokenizer = self.template, self.family.tokenizer
        if template.kind == "chat":
            turns = [
                {"role": role, "content": text}
                for pair in (*shown, (self._in_prompt(row, question), truth))
                for role, text in zip(("user", "assistant"), pair, strict=True)
            ]
            chat = Template(kind="chat", messages="turns", system=template.system)
            return chat.render({"turns": turns}, tokenizer)
        written = [template.replace(ends=False).render(self._row(row, *pair), tokenizer) for pair in shown]
        before = "".join(f"{asked}{said}\n\n" for asked, said in written)
        prompt, completion = template.render(self._row(row, question, truth), tokenizer)
        return before + prompt, completion

    def _row(self, row: Mapping[str, Any], question: str, answer: str) -> dict[str, Any]:
        return {**row, cast(str, self.column): question, self.template.completion: answer}

    def _in_prompt(self, row: Mapping[str, Any], question: str) -> str:
        """A chat's question within the prompt that its template may write around it."""
        if self.template.messages is not None or self.template.prompt is None:
            return question
        columns = self.template.columns[:-1]
        return self.template.prompt.format(**{c: question if c == self.column else row[c] for c in columns})


def own_words(family: CausalLM, row: Mapping[str, Any]) -> Asked:
    """A row as it stands: its prompt, or of raw text its first tokens, and how it goes on."""
    wanted = request(family, row)
    ids, n_prompt = family.tokens(*family.template.render(row, family.tokenizer))
    whole = len(wanted.prompt) if n_prompt <= len(family.begin) else n_prompt
    completion = ids[whole : whole + wanted.limit]
    words = family.tokenizer.decode(wanted.prompt, skip_special_tokens=True)
    return Asked(str(row["id"]), words, wanted.prompt, wanted.answer, completion)


def longest_answer(asked: Sequence[Asked]) -> int:
    """Tokens of the longest true answer: as much is a model allowed to say, whichever question it is asked.

    A longer answer could hold the true words among many others, and one cut at its own length would be helped to end.
    """
    return max(len(one.completion) for one in asked)


def greedy(family: CausalLM, model: nn.Module, asked: Sequence[Asked], limit: int | None = None) -> list[str]:
    """What the model says to each question, the most likely token after the other."""
    most = longest_answer(asked) if limit is None else limit
    limits = [max(1, min(most, family.max_length - len(one.prompt))) for one in asked]
    ends = {i for i in (family.tokenizer.eos_token_id,) if i is not None}
    said = continuations(model, [one.prompt for one in asked], limits, pad=family.pad, ends=ends)
    return texts(family, [tokens or [] for tokens in said])


def texts(family: CausalLM, tokens: Sequence[Sequence[int]]) -> list[str]:
    """Answers as texts, without special tokens."""
    return [t.strip() for t in family.tokenizer.batch_decode(tokens, skip_special_tokens=True)]


def recalls(asked: Sequence[Asked], said: Sequence[str]) -> np.ndarray:
    """`[n]` ROUGE-L recall of what was said; NaN where the true answer has no word of Latin letters or digits.

    Raises:
        Undefined: the package rouge-score is not installed.
    """
    return np.asarray([rouge(one.truth, text) for one, text in zip(asked, said, strict=True)])


def batches(family: CausalLM, asked: Sequence[Asked], size: int = 64) -> Iterator[tuple[slice, Batch]]:
    """The questions with their true answers, some at a time, as (which, batch)."""
    longest = max(len(one.prompt) + len(one.completion) for one in asked)
    size = max(1, min(size, family.at_once(longest)))
    for start in range(0, len(asked), size):
        some = asked[start : start + size]
        batch = as_batch(family, [a.id for a in some], [a.prompt for a in some], [a.completion for a in some])
        yield slice(start, start + len(some)), family.trim(batch)


@torch.no_grad()
def scored(
    family: CausalLM, model: nn.Module, asked: Sequence[Asked], device: str
) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` probability and `[n]` knowledge of the true answers, as in `Graded`: one forward pass."""
    probability, knowledge = np.full((2, len(asked)), np.nan)
    for which, batch in batches(family, asked):
        batch = batch.to(device)
        outputs = family.forward(model, batch)
        made = family.observe(outputs, batch, ["loss", "token_correct"])
        probability[which] = np.exp(-made["loss"].cpu().double().numpy())
        counted = family.without_ends(batch).mask.cpu()
        rows = zip(made["token_correct"].cpu(), counted, strict=True)
        knowledge[which] = [exact_memorization(correct[mask].numpy()) for correct, mask in rows]
    return probability, knowledge


def graded(family: CausalLM, model: nn.Module, asked: Sequence[Asked], device: str) -> Graded:
    """The model's greedy answers and its likelihood of the true ones: a generation and a forward pass."""
    said = greedy(family, model, asked)
    probability, knowledge = scored(family, model, asked, device)
    return Graded(said, recalls(asked, said), probability, knowledge)


def require_rows(problem: Problem, split: str) -> list[dict[str, Any]]:
    """The rows of a split as plain mappings."""
    if split not in problem.splits:
        raise BadInput(f"{problem.name} has no '{split}' rows; it has {', '.join(problem.splits)}")
    return [dict(row) for row in problem.splits[split].with_format(None)]


def related(asker: Asker, rows: Sequence[Mapping[str, Any]], most: float) -> list[list[int]]:
    """For each row the numbers of the others about the same subject that do not give its answer away.

    The subject is the family's group, an author for example; without groups all rows are taken for one. A row gives
    the answer away that says more than `most` of the words, in their order, that the answer adds to the question.
    """
    column = asker.family.group
    names = [str(row[column]) if column is not None and column in row else "" for row in rows]
    found: list[list[int]] = []
    for number, row in enumerate(rows):
        truth, question = asker.answer(row), asker.question(row)
        others = [i for i, name in enumerate(names) if name == names[number] and i != number]
        told = {i: f"{asker.question(rows[i])} {asker.answer(rows[i])}" for i in others}
        found.append([i for i in others if overlap(told[i], truth, question) <= most])
    return found
