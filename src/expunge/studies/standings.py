"""Where methods stand: the ways of ranking them put side by side, with intervals."""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import combinations
from typing import Any, Literal, NamedTuple

import numpy as np
from pydantic import Field
from scipy.stats import kendalltau

from expunge.record import Interval, Record
from expunge.stats.borda import borda, pairwise_wins, ranks_of
from expunge.stats.critical import critical_difference, signed_rank_tests
from expunge.stats.kemeny import kemeny
from expunge.stats.plackett_luce import Choices, fit

Level = Literal["task", "instance"]

PENALTY = 0.1
"""Regularization of the strengths: a normal prior of standard deviation 2.2, for somebody may have won everything."""
LEVEL = 0.95


class Standing(Record):
    """Where one method stands."""

    label: str
    reference: bool = Field(
        default=False, description="True for retraining, which is the yardstick and no competitor"
    )
    rank: float = Field(description="by the Borda count, from 1; ties averaged")
    interval: Interval | None = Field(
        default=None, description="of the rank, over resampled seeds or examples"
    )
    first: float | None = Field(
        default=None, description="share of the resamples in which it is alone on rank 1"
    )
    share: float = Field(description="of its comparisons on all ballots, the share won; a tie is one half")
    ballots: int = Field(description="on which it is compared with another")
    kemeny_best: int = Field(description="best rank over all Kemeny orders")
    kemeny_worst: int = Field(description="worst rank over all Kemeny orders")
    strength: float | None = Field(
        default=None, description="Plackett and Luce's log-strength; mean 0 over methods"
    )
    strength_interval: Interval | None = None
    average_rank: float | None = Field(default=None, description="over the ballots that have every method")


class Ranking(Record):
    """All methods on one kind of ballot."""

    level: Level
    ballots: int
    resampled: str = Field(description="what the intervals are over; '' where nothing could be resampled")
    standings: list[Standing] = Field(description="best first, by the Borda count")
    kemeny_exact: bool
    kemeny_optima: int | None = Field(default=None, description="how many Kemeny orders are equally good")
    kemeny_disagreements: float = Field(description="pairs that it orders against a ballot, over all ballots")
    agreement: dict[str, float | None] = Field(description="Kendall's tau between the ways of ranking")
    wins: list[list[float]] = Field(
        description="ballots on which the row's method beats the column's, in the order of standings"
    )
    friedman_p: float | None = Field(default=None, description="of the hypothesis that all methods are alike")
    critical_difference: float | None = Field(default=None, description="of average ranks, Nemenyi at 95 %")
    complete: int | None = Field(
        default=None, description="ballots with every method, which these two rest on"
    )
    alike: list[list[str]] = Field(default_factory=list, description="methods within the critical difference")
    pairs: dict[str, float | None] = Field(
        default_factory=dict, description="Holm-adjusted p-values of the signed-rank test by 'one | other'"
    )
    notes: list[str] = Field(default_factory=list)


class InstanceTable(NamedTuple):
    """How each example of one split of a problem orders the methods."""

    problem: str
    split: str
    values: dict[str, np.ndarray]
    """By label `[n]`, higher is better."""
    clusters: np.ndarray | None = None
    """`[n]` author, identity, class, ... of each example: examples of one are not independent."""


def rank_tasks(
    table: np.ndarray, labels: Sequence[str], references: set[str],
    resampled: Sequence[tuple[np.ndarray, np.ndarray]], over: str,
) -> Ranking:  # fmt: skip
    """The ranking by ballots `[labels, ballots]`; `resampled` holds tables of the same shape with weights of their ballots."""
    shares = np.array([borda(t, weights=w).share for t, w in resampled]).reshape(-1, len(labels))
    some = resampled[: max(1, len(resampled) // 5)] if resampled else []
    strengths = [fit(Choices.of(t, w), PENALTY).strength for t, w in some]
    found = borda(table)
    return _assemble("task", table, labels, references, found.share, found.ballots, shares, strengths, over)


def _assemble(
    level: Level, table: np.ndarray, labels: Sequence[str], references: set[str], share: np.ndarray,
    counts: np.ndarray, shares: np.ndarray, strengths: Sequence[np.ndarray | None], over: str,
    weights: np.ndarray | None = None,
) -> Ranking:  # fmt: skip
    """Everything that is said of a table; `shares` and `strengths` are those of its resamples."""
    wins = pairwise_wins(table, weights=weights)
    consensus = kemeny(wins)
    model = fit(Choices.of(table, weights), PENALTY)
    ranks, notes = ranks_of(share), []
    if model.reason:
        notes.append(f"strengths: {model.reason}")
    if not consensus.exact:
        notes.append("the Kemeny order comes from a local search; a better one may exist")
    critical = critical_difference(table)
    if isinstance(critical, str):
        notes.append(f"no critical difference: {critical}")
        critical = None
    drawn = np.array([ranks_of(s) for s in shares]).reshape(-1, len(labels))
    low, high = np.nanquantile(drawn, [(1 - LEVEL) / 2, (1 + LEVEL) / 2], axis=0) if len(drawn) else ([], [])
    fitted = np.array([s for s in strengths if s is not None]).reshape(-1, len(labels))
    standings = []
    for i in np.argsort(ranks, kind="stable").tolist():
        extra: dict[str, Any] = {}
        if len(drawn):
            extra["interval"] = Interval(
                low=low[i], high=high[i], level=LEVEL, method=f"bootstrap over {over}"
            )
            extra["first"] = float((drawn[:, i] == 1).mean())
        if len(fitted):
            ends = np.quantile(fitted[:, i], [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
            extra["strength_interval"] = Interval(
                low=ends[0], high=ends[1], level=LEVEL, method=f"bootstrap over {over}"
            )
        standings.append(
            Standing(
                label=list(labels)[i], reference=labels[i] in references, rank=float(ranks[i]), share=float(share[i]),
                ballots=int(counts[i]), kemeny_best=int(consensus.best[i]), kemeny_worst=int(consensus.worst[i]),
                strength=None if model.strength is None else float(model.strength[i]),
                average_rank=None if critical is None else float(critical.average_ranks[i]), **extra,
            )
        )  # fmt: skip
    ways = {"borda": share, "kemeny": -(consensus.best + consensus.worst) / 2.0}
    if model.strength is not None:
        ways["plackett-luce"] = model.strength
    order = [labels.index(s.label) for s in standings]
    pairs = signed_rank_tests(table) if table.shape[1] > 1 else {}
    return Ranking(
        level=level, ballots=table.shape[1], resampled=over, standings=standings, kemeny_exact=consensus.exact,
        kemeny_optima=consensus.optima, kemeny_disagreements=consensus.disagreements,
        agreement={f"{a} | {b}": tau_of(ways[a], ways[b]) for a, b in combinations(ways, 2)},
        wins=wins[np.ix_(order, order)].tolist(),
        friedman_p=None if critical is None else critical.p_value,
        critical_difference=None if critical is None else critical.difference,
        complete=None if critical is None else critical.blocks,
        alike=[] if critical is None else [[labels[i] for i in group] for group in critical.groups if len(group) > 1],
        pairs={f"{labels[i]} | {labels[j]}": p for (i, j), p in pairs.items()}, notes=notes,
    )  # fmt: skip


def tau_of(one: np.ndarray, two: np.ndarray) -> float | None:
    """Kendall's tau-b; None where one side is all tied."""
    tau = float(kendalltau(one, two, nan_policy="omit")[0])  # pyright: ignore[reportArgumentType]
    return None if math.isnan(tau) else tau


def rank_instances(
    tables: Sequence[InstanceTable], labels: Sequence[str], references: set[str], resamples: int, rng: np.random.Generator
) -> Ranking:  # fmt: skip
    """Borda on two levels: each task's order by its examples, then over tasks; each task weighs the same.

    Resampled are examples, or whole clusters of them where a table has two clusters at least.
    """
    labels = [label for label in labels if any(label in one.values for one in tables)]
    arrays = []
    for one in tables:
        n = len(next(iter(one.values.values())))
        arrays.append(np.stack([one.values.get(label, np.full(n, math.nan)) for label in labels]))
    sizes = np.array([a.shape[1] for a in arrays])
    whole = np.concatenate(arrays, axis=1)
    weights = np.repeat(sizes.sum() / len(sizes) / sizes, sizes)
    won, met = zip(*(_won(a) for a in arrays), strict=True)
    found = borda(np.stack([_share(w.sum(1), m.sum(1)) for w, m in zip(won, met, strict=True)], axis=1))
    shares, strengths = [], []
    choices = Choices.of(whole, weights)
    units = [_units(one, n) for one, n in zip(tables, sizes.tolist(), strict=True)]
    for number in range(resamples):
        times = [rng.multinomial(n := int(u.max()) + 1, np.full(n, 1 / n))[u] for u in units]
        drawn = [_share(w @ t, m @ t) for w, m, t in zip(won, met, times, strict=True)]
        shares.append(borda(np.stack(drawn, axis=1)).share)
        if number < resamples // 10:
            strengths.append(fit(choices, PENALTY, np.concatenate(times).astype(float)).strength)
    over = f"examples ({sizes.min()} to {sizes.max()} in each of {len(sizes)} tasks)"
    clustered = {
        f"{t.problem}: {t.split}": int(u.max()) + 1
        for t, u in zip(tables, units, strict=True)
        if u.max() + 1 < len(u)
    }
    if clustered:
        over += ", in whole groups where they have some"
    ranking = _assemble(
        "instance", whole, labels, references, found.share, (~np.isnan(whole)).sum(1), np.array(shares), strengths, over,
        weights,
    )  # fmt: skip
    if clustered:
        counts = ", ".join(f"{n} of {name}" for name, n in clustered.items())
        ranking.notes.append(f"groups (author, identity, class) resampled as a whole: {counts}")
    names = ", ".join(f"{t.problem}: {t.split}" for t in tables)
    ranking.notes.append(f"tasks: {names}; Borda over the examples of each, then over tasks")
    return ranking


def _units(table: InstanceTable, n: int) -> np.ndarray:
    """`[n]` number of what each example is resampled with: itself, or its cluster."""
    if table.clusters is not None:
        found = np.unique(table.clusters, return_inverse=True)[1]
        if found.max() > 0:
            return found
    return np.arange(n)


def _won(table: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[k, n]` of the others beaten on each example, ties one half, and met."""
    on = ~np.isnan(table)
    with np.errstate(invalid="ignore"):
        beaten = np.stack([(row > table).sum(0) + (row == table).sum(0) / 2 for row in table]) - on / 2
    return beaten * on, np.where(on, on.sum(0) - 1, 0)


def _share(won: np.ndarray, met: np.ndarray) -> np.ndarray:
    return np.divide(won, met, out=np.full(len(won), math.nan), where=met > 0)
