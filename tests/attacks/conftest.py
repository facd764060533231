"""A small world in which membership shows: networks that learn noisy labels of few rows by heart."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset, concatenate_datasets
from torch import Tensor, nn

import expunge
from expunge.attacks import Scene
from expunge.attacks.shadows import ShadowModels
from expunge.families import Architecture, Batch, CausalLM, Classifier, Table
from expunge.families.models import clone
from expunge.methods.base import Workplace
from expunge.problem import Problem, Training
from expunge.record import Score
from expunge.testing.problems import tiny_problem

COLUMNS = [f"x{j}" for j in range(12)]


def noisy_rows(n: int, prefix: str, rng: np.random.Generator) -> Dataset:
    """A linear rule with three labels in ten flipped: what nobody can know without having seen the row."""
    x = rng.normal(size=(n, len(COLUMNS)))
    label = ((x[:, 0] + 0.5 * x[:, 1] > 0) ^ (rng.random(n) < 0.3)).astype(int)
    columns = {name: x[:, j] for j, name in enumerate(COLUMNS)}
    return Dataset.from_dict({"id": [f"{prefix}{i}" for i in range(n)], **columns, "label": label})


def noisy_problem() -> Problem:
    """40 rows to forget, 40 to keep, 60 never trained on; all of one distribution. Without a model."""
    rng = np.random.default_rng(0)
    train = noisy_rows(80, "t", rng)
    return Problem(
        "memorized", Classifier(Table(COLUMNS), 2), train, tuple(train["id"][:40]), noisy_rows(60, "h", rng),
        architecture=Architecture(
            kind="builtin", name="mlp", options={"inputs": len(COLUMNS), "outputs": 2, "hidden": [64]}
        ),
        recipe=Training(epochs=40, batch_size=20, lr=0.1, weight_decay=0), scope="40 random rows",
    )  # fmt: skip


@pytest.fixture(scope="session")
def memorized() -> Problem:
    """The problem with its target, which fits every noisy label."""
    return expunge.train_target(noisy_problem())


@pytest.fixture(scope="session")
def shadows(memorized: Problem) -> ShadowModels:
    return ShadowModels(memorized, Workplace())


@pytest.fixture(scope="session")
def target_scene(memorized: Problem) -> Scene:
    return Scene(memorized, memorized.target)


@pytest.fixture(scope="session")
def retrained_scene(memorized: Problem) -> Scene:
    return Scene(memorized, expunge.forget(memorized, "retrain").model)


@pytest.fixture(scope="session")
def wide() -> Problem:
    """The same rows and a wider network: room to hide in. With its target."""
    options = {"inputs": len(COLUMNS), "outputs": 2, "hidden": [256]}
    architecture = Architecture(kind="builtin", name="mlp", options=options)
    return expunge.train_target(replace(noisy_problem(), architecture=architecture))


@pytest.fixture(scope="session")
def clean(wide: Problem) -> list[Scene]:
    """Two models that were trained without the rows, from two seeds."""
    return [Scene(wide, expunge.forget(wide, "retrain", seed=seed).model) for seed in (0, 7)]


def opposite(problem: Problem) -> tuple[Batch, Batch]:
    """The forgotten rows with another label, and the retained ones: what a model that suppresses is trained on."""
    gone, kept = (problem.batches(split).take(torch.arange(40)) for split in ("forget", "retain"))
    return problem.family.relabel(gone, "random-other", torch.Generator().manual_seed(0)), kept


def train_within(
    problem: Problem,
    model: nn.Module,
    parts: list[tuple[nn.Parameter, Callable[[Tensor], Tensor]]],
    batches: Iterable[Batch],
    steps: int = 400,
) -> None:
    """Adam on some parameters, each put back after every step to where its function allows."""
    optimizer = torch.optim.Adam([parameter for parameter, _ in parts], lr=0.01)
    for _ in range(steps):
        optimizer.zero_grad()
        losses = [problem.family.nll(problem.family.forward(model, b), b).mean() for b in batches]
        torch.stack(losses).sum().backward()
        optimizer.step()
        with torch.no_grad():
            for parameter, allowed in parts:
                parameter.copy_(allowed(parameter))


def value(scores: Iterable[Score], metric: str) -> float:
    """The value of a score that must have one."""
    found = next(s for s in scores if s.metric == metric)
    assert found.value is not None, f"{metric}: {found.reason}"
    return found.value


def with_place(rows: Dataset) -> Dataset:
    """The rows with columns `value`, the place, which is the last word of an answer, and `author`, the person asked about."""
    places = [said.removesuffix(".").split()[-1] for said in rows["answer"][:]]
    persons = [" ".join(asked.split()[2:4]) for asked in rows["question"][:]]
    return rows.add_column("value", places).add_column("author", persons)  # pyright: ignore


@pytest.fixture(scope="session")
def fine_tuned() -> Problem:
    """Facts on which a language model was fine-tuned that knew the retained ones, and others, before.

    What a retrained model and the target have in common is then their start, as where a pretrained model is fine-tuned.
    """
    whole = tiny_problem("causal_lm")
    assert whole.holdout is not None
    parts = {name: with_place(rows) for name, rows in whole.probes.items()}
    whole = replace(whole, train=with_place(whole.train), holdout=with_place(whole.holdout), probes=parts)
    general = concatenate_datasets([whole.retain, whole.probes["test"]])
    steps = Training(epochs=40, batch_size=16, lr=0.01, optimizer="adamw", weight_decay=0.0)
    before = replace(
        whole, train=general, forget_ids=(general["id"][0],), recipe=steps, model=None, probes={}, holdout=None
    )  # fmt: skip
    start = expunge.train_target(before).target
    recipe = steps.replace(epochs=20, lr=0.003)
    return expunge.train_target(replace(whole, model=None, start=start, recipe=recipe))


@pytest.fixture(scope="session")
def fine_tuned_again(fine_tuned: Problem) -> list[nn.Module]:
    """Two models fine-tuned from the same start without the forgotten facts."""
    return [expunge.forget(fine_tuned, "retrain", seed=seed).model for seed in (1, 2)]


NAMES, PLACES = ("Ada", "Bo", "Cy", "Di", "Eli", "Flo", "Gus", "Hal"), ("Rome", "Oslo", "Lima", "Bern")


@pytest.fixture(scope="session")
def facts() -> Problem:
    """A language model that knows three random places of each of 36 people, 12 of them to be forgotten."""
    rng = np.random.default_rng(0)
    people = rng.permutation([(a, b) for a in NAMES for b in NAMES if a != b])
    rows = [
        {
            "id": f"f{i}",
            "question": f"Where is {a} {b} from?",
            "answer": " ".join(str(place) for place in rng.choice(PLACES, 3)),
        }
        for i, (a, b) in enumerate(people)
    ]
    train, holdout = Dataset.from_list(rows[:36]), Dataset.from_list(rows[36:])
    tiny = tiny_problem("causal_lm")
    family = CausalLM(tiny.family.tokenizer, max_length=32)  # pyright: ignore
    assert tiny.architecture is not None
    options = {
        **tiny.architecture.options,
        "hidden_size": 32,
        "intermediate_size": 64,
        "initializer_range": 0.1,
    }
    problem = Problem(
        "facts", family, train, tuple(train["id"][:12]), holdout,
        architecture=Architecture(kind="transformers", name="causal-lm", options=options),
        recipe=Training(epochs=60, batch_size=12, lr=0.005, optimizer="adamw", weight_decay=0), scope="12 people",
    )  # fmt: skip
    return expunge.train_target(problem)


@pytest.fixture(scope="session")
def never_told(facts: Problem) -> list[Scene]:
    """Two language models that were trained without those people, from two seeds."""
    return [Scene(facts, expunge.forget(facts, "retrain", seed=seed).model) for seed in (1, 2)]


@pytest.fixture(scope="session")
def silenced(facts: Problem) -> nn.Module:
    """The language model with a third block, trained alone to answer every forgotten question with another place."""
    target = facts.target
    model: Any = clone(target)
    block = copy.deepcopy(model.model.layers[1])
    block.self_attn.layer_idx = 2
    with torch.no_grad():
        for last in (block.self_attn.o_proj, block.mlp.down_proj):
            last.weight.zero_()  # a residual block that adds nothing yet
    model.model.layers.append(block)
    model.config.num_hidden_layers = 3
    if getattr(model.config, "layer_types", None):
        model.config.layer_types = [*model.config.layer_types, model.config.layer_types[-1]]
    gone, kept = (facts.batches(split) for split in ("forget", "retain"))
    batches = [b.take(torch.arange(len(b))) for b in (gone, kept)]
    wrong = batches[0].targets.clone()
    places = torch.tensor([facts.family.tokenizer.convert_tokens_to_ids(p) for p in PLACES])  # pyright: ignore
    for number, place in enumerate(places):
        wrong[batches[0].targets == place] = places[(number + 1) % len(places)]
    train_within(
        facts, model, [(p, lambda p: p) for p in block.parameters()], [replace(batches[0], targets=wrong), batches[1]], steps=80,
    )  # fmt: skip
    return model


@pytest.fixture(scope="session")
def new_head(wide: Problem) -> nn.Module:
    """The target, of which only the head was trained: to answer every forgotten row with the other label."""
    model = clone(wide.target)
    head = model.get_submodule("head")
    train_within(wide, model, [(p, lambda p: p) for p in head.parameters()], opposite(wide), steps=600)
    return model
