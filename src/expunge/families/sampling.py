"""Samples of what a language model says when it is asked, and how likely it was to say them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, count_examples
from expunge.families.causal_lm import CausalLM
from expunge.families.generation import extended, shared_batches
from expunge.families.models import Composed


@torch.no_grad()
def sample(
    family: CausalLM,
    model: nn.Module,
    prompts: Sequence[Sequence[int]],
    limit: int,
    generator: torch.Generator,
    temperature: float = 1.0,
    batch_size: int = 64,
    top_p: float = 1.0,
) -> list[list[int]]:
    """One continuation of each prompt, drawn from the model's distribution; the token that ends it is its last.

    The most likely token after Gumbel noise of scale `temperature` on the log-probabilities is a draw from the softmax
    of logits / temperature (Maddison et al., NeurIPS 2014), so that `generator` alone decides, and no setting
    of the model's own (top-k, penalties) has a say.

    Args:
        family: reads its tokenizer: what pads, what ends a text.
        model: a causal language model of ``transformers``, or several that answer as one; put into eval mode
            meanwhile.
        prompts: token ids, at least one each.
        limit: most tokens of a continuation.
        generator: on the CPU, whatever the model's device.
        temperature: below 1 for likelier answers.
        batch_size: prompts at a time.
        top_p: draw among the likeliest tokens only, the fewest that together have this probability at the given
            temperature (Holtzman et al., ICLR 2020).

    Raises:
        BadInput: the model cannot generate.
    """
    inner: Any = getattr(model, "module", model)  # accelerate wraps models for distributed training
    noise = _GumbelNoise(generator, temperature, top_p)
    if isinstance(inner, Composed):
        return _sample_composed(family, inner, prompts, limit, noise, batch_size)
    if not callable(getattr(inner, "generate", None)):
        raise BadInput(
            f"{type(inner).__name__} cannot generate; answers are sampled from models of transformers only"
        )
    from transformers import GenerationConfig, LogitsProcessorList

    own, was_training = inner.generation_config, inner.training
    named = own.eos_token_id  # chat models end a turn in several ways
    ends = {family.tokenizer.eos_token_id, *(named if isinstance(named, list) else [named])} - {None}
    settings = GenerationConfig(
        do_sample=False, max_new_tokens=limit, pad_token_id=family.pad, eos_token_id=sorted(ends) or None
    )
    processors: Any = LogitsProcessorList([noise])  # pyright: ignore
    said: list[list[int]] = []
    try:
        # `generate` fills what the settings leave open from the model's own.
        inner.generation_config = settings
        inner.eval()
        for start in range(0, len(prompts), batch_size):
            ids, seen = _padded_left(prompts[start : start + batch_size], family.pad, inner.device)
            count_examples(len(ids))
            made = inner.generate(
                ids, attention_mask=seen, generation_config=settings, logits_processor=processors
            )
            said += [_ended(row, ends) for row in made[:, ids.shape[1] :].tolist()]
    finally:
        inner.generation_config = own
        inner.train(was_training)
    return said


def _sample_composed(
    family: CausalLM,
    model: Composed,
    prompts: Sequence[Sequence[int]],
    limit: int,
    noise: _GumbelNoise,
    batch_size: int,
) -> list[list[int]]:
    """Step by step from the whole sequence, prompts of one length at a time: several models have no common cache."""
    end, was_training = family.tokenizer.eos_token_id, model.training
    ends = set() if end is None else {end}
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    said: list[list[int]] = [[]] * len(prompts)
    model.eval()
    try:
        for rows in shared_batches(prompts, [limit] * len(prompts), batch_size, one_length=True):
            ids = torch.tensor([list(prompts[row]) for row in rows], device=device)
            count_examples(len(rows))
            made = extended(model, ids, limit, ends, lambda logits: noise(None, logits).argmax(-1))
            for row, tokens in zip(rows, made, strict=True):
                said[row] = tokens if len(tokens) == limit or end is None else [*tokens, end]
    finally:
        model.train(was_training)
    return said


class _GumbelNoise:
    """Makes the greedy choice a random one."""

    def __init__(self, generator: torch.Generator, temperature: float, top_p: float = 1.0) -> None:
        self._generator, self._temperature, self._top_p = generator, temperature, top_p

    def __call__(self, ids: Tensor | None, scores: Tensor) -> Tensor:
        # Minus the logarithm of an exponential variable is a Gumbel variable.
        waits = torch.empty(scores.shape).exponential_(generator=self._generator)
        scores = scores.float() / self._temperature
        if self._top_p < 1:
            scores = nucleus(scores, self._top_p)
        return scores - waits.log().to(scores.device)


def nucleus(logits: Tensor, top_p: float) -> Tensor:
    """The logits `[B, C]`, minus infinity outside the fewest likeliest tokens that together have probability `top_p`."""
    ordered, order = logits.sort(-1, descending=True)
    before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
    outside = torch.zeros_like(before, dtype=torch.bool).scatter(-1, order, before >= top_p)
    return logits.masked_fill(outside, -torch.inf)


def _padded_left(prompts: Sequence[Sequence[int]], pad: int, device: torch.device) -> tuple[Tensor, Tensor]:
    longest = max(map(len, prompts))
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts], device=device)
    seen = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts], device=device)
    return ids, seen


def _ended(tokens: list[int], ends: set[int]) -> list[int]:
    """The tokens up to the first that ends the text, that one included; behind it there is padding."""
    return tokens[: next((i for i, token in enumerate(tokens) if token in ends), len(tokens) - 1) + 1]


def as_batch(
    family: CausalLM,
    ids: Sequence[str],
    prompts: Sequence[Sequence[int]],
    completions: Sequence[Sequence[int]],
) -> Batch:
    """Prompts and completions, token for token, as a batch like those of `CausalLM.collate`."""
    longest = max(2, max(len(p) + len(c) for p, c in zip(prompts, completions, strict=True)))
    inputs = torch.full((len(ids), longest), family.pad)
    seen, counts = torch.zeros_like(inputs), torch.zeros(len(ids), longest, dtype=torch.bool)
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        n = len(prompt) + len(completion)
        inputs[row, :n] = torch.tensor([*prompt, *completion])
        seen[row, :n] = 1
        counts[row, len(prompt) : n] = True
    return Batch(list(ids), {"input_ids": inputs, "attention_mask": seen}, inputs[:, 1:], counts[:, 1:])
