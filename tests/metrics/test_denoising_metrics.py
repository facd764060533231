"""Membership by a denoiser's losses, and copies of training images, on planted cases."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import roc_auc_score

from expunge.evidence import Evidence, collect
from expunge.metrics import METRICS, standard_metrics
from expunge.metrics.copying import copies, nearest_distances
from expunge.metrics.membership import first_half
from expunge.testing import check_metric
from expunge.testing.problems import tiny_problem

Given = dict[Any, list[Evidence]]
NEW = ("mia-timestep-loss-logistic", "mia-best-timestep-loss", "copy-rate")


@pytest.mark.parametrize("check", [c for name in NEW for c in check_metric(METRICS[name])], ids=str)
def test_contract(check) -> None:
    check()


def with_losses(name: str, values: np.ndarray) -> Evidence:
    """`[n, T]` losses as evidence, with their mean as `loss`."""
    rows = pa.array(list(values))
    ids = pa.array([f"{name}{i}" for i in range(len(values))])
    return Evidence(pa.table({"id": ids, "loss": pa.array(values.mean(1)), "token_loss": rows}))


@pytest.fixture
def at_one_timestep() -> Given:
    """Members' losses are smaller at the third of four timesteps, which is the smallest part of the mean."""
    random = np.random.default_rng(0)

    def rows(name: str, n: int, member: bool) -> Evidence:
        values = np.exp(random.normal(size=(n, 4))) * [20, 20, 0.1, 20]
        values[:, 2] *= 0.02 if member else 1
        return with_losses(name, values)

    sides = {"forget": (80, True), "retain": (300, True), "holdout": (300, False)}
    return {("model", split): [rows(split[0], *facts)] for split, facts in sides.items()}


def test_a_timestep_tells_what_the_mean_hides(at_one_timestep: Given) -> None:
    mean = METRICS["mia-loss-logistic"]("forget", at_one_timestep)
    best = METRICS["mia-best-timestep-loss"]("forget", at_one_timestep)
    every = METRICS["mia-timestep-loss-logistic"]("forget", at_one_timestep)
    assert mean.value is not None and mean.value < 0.65
    assert best.value is not None and every.value is not None and min(best.value, every.value) > 0.99
    holdout, forget = (at_one_timestep["model", s][0] for s in ("holdout", "forget"))
    asked = np.stack(forget["token_loss"])[:, 2]
    unseen = np.stack(holdout.select(~first_half(holdout))["token_loss"])[:, 2]
    labels = np.repeat([1, 0], [len(asked), len(unseen)])
    assert best.value == pytest.approx(roc_auc_score(labels, -np.concatenate([asked, unseen])))


def test_where_nothing_was_learned_there_is_nothing_to_tell(at_one_timestep: Given) -> None:
    random = np.random.default_rng(1)
    stranger = with_losses("s", np.exp(random.normal(size=(400, 4))) * [20, 20, 0.1, 20])
    given = {**at_one_timestep, ("model", "forget"): [stranger]}
    for name in NEW[:2]:
        score = METRICS[name]("forget", given)
        assert score.value is not None and score.value == pytest.approx(0.5, abs=0.06)


def test_rows_without_images_have_no_losses(at_one_timestep: Given) -> None:
    blank = Evidence(pa.table({"id": ["a", "b"], "token_loss": pa.array([[], []], pa.list_(pa.float64()))}))
    score = METRICS["mia-best-timestep-loss"]("forget", {**at_one_timestep, ("model", "forget"): [blank]})
    assert score.status == "undefined" and "rows without images" in str(score.reason)


def test_the_general_attacks_work_on_a_denoiser() -> None:
    problem = tiny_problem("diffusion")
    fitting = {m.name for m in standard_metrics(problem.family)}
    assert {"mia-loss-logistic", "mia-loss-svm", "mia-efficacy-loss-logistic", *NEW} <= fitting
    given: Given = {
        ("model", s): [collect(problem.family, problem.target, problem.splits[s], ["loss", "token_loss"])]
        for s in ("forget", "retain", "holdout")
    }
    score = METRICS["mia-loss-logistic"]("retain", given)
    retain, holdout = (given["model", s][0] for s in ("retain", "holdout"))
    np.testing.assert_allclose([row.mean() for row in retain["token_loss"]], retain["loss"], rtol=1e-5)
    asked, unseen = retain.select(~first_half(retain))["loss"], holdout.select(~first_half(holdout))["loss"]
    labels = np.repeat([1, 0], [len(asked), len(unseen)])
    by_hand = roc_auc_score(labels, -np.concatenate([asked, unseen]))
    assert score.value is not None and max(score.value, 1 - score.value) == pytest.approx(
        max(by_hand, 1 - by_hand)
    )


def test_planted_copies_are_counted_and_fresh_draws_are_not() -> None:
    random = np.random.default_rng(2)
    train, fresh = random.normal(size=(2000, 6)), random.normal(size=(1000, 6))
    assert copies(fresh, train).mean() == pytest.approx(0.05, abs=0.025)  # by definition, up to chance
    planted = fresh.copy()
    planted[:300] = train[:300] + random.normal(scale=1e-3, size=(300, 6))
    found = copies(planted, train)
    assert found[:300].all()
    assert found.mean() == pytest.approx(0.3 + 0.7 * 0.05, abs=0.03)


def test_nearest_distances_by_hand() -> None:
    line = np.array([[0.0], [1.0], [3.0]])
    assert nearest_distances(line).tolist() == [1, 1, 2]
    assert nearest_distances(np.array([[2.5], [-4.0]]), line).tolist() == [0.5, 4]


def test_duplicates_in_the_training_set_leave_the_rate_undefined(evidence) -> None:
    twins = np.repeat(np.random.default_rng(0).normal(size=(10, 2)), 2, axis=0)
    given: Given = {
        ("model", "test"): [evidence(judge_features=np.zeros((3, 2)))],
        ("model", "retain"): [evidence(image_features=twins[:12])],
        ("model", "forget"): [evidence(image_features=twins[12:])],
    }
    score = METRICS["copy-rate"]("test", given)
    assert score.status == "undefined" and "exact duplicate" in str(score.reason)
    spread = np.arange(20.0).reshape(10, 2) ** 2
    given["model", "retain"] = [evidence(image_features=spread)]
    given["model", "forget"] = [evidence(image_features=spread[:1] + 500)]
    given["model", "test"] = [
        evidence(judge_features=np.stack([spread[3], spread[3] + 300, spread[0] + 500]))
    ]
    assert METRICS["copy-rate"]("test", given).value == pytest.approx(2 / 3)
