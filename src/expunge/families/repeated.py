"""Several sampled answers to every row: what was said, how likely it was, how alike the answers are."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch
from expunge.families.causal_lm import CausalLM
from expunge.families.generation import Request
from expunge.families.sampling import as_batch, sample

SEED = 104_743
"""Of all samples, so that models are compared on the same noise."""
TEMPERATURE, TOP_P = 0.7, 0.9
"""As in the demonstration of UMPIRE (Lau et al. 2026, arXiv:2602.24195)."""


AT_ONCE = 64
"""Answers that are drawn together, however evidence is batched: one stream of noise is shared by a batch."""


def repeated(family: CausalLM, model: nn.Module, asked: Sequence[Request]) -> dict[str, Any]:
    """The quantities in `CausalLM.repeated`: of each of n questions k answers, `family.generation.samples`.

    Drawn at temperature 0.7 among the tokens that make up 0.9 of the probability; likelihoods are the model's own, at
    temperature 1. An answer is as long as the row's limit allows, the token that ends it included. Its embedding is the
    output of the last layer before the head, of a composed model that of its base, at its last token.
    """
    k = family.generation.samples
    said: list[list[int]] = [[] for _ in range(len(asked) * k)]
    generator = torch.Generator().manual_seed(SEED)
    for limit in sorted({one.limit for one in asked}):
        rows = [row for row, one in enumerate(asked) if one.limit == limit]
        prompts = [asked[row].prompt for row in rows for _ in range(k)]
        drawn = sample(family, model, prompts, limit, generator, TEMPERATURE, AT_ONCE, TOP_P)
        for place, tokens in enumerate(drawn):
            said[rows[place // k] * k + place % k] = tokens
    logp, states = [], []
    layers = family.compared_layers(model)
    if not layers:
        raise BadInput(f"{type(model).__name__} has no layer whose states could stand for an answer")
    device = next((p.device for p in model.parameters()), torch.device("cpu"))
    prompts = [one.prompt for one in asked for _ in range(k)]
    with torch.inference_mode():
        for some in _passes(family, prompts, said):
            batch = as_batch(
                family, [str(i) for i in some], [prompts[i] for i in some], [said[i] for i in some]
            )
            outputs = family.forward(model, batch.to(device), [layers[-1]])
            logp.append(-family.nll(outputs, batch.to(device)).double().cpu())
            states.append(_last(outputs.hidden[layers[-1]], batch).float().cpu())
    n = len(asked)
    unit = F.normalize(torch.cat(states).reshape(n, k, -1).double(), dim=-1)
    texts = [t.strip() for t in family.tokenizer.batch_decode(said, skip_special_tokens=True)]
    similarity = unit @ unit.mT
    likelihood = torch.cat(logp).reshape(n, k)
    # Where logits are not finite nothing was drawn from them.
    lost = likelihood.isnan()
    similarity[lost.any(1)] = math.nan
    said_of = [None if gone else t for t, gone in zip(texts, lost.flatten().tolist(), strict=True)]
    return {
        "sample_text": [said_of[row * k : (row + 1) * k] for row in range(n)],
        "sample_logp": likelihood.numpy(),
        "sample_tokens": np.asarray([len(tokens) for tokens in said]).reshape(n, k),
        "sample_similarity": similarity.reshape(n, k * k).numpy(),
    }


def _passes(family: CausalLM, prompts: Sequence[list[int]], said: Sequence[list[int]]) -> list[range]:
    """Answers that one forward pass takes, in order."""
    found, start = [], 0
    while start < len(said):
        end, longest = start, 1
        while end < len(said):
            longest = max(longest, len(prompts[end]) + len(said[end]))
            if end > start and end - start >= family.at_once(longest):
                break
            end += 1
        found.append(range(start, end))
        start = end
    return found


def _last(hidden: Tensor, batch: Batch) -> Tensor:
    """`[B, d]` activations `[B, L, d]` at the last token of each sequence."""
    lengths = batch.inputs["attention_mask"].sum(1)
    return hidden[torch.arange(len(batch), device=hidden.device), (lengths - 1).to(hidden.device)]
