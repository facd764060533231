"""Which numbers tell models that know from models that do not: planted metrics whose answer is known."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from expunge.attacks.base import ATTACKS
from expunge.errors import BadInput
from expunge.methods.base import METHODS
from expunge.metrics.base import METRICS, Estimate, Metric, Readings, Undefined
from expunge.studies.meta_evaluation import (
    MetaEvaluation,
    faithfulness,
    meta_evaluation,
    quantization_robustness,
    relearning_robustness,
)
from expunge.testing.problems import tiny_problem


def test_robustness_by_hand() -> None:
    assert relearning_robustness(0.2, 0.2) == 1
    assert relearning_robustness(0.3, 0.1) == pytest.approx(0.5)
    assert relearning_robustness(0.3, 0.0) == 0
    assert relearning_robustness(0.3, -0.1) == 0
    assert relearning_robustness(0.0, 0.0) == 1
    assert quantization_robustness(0.5, 0.5) == 1
    assert quantization_robustness(0.6, 0.2) == pytest.approx(0.5)
    assert quantization_robustness(0.0, 0.0) == 1


def test_faithfulness_is_the_auc_in_the_direction_of_the_pair() -> None:
    rng = np.random.default_rng(0)
    knowing, ignorant = rng.normal(1, 1, 7), rng.normal(0, 1, 9)
    expected = roc_auc_score([1] * 7 + [0] * 9, [*knowing, *ignorant])
    assert faithfulness(list(knowing), list(ignorant), (1.0, 0.0))[0] == pytest.approx(expected)
    # A pair that points the other way makes a number that misleads, not a good one.
    assert faithfulness(list(knowing), list(ignorant), (0.0, 1.0))[0] == pytest.approx(1 - expected)
    assert faithfulness(list(knowing), list(ignorant), (0.5, 0.5)) == (0.5, None)


def planted(name: str, function: object) -> Metric:
    return Metric(
        name, name, "a number for a test", function, {("model", "*"): ["correct"]}, ["forget"], {"*": "match"}, "share",  # type: ignore[arg-type]
        0, 1, None, "none", "",
    )  # fmt: skip


def constant(readings: Readings) -> Estimate:
    return Estimate(0.25, len(readings.model))


def undefined(readings: Readings) -> Estimate:
    raise Undefined("it never has a value")


@pytest.fixture(scope="module")
def evaluated() -> MetaEvaluation:
    metrics = [
        METRICS["accuracy"],
        METRICS["mean-loss"],
        planted("constant", constant),
        planted("absent", undefined),
    ]
    methods = [
        ("gentle", METHODS["fine-tune"](epochs=1)),
        ("brutal", METHODS["gradient-ascent"](lr=10.0, epochs=5)),
    ]
    attacks = [ATTACKS["detach-guard"](), ATTACKS["lira"]()]
    return meta_evaluation(tiny_problem("classifier"), metrics, attacks, methods, models=3)


def test_every_number_is_judged(evaluated: MetaEvaluation) -> None:
    by_name = {q.metric: q for q in evaluated.qualities}
    # Attacks with shadow models are left out; an attack gives one row per measure.
    assert {name for name, q in by_name.items() if q.kind == "attack"} == {
        "detach-guard-knowledge", "detach-guard-gain", "detach-guard-parts",
    }  # fmt: skip
    assert set(by_name) - {"accuracy", "mean-loss", "constant", "absent"} == {
        n for n, q in by_name.items() if q.kind == "attack"
    }
    still = by_name["constant"]
    assert (still.auc, still.relearning, still.quantization) == (0.5, 1, 1)
    assert still.overall == pytest.approx(3 / (2 + 1 + 1))
    loss = by_name["mean-loss"]
    assert loss.auc is not None and len(loss.knowing) == len(loss.ignorant) == 3
    assert loss.relearning is not None and 0 <= loss.relearning <= 1
    # Knowledge under no guard is accuracy itself.
    assert by_name["detach-guard-knowledge"].knowing == pytest.approx(by_name["accuracy"].knowing)
    absent = by_name["absent"]
    assert absent.auc is absent.overall is None
    assert absent.reason == "undefined for 8 of 8 models: it never has a value"


def test_destroyed_models_do_not_count(evaluated: MetaEvaluation) -> None:
    assert (evaluated.unlearned, evaluated.left_out) == (["gentle"], ["brutal"])


def test_it_is_written_and_read(evaluated: MetaEvaluation, tmp_path: Path) -> None:
    evaluated.write(tmp_path / "one.json")
    assert MetaEvaluation.read(tmp_path / "one.json") == evaluated
    assert not any(
        "target" in key for key in json.loads((tmp_path / "one.json").read_text())["problem"]["counts"]
    )
    with pytest.raises(BadInput, match="no meta-evaluation at"):
        MetaEvaluation.read(tmp_path / "none.json")
    sys.path.insert(0, str(Path(__file__).parents[2] / "docs"))
    try:
        from writers import meta_evaluation as writer  # pyright: ignore[reportMissingImports]

        text = writer.page([tmp_path / "one.json"])
    finally:
        sys.path.pop(0)
    assert "| `constant` | metric | 0.25 | 0.25 | 0.50 | 1.00 | 1.00 | 0.75 |" in text
    assert "- `absent`: undefined for 8 of 8 models: it never has a value" in text


def test_pools_must_be_large_enough() -> None:
    with pytest.raises(BadInput, match="a pool of 2 models"):
        meta_evaluation(tiny_problem("classifier"), [], [], models=2)
