"""Composed models go on from what each part keeps: the same texts as from the whole sequence, for less."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MixtralConfig,
    MixtralForCausalLM,
)

from expunge.families import generation
from expunge.families.combined import Combined, Difference, Generic, Mean, Probabilities
from expunge.families.gated import Gate, Gated, Request, visible_means
from expunge.families.generation import continuations
from expunge.families.models import Composed, Past, call_language_model, keeps_past

PROMPTS = [[5, 7, 9], [4], [8, 8, 3, 2, 6, 11, 3], [6, 3], [10, 9, 8, 7], [3, 9, 9, 4]]
LIMITS = [12, 12, 12, 5, 5, 12]
PAD, END = 0, 1
BLOCKS = ["model.layers.0", "model.layers.1"]


def llama(seed: int, n_layers: int = 2) -> Any:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=n_layers, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, pad_token_id=PAD, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2(seed: int) -> Any:
    """Learned positions: prompts padded on the left must not be read as if they began later."""
    torch.manual_seed(seed)
    config = GPT2Config(
        vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5, bos_token_id=None,
        eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


def mixtral(seed: int) -> Any:
    """Attention to the last five tokens only: the cache forgets."""
    torch.manual_seed(seed)
    config = MixtralConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, num_local_experts=3, max_position_embeddings=64, initializer_range=0.5,
        pad_token_id=PAD, eos_token_id=None, bos_token_id=None, sliding_window=5,
    )  # fmt: skip
    return MixtralForCausalLM(config).eval()


def gated(seed: int) -> Gated:
    """Two requests, each with a gate that is neither open nor shut, and that changes along a text."""
    base, requests = llama(seed), []
    ids = torch.randint(2, 16, (40, 8), generator=torch.Generator().manual_seed(0))
    near, far = visible_means(base, BLOCKS, {"input_ids": ids}).flatten(0, 1).split(160)
    for number, (down_of, up_of) in enumerate([("k_proj", "down_proj"), ("v_proj", "up_proj")]):
        generator = torch.Generator().manual_seed(number)
        names = [f"{BLOCKS[0]}.self_attn.{down_of}", f"{BLOCKS[1]}.mlp.{up_of}"]
        shapes = {name: base.get_submodule(name).weight.shape for name in names}
        down = {name: torch.randn(2, d_in, generator=generator) for name, (_, d_in) in shapes.items()}
        up = {name: torch.randn(d_out, 2, generator=generator) for name, (d_out, _) in shapes.items()}
        requests.append(Request(down, up, Gate.fitted(near, far, 0.1 + 0.5 * number)))
    return Gated(base, BLOCKS, requests)


def same_model_twice() -> Composed:
    model = llama(3)
    return Combined([model, model], Mean())


COMPOSED = {
    "reinforced": lambda: Combined([llama(3), llama(4)], Generic(alpha=2.0)),
    "assistant with fewer layers": lambda: Combined([llama(3), llama(4, 1)], Difference(weight=-0.5, rho=0.2)),
    "three shards": lambda: Combined([llama(3), llama(4), llama(5)], Probabilities()),
    "other architectures": lambda: Combined([gpt2(5), mixtral(6), llama(7)], Mean()),
    "adapters behind gates": lambda: gated(3),
    "composed of composed": lambda: Combined([gated(3), Combined([llama(5), gpt2(6)], Mean())], Probabilities()),
    "one model twice": same_model_twice,
}  # fmt: skip


def one_by_one(model: nn.Module, prompt: list[int], limit: int) -> list[int]:
    said: list[int] = []
    with torch.no_grad():
        while len(said) < limit:
            ids = torch.tensor([prompt + said])
            inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
            token = int(call_language_model(model, inputs, 1)[0, -1].argmax())
            if token == END:
                break
            said.append(token)
    return said


@pytest.mark.parametrize("kind", COMPOSED)
def test_texts_are_those_of_the_whole_sequence(kind, monkeypatch):
    model = COMPOSED[kind]().eval()
    assert keeps_past(model)
    expected = [one_by_one(model, p, n) for p, n in zip(PROMPTS, LIMITS, strict=True)]
    assert len({tuple(tokens) for tokens in expected}) > 3
    for batch_size in (1, 2, 16):
        found = continuations(model, PROMPTS, LIMITS, pad=PAD, ends={END}, batch_size=batch_size)
        assert found == expected
    monkeypatch.setattr(generation, "keeps_past", lambda _: False)
    assert continuations(model, PROMPTS, LIMITS, pad=PAD, ends={END}) == expected


def test_gates_are_between_open_and_shut_and_their_weights_the_same_with_a_past():
    """Else the texts above would not tell whether a gate reads what was said before."""
    model = gated(3)
    ids = torch.tensor([[5, 7, 9, 4, 8, 3, 2]])
    with torch.no_grad():
        whole = torch.stack(model.weights({"input_ids": ids, "attention_mask": torch.ones_like(ids)}))
        past, parts = Past(), []
        for begin, end in ((0, 3), (3, 4), (4, 7)):
            inputs = {
                "input_ids": ids[:, begin:end],
                "position_ids": torch.arange(begin, end)[None],
                "attention_mask": torch.ones(1, end, dtype=torch.long),
            }
            parts.append(torch.stack(model.weights(inputs, past)))
    assert torch.allclose(torch.cat(parts, -1), whole, atol=1e-5)
    assert float(whole.std(-1).max()) > 0.05


def test_each_token_is_read_once():
    """By every part: seven tokens of the longest prompt, then one at a time."""
    model = Combined([llama(3), llama(4)], Mean()).eval()
    widths: list[list[int]] = [[], []]
    for part, seen in zip(model.parts, widths, strict=True):
        part.model.register_forward_pre_hook(  # pyright: ignore
            lambda _m, _a, given, seen=seen: seen.append(given["input_ids"].shape[1]), with_kwargs=True
        )
    continuations(model, PROMPTS, [6] * 6, pad=PAD, ends=set())
    assert widths == [[7, 1, 1, 1, 1, 1]] * 2


class Bare(nn.Module):
    def forward(self, ids: Tensor, _mask: Tensor) -> Tensor:
        return nn.functional.one_hot((ids + 1) % 16, 16).float()


def test_a_part_that_keeps_nothing_is_asked_for_the_whole_sequence():
    model = Combined([llama(3), Bare()], Mean()).eval()
    assert not keeps_past(model) and keeps_past(llama(3)) and not keeps_past(Bare())
    expected = [one_by_one(model, p, 6) for p in PROMPTS]
    assert continuations(model, PROMPTS, [6] * 6, pad=PAD, ends={END}) == expected
