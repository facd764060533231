"""Method: a Problem in, an unlearned model out.

The base class is final where it matters and distrustful: what a method needs is checked before anything is loaded, it
works on a copy, and cost and change are measured outside it.
"""

from __future__ import annotations

import time
from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal, final

import torch
from torch import nn

from expunge.errors import BadInput, ExpungeError
from expunge.families.base import Family, metered
from expunge.families.batches import Batches
from expunge.families.models import Composed, clone, innermost
from expunge.memory import peak_memory
from expunge.methods.lora import SavedAdapter
from expunge.parameters import Parameters
from expunge.problem import Problem
from expunge.registry import Registry

METHODS: Registry[type[Method]] = Registry("method", "expunge.methods", "expunge.exact")

FILTERED = "answers are filtered at inference; the weights still hold the knowledge"
"""What is noted of a model in which the target's weights are unchanged."""

NEEDS = {
    "retain": "a retain set",
    "holdout": "a holdout set (rows of the same kind that were never trained on)",
    "architecture": "a model whose architecture can be built afresh",
    "recipe": "the recipe the target was trained with",
    "labels": "labels of the forget set",
    "concept": "a concept named by prompts",
    "images": "images of the concept (rows with latents)",
}
"""What a method can ask for, and how an error calls it."""


@dataclass(frozen=True)
class Cost:
    """What one run of a method took."""

    seconds: float
    """Wall time of the method itself, preparation included, loading excluded."""
    peak_bytes: int | None
    """Peak memory above the start: of the device where there is one, else of the process; None where unknown."""
    examples: int
    """Examples that went through a model, forward passes only, all models counted."""
    passes: float
    """`examples` divided by the number of training rows."""
    changed: int
    """Parameters whose value changed."""
    parameters: int
    """Parameters in all."""
    stored_bytes: int
    """What has to be kept beside the target to have the unlearned model too: tensors in which a parameter changed or is
    new, or the low-rank adapters that were merged."""


@dataclass(frozen=True)
class Forgotten:
    """The unlearned model and what it took to make it."""

    model: nn.Module
    cost: Cost
    log: list[dict[str, Any]] = field(default_factory=list)
    """Loss terms by step, as logged."""
    notes: list[str] = field(default_factory=list)
    """What a reader of the result should know: nothing selected, stopped early, ..."""
    adapter: SavedAdapter | None = None
    """The low-rank adapters that were merged into the model, where it was trained by them."""


@dataclass
class Workplace:
    """What a method works with besides the problem: seed, device, and where to report and save."""

    seed: int = 0
    device: str = "cpu"
    checkpoint: Path | None = None
    """Folder for checkpoints of long training; None means none are written."""
    reference: Literal["precompute", "live"] = "precompute"
    """Outputs of frozen models: computed once and stored, or computed in every step with the model kept in memory."""
    on_step: Callable[[Mapping[str, Any]], None] | None = None
    secret_noise: bool = False
    """Draw noise on which a guarantee rests from the operating system, so that nobody can draw it again, instead of by the
    seed, which records show."""
    log: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    adapter: SavedAdapter | None = None
    """The low-rank adapters that the run trained, before they were merged."""
    init: int | None = None
    """Seed of the fresh weights of a training from scratch; None means `seed`, which everything else is drawn by."""

    def generator(self, *purpose: int) -> torch.Generator:
        """A random generator of its own for one purpose, fixed by the seed."""
        mixed = self.seed
        for part in purpose:
            mixed = (mixed * 1_000_003 + part + 1) % (1 << 63)
        return torch.Generator().manual_seed(mixed)

    def batches(self, problem: Problem, split: str) -> Batches:
        """Batches of a split, or of `train`."""
        return problem.batches(split, self.device)


class Method(Parameters):
    """Base of everything that forgets. Subclasses declare facts as class variables and hyperparameters as fields."""

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where it was published."""
    kind: ClassVar[Literal["objective", "edit", "exact"]]
    guarantee: ClassVar[str] = "empirical"
    """What holds of the result whatever is measured: ``bitwise`` equal to a model that never saw the forget set, equal up
    to ``numeric (tolerance)``, equal in distribution (``distributional``), ``certified (eps, delta)``, or, ``empirical``,
    nothing that measurements do not show."""
    claims: ClassVar[Literal["removal", "suppression"]] = "removal"
    """What an empirical method means to do: take knowledge out of the weights, or keep it from being said. An audit may lower
    this claim and never raises it."""
    needs: ClassVar[frozenset[str]] = frozenset()
    families: ClassVar[frozenset[str] | None] = None
    """Families it fits; None means every one with a likelihood."""
    gradients: ClassVar[bool] = True
    """Whether it needs models that are differentiable and have layers, where `families` does not say which it fits."""
    composes: ClassVar[bool] = False
    """Whether what it returns may be several models that answer as one, in which the target's weights still stand."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls.title = cls.name
            METHODS.add(cls.name, cls)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:
        """Why this method cannot run on `problem`; empty when it can."""
        found = []
        family = problem.family
        if cls.families is not None and family.name not in cls.families:
            found.append(f"it fits {', '.join(sorted(cls.families))}, not {family.name}")
        elif cls.families is None and cls.gradients and not family.gradients:
            found.append(f"it needs gradients and layers, which {family.name} has not")
        elif cls.families is None and cls.gradients and family.likelihood == "none":
            found.append(f"it needs a likelihood, which {family.name} has not")
        found += [f"it needs {NEEDS[n]}" for n in sorted(cls.needs - problem.offers())]
        return found

    @classmethod
    def fits(cls, family: type[Family] | Family) -> bool:
        """Whether it fits a family at all."""
        if cls.families is not None:
            return family.name in cls.families
        return not cls.gradients or (family.likelihood != "none" and family.gradients)

    def promise(self, problem: Problem) -> str:
        """The guarantee as it holds on `problem`, where it depends on that."""
        return self.guarantee

    @final
    def forget(self, problem: Problem, workplace: Workplace | None = None) -> Forgotten:
        """Forget on a copy of the target; cost and change are measured here, not claimed by the method."""
        workplace = workplace or Workplace()
        obstacles = self.obstacles(problem)
        if obstacles:
            raise BadInput(f"method '{self.name}' cannot run on {problem.name}: {'; '.join(obstacles)}")
        target = problem.target
        # Frozen parameters stay frozen in the copy; the target itself is never handed to a method.
        model = clone(target).to(workplace.device)
        model.eval()
        started = time.perf_counter()
        with metered() as meter, peak_memory(workplace.device) as memory, torch.random.fork_rng(devices=[]):
            torch.manual_seed(workplace.seed)
            produced = self.produce(problem, model, workplace)
        seconds = time.perf_counter() - started
        produced.eval()
        for name, parameter in produced.named_parameters():
            if not torch.isfinite(parameter).all():
                raise ExpungeError(
                    f"method '{self.name}' produced NaN or infinite weights in '{name}'; lower its learning rate or epochs"
                )
        changed, total, stored = changed_parameters(target, produced)
        if workplace.adapter is not None:
            stored = sum(t.nbytes for t in workplace.adapter.weights.values())
        if keeps_target(target, produced):
            workplace.notes.append(FILTERED)
        cost = Cost(
            seconds, memory.bytes, meter.examples, meter.examples / len(problem.train), changed, total, stored
        )
        return Forgotten(produced, cost, workplace.log, workplace.notes, workplace.adapter)

    @abstractmethod
    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:
        """Make the unlearned model; `model` is a private copy of the target that may be changed and returned."""

    def __repr__(self) -> str:
        given = ", ".join(f"{k}={getattr(self, k)!r}" for k in type(self).model_fields)
        return f"{type(self).__name__}({given})"


def keeps_target(target: nn.Module, model: nn.Module) -> bool:
    """Whether `model` is made of more than one model, and the target's own weights stand in it."""
    return isinstance(model, Composed) and not changed_parameters(innermost(target), innermost(model))[0]


def changed_parameters(before: nn.Module, after: nn.Module) -> tuple[int, int, int]:
    """How many parameters have another value (or none to compare with), how many there are, and the bytes of changed tensors.

    The base of a composed model is compared with the model that it was.
    """
    old = dict(before.named_parameters())
    inside = {id(p): name for name, p in innermost(after).named_parameters()}
    changed = total = stored = 0
    for name, parameter in after.named_parameters():
        total += parameter.numel()
        other = old.get(name, old.get(inside.get(id(parameter), "")))
        if other is None or other.shape != parameter.shape:
            different = parameter.numel()
        else:
            different = int((parameter.detach().cpu() != other.detach().cpu()).sum())
        changed += different
        stored += parameter.nbytes if different else 0
    return changed, total, stored


class Edit(Method):
    """A closed-form or one-shot change of the weights, in place."""

    kind = "edit"

    @final
    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        self.edit(problem, model, workplace)
        return model

    @abstractmethod
    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:
        """Change `model`, a private copy of the target in eval mode, in place."""
