"""Digits by camera: what each camera does, and which rows go where."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.datasets import load_digits

from expunge.data.benchmarks.shift import Shift
from expunge.data.worlds.domains import CAMERAS, TRAINED, UNSEEN, camera_digits
from expunge.evidence.collect import collect
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.metrics.base import METRICS

IMAGES = load_digits().images / 16  # type: ignore[attr-defined]


def test_every_digit_is_seen_once_in_the_stated_shares() -> None:
    rows, unseen = camera_digits(300)
    assert len(unseen) == 300 and len({*rows["id"], *unseen["id"]}) == len(IMAGES)
    for data, shares in ((rows, TRAINED), (unseen, UNSEEN)):
        domains, counts = np.unique(data["domain"], return_counts=True)
        assert set(domains) == set(shares) and sum(shares.values()) == pytest.approx(1)
        assert all(abs(n - shares[str(d)] * len(data)) <= 1 for d, n in zip(domains, counts, strict=True))


def test_cameras_show_the_digit_of_the_row() -> None:
    for data in camera_digits(300):
        arrays = data.with_format("numpy")["image"][:]
        for row in range(0, len(data), 97):
            number = int(data["id"][row].split("-")[1])
            expected = CAMERAS[data["domain"][row]](IMAGES[number], data["id"][row])
            assert np.allclose(arrays[row], expected, atol=1e-6)
            assert data["label"][row] == load_digits().target[number]  # type: ignore[attr-defined]


def test_what_each_camera_does() -> None:
    image = IMAGES[5]
    assert np.array_equal(CAMERAS["upright"](image, "a"), image)
    # Turning a mirror picture to the left is turning the picture to the right.
    mirrored = np.fliplr(CAMERAS["left"](np.fliplr(image), "a"))
    assert np.allclose(mirrored, CAMERAS["right"](image, "a"))
    assert not np.allclose(CAMERAS["left"](image, "a"), CAMERAS["right"](image, "a"), atol=0.1)
    faint = CAMERAS["faint"](image, "a")
    assert np.corrcoef(faint.flat, image.flat)[0, 1] == pytest.approx(-1)
    assert np.ptp(faint) == pytest.approx(0.4 * np.ptp(image))
    noise = np.concatenate([CAMERAS["noisy"](np.full((8, 8), 0.5), str(k)) for k in range(400)]) - 0.5
    assert np.abs(noise).max() <= 0.5 and abs(noise.mean()) < 0.01
    assert noise.var() == pytest.approx(1 / 12, rel=0.03)
    assert np.allclose(CAMERAS["blurred"](np.full((8, 8), 0.3), "a"), 0.3)
    assert np.abs(np.diff(CAMERAS["blurred"](image, "a"))).max() < np.abs(np.diff(image)).max()


def test_parts_and_probes_never_change() -> None:
    problem = Shift().problem()
    assert {s: len(d) for s, d in problem.splits.items()} == {
        "forget": 233, "retain": 664, "holdout": 300, "test": 300, "ood": 300,
    }  # fmt: skip
    assert set(problem.forget["domain"]) == {"left"} and "left" not in set(problem.retain["domain"])
    assert set(problem.splits["test"]["domain"]) == set(problem.splits["holdout"]["domain"]) == set(TRAINED)
    assert set(problem.splits["ood"]["domain"]) == set(UNSEEN)
    ends = problem.train["id"][0], problem.splits["holdout"]["id"][-1]
    assert ends == ("digit-1061", "digit-0140")


def test_random_rows_and_parts_of_a_domain_can_be_forgotten() -> None:
    problem = Shift(forget="where:domain == faint and label == 3").problem()  # pyright: ignore
    assert set(problem.forget["domain"]) == {"faint"} and set(problem.forget["label"]) == {3}
    problem = Shift(forget="fraction=0.1").problem()  # pyright: ignore
    assert len(problem.forget_ids) == 90 and set(problem.forget["domain"]) == set(TRAINED)


@pytest.mark.parametrize(
    ("model", "least"), [pytest.param("cnn", 0.87, marks=pytest.mark.slow), ("mlp", 0.7)]
)
def test_targets_learn_and_pay_for_the_shift(model: str, least: float) -> None:
    problem = Shift(model=model).problem()  # pyright: ignore
    assert problem.recipe is not None
    trained = fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace(seed=0))
    scores = {}
    for split in ("test", "ood"):
        seen = {("model", split): [collect(problem.family, trained, problem.splits[split], ["correct"])]}
        for name in ("accuracy", "worst-group-accuracy"):
            scores[name, split] = METRICS[name](split, seen)  # type: ignore[arg-type]
    overall, worst = scores["accuracy", "test"], scores["worst-group-accuracy", "test"]
    assert overall.value > least and set(overall.groups) == set(TRAINED)
    assert worst.value == min(overall.groups.values()) < overall.value
    assert scores["accuracy", "ood"].value < overall.value - 0.15
    assert set(scores["worst-group-accuracy", "ood"].groups) == set(UNSEEN)
