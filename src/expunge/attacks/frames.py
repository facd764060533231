"""Prompts with free places, for attackers who search what to put there."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from expunge.attacks.vectors import embedding_of, placed
from expunge.families import Diffusion
from expunge.families.models import innermost
from expunge.families.pipelines import DiffusionModel


def parts_of(model: nn.Module) -> DiffusionModel:
    """Denoiser, text encoder and decoder."""
    return cast(DiffusionModel, innermost(model))


@dataclass(frozen=True)
class Frame:
    """Prompts with free places; what fills them is flat over all rows, in order."""

    tokens: Tensor
    """`[n, L]`, anything in the free places."""
    free: Tensor
    """`[n, L]` bool."""

    @classmethod
    def of(
        cls, family: Diffusion, tokens: Tensor, arrange: Callable[[list[int]], Sequence[int | None]]
    ) -> Frame:
        """Prompts whose words `arrange` has put in order, with None for a free place; cut where there is no room."""
        blank, begins = family.tokens([""])[0], _begins(family)
        rows, free = blank.repeat(len(tokens), 1), torch.zeros(tokens.shape, dtype=torch.bool)
        for i, words in enumerate(words_of(family, tokens)):
            arranged = arrange(words)[: _room(family)]
            for place, word in enumerate(arranged, start=begins):
                free[i, place] = word is None
                rows[i, place] = blank[0] if word is None else word
            rows[i, begins + len(arranged)] = family.tokenizer.eos_token_id
        return cls(rows.to(tokens.device), free.to(tokens.device))

    @property
    def row(self) -> Tensor:
        """`[m]` row of each free place."""
        return self.free.nonzero()[:, 0]

    def filled(self, ids: Tensor) -> Tensor:
        """`[n, L]` tokens with `ids` (`[m]`) in the free places."""
        return self.tokens.masked_scatter(self.free, ids.to(self.tokens))

    def take(self, rows: Sequence[int]) -> Frame:
        """Some of the prompts."""
        return Frame(self.tokens[list(rows)], self.free[list(rows)])

    def encoded(self, model: nn.Module, vectors: Tensor) -> Tensor:
        """`[n, L, d]` what the text encoder makes of the prompts with `vectors` (`[m, d]`) in the free places."""
        encoder = parts_of(model).text_encoder
        embedding = embedding_of(encoder)
        with torch.no_grad():
            whole = embedding(self.tokens)
        places = tuple(self.free.nonzero().T)
        whole = whole.index_put(places, vectors.to(whole.dtype))
        # One by one and not by distinct prompts: equal tokens hold different vectors.
        with placed(embedding, whole, [0] * len(whole)):
            return encoder(self.tokens)[0]


def with_prefix(family: Diffusion, tokens: Tensor, k: int) -> Frame:
    """k free places after the start token; what no longer fits is cut at the end of the prompt, as tokenizers do."""
    return Frame.of(family, tokens, lambda words: [None] * k + words)


def all_free(family: Diffusion, n: int, k: int) -> Frame:
    """n prompts of nothing but free places, k at most."""
    return Frame.of(family, family.tokens([""] * n), lambda _: [None] * k)


def with_inserted(family: Diffusion, tokens: Tensor, every: int) -> Frame:
    """A free place after every `every` tokens of a prompt and one behind what remains, as many as there is room for.

    The prompt itself is never cut; a prompt that leaves no room loses its last word.
    """
    room = _room(family)

    def spread(words: list[int]) -> list[int | None]:
        words = words[: room - 1]
        left, made = room - len(words), []
        for i, word in enumerate(words, start=1):
            made.append(word)
            if (i % every == 0 or i == len(words)) and left:
                made.append(None)
                left -= 1
        return made or [None]

    return Frame.of(family, tokens, spread)


def _room(family: Diffusion) -> int:
    """Tokens of a prompt without those that begin and end it."""
    return family.length - _begins(family) - 1


def _begins(family: Diffusion) -> int:
    """Tokens that begin every prompt: 1, or 0 where the tokenizer adds none."""
    return int(family.tokens([""])[0, 0] != family.tokenizer.eos_token_id)


def words_of(family: Diffusion, tokens: Tensor) -> list[list[int]]:
    """Of each prompt (`[n, L]`) the tokens between its beginning and its first end."""
    made, end = [], family.tokenizer.eos_token_id
    for row in tokens.tolist():
        inner = row[_begins(family) :]
        made.append(inner[: inner.index(end)] if end in inner else inner)
    return made


def vocabulary(family: Diffusion) -> Tensor:
    """`[V]` token ids that a search may use: all but the special ones and those of an empty prompt."""
    special = {*family.tokenizer.all_special_ids, *family.tokens([""])[0].tolist()}
    return torch.tensor([i for i in range(len(family.tokenizer)) if i not in special])
