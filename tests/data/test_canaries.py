from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from datasets import Array3D, Dataset, Features, Value
from scipy import stats

from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.canaries import Poison, mark_in, plant_mark, plant_poison, poison_in
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.families import Classifier, Images
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem


def inputs(problem: Problem, split: str = "train") -> np.ndarray:
    """What the model reads, `[n, ...]`."""
    batches = problem.batches(split)
    (value,) = batches.take(torch.arange(len(batches))).inputs.values()
    return value.double().numpy()


def pictures() -> Problem:
    """Twelve pictures of two channels' normalization: three channels with a mean and scale each."""
    rng = np.random.default_rng(0)
    train = Dataset.from_dict(
        {
            "id": [f"p{i}" for i in range(12)],
            "image": list(rng.random((12, 3, 4, 4)).astype(np.float32)),
            "label": np.arange(12) % 3,
        }
    )
    family = Classifier(
        Images("image", channels=3, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0), rescale=0.5), 3
    )
    return Problem("pictures", family, train, ("p0", "p5"))


def untrained(name: str) -> Problem:
    return ProblemSpec(benchmark=name, forget="fraction=0.1").build()  # pyright: ignore


@pytest.mark.parametrize("make", [lambda: untrained("digits"), lambda: untrained("diabetes"), pictures])
def test_the_noise_is_what_the_model_reads_more_of(make) -> None:
    """In the model's units, whatever the columns are scaled by: standardized tables, normalized pictures."""
    problem = make()
    planted = plant_poison(problem, std=0.3, key=5)
    difference = inputs(planted) - inputs(problem)
    expected = Poison(0.3, 5).noise([str(i) for i in problem.forget["id"][:]], difference.shape[1:])
    assert difference[problem.forget_mask] == pytest.approx(expected, abs=1e-5)
    assert (difference[~problem.forget_mask] == 0).all()
    assert poison_in(planted) == Poison(0.3, 5)
    assert poison_in(problem) is None
    assert planted.fingerprint != problem.fingerprint


def test_the_noise_is_gaussian_and_of_its_own_for_every_row_and_key() -> None:
    noise = Poison(0.2, 1).noise([f"r{i}" for i in range(200)], (10,))
    assert stats.kstest(noise.ravel() / 0.2, "norm").pvalue > 0.01
    assert np.abs(np.corrcoef(noise.T) - np.eye(10)).max() < 0.3
    assert (Poison(0.2, 1).noise(["r7"], (10,)) == noise[7:8]).all(), "depends on key and id alone"
    assert (Poison(0.2, 2).noise(["r7"], (10,)) != noise[7:8]).all()


def test_a_kept_mark_teaches_no_forgotten_class() -> None:
    problem = ProblemSpec(benchmark="digits", forget="class=3").build()  # pyright: ignore
    planted = plant_mark(problem, rows=50)
    mark = mark_in(planted)
    assert mark is not None and (mark.rows, mark.classes, mark.within) == (50, 9, "retain")
    assert set(mark.ids) <= set(planted.retain["id"][:])
    rows = planted.retain.select(range(len(planted.retain) - 50, len(planted.retain)))
    assert rows["id"][:] == mark.ids
    assert 3 not in rows["label"][:] and len(set(rows["label"][:])) > 5
    pixels = inputs(planted)[-50:]
    clean = inputs(problem)
    assert (pixels <= clean.max(0)).all() and (pixels >= clean.min(0)).all()
    assert planted.forget_ids == problem.forget_ids
    assert (inputs(planted)[:-50] == clean).all()


def test_a_mark_to_be_forgotten_joins_the_forget_set() -> None:
    problem = untrained("breast-cancer")
    planted = plant_mark(problem, rows=8, within="forget")
    assert len(planted.forget) == len(problem.forget) + 8
    assert planted.scope == f"{problem.scope}, and the ownership mark"


def test_refusals() -> None:
    trained = tiny_problem("classifier")
    with pytest.raises(
        BadInput, match="has a trained target already; poisons must be planted before training"
    ):
        plant_poison(trained)
    with pytest.raises(BadInput, match="has a trained target already; a mark"):
        plant_mark(trained)
    bare = replace(trained, model=None)
    with pytest.raises(BadInput, match="poisons is 0; it must be above 0"):
        plant_poison(bare, std=0)
    with pytest.raises(BadInput, match="a mark of 0 rows marks nothing"):
        plant_mark(bare, rows=0)
    with pytest.raises(BadInput, match="regressor has no classes"):
        plant_mark(untrained("diabetes"))
    bytes_ = pictures()
    pixels = (255 * np.asarray(bytes_.train["image"][:])).astype(np.uint8)
    rows = {"id": bytes_.train["id"][:], "image": list(pixels), "label": bytes_.train["label"][:]}
    kinds = Features({"id": Value("string"), "image": Array3D((3, 4, 4), "uint8"), "label": Value("int64")})
    raw = Dataset.from_dict(rows, features=kinds)
    with pytest.raises(BadInput, match="column 'image' holds pictures of bytes; convert them to floats"):
        plant_poison(replace(bytes_, train=raw))
    one_class = ProblemSpec(benchmark="digits", forget="class=3").build()  # pyright: ignore
    with pytest.raises(BadInput, match="the forget set has one class only"):
        plant_mark(one_class, within="forget")


def test_the_benchmark_puts_both_into_another_one() -> None:
    problem = BENCHMARKS["canaries"](of="breast-cancer", poison_std=0.1, mark_rows=5, key=2).problem()  # pyright: ignore
    assert problem.name == "breast-cancer-canaries"
    assert poison_in(problem) == Poison(0.1, 2)
    mark = mark_in(problem)
    assert mark is not None and mark.rows == 5
    assert problem.source["benchmark"] == "canaries"
    plain = BENCHMARKS["canaries"](poison_std=0, mark_rows=0).problem()  # pyright: ignore
    assert poison_in(plain) is None and mark_in(plain) is None
    with pytest.raises(BadInput, match="'of' must name another benchmark"):
        BENCHMARKS["canaries"](of="canaries").problem()  # pyright: ignore
