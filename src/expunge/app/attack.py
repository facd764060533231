"""What an attacker sees: distributions of a statistic, thresholds, and how far they give forgotten rows away."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import Field

from expunge.app.compare import judged
from expunge.app.examples import Chosen
from expunge.app.examples import Evidence as Scalars
from expunge.app.runs import RowJobs, Runs
from expunge.app.views import BandCurve, Bands, RecordedScore
from expunge.errors import ExpungeError, Missing
from expunge.evidence import Evidence
from expunge.metrics.base import Readings, Role, Undefined
from expunge.metrics.membership import STATISTICS, inquire
from expunge.record import Record
from expunge.report.densities import bin_edges, shares
from expunge.report.tables import title_of
from expunge.stats.epsilon import DELTA, epsilon_of_scores
from expunge.stats.separation import privacy_score, worst_cut

MOST_ROWS = 250
"""Rows of each side that a bound of epsilon counts; an evenly spaced part of more, which lowers the bound."""
MOST_VALUES = 20_000
"""Values of a sample that travel; of larger ones evenly spaced order statistics do."""

BINS = 48
"""Bins of the distributions."""
RATES = np.unique(np.concatenate([[0.0], np.geomspace(1e-4, 1, 49), np.linspace(0.025, 1, 40)]))
"""False positive rates at which ROC curves of several models are compared: dense on both kinds of axis."""


class Sample(Record):
    """Values of the statistic on one side, sorted."""

    name: str
    role: str = Field(
        description="forget, retain, holdout: of the model; retrained: of a retrained model on the forget set; "
        "members, nonmembers: asked about"
    )
    values: list[float]
    n: int
    left_out: int = Field(description="values that are not finite")


class Attacker(Record):
    """A membership attacker as the metric fitted it."""

    kind: str
    metric: str
    threshold: float = Field(description="where the attacker decides, in the statistic's unit")
    members_below: bool = Field(description="whether values below the threshold are called members")
    asked: Sample
    matched: Sample
    auc: RecordedScore | None = Field(description="as recorded in scores.json")
    efficacy: RecordedScore | None = Field(
        description="as recorded in scores.json: share of forget rows called non-members"
    )
    retrained: BandCurve = Field(
        description="true positive rates of the same attack on retrained models, the largest at a false positive rate of `at` "
        "at most"
    )


class Comparison(Record):
    """The model against one retrained model on the forget set: whose values are these?"""

    name: str
    threshold: float
    above: bool = Field(description="whether values above the threshold are called the judged model's")
    fpr: float
    fnr: float
    advantage: float
    epsilon: float | None = Field(
        description="95 % lower confidence bound, nats; its threshold is chosen on half of the rows, counted on the others. "
        "None with fewer than two rows on a side"
    )
    privacy: float = Field(description="privacy score of the Unlearning Comparator; 1 is indistinguishable")
    null: bool = Field(description="True where both models are retrained ones: what chance gives")


class Separation(Record):
    """One statistic of one model."""

    statistic: str
    statistics: list[str] = Field(description="those that the evidence has")
    unit: str
    delta: float = DELTA
    samples: list[Sample]
    edges: list[float] = Field(description="of the bins of a histogram, from all samples together")
    log: bool = Field(description="whether the bins are equally wide on a logarithmic axis")
    density: Bands = Field(description="shares of the forget set by bin, in retrained models")
    attackers: list[Attacker]
    comparisons: list[Comparison]
    missing: dict[str, str] = Field(description="by part: why there is none")


class WorstCase(Record):
    """The statistic, retrained model and threshold that give the model away most."""

    statistic: str
    comparison: Comparison


KNOWN = {
    "loss": "nats", "confidence": "probability of the label", "entropy": "nats", "modified_entropy": "nats",
    "margin": "log-odds", "absolute_error": "the target's unit", "error": "the target's unit",
}  # fmt: skip


def separation(
    runs: Runs, run: str, problem: str, model: Chosen, statistic: str, bounds: bool = True
) -> Separation:
    """Distributions of a statistic and the attackers on it; `bounds` of epsilon take most of the time."""
    forget = _read(runs, run, problem, model, "forget")
    statistics = [s for s in KNOWN if s in forget.quantities]
    if not statistics:
        raise Missing("the evidence has no statistic that a threshold can be put on")
    if statistic not in statistics:
        statistic = statistics[0]
    missing: dict[str, str] = {}
    samples = [_sample("forget set", "forget", forget.table[statistic].to_numpy())]
    for split, name in (("retain", "retain set"), ("holdout", "holdout")):
        try:
            samples.append(_sample(name, split, _read(runs, run, problem, model, split).array(statistic)))
        except ExpungeError as error:
            missing[split] = str(error)
    references = [r for r in runs.retrained(run, problem) if (r.label, r.seed) != (model.label, model.seed)]
    values: list[tuple[str, np.ndarray]] = []
    for row in references:
        found = _read(runs, run, problem, Chosen(row.label, row.seed), "forget")
        if statistic in found.quantities:
            values.append((f"{row.label}@{row.seed}", found.table[statistic].to_numpy()))
            samples.append(_sample(f"{row.label}@{row.seed}, forget set", "retrained", values[-1][1]))
    if not values:
        missing["comparisons"] = "there is no retrained model to compare with"
    attackers: list[Attacker] = []
    if statistic in STATISTICS:
        attackers = _attackers(runs, run, problem, model, statistic, references if bounds else [], missing)
    else:
        missing["attackers"] = f"no recorded membership attacker uses the {statistic.replace('_', ' ')}"
    comparisons = _comparisons(
        f"{model.label}@{model.seed}", forget.table[statistic].to_numpy(), values, missing, bounds
    )
    pooled = np.concatenate([s.values for s in samples])
    edges, kind = bin_edges(pooled, BINS) if len(pooled) else (np.linspace(0.0, 1.0, BINS + 1), "linear")
    theirs = [shares(kept, edges) for _, v in values if len(kept := _finite(v))]
    return Separation(
        statistic=statistic, statistics=statistics, unit=KNOWN[statistic], samples=samples, edges=edges.tolist(),
        log=kind == "log", density=Bands(**Bands.ends(np.array(theirs).T.tolist(), 0.0, 1.0)), attackers=attackers,
        comparisons=comparisons, missing=missing,
    )  # fmt: skip


def worst_case(runs: Runs, run: str, problem: str, model: Chosen) -> WorstCase:
    """The worst of all statistics and retrained models, by TPR - FPR on the forget set.

    Raises:
        Missing: nothing can be compared.
    """
    found: list[WorstCase] = []
    first = separation(runs, run, problem, model, "loss", bounds=False)
    for statistic in first.statistics:
        same = statistic == first.statistic
        one = first if same else separation(runs, run, problem, model, statistic, bounds=False)
        found += [WorstCase(statistic=statistic, comparison=c) for c in one.comparisons if not c.null]
    if not found:
        raise Missing(first.missing.get("comparisons", "nothing can be compared"))
    return max(found, key=lambda w: w.comparison.advantage)


def _read(runs: Runs, run: str, problem: str, model: Chosen, split: str) -> Scalars:
    path = runs.evidence_file(run, problem, model.label, model.seed, split)
    return runs.kept(path, Scalars, "evidence")


def _finite(values: np.ndarray) -> np.ndarray:
    values = np.asarray(values, dtype=np.float64)
    return values[np.isfinite(values)]


def _thinned(values: np.ndarray) -> np.ndarray:
    return values[:: max(1, -(-len(values) // MOST_ROWS))]


def _sample(name: str, role: str, values: np.ndarray) -> Sample:
    kept = np.sort(_finite(values))
    shown = kept
    if len(kept) > MOST_VALUES:
        shown = kept[np.linspace(0, len(kept) - 1, MOST_VALUES).round().astype(int)]
    return Sample(name=name, role=role, values=shown.tolist(), n=len(kept), left_out=len(values) - len(kept))


def _attackers(
    runs: Runs, run: str, problem: str, model: Chosen, statistic: str, retrained: Sequence[RowJobs], missing: dict[str, str]
) -> list[Attacker]:  # fmt: skip
    """The attackers of the membership metrics, fitted as the metrics fit them, with what scores.json says of them."""
    try:
        record = judged(runs.scores(run), problem, model)
        readings = _readings(runs, run, problem, model)
        others = [_readings(runs, run, problem, Chosen(row.label, row.seed)) for row in retrained]
    except ExpungeError as error:
        missing["attackers"] = str(error)
        return []
    made = []
    for kind in ("logistic", "svm"):
        suffix = f"{statistic.replace('_', '-')}-{kind}"
        auc, efficacy = (
            record.score(f"mia-{suffix}", "forget"),
            record.score(f"mia-efficacy-{suffix}", "forget"),
        )
        if auc is None and efficacy is None:
            continue
        try:
            attacker, asked, matched = inquire(readings, kind, statistic)
        except Undefined as reason:
            missing["attackers"] = str(reason)
            continue
        classifier = attacker.classifier
        weight, bias = (float(np.ravel(part)[0]) for part in (classifier.coef_, classifier.intercept_))
        if weight == 0:
            missing["attackers"] = "the attacker's weight is 0: the statistic tells it nothing"
            continue
        threshold = attacker.center - attacker.scale * bias / weight
        rocs = [roc for other in others if (roc := _roc(other, kind, statistic)) is not None]
        made.append(
            Attacker(
                kind=kind,
                metric=title_of(f"mia-{suffix}"),
                threshold=threshold,
                members_below=weight < 0,
                asked=_sample("forget rows asked about", "members", asked[statistic]),
                matched=_sample("matched non-members", "nonmembers", matched[statistic]),
                auc=RecordedScore.of(auc),
                efficacy=RecordedScore.of(efficacy),
                retrained=BandCurve(
                    at=RATES.tolist() if rocs else [], **Bands.ends(np.array(rocs).T.tolist(), 0.0, 1.0)
                ),
            )
        )
    if not made and "attackers" not in missing:
        missing["attackers"] = "no membership attacker on this statistic is among the run's metrics"
    return made


def _readings(runs: Runs, run: str, problem: str, model: Chosen) -> Readings:
    found: dict[tuple[Role, str], Evidence] = {
        ("model", split): Evidence(_read(runs, run, problem, model, split).table)
        for split in ("forget", "retain", "holdout")
    }
    return Readings("forget", found)


def _roc(readings: Readings, kind: str, statistic: str) -> np.ndarray | None:
    """True positive rates at `RATES` of an attack on a retrained model; None where there is no such attack."""
    try:
        attacker, asked, matched = inquire(readings, kind, statistic)
    except Undefined:
        return None
    members, nonmembers = attacker.decide(asked), attacker.decide(matched)
    return true_positive_rates(members, nonmembers, RATES) if len(members) and len(nonmembers) else None


def true_positive_rates(members: np.ndarray, nonmembers: np.ndarray, rates: np.ndarray) -> np.ndarray:
    """`[n]` the largest share of members above a threshold that at most the shares `rates` of the non-members exceed."""
    falling = np.append(np.sort(nonmembers)[::-1], -np.inf)
    allowed = np.floor(rates * len(nonmembers) + 1e-9).astype(int)
    return 1 - np.searchsorted(np.sort(members), falling[allowed], side="right") / len(members)


def _comparisons(
    name: str,
    values: np.ndarray,
    retrained: Sequence[tuple[str, np.ndarray]],
    missing: dict[str, str],
    bounds: bool,
) -> list[Comparison]:
    pairs = [(name, values, other, theirs, False) for other, theirs in retrained]
    if len(retrained) > 1:
        (one, first), (two, second) = retrained[:2]
        pairs.append((one, first, two, second, True))
    made = []
    for left, mine, right, theirs, null in pairs:
        a, b = _finite(mine), _finite(theirs)
        if not len(a) or not len(b):
            missing["comparisons"] = f"{left} or {right} has no finite value on the forget set"
            continue
        cut, enough = worst_cut(a, b), min(len(a), len(b)) > 1
        made.append(
            Comparison(
                name=f"{left} against {right}",
                threshold=cut.threshold,
                above=cut.above,
                fpr=cut.fpr,
                fnr=cut.fnr,
                advantage=cut.advantage,
                epsilon=epsilon_of_scores(_thinned(a), _thinned(b)) if bounds and enough else None,
                privacy=privacy_score(a, b),
                null=null,
            )
        )
    return made
