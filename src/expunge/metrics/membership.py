"""Membership inference: do a model's outputs tell that the forgotten examples were trained on?

Population attacks: one attacker for all examples, who sees logits and labels. The attacker is shown
retained rows (members) and holdout rows (non-members), learns to tell them apart by one statistic of each
row, and is then asked about the forget rows. Attackers who train shadow models for every single example are
stronger (LiRA; Carlini et al., S&P 2022), so a failure here proves little, and a success is a finding.

Three rules keep the numbers honest:

- *Held out.* No row is both shown and asked about. Retained and holdout rows are divided into halves by a
  hash of the id, group by group, so that neither the order of the rows nor chance in small groups matters.
- *Matched.* Forget rows that are all of one class are compared with holdout rows of that class, for being an
  unusual digit is no sign of membership. For the same reason only holdout rows of retained groups are shown.
  Matching is by which groups occur, not by their shares.
- *Referred.* The value to match is the retrained model's. An AUC below 0.5 leaks as much as one above (losses
  raised beyond what is natural), so lower is not better.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from sklearn.linear_model import LogisticRegression
from sklearn.svm import SVC, LinearSVC

from expunge.evidence import Evidence
from expunge.metrics.base import Estimate, Readings, Reads, Undefined, by_group, finite_values, metric
from expunge.stats.intervals import delong, wilson

THREAT = "logits and labels; one attacker for all examples (population attack)"
STATISTICS = ("loss", "confidence", "entropy", "modified_entropy")
ATTACKERS: dict[str, tuple[str, Callable[[], LogisticRegression | LinearSVC]]] = {
    "logistic": ("logistic", lambda: LogisticRegression(class_weight="balanced")),
    # "auto" solves the primal problem, deterministically, for there are more rows than features.
    "svm": ("linear SVM", lambda: LinearSVC(class_weight="balanced", dual="auto")),
}
FEWEST_ROWS = 10
"""Rows that each side of a comparison must have."""
FEWEST_ASKED = 2
"""Rows in question that a share or an area is taken over: one row is no distribution."""
FEWEST_FOR_TPR = 100
"""Non-members below which a false-positive rate of 1 % cannot be told from 0."""


def hash_order(ids: list[str]) -> np.ndarray:
    """`[n]` row numbers in the order of the ids' SHA-256: as good as shuffled, and the same everywhere."""
    return np.argsort([hashlib.sha256(i.encode()).digest() for i in ids], kind="stable")


@lru_cache(maxsize=8)
def first_half(evidence: Evidence) -> np.ndarray:
    """`[n]` bool: one half of the rows, of every group one half, chosen by a hash of the id."""
    order = hash_order(evidence.ids)
    if evidence.groups is not None:
        order = order[np.argsort(evidence.groups[order], kind="stable")]
    chosen = np.zeros(len(evidence), dtype=bool)
    chosen[order[::2]] = True
    return chosen


def in_groups_of(rows: Evidence, others: Evidence) -> np.ndarray:
    """`[n]` bool: which of `rows` are of a group that `others` have too; all where there are no groups."""
    if rows.groups is None or others.groups is None:
        return np.ones(len(rows), dtype=bool)
    return np.isin(rows.groups, np.unique(others.groups))


def _values(rows: Evidence, statistic: str) -> np.ndarray:
    return finite_values(rows[statistic], _words(statistic))


def _words(statistic: str) -> str:
    return statistic.replace("_", " ")


def demand_rows(members: Evidence, nonmembers: Evidence) -> None:
    """Raise Undefined where an attacker would be fitted on too few rows of either side."""
    for side, rows in (("retained rows", members), ("holdout rows of retained groups", nonmembers)):
        if len(rows) < FEWEST_ROWS:
            raise Undefined(
                f"only {len(rows)} {side} to fit the attacker on; at least {FEWEST_ROWS} are needed"
            )


@dataclass(frozen=True)
class Attacker:
    """An attacker fitted on one standardized statistic of members and non-members."""

    statistic: str
    center: float
    scale: float
    classifier: LogisticRegression | LinearSVC

    @classmethod
    def fit(cls, kind: str, statistic: str, members: Evidence, nonmembers: Evidence) -> Attacker:
        """The attacker called `kind` in ATTACKERS; both sides weigh the same, whatever their sizes."""
        demand_rows(members, nonmembers)
        # Sorted, so that the solver's rounding does not depend on the order of the rows.
        values = np.concatenate([np.sort(_values(rows, statistic)) for rows in (members, nonmembers)])
        if np.ptp(values) == 0:
            raise Undefined(
                f"the {_words(statistic)} of all retained and holdout rows is the same; nothing to learn"
            )
        center, scale = float(values.mean()), float(values.std())
        is_member = np.repeat([1, 0], [len(members), len(nonmembers)])
        classifier = ATTACKERS[kind][1]().fit(((values - center) / scale)[:, None], is_member)
        return cls(statistic, center, scale, classifier)

    def decide(self, rows: Evidence) -> np.ndarray:
        """`[n]` decision values; above 0 says member."""
        return self.classifier.decision_function(
            ((_values(rows, self.statistic) - self.center) / self.scale)[:, None]
        )


class Inquiry(NamedTuple):
    """What a fitted attacker is asked about."""

    attacker: Attacker
    asked: Evidence
    """The rows of the split in question; of `retain` only those that were not shown."""
    matched: Evidence
    """Holdout rows that were not shown, of the groups that occur in `asked`."""


def inquire(readings: Readings, kind: str, statistic: str) -> Inquiry:
    """Fit the attacker on halves of retain and holdout, and find the rows it may be asked about."""
    attacker = _fitted(kind, statistic, readings["model", "retain"], readings["model", "holdout"])
    return Inquiry(attacker, *held_out(readings))


def shown_rows(retain: Evidence, holdout: Evidence) -> tuple[Evidence, Evidence]:
    """Members and non-members that attackers are fitted on: halves of both."""
    return retain.select(first_half(retain)), holdout.select(_shown(retain, holdout))


def held_out(readings: Readings) -> tuple[Evidence, Evidence]:
    """The rows that attackers are asked about, and the non-members that they are told from; none of them was shown."""
    retain, holdout = readings["model", "retain"], readings["model", "holdout"]
    asked = retain.select(~first_half(retain)) if readings.split == "retain" else readings.model
    return asked, holdout.select(~_shown(retain, holdout) & in_groups_of(holdout, asked))


def _shown(retain: Evidence, holdout: Evidence) -> np.ndarray:
    """`[n_holdout]` bool: the holdout rows that attackers are fitted on."""
    return first_half(holdout) & in_groups_of(holdout, retain)


# Several metrics ask one attacker; the cache is small because it keeps the evidence it was fitted on.
@lru_cache(maxsize=16)
def _fitted(kind: str, statistic: str, retain: Evidence, holdout: Evidence) -> Attacker:
    return Attacker.fit(kind, statistic, *shown_rows(retain, holdout))


def _decisions(readings: Readings, kind: str, statistic: str, fewest: int) -> tuple[np.ndarray, np.ndarray]:
    """Decision values of the rows asked about and of the matched non-members, `fewest` of these at least."""
    attacker, asked, matched = inquire(readings, kind, statistic)
    demand_matched(readings, asked, matched, fewest)
    return attacker.decide(asked), attacker.decide(matched)


def demand_matched(readings: Readings, asked: Evidence, matched: Evidence, fewest: int = FEWEST_ROWS) -> None:
    """Raise Undefined where there are too few rows in question, or too few non-members to tell them from."""
    _demand_asked(readings.split, asked)
    if len(matched) < fewest:
        same = "" if asked.groups is None else f" of the groups in '{readings.split}'"
        raise Undefined(f"only {len(matched)} held-out non-members{same}; at least {fewest} are needed")


def _demand_asked(split: str, asked: Evidence) -> None:
    if len(asked) < FEWEST_ASKED:
        raise Undefined(
            f"only {len(asked)} row of '{split}' to ask about; at least {FEWEST_ASKED} are needed"
        )


def _reads(statistic: str) -> Reads:
    return {("model", split): [statistic] for split in ("*", "retain", "holdout")}


AUC = """Area under the ROC curve of a {attacker} attacker by {words}: forget rows against matched
non-members.

The probability that a random forget row looks more like a member to the attacker than a random holdout row,
one that was not shown and is of a group occurring in the forget set. 0.5: they cannot be told apart. On
`retain` the same for retained rows that were not shown, whose membership is known: where the attacker is
near 0.5 there too, 0.5 on `forget` says little.

An attacker with one statistic is monotone in it, so the value is the AUC of the statistic itself or 1 minus
it; what is learned is the direction, from retained against holdout rows. Hence both attackers, and loss and
confidence, agree unless they learn opposite directions. The interval is DeLong's, over rows, with the
attacker held fixed. Undefined with fewer than 10 matched non-members.
"""
EFFICACY = """Share of forget rows that a {attacker} attacker calls non-members by their {words}, in [0, 1].

Fitted with balanced weights on one half of the retained and of the holdout rows. Higher is not better: the
value to match is the retrained model's, of which no forget row is a member and yet not all are called so.
The interval is Wilson's, over forget rows, with the attacker held fixed.
"""


def _register(statistic: str, kind: str) -> None:
    """Register AUC and efficacy of one attacker on one statistic."""
    words, attacker = _words(statistic), ATTACKERS[kind][0]
    suffix = f"{statistic.replace('_', '-')}-{kind}"

    def auc(readings: Readings) -> Estimate:
        asked, matched = _decisions(readings, kind, statistic, FEWEST_ROWS)
        area, interval = delong(asked, matched)
        return Estimate(area, len(asked), interval)

    def efficacy(readings: Readings) -> Estimate:
        attacker, asked, _ = inquire(readings, kind, statistic)
        _demand_asked(readings.split, asked)
        return _share(attacker.decide(asked) <= 0, asked.groups)

    auc.__doc__ = AUC.format(attacker=attacker, words=words)
    efficacy.__doc__ = EFFICACY.format(attacker=attacker, words=words)
    metric(
        f"mia-{suffix}",
        title=f"Membership AUC ({words}, {attacker})",
        reads=_reads(statistic),
        splits=["forget", "retain"],
        direction="match",
        unit="AUC",
        low=0.0,
        high=1.0,
        source="Yeom et al., CSF 2018 (loss); Song & Mittal, USENIX Security 2021 (entropies)",
        attack=THREAT,
    )(auc)
    metric(
        f"mia-efficacy-{suffix}",
        title=f"Membership efficacy ({words}, {attacker})",
        reads=_reads(statistic),
        splits=["forget"],
        direction="match",
        unit="share",
        low=0.0,
        high=1.0,
        source="MIA-efficacy of Jia et al., NeurIPS 2023, arXiv:2304.04934, with held-out fitting",
        attack=THREAT,
    )(efficacy)


for _statistic in STATISTICS:
    for _kind in ATTACKERS:
        _register(_statistic, _kind)


@metric(
    "tpr-at-1-percent-fpr",
    title="Members found at 1 % false positives (loss)",
    reads=_reads("loss"),
    splits=["forget", "retain"],
    direction="match",
    unit="share",
    low=0.0,
    high=1.0,
    source="Carlini et al., S&P 2022, arXiv:2112.03570",
    attack=THREAT,
)
def tpr_at_1_percent_fpr(readings: Readings) -> Estimate:
    """Share of forget rows above a threshold that at most 1 % of matched non-members exceed.

    By the decision values of the logistic attacker on the loss; 0.01 is guessing. An attack may find a few
    members for certain and still have an AUC near 0.5; this shows it. The threshold is one of the
    non-members' own decision values, never interpolated. The interval is Wilson's, over forget rows, with the
    threshold held fixed. Undefined with fewer than 100 matched non-members.
    """
    asked, matched = _decisions(readings, "logistic", "loss", FEWEST_FOR_TPR)
    threshold = np.sort(matched)[::-1][len(matched) // 100]
    return _share(asked > threshold)


@metric(
    "mia-svc-confidence",
    title="Membership efficacy (confidence, SVC as published)",
    reads={("model", split): ["confidence"] for split in ("forget", "retain", "test")},
    splits=["forget"],
    direction="match",
    unit="share",
    low=0.0,
    high=1.0,
    source="MIA-efficacy of Jia et al., NeurIPS 2023, arXiv:2304.04934, and of Fan et al., ICLR 2024",
    attack=THREAT,
)
def mia_svc_confidence(readings: Readings) -> Estimate:
    """Share of forget rows that an SVC on the confidence, fitted on retain against test, calls non-members.

    For comparison with published tables, and with their weaknesses: the test rows that fit the attacker are
    not held out and, in class forgetting, hold the forgotten class. See `mia-efficacy-confidence-logistic`
    for the remedy. Members are as many retained rows as there are test rows; where the publications take
    the first, these are chosen by a hash of the id.
    """
    retain, test = readings["model", "retain"], readings["model", "test"]
    _demand_asked("forget", readings.model)
    for split, rows in (("retain", retain), ("test", test)):
        if len(rows) < FEWEST_ASKED:
            raise Undefined(
                f"only {len(rows)} row of '{split}' to fit the attacker on; at least {FEWEST_ASKED} are needed"
            )
    members = retain.select(hash_order(retain.ids)[: len(test)])
    value = svc_efficacy(*(np.sort(_values(rows, "confidence")) for rows in (members, test, readings.model)))
    n = len(readings.model)
    return Estimate(value, n, wilson(round(value * n), n))


def svc_efficacy(members: np.ndarray, nonmembers: np.ndarray, forget: np.ndarray) -> float:
    """MIA-efficacy as published: the share of `forget` that an SVC calls non-members, in [0, 1].

    The classifier has an RBF kernel, C = 3, gamma = 1 / features and unweighted classes. Time grows with
    the square of the rows it is fitted on.

    Args:
        members: `[n]` statistic of retained rows, or `[n, d]`, such as all class probabilities.
        nonmembers: `[m]` or `[m, d]`, of rows never trained on.
        forget: `[k]` or `[k, d]`.
    """
    members, nonmembers, forget = (np.asarray(a).reshape(len(a), -1) for a in (members, nonmembers, forget))
    is_member = np.repeat([1, 0], [len(members), len(nonmembers)])
    classifier = SVC(C=3, kernel="rbf", gamma="auto").fit(np.concatenate([members, nonmembers]), is_member)
    return float(np.mean(classifier.predict(forget) == 0))


def _share(called: np.ndarray, groups: np.ndarray | None = None) -> Estimate:
    n = len(called)
    return Estimate(float(called.mean()), n, wilson(int(called.sum()), n), by_group(called, groups))
