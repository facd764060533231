from __future__ import annotations

import numpy as np
from sklearn.linear_model import LogisticRegression

from expunge.api import forget
from expunge.oracles import LogisticWorld


def test_solution_agrees_with_scikit_learn() -> None:
    """C = 1 / (n lambda) there; the constant goes in as a column, because it is decayed too."""
    world = LogisticWorld()
    rows = np.arange(world.n_forget, world.n)
    columns = [np.asarray(world.dataset[f"x{j}"]) for j in range(world.d)]
    x = np.column_stack([*columns, np.ones(world.n)])[rows]
    peer = LogisticRegression(C=1 / (len(rows) * world.decay), fit_intercept=False, tol=1e-10, max_iter=5000)
    peer.fit(x, np.asarray(world.dataset["label"])[rows])
    np.testing.assert_allclose(world.retrained, peer.coef_, atol=1e-5)


def test_retraining_by_the_recipe_gives_the_solution() -> None:
    world = LogisticWorld()
    assert np.linalg.norm(world.solution() - world.retrained) > 0.3
    made = forget(world.problem, "retrain")
    np.testing.assert_allclose(world.weights(made.model), world.retrained, atol=1e-4)
