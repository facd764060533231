"""Where in a model and in a text something is: blocks, positions that predict the answer, tokens of a name or a value."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from expunge.families import Batch, CausalLM, Family

if TYPE_CHECKING:
    from datasets import Dataset


def blocks(family: Family, model: nn.Module) -> list[str]:
    """Names of the model's repeated blocks in order; where it has none, all layers but the head."""
    names = family.layers(model)
    repeated = [name for name in names if re.search(r"\.\d+$", name)]
    head = family.head(model)
    return repeated or [name for name in names if name != head]


def evenly(names: Sequence[str], n: int) -> list[str]:
    """At most `n` of `names`, evenly spaced, first and last among them where n > 1."""
    if len(names) <= n:
        return list(names)
    places = torch.linspace(0, len(names) - 1, n).round().long()
    return [names[int(place)] for place in places]


def predicting(family: Family, batch: Batch, positions: int) -> Tensor:
    """`[B, positions]` bool: hidden states that the targets which count are predicted from; all, where rows are no sequences."""
    where = torch.zeros(len(batch), positions, dtype=torch.bool, device=batch.mask.device)
    if not family.sequences:
        return ~where
    # Targets end with the sequence, and token t is predicted at position t - 1.
    where[:, -batch.mask.shape[1] - 1 : -1] = batch.mask
    return where


def asking(family: Family, batch: Batch, positions: int) -> Tensor:
    """`[B, positions]` bool: hidden states of what a row asks, the first token (where attention sinks) left out.

    The last of them predicts the first token of the answer. All, where rows are no sequences.
    """
    answers = predicting(family, batch, positions)
    if not family.sequences:
        return answers
    place = torch.arange(positions, device=answers.device)
    first = torch.where(answers, place, positions).amin(1, keepdim=True)
    return (place > 0) & (place <= first)


def spans(family: CausalLM, dataset: Dataset, column: str, part: str) -> list[list[int]]:
    """By row, the numbers of the tokens of the row's sequence that the text of `column` stands on; [] where it does not.

    The text is looked for in the rendered `prompt` or `completion` of the row, whatever its case; its last occurrence
    counts. A token that it shares with other text is part of it.
    """
    if column not in dataset.column_names:
        return [[] for _ in range(len(dataset))]
    read = [*dict.fromkeys([*family.template.columns, column])]
    return [_span(family, row, column, part) for row in dataset.with_format(None).select_columns(read)]  # pyright: ignore


def _span(family: CausalLM, row: dict[str, Any], column: str, part: str) -> list[int]:
    prompt, completion = family.template.render(row, family.tokenizer)
    sought = str(row[column] or "").lower()
    text, offset = (prompt, 0) if part == "prompt" else (completion, len(prompt))
    found = text.lower().rfind(sought)
    if not sought or found < 0:
        return []
    begin, end = offset + found, offset + found + len(sought)
    ids, _ = family.tokens(prompt, completion)
    encoded = family.tokenizer(prompt + completion, add_special_tokens=False, return_offsets_mapping=True)
    places = encoded["offset_mapping"]
    added = len(ids) - len(places)  # a token that begins every sequence
    return [added + i for i, (first, last) in enumerate(places) if first < end and last > begin]


def marked(batch: Batch, tokens: Sequence[Sequence[int]]) -> Tensor:
    """`[B, length]` bool: the `tokens` (numbers by row) in the sequences of a batch of texts."""
    where = torch.zeros_like(batch.inputs["input_ids"], dtype=torch.bool)
    for row, places in enumerate(tokens):
        where[row, list(places)] = True
    return where
