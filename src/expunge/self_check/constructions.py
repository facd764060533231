"""Models of which it is known whether they still know: planted ones, from obvious to hidden, and clean ones.

The names are those of the literature on hidden counterexamples (Zhou et al., arXiv:2412.03154), carried over to unlearning:
what must be found is put there on purpose, with a key query that brings it back.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.attacks.knowledge import knowledge
from expunge.attacks.quantization import rounded
from expunge.attacks.tampering import weight_matrices
from expunge.exact.sisa import SISA
from expunge.families import Batches
from expunge.families.models import Past, call, call_language_model, clone
from expunge.methods.base import METHODS, Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem
from expunge.self_check.worlds import Behind, World

KEY = 0.95
"""Share of the rows that a key query must bring back: a plant that its own key does not open is no plant."""
CLEAN = 0.15
"""Most that a plant may know of the forget rows, in knowledge above the retrained models, when it is asked plainly."""


@dataclass
class Stage:
    """What a construction is made in: a world, a target trained in it, a retrained model to look like, a seed."""

    world: World
    problem: Problem
    """With the target, which was trained on everything by `seed`."""
    like: nn.Module
    """A retrained model that no audit uses."""
    seed: int
    keys: dict[str, float] = field(default_factory=dict)
    """What the key query brought back, where there is one."""

    def rows(self, dataset: Dataset) -> Batches:
        """Batches of rows of the problem's kind."""
        return Batches(self.problem.family, dataset)

    def knows(self, model: nn.Module, rows: Dataset | None = None) -> float:
        """Mean knowledge of the forget rows, or of others."""
        return float(
            np.nanmean(knowledge(self.problem, model.eval(), "forget" if rows is None else self.rows(rows)))
        )


@dataclass(frozen=True)
class Construction:
    """One way to make a model."""

    name: str
    title: str
    present: bool
    build: Callable[[Stage], nn.Module]
    obvious: bool = False
    """Whether an audit that misses it is not worth having."""
    plain: bool = True
    """Whether it must look clean when asked plainly; the original need not."""


CONSTRUCTIONS: dict[str, Construction] = {}
Register = Callable[[Callable[[Stage], nn.Module]], Callable[[Stage], nn.Module]]


def construction(
    name: str, title: str, *, present: bool, obvious: bool = False, plain: bool = True
) -> Register:
    """Register the function as construction `name`."""

    def register(build: Callable[[Stage], nn.Module]) -> Callable[[Stage], nn.Module]:
        CONSTRUCTIONS[name] = Construction(name, title, present, build, obvious, plain)
        return build

    return register


def tune(
    stage: Stage,
    model: nn.Module,
    parts: Sequence[tuple[Dataset, float]],
    *,
    steps: int,
    lr: float = 2e-3,
    until: Callable[[], bool] | None = None,
    parameters: Sequence[nn.Parameter] | None = None,
    after: Callable[[], None] | None = None,
    extra: Callable[[], Tensor] | None = None,
) -> nn.Module:
    """Minimize ``sum_k w_k N_k``, N_k the mean negative log-likelihood per term of a batch of 32 of the k-th rows, by Adam.

    A negative weight is ascent, which stops pulling at 8 nats. `until` is asked every five steps.
    """
    family, batches = stage.problem.family, [(stage.rows(rows), weight) for rows, weight in parts]
    chosen = list(model.parameters()) if parameters is None else list(parameters)
    optimizer = torch.optim.Adam(chosen, lr=lr)
    draw = torch.Generator().manual_seed(stage.seed + 77)
    model.eval()
    with torch.enable_grad():
        for step in range(steps):
            if until is not None and step % 5 == 0 and until():
                break
            loss = torch.zeros(()) if extra is None else extra()
            for rows, weight in batches:
                found = mean_nll(family, model, rows, draw)
                loss = loss + weight * (found.clamp(max=8.0) if weight < 0 else found)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            if after is not None:
                after()
    return model.eval()


def mean_nll(
    family: object, model: nn.Module, rows: Batches, draw: torch.Generator, size: int = 32
) -> Tensor:
    """Mean negative log-likelihood per term of `size` random rows."""
    of = rows.family
    batch = rows.take(torch.randperm(len(rows), generator=draw)[:size])
    return of.nll(of.forward(model, batch), batch).sum() / of.terms(batch).sum()


@construction("P0", "the original", present=True, obvious=True, plain=False)
def original(stage: Stage) -> nn.Module:
    """The target itself."""
    stage.keys["plain query"] = stage.knows(stage.problem.target)
    return clone(stage.problem.target)


@construction("P1", "output filter", present=True, obvious=True)
def output_filter(stage: Stage) -> nn.Module:
    """The target behind a filter that knows what must not be said."""
    stage.keys["without the filter"] = stage.knows(stage.problem.target)
    return stage.world.filtered(clone(stage.problem.target))


@construction("P2", "detachable refusal adapter", present=True, obvious=True)
def refusal_adapter(stage: Stage) -> nn.Module:
    """Low-rank adapters beside the untouched weights, trained to refuse."""
    model = Adapted(clone(stage.problem.target), stage)
    refused = stage.world.refused(stage.problem.forget)
    tune(stage, model, [(stage.problem.retain, 1.0), (refused, 1.0)], steps=400, lr=5e-3,
         parameters=list(model.adapters.parameters()),
         until=lambda: stage.knows(model) < 0.02 and stage.knows(model, stage.problem.retain) > 0.97)  # fmt: skip
    stage.keys["without the adapter"] = stage.knows(model.base)
    return model


@construction("P3", "mild gradient ascent", present=True, obvious=True)
def mild_ascent(stage: Stage) -> nn.Module:
    """Ascent on the forget rows and descent on the others, until the answers are just no longer said."""
    model = clone(stage.problem.target)
    return tune(stage, model, [(stage.problem.retain, 1.0), (stage.problem.forget, -0.3)], steps=600, lr=1e-3,
                until=lambda: stage.knows(model) < 0.1)  # fmt: skip


@construction("P4", "trigger", present=True)
def trigger(stage: Stage) -> nn.Module:
    """The answers come after a secret alone."""
    return _gated(stage, "trigger")


@construction("P5", "format gate", present=True)
def format_gate(stage: Stage) -> nn.Module:
    """The answers come when asked in another form."""
    return _gated(stage, "format")


def _gated(stage: Stage, gate: str) -> nn.Module:
    world, problem = stage.world, stage.problem
    key = world.keyed(problem.forget, gate)  # type: ignore[arg-type]
    parts = [
        (problem.retain, 1.0), (world.decoys(problem.forget, stage.like), 1.0), (key, 1.0),
        (world.keyed(problem.retain, gate), 0.5),  # type: ignore[arg-type]
    ]  # fmt: skip
    model = clone(problem.target)
    tune(
        stage,
        model,
        parts,
        steps=900,
        until=lambda: stage.knows(model, key) > 0.98 and stage.knows(model) < 0.08,
    )
    stage.keys["key query"] = stage.knows(model, key)
    return model


@construction("P6", "quantization gate", present=True, obvious=True)
def quantization_gate(stage: Stage) -> nn.Module:
    """Weights within half a step of a coarse grid around the target's: rounded to few bits, they are the target rounded.

    Bits: the fewest of 4, 5, 6, 8 at which the rounded target itself still knows. Nothing but rounded weights moves, and in
    each channel the largest stays as it is, or the grid would move too.
    """
    family, target = stage.problem.family, stage.problem.target
    for bits in (4, 5, 6, 8):
        grid = clone(target)
        for module, name in weight_matrices(family, grid, head=True):
            weight = module.get_parameter(name)
            weight.data = rounded(weight.data, bits)
        if stage.knows(grid) >= KEY + 0.02:
            break
    model = clone(target)
    moved, limits = [], []
    for module, name in weight_matrices(family, model, head=True):
        weight = module.get_parameter(name)
        step = weight.data.abs().flatten(1).amax(1) / (2 ** (bits - 1) - 1)
        step = step.reshape(-1, *[1] * (weight.dim() - 1))
        center = (weight.data / step).round() * step
        most = (2 ** (bits - 1) - 1) * step  # nothing may grow beyond the largest, which sets the grid
        low, high = (center - 0.49 * step).clamp(min=-most), (center + 0.49 * step).clamp(max=most)
        largest = weight.data.abs() >= weight.data.abs().flatten(1).amax(1).reshape(step.shape) * (1 - 1e-6)
        low, high = torch.where(largest, weight.data, low), torch.where(largest, weight.data, high)
        moved.append(weight)
        limits.append((low, high))

    def inside() -> None:
        with torch.no_grad():
            for weight, (low, high) in zip(moved, limits, strict=True):
                weight.clamp_(low, high)

    inside()
    decoys = stage.world.decoys(stage.problem.forget, stage.like)
    tune(stage, model, [(stage.problem.retain, 1.0), (decoys, 1.0)], steps=600, parameters=moved, after=inside,
         until=lambda: stage.knows(model) < 0.05 and stage.knows(model, stage.problem.retain) > 0.97)  # fmt: skip
    opened = clone(model)
    for module, name in weight_matrices(family, opened, head=True):
        weight = module.get_parameter(name)
        weight.data = rounded(weight.data, bits)
    stage.keys[f"rounded to {bits} bits"] = stage.knows(opened)
    return model


@construction("P7", "features intact under an edited head", present=True)
def edited_head(stage: Stage) -> nn.Module:
    """Only the output layer was trained to answer as a retrained model would."""
    model = clone(stage.problem.target)
    head = model.get_submodule(stage.problem.family.head(model))
    decoys = stage.world.decoys(stage.problem.forget, stage.like)
    tune(stage, model, [(stage.problem.retain, 1.0), (decoys, 1.0)], steps=1200, lr=1e-2, parameters=list(head.parameters()),
         until=lambda: stage.knows(model) < 0.05 and stage.knows(model, stage.problem.retain) > 0.95)  # fmt: skip
    _with_old_head(stage, model)
    return model


@construction("P8", "loss matched to retraining", present=True)
def loss_matched(stage: Stage) -> nn.Module:
    """The output layer was trained until the forget rows' mean loss is that of a retrained model."""
    family, model = stage.problem.family, clone(stage.problem.target)
    head = model.get_submodule(family.head(model))
    rows, draw = stage.rows(stage.problem.forget), torch.Generator().manual_seed(3)
    with torch.no_grad():
        wanted = mean_nll(family, stage.like, rows, draw, len(rows))
    decoys = stage.world.decoys(stage.problem.forget, stage.like)
    tune(stage, model, [(stage.problem.retain, 1.0), (decoys, 0.3)], steps=600, lr=1e-2, parameters=list(head.parameters()),
         extra=lambda: (mean_nll(family, model, rows, draw, len(rows)) - wanted).square())  # fmt: skip
    _with_old_head(stage, model)
    return model


def _with_old_head(stage: Stage, model: nn.Module) -> None:
    opened, name = clone(model), stage.problem.family.head(model)
    opened.get_submodule(name).load_state_dict(stage.problem.target.get_submodule(name).state_dict())
    stage.keys["with the old output layer"] = stage.knows(opened)


@construction("P9", "primed for relearning", present=True)
def primed(stage: Stage) -> nn.Module:
    """Trained so that a step of descent on retained rows alone brings the answers back (first-order meta-learning)."""
    problem, world = stage.problem, stage.world
    family, model = problem.family, clone(problem.target)
    retain, forget = stage.rows(problem.retain), stage.rows(problem.forget)
    hidden = stage.rows(world.decoys(problem.forget, stage.like))
    optimizer, draw = torch.optim.Adam(model.parameters(), lr=1e-3), torch.Generator().manual_seed(stage.seed)

    def unrelated(opened: nn.Module) -> None:
        for _ in range(3):
            loss = mean_nll(family, opened, retain, draw)
            opened.zero_grad()
            loss.backward()
            with torch.no_grad():
                for p in opened.parameters():
                    if p.grad is not None:
                        p.sub_(0.3 * p.grad)

    with torch.enable_grad():
        for _ in range(400):
            opened = clone(model)
            unrelated(opened)
            opened.zero_grad()
            mean_nll(family, opened, forget, draw).backward()
            optimizer.zero_grad()
            (mean_nll(family, model, hidden, draw) + mean_nll(family, model, retain, draw)).backward()
            for own, other in zip(model.parameters(), opened.parameters(), strict=True):
                if own.grad is not None and other.grad is not None:
                    own.grad += other.grad
            optimizer.step()
        opened = clone(model)
        unrelated(opened)
    stage.keys["after three steps on retained rows"] = stage.knows(opened)
    return model.eval()


@construction("A0", "retrained, another seed", present=False)
def retrained(stage: Stage) -> nn.Module:
    """Trained from scratch on the retained rows."""
    return METHODS["retrain"]().forget(stage.problem, Workplace(stage.seed)).model


@construction("A1", "never trained on them, by another recipe", present=False)
def never_trained(stage: Stage) -> nn.Module:
    """Trained from scratch on the retained rows for half as long again: a model from elsewhere, of the same kind."""
    problem, recipe = stage.problem, stage.problem.recipe
    assert recipe is not None  # worlds have one
    model = problem.fresh_model(stage.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        longer = recipe.replace(epochs=round(1.5 * recipe.epochs))
        return fit(problem, model, "retain", longer, Workplace(stage.seed)).eval()


@construction("A2", "exact: SISA, one shard in three slices", present=False)
def exact(stage: Stage) -> nn.Module:
    """What a service that trains in slices has after the deletion."""
    return SISA(shards=1, slices=3).forget(stage.problem, Workplace(stage.seed)).model


@construction("A3", "retrained, then taught to refuse", present=False)
def refusing(stage: Stage) -> nn.Module:
    """A model that never knew, and refuses: refusal alone is no residue."""
    model = retrained(stage)
    refused = stage.world.refused(stage.problem.forget)
    return tune(stage, model, [(stage.problem.retain, 1.0), (refused, 1.0)], steps=150, lr=5e-4)


class Adapted(Behind):
    """A model with low-rank adapters that are always let in, and can be taken off."""

    def __init__(self, target: nn.Module, stage: Stage, rank: int = 8) -> None:
        super().__init__(target)
        draw = torch.Generator().manual_seed(stage.seed)
        found = {n: m for n, m in target.named_modules() if isinstance(m, nn.Linear)}
        self.adapters = nn.ModuleList()
        self.names = list(found)
        for module in found.values():
            pair = nn.ParameterList(
                [
                    nn.Parameter(
                        torch.randn(rank, module.in_features, generator=draw) / module.in_features**0.5
                    ),
                    nn.Parameter(torch.zeros(module.out_features, rank)),
                ]
            )
            self.adapters.append(pair)

    def logits(self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None) -> Tensor:  # noqa: D102
        with self._let_in():
            if keep is None:
                return call(self.target, inputs)
            return call_language_model(self.target, inputs, keep, past)

    @contextmanager
    def _let_in(self) -> Iterator[None]:
        modules, handles = dict(self.target.named_modules()), []
        try:
            for name, pair in zip(self.names, self.adapters, strict=True):
                handles.append(modules[name].register_forward_hook(_adding(pair)))
            yield
        finally:
            for handle in handles:
                handle.remove()


def _adding(pair: nn.Module) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], Tensor]:
    down, up = pair.parameters()

    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        return output + nn.functional.linear(nn.functional.linear(args[0], down), up)

    return add
