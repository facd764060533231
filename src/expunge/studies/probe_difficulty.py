"""How hard each probe is to models that never saw the forget set, and what methods answer at equal difficulty.

Difficulties are estimates, and who was asked for them fits them better than anybody else does: probes that look hard to the
models asked are a little easier to all others. So answers are compared by *leaving one out*: for each retrained model in
turn, probes are ordered by the others alone, and it and the methods are judged in that order.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from pydantic import Field
from scipy.stats import rankdata

from expunge.evidence import Evidence
from expunge.metrics.abstention import RIGHT
from expunge.metrics.base import Undefined
from expunge.metrics.rouge import TEXTS, rouge_of_rows
from expunge.record import Interval, Judged, Record, ScoreFile
from expunge.stats.item_response import FEWEST, item_response
from expunge.stats.paired import paired_test
from expunge.studies.instances import evidence_of, places_of

CONTROLS = ("test", "holdout")
"""Where control probes come from: the first of these that models were asked on; rows that no model was trained on."""
STRATA = ("easy", "middle", "hard")
CALIPER = 0.05
"""Controls farther from a forget probe than this share of all probes, in the order of difficulty, do not match it."""


class Item(Record):
    """One probe."""

    id: str
    split: str
    difficulty: float = Field(
        description="in standard deviations of ability; 0 is solved by half of average models"
    )
    error: float = Field(description="posterior standard deviation of the difficulty")
    slope: float = Field(
        description="discrimination; near 0 where weak models solve it as often as strong ones"
    )


class Stratum(Record):
    """Probes of similar difficulty."""

    split: str
    name: str = Field(description="third of all probes by difficulty: easy, middle, hard")
    n: int
    low: float
    high: float
    right: dict[str, float] = Field(
        description="by method: share answered right, mean over its models and over the thirds that each retrained "
        "model leaves when it is not asked itself"
    )


class Matched(Record):
    """Forget probes against control probes of the same difficulty."""

    label: str
    n: int = Field(description="forget probes that have a match")
    difference: float = Field(
        description="share of them answered right, minus that of their controls; not 0 for models that never saw "
        "the forget set, where forget and control probes are of different difficulty (regression to the mean)"
    )
    excess: float | None = Field(
        default=None, description="the difference minus that of the retrained models; None for these"
    )
    interval: Interval | None = Field(
        default=None,
        description="of the excess; bootstrap over forget probes, or over their groups; models and controls as they are",
    )
    p_value: float | None = Field(
        default=None, description="of no excess, by flipping signs of probes or of whole groups"
    )


class Difficulty(Record):
    """The probes of one problem."""

    problem: str
    control: str | None = Field(default=None, description="data set of the control probes")
    respondents: int = Field(description="retrained models that answered")
    model: str | None = Field(default=None, description="1pl, or 2pl from 30 respondents on")
    reason: str = Field(default="", description="why there are no difficulties")
    clusters: int | None = Field(
        default=None, description="groups of the forget probes that intervals are over"
    )
    unmatched: int = Field(default=0, description="forget probes without a control of the same difficulty")
    strata: list[Stratum] = Field(default_factory=list)
    matched: list[Matched] = Field(default_factory=list)
    items: list[Item] = Field(default_factory=list)


def difficulties(scores: ScoreFile, stores: Iterable[Path]) -> list[Difficulty]:
    """Item response models of the probes of each problem, from the evidence in `stores`.

    Respondents are the retrained models, which never saw the forget set: asked of others, what they memorized looks easy. Forget
    and control probes are fitted together, so that their difficulties are on one scale. An answer is right where the
    predicted label is, or where the ROUGE-L recall of an answer in words is at least 1/2. Each forget probe is matched with
    all control probes nearest in difficulty, within 5 % of the probes (Ding et al., NeurIPS 2024, arXiv:2409.18433;
    leaving one out is ours).
    """
    places = places_of(stores, {j.model_id for j in scores.judged if j.model_id})
    made = []
    for problem in scores.problems:
        mine = [j for j in scores.judged if j.problem == problem["name"] and j.status == "ok"]
        asked = {s: evidence_of(mine, problem["fingerprint"], s, places) for s in ("forget", *CONTROLS)}
        made.append(_difficulty(problem["name"], mine, asked))
    return made


def answered_right(evidence: Evidence) -> np.ndarray | None:
    """`[n]` 1 right, 0 wrong, NaN where it cannot be said; None where the evidence holds no answers."""
    columns = evidence.table.column_names
    if "correct" in columns:
        correct = evidence["correct"]
        return np.where(np.isnan(correct), np.nan, correct > 0)
    if all(name in columns for name in TEXTS):
        try:
            recall = rouge_of_rows(evidence)
        except Undefined:  # the model's outputs are not finite, or ROUGE is not installed
            return np.full(len(evidence), np.nan)
        return np.where(np.isnan(recall), np.nan, recall >= RIGHT)
    return None


Answers = dict[int, np.ndarray]
"""By the number of the model: `[n]`."""


def _difficulty(name: str, judged: Sequence[Judged], asked: dict[str, dict[int, Evidence]]) -> Difficulty:
    answers: dict[str, Answers] = {
        split: {k: a for k, e in found.items() if (a := answered_right(e)) is not None}
        for split, found in asked.items()
    }
    control = next((s for s in CONTROLS if answers[s]), None)
    if not answers["forget"] or control is None:
        wanted = "forget probes" if not answers["forget"] else "probes that no model was trained on"
        return Difficulty(
            problem=name, respondents=0, reason=f"no stored evidence says who answered {wanted} right"
        )
    both = {
        k: np.concatenate([a, answers[control][k]])
        for k, a in answers["forget"].items()
        if k in answers[control]
    }
    knew_nothing = [k for k in both if judged[k].method == "retrain"]
    n, facts = len(knew_nothing), {"problem": name, "control": control, "respondents": len(knew_nothing)}
    if n < FEWEST["1pl"]:
        return Difficulty(
            **facts,
            reason=f"difficulty takes {FEWEST['1pl']} retrained models, and there are {n}; run more seeds",
        )
    ids = [i for split in ("forget", control) for i in next(iter(asked[split].values())).ids]
    n_forget = len(next(iter(answers["forget"].values())))
    responses = np.stack([both[k] for k in knew_nothing])
    known = np.asarray(~np.isnan(responses).all(0))
    if len(np.unique(np.nanmean(responses[:, known], axis=0))) < 2:
        return Difficulty(
            **facts, reason="retrained models answer every probe equally often; none is harder than another"
        )
    model = "2pl" if n >= FEWEST["2pl"] else "1pl"
    fitted = item_response(responses[:, known], model)
    forget = (np.arange(len(known)) < n_forget)[known]
    split = np.where(forget, "forget", control)
    groups = next(iter(asked["forget"].values())).groups
    clusters = None if groups is None else groups[known[:n_forget]]
    if clusters is not None and len(np.unique(clusters)) < 2:
        clusters = None
    panel = _Panel(responses[:, known], forget, _by_label(judged, both, known))
    matched, unmatched = panel.matched(clusters)
    return Difficulty(
        **facts, model=model, clusters=None if clusters is None else len(np.unique(clusters)), unmatched=unmatched,
        strata=panel.strata(fitted.difficulty, split), matched=matched,
        items=[
            Item(id=i, split=s, difficulty=float(b), error=float(e), slope=float(a))
            for i, s, b, e, a in zip(np.asarray(ids)[known], split, fitted.difficulty, fitted.error, fitted.slope, strict=True)
        ],
    )  # fmt: skip


def _by_label(judged: Sequence[Judged], answers: Answers, known: np.ndarray) -> dict[str, np.ndarray]:
    """`[models, probes]` of every method but retraining."""
    found: dict[str, list[np.ndarray]] = {}
    for k, values in answers.items():
        if judged[k].method != "retrain":
            found.setdefault(judged[k].label, []).append(values[known])
    return {label: np.stack(values) for label, values in found.items()}


class _Panel:
    """Retrained models, each judged in the order of difficulty that the others give."""

    def __init__(self, retrained: np.ndarray, forget: np.ndarray, others: dict[str, np.ndarray]) -> None:
        """`[models, probes]` answers, `[probes]` which of them are of the forget set, answers of the methods."""
        self.retrained, self.forget = retrained, forget
        self.means = {label: _mean(values) for label, values in others.items()}
        # Share solved by the others: in a Rasch model it orders probes as their difficulties do.
        self.orders = [_mean(np.delete(retrained, k, axis=0)) for k in range(len(retrained))]

    def turns(self) -> Iterator[tuple[np.ndarray, dict[str, np.ndarray]]]:
        """The order without each model, and what it (as `retrain`) and the methods answered."""
        for order, own in zip(self.orders, self.retrained, strict=True):
            yield order, {"retrain": own, **self.means}

    def strata(self, difficulty: np.ndarray, split: np.ndarray) -> list[Stratum]:
        """Thirds of all probes; those of equal difficulty stay together, so that a third may be empty."""
        shares: dict[tuple[str, int, str], list[float]] = {}
        for order, answered in self.turns():
            third = _thirds(-order)
            for one in np.unique(split).tolist():
                for number in range(len(STRATA)):
                    rows = (split == one) & (third == number)
                    for label, y in answered.items():
                        if not np.isnan(y[rows]).all():
                            shares.setdefault((one, number, label), []).append(float(np.nanmean(y[rows])))
        found, third = [], _thirds(difficulty)
        for one in dict.fromkeys(split.tolist()):
            for number, name in enumerate(STRATA):
                rows = (split == one) & (third == number)
                if rows.any():
                    right = {
                        label: float(np.mean(shares[one, number, label]))
                        for label in ("retrain", *self.means)
                        if (one, number, label) in shares
                    }
                    low, high = float(difficulty[rows].min()), float(difficulty[rows].max())
                    found.append(
                        Stratum(split=one, name=name, n=int(rows.sum()), low=low, high=high, right=right)
                    )
        return found

    def matched(self, clusters: np.ndarray | None) -> tuple[list[Matched], int]:
        """Every method against its own answers to controls, and how many forget probes have none."""
        gaps: dict[str, list[np.ndarray]] = {}
        for order, answered in self.turns():
            controls = _controls(order, self.forget)
            for label, y in answered.items():
                theirs = y[~self.forget]
                against = np.array([_mean(theirs[c]) if len(c) else np.nan for c in controls])
                gaps.setdefault(label, []).append(y[self.forget] - against)
        by_label = {label: _mean(np.stack(found)) for label, found in gaps.items()}
        unmatched = int(np.isnan(by_label["retrain"]).sum())
        made = []
        for label, gap in by_label.items():
            usable = ~np.isnan(gap) & ~np.isnan(by_label["retrain"])
            if not usable.any():
                continue
            facts = {"label": label, "n": int(usable.sum()), "difference": float(gap[usable].mean())}
            if label != "retrain":
                some = None if clusters is None else clusters[usable]
                test = paired_test(gap[usable], by_label["retrain"][usable], some)
                facts |= {"excess": test.difference, "interval": test.interval, "p_value": test.p_value}
            made.append(Matched(**facts))
        return made, unmatched


def _mean(values: np.ndarray) -> np.ndarray:
    """Over the first axis, of what is known; NaN of nothing."""
    n = (~np.isnan(values)).sum(0)
    return np.divide(np.nansum(values, 0), n, out=np.full(np.shape(n), np.nan), where=n > 0)


def _thirds(difficulty: np.ndarray) -> np.ndarray:
    """`[probes]` 0, 1 or 2."""
    return np.searchsorted(np.nanquantile(difficulty, [1 / 3, 2 / 3]), difficulty, side="left")


def _controls(solved: np.ndarray, forget: np.ndarray) -> list[np.ndarray]:
    """Of each forget probe, the numbers of the controls nearest in the order of difficulty; none beyond the caliper."""
    order = np.full(len(solved), np.nan)
    asked = ~np.isnan(solved)
    order[asked] = rankdata(solved[asked]) / asked.sum()
    theirs = np.where(np.isnan(order[~forget]), np.inf, order[~forget])
    found = []
    for one in order[forget]:
        distance = np.abs(theirs - one)
        found.append(np.flatnonzero(distance <= min(distance.min(initial=np.inf) + 1e-9, CALIPER)))
    return found
