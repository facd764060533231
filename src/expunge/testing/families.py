"""The contract of a family."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import nn

from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Batches, Outputs, metered, restore_family
from expunge.families.base import Family
from expunge.problem import Problem
from expunge.testing.checks import Check, require


def check_family(problem: Problem) -> Iterator[Check]:
    """Every promise that a family must keep, on a problem of it that has a trained target."""
    family, model = problem.family, problem.target

    def check(name: str, run: Any) -> Check:
        return Check(family.name, name, lambda: run(problem, family, model))

    yield check("round-trips through its description", _round_trip)
    yield check("gives batches of the declared shapes", _shapes)
    if family.likelihood == "none" and family.gradients:
        yield check("says that it has no likelihood", _no_likelihood)
    else:
        yield check("sums the likelihood over valid positions", _likelihood)
    yield check("has a divergence that is zero on equals and positive otherwise", _divergence)
    yield check("relabels without touching inputs, as its seed says", _relabel)
    yield check("yields every quantity it names, in one pass", _quantities)
    yield check("does not depend on how rows are batched", _batching)
    yield check("refuses unknown quantities and relabelings", _refusals)
    if family.gradients:
        yield check("addresses layers and its head", _layers)
        yield check("has gradients", _gradients)
    else:
        yield check("has no layers, and fits again to the same answers", _fits)


def _first(problem: Problem, n: int = 8) -> Any:
    return Batches(problem.family, problem.train).take(torch.arange(n))


def _round_trip(problem: Problem, family: Family, model: nn.Module) -> None:
    description = family.describe()
    again = restore_family(json.loads(json.dumps(description)))
    require(again.describe() == description, "what `restore` makes describes itself differently")
    rows = problem.train.with_format("numpy")[:4]
    one, two = family.collate(rows), again.collate(rows)
    require(
        all(torch.equal(one.inputs[k], two.inputs[k]) for k in one.inputs),
        "the restored family encodes differently",
    )
    require(torch.equal(one.targets, two.targets), "the restored family reads other targets")


def _shapes(problem: Problem, family: Family, model: nn.Module) -> None:
    batch = _first(problem)
    outputs = family.forward(model, batch)
    require(
        outputs.prediction.dim() == 3,
        f"predictions have shape {tuple(outputs.prediction.shape)}, not [B, T, C]",
    )
    require(
        outputs.prediction.shape[0] == len(batch), "predictions have another number of rows than the batch"
    )
    require(batch.mask.dtype == torch.bool and batch.mask.dim() == 2, "the mask is not bool [B, T]")
    found = {**family.losses(model, batch), "terms": family.terms(batch)}
    for name, value in found.items():
        require(value.shape == (len(batch),), f"{name} has shape {tuple(value.shape)}, not [B]")


def _likelihood(problem: Problem, family: Family, model: nn.Module) -> None:
    batch = _first(problem)
    outputs = family.forward(model, batch)
    whole = family.nll(outputs, batch)
    require(
        whole.dtype in (torch.float32, torch.float64), f"nll is {whole.dtype}; it must be float32 or wider"
    )
    require(bool(torch.isfinite(whole).all()), "nll is not finite")
    hidden = type(batch)(batch.ids, batch.inputs, batch.targets, torch.zeros_like(batch.mask))
    require(bool((family.nll(outputs, hidden) == 0).all()), "masked positions count in nll")
    rows = torch.arange(len(batch)).flip(0)
    flipped = family.nll(outputs.select(rows), batch.select(rows))
    require(torch.allclose(flipped, whole.flip(0)), "an example's nll depends on its neighbors in the batch")


def _no_likelihood(problem: Problem, family: Family, model: nn.Module) -> None:
    batch = _first(problem)
    try:
        family.nll(family.forward(model, batch), batch)
    except BadInput as error:
        require("likelihood" in str(error), f"the error does not say that it has no likelihood: {error}")
    else:
        require(False, "it declares no likelihood and gives one")


def _divergence(problem: Problem, family: Family, model: nn.Module) -> None:
    batch = _first(problem)
    p = family.forward(model, batch).detach()
    q = Outputs(p.prediction + torch.randn(p.prediction.shape, generator=torch.Generator().manual_seed(0)))
    for temperature in (1.0, 2.0):
        same = family.divergence(p, p, batch, temperature)
        require(bool((same.abs() < 1e-6).all()), "D(p‖p) is not zero")
        other = family.divergence(p, q, batch, temperature)
        require(other.shape == (len(batch),), "the divergence is not [B]")
        require(bool((other > 0).all()), "D(p‖q) is not positive for different p and q")


def _relabel(problem: Problem, family: Family, model: nn.Module) -> None:
    batch = _first(problem)
    for how in family.relabelings:
        one = family.relabel(batch, how, torch.Generator().manual_seed(1))
        two = family.relabel(batch, how, torch.Generator().manual_seed(1))
        require(one.targets.shape == batch.targets.shape, f"'{how}' changes the shape of targets")
        require(torch.equal(one.targets, two.targets), f"'{how}' ignores its generator")
        require(
            all(torch.equal(one.inputs[k], batch.inputs[k]) for k in batch.inputs), f"'{how}' changes inputs"
        )


def _layers(problem: Problem, family: Family, model: nn.Module) -> None:
    modules = dict(model.named_modules())
    layers = family.layers(model)
    require(
        bool(layers) and all(layer in modules for layer in layers),
        f"layers {layers} are not all modules of the model",
    )
    require(family.head(model) in modules, f"the head '{family.head(model)}' is no module of the model")
    caught = family.forward(model, _first(problem), layers).hidden
    for layer in layers:
        shape = tuple(caught[layer].shape)
        require(
            len(shape) == 3 and shape[0] == 8,
            f"activations of '{layer}' have shape {shape}, not [B, positions, d]",
        )


def _fits(problem: Problem, family: Family, model: nn.Module) -> None:
    require(not family.layers(model), "it names layers of a model that has no gradients")
    batch = _first(problem)
    answers = []
    for _ in range(2):
        fresh = problem.fresh_model(0)
        family.learn(fresh, problem.train)
        answers.append(family.forward(fresh, batch).prediction)
    require(torch.equal(*answers), "fitted twice to the same rows, with one seed, it says different things")


def _quantities(problem: Problem, family: Family, model: nn.Module) -> None:
    layers = family.layers(model)
    names = [q.replace("LAYER", layers[0] if layers else "") for q in family.quantities]
    require(bool(layers) or "features:" not in names, "it yields features of layers, of which it has none")
    with metered() as meter:
        evidence = collect(family, model, problem.forget, [q for q in names if q not in family.repeated])
    # Texts take a pass of their own, in which the model goes on from each row once.
    passes = bool(family.generated) + bool(set(family.quantities) - family.generated)
    require(
        meter.examples == passes * len(problem.forget),
        f"{meter.examples} examples went through the model for {len(problem.forget)} rows",
    )
    further = collect(family, model, problem.forget, sorted(family.repeated)) if family.repeated else evidence
    for name in names:
        found = further if name in family.repeated else evidence
        require(len(found[name]) == len(problem.forget), f"quantity '{name}' has {len(found[name])} rows")


def _batching(problem: Problem, family: Family, model: nn.Module) -> None:
    names = [q for q in family.quantities if "LAYER" not in q]
    one = collect(family, model, problem.forget, names, batch_size=3)
    two = collect(family, model, problem.forget, names, batch_size=1000)
    for name in names:
        said = [_texts(e[name]) for e in (one, two)]
        if said[0] is not None:
            require(said[0] == said[1], f"'{name}' differs between batch sizes")
            continue
        gap = float(np.abs(_flat(one[name]) - _flat(two[name])).max())
        # Pixels are whole numbers; one that lies between two may be rounded either way.
        allowed = 1.0 if one[name].dtype == np.uint8 else 1e-4
        require(gap <= allowed, f"quantity '{name}' differs by {gap:.1e} between batch sizes")


def _texts(values: np.ndarray) -> list[str] | None:
    """All texts of a quantity, one or several of each row; None where it holds numbers."""
    rows = values.tolist() if values.dtype == object else []
    several = [[row] if isinstance(row, str) else list(row) for row in rows]
    found = [text for row in several for text in row]
    return found if found and all(isinstance(text, str) for text in found) else None


def _flat(values: np.ndarray) -> np.ndarray:
    """All values of a quantity in one row; token-level quantities are arrays of arrays."""
    return np.concatenate(values).astype(float) if values.dtype == object else values.astype(float)


def _refusals(problem: Problem, family: Family, model: nn.Module) -> None:
    batch = _first(problem)
    outputs = family.forward(model, batch)
    attempts = {
        "certainly-no-quantity": lambda: family.observe(outputs, batch, ["certainly-no-quantity"]),
        "certainly-no-relabeling": lambda: family.relabel(
            batch, "certainly-no-relabeling", torch.Generator()
        ),
        "certainly-no-layer": lambda: family.forward(model, batch, ["certainly-no-layer"]),
    }
    for name, attempt in attempts.items():
        try:
            attempt()
        except BadInput as error:
            require(name in str(error), f"the error does not name '{name}': {error}")
        else:
            require(False, f"'{name}' was accepted")


def _gradients(problem: Problem, family: Family, model: nn.Module) -> None:
    parameters = [p for p in model.parameters() if p.requires_grad]
    loss = torch.stack(list(family.losses(model, _first(problem)).values())).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    require(
        any(g is not None and bool((g != 0).any()) for g in gradients),
        "training has no gradient in the model's weights",
    )
