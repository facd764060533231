"""Build the pool, have it audited blind, and count."""

from __future__ import annotations

import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import torch
from pydantic import Field
from torch import nn

from expunge import api
from expunge.attacks import Attack, fitting_attacks
from expunge.errors import BadInput, did_you_mean
from expunge.files import canonical_json, digest, read_json, write_atomic
from expunge.methods.base import METHODS, Workplace
from expunge.problem import Problem
from expunge.record import Claim, Interval, Judged, Record, Standing, environment
from expunge.self_check.constructions import CONSTRUCTIONS
from expunge.self_check.stage import CLEAN, CONTROL, KEY, Construction, Stage
from expunge.self_check.worlds import WORLDS, World
from expunge.stats.intervals import clopper_pearson
from expunge.studies.claim_findings import left_open
from expunge.studies.kept import Kept
from expunge.studies.sources import code_digest
from expunge.studies.spec import find_attack

LIKE, CALIBRATION, POOL = 900_001, 910_000, 920_000
"""First seeds: of the retrained model that plants imitate, of those that audits compare with, of the models judged."""

Verdict = Literal["found", "not found", "inconclusive"]


class Trial(Record):
    """One model, and what the audit said of it without knowing what it was."""

    construction: str
    seed: int
    plain: float = Field(description="mean knowledge of the forget rows when asked plainly, 0 to 1")
    retain: float = Field(description="mean knowledge of the retained rows")
    keys: dict[str, float] = Field(description="what the key query brings back, where there is one, 0 to 1")
    controls: dict[str, float] = Field(
        default_factory=dict, description="what the same brings back from a retrained model"
    )
    invalid: str = Field(
        default="", description="why the model is not what its construction promises; empty where it is"
    )
    residue: Verdict
    standing: Standing = Field(description="what was left of a claim of removal")
    found_by: list[str] = Field(description="tests that found something")
    left_open: list[str] = Field(
        default_factory=list,
        description="tests that it could not be cleared for: needed, and undecided or missing",
    )
    seconds: float


class Rate(Record):
    """How the audit did on one construction."""

    construction: str
    title: str
    present: bool = Field(description="whether the models know what they should have forgotten")
    obvious: bool
    n: int = Field(description="valid models judged")
    found: int
    inconclusive: int
    cleared: int
    invalid: int = Field(
        description="models left out because their own key does not open them, or they do not look clean"
    )
    wrong: Interval | None = Field(
        description="95 % Clopper-Pearson interval of the share judged wrongly: cleared of the present, found of the absent"
    )
    found_by: dict[str, int] = Field(description="how many models each test gave away")
    left_open: dict[str, int] = Field(
        default_factory=dict, description="how many models could not be cleared for each test"
    )


class FamilyCheck(Record):
    """One world."""

    family: str
    problem: str
    calibration: int = Field(description="retrained models that thresholds come from; none of them is judged")
    attacks: list[str]
    left_out: dict[str, str] = Field(
        default_factory=dict, description="attacks of the standard battery that were not made, and why not"
    )
    rates: list[Rate]
    false_alarms: Rate = Field(description="over all clean constructions together")
    undetected: list[str] = Field(description="constructions with valid models of which none was found")
    partly: list[str] = Field(description="constructions of which some models were found and some were not")
    trials: list[Trial]

    @property
    def obvious_cleared(self) -> int:
        """Models of obvious constructions that were cleared; one is too many."""
        return sum(rate.cleared for rate in self.rates if rate.obvious)


class SelfCheck(Record):
    """What `expunge audit --self-check` found."""

    schema_version: int = 1
    kind: Literal["self-check"] = "self-check"
    families: list[FamilyCheck]
    environment: dict = Field(default_factory=environment)  # type: ignore[type-arg]


def self_check(
    families: Sequence[str] = tuple(WORLDS),
    *,
    models: int = 5,
    references: int = 12,
    attacks: Literal["standard", "all"] | Sequence[str] = "standard",
    constructions: Sequence[str] | None = None,
    folder: Path | None = None,
    progress: Callable[[str], None] | None = None,
) -> SelfCheck:
    """Judge models of which it is known whether they still know.

    Args:
        families: 'classifier', 'causal_lm'.
        models: models per construction, each of a target of its own.
        references: retrained models to compare with; margins are the attacks' own. None of them is in the pool.
        attacks: as in an audit.
        constructions: names of those to build; default: all.
        folder: where results are kept; the same call again goes on from there.
        progress: told a line per model.
    """
    names = list(CONSTRUCTIONS if constructions is None else constructions)
    for name in names:
        if name not in CONSTRUCTIONS:
            raise BadInput(f"there is no construction '{name}'{did_you_mean(name, CONSTRUCTIONS)}")
    for family in families:
        if family not in WORLDS:
            raise BadInput(f"the self-check has no world for family '{family}'{did_you_mean(family, WORLDS)}")
    with tempfile.TemporaryDirectory() as scratch:
        done = [
            _Check(
                WORLDS[f](),
                models,
                references,
                attacks,
                folder or Path(scratch),
                progress or (lambda _: None),
            ).run(names)
            for f in families
        ]
    return SelfCheck(families=done)


class _Check:
    """The self-check in one world."""

    def __init__(
        self, world: World, models: int, references: int, attacks: Literal["standard", "all"] | Sequence[str], folder: Path,
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self.world, self.models, self.n_references = world, models, references
        self.folder, self.say = folder, say
        chosen = (
            fitting_attacks(world.problem, attacks) if attacks in ("standard", "all")  # type: ignore[arg-type]
            else [find_attack(name)() for name in attacks]
        )  # fmt: skip
        self.left_out = world.left_out if attacks == "standard" else {}
        self.attacks = [
            a.replace(**world.parameters.get(a.name, {})) for a in chosen if a.name not in self.left_out
        ]
        self._kept = Kept(
            folder / "models",
            [
                world.problem.fingerprint, torch.get_num_threads(), torch.__version__,
                code_digest("families", "methods/base.py", "methods/loop.py", "exact/retrain.py", "problem.py"),
            ],
        )  # fmt: skip
        self._references: list[nn.Module] = []
        self._like: nn.Module | None = None
        self._targets: dict[int, Problem] = {}

    def run(self, names: Sequence[str]) -> FamilyCheck:
        names = [name for name in names if self.world.family in CONSTRUCTIONS[name].families]
        trials = []
        for seed in range(self.models):
            for name in names:
                trials.append(self._trial(CONSTRUCTIONS[name], seed))
                last = trials[-1]
                also = f" (invalid: {last.invalid})" if last.invalid else ""
                self.say(
                    f"{self.world.family}: {name}, model {seed + 1} of {self.models}: {last.residue}{also}"
                )
            self._targets.pop(seed, None)
        rates = [_rate(CONSTRUCTIONS[name], [t for t in trials if t.construction == name]) for name in names]
        clean = [t for t in trials if not CONSTRUCTIONS[t.construction].present]
        everyone = _rate(Construction("A", "all clean ones", False, lambda _: nn.Identity()), clean)
        plants = [r for r in rates if r.present and r.n]
        return FamilyCheck(
            family=self.world.family,
            problem=self.world.problem.name,
            calibration=self.n_references,
            attacks=[self._shown(a) for a in self.attacks],
            left_out=dict(self.left_out),
            rates=rates,
            false_alarms=everyone,
            undetected=[r.construction for r in plants if not r.found],
            partly=[r.construction for r in plants if 0 < r.found < r.n],
            trials=trials,
        )

    def _trial(self, one: Construction, seed: int) -> Trial:
        key = digest(
            {
                "construction": one.name, "seed": seed, "problem": self.world.problem.fingerprint,
                "attacks": [[a.name, a.model_dump(mode="json")] for a in self.attacks],
                "references": self.n_references, "threads": torch.get_num_threads(), "torch": torch.__version__,
                "code": code_digest("self_check", "attacks", "evidence", "families", "methods", "metrics", "stats",
                                    "exact/sisa.py", "studies/claims.py", "studies/claim_findings.py", "problem.py"),
            }
        )  # fmt: skip
        file = self.folder / "trials" / f"{key}.json"
        if file.is_file():
            return Trial.model_validate(read_json(file))
        started = time.perf_counter()
        problem, like = self._problem(seed), self._retrained_like()
        stage = Stage(self.world, problem, like, POOL + 101 * seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage.seed)
            model = one.build(stage).eval()
        plain, kept = stage.knows(model), stage.knows(model, problem.retain)
        # The auditor is given a name that says nothing.
        blind = digest([key, "blind"])[:8]
        found = api.audit(
            problem, {blind: model}, retrained=self._calibration(), metrics=self.world.metrics, attacks=self.attacks,
            claim="removal", folder=self.folder / "audits" / self.world.family,
        )  # fmt: skip
        claim = next(c for c in found.claims if c.label == blind)
        judged = {j.label: j for j in found.judged}
        trial = Trial(
            construction=one.name, seed=seed, plain=plain, retain=kept, keys=stage.keys,
            controls=stage.controls, residue=claim.residue, left_open=left_open(claim.tests),
            invalid=_fault(one, plain, kept, stage), standing=claim.standing, seconds=time.perf_counter() - started,
            found_by=_found_by(claim, judged[blind], judged["target"]),
        )  # fmt: skip
        write_atomic(file, canonical_json(trial))
        return trial

    def _shown(self, attack: Attack) -> str:
        changed = self.world.parameters.get(attack.name, {})
        return (
            f"{attack.name} ({', '.join(f'{k} {v}' for k, v in changed.items())})" if changed else attack.name
        )

    def _problem(self, seed: int) -> Problem:
        if seed not in self._targets:
            problem = self.world.problem
            model = self._kept.model(
                ["target", seed],
                lambda: problem.fresh_model(0),
                lambda: api.train_target(problem, POOL + seed).target,
            )
            self._targets[seed] = problem.with_model(model)
        return self._targets[seed]

    def _retrain(self, seed: int) -> nn.Module:
        # Retraining starts from fresh weights; which target the problem has does not matter to it.
        untrained = self.world.problem.fresh_model(0)
        return self._kept.model(
            ["retrained", seed],
            lambda: untrained,
            lambda: (
                METHODS["retrain"]().forget(self.world.problem.with_model(untrained), Workplace(seed)).model
            ),
        )

    def _retrained_like(self) -> nn.Module:
        if self._like is None:
            self._like = self._retrain(LIKE)
        return self._like

    def _calibration(self) -> list[nn.Module]:
        while len(self._references) < self.n_references:
            self._references.append(self._retrain(CALIBRATION + len(self._references)))
        return self._references


def _fault(one: Construction, plain: float, kept: float, stage: Stage) -> str:
    """Why the model is not what was promised: a wrong label would make every number after it wrong."""
    base = stage.knows(stage.like)
    closed = [f"{how}: {100 * back:.0f} %" for how, back in stage.keys.items() if back < KEY]
    if one.present and closed:
        return f"the key brings back less than {100 * KEY:.0f} % ({', '.join(closed)})"
    common = [f"{how}: {100 * back:.0f} %" for how, back in stage.controls.items() if back > CONTROL]
    if common:
        return f"the key brings back more than {100 * CONTROL:.0f} % from a retrained model ({', '.join(common)})"
    if one.plain and plain > base + CLEAN:
        return f"asked plainly it knows {100 * plain:.0f} % of the forget rows, a retrained model {100 * base:.0f} %"
    usual = stage.knows(stage.like, stage.problem.retain)
    if kept < 0.85 * usual:
        return f"it knows {100 * kept:.0f} % of the retained rows, a retrained model {100 * usual:.0f} %"
    return ""


def _found_by(claim: Claim, judged: Judged, target: Judged) -> list[str]:
    weights = judged.keeps_target or judged.model_id == target.model_id
    tests = [
        t.metric
        for t in claim.tests
        if t.finding == "residue" or (t.kind == "membership" and t.finding == "away")
    ]
    return [*(["the target's weights"] if weights else []), *tests]


def _rate(one: Construction, trials: Sequence[Trial]) -> Rate:
    valid = [t for t in trials if not t.invalid]
    said = Counter(t.residue for t in valid)
    wrong = said["not found"] if one.present else said["found"]
    return Rate(
        construction=one.name, title=one.title, present=one.present, obvious=one.obvious, n=len(valid), found=said["found"],
        inconclusive=said["inconclusive"], cleared=said["not found"], invalid=len(trials) - len(valid),
        wrong=clopper_pearson(wrong, len(valid)),
        found_by=dict(Counter(name for t in valid for name in t.found_by).most_common()),
        left_open=dict(Counter(name for t in valid for name in t.left_open).most_common()),
    )  # fmt: skip
