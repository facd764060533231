"""The typed, versioned records that everything reads and writes: scores, verdicts, runs.

`scores.json` of a run and the output of ``expunge audit --json`` are both a `ScoreFile`. Undefined is a status with a
reason; a value that is not a number never becomes one.
"""

from __future__ import annotations

import math
import platform
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from expunge.files import read_json, write_atomic

SCHEMA_VERSION = 5

Status = Literal["ok", "undefined", "not_applicable", "failed"]
Direction = Literal["higher", "lower", "match"]
"""Which way is better; `match` means as near as possible to the retrained model's value."""


Claimed = Literal["exact", "removal", "suppression"]
"""What may be said of an unlearned model, strongest first: made without the records; nothing of them comes back beyond what
retrained models show; they are not said, but may still be in the weights."""
Standing = Literal["exact", "removal", "suppression", "not forgotten", "damaged", "undecided"]
"""What is left of a claim after the tests; the last three assert nothing."""
Support = Literal["supported", "contradicted", "undecided", "not claimed"]


class Record(BaseModel):
    """Base of the records; unknown keys are refused so that a newer file is not read as an older one."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)


class Interval(Record):
    """A confidence interval."""

    low: float
    high: float
    level: float = 0.95
    method: str = Field(description="how it was computed: wilson, bca, t over seeds, ...")


class Curve(Record):
    """How a number grows with what is spent on it: recovery by steps of relearning, accuracy by bits of precision."""

    over: str = Field(description="what is spent, with its unit: steps, queries, bits, strength, layer, ...")
    at: list[float] = Field(description="how much of it, in the order of the curve")
    values: list[float | None] = Field(
        description="the number there, in the score's unit; None where it is undefined"
    )

    @model_validator(mode="after")
    def _one_value_per_point(self) -> Curve:
        if len(self.at) != len(self.values) or not self.at:
            raise ValueError(
                f"a curve over {self.over} needs as many values as points, got {len(self.values)} for {len(self.at)}"
            )
        return self


class Reference(Record):
    """The retrained models' values of the same metric on the same split."""

    mean: float
    values: list[float] = Field(description="one per retrained model that the judged model was compared with")
    gap: float = Field(description="value minus mean")
    curves: list[Curve] = Field(default_factory=list, description="theirs, where the score has a curve")


class Score(Record):
    """One number about one model, or the reason why there is none."""

    metric: str
    split: str = Field(description="data set it was measured on; 'run' for costs")
    value: float | None = None
    unit: str = Field(description="share, nats, examples, seconds, bytes, the target's unit, ...")
    direction: Direction
    status: Status = "ok"
    reason: str = Field(default="", description="why the status is not ok")
    n: int | None = Field(default=None, description="examples it rests on")
    interval: Interval | None = Field(
        default=None, description="sampling uncertainty over examples, where it is known"
    )
    groups: dict[str, float] = Field(default_factory=dict, description="the same metric per class or group")
    reference: Reference | None = None
    attack: bool = Field(default=False, description="True where the number is an attacker's success")
    budget: dict[str, float] = Field(
        default_factory=dict,
        description="the most that the attacker may spend: steps, queries, samples, rows, ...",
    )
    curve: Curve | None = Field(
        default=None, description="the number by what was spent on it, where it was followed"
    )

    @model_validator(mode="after")
    def _value_or_reason(self) -> Score:
        if self.status == "ok" and self.value is None:
            raise ValueError(f"score '{self.metric}' on '{self.split}' is ok but has no value")
        if self.status != "ok" and (self.value is not None or not self.reason):
            raise ValueError(
                f"score '{self.metric}' on '{self.split}' is {self.status}; it needs a reason and no value"
            )
        return self


class Judged(Record):
    """All scores of one model: which problem, which method with which parameters, which seed."""

    problem: str = Field(description="name of the problem")
    problem_id: str = Field(description="fingerprint of the problem")
    method: str = Field(description="method name; 'target' for the model before forgetting")
    label: str = Field(
        description="method name plus the parameters that differ from its defaults; what tables show"
    )
    passed: dict[str, Any] = Field(default_factory=dict, description="parameters as passed")
    effective: dict[str, Any] = Field(default_factory=dict, description="parameters in effect")
    seed: int
    init: int | None = Field(
        default=None,
        description="seed of the fresh weights of target and retrained model, where it is not `seed`",
    )
    model_id: str | None = Field(default=None, description="fingerprint of the model's weights")
    status: Status = "ok"
    reason: str = ""
    notes: list[str] = Field(default_factory=list)
    scores: list[Score] = Field(default_factory=list)
    claimed: Claimed | None = Field(
        default=None,
        description="what its maker claims; None where nobody said, and for models that claim nothing",
    )
    guarantee: str = Field(
        default="",
        description="guarantee of the method that a record beside these very weights names; empty without one",
    )
    keeps_target: bool = Field(
        default=False,
        description="whether the target's own weights stand in it, behind what filters its answers",
    )

    def score(self, metric: str, split: str) -> Score | None:
        """The score of `metric` on `split`, where it was computed."""
        return next((s for s in self.scores if s.metric == metric and s.split == split), None)


class Across(Record):
    """What all seeds of a method say together: scores of distributions over models, which a single model has not.

    Every method is compared with one half of the retrained models, and so is the other half of these: its scores, the
    `reference` of the others, are what retraining itself gets with as many models.
    """

    problem: str = Field(description="name of the problem")
    method: str = Field(description="method name; 'target' for the models before forgetting")
    label: str = Field(description="the method with its parameters, as in `Judged`")
    seeds: list[int] = Field(description="seeds of the models that were compared")
    scores: list[Score] = Field(default_factory=list, description="one per metric and split")


class Verdict(Record):
    """A judgement on one property of one method over seeds, against the retrained reference.

    Never the word "deleted": an equivalence test can only say that no difference larger than the margin was found.
    """

    problem: str
    label: str
    metric: str
    split: str
    judgement: Literal["no larger difference", "different", "undecided"]
    margin: float = Field(description="largest difference that counts as none, in the metric's unit")
    difference: float | None = Field(
        default=None, description="mean over seeds minus mean of the retrained models"
    )
    interval: Interval | None = Field(
        default=None, description="of the difference; level 0.90 as in a two one-sided test"
    )
    n: int = Field(description="models judged")
    n_reference: int = Field(description="retrained models")
    more_seeds: int | None = Field(
        default=None, description="further seeds that would probably decide; None where unknown"
    )
    sentence: str = Field(description="the judgement in words")


class ClaimTest(Record):
    """One test that a claim rests on, or would have to."""

    kind: str = Field(description="output, utility, membership, relearning, quantization, ...")
    metric: str = Field(description="empty where no attack of the kind was run")
    split: str = ""
    unit: str = ""
    finding: Literal["none", "residue", "away", "undecided", "missing", "kept", "damaged"] = Field(
        description="against retrained models: no larger difference; more of what was to be forgotten; different, but not "
        "towards the target; neither shown; no value. Of utility: kept or damaged"
    )
    status: Status | Literal["not run"] = Field(
        default="ok", description="why there is no finding, where there is none"
    )
    original: float | None = Field(default=None, description="the target's value, mean over seeds")
    unlearned: float | None = None
    reference: float | None = Field(default=None, description="mean of the retrained models")
    excess: float | None = Field(default=None, description="unlearned minus reference")
    interval: Interval | None = Field(default=None, description="of the excess")
    margin: float | None = Field(default=None, description="largest excess that counts as none")
    p: float | None = Field(
        default=None,
        description="of 'the excess is within the margin'; Holm-adjusted over all tests but utility",
    )
    budget: dict[str, float] = Field(
        default_factory=dict, description="the most that the attacker could spend"
    )
    needed: bool = Field(description="whether the claim cannot stand without it")
    proxy: bool = Field(
        default=False, description="True where it compares with something else than retrained models"
    )
    reason: str = Field(default="", description="why there is no value, or what else the reader must know")


class Claim(Record):
    """What may be claimed of one method on one problem, and why not more.

    A claim is never raised, only lowered: `standing` is the strongest claim, up to the one that was made, whose every
    requirement was met. Where none is, it says so: damaged, not forgotten, undecided.
    """

    problem: str
    label: str
    claimed: Claimed = Field(description="what the maker claims; removal where nobody said")
    standing: Standing
    residue: Literal["found", "not found", "inconclusive"] = Field(
        description="whether something of the forgotten data is left, whatever is claimed"
    )
    levels: dict[str, Support] = Field(description="utility, exact, removal and suppression, each on its own")
    sentence: str = Field(description="the claim in words, as it may be quoted")
    supports: list[str] = Field(default_factory=list, description="what speaks for it, with the budget")
    breaks: list[str] = Field(
        default_factory=list, description="what speaks against a stronger claim, with the budget"
    )
    missing: list[str] = Field(
        default_factory=list, description="what failed, is undefined, undecided or was not run"
    )
    proxies: list[str] = Field(
        default_factory=list,
        description="statements that do not rest on retrained models, and those refused without them",
    )
    tests: list[ClaimTest] = Field(default_factory=list)


class ScoreFile(Record):
    """`scores.json`: every score of a run, and what it was computed with."""

    schema_version: int = SCHEMA_VERSION
    kind: Literal["scores"] = "scores"
    name: str
    problems: list[dict[str, Any]] = Field(
        description="facts of each problem: counts and fingerprints, never contents"
    )
    judged: list[Judged]
    across: list[Across] = Field(
        default_factory=list, description="one per problem and method: scores of all its seeds together"
    )
    verdicts: list[Verdict] = Field(default_factory=list)
    claims: list[Claim] = Field(
        default_factory=list,
        description="one per problem and method, the target among them; none for retraining",
    )
    environment: dict[str, Any] = Field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write the file atomically."""
        write_atomic(path, self.model_dump_json(indent=1))

    @classmethod
    def read(cls, path: Path) -> ScoreFile:
        """Read a file of this or an older schema version."""
        from pydantic import ValidationError

        from expunge.errors import BadInput
        from expunge.parameters import explain

        content = read_json(path)
        found = content.get("schema_version") if isinstance(content, dict) else None
        if not isinstance(found, int) or found > SCHEMA_VERSION:
            raise BadInput(
                f"'{path}' has schema version {found!r}; this expunge reads versions up to {SCHEMA_VERSION}"
            )
        try:
            return cls.model_validate(content)
        except ValidationError as error:
            raise BadInput(explain(error, f"'{path}'")) from None


def environment() -> dict[str, Any]:
    """What else could change a number: versions, platform, threads. No names of users, hosts or folders."""
    import torch

    packages: dict[str, str] = {}
    for name in (
        "expunge",
        "torch",
        "transformers",
        "datasets",
        "accelerate",
        "numpy",
        "scipy",
        "scikit-learn",
    ):
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = "not installed"
    return {
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.machine()}",
        "packages": packages,
        "threads": torch.get_num_threads(),
        "cuda": torch.version.cuda if torch.cuda.is_available() else None,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def mean_of(values: Iterable[float]) -> float:
    """Arithmetic mean; NaN of nothing."""
    values = list(values)
    return math.fsum(values) / len(values) if values else math.nan
