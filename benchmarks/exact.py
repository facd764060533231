"""Exact forgetting against fitting again: time and difference. Names of benchmarks as arguments run these alone."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier
from timing import line

from expunge.data.specification import ProblemSpec
from expunge.exact.acu import AnalyticHead
from expunge.exact.estimators import DaREForestClassifier, Ridge
from expunge.exact.shards import ShardedModel
from expunge.exact.sisa import SISA
from expunge.exact.stages import expected_share
from expunge.problem import Training


def rows(n: int, d: int, outputs: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d)) + rng.normal(size=d)
    return x, x[:, :outputs] + 0.1 * rng.normal(size=(n, outputs))


def seconds(run: Callable[[], object]) -> float:
    started = time.process_time()
    run()
    return time.process_time() - started


def ridge(n: int = 100_000, d: int = 512, removals: int = 30) -> None:
    """One record leaves ridge regression; the others are fitted again by the same class."""
    x, y = rows(n, d, 1)
    y = y[:, 0]
    model = Ridge().fit(x, y)
    # Two kinds of memory traffic alternate in a service too: each removal is timed by itself, the median counts.
    ours = sorted(seconds(lambda i=i: model.forget([i])) for i in range(removals))[removals // 2]
    again = Ridge()
    theirs = min(seconds(lambda: again.fit(x[removals:], y[removals:])) for _ in range(3))
    line(
        f"ridge, one of {n:,} rows of {d} leaves, against refitting",
        ours / theirs,
        ours,
        theirs,
        "at most 0.001",
    )
    gap = max(np.abs(model.coef_ - again.coef_).max(), abs(model.intercept_ - again.intercept_))
    print(f"{'':<64} {theirs / ours:,.0f} times as fast; largest difference {gap:.1e} (bound 1e-8)")


def acu(n: int = 100_000, d: int = 512, classes: int = 10, removals: int = 30) -> None:
    """One record leaves an analytic head; the normal equations of the others are made and solved again."""
    x, y = rows(n, d, classes)
    ids = [f"row-{i}" for i in range(n)]
    head = AnalyticHead(d, classes)
    head.add(ids, x, y)
    head.weights  # noqa: B018 - solved once, as it is served
    one = [slice(i, i + 1) for i in range(removals)]
    ours = sorted(seconds(lambda s=s: head.forget(ids[s], x[s], y[s])) for s in one)[removals // 2]
    stay, targets = x[removals:], y[removals:]
    found = []

    def again() -> None:
        found[:] = [np.linalg.solve(stay.T @ stay + np.eye(d), stay.T @ targets)]

    theirs = min(seconds(again) for _ in range(3))
    line(
        f"ACU head, one of {n:,} rows of {d} leaves, against solving",
        ours / theirs,
        ours,
        theirs,
        "at most 0.001",
    )
    gap = np.abs(head.weights - found[0]).max()
    print(f"{'':<64} {theirs / ours:,.0f} times as fast; largest difference {gap:.1e} (bound 1e-8)")


def dare(n: int = 20_000, d: int = 16, trees: int = 5, removals: int = 100) -> None:
    """One record leaves a forest; the others grow one again. Both cost so much per tree, so few trees tell the ratio."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n, d))
    y = (x[:, 0] + x[:, 1] * x[:, 2] + 0.5 * rng.normal(size=n) > 0).astype(int)
    model = DaREForestClassifier(trees, random_state=0).fit(x, y)
    ours = float(np.mean([seconds(lambda i=i: model.forget([i])) for i in range(removals)]))
    again = DaREForestClassifier(trees, random_state=0)
    theirs = seconds(lambda: again.fit(x[removals:], y[removals:]))
    line(
        f"DaRE, one of {n:,} rows of {d} leaves, mean, against growing",
        ours / theirs,
        ours,
        theirs,
        "at most 0.02",
    )
    library = RandomForestClassifier(trees, max_depth=10, n_jobs=1, random_state=0)
    compiled = min(seconds(lambda: library.fit(x[removals:], y[removals:])) for _ in range(3))
    print(
        f"{'':<64} against growing scikit-learn's compiled RandomForestClassifier of {trees} trees of depth 10 "
        f"({compiled:.4f} s): {compiled / ours:,.0f} times as fast"
    )
    gap = np.abs(model.predict_proba(x) - again.predict_proba(x)).max()
    print(f"{'':<64} {theirs / ours:,.0f} times as fast; largest difference {gap:.1e} (bound 0)")


def sisa(shards: int = 5, slices: int = 5, removals: int = 25) -> None:
    """One record leaves an ensemble of digits: rows visited, and time, against training all shards, and the formula."""
    problem = ProblemSpec(benchmark="digits", forget="fraction=0.1").build()
    # 2 E / (R + 1) whole epochs per stage, so that nothing is rounded.
    problem = replace(problem, recipe=Training(epochs=3 * (slices + 1), batch_size=64))
    formula = expected_share(slices) / shards
    with tempfile.TemporaryDirectory() as folder:
        model = ShardedModel.create(
            f"{folder}/digits", problem, SISA(shards=shards, slices=slices), secret=bytes(32)
        )
        theirs = seconds(model.train)
        drawn = np.random.default_rng(0).permutation(len(problem.train))[:removals].tolist()
        ids = [str(i) for i in problem.train["id"][:]]
        counted = np.mean([model.cost([i]) for i in ids]) / model.cost(ids)
        ours = float(np.mean([seconds(lambda i=i: model.forget([ids[i]])) for i in drawn]))
    print(
        f"sisa, {shards} shards of {slices} slices: rows visited for one deletion {counted:.4f} of training, mean over all rows; "
        f"formula {formula:.4f}, ratio {counted / formula:.3f}   0.9 to 1.1"
    )
    line(
        "sisa, time of one deletion, against training all shards",
        ours / theirs,
        ours,
        theirs,
        f"about {formula:.3f}",
    )


BENCHMARKS: dict[str, Callable[[], None]] = {"ridge": ridge, "acu": acu, "dare": dare, "sisa": sisa}


def main() -> None:
    torch.set_num_threads(1)
    for name in sys.argv[1:] or BENCHMARKS:
        BENCHMARKS[name]()


if __name__ == "__main__":
    main()
