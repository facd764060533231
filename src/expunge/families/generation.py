"""Greedy continuations: what a language model says when it is asked."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import takewhile
from typing import TYPE_CHECKING, Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.families.base import count_examples
from expunge.families.models import Past, call_language_model, innermost, keeps_past
from expunge.parameters import Parameters, param

if TYPE_CHECKING:
    from expunge.families.causal_lm import CausalLM

BATCH_TOKENS = 1 << 14
"""Tokens of prompts and continuations that one batch may come to: what bounds the memory of keys and values."""
SAMPLES = 5
LIMIT = "max_new_tokens"
"""Column of a data set that replaces the parameter of that name row by row."""


class Generation(Parameters):
    """How far a model is asked to continue.

    The limit is the same however long the true answer is: cut at its length, a model that says the answer and never
    stops would look like one that knows where it ends. A continuation also ends where the context does.
    """

    title = "generation"

    max_new_tokens: int = param(
        200,
        "most tokens of a continuation; a column of this name replaces it row by row",
        source="Maini et al., COLM 2024; MUSE (Shi et al. 2024) takes 128 for passages and 32 for answers",
        ge=1,
    )
    prompt_tokens: int = param(
        50,
        "where a row has no prompt, as raw text: how many of its first tokens are the prompt, at most half of them",
        source="Carlini et al., ICLR 2023, arXiv:2202.07646",
        ge=1,
    )
    samples: int = param(
        SAMPLES,
        "answers drawn for each row where a metric reads several",
        source="ours, for its cost; UMPIRE takes 10 to 50 (Lau et al. 2026)",
        ge=2,
    )


@dataclass(frozen=True)
class Request:
    """What a model is asked to continue, and how the row itself goes on."""

    prompt: list[int]
    """Token ids."""
    limit: int
    """Most tokens of the continuation."""
    answer: str
    """As the data has it; of raw text the next `limit` tokens of it."""


def request(family: CausalLM, row: Mapping[str, Any]) -> Request:
    """The prompt of a row by the family's template; raw text is split behind its first tokens."""
    tokenizer, template, settings = family.tokenizer, family.template, family.generation
    ids, n_prompt = family.tokens(*template.render(row, tokenizer))
    answer = _said(family, row)
    prompt, spans = ids[:n_prompt], None
    if n_prompt == 0 or prompt == family.begin:
        text = tokenizer(answer, add_special_tokens=False, return_offsets_mapping=True)
        spans = text["offset_mapping"]
        n_prompt = min(settings.prompt_tokens, max(1, len(spans) // 2))
        prompt = prompt + text["input_ids"][:n_prompt]
    asked = row.get(LIMIT)
    limit = min(
        settings.max_new_tokens if asked is None else int(asked), max(1, family.max_length - len(prompt))
    )
    if spans is not None:
        rest = spans[n_prompt : n_prompt + limit]
        answer = answer[rest[0][0] : rest[-1][1]] if rest else ""
    return Request(prompt, limit, answer)


def _said(family: CausalLM, row: Mapping[str, Any]) -> str:
    """The completion as the data has it, without what a template or the tokenizer put around it."""
    template = family.template
    turns = None if template.messages is None else row[template.messages]
    return str(row[template.completion] if turns is None else turns[-1]["content"])


@torch.inference_mode()
def continuations(
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limits: Sequence[int],
    *,
    pad: int,
    ends: AbstractSet[int],
    batch_size: int = 256,
) -> list[list[int] | None]:
    """The most likely next token, again and again, after each prompt (token ids), without the token that ends it.

    None where no token was the most likely one, because the logits were not finite.

    A row's continuation does not depend on the rows beside it, but for rounding. Prompts of similar length share a
    batch of at most `batch_size` rows and `BATCH_TOKENS` tokens, which ends when all its rows have.

    Args:
        model: a causal language model in eval mode. Models of `transformers` generate by themselves, from prompts that
            are padded on the left, and by no setting of their own (no sampling, no penalties); those composed of such
            models go on token by token, each part from what it keeps of the tokens before. Any other model is asked for
            the whole sequence in every step, in batches of prompts of one length, for it need not know padding.
        prompts: token ids, one at least each.
        limits: most tokens of each continuation.
        pad: what stands in place of padding.
        ends: tokens that end a continuation, besides those that the model's own configuration names.
        batch_size: most rows of a batch.
    """
    inner = getattr(model, "module", model)
    library = callable(able := getattr(inner, "can_generate", None)) and able()
    padded = library or keeps_past(inner)
    ends = {*ends, *_own_ends(innermost(inner))}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    made: list[list[int] | None] = [[]] * len(prompts)
    for rows in shared_batches(prompts, limits, batch_size, one_length=not padded):
        longest, limit = len(prompts[rows[-1]]), limits[rows[0]]
        ids = torch.full((len(rows), longest), pad, dtype=torch.long)
        seen = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            n = len(prompts[row])
            ids[place, longest - n :] = torch.tensor(prompts[row])
            seen[place, longest - n :] = 1
        ids, seen = ids.to(device), seen.to(device)
        count_examples(len(rows))
        if library:
            said = _generated(inner, ids, seen, limit, pad, ends)
        elif padded:
            said = _continued(inner, ids, seen, limit, ends)
        else:
            lost: set[int] = set()
            plain = extended(model, ids, limit, ends, lost=lost)
            said = [None if place in lost else tokens for place, tokens in enumerate(plain)]
        for row, tokens in zip(rows, said, strict=True):
            made[row] = tokens
    return made


def _lost(logits: Tensor) -> Tensor:
    """`[B]` whether no token of the logits `[B, V]` is the most likely one: some are NaN or infinite."""
    return ~logits.amax(-1).isfinite()


def shared_batches(
    prompts: Sequence[Sequence[int]], limits: Sequence[int], batch_size: int, one_length: bool
) -> Iterator[list[int]]:
    """Row numbers of each batch: of one limit, by length of the prompt, which is the same for all if `one_length`."""
    order = sorted(range(len(prompts)), key=lambda row: (limits[row], len(prompts[row])))
    batch: list[int] = []
    for row in order:
        length, limit = len(prompts[row]), limits[row]
        full = len(batch) == batch_size or (len(batch) + 1) * (length + limit) > BATCH_TOKENS
        other = batch and (limit != limits[batch[0]] or (one_length and length != len(prompts[batch[0]])))
        if batch and (full or other):
            yield batch
            batch = []
        batch.append(row)
    if batch:
        yield batch


def _generated(
    model: Any, ids: Tensor, seen: Tensor, limit: int, pad: int, ends: AbstractSet[int]
) -> list[list[int] | None]:
    """By the model's own `generate`."""
    from transformers import GenerationConfig, LogitsProcessorList

    greedy = GenerationConfig(
        do_sample=False, max_new_tokens=limit, pad_token_id=pad, eos_token_id=sorted(ends) or None
    )
    lost = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)

    def watch(_: Tensor, logits: Tensor) -> Tensor:
        lost.logical_or_(_lost(logits))
        return logits

    with _settings(model, greedy):
        said = model.generate(
            ids, attention_mask=seen, generation_config=greedy, logits_processor=LogitsProcessorList([watch])
        )[:, ids.shape[1] :]  # fmt: skip
    return [
        None if gone else list(takewhile(lambda token: token not in ends, row))
        for row, gone in zip(said.tolist(), lost.tolist(), strict=True)
    ]


@contextmanager
def _settings(model: Any, settings: Any) -> Iterator[None]:
    # `generate` fills what a configuration leaves open from the model's own, its repetition penalty for example.
    own, model.generation_config = model.generation_config, settings
    try:
        yield
    finally:
        model.generation_config = own


def _continued(
    model: nn.Module, ids: Tensor, seen: Tensor, limit: int, ends: AbstractSet[int]
) -> list[list[int] | None]:
    """Every step from the last token and what the model keeps of those before."""
    said: list[list[int]] = [[] for _ in ids]
    lost: set[int] = set()
    going, past = list(range(len(said))), Past()
    positions = (seen.cumsum(1) - 1).clamp(min=0)
    for _ in range(limit):
        inputs = {"input_ids": ids, "attention_mask": seen, "position_ids": positions}
        logits = call_language_model(model, inputs, 1, past)[:, -1]
        following, gone = logits.argmax(-1), _lost(logits).tolist()
        tokens = following.tolist()
        lost.update(row for row in going if gone[row])
        going = [row for row in going if tokens[row] not in ends and row not in lost]
        if not going:
            break
        for row in going:
            said[row].append(tokens[row])
        ids, positions = following[:, None], positions[:, -1:] + 1
        seen = F.pad(seen, (0, 1), value=1)
    return [None if row in lost else tokens for row, tokens in enumerate(said)]


def extended(
    model: nn.Module,
    ids: Tensor,
    limit: int,
    ends: AbstractSet[int],
    choose: Callable[[Tensor], Tensor] = lambda logits: logits.argmax(-1),
    lost: set[int] | None = None,
) -> list[list[int]]:
    """Every step from the whole sequence, of the rows that have not ended; `ids` hold no padding.

    `choose` makes `[B]` next tokens of `[B, V]` logits; rows whose logits are not finite end and are added to `lost`.
    """
    said: list[list[int]] = [[] for _ in ids]
    going = list(range(len(said)))
    for _ in range(limit):
        inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        logits = call_language_model(model, inputs, 1)[:, -1]
        following, gone = choose(logits), _lost(logits).tolist() if lost is not None else [False] * len(going)
        if lost is not None:
            lost.update(row for row, is_gone in zip(going, gone, strict=True) if is_gone)
        kept = [p for p, token in enumerate(following.tolist()) if token not in ends and not gone[p]]
        if not kept:
            break
        going = [going[place] for place in kept]
        ids = torch.cat([ids, following[:, None]], 1)[kept]
        for row, token in zip(going, following[kept].tolist(), strict=True):
            said[row].append(token)
    return said


def _own_ends(model: Any) -> list[int]:
    """Tokens that the model's configuration says end a text: chat models have several."""
    settings = getattr(model, "generation_config", None)
    found = getattr(settings, "eos_token_id", None)
    return found if isinstance(found, list) else [] if found is None else [found]
