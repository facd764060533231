"""Greedy continuations against a loop over single rows without padding, cache or library."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.evidence import Evidence, collect
from expunge.families import CausalLM, Template, metered
from expunge.families.base import Family
from expunge.families.generation import Generation, continuations, request
from expunge.testing import tiny_problem

PROMPTS = [[5, 7, 9], [4], [8, 8, 3, 2, 6, 11, 3], [6, 3], [10, 9, 8, 7], [3, 9, 9, 4]]
PAD, END = 0, 1


def llama() -> Any:
    torch.manual_seed(3)
    config = LlamaConfig(
        vocab_size=16, hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, initializer_range=0.5, pad_token_id=PAD, eos_token_id=None,
        bos_token_id=None,
    )  # fmt: skip
    return LlamaForCausalLM(config).eval()


def gpt2() -> Any:
    """Learned positions: prompts padded on the left must not be read as if they began later."""
    torch.manual_seed(5)
    config = GPT2Config(
        vocab_size=16, n_embd=16, n_layer=2, n_head=2, n_positions=64, initializer_range=0.5, bos_token_id=None,
        eos_token_id=None, pad_token_id=PAD,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


class Bare(nn.Module):
    """A model that knows neither padding nor caches nor how to generate."""

    def __init__(self, inner: Any) -> None:
        super().__init__()
        self.inner = inner
        self.widths: list[int] = []

    def forward(self, ids: Tensor, _mask: Tensor) -> Tensor:
        self.widths.append(len(ids))
        return self.inner(ids).logits


def one_by_one(model: Any, prompt: list[int], limit: int, ends: set[int]) -> list[int]:
    said: list[int] = []
    with torch.no_grad():
        while len(said) < limit:
            token = int(model(torch.tensor([prompt + said])).logits[0, -1].argmax())
            if token in ends:
                break
            said.append(token)
    return said


@pytest.mark.parametrize("make", [llama, gpt2])
@pytest.mark.parametrize("batch_size", [1, 2, 16])
def test_every_row_goes_on_as_it_would_alone(make, batch_size):
    model = make()
    limits = [12, 12, 12, 5, 5, 12]
    expected = [one_by_one(model, p, n, {END}) for p, n in zip(PROMPTS, limits, strict=True)]
    assert len({len(tokens) for tokens in expected}) > 1  # some end, some are cut
    for asked in (model, Bare(model)):
        found = continuations(asked, PROMPTS, limits, pad=PAD, ends={END}, batch_size=batch_size)
        assert found == expected


def test_a_batch_ends_when_all_its_rows_have():
    """A model that always says the same ends after a step, whatever the limit."""
    model = Bare(llama())
    first = one_by_one(model.inner, PROMPTS[0], 1, set())[0]
    assert continuations(model, [PROMPTS[0]] * 3, [50] * 3, pad=PAD, ends={first}) == [[], [], []]
    assert model.widths == [3]


def test_settings_of_the_model_do_not_count_but_its_ends_do():
    model = llama()
    plain = continuations(model, PROMPTS, [12] * 6, pad=PAD, ends=set())
    own = model.generation_config
    own.repetition_penalty, own.do_sample, own.temperature = 5.0, True, 9.0
    assert continuations(model, PROMPTS, [12] * 6, pad=PAD, ends=set()) == plain
    assert model.generation_config is own and own.repetition_penalty == 5.0
    second = plain[0][1]
    own.eos_token_id = [second, 15]
    found = continuations(model, PROMPTS, [12] * 6, pad=PAD, ends=set())[0]
    assert found == plain[0][: plain[0].index(second)]


def test_a_batch_holds_a_bounded_number_of_tokens(monkeypatch):
    monkeypatch.setattr("expunge.families.generation.BATCH_TOKENS", 40)
    model = Bare(llama())
    continuations(model, [[5, 7]] * 9, [8] * 9, pad=PAD, ends=set())
    assert max(model.widths) == 4  # 4 x (2 + 8)


def tokens_of(family: CausalLM, text: str) -> list[int]:
    return family.tokenizer(text, add_special_tokens=False)["input_ids"]


def test_evidence_of_what_a_model_says(tmp_path: Path):
    problem = tiny_problem("causal_lm")
    with metered() as meter:
        found = collect(problem.family, problem.target, problem.forget, ["text", "answer_text"])
    assert meter.examples == len(problem.forget)
    assert found["answer_text"].tolist() == problem.forget["answer"][:]
    family: Any = problem.family
    for row, said in zip(problem.forget, found["text"], strict=True):
        prompt = tokens_of(family, f"Question: {row['question']}\nAnswer:\n")  # pyright: ignore
        limit = family.max_length - len(prompt)
        ids = one_by_one(problem.target, prompt, limit, {family.tokenizer.eos_token_id})
        assert said == family.tokenizer.decode(ids, skip_special_tokens=True).strip()
    found.write(tmp_path / "evidence.parquet")
    again = Evidence.read(tmp_path / "evidence.parquet").select(torch.tensor([3, 1]).numpy())
    assert again["text"].tolist() == [found["text"][3], found["text"][1]]
    assert again["text"].dtype == object and isinstance(again["text"][0], str)


def family(template: Template | None = None, **settings: int) -> CausalLM:
    given: Any = tiny_problem("causal_lm").family
    return CausalLM(given.tokenizer, template, 32, generation=Generation(**settings))


def test_limits():
    """200 tokens unless the settings, the row or the context say less."""
    row = {"question": "Where is Ada Bo from?", "answer": "Ada Bo is from Rome."}
    n = len(tokens_of(family(), "Question: Where is Ada Bo from?\nAnswer:\n"))
    assert Generation().max_new_tokens == 200
    assert request(family(), row).limit == 32 - n
    assert request(family(max_new_tokens=7), row).limit == 7
    assert request(family(max_new_tokens=7), {**row, "max_new_tokens": 3}).limit == 3
    assert request(family(max_new_tokens=7), {**row, "max_new_tokens": 9}).limit == 9
    rows = Dataset.from_list([{"id": "a", **row, "max_new_tokens": 2}])
    texts = collect(family(), tiny_problem("causal_lm").target, rows, ["text"])["text"]
    assert len(tokens_of(family(), texts[0])) <= 2


def test_raw_text_is_split_behind_its_first_tokens():
    text = "Ada Bo is from Rome. Cy Di is from Oslo."
    template = Template(kind="text", completion="text")
    asked = request(family(template, prompt_tokens=4, max_new_tokens=3), {"text": text})
    assert asked.prompt == tokens_of(family(), "Ada Bo is from")
    assert asked.answer == "Rome. Cy"
    half = request(family(template), {"text": text})  # 50 tokens are more than half of it
    assert half.prompt == tokens_of(family(), "Ada Bo is from Rome.")
    assert half.answer == "Cy Di is from Oslo."


def test_a_chat_is_asked_up_to_the_last_turn():
    base = family()
    chat = CausalLM.restore(base.describe())
    chat.tokenizer.chat_template = (
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}<eos>{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}"
    )
    turns = [{"role": "user", "content": "Where is Ada?"}, {"role": "assistant", "content": "Rome."}]
    asked = request(CausalLM(chat.tokenizer, Template(kind="chat", messages="turns"), 32), {"turns": turns})
    assert asked.answer == "Rome."
    assert asked.prompt == tokens_of(chat, "user:\nWhere is Ada?<eos>assistant:\n")


def test_settings_survive_a_round_trip():
    again = CausalLM.restore(family(max_new_tokens=7).describe())
    assert again.generation == Generation(max_new_tokens=7)
    with pytest.raises(BadInput, match="generation: 'max_new_tokens' should be greater"):
        Generation(max_new_tokens=0)


def test_families_that_say_nothing_refuse():
    problem = tiny_problem("classifier")
    assert not problem.family.generated
    with pytest.raises(BadInput, match="classifier generates nothing"):
        Family.generate(problem.family, problem.target, problem.forget, ["text"], 8)


def test_a_specification_says_how_far_models_go_on(tmp_path: Path):
    problem = tiny_problem("causal_lm")
    given: Any = problem.family
    given.tokenizer.save_pretrained(tmp_path / "model")
    problem.target.save_pretrained(tmp_path / "model")  # pyright: ignore
    problem.train.to_json(tmp_path / "train.jsonl")
    wanted: dict[str, Any] = {"data": "train.jsonl", "forget": "where:id == 't0-0'", "model": "model"}
    wanted |= {"max_length": 32, "generation": {"max_new_tokens": 9}}
    made: Any = ProblemSpec(**wanted).build(tmp_path).family
    assert made.generation.max_new_tokens == 9
    with pytest.raises(BadInput, match="max_tokens"):
        ProblemSpec(**{**wanted, "generation": {"max_tokens": 9}})
