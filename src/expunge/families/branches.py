"""Several answers to one question in one sequence: the question is read once."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Outputs, Rows
from expunge.families.causal_lm import CausalLM
from expunge.families.likelihoods import log_likelihoods
from expunge.families.models import call_language_model
from expunge.families.refusals import probes

if TYPE_CHECKING:
    from datasets import Dataset

SHARED, PADDING = -1, -2


class Branching(CausalLM):
    """A causal language model's view of rows with further answers: a paraphrase and perturbed ones.

    A row becomes one sequence: the question, the answer, then each further answer behind a copy of the question's last
    token. A token sees the question and its own branch only, at the positions it would have alone, so that every answer has
    the likelihood it has in a sequence of its own. `owner` of a token is the number of its branch, 0 the answer; the
    question but for its last token belongs to all.

    Works for models that take positions and a four-dimensional attention mask, which is to say transformers with full
    attention.
    """

    name = ""  # a view for evidence, not a family of its own
    _refusals: tuple[str, ...] = ()

    def __init__(self, family: CausalLM, dataset: Dataset) -> None:
        super().__init__(
            family.tokenizer, family.template, family.max_length, family.group, family.generation
        )
        columns = (self.template.paraphrase, self.template.perturbed)
        self._paraphrase, self._perturbed = (c if c in dataset.column_names else None for c in columns)
        self._n_perturbed = 0
        if self._perturbed is not None:
            self._n_perturbed = max(len(_listed(answers)) for answers in dataset[self._perturbed][:])

    def collate(self, rows: Rows) -> Batch:  # noqa: D102
        made = [self._sequence({c: rows[c][i] for c in self._read}) for i in range(len(rows["id"]))]
        longest = max(2, max(len(ids) for ids, _, _ in made))
        fill = (self.pad, 0, PADDING)
        packed = [
            torch.tensor([part + [value] * (longest - len(part)) for part in parts])
            for value, parts in zip(fill, zip(*made, strict=True), strict=True)
        ]
        ids, positions, owner = packed
        # The first token of a branch is the copy of the question's last one; what follows it is the answer.
        begins = owner != F.pad(owner, (1, 0), value=SHARED)[:, :-1]
        counts = (owner >= 0) & ~begins
        branch = torch.where(counts, owner, PADDING)[:, 1:]
        inputs = {"input_ids": ids, "position_ids": positions, "owner": owner, "branch": branch}
        return Batch([str(i) for i in rows["id"]], inputs, ids[:, 1:], branch == 0)

    @property
    def _read(self) -> list[str]:
        further = (self._paraphrase, self._perturbed)
        return [*self.template.columns, *(c for c in further if c is not None)]

    def _sequence(self, row: dict[str, Any]) -> tuple[list[int], list[int], list[int]]:
        """Token ids, positions and owners of the row and its further answers."""
        ids, n_prompt = self.tokens(*self.template.render(row, self.tokenizer))
        positions = list(range(len(ids)))
        shared = max(n_prompt, 1) - 1
        owner = [SHARED] * shared + [0] * (len(ids) - shared)
        said = None if self._paraphrase is None else row[self._paraphrase]
        answers = [] if said is None else [(1, said)]
        if self._perturbed is not None:
            answers += list(enumerate(_listed(row[self._perturbed]), 2))
        if n_prompt > len(self.begin):
            answers += list(enumerate(self._refusals, 2 + self._n_perturbed))
        if answers and n_prompt == 0:
            raise BadInput(
                "further answers need a question before them, and the row has none; drop their columns"
            )
        for number, answer in answers:
            other = {**row, self.template.completion: str(answer)}
            whole, _ = self.tokens(*self.template.render(other, self.tokenizer))
            ids = ids + whole[shared:]
            positions += range(shared, len(whole))
            owner += [number] * (len(whole) - shared)
        return ids, positions, owner

    def trim(self, batch: Batch) -> Batch:  # noqa: D102
        longest = int((batch.inputs["owner"] != PADDING).sum(-1).max())
        used = (batch.inputs["branch"] != PADDING).any(0).nonzero()
        first = int(used[0]) if len(used) else 0
        # As for single answers: targets may have been trimmed before, and always end with the sequence.
        offset = batch.inputs["input_ids"].shape[1] - 1 - batch.targets.shape[1]
        last = max(longest - 1 - offset, first + 1)
        whole = {k: v[:, :longest] for k, v in batch.inputs.items() if k != "branch"}
        return replace(
            batch,
            inputs={**whole, "branch": batch.inputs["branch"][:, first:last]},
            targets=batch.targets[:, first:last],
            mask=batch.mask[:, first:last],
        )

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        inputs = {k: batch.inputs[k] for k in ("input_ids", "position_ids")}
        inputs["attention_mask"] = attention(batch.inputs["owner"], next(model.parameters()).dtype)
        return call_language_model(model, inputs, batch.targets.shape[1] + 1)[:, :-1]

    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:  # noqa: D102
        plain = [q for q in quantities if q not in FURTHER]
        made = super().observe(outputs, batch, [*plain, "loss"])
        branch = batch.inputs["branch"]
        logp = log_likelihoods(outputs.prediction, batch.targets, branch > 0)
        losses = self._further_losses(logp, branch)
        # Rows without paraphrases are their own, as for the true facts of TOFU.
        made["paraphrase_loss"] = torch.where(losses[:, 0].isnan(), made["loss"], losses[:, 0])
        made["perturbed_loss"] = (
            losses[:, 1 : 1 + self._n_perturbed]
            if self._n_perturbed
            else losses.new_full((len(batch), 1), math.nan)
        )
        made["refusal_loss"] = losses[:, 1 + self._n_perturbed :]
        return {q: made[q] for q in quantities}

    def _further_losses(self, logp: Tensor, branch: Tensor) -> Tensor:
        """`[B, 1 + K + R]` mean loss per token of paraphrase, perturbed answers and refusals; NaN where absent."""
        further = branch > 0
        where = (branch - 1).clamp(min=0)
        n = 1 + self._n_perturbed + len(self._refusals)
        totals = torch.zeros(len(branch), n, dtype=torch.float64, device=branch.device)
        counts = totals.clone().scatter_add_(1, where, further.double())
        totals.scatter_add_(1, where, torch.where(further, -logp.double(), 0.0))
        return totals / torch.where(counts > 0, counts, math.nan)


class Declining(Branching):
    """The view in which every question has embedded refusals too among its further answers."""

    _refusals = probes()


def attention(owner: Tensor, dtype: torch.dtype) -> Tensor:
    """`[B, 1, L, L]` what is added to attention scores: 0 where a token (row) sees another, else the lowest number."""
    keys, queries = owner[:, None, :], owner[:, :, None]
    seen = ((keys == SHARED) | (keys == queries)).tril()
    # Not a bool, because eager attention adds its mask.
    return torch.where(seen, 0.0, torch.finfo(dtype).min).to(dtype)[:, None]


FURTHER = ("paraphrase_loss", "perturbed_loss", "refusal_loss")


def _listed(answers: Any) -> list[str]:
    return [] if answers is None else [answers] if isinstance(answers, str) else list(answers)
