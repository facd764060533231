"""Low-rank adapters: the start, the merge, what stays frozen, references behind them, interruptions, and every method."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from datasets import Array3D, Dataset, Features, Value
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Architecture, Classifier, Images
from expunge.families.models import clone
from expunge.methods import METHODS, Workplace, checkpoint
from expunge.methods.lora import Adapters, LoRA, target_names
from expunge.methods.npo import NPO
from expunge.methods.objective import Objective
from expunge.problem import Problem
from expunge.studies.spec import MethodSpec, StudySpec
from expunge.testing.problems import tiny_problem

LORA = {"r": 2}
FAST = {"epochs": 1, "batch_size": 6, "optimizer": "sgd", "lr": 0.05, "lora": LORA}
GPT2 = {
    "model_type": "gpt2", "vocab_size": 40, "n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 32,
    "bos_token_id": None, "eos_token_id": 1,
}  # fmt: skip
VIT = {
    "model_type": "vit", "image_size": 8, "patch_size": 4, "num_channels": 1, "hidden_size": 8, "num_hidden_layers": 2,
    "num_attention_heads": 2, "intermediate_size": 16, "num_labels": 3,
}  # fmt: skip


@pytest.fixture(scope="module")
def language() -> Problem:
    return tiny_problem("causal_lm")


@pytest.fixture(scope="module")
def gpt2(language: Problem) -> Problem:
    """The problem with a model whose linear layers are stored transposed."""
    options = {**GPT2, "vocab_size": len(language.family.tokenizer)}  # pyright: ignore
    architecture = Architecture(kind="transformers", name="causal-lm", options=options)
    return replace(language, architecture=architecture, model=architecture.build(0).eval())


@pytest.fixture(scope="module")
def vit() -> Problem:
    rng = np.random.default_rng(0)
    label = rng.integers(3, size=12)
    image = (rng.normal(size=(12, 1, 8, 8)) + label[:, None, None, None]).astype(np.float32)
    features = Features(
        {"id": Value("string"), "image": Array3D((1, 8, 8), "float32"), "label": Value("int64")}
    )
    rows = {"id": [str(i) for i in range(12)], "image": image, "label": label}
    architecture = Architecture(kind="transformers", name="image-classification", options=VIT)
    return Problem(
        "vit", Classifier(Images(), 3), Dataset.from_dict(rows, features=features), tuple("01234"),
        architecture=architecture, model=architecture.build(0).eval(),
    )  # fmt: skip


def predictions(problem: Problem, model: nn.Module) -> Tensor:
    batch, wide = problem.batches("forget").take(torch.arange(5)), next(model.parameters()).dtype
    inputs = {k: v.to(wide) if v.is_floating_point() else v for k, v in batch.inputs.items()}
    with torch.no_grad():
        return problem.family.forward(model, replace(batch, inputs=inputs)).prediction


def weights(model: nn.Module) -> Tensor:
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


def shaken(problem: Problem, lora: LoRA, model: nn.Module | None = None) -> Adapters:
    """Adapters whose weights are all random, B too."""
    model = clone(problem.target) if model is None else model
    adapters = Adapters(model, lora, problem.family.head(model))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.3)
    return adapters


@pytest.fixture(params=["language", "gpt2", "vit", "classification"])
def problem(request: pytest.FixtureRequest) -> Problem:
    return request.getfixturevalue(request.param)


def test_it_starts_as_the_target(problem: Problem) -> None:
    model = clone(problem.target)
    Adapters(model, LoRA(r=2), problem.family.head(model))
    assert torch.equal(predictions(problem, model), predictions(problem, problem.target))


def test_merged_it_equals_the_formula_and_the_model_with_adapters_on(problem: Problem) -> None:
    adapters = shaken(problem, LoRA(r=2, alpha=6))
    on, saved, names = predictions(problem, adapters.model), adapters.save(), adapters.targets
    assert not torch.allclose(on, predictions(problem, problem.target), atol=1e-2)
    with adapters.off() as model:
        assert torch.equal(predictions(problem, model), predictions(problem, problem.target))
    merged = adapters.merge()
    torch.testing.assert_close(predictions(problem, merged), on, rtol=1e-5, atol=1e-5)
    assert set(merged.state_dict()) == set(problem.target.state_dict())
    for name in names:
        a, b = (saved.weights[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")
        product = 3.0 * (b @ a)  # alpha / r
        if type(merged.get_submodule(name)).__name__ == "Conv1D":
            product = product.T
        moved = merged.get_parameter(f"{name}.weight") - problem.target.get_parameter(f"{name}.weight")
        torch.testing.assert_close(moved, product, rtol=1e-4, atol=1e-5)
    assert saved.explains(problem.target, merged)


def test_a_saved_adapter_is_applied_as_it_was_merged(problem: Problem) -> None:
    adapters = shaken(problem, LoRA(r=2))
    saved, again = adapters.save(), clone(problem.target)
    saved.apply(again)
    assert sorted(saved.layers) == sorted(adapters.targets)
    assert torch.equal(weights(again), weights(adapters.merge()))


def test_it_does_not_explain_a_model_in_which_something_else_moved(language: Problem) -> None:
    adapters = shaken(language, LoRA(r=2))
    saved, merged = adapters.save(), adapters.merge()
    other = clone(merged)
    with torch.no_grad():
        other.get_parameter("model.norm.weight")[0] += 1e-3
    assert not saved.explains(language.target, other)
    altered = clone(language.target)
    with torch.no_grad():
        altered.get_parameter("model.layers.0.self_attn.q_proj.weight")[0, 0] += 1e-3
    assert not saved.explains(altered, merged)


def test_in_half_precision_adapters_are_float32_and_the_merge_rounds_once(language: Problem) -> None:
    model = clone(language.target).to(torch.bfloat16)
    before = clone(model)
    adapters = shaken(language, LoRA(r=2), model)
    assert all(w.dtype == torch.float32 for w in adapters.save().weights.values())
    saved, merged = adapters.save(), adapters.merge()
    assert saved.explains(before, merged)
    name = adapters.targets[0]
    exact = before.get_parameter(f"{name}.weight").float() + saved.delta(before, name)
    got = merged.get_parameter(f"{name}.weight")
    assert got.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), exact, rtol=2**-7, atol=2**-8)


def test_written_it_is_read_by_peft(problem: Problem, tmp_path: Path) -> None:
    # In double precision nothing but the order of sums differs, and so little that no processor's rounding shows.
    whole = problem.with_model(clone(problem.target).double())
    adapters = shaken(whole, LoRA(r=2, alpha=5))
    on = predictions(whole, adapters.model)
    adapters.save().write(tmp_path / "adapter", "hub/base")
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "hub/base" and config["r"] == 2 and config["lora_alpha"] == 5
    read = peft.PeftModel.from_pretrained(
        clone(whole.target), str(tmp_path / "adapter"), autocast_adapter_dtype=False
    )  # pyright: ignore
    torch.testing.assert_close(predictions(whole, read.merge_and_unload()), on, rtol=1e-5, atol=1e-5)  # pyright: ignore


@pytest.mark.parametrize("name", ["language", "vit"])
def test_training_moves_the_adapted_weights_alone(name: str, request: pytest.FixtureRequest) -> None:
    problem = request.getfixturevalue(name)
    made = METHODS["gradient-ascent"](**FAST).forget(problem, Workplace(seed=3))
    assert made.adapter is not None and made.adapter.explains(problem.target, made.model)
    adapted = {f"{layer}.weight" for layer in made.adapter.layers}
    before = problem.target.state_dict()
    moved = {n for n, v in made.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved == adapted and f"{problem.family.head(problem.target)}.weight" not in adapted
    assert all(p.requires_grad for p in made.model.parameters())
    assert (
        max(
            torch.linalg.matrix_rank(v - before[n], atol=1e-6)
            for n, v in made.model.state_dict().items()
            if n in moved
        )
        == 2
    )


def test_only_the_named_targets_get_adapters(language: Problem) -> None:
    lora = {"r": 1, "targets": ["q_proj", "model.layers.1.mlp.up_proj"]}
    made = METHODS["gradient-ascent"](**{**FAST, "lora": lora}).forget(language)
    assert made.adapter is not None
    assert sorted(made.adapter.layers) == [
        "model.layers.0.self_attn.q_proj", "model.layers.1.mlp.up_proj", "model.layers.1.self_attn.q_proj",
    ]  # fmt: skip


def test_frozen_weights_get_no_adapter(classification: Problem, language: Problem) -> None:
    model = clone(language.target)
    for parameter in model.get_submodule("model.layers.0").parameters():
        parameter.requires_grad_(False)
    made = METHODS["gradient-ascent"](**FAST).forget(language.with_model(model))
    before = model.state_dict()
    moved = {n for n, v in made.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved and all(n.startswith("model.layers.1.") for n in moved)
    closed = {n for n, p in made.model.named_parameters() if not p.requires_grad}
    assert closed == {n for n in before if n.startswith("model.layers.0.")}
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    with pytest.raises(BadInput, match="every other layer that could get an adapter is frozen"):
        METHODS["gradient-ascent"](**FAST).forget(language.with_model(model))


REFERENCED = ["npo", "kl-minimization", "bad-teacher"]


@pytest.mark.parametrize("name", REFERENCED)
def test_a_reference_behind_the_adapters_equals_a_stored_and_a_copied_one(
    name: str, language: Problem, monkeypatch: pytest.MonkeyPatch
) -> None:
    from expunge.methods.frozen import Frozen

    method = METHODS[name](**{**FAST, "epochs": 2})

    def run(reference: Any) -> Tensor:
        return weights(method.forget(language, Workplace(seed=3, reference=reference)).model)

    stored, behind = run("precompute"), run("live")
    # With nothing to replace it by, the live reference stays the copy that the loop made of the target.
    copies: list[Frozen] = []
    original = Frozen.__init__

    def keep(self: Frozen, *args: Any, **more: Any) -> None:
        original(self, *args, **more)
        copies.append(self)

    monkeypatch.setattr(Frozen, "__init__", keep)
    monkeypatch.setattr(Frozen, "behind", classmethod(lambda cls, *args: next(c for c in copies if c._model)))
    copied = run("live")
    assert not torch.equal(stored, weights(language.target))
    torch.testing.assert_close(stored, behind, rtol=0, atol=1e-6)
    torch.testing.assert_close(behind, copied, rtol=0, atol=1e-6)


def test_micro_batches_do_not_change_the_trajectory(language: Problem) -> None:
    def run(**more: Any) -> Tensor:
        return weights(
            METHODS["gradient-difference"](**FAST, **more).forget(language, Workplace(seed=3)).model
        )

    torch.testing.assert_close(run(), run(micro_batch_size=1), rtol=0, atol=1e-6)


def test_zero_epochs_leave_the_target(language: Problem) -> None:
    made = NPO(epochs=0, lora=LoRA(r=2)).forget(language)
    assert torch.equal(weights(made.model), weights(language.target)) and made.adapter is None


class Killed(Exception):
    pass


@pytest.mark.parametrize("at", [2, 4])
def test_killed_and_started_again_it_ends_with_the_same_weights(
    at: int, language: Problem, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "EVERY_SECONDS", 0.0)
    method = NPO(epochs=2, batch_size=6, optimizer="adam", lr=0.01, lora=LoRA(r=2, dropout=0.2))
    whole = method.forget(language, Workplace(seed=5))

    def stop(entry: Any) -> None:
        if entry["step"] == at:
            raise Killed

    for reference in ("precompute", "live"):
        folder = tmp_path / reference
        with pytest.raises(Killed):
            method.forget(language, Workplace(5, checkpoint=folder, reference=reference, on_step=stop))
        again = method.forget(language, Workplace(5, checkpoint=folder, reference=reference))
        torch.testing.assert_close(weights(again.model), weights(whole.model), rtol=0, atol=1e-6)
        assert len(again.log) < len(whole.log)


OBJECTIVES = sorted(n for n, m in METHODS.items() if issubclass(m, Objective))


@pytest.mark.parametrize("name", OBJECTIVES)
@pytest.mark.parametrize("family", ["classifier", "causal_lm"])
def test_every_objective_trains_adapters_or_refuses(name: str, family: str) -> None:
    method, problem = METHODS[name], tiny_problem(family)
    if method.obstacles(problem):
        pytest.skip(f"{name} does not fit {family}")
    settings: dict[str, Any] = {"epochs": 1, "lora": LORA}
    made = method(**settings)
    assert isinstance(made, Objective)
    if not made.adapters:
        with pytest.raises(BadInput, match="cannot train adapters; leave out lora"):
            made.forget(problem, Workplace(seed=3))
        return
    forgotten = made.forget(problem, Workplace(seed=3))
    before, after = problem.target.state_dict(), forgotten.model.state_dict()
    head = problem.family.head(problem.target)
    adapted = {f"{layer}.weight" for layer in target_names(problem.target, LoRA(r=2), head)}
    # One that alters the weights under its adapters gives none away.
    assert forgotten.adapter is not None or any("adapter" in note for note in forgotten.notes)
    others = [n for n in before if n not in adapted and not torch.equal(before[n], after[n])]
    assert not others and (forgotten.cost.changed > 0 or forgotten.notes)


@pytest.mark.parametrize(("targets", "message"), [
    (["nothing"], "no linear layer 'nothing'; it has down_proj, gate_proj, k_proj"),
    (["lm_head"], "'lm_head' shares its weight with 'model.embed_tokens'"),
])  # fmt: skip
def test_targets_that_cannot_be_are_refused(targets: list[str], message: str, language: Problem) -> None:
    options = {**language.architecture.options, "tie_word_embeddings": True}  # pyright: ignore
    model = Architecture(kind="transformers", name="causal-lm", options=options).build(0)
    with pytest.raises(BadInput, match=message):
        target_names(model, LoRA(targets=tuple(targets)), "lm_head")


def test_a_model_without_a_linear_layer_besides_its_head_is_refused() -> None:
    with pytest.raises(BadInput, match="Sequential has no linear layer besides its head"):
        target_names(nn.Sequential(nn.ReLU(), nn.Linear(2, 2)), LoRA(), "1")


def test_torch_attention_reads_its_output_layer_past_an_adapter_which_it_therefore_does_not_get() -> None:
    block = nn.TransformerEncoderLayer(4, 2, 8)
    assert target_names(block, LoRA(), "") == ["linear1", "linear2"]


def test_an_option_is_read_and_written_alike() -> None:
    lora = LoRA.parse("r=8, alpha=32,dropout=0.05,targets=q_proj+v_proj")
    assert lora == LoRA(r=8, alpha=32.0, dropout=0.05, targets=("q_proj", "v_proj")) and lora.scaling == 4.0
    assert LoRA.parse(str(lora)) == lora and str(LoRA(r=4)) == "r=4" and LoRA(r=4).scaling == 2.0
    assert LoRA.parse("") == LoRA()


@pytest.mark.parametrize(("text", "message"), [
    ("r", "lora: 'r' is not of the form key=value"),
    ("rank=4", "lora: unknown key 'rank'"),
    ("r=0", "lora: 'r' should be greater than or equal to 1, got '0'"),
    ("r=two", "lora: 'r' should be a valid integer"),
    ("dropout=1", "'dropout' should be less than 1"),
])  # fmt: skip
def test_bad_options_are_one_sentence(text: str, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        LoRA.parse(text)


def test_a_study_names_it_as_a_parameter() -> None:
    from expunge.studies.space import search_space

    given = {"name": "npo", "lora": {"r": 8}, "beta": 0.2}
    spec = StudySpec(name="s", problems=[{"benchmark": "digits"}], methods=[given])  # pyright: ignore
    method = spec.methods[0].resolve()
    assert isinstance(method, Objective) and method.lora == LoRA(r=8)
    assert spec.methods[0].shown() == "npo (lora=r=8, beta=0.2)"
    again = MethodSpec(**json.loads(spec.methods[0].model_dump_json())).resolve()
    assert again == method and type(method)(**method.model_dump(mode="json")) == method
    assert search_space(method).held["lora"] == "common to all methods"
    with pytest.raises(BadInput, match="lora: 'r' should be greater than or equal to 1, got 0"):
        MethodSpec.parse({"name": "npo", "lora": {"r": 0}}).resolve()
