"""What samples show, against shares counted by hand."""

from __future__ import annotations

import math

import numpy as np
import pyarrow as pa
import pytest

from expunge.evidence import Evidence
from expunge.metrics.base import METRICS, Role

Found = dict[tuple[Role, str], list[Evidence]]


def evidence(**columns: object) -> Evidence:
    n = len(next(iter(columns.values())))  # type: ignore[arg-type]
    return Evidence(pa.table({"id": [str(i) for i in range(n)], **columns}))  # type: ignore[arg-type]


def test_undesired_rate_counts_verdicts() -> None:
    score = METRICS["undesired-rate"](
        "samples", {("model", "samples"): [evidence(undesired=[1.0, 0.0, 0.0, 1.0])]}
    )
    assert score.value == 0.5 and score.interval is not None
    nameless = METRICS["undesired-rate"](
        "samples", {("model", "samples"): [evidence(undesired=[math.nan] * 4)]}
    )
    assert nameless.value is None and "nothing in common that the judge has a name for" in str(
        nameless.reason
    )


def test_coverage_and_density_are_means_over_real_images() -> None:
    found: Found = {("model", "test"): [evidence(covered=[1.0, 0.0, 1.0, 1.0], density=[2.0, 0.0, 1.0, 0.2])]}
    assert METRICS["coverage"]("test", found).value == 0.75
    assert METRICS["density"]("test", found).value == pytest.approx(0.8)
    few = METRICS["coverage"]("test", {("model", "test"): [evidence(covered=[math.nan] * 3)]})
    assert few.value is None and "3 real images are too few" in str(few.reason)


def test_class_distance_is_total_variation_without_the_undesired() -> None:
    """Kept samples 0, 0, 0, 1 against real 0, 1, 1, 2: half of |3/4 - 1/4| + |1/4 - 1/2| + |0 - 1/4| is 1/2."""
    found: Found = {
        ("model", "samples"): [
            evidence(
                judged=np.array([0, 0, 0, 1, 3, 3], dtype=np.int32), undesired=[0.0, 0.0, 0.0, 0.0, 1.0, 1.0]
            )
        ],
        ("model", "test"): [evidence(image_judged=np.array([0, 1, 1, 2], dtype=np.int32))],
    }
    assert METRICS["class-distance"]("samples", found).value == pytest.approx(0.5)
    gone: Found = {
        **found,
        ("model", "samples"): [evidence(judged=np.array([3], dtype=np.int32), undesired=[1.0])],
    }
    assert "every sample is undesired" in str(METRICS["class-distance"]("samples", gone).reason)


def test_degree_of_unlearning_by_hand() -> None:
    """P_0 = {0, 0}, P_f = {1, 1}, P_t = {0, 0.5}: distances 0.25 and 1, so 0.75."""
    target = evidence(concept_probability=[0.0, 0.0, 1.0, 1.0], undesired=[0.0, 0.0, 1.0, 1.0])

    def degree(values: list[float]) -> float | None:
        found: Found = {
            ("model", "samples"): [evidence(concept_probability=values)],
            ("target", "samples"): [target],
        }
        return METRICS["degree-of-unlearning"]("samples", found).value

    assert degree([0.9, 0.9, 0.0, 0.5]) == pytest.approx(0.75)
    assert degree([0.0, 0.0, 1.0, 1.0]) == 0
    assert degree([0.0, 0.0, 0.0, 0.0]) == 1
