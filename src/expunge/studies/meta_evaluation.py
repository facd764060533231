"""Meta-evaluation: which metrics and attacks tell models that know the forget set from models that never saw it?

Two pools of models, trained alike but for the forget set, say how *faithful* a number is: the AUC with which it tells one
pool from the other. Models unlearned by a method say how *robust* it is: a number that relearning or rounding of the
weights throws about, in another way than it does in retrained models, measured suppression. (Dorna et al. 2025,
arXiv:2506.12618; the symmetric formulas of Lee, Kim & Jo, 2026, arXiv:2605.24614.)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
from pydantic import Field
from torch import nn

from expunge.attacks import Attack, Scene
from expunge.attacks.knowledge import knowledge
from expunge.attacks.quantization import Quantization
from expunge.errors import BadInput, Missing
from expunge.evidence import Evidence, collect
from expunge.families.models import clone
from expunge.files import write_atomic
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.metrics.base import Metric, Role
from expunge.problem import Problem
from expunge.record import Interval, Record, Score, environment
from expunge.stats.intervals import delong
from expunge.studies.battery import identity
from expunge.studies.graph import quantities
from expunge.studies.kept import Kept
from expunge.studies.sources import code_digest, source_digest

FEWEST = 3
"""Models that each pool must have."""


CODE = (
    "families", "evidence", "metrics", "attacks", "methods/loop.py", "problem.py", "stats/intervals.py",
    "studies/meta_evaluation.py",
)  # fmt: skip
"""What the numbers depend on, besides methods: changed code must not meet old results."""


class Quality(Record):
    """How well one number does."""

    metric: str
    kind: Literal["metric", "attack"]
    unit: str
    knowing: list[float] = Field(description="its values in the models that know")
    ignorant: list[float] = Field(description="and in those that never saw the forget set")
    auc: float | None = Field(
        default=None,
        description="faithfulness: AUC of telling the pools apart, oriented by a pair of models outside them",
    )
    interval: Interval | None = Field(default=None, description="DeLong's, over models")
    relearning: float | None = Field(default=None, description="robustness under relearning, in [0, 1]")
    quantization: float | None = Field(default=None, description="robustness under 4-bit rounding, in [0, 1]")
    overall: float | None = Field(default=None, description="harmonic mean of the three")
    reason: str = Field(default="", description="why there is no faithfulness")


class MetaEvaluation(Record):
    """All numbers on one problem."""

    kind: Literal["meta-evaluation"] = "meta-evaluation"
    problem: dict[str, Any] = Field(
        description="facts of the problem: counts and fingerprints, never contents"
    )
    models: int = Field(description="models in each pool")
    unlearned: list[str] = Field(description="methods whose models robustness is measured on")
    left_out: list[str] = Field(description="methods whose models had lost too much of the retained rows")
    qualities: list[Quality]
    environment: dict[str, Any] = Field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_atomic(path, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> MetaEvaluation:
        """Read what `write` wrote."""
        if not path.is_file():
            raise BadInput(f"no meta-evaluation at '{path}'")
        return cls.model_validate_json(path.read_text())


def relearning_robustness(unlearned: float, retrained: float) -> float:
    """``1 - |a - b| / (|a| + |b|)`` of the changes that relearning makes to a number; 1 where nothing changes.

    a is the change in unlearned, b in retrained models: 1 where both learn alike, 0 where one alone changes or they
    change in opposite directions.
    """
    total = abs(unlearned) + abs(retrained)
    return 1.0 if total < 1e-12 else 1 - min(1.0, abs(unlearned - retrained) / total)


def quantization_robustness(before: float, after: float) -> float:
    """``1 - |after - before| / (|before| + |after|)``: 1 where rounding of the weights changes nothing."""
    total = abs(before) + abs(after)
    return 1.0 if total < 1e-12 else 1 - min(1.0, abs(after - before) / total)


def faithfulness(
    knowing: Sequence[float], ignorant: Sequence[float], pair: tuple[float, float]
) -> tuple[float, Interval | None]:
    """AUC of telling `knowing` from `ignorant` values, and its interval over models.

    `pair` is a knowing and an ignorant model's value from outside the pools: it says which way the number points. To
    orient by the pools themselves would make 1/2 the least that can be found. Equal: it points nowhere, AUC 1/2.
    """
    if pair[0] == pair[1]:
        return 0.5, None
    sign = np.sign(pair[0] - pair[1])
    return delong(sign * np.asarray(knowing), sign * np.asarray(ignorant))


class _Gauge:
    """Measures a model by every metric and attack; the target and the retrained model it compares with are always the same."""

    def __init__(
        self,
        problem: Problem,
        metrics: Sequence[Metric],
        attacks: Sequence[Attack],
        retrained: nn.Module,
        kept: Kept,
    ) -> None:
        self.problem, self.attacks, self.retrained, self.kept = problem, attacks, retrained, kept
        self.metrics = [m for m in metrics if "forget" in m.splits]
        self.asked = [[m.name for m in self.metrics], [[a.name, a.model_dump(mode="json")] for a in attacks]]
        roles: tuple[Role, ...] = ("model", "target", "retrained", "fresh")
        self.wanted = quantities(self.metrics, problem, roles)
        fixed: dict[Role, nn.Module] = {"target": problem.target, "retrained": retrained}
        if problem.architecture is not None:
            fixed["fresh"] = problem.fresh_model(104_729)
        self.fixed = {role: self._look(model) for role, model in fixed.items()}

    def _look(self, model: nn.Module) -> dict[str, Evidence]:
        return {
            split: collect(
                self.problem.family, model, self.problem.splits[split], sorted(found),
                batches=self.problem.batches(split, quantities=sorted(found)),
            )
            for split, found in sorted(self.wanted.items())
        }  # fmt: skip

    def __call__(self, model: nn.Module) -> dict[str, Score]:
        """Every score about the forget rows, by name."""
        compared = [identity(m, self.problem) for m in (self.problem.target, self.retrained, model)]
        return _read(
            self.kept.content(["scores", compared, self.asked], lambda: _written(self._measured(model)))
        )

    def _measured(self, model: nn.Module) -> dict[str, Score]:
        seen = self._look(model)
        evidence: dict[tuple[Role, str], list[Evidence]] = {}
        for role, looked in {"model": seen, **self.fixed}.items():
            for split, found in looked.items():
                evidence[cast(Role, role), split] = [found]
        scores = [metric("forget", evidence) for metric in self.metrics]
        for attack in self.attacks:
            scene = Scene(self.problem, model, Workplace(), retrained=[self.retrained])
            scores += [s for s in attack.attack(scene) if s.split == "forget"]
        return {score.metric: score for score in scores}


def _written(scores: dict[str, Score]) -> dict[str, Any]:
    return {name: score.model_dump(mode="json") for name, score in scores.items()}


def _read(content: dict[str, Any]) -> dict[str, Score]:
    return {name: Score.model_validate(score) for name, score in content.items()}


def meta_evaluation(
    problem: Problem,
    metrics: Sequence[Metric],
    attacks: Sequence[Attack],
    methods: Sequence[tuple[str, Method]] = (),
    *,
    models: int = 5,
    utility: float = 0.8,
    folder: Path | None = None,
    notice: Callable[[str], None] = lambda _: None,
) -> MetaEvaluation:
    """Train the pools, and judge every metric and attack that says something about the forget rows.

    Args:
        problem: with a recipe and an architecture; a model of it is not used.
        metrics: those to judge.
        attacks: those to judge; shadow models are not trained, and attacks that need them are left out.
        methods: by label, what makes the unlearned models of the robustness, one each; without any it is undefined.
        models: in each pool. Two more of each are trained: what metrics compare with, and a
            pair that says which way they point.
        utility: share of the target's knowledge of retained rows that an unlearned model must keep to be counted.
        folder: where models and measurements are kept; the same call again goes on from there.
        notice: told what is going on.
    """
    if models < FEWEST:
        raise BadInput(f"a pool of {models} models tells no number from another; take at least {FEWEST}")
    if problem.recipe is None or problem.architecture is None:
        raise Missing(f"{problem.name}: the pools are trained here, which takes a recipe and an architecture")
    problem, kept = (
        replace(problem, model=None),
        Kept(folder, [problem.fingerprint, torch.__version__, torch.get_num_threads(), code_digest(*CODE)]),
    )
    notice(f"training {2 * models + 4} models")
    pools: dict[str, list[nn.Module]] = {"knowing": [], "ignorant": []}
    for seed in range(models + 1):
        pools["knowing"].append(_trained(problem, "train", seed, kept))
        # Seeds of their own: two models must not share their initial weights.
        pools["ignorant"].append(_trained(problem, "retain", 1000 + seed, kept))
    target, retrained = (pools[name].pop() for name in ("knowing", "ignorant"))
    problem = problem.with_model(target)
    fitting = [a for a in attacks if not a.obstacles(problem) and not a.shadow_models()]
    gauge = _Gauge(problem, metrics, fitting, retrained, kept)
    notice("measuring")
    twins = (_trained(problem, "train", models + 1, kept), _trained(problem, "retain", 1001 + models, kept))
    pair = (gauge(twins[0]), gauge(twins[1]))
    found = {name: [gauge(model) for model in pool] for name, pool in pools.items()}
    unlearned, left_out = _unlearned(gauge, methods, utility, notice)
    changes = _Changes(gauge, list(unlearned.values()), pools["ignorant"][:FEWEST]) if unlearned else None
    kinds = {m.name: m.unit for m in gauge.metrics}
    made = [_quality(name, "metric" if name in kinds else "attack", pair, found, changes) for name in pair[0]]
    made.sort(key=lambda q: (-(q.overall or -1), -(q.auc or -1), q.metric))
    return MetaEvaluation(
        problem=problem.card(), models=models, unlearned=list(unlearned), left_out=left_out,
        qualities=made, environment=environment(),
    )  # fmt: skip


def _trained(problem: Problem, split: Literal["train", "retain"], seed: int, kept: Kept) -> nn.Module:
    def train() -> nn.Module:
        recipe = problem.recipe
        assert recipe is not None  # asked for before
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return fit(problem, problem.fresh_model(seed), split, recipe, Workplace(seed))

    return kept.model(["trained", split, seed], lambda: problem.fresh_model(seed), train)


_Three = tuple[dict[str, Score], dict[str, Score], dict[str, Score]]
"""Scores of a model as it is, after relearning, after rounding."""


def _unlearned(
    gauge: _Gauge, methods: Sequence[tuple[str, Method]], utility: float, notice: Callable[[str], None]
) -> tuple[dict[str, _Three], list[str]]:
    """Scores of the models that kept their utility, by label, and the labels of the methods whose models did not."""
    problem, kept = gauge.problem, gauge.kept
    least = utility * float(np.nanmean(knowledge(problem, problem.target, "retain")))
    target = identity(problem.target, problem)
    measured: dict[str, _Three] = {}
    for label, method in methods:

        def measure(method: Method = method) -> list[dict[str, Any]]:
            model = method.forget(problem, Workplace()).model
            if np.nanmean(knowledge(problem, model, "retain")) < least:
                return []
            every = (model, _relearned(problem, model), _rounded(problem, model))
            return [_written(gauge(one)) for one in every]

        notice(f"unlearning with {label}")
        made_by = [method.name, method.model_dump(mode="json"), source_digest(type(method))]
        found = kept.content(["unlearned", target, made_by, utility, gauge.asked], measure)
        if found:
            measured[label] = cast("_Three", tuple(_read(one) for one in found))
    return measured, [label for label, _ in methods if label not in measured]


class _Changes:
    """What one epoch of relearning, and rounding to 4 bits, do to every number."""

    def __init__(self, gauge: _Gauge, unlearned: Sequence[_Three], retrained: Sequence[nn.Module]) -> None:
        self.before, self.relearned, self.rounded = (list(scores) for scores in zip(*unlearned, strict=True))
        self.retrained = [gauge(m) for m in retrained]
        self.retrained_relearned = [gauge(_relearned(gauge.problem, m)) for m in retrained]

    def relearning(self, name: str) -> float | None:
        """Robustness under relearning, from mean changes."""
        means = [
            _mean(rows, name)
            for rows in (self.before, self.relearned, self.retrained, self.retrained_relearned)
        ]
        if any(value is None for value in means):
            return None
        before, after, reference, changed = cast("list[float]", means)
        return relearning_robustness(after - before, changed - reference)

    def quantization(self, name: str) -> float | None:
        """Robustness under rounding: mean over unlearned models."""
        pairs = [(a[name].value, b[name].value) for a, b in zip(self.before, self.rounded, strict=True)]
        kept = [(a, b) for a, b in pairs if a is not None and b is not None]
        if len(kept) < len(pairs):
            return None
        return float(np.mean([quantization_robustness(a, b) for a, b in kept]))


def _relearned(problem: Problem, model: nn.Module) -> nn.Module:
    """After one epoch over the forget rows by a tenth of the rate of the problem's own recipe."""
    recipe = problem.recipe
    assert recipe is not None  # asked for before
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        short = recipe.replace(epochs=1, lr=recipe.lr / 10, schedule="constant", warmup=0.0)
        return fit(problem, clone(model), "forget", short, Workplace()).eval()


def _rounded(problem: Problem, model: nn.Module) -> nn.Module:
    """With weights rounded to 4 bits (NF4)."""
    attack = Quantization(bits=(4,), schemes=("nf4",))
    return next(iter(attack.variants(Scene(problem, model, Workplace()))))[1].eval()


def _mean(rows: Sequence[dict[str, Score]], name: str) -> float | None:
    values = [row[name].value for row in rows]
    kept = [v for v in values if v is not None]
    return float(np.mean(kept)) if len(kept) == len(values) else None


def _quality(
    name: str,
    kind: Literal["metric", "attack"],
    pair: tuple[dict[str, Score], dict[str, Score]],
    found: dict[str, list[dict[str, Score]]],
    changes: _Changes | None,
) -> Quality:
    values = {pool: [row[name].value for row in rows] for pool, rows in found.items()}
    kept = {pool: [v for v in rows if v is not None] for pool, rows in values.items()}
    every = [*pair, *found["knowing"], *found["ignorant"]]
    made = Quality(
        metric=name, kind=kind, unit=pair[0][name].unit, knowing=kept["knowing"], ignorant=kept["ignorant"]
    )  # fmt: skip
    missing = [row[name].reason for row in every if row[name].value is None]
    if missing:
        return made.model_copy(
            update={"reason": f"undefined for {len(missing)} of {len(every)} models: {missing[0]}"}
        )
    knowing, ignorant = pair[0][name].value, pair[1][name].value
    assert knowing is not None and ignorant is not None
    auc, interval = faithfulness(kept["knowing"], kept["ignorant"], (knowing, ignorant))
    parts = [auc, *((changes.relearning(name), changes.quantization(name)) if changes else (None, None))]
    overall = None
    if all(p is not None for p in parts):
        numbers = cast("list[float]", parts)
        overall = 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / p for p in numbers)
    return made.model_copy(
        update={
            "auc": auc,
            "interval": interval,
            "relearning": parts[1],
            "quantization": parts[2],
            "overall": overall,
        }
    )
