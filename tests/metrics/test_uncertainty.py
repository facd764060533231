"""How sure models are that they do not know: who refuses everything, or babbles, is told from who was retrained."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from expunge.evidence import Evidence
from expunge.metrics.base import METRICS, chosen_metrics, standard_metrics
from expunge.record import Score
from expunge.testing import tiny_problem

N, K, R = 12, 4, 5
ON_DEMAND = {
    "refusal-probability",
    "dcs",
    "sampled-abstention-rate",
    "semantic-volume",
    "incoherence",
    "umpire",
}


def score(metric: str, split: str, model: dict[str, Evidence]) -> Score:
    return METRICS[metric](split, {("model", s): [e] for s, e in model.items()})


def asked(answer: float, wrong: float, refusal: float) -> Evidence:
    """Every option with the given geometric mean of its token probabilities."""
    made = {
        "id": pa.array([f"r{i}" for i in range(N)]), "loss": pa.array(np.full(N, -math.log(answer))),
        "perturbed_loss": pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * K, -math.log(wrong))), K),
        "refusal_loss": pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * R, -math.log(refusal))), R),
    }  # fmt: skip
    return Evidence(pa.table(made))


def sampled(texts: list[str], vectors: np.ndarray, token_p: float) -> Evidence:
    """Every row with the same samples, each of 4 tokens of probability `token_p`."""
    k = len(texts)
    unit = vectors / np.linalg.norm(vectors, axis=1, keepdims=True)
    made = {
        "id": pa.array([f"r{i}" for i in range(N)]), "sample_text": pa.array([texts] * N, pa.list_(pa.string())),
        "sample_similarity": pa.FixedSizeListArray.from_arrays(pa.array(np.tile((unit @ unit.T).ravel(), N)), k * k),
        "sample_logp": pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * k, 4 * math.log(token_p))), k),
        "sample_tokens": pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * k, 4)), k),
    }  # fmt: skip
    return Evidence(pa.table(made))


# Knows what it was not asked to forget and guesses the rest; refuses everything; finds everything equally unlikely.
RETRAINED = {"retain": asked(0.9, 0.01, 0.01), "forget": asked(0.1, 0.1, 0.05)}
REFUSES = {"retain": asked(0.01, 0.01, 0.9), "forget": asked(0.01, 0.01, 0.9)}
GIBBERISH = {"retain": asked(0.001, 0.001, 0.001), "forget": asked(0.001, 0.001, 0.001)}
OTHER = {"retain": asked(0.85, 0.02, 0.01), "forget": asked(0.11, 0.1, 0.06)}


def test_by_hand():
    # Of answer .1, four wrong ones .1 and five refusals .05: the sum is .75.
    assert score("refusal-probability", "forget", RETRAINED).value == pytest.approx(0.25 / 0.75)
    p_right, p_wrong, p_idk = 0.1 / 0.75, 0.4 / 0.75, 0.25 / 0.75
    expected = (p_right - p_wrong) * (1 - p_idk)
    assert score("dcs", "forget", RETRAINED).value == pytest.approx(expected)
    refuses = score("dcs", "retain", REFUSES)
    assert refuses.value == pytest.approx((0.01 - 0.04) / 4.55 * (0.05 / 4.55))


@pytest.mark.parametrize("bad", [REFUSES, GIBBERISH], ids=["refuses", "gibberish"])
def test_refusing_everything_and_gibberish_do_not_win(bad):
    for metric in ("dcs", "refusal-probability"):
        gaps = [
            max(
                abs((score(metric, s, m).value or 0) - (score(metric, s, RETRAINED).value or 0)) for s in ("retain", "forget")
            )
            for m in (bad, OTHER)
        ]  # fmt: skip
        assert gaps[0] > gaps[1] + 0.3, metric
    assert (score("dcs", "retain", bad).value or 0) < 0 < (score("dcs", "retain", OTHER).value or 0)


def test_samples():
    same = sampled(["I don't know."] * 4, np.ones((4, 8)), 0.95)
    wide = sampled(["In Rome.", "In Oslo.", "I have no idea.", "In Lima."], np.eye(4, 8), 0.5)
    # k equal answers: ((k - 1) ln eps + ln(k + eps)) / (2k) = -6.7345 for k = 4; orthogonal ones: 0.
    assert score("semantic-volume", "forget", {"forget": same}).value == pytest.approx(-6.7345, abs=1e-4)
    assert score("semantic-volume", "forget", {"forget": wide}).value == pytest.approx(0.0, abs=1e-7)
    assert score("incoherence", "forget", {"forget": same}).value == pytest.approx(0.05)
    assert score("umpire", "forget", {"forget": wide}).value == pytest.approx(0.5, abs=1e-7)
    assert score("umpire", "forget", {"forget": same}).value == pytest.approx(-6.7345 + 0.05, abs=1e-4)
    assert score("sampled-abstention-rate", "forget", {"forget": wide}).value == 0.25
    assert score("sampled-abstention-rate", "forget", {"forget": same}).value == 1.0
    # Who always refuses in the same words is far from a retrained model that guesses; who guesses otherwise is near.
    angle = np.array([[1.0, 0.2, 0, 0], [0, 1, 0.2, 0], [0, 0, 1, 0.2], [0.2, 0, 0, 1]])
    near = score("umpire", "forget", {"forget": sampled(["a", "b", "c", "d"], angle, 0.45)}).value or 0
    assert abs(near - 0.5) < 0.2


def test_undefined_with_the_reason():
    nothing = asked(0.5, 0.1, 0.1)
    table = nothing.table.set_column(
        3, "refusal_loss", pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * R, np.nan)), R)
    )
    assert (
        score("dcs", "forget", {"forget": Evidence(table)}).reason
        == "the rows ask nothing that could be declined"
    )
    alone = nothing.table.set_column(
        2, "perturbed_loss", pa.FixedSizeListArray.from_arrays(pa.array(np.full(N * K, np.nan)), K)
    )
    found = score("dcs", "forget", {"forget": Evidence(alone)})
    assert found.reason == "the rows have no perturbed answers to compare with"
    assert score("refusal-probability", "forget", {"forget": Evidence(alone)}).value == pytest.approx(0.5)


def test_they_are_computed_when_asked_for():
    family = tiny_problem("causal_lm").family
    standard = {m.name for m in standard_metrics(family)}
    assert not standard & ON_DEMAND and "conformal-coverage-choice" in standard
    more = [m.name for m in chosen_metrics(["standard", "umpire", "umpire"], family)]
    assert set(more) == standard | {"umpire"} and len(more) == len(set(more))


def choices(rng: np.random.Generator, n: int) -> Evidence:
    """Rows whose answer is right with the probability that the model gives it: options are shuffled by that."""
    p = rng.dirichlet(np.full(4, 0.7), n)
    drawn = np.array([rng.choice(4, p=row) for row in p])
    right = np.log(p[np.arange(n), drawn])
    wrong = np.log(np.array([np.delete(row, d) for row, d in zip(p, drawn, strict=True)]))
    made = {
        "id": pa.array([f"r{i}" for i in range(n)]), "loss": pa.array(-right), "paraphrase_loss": pa.array(-right),
        "perturbed_loss": pa.FixedSizeListArray.from_arrays(pa.array(-wrong.ravel()), 3),
    }  # fmt: skip
    return Evidence(pa.table(made))


def test_sets_of_answers_cover_what_they_promise():
    rng = np.random.default_rng(0)
    seen = {"holdout": choices(rng, 999), "retain": choices(rng, 4000)}
    coverage = score("conformal-coverage-choice", "retain", seen).value
    assert coverage == pytest.approx(0.9, abs=0.025)
    size = score("conformal-set-size-choice", "retain", seen).value
    assert size is not None and 1 < size < 4
    few = score("conformal-coverage-choice", "retain", {**seen, "holdout": choices(rng, 5)})
    assert few.reason.endswith("need 9 holdout rows to be calibrated on, and there are 5")
