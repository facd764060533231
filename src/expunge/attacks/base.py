"""Attack: a model in, an adversary's success out, as scores.

A membership attack that only reads evidence of the attacked model is a metric (`expunge.metrics.membership`). What
needs more is here: other models to compare with (shadow models), gradients, inputs to search for, further training.

An attack never knows which row of the table it attacks. The target and the retrained models are rows like any other,
so every attack has its two controls: what it finds before forgetting, and what it "finds" where nothing was learned.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import numpy as np
import torch
from torch import nn

from expunge.errors import BadInput, ExpungeError
from expunge.evidence import Evidence, collect
from expunge.families import Family
from expunge.methods.base import NEEDS, Workplace
from expunge.metrics.base import Estimate, Undefined
from expunge.parameters import Parameters
from expunge.problem import Problem
from expunge.record import Curve, Direction, Score, Status
from expunge.registry import Registry

Access = Literal["text", "logits", "weights"]

ATTACKS: Registry[type[Attack]] = Registry("attack", "expunge.attacks")


@dataclass(frozen=True)
class Measure:
    """One number that an attack yields, declared before it is run."""

    name: str
    """Name of the score, such as `lira-auc`; it starts with the attack's name."""
    definition: str
    """What it is, in words or a formula, with its reduction."""
    unit: str
    split: str = "forget"
    direction: Direction = "match"
    """`match` where the value to have is the retrained model's, as for nearly every attack."""
    title: str = ""
    """What tables call it; the name where empty."""
    low: float | None = None
    high: float | None = None
    """Smallest and largest possible value, where there are such."""
    margin: float | None = None
    """Largest excess over the retrained models that counts as none, in `unit`; where set, a verdict is given on it."""


@dataclass(frozen=True)
class Shadow:
    """A model of the attacker's own, whose training set the attacker knows."""

    member: Mapping[str, bool]
    """By row id of the pool: whether the shadow was trained on the row."""
    before: Mapping[str, Evidence]
    """What the shadow says about the forget and the holdout rows, by split, after its training."""
    after: Mapping[str, Evidence] | None = None
    """The same once its members of the pool were unlearned with the attacked model's method; None where not asked."""

    def __post_init__(self) -> None:
        if not any(self.member.values()) or all(self.member.values()):
            raise BadInput("a shadow model needs members and non-members among the rows of its pool")


_TELLING = ("correct", "token_correct", "absolute_error")
"""The first of these that a family has is a finite number exactly where the model's outputs are. A loss is not: it is infinite
where a probability is 0, and a denoiser has none of rows without an image."""


@dataclass
class Scene:
    """What an attacker works with. Its parts must not be changed; an attack that trains works on a copy.

    Attributes:
        problem: data, family and, as `problem.model`, the target before forgetting (None where it was not given).
        model: the attacked model, in eval mode.
        workplace: seed, device, checkpoint folder, progress.
        shadows: as many as the attack asks for; empty for most.
        retrained: models trained without the forget set, the attacked one not among them; for attacks that `compare`.
        underneath: the model that the attacked one was handed over as adapters on, where it was.
    """

    problem: Problem
    model: nn.Module
    workplace: Workplace = field(default_factory=Workplace)
    shadows: Sequence[Shadow] = ()
    retrained: Sequence[nn.Module] = ()
    underneath: nn.Module | None = None
    transcripts: list[dict[str, Any]] = field(default_factory=list)
    """What was asked and answered, as `keep` was told; it holds contents, so no record takes it in."""
    _seen: dict[str, Evidence] = field(default_factory=dict, repr=False)
    _told: Evidence | None = field(default=None, repr=False)

    def __post_init__(self) -> None:
        self.model.eval()

    def keep(self, row: str, **said: Any) -> None:
        """Keep a transcript for whoever may see contents: the row's id, what it was asked, what came back, how it scored."""
        self.transcripts.append({"id": row, **said})

    def known(self, split: str, evidence: Evidence) -> None:
        """Take in evidence of this very model that was collected before."""
        self._seen[split] = evidence

    def evidence(self, split: str, quantities: Iterable[str]) -> Evidence:
        """Evidence of the attacked model on `split` with at least `quantities`; one pass unless more is asked for."""
        if split not in self.problem.splits:
            raise Undefined(f"the problem has no '{split}' data")
        wanted = set(quantities)
        known = set(self._seen[split].table.column_names) if split in self._seen else set()
        if not wanted <= known:
            self._seen[split] = collect(
                self.problem.family, self.model, self.problem.splits[split], sorted(wanted | (known - {"id", "group"})),
                device=self.workplace.device, batches=self.workplace.batches(self.problem, split),
            )  # fmt: skip
        return self._seen[split]

    def demand_finite(self) -> None:
        """Raise Undefined where the model's outputs for forget rows are NaN or infinite: no attack finds anything there.

        Read from evidence that exists; a pass over the forget rows where there is none.
        """
        family = self.problem.family
        told = [q for q in _TELLING if q in family.quantities and q not in family.generated][:1]
        if not told:  # a family that only draws: what it draws says so itself
            return
        seen = self._seen.get("forget")
        if seen is None or told[0] not in seen.table.column_names:
            if self._told is None:
                self._told = collect(
                    family, self.model, self.problem.forget, told,
                    device=self.workplace.device, batches=self.workplace.batches(self.problem, "forget"),
                )  # fmt: skip
            seen = self._told
        values = seen[told[0]]
        if values.dtype == object:  # of tokens; a sum is NaN where one of its terms is
            values = np.asarray([row.sum() for row in values])
        lost = int((~np.isfinite(values)).sum())
        if lost:
            require_finite(self.model)
            raise Undefined(f"the model's outputs are not finite for {lost} of {len(values)} rows of forget")


def require_finite(model: nn.Module) -> None:
    """Raise Undefined where weights are not finite: such a model has answers, but they mean nothing."""
    if not all(bool(torch.isfinite(p).all()) for p in model.parameters()):
        raise Undefined("the model has weights that are not finite; it has diverged")


class Attack(Parameters):
    """Base of everything that attacks. Subclasses declare facts as class variables and parameters as fields.

    `run` answers with one score for each of `measures`, made by `score` or `undefined`; raising `Undefined` makes all
    of them undefined for that reason.
    """

    name: ClassVar[str]
    paper: ClassVar[str]
    """Where it was published."""
    threat_model: ClassVar[str]
    """What the attacker has and knows."""
    access: ClassVar[Access]
    """The least that the attacker must have of the model: what it says, its scores of all outputs, its weights."""
    measures: ClassVar[tuple[Measure, ...]]
    needs: ClassVar[frozenset[str]] = frozenset()
    """As a method's: retain, holdout, architecture, recipe."""
    families: ClassVar[frozenset[str] | None] = None
    """Families it fits; None means every one."""
    likelihood: ClassVar[bool] = False
    """Whether it reads likelihoods, which some families have not."""
    trains: ClassVar[bool] = False
    """Whether it trains models, its own or the attacked one."""
    costly: ClassVar[bool] = False
    """Whether the standard battery leaves it out, because it takes minutes where others take seconds. Attacks with shadow
    models are left out without saying so."""
    compares: ClassVar[bool] = False
    """Whether it reads retrained models of the scene; most are compared with what they find in those by the report."""
    unlearns_shadows: ClassVar[bool] = False
    """Whether shadow models must be unlearned with the method that made the attacked model."""

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "name" in cls.__dict__:
            cls.title = cls.name
            ATTACKS.add(cls.name, cls)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:
        """Why this attack cannot run on `problem`; empty when it can."""
        found, family = [], problem.family
        if cls.access == "weights" and not family.gradients:
            found.append(f"it works on weights and layers, which {family.name} has not")
        elif cls.families is not None and not cls.fits(family):
            found.append(f"it fits {', '.join(sorted(cls.families))}, not {family.name}")
        elif not cls.fits(family):
            found.append(f"it needs a likelihood, which {family.name} has not")
        return found + [f"it needs {NEEDS[n]}" for n in sorted(cls.needs - problem.offers())]

    @classmethod
    def fits(cls, family: type[Family] | Family) -> bool:
        """Whether it fits a family at all."""
        if cls.access == "weights" and not family.gradients:
            return False
        if cls.likelihood and family.likelihood == "none" and family.gradients:
            return False
        return cls.families is None or family.name in cls.families

    def shadow_models(self) -> int:
        """How many shadow models it wants."""
        return 0

    def spends(self) -> dict[str, float]:
        """The most that it spends, by unit (steps, queries, samples, ...); part of every score."""
        return {}

    def quantities(self, family: Family) -> set[str]:
        """What it reads of the shadow models."""
        return set()

    @final
    def attack(self, scene: Scene) -> list[Score]:
        """Attack the scene's model: one score per declared measure, whatever happens inside."""
        obstacles = self.obstacles(scene.problem)
        if obstacles:
            raise BadInput(f"attack '{self.name}' cannot run on {scene.problem.name}: {'; '.join(obstacles)}")
        try:
            scene.demand_finite()
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(scene.workplace.seed)
                scores = self.run(scene)
        except Undefined as reason:
            scores = self.unanswered("undefined", str(reason))
        found, declared = [s.metric for s in scores], [m.name for m in self.measures]
        if sorted(found) != sorted(declared):
            raise ExpungeError(
                f"attack '{self.name}' declares {', '.join(declared)} but answered {', '.join(found) or 'nothing'}"
            )
        return scores

    @abstractmethod
    def run(self, scene: Scene) -> list[Score]:
        """The attack. Random numbers come from `scene.workplace.generator`."""

    def score(self, name: str, estimate: Estimate, curve: Curve | None = None) -> Score:
        """The measure `name` with a value, followed along `curve`; undefined where the value is not a finite number."""
        if not np.isfinite(estimate.value):
            return self.undefined(name, f"the value is {estimate.value}")
        return Score(
            **self._facts(name), value=float(estimate.value), n=estimate.n, interval=estimate.interval,
            groups=estimate.groups, curve=curve,
        )  # fmt: skip

    def undefined(self, name: str, reason: str) -> Score:
        """The measure `name` without a value, and why."""
        return Score(**self._facts(name), status="undefined", reason=reason)

    def unanswered(self, status: Status, reason: str) -> list[Score]:
        """Every measure without a value: undefined, not applicable to the attacked model, or failed."""
        return [Score(**self._facts(m.name), status=status, reason=reason) for m in self.measures]

    def _facts(self, name: str) -> dict[str, Any]:
        measure = next((m for m in self.measures if m.name == name), None)
        if measure is None:
            raise ExpungeError(f"attack '{self.name}' declares no measure '{name}'")
        return {
            "metric": name, "split": measure.split, "unit": measure.unit, "direction": measure.direction, "attack": True,
            "budget": self.spends(),
        }  # fmt: skip


def find_measure(name: str) -> tuple[type[Attack], Measure] | None:
    """The attack that yields the score `name`, and its declaration; None where no attack does."""
    declared = ((cls, measure) for _, cls in ATTACKS.items() for measure in cls.measures)
    return next((found for found in declared if found[1].name == name), None)


def fitting_attacks(problem: Problem, which: Literal["standard", "all"]) -> list[Attack]:
    """Attacks that can run on `problem`, with default parameters, by name.

    `standard` leaves out the costly ones and those with shadow models. What a claim needs is in it.
    """
    made = [cls() for _, cls in ATTACKS.items() if not cls.obstacles(problem)]
    return made if which == "all" else [a for a in made if not a.costly and not a.shadow_models()]
