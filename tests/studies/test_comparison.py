"""Comparing methods: what becomes a ballot, who stands where, and what it hangs on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import t as student

from expunge.errors import BadInput
from expunge.record import Judged, Score, ScoreFile
from expunge.stats.borda import borda
from expunge.studies.comparison import Floor, compare_scores, ranked_metrics
from expunge.studies.fronts import fronts_of
from expunge.studies.results import complete
from expunge.studies.standings import InstanceTable

DIRECTIONS = {
    "accuracy@forget": "match",
    "accuracy@test": "higher",
    "seconds@run": "lower",
    "loss@test": "lower",
}


def model(method: str, seed: int, problem: str = "p", status: str = "ok", **values: float) -> Judged:
    scores = []
    for name, value in values.items():
        metric, split = name.split("__")
        direction = DIRECTIONS[f"{metric}@{split}"]
        scores.append(Score(metric=metric, split=split, value=value, unit="share", direction=direction))
    reason = "" if status == "ok" else "it broke"
    return Judged(
        problem=problem, problem_id=problem, method=method, label=method, seed=seed, status=status, reason=reason,
        scores=scores if status == "ok" else [], model_id=f"{method}{seed}{problem}",
    )  # fmt: skip


def file(*judged: Judged) -> ScoreFile:
    names = dict.fromkeys(j.problem for j in judged)
    return complete("test", [{"name": n, "fingerprint": n} for n in names], list(judged))


def three_methods(seeds: int = 3) -> list[Judged]:
    rng = np.random.default_rng(0)
    made = []
    for s in range(seeds):
        noise = rng.normal(0, 0.001, 4)
        made += [
            model("target", s, accuracy__forget=1.0, accuracy__test=0.95),
            model("retrain", s, accuracy__forget=0.50 + noise[0], accuracy__test=0.94, seconds__run=10.0),
            model(
                "good", s, accuracy__forget=0.52 + noise[1], accuracy__test=0.93, seconds__run=1.0 + noise[1]
            ),
            model("under", s, accuracy__forget=0.90 + noise[2], accuracy__test=0.92, seconds__run=2.0),
            model("over", s, accuracy__forget=0.05 + noise[3], accuracy__test=0.40, seconds__run=3.0),
        ]
    return made


def test_ballots_are_oriented_and_matched_to_retraining():
    found = compare_scores(file(*three_methods()))
    ballots = {b.name: b for b in found.ballots}
    assert list(ballots) == ["accuracy@forget", "accuracy@test", "seconds@run"]
    gaps = ballots["accuracy@forget"].values
    assert gaps["good"] == pytest.approx(0.02, abs=0.005) and gaps["over"] == pytest.approx(0.45, abs=0.005)
    assert gaps["retrain"] < 0.005  # against the other retrained models
    assert "target" not in found.methods
    assert found.task is not None
    order = [s.label for s in found.task.standings]
    assert order == ["retrain", "good", "under", "over"] or order[:2] == ["good", "retrain"]
    assert [s.reference for s in found.task.standings if s.label == "retrain"] == [True]
    # By hand: good wins 2 + 2 + 3 of 9 comparisons, over 0 + 0 + 1, as retraining is slower than it.
    shares = {s.label: s.share for s in found.task.standings}
    assert shares["good"] == pytest.approx((2 + 2 + 3) / 9) and shares["over"] == pytest.approx(1 / 9)


def test_intervals_are_over_seeds_and_absent_with_one():
    found = compare_scores(file(*three_methods()), resamples=200).task
    assert found is not None and found.resampled == "seeds (3 at most)"
    last = found.standings[-1]
    assert last.interval is not None and (last.interval.low, last.interval.high) == (4, 4)
    assert last.first == 0.0 and last.strength_interval is not None
    single = compare_scores(file(*three_methods(seeds=1)))
    assert single.task is not None and single.task.resampled == ""
    assert all(s.interval is None and s.first is None for s in single.task.standings)
    assert "retrain" not in single.methods  # one retrained model cannot be compared with another
    repeated = compare_scores(file(*three_methods()), resamples=200).task
    assert repeated == found


def test_a_failed_run_is_a_loss_and_what_does_not_apply_is_no_ballot():
    judged = three_methods()
    judged += [model("broken", s, status="failed") for s in range(3)]
    judged += [model("elsewhere", s, status="not_applicable") for s in range(3)]
    found = compare_scores(file(*judged), resamples=100)
    assert found.task is not None
    assert "elsewhere" not in found.methods
    assert found.task.standings[-1].label == "broken"
    assert all(b.last == ["broken"] for b in found.ballots)
    assert found.task.standings[-1].share == 0.0


def test_sparse_tables_over_problems():
    judged = [model("a", s, "p", accuracy__test=0.9 + s / 100) for s in range(2)]
    judged += [model("b", s, "p", accuracy__test=0.8) for s in range(2)]
    judged += [model("b", s, "q", accuracy__test=0.7) for s in range(2)]
    judged += [model("c", s, "q", accuracy__test=0.6) for s in range(2)]
    found = compare_scores(file(*judged), resamples=100).task
    assert found is not None
    # a beats b on one problem, b beats c on another; a and c never met.
    assert {s.label: s.share for s in found.standings} == {"a": 1.0, "b": 0.5, "c": 0.0}
    assert [s.label for s in sorted(found.standings, key=lambda s: -(s.strength or 0))] == ["a", "b", "c"]
    assert found.critical_difference is None
    assert found.notes == [
        "no critical difference: 0 of 2 columns have a value of every method; 2 are needed"
    ]


def test_a_floor_keeps_a_destroyed_model_out():
    found = compare_scores(file(*three_methods()), floors=[Floor("accuracy", "test", 0.8)])
    assert found.excluded == {"over": "accuracy@test is 0.4 on p, below the floor of 0.8"}
    assert "over" not in found.methods
    slow = compare_scores(file(*three_methods()), floors=[Floor("seconds", "run", 5.0)])
    assert slow.excluded == {"retrain": "seconds@run is 10 on p, above the ceiling of 5"}


def test_the_front_and_how_often_each_is_on_it():
    (front,) = compare_scores(file(*three_methods()), resamples=200).fronts
    assert front.objectives == ["gap of accuracy@forget", "accuracy@test"]
    assert front.directions == ["lower", "higher"]
    assert front.front == ["retrain"] and front.probability["over"] == 0.0
    assert front.points["over"] == pytest.approx([0.45, 0.4], abs=0.005)
    (other,) = compare_scores(
        file(*three_methods()), objectives=[("accuracy", "forget"), ("seconds", "run")], resamples=100
    ).fronts
    assert set(other.front) == {"retrain", "good"}  # the slow and exact, and the quick and near


def test_a_front_knows_where_the_retrained_models_lie():
    judged = [
        model("retrain", s, accuracy__forget=f, accuracy__test=t)
        for s, (f, t) in enumerate([(0.50, 0.94), (0.52, 0.95), (0.57, 0.90)])
    ]
    judged += [model("good", s, accuracy__forget=0.6, accuracy__test=0.9) for s in range(3)]
    (front,) = compare_scores(file(*judged), resamples=50).fronts
    # A retrained model's gap is to the mean of the others: |0.50 - 0.545|, |0.52 - 0.535|, |0.57 - 0.51|.
    assert np.array(front.retrained) == pytest.approx(np.array([[0.045, 0.94], [0.015, 0.95], [0.06, 0.90]]))
    gap, test = front.bands
    assert gap is not None and test is not None

    def half(values: list[float]) -> float:
        return float(student.ppf(0.975, 2) * np.std(values, ddof=1) * (1 + 1 / 3) ** 0.5)

    assert (gap.low, gap.high) == pytest.approx((0.0, half([0.50, 0.52, 0.57])))
    mean, reach = np.mean([0.94, 0.95, 0.90]), half([0.94, 0.95, 0.90])
    assert (test.low, test.high) == pytest.approx((mean - reach, mean + reach))
    once = [
        model("retrain", 0, accuracy__test=0.9, loss__test=5.0),
        model("good", 0, accuracy__test=0.8, loss__test=1.0),
    ]
    objectives = [("accuracy", "test"), ("loss", "test")]
    rows = {("p", m.label): [m] for m in once}
    (alone,) = fronts_of(rows, ["retrain", "good"], objectives, 0, np.random.default_rng(0))
    assert alone.retrained == [[0.9, 5.0]] and alone.bands == [None, None]


def test_what_the_ranking_hangs_on():
    found = compare_scores(file(*three_methods()), resamples=100)
    without = {w.metric: w for w in found.without}
    assert set(without) == {"accuracy@forget", "accuracy@test", "seconds@run"}
    assert without["seconds@run"].leaders == ["retrain"]
    assert without["seconds@run"].moved["good"] > 0
    assert without["accuracy@test"].tau is not None


def test_examples_in_tasks_that_weigh_the_same():
    rng = np.random.default_rng(1)
    few = {"good": rng.normal(1, 1, 20), "under": rng.normal(0, 1, 20), "over": rng.normal(-1, 1, 20)}
    many = {"good": rng.normal(1, 1, 400), "under": rng.normal(0, 1, 400), "over": rng.normal(-1, 1, 400)}
    tables = [InstanceTable("p", "forget", few), InstanceTable("p", "test", many)]
    found = compare_scores(file(*three_methods()), instances=tables, resamples=200).instance
    assert found is not None
    assert [s.label for s in found.standings][:3] == ["good", "under", "over"]
    assert found.ballots == 420 and found.resampled == "examples (20 to 400 in each of 2 tasks)"
    shares = [borda(np.stack(list(t.values()))).share for t in (few, many)]
    expected = borda(np.stack(shares, axis=1)).share
    assert [s.share for s in found.standings[:3]] == pytest.approx(sorted(expected, reverse=True))


def test_refusals_and_nothing_to_rank():
    with pytest.raises(BadInput, match="'accuracy' names no score; write METRIC@SPLIT"):
        ranked_metrics(["accuracy"])
    with pytest.raises(BadInput, match="no run has 'acuracy@test'; did you mean 'accuracy@test'"):
        compare_scores(file(*three_methods()), metrics=[("acuracy", "test")])
    alone = compare_scores(file(model("a", 0, accuracy__test=0.9)))
    assert alone.task is None and alone.notes == ["nothing to rank: 0 methods on 0 ballots"]
    assert alone.excluded == {"a": "no other method has a value of the same score"}


def test_examples_of_one_group_are_resampled_together():
    # Fifty examples of one author say a, fifty of the other b: with two authors drawn, a quarter of the draws are all a's.
    a = np.repeat([1.0, 0.0], 50)
    values, authors = {"a": a, "b": 1 - a}, np.repeat(["x", "y"], 50)
    judged = [model(m, s, accuracy__test=0.9) for m in ("a", "b") for s in range(2)]

    def first(clusters: np.ndarray | None) -> tuple[float, str]:
        found = compare_scores(
            file(*judged), instances=[InstanceTable("p", "test", values, clusters)]
        ).instance
        assert found is not None
        share = next(s.first for s in found.standings if s.label == "a")
        assert share is not None
        return share, found.resampled

    alone, over = first(None)
    assert alone == pytest.approx(0.46, abs=0.05) and "groups" not in over  # (1 - P(50 of 100)) / 2
    together, over = first(authors)
    assert together == pytest.approx(0.25, abs=0.05) and over.endswith("in whole groups where they have some")
    assert first(np.repeat(["x"], 100))[1] == first(None)[1]  # one group leaves nothing to resample


def test_floors_and_objectives_that_nobody_measured_are_refused():
    scores = file(*three_methods())
    with pytest.raises(BadInput, match="no run has 'acuracy@test'; did you mean 'accuracy@test'"):
        compare_scores(scores, floors=[Floor("acuracy", "test", 0.8)], resamples=0)
    with pytest.raises(BadInput, match="no run has 'second@run'"):
        compare_scores(scores, objectives=[("accuracy", "test"), ("second", "run")], resamples=0)
    with pytest.raises(BadInput, match="two axes or more, got 'accuracy@test' alone"):
        compare_scores(scores, objectives=[("accuracy", "test")], resamples=0)


def test_a_method_whose_floor_is_undefined_is_not_ranked():
    lost = Score(
        metric="accuracy", split="test", status="undefined", reason="it diverged", unit="share", direction="higher"
    )  # fmt: skip
    odd = model("odd", 0, accuracy__forget=0.5)
    odd = odd.model_copy(update={"scores": [*odd.scores, lost]})
    found = compare_scores(file(*three_methods(), odd), floors=[Floor("accuracy", "test", 0.5)], resamples=0)
    assert found.excluded["odd"].startswith("accuracy@test is undefined on p, so that nobody knows")
    assert "odd" not in found.methods


def test_why_a_method_or_a_metric_is_on_no_ballot():
    silent = model("silent", 0)
    found = compare_scores(file(*three_methods(), silent), resamples=0)
    assert found.excluded == {"silent": "it has no value of what is ranked"} and not found.notes
    alone = [j for j in three_methods() if j.method != "retrain"]
    unmatched = compare_scores(file(*alone), resamples=0)
    assert unmatched.notes == ["p: no retrained model to match, so not ranked on accuracy@forget"]
    assert {b.name for b in unmatched.ballots} == {"accuracy@test", "seconds@run"}
