"""Studies: nothing is computed twice, what changed is computed again, equal seeds give equal numbers."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.record import ScoreFile
from expunge.studies.graph import build_graph
from expunge.studies.spec import StudySpec, override
from expunge.studies.study import Finished, load_study, run_study
from tests.studies.conftest import SMALL

TIMES = ("seconds", "seconds-ratio", "peak-bytes", "peak-bytes-ratio")


def numbers(scores: ScoreFile) -> list[Any]:
    """Everything that must be equal between equal runs: all but wall time and memory."""
    return [
        (j.problem, j.label, j.seed, j.model_id, [s.model_dump() for s in j.scores if s.metric not in TIMES])
        for j in scores.judged
    ]


def test_a_study_has_a_row_per_method_and_seed(finished: Finished) -> None:
    rows = [(j.label, j.seed) for j in finished.scores.judged]
    assert rows == [
        (label, s) for label in ("target", "retrain", "fine-tune", "npo (beta=0.2)", "ssd") for s in (0, 1)
    ]
    assert not finished.outcome.failed
    assert all(j.status == "ok" for j in finished.scores.judged)


def test_losses_are_kept_of_every_retrained_model(finished: Finished) -> None:
    kept = finished.losses["diabetes"]
    assert set(kept) == {"target", "retrained", "retrained 2", "fine-tune", "npo (beta=0.2)", "ssd"}
    for label, method, seed in (
        ("retrained", "retrain", 0),
        ("retrained 2", "retrain", 1),
        ("ssd", "ssd", 0),
    ):
        model = next(j for j in finished.scores.judged if (j.method, j.seed) == (method, seed))
        score = model.score("mean-loss", "forget")
        assert score is not None
        assert np.mean(kept[label]["forget"]) == pytest.approx(score.value, rel=1e-6)


def test_run_twice_computes_nothing_the_second_time(finished: Finished, runs: Path) -> None:
    again = run_study(SMALL, runs, workers=0, display="none")
    assert again.outcome.done == 0
    assert again.outcome.cached == finished.outcome.done
    assert numbers(again.scores) == numbers(finished.scores)


def test_another_folder_gives_identical_scores(finished: Finished, tmp_path: Path) -> None:
    again = run_study(SMALL, tmp_path, workers=0, display="none")
    assert again.outcome.cached == 0
    assert numbers(again.scores) == numbers(finished.scores)


def test_worker_processes_give_the_numbers_of_this_process(finished: Finished, tmp_path: Path) -> None:
    again = run_study(SMALL, tmp_path, workers=2, display="none")
    assert again.outcome.done == finished.outcome.done
    assert numbers(again.scores) == numbers(finished.scores)


def test_a_changed_parameter_recomputes_only_what_depends_on_it(finished: Finished, runs: Path) -> None:
    changed = override({**copy.deepcopy(SMALL), "name": "changed"}, ["methods.2.beta=0.3"])
    again = run_study(changed, runs, workers=0, display="none")
    # npo for two seeds: forget, look, score; every other job is taken from before.
    assert again.outcome.done == 6
    assert again.outcome.cached == finished.outcome.done - 6


def test_a_new_seed_recomputes_scores_but_no_model(finished: Finished, runs: Path) -> None:
    spec = StudySpec(**{**SMALL, "name": "more", "seeds": [0, 1, 2]})
    graph = build_graph(spec, Path(), lambda _: None)
    old = {
        k
        for k, j in build_graph(StudySpec(**SMALL), Path(), lambda _: None).jobs.items()
        if j.kind != "score"
    }
    assert old <= set(graph.jobs)


def test_a_method_that_does_not_fit_is_shown_with_its_reason(tmp_path: Path) -> None:
    study = {
        **SMALL,
        "name": "unfit",
        "problems": [{"benchmark": "breast-cancer"}],
        "methods": ["blindspot"],
        "seeds": [0],
    }
    scores = run_study(study, tmp_path, workers=0, display="none").scores
    (row,) = [j for j in scores.judged if j.label == "blindspot"]
    assert (row.status, row.reason) == ("not_applicable", "it fits regressor, not classifier")


def test_a_failed_job_stops_only_what_depends_on_it(tmp_path: Path) -> None:
    study = {
        **SMALL,
        "methods": [{"name": "gradient-ascent", "lr": 1e8, "epochs": 20}, "fine-tune"],
        "seeds": [0],
    }
    finished = run_study(study, tmp_path, workers=0, display="none")
    by_method = {j.method: j for j in finished.scores.judged}
    assert by_method["gradient-ascent"].status == "failed"
    assert "NaN or infinite weights" in by_method["gradient-ascent"].reason
    assert by_method["fine-tune"].status == "ok"


def test_every_score_is_compared_with_the_other_retrained_models(finished: Finished) -> None:
    by_row = {(j.label, j.seed): j for j in finished.scores.judged}
    one, two = (by_row["retrain", s].score("mae", "forget") for s in (0, 1))
    fine = by_row["fine-tune", 0].score("mae", "forget")
    assert one is not None and two is not None and fine is not None and fine.reference is not None
    assert fine.reference.values == [one.value, two.value]
    assert fine.value is not None and fine.reference.gap == pytest.approx(
        fine.value - (one.value + two.value) / 2
    )  # type: ignore[operator]
    assert one.reference is not None and one.reference.values == [two.value]  # not with itself


def test_costs_are_given_as_ratios_to_retraining(finished: Finished) -> None:
    by_row = {(j.label, j.seed): j for j in finished.scores.judged}
    passes = [by_row["retrain", s].score("passes", "run").value for s in (0, 1)]  # type: ignore[union-attr]
    mine = by_row["fine-tune", 0].score("passes", "run").value  # type: ignore[union-attr]
    ratio = by_row["fine-tune", 0].score("passes-ratio", "run").value  # type: ignore[union-attr]
    assert ratio == pytest.approx(mine / (sum(passes) / 2))  # type: ignore[arg-type,operator]


def test_the_run_folder_holds_the_study_as_passed_and_in_effect(finished: Finished) -> None:
    import yaml

    content = yaml.safe_load((finished.folder / "run.yaml").read_text())
    assert content["passed"]["methods"][2] == {"name": "npo", "beta": 0.2}
    assert content["effective"]["threads"] == 1
    again, _, _ = load_study(finished.folder / "run.yaml")
    assert again == StudySpec(**SMALL)


def test_scores_json_round_trips(finished: Finished, tmp_path: Path) -> None:
    finished.scores.write(tmp_path / "scores.json")
    assert ScoreFile.read(tmp_path / "scores.json") == finished.scores
    text = (finished.folder / "scores.json").read_text()
    json.loads(text, parse_constant=lambda c: pytest.fail(f"bare {c} in scores.json"))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"methods": ["nop"]}, "unknown method 'nop'; did you mean 'npo'?"),
        ({"methods": [{"name": "npo", "bta": 1}]}, "npo: unknown key 'bta'; did you mean 'beta'?"),
        ({"methods": [{"name": "npo", "beta": -1}]}, "npo: 'beta' should be greater than 0, got -1"),
        ({"methods": ["npo", "ssd", "npo"]}, "methods: 'npo' is listed twice"),
        (
            {"methods": [{"name": "npo", "label": "a"}, {"name": "ssd", "label": "a"}]},
            "methods: 'a' is listed twice",
        ),
        ({"methods": [{"name": "npo", "label": "retrain"}]}, "npo cannot be labeled 'retrain'"),
        ({"sedes": [0]}, "study: unknown key 'sedes'; did you mean 'seeds'?"),
        ({"problems": [{"benchmark": "digit", "forgett": "class=3"}]}, "unknown key"),
        ({"problems": [{"benchmark": "diabetic"}]}, "unknown benchmark 'diabetic'; did you mean 'diabetes'?"),
        ({"problems": []}, "'problems' List should have at least 1 item"),
    ],
)
def test_faults_are_named(change: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput) as caught:
        run_study({**SMALL, **change}, tmp_path, workers=0, display="none")
    assert message in str(caught.value)


def test_two_problems_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="two problems are called 'diabetes'; give one of them another 'name'"):
        run_study({**SMALL, "problems": SMALL["problems"] * 2}, tmp_path, workers=0, display="none")


def test_a_folder_that_is_no_run_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    (tmp_path / "small" / "thesis.txt").write_text("mine")
    with pytest.raises(BadInput, match="exists and is no run"):
        run_study(SMALL, tmp_path, workers=0, display="none")
    assert (tmp_path / "small" / "thesis.txt").read_text() == "mine"


def test_overrides_read_numbers_as_people_write_them() -> None:
    changed = override({"methods": ["npo"]}, ["methods.0.lr=1e-5", "seeds=[0, 1]", "name=x"])
    assert changed == {"methods": [{"name": "npo", "lr": 1e-5}], "seeds": [0, 1], "name": "x"}
