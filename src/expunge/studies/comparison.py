"""Which of several methods is better, from scores that cannot be averaged.

Every metric on every problem orders the methods; the orders are put together by the Borda count, the Kemeny consensus and
Plackett and Luce's model, with intervals over seeds. Where runs hold evidence, every example orders them too.

Lower- and higher-is-better are as declared; where the value to have is the retrained models', a model is as good as its gap to
them is small. Failed runs come last on their problem's ballots; what does not apply or is undefined is no ballot's business.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Literal, NamedTuple

import numpy as np
from pydantic import Field

from expunge.errors import BadInput, did_you_mean
from expunge.record import Direction, Judged, Record, ScoreFile
from expunge.stats.borda import borda, ranks_of
from expunge.studies.fronts import Front, Key, fronts_of, goodness
from expunge.studies.probe_difficulty import Difficulty
from expunge.studies.spread import Variance
from expunge.studies.standings import InstanceTable, Ranking, rank_instances, rank_tasks, tau_of

RANKED: tuple[Key, ...] = (
    *(("accuracy", split) for split in ("forget", "retain", "test")),
    *(("mae", split) for split in ("forget", "retain", "test")),
    *((metric, split) for metric in ("probability", "rouge-l-recall") for split in ("forget", "retain")),
    ("unlearning-accuracy", "concept"),
    *((f"{domain}-domain-retain-accuracy", "test") for domain in ("in", "cross")),
    ("undesired-rate", "samples"),
    ("coverage", "test"),
    ("truth-ratio-distance", "forget"),
    ("extraction-strength", "forget"),
    ("corrected-accuracy", "affected"),
    ("manipulation-success", "attacked"),
    ("mia-loss-logistic", "forget"),
    ("mia-text-min-k", "forget"),
    ("lira-auc", "forget"),
    ("u-lira-auc", "forget"),
    ("relearning-steps", "forget"),
    ("seconds", "run"),
)
"""What methods are ranked on unless asked otherwise: what was forgotten, what was kept, what leaks, what it took."""
ENOUGH_PROBLEMS = 5
"""From this many problems on they are resampled too; fewer say nothing about problems in general."""


class Ballot(Record):
    """How one metric on one problem orders the methods."""

    problem: str
    metric: str
    split: str
    unit: str
    direction: Direction
    values: dict[str, float] = Field(
        description="by method: mean over seeds; of the absolute gap to the retrained models where the direction is match"
    )
    last: list[str] = Field(default_factory=list, description="methods that failed, and so come last")

    @property
    def name(self) -> str:
        """As options and tables write it."""
        return f"{self.metric}@{self.split}"


class Without(Record):
    """The ranking with one metric left out."""

    metric: str
    tau: float | None = Field(description="Kendall's tau with the whole ranking")
    leaders: list[str]
    moved: dict[str, float] = Field(description="change of rank, where it changes; below 0 is better")


class Comparison(Record):
    """What several runs say together about which method is better."""

    methods: list[str]
    excluded: dict[str, str] = Field(
        default_factory=dict, description="methods that are not ranked, with the reason"
    )
    ballots: list[Ballot]
    task: Ranking | None = None
    instance: Ranking | None = None
    fronts: list[Front] = Field(default_factory=list)
    without: list[Without] = Field(default_factory=list, description="sensitivity to single metrics")
    variance: list[Variance] = Field(default_factory=list, description="where it was asked for")
    difficulty: list[Difficulty] = Field(
        default_factory=list, description="of the probes, where it was asked for"
    )
    notes: list[str] = Field(default_factory=list)


class ComparedScores(ScoreFile):
    """What `expunge compare --json` prints: the scores of all runs, and the comparison."""

    comparison: Comparison


class Floor(NamedTuple):
    """A value below (or above, for a metric that is better lower) which a method is not ranked."""

    metric: str
    split: str
    value: float


def compare_scores(
    scores: ScoreFile,
    *,
    metrics: Sequence[Key] | Literal["all"] | None = None,
    floors: Sequence[Floor] = (),
    objectives: Sequence[Key] = (),
    instances: Sequence[InstanceTable] = (),
    resamples: int = 1000,
    seed: int = 0,
) -> Comparison:
    """Rank the methods of `scores`, which has references attached.

    Args:
        scores: of one or several runs, as `complete` makes it.
        metrics: what to rank on; None takes those of `RANKED` that were measured, 'all' everything with a better direction.
        floors: methods that miss one on any problem are not ranked: a destroyed model forgets perfectly.
        objectives: of the Pareto front; by default forgetting and utility.
        instances: what the examples say, where evidence is at hand.
        resamples: of the bootstrap.
        seed: of the bootstrap.
    """
    if len(objectives) == 1:
        metric, split = objectives[0]
        raise BadInput(f"a Pareto front has two axes or more, got '{metric}@{split}' alone; give another one")
    _require_measured(scores, [*objectives, *((f.metric, f.split) for f in floors)])
    rows = _rows(scores)
    chosen = chosen_scores(scores, metrics)
    excluded = _below_floors(rows, floors)
    references = _references(scores)
    labels = [label for label in dict.fromkeys(label for _, label in rows) if label not in excluded]
    ballots, per_seed = _ballots(rows, labels, chosen)
    met = [{*b.values, *b.last} for b in ballots]
    apart = [label for label in labels if not any(label in some and len(some) > 1 for some in met)]
    excluded |= {label: _why_apart(rows, label, chosen) for label in apart}
    labels = [label for label in labels if label not in apart]
    made = Comparison(
        methods=labels, excluded=excluded, ballots=ballots, notes=_nothing_to_match(rows, chosen)
    )
    if len(labels) < 2:
        made.notes.append(f"nothing to rank: {len(labels)} methods on {len(ballots)} ballots")
        return made
    rng = np.random.default_rng(seed)
    table = _table(ballots, labels)
    resampled = _resampled(ballots, per_seed, labels, rows, resamples, rng)
    made.task = rank_tasks(table, labels, references, resampled, _said_resampled(scores, per_seed))
    made.without = _sensitivity(ballots, table, labels)
    made.fronts = fronts_of(rows, labels, objectives, resamples, rng)
    tables = [t for t in instances if sum(label in t.values for label in labels) > 1]
    if tables:
        made.instance = rank_instances(tables, labels, references, resamples, rng)
    return made


def _why_apart(rows: Mapping[tuple[str, str], Sequence[Judged]], label: str, chosen: Sequence[Key]) -> str:
    """Why a method is on no ballot with another."""
    models = [j for (_, name), judged in rows.items() if name == label for j in judged]
    if any(goodness(j, key) is not None for j in models for key in chosen):
        return "no other method has a value of the same score"
    return "it has no value of what is ranked"


def _nothing_to_match(rows: Mapping[tuple[str, str], Sequence[Judged]], chosen: Sequence[Key]) -> list[str]:
    """What is on no ballot of a problem because retrained models, which it is to match, are not there."""
    notes = []
    for problem in dict.fromkeys(p for p, _ in rows):
        models = [j for (where, _), judged in rows.items() if where == problem for j in judged]
        unmatched = []
        for metric, split in chosen:
            scores = [s for j in models if (s := j.score(metric, split)) is not None and s.value is not None]
            if scores and all(s.direction == "match" and s.reference is None for s in scores):
                unmatched.append(f"{metric}@{split}")
        if unmatched:
            notes.append(f"{problem}: no retrained model to match, so not ranked on {', '.join(unmatched)}")
    return notes


def ranked_metrics(names: Sequence[str]) -> list[Key]:
    """From ``metric@split``, as options have it."""
    found = []
    for name in names:
        metric, at, split = name.partition("@")
        if not (metric and at and split):
            raise BadInput(f"'{name}' names no score; write METRIC@SPLIT, such as accuracy@forget")
        found.append((metric, split))
    return found


def _rows(scores: ScoreFile) -> dict[tuple[str, str], list[Judged]]:
    """Models by problem and label, without the target; retraining only where its models can be compared with each other."""
    rows: dict[tuple[str, str], list[Judged]] = {}
    for judged in scores.judged:
        if judged.method != "target" and judged.status != "not_applicable":
            rows.setdefault((judged.problem, judged.label), []).append(judged)
    return {k: v for k, v in rows.items() if v[0].method != "retrain" or len(v) > 1}


def _references(scores: ScoreFile) -> set[str]:
    return {j.label for j in scores.judged if j.method == "retrain"}


def chosen_scores(scores: ScoreFile, metrics: Sequence[Key] | Literal["all"] | None) -> list[Key]:
    """What is looked at: `metrics`, or of the default those that were measured."""
    measured = dict.fromkeys((s.metric, s.split) for j in scores.judged for s in j.scores)
    if metrics is None:
        return [key for key in RANKED if key in measured]
    if metrics == "all":
        return [
            k
            for k in measured
            if k[0] not in ("average-gap", "tow", "tow-mia") and not k[0].endswith("-ratio")
        ]
    _require_measured(scores, metrics)
    return list(dict.fromkeys(metrics))


def _require_measured(scores: ScoreFile, wanted: Sequence[Key]) -> None:
    """Raise BadInput with the nearest name where no run has a score."""
    measured = {(s.metric, s.split) for j in scores.judged for s in j.scores}
    for metric, split in wanted:
        if (metric, split) not in measured:
            near = did_you_mean(f"{metric}@{split}", [f"{m}@{s}" for m, s in measured])
            raise BadInput(f"no run has '{metric}@{split}'{near}")


def _below_floors(
    rows: Mapping[tuple[str, str], Sequence[Judged]], floors: Sequence[Floor]
) -> dict[str, str]:
    excluded: dict[str, str] = {}
    for (problem, label), judged in rows.items():
        for floor in floors:
            scores = [s for j in judged if (s := j.score(floor.metric, floor.split)) is not None]
            found = [s for s in scores if s.value is not None]
            if not found:
                if scores:
                    excluded[label] = (
                        f"{floor.metric}@{floor.split} is {scores[0].status.replace('_', ' ')} on {problem}, so that nobody "
                        "knows whether it reaches the floor"
                    )
                continue
            mean = math.fsum(s.value or 0.0 for s in found) / len(found)
            sign = -1 if found[0].direction == "lower" else 1
            if sign * mean < sign * floor.value:
                what = "above the ceiling" if sign < 0 else "below the floor"
                excluded[label] = (
                    f"{floor.metric}@{floor.split} is {mean:.3g} on {problem}, {what} of {floor.value:g}"
                )
    return excluded


PerSeed = dict[tuple[int, str], np.ndarray]
"""By ballot and label: the values of the seeds, higher is better, NaN where a seed has none."""


def _ballots(
    rows: Mapping[tuple[str, str], Sequence[Judged]], labels: Sequence[str], chosen: Sequence[Key]
) -> tuple[list[Ballot], PerSeed]:
    """Every metric on every problem that two methods at least have a value of."""
    ballots: list[Ballot] = []
    per_seed: PerSeed = {}
    for problem in dict.fromkeys(p for p, _ in rows):
        mine = {label: rows[problem, label] for label in labels if (problem, label) in rows}
        last = [label for label, judged in mine.items() if all(j.status == "failed" for j in judged)]
        for key in chosen:
            goods = {
                label: np.array([math.nan if (g := goodness(j, key)) is None else g for j in judged])
                for label, judged in mine.items()
                if label not in last
            }
            goods = {label: good for label, good in goods.items() if not np.isnan(good).all()}
            if not goods or len(goods) + len(last) < 2:
                continue
            score = next(s for j in mine[next(iter(goods))] if (s := j.score(*key)) is not None)
            sign = 1.0 if score.direction == "higher" else -1.0
            for label, good in goods.items():
                per_seed[len(ballots), label] = good
            ballots.append(
                Ballot(
                    problem=problem, metric=key[0], split=key[1], unit=score.unit, direction=score.direction,
                    values={label: sign * float(np.nanmean(good)) for label, good in goods.items()}, last=last,
                )
            )  # fmt: skip
    return ballots, per_seed


def _table(ballots: Sequence[Ballot], labels: Sequence[str]) -> np.ndarray:
    """`[labels, ballots]`, higher is better, NaN where a method has no value; who failed lies below all."""
    columns = []
    for ballot in ballots:
        sign = 1.0 if ballot.direction == "higher" else -1.0
        values = {label: sign * value for label, value in ballot.values.items()}
        worst = min(values.values()) - 1
        columns.append([worst if label in ballot.last else values.get(label, math.nan) for label in labels])
    return np.array(columns).T


def _resampled(
    ballots: Sequence[Ballot], per_seed: PerSeed, labels: Sequence[str],
    rows: Mapping[tuple[str, str], Sequence[Judged]], resamples: int, rng: np.random.Generator,
) -> list[tuple[np.ndarray, np.ndarray]]:  # fmt: skip
    """Tables with seeds drawn anew, all metrics of a model together, and the weight of each ballot."""
    if all(len(v) < 2 for v in per_seed.values()):
        return []
    original = _table(ballots, labels)
    problems = list(dict.fromkeys(b.problem for b in ballots))
    made = []
    for _ in range(resamples):
        draws = {key: rng.integers(len(judged), size=len(judged)) for key, judged in rows.items()}
        table = original.copy()
        for (number, label), good in per_seed.items():
            drawn = good[draws[ballots[number].problem, label]]
            if not np.isnan(drawn).all():
                table[labels.index(label), number] = np.nanmean(drawn)
        weights = np.ones(len(ballots))
        if len(problems) >= ENOUGH_PROBLEMS:
            times = rng.multinomial(len(problems), np.full(len(problems), 1 / len(problems)))
            weights = np.array([times[problems.index(b.problem)] for b in ballots], dtype=float)
        for number, ballot in enumerate(ballots):
            for label in ballot.last:
                table[labels.index(label), number] = np.nanmin(table[:, number]) - 1
        made.append((table, weights))
    return made


def _said_resampled(scores: ScoreFile, per_seed: PerSeed) -> str:
    most = max(len(v) for v in per_seed.values())
    if most < 2:
        return ""
    problems = len(scores.problems)
    return f"seeds ({most} at most)" + (f" and {problems} problems" if problems >= ENOUGH_PROBLEMS else "")


def _sensitivity(ballots: Sequence[Ballot], table: np.ndarray, labels: Sequence[str]) -> list[Without]:
    """The Borda ranking without each metric in turn, on all problems."""
    names = [b.name for b in ballots]
    if len(set(names)) < 2:
        return []
    whole = borda(table).share
    found = []
    for name in dict.fromkeys(names):
        kept = np.array([n != name for n in names])
        share = borda(table[:, kept]).share
        moved = ranks_of(share) - ranks_of(whole)
        best = np.nanmax(share)
        found.append(
            Without(
                metric=name, tau=tau_of(share, whole),
                leaders=[label for label, s in zip(labels, share, strict=True) if s == best],
                moved={label: float(m) for label, m in zip(labels, moved, strict=True) if m and not np.isnan(m)},
            )
        )  # fmt: skip
    return found
