"""Estimators that forget: scikit-learn's own contract, and equality with fitting on what remains."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sklearn.utils.estimator_checks import parametrize_with_checks

from expunge.exact.estimators import (
    PCA,
    Decremental,
    GaussianNB,
    KernelRidge,
    KMeans,
    KNeighborsClassifier,
    LinearDiscriminantAnalysis,
    MultinomialNB,
    NearestCentroid,
    Ridge,
)
from expunge.exact.estimators.base import BadRows

ESTIMATORS = [
    Ridge(),
    Ridge(alpha=0.0),
    Ridge(alpha=0.1, fit_intercept=False),
    KernelRidge(),
    GaussianNB(),
    MultinomialNB(),
    NearestCentroid(),
    LinearDiscriminantAnalysis(),
    LinearDiscriminantAnalysis(shrinkage=0.2),
    KNeighborsClassifier(),
    KMeans(n_clusters=3),
    PCA(),
]


@parametrize_with_checks(ESTIMATORS)
def test_scikit_learn_contract(estimator: Any, check: Any) -> None:
    check(estimator)


REGRESSORS = (Ridge, KernelRidge)
COUNTS = (MultinomialNB,)


def rows(estimator: Decremental, n: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray | None]:
    """Rows in general position about a mean far from 0, or counts; targets are values, or one of three classes."""
    if isinstance(estimator, COUNTS):
        return rng.poisson(2.0, (n, 3)).astype(float), rng.integers(3, size=n)
    x = rng.normal(size=(n, 3)) * [1.0, 10.0, 0.1] + [0.0, 100.0, -3.0]
    if isinstance(estimator, REGRESSORS):
        return x, x @ [1.0, -2.0, 3.0] + rng.normal(size=n)
    return x, None if isinstance(estimator, (PCA, KMeans)) else rng.integers(3, size=n)


def learned(estimator: Decremental) -> dict[str, np.ndarray]:
    """Everything that `fit` sets and a user sees."""
    skip = ("rows_", "n_features_in_", "refits_")
    return {k: np.asarray(v) for k, v in vars(estimator).items() if k.endswith("_") and k not in skip}


def assert_same(estimator: Decremental, refitted: Decremental, asked: np.ndarray) -> None:
    assert estimator.rows_.ids == refitted.rows_.ids
    bitwise = estimator.guarantee.startswith("bitwise")
    for name, value in learned(refitted).items():
        own = learned(estimator)[name]
        assert own.shape == value.shape, name
        if name == "components_":  # no basis is determined within eigenvalues that are close
            continue
        if bitwise or value.dtype.kind not in "f":
            np.testing.assert_array_equal(own, value, err_msg=name)
        else:
            scale = max(1.0, float(np.abs(value).max()))
            np.testing.assert_allclose(own, value, rtol=1e-8, atol=1e-8 * scale, err_msg=name)
    answers = [
        e.transform(asked) @ e.components_ if isinstance(e, PCA) else e.predict(asked)  # pyright: ignore
        for e in (estimator, refitted)
    ]
    if bitwise:
        np.testing.assert_array_equal(*answers)
    elif not hasattr(
        estimator, "classes_"
    ):  # classes may change where two are equally likely but for rounding
        np.testing.assert_allclose(*answers, rtol=1e-7, atol=1e-7)


STEPS = st.lists(
    st.one_of(st.integers(1, 6), st.lists(st.integers(0, 10**6), min_size=1, max_size=8)), max_size=8
)


# A grid so coarse that most removals leave the centers as they are; it tells no blobs of unit width apart.
@pytest.mark.parametrize("estimator", [*ESTIMATORS, KMeans(n_clusters=2, pitch=20.0)], ids=repr)
@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(6, 30), steps=STEPS)
def test_any_sequence_of_additions_and_removals_equals_fitting_what_remains(
    estimator: Decremental, seed: int, n: int, steps: list[int | list[int]]
) -> None:
    """A number adds so many rows; a list removes the rows that it points to."""
    rng = np.random.default_rng(seed)
    made = estimator.__class__(**estimator.get_params())
    x, y = rows(made, n, rng)
    kept = {f"r{i}": (x[i], None if y is None else y[i]) for i in range(n)}
    made.fit(x, y, list(kept))
    for number, step in enumerate(steps):
        if isinstance(step, int):
            x, y = rows(made, step, rng)
            ids = [f"s{number}-{i}" for i in range(step)]
            kept |= {i: (x[j], None if y is None else y[j]) for j, i in enumerate(ids)}
            made.add(x, y, ids)
        else:
            ids = list(dict.fromkeys(list(kept)[place % len(kept)] for place in step))
            # Least squares of as many rows as columns has a solution that no sum of squares determines to eight digits.
            if len(kept) - len(ids) < (6 if getattr(made, "alpha", 1.0) == 0 else 3):
                continue
            made.forget(ids)
            for i in ids:
                del kept[i]
    x = np.stack([row for row, _ in kept.values()])
    y = np.array([target for _, target in kept.values()])
    refitted = estimator.__class__(**estimator.get_params())
    refitted.fit(x, None if y[0] is None else y, list(kept))
    if isinstance(refitted, LinearDiscriminantAnalysis):
        # Columns of scales 0.1 to 10 make it 1e4; of a nearly singular one, from few rows, nobody knows eight digits.
        assume(np.linalg.cond(refitted.covariance_) < 1e6)
    assert_same(made, refitted, rows(made, 5, rng)[0])


@pytest.mark.parametrize(
    "estimator", [e for e in ESTIMATORS if hasattr(e, "predict_proba") or "Centroid" in repr(e)], ids=repr
)
def test_the_last_members_of_a_class_take_it_with_them(estimator: Any) -> None:
    x = rows(estimator, 12, np.random.default_rng(0))[0]
    labels = np.array(["cat", "dog", "otter"])[np.arange(12) % 3]
    estimator.fit(x, labels).forget([i for i in range(12) if labels[i] == "dog"])
    assert estimator.classes_.tolist() == ["cat", "otter"]
    assert set(estimator.predict(x)) <= {"cat", "otter"}
    estimator.add(x[:1], np.array(["hippopotamus"]))
    assert estimator.classes_.tolist() == ["cat", "hippopotamus", "otter"]
    assert estimator.rows_.ids[-1] == 12, "numbers are not given twice"


@pytest.mark.parametrize("estimator", ESTIMATORS, ids=repr)
def test_a_forgotten_row_is_nowhere_in_the_estimator(estimator: Any) -> None:
    """A marker value, present once, must be gone from all arrays that are reachable."""
    marker = 12345.0 if isinstance(estimator, MultinomialNB) else 12345.678901
    x, y = rows(estimator, 9, np.random.default_rng(1))
    x[4, 1] = marker
    estimator.fit(x, y)
    assert holds(estimator, marker)
    estimator.forget([4])
    assert not holds(estimator, marker)


def holds(thing: object, marker: float, depth: int = 5) -> bool:
    if isinstance(thing, np.ndarray):
        whole = thing.base if isinstance(thing.base, np.ndarray) else thing
        return whole.dtype.kind == "f" and bool((whole == marker).any())
    parts = thing.values() if isinstance(thing, dict) else thing if isinstance(thing, (list, tuple)) else ()
    return depth > 0 and any(
        holds(part, marker, depth - 1) for part in (*parts, *getattr(thing, "__dict__", {}).values())
    )


@pytest.mark.parametrize("ids, message", [
    (["r1", "nobody"], "1 of the ids to forget are not in the model (first: 'nobody'); were they forgotten already?"),
    (["r1", "r1"], "an id to forget is named twice; name each once"),
    ("r1", "ids must be a collection of ids, got 'r1'; put it in a list"),
    ([f"r{i}" for i in range(8)], "0 rows would remain, but Ridge needs 1; drop the estimator instead"),
])  # fmt: skip
def test_what_cannot_be_forgotten_is_refused_and_changes_nothing(ids: Any, message: str) -> None:
    x, y = rows(Ridge(), 8, np.random.default_rng(0))
    made = Ridge().fit(x, y, [f"r{i}" for i in range(8)])
    before = made.coef_.copy()
    with pytest.raises(BadRows) as caught:
        made.forget(ids)
    assert str(caught.value) == message
    np.testing.assert_array_equal(made.coef_, before)
    assert len(made.rows_) == 8


def test_ids_are_unique_and_as_many_as_rows() -> None:
    x, y = rows(Ridge(), 4, np.random.default_rng(0))
    with pytest.raises(BadRows, match="id 'a' is taken"):
        Ridge().fit(x, y, list("abca"))
    with pytest.raises(BadRows, match="4 rows came with 3 ids"):
        Ridge().fit(x, y, list("abc"))
    made = Ridge().fit(x, y, list("abcd")).forget(["b"])
    with pytest.raises(BadRows, match="id 'c' is taken"):
        made.add(x[:1], y[:1], ["c"])
    made.add(x[1:2], y[1:2], ["b"])
    np.testing.assert_allclose(made.coef_, Ridge().fit(x, y).coef_, atol=1e-12)


@pytest.mark.parametrize("estimator, message", [
    (Ridge(alpha=-1.0), "alpha must be 0 or more, got -1.0"),
    (KernelRidge(alpha=0.0), "alpha must be above 0, got 0.0"),
    (GaussianNB(var_smoothing=0.0), "var_smoothing must be above 0, got 0.0"),
    (MultinomialNB(alpha=0.0), "alpha must be above 0, got 0.0"),
    (KNeighborsClassifier(n_neighbors=0), "n_neighbors must be 1 or more, got 0"),
    (KMeans(pitch=0.0), "pitch must be above 0, got 0.0"),
    (KMeans(n_clusters=5), "n_samples=4 rows cannot make 5 clusters; ask for fewer"),
    (LinearDiscriminantAnalysis(shrinkage=2.0), "shrinkage must lie between 0 and 1, got 2.0"),
    (PCA(n_components=4), "n_components is 4, but the rows have 3 columns"),
], ids=repr)  # fmt: skip
def test_senseless_hyperparameters_are_refused(estimator: Any, message: str) -> None:
    x = np.arange(12.0).reshape(4, 3)
    with pytest.raises(BadRows) as caught:
        estimator.fit(x, np.array([0, 1, 0, 1]))
    assert str(caught.value) == message
