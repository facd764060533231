"""Anchored terms: names and words of one text beside generic ones, and which tokens of both versions correspond."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from datasets import Dataset
from torch import Tensor

from expunge.errors import BadInput
from expunge.families.causal_lm import CausalLM
from expunge.files import read_json

TRANSLATED = "translated"
"""The split of the rows with their terms replaced."""


@dataclass(frozen=True)
class Aligned:
    """The tokens of one row with its terms replaced, seen from its own tokens."""

    places: dict[int, int]
    """Number of an own token to that of the replaced text's token that stands for it."""
    left_out: frozenset[int]
    """Own tokens that nothing is learned at: inside a term, or of a term that occurred before in the row."""
    replaced: dict[int, int] = field(default_factory=dict)
    """First token of each replacement to the number of the own token where it first stands for a term."""


def read_anchors(given: Any) -> Any:
    """A mapping as it is; of a path, what the JSON file holds."""
    return read_json(Path(given).expanduser()) if isinstance(given, str) else given


def check_anchors(anchors: Mapping[str, str]) -> None:
    """Refuse empty terms, empty replacements, and a term that is replaced by itself."""
    for term, generic in anchors.items():
        if not term.strip() or not generic.strip() or term == generic:
            raise BadInput(
                f"anchors: {term!r} cannot become {generic!r}; map a term to another, non-empty text"
            )


def occurrences(text: str, anchors: Mapping[str, str]) -> list[tuple[int, int, str]]:
    """Where whole words of `text` are terms: begin, end, term. Of overlapping terms the longest counts; case matters."""
    longest_first = sorted(anchors, key=len, reverse=True)
    pattern = "|".join(re.escape(term) for term in longest_first)
    found = re.finditer(rf"(?<!\w)(?:{pattern})(?!\w)", text) if pattern else ()
    return [(m.start(), m.end(), m.group()) for m in found]


def translate(text: str, anchors: Mapping[str, str]) -> str:
    """`text` with every term replaced."""
    made, at = [], 0
    for begin, end, term in occurrences(text, anchors):
        made += [text[at:begin], anchors[term]]
        at = end
    return "".join([*made, text[at:]])


def translated(family: CausalLM, rows: Dataset, anchors: Mapping[str, str]) -> Dataset:
    """The rows with the terms replaced in every column that the template reads; ids stay.

    Raises:
        BadInput: no row has a term.
    """
    made = [_translated_row(family, row, anchors) for row in rows.with_format(None).to_list()]
    if all(
        old[c] == new[c]
        for old, new in zip(rows.to_list(), made, strict=True)
        for c in family.template.columns
    ):
        raise BadInput(
            f"anchors: none of the {len(anchors)} terms occurs in the rows to forget, as a whole word"
        )
    replaced = Dataset.from_list(made)
    family.check(replaced, "rows with anchored terms replaced")
    return replaced


def _translated_row(family: CausalLM, row: Mapping[str, Any], anchors: Mapping[str, str]) -> dict[str, Any]:
    def of(value: Any) -> Any:
        if isinstance(value, list):  # turns of a chat
            return [{**turn, "content": translate(str(turn["content"]), anchors)} for turn in value]
        return translate(str(value), anchors)

    return {"id": row["id"], **{column: of(row[column]) for column in family.template.columns}}


def aligned(family: CausalLM, row: Mapping[str, Any], anchors: Mapping[str, str]) -> Aligned:
    """Which token of the replaced row stands for which of its own.

    Outside of terms, tokens that begin at corresponding characters; the first token of a term and the first of its
    replacement. The tokenizers' borders may differ beside a replacement: a token without a partner has none.

    Raises:
        BadInput: a term is part of the template, which is not replaced.
    """
    prompt, completion = family.template.render(row, family.tokenizer)
    own = prompt + completion
    other = "".join(family.template.render(_translated_row(family, row, anchors), family.tokenizer))
    terms = occurrences(own, anchors)
    if translate(own, anchors) != other:
        raise BadInput(
            f"anchors: id '{row['id']}': a term is part of the template or spans two columns; choose other terms"
        )
    spans, others = _spans(family, own), _spans(family, other)
    partners = {(one.begin, one.rank): i for i, one in enumerate(others)}
    begin_tokens = len(family.tokens(prompt, completion)[0]) - len(spans)
    places: dict[int, int] = {}
    left_out: set[int] = set()
    replaced: dict[int, int] = {}
    said: set[str] = set()
    at = shift = 0  # of `terms`, and by how much characters moved so far
    for i, one in enumerate(spans):
        while at < len(terms) and terms[at][1] <= one.begin:
            first, last, term = terms[at]
            shift += len(anchors[term]) - (last - first)
            said.add(term)
            at += 1
        inside = at < len(terms) and one.end > terms[at][0]
        # The first token of a term may begin with the space before it.
        if inside and (one.begin > terms[at][0] or one.rank or terms[at][2] in said):
            left_out.add(i + begin_tokens)
            continue
        partner = partners.get((one.begin + shift, one.rank))
        if partner is None:
            continue
        places[i + begin_tokens] = partner + begin_tokens
        if inside:
            replaced.setdefault(others[partner].token, i + begin_tokens)
    return Aligned(places, frozenset(left_out), replaced)


class _Span(NamedTuple):
    begin: int
    """The token's first character."""
    end: int
    rank: int
    """Number among the tokens that begin there: a character can take several."""
    token: int


def _spans(family: CausalLM, text: str) -> list[_Span]:
    made = family.tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    spans: list[_Span] = []
    for (begin, end), token in zip(made["offset_mapping"], made["input_ids"], strict=True):
        rank = spans[-1].rank + 1 if spans and spans[-1].begin == begin else 0
        spans.append(_Span(begin, end, rank, token))
    return spans


def alignments(family: CausalLM, rows: Dataset, anchors: Mapping[str, str]) -> dict[str, Tensor]:
    """`aligned` of every row as tensors; tokens are numbered from the sequence's first.

    Returns:
        ``partners`` `[n, L]`, -1 where there is none; ``learned`` `[n, L]` bool; ``replaced`` `[n, K]` tokens and
        ``since`` `[n, K]` where each first stands for a term, filled up with tokens that are never said.
    """
    found = [aligned(family, row, anchors) for row in rows.with_format(None).to_list()]
    length, most = family.max_length, max(1, *(len(one.replaced) for one in found))
    partners = torch.full((len(found), length), -1)
    learned = torch.ones(len(found), length, dtype=torch.bool)
    replaced, since = torch.full((len(found), most), -1), torch.zeros(len(found), most, dtype=torch.long)
    for i, one in enumerate(found):
        for own, other in one.places.items():
            partners[i, own] = other
        learned[i, sorted(one.left_out)] = False
        for k, (token, first) in enumerate(one.replaced.items()):
            replaced[i, k], since[i, k] = token, first
    return {"partners": partners, "learned": learned, "replaced": replaced, "since": since}


@dataclass(frozen=True)
class Chosen:
    """What of the alignments concerns the positions of a batch."""

    places: Tensor
    """`[B, T]` position in the batch of replaced rows; negative where there is none."""
    learned: Tensor
    """`[B, T]` bool"""
    tokens: Tensor
    """`[B, T]` number of the token that each position is about."""
    replaced: Tensor
    since: Tensor

    @property
    def known(self) -> Tensor:
        """`[B, T]` bool: where a token of the replaced row stands for the own one."""
        return self.places >= 0

    def index(self, prediction: Tensor) -> Tensor:
        """`[B, T, V]` what gathers logits `[B, T', V]` of the replaced rows."""
        return self.places.clamp(min=0)[..., None].expand(-1, -1, prediction.shape[-1])

    def said(self, labels: Tensor) -> Tensor:
        """`[B, T]` bool: where a label (`[B, T]`) begins a replacement that stood for a term before."""
        same = labels[..., None] == self.replaced[:, None, :]
        return (same & (self.tokens[..., None] > self.since[:, None, :])).any(-1)


def choose(
    kept: Mapping[str, Tensor], rows: Tensor, own: int, width: int, other: int, device: torch.device
) -> Chosen:
    """The alignments of `rows` for `width` positions from token `own` on, beside replaced rows from token `other` on."""
    tokens = torch.arange(own, own + width)
    picked = {name: value.cpu()[rows] for name, value in kept.items()}
    places, learned = (
        picked["partners"][:, own : own + width] - other,
        picked["learned"][:, own : own + width],
    )
    tokens = tokens.expand(len(rows), -1)
    made = (places, learned, tokens, picked["replaced"], picked["since"])
    return Chosen(*(value.to(device) for value in made))
