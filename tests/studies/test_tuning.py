"""Tuning: equal budgets, nothing audited is seen, the same after an interruption, and what is said of it."""

from __future__ import annotations

import copy
import json
import sys
from pathlib import Path
from typing import Any

import pytest

from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput, Missing
from expunge.methods.base import METHODS
from expunge.studies import runners
from expunge.studies.jobs import Store
from expunge.studies.runner import Ended, Progress
from expunge.studies.runners.local import InProcess
from expunge.studies.space import search_space
from expunge.studies.study import Finished, run_study
from expunge.studies.tuning import MOST_TRIALS, Budget, Trial
from tests.studies.test_study import numbers

STUDY: dict[str, Any] = {
    "name": "study",
    "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1", "recipe": {"epochs": 10, "lr": 0.02}}],
    "methods": [
        "retrain",
        {"name": "fine-tune", "lr": 0.05},
        {"name": "ssd", "label": "dampening"},
        # Its learning rate makes the setting as given fail.
        {"name": "gradient-ascent", "lr": 1e8, "epochs": 8},
    ],
    "metrics": ["mae"],
    "seeds": [0, 100_000],
}


def tuned(folder: Path, trials: int = 4, study: dict[str, Any] = STUDY) -> Finished:
    return run_study(study, folder, workers=0, budget=Budget(trials=trials), display="none")


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    return tuned(tmp_path_factory.mktemp("tuned"))


def searches(finished: Finished) -> list[Any]:
    """Everything that must be equal between equal searches: all but running time."""
    assert finished.tuning is not None
    return [
        (m.label, t.number, t.parameters, t.status, t.gap) for m in finished.tuning.methods for t in m.trials
    ]


def test_every_method_gets_the_same_number_of_trials_and_starts_as_given(finished: Finished) -> None:
    assert finished.tuning is not None
    by_label = {m.label: m for m in finished.tuning.methods}
    assert set(by_label) == {"fine-tune (lr=0.05)", "dampening", "gradient-ascent (epochs=8, lr=100000000.0)"}
    assert {len(m.trials) for m in by_label.values()} == {4}
    assert by_label["fine-tune (lr=0.05)"].trials[0].parameters == {"epochs": 5, "lr": 0.05}
    assert finished.tuning.untuned == {"diabetes: retrain": "it has no parameter with a range"}


def test_a_failed_trial_is_kept_with_its_reason_and_spends_budget(finished: Finished) -> None:
    assert finished.tuning is not None
    ascent = finished.tuning.methods[-1]
    assert ascent.method == "gradient-ascent"
    first = ascent.trials[0]
    assert (first.status, first.gap) == ("failed", None) and "NaN or infinite weights" in first.reason
    assert first.seconds > 0 and len(ascent.trials) == 4


def test_the_table_shows_each_method_as_given_and_as_tuned_on_the_studys_seeds(finished: Finished) -> None:
    assert finished.tuning is not None and finished.folder.name == "study-tuned"
    rows = {(j.label, j.seed): j for j in finished.scores.judged}
    for method in finished.tuning.methods:
        if method.best is None:
            continue
        for seed in (0, 100_000):
            assert (method.label, seed) in rows
            row = rows[f"{method.label}, tuned", seed]
            assert row.effective == {**row.effective, **method.best.parameters}
    assert finished.tuning.seed == 100_001  # the first that the study does not have


def test_the_found_setting_has_the_least_gap_and_ties_go_to_the_earlier(finished: Finished) -> None:
    assert finished.tuning is not None
    method = finished.tuning.methods[0].model_copy(deep=True)
    assert method.best is not None
    assert method.best.gap == min(t.gap for t in method.trials if t.gap is not None)
    method.trials = [
        Trial(number=i, parameters={"lr": float(i)}, status="ok", gap=g, seconds=0.0)
        for i, g in enumerate((2.0, 1.0, 1.0))
    ]
    assert method.best is not None and method.best.number == 1


def test_a_trials_gap_is_that_of_a_study_of_the_validation_problem(
    finished: Finished, tmp_path: Path
) -> None:
    assert finished.tuning is not None
    dampening = finished.tuning.methods[1]
    trial = dampening.trials[2]
    study = {
        "name": "check",
        "problems": [{"benchmark": "validation", "options": {"of": STUDY["problems"][0]}}],
        "methods": [{"name": "ssd", "label": "one", **trial.parameters}],
        "seeds": [finished.tuning.seed],
    }
    scores = run_study(study, tmp_path, workers=0, display="none").scores
    row = next(j for j in scores.judged if j.label == "one")
    reference = next(j for j in scores.judged if j.method == "retrain")
    # By hand: the mean of |error - retrained error| / retrained error over three splits, in percent.
    gaps = []
    for split in ("forget", "retain", "test"):
        ours, theirs = row.score("mae", split), reference.score("mae", split)
        assert ours is not None and theirs is not None and ours.value is not None and theirs.value is not None
        gaps.append(abs(ours.value - theirs.value) / theirs.value)
    assert trial.gap == pytest.approx(100 * sum(gaps) / 3)


@pytest.mark.parametrize(
    "spec",
    [
        {"benchmark": "diabetes", "forget": "fraction=0.1"},
        {"benchmark": "diabetes"},
        {"benchmark": "digits"},
        {"benchmark": "digits", "forget": "class=5"},
    ],
    ids=lambda s: str(s.get("forget", s["benchmark"])),
)
def test_no_audited_row_is_used_and_the_forget_set_is_of_the_same_kind(spec: dict[str, Any]) -> None:
    audited = ProblemSpec(**spec).build()
    validation = ProblemSpec(benchmark="validation", options={"of": spec}).build()
    used = {str(i) for d in (validation.train, *validation.splits.values()) for i in d["id"]}
    seen = {str(i) for n in ("forget", "holdout", "test") for i in audited.splits[n]["id"]}
    assert not used & seen
    assert used == {str(i) for i in audited.retain["id"]}
    groups, before = validation.family.groups(validation.train), audited.family.groups(audited.train)
    assert groups is not None and before is not None
    forgotten = set(groups[validation.forget_rows])
    if spec.get("forget", "").startswith("fraction"):
        share = len(validation.forget_ids) / len(validation.train)
        assert share == pytest.approx(0.1, abs=0.01) and len(forgotten) > 1
    else:  # a whole class or range of the target, another one than is audited
        assert len(forgotten) == 1
        assert not forgotten & set(groups[validation.retain_rows])
        assert not forgotten & set(before[audited.forget_rows])


def test_other_users_are_forgotten_where_users_are(tmp_path: Path) -> None:
    lines = ["id,user,a,b,label", *(f"r{i},u{i % 7},{i % 5},{i % 3},{i % 2}" for i in range(140))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    network = {"kind": "builtin", "name": "mlp", "options": {"inputs": 2, "outputs": 2, "hidden": [4]}}
    spec = {
        "data": "rows.csv", "model": network, "recipe": {"epochs": 1}, "inputs": ["a", "b"], "family": "classifier",
        "forget": {"user": {"user": ["u1", "u4"]}},
    }  # fmt: skip
    validation = ProblemSpec(benchmark="validation", options={"of": spec, "base": str(tmp_path)}).build()
    forgotten, kept = set(validation.forget["user"]), set(validation.retain["user"])
    assert len(forgotten) == 2 and not forgotten & (kept | {"u1", "u4"})


class Interrupted(InProcess):
    """Ctrl-C after some jobs."""

    left = 0

    def submit(self, job: Any, progress: Progress) -> None:
        if Interrupted.left == 0:
            raise KeyboardInterrupt
        Interrupted.left -= 1
        super().submit(job, progress)


class Counted(InProcess):
    done = 0

    def collect(self) -> list[Ended]:
        ended = super().collect()
        Counted.done += sum(e.error is None for e in ended)
        return ended


def test_an_interrupted_search_goes_on_and_finds_the_same(
    finished: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uninterrupted = len(list((finished.folder.parent / "store" / "jobs").iterdir()))
    Interrupted.left = 20
    with monkeypatch.context() as patch:
        patch.setattr(runners.Runner, "executor", lambda _, store, workers: Interrupted(store))
        with pytest.raises(KeyboardInterrupt):
            tuned(tmp_path)
    before = len(list((tmp_path / "store" / "jobs").glob("[!.]*")))
    assert 0 < before < uninterrupted
    monkeypatch.setattr(runners.Runner, "executor", lambda _, store, workers: Counted(store))
    again = tuned(tmp_path)
    assert Counted.done == uninterrupted - before, "a complete job was computed again"
    assert searches(again) == searches(finished)
    assert numbers(again.scores) == numbers(finished.scores)


def test_more_trials_go_on_from_the_ones_there(finished: Finished) -> None:
    fewer = {**copy.deepcopy(STUDY), "name": "more", "methods": STUDY["methods"][:3]}
    more = tuned(finished.folder.parent, 5, fewer)
    assert finished.tuning is not None and more.tuning is not None
    for old, new in zip(finished.tuning.methods, more.tuning.methods, strict=False):
        assert [t.model_dump() for t in new.trials[:4]] == [t.model_dump() for t in old.trials]
        assert len(new.trials) == 5


def test_every_trial_is_in_the_runs_folder(finished: Finished) -> None:
    content = json.loads((finished.folder / "tuning.json").read_text())
    assert content["budget"] == "4 trials" and "validation" in content["objective"]
    assert [len(m["trials"]) for m in content["methods"]] == [4, 4, 4]
    assert content["methods"][0]["held"]["momentum"] == "common to all methods"
    times = json.loads((finished.folder / "time-to-result.json").read_text())
    assert {r["label"] for r in times["rows"]} >= {"dampening", "dampening, tuned"}


def trial(number: int, seconds: float) -> Trial:
    return Trial(number=number, parameters={}, status="ok", gap=1.0, seconds=seconds)


def test_budgets_of_trials_and_of_seconds() -> None:
    assert Budget.parse("20") == Budget(trials=20)
    assert Budget.parse(" 1.5s ") == Budget(seconds=1.5)
    three = [trial(i, 0.5) for i in range(3)]
    assert Budget(trials=4).left(three) and not Budget(trials=3).left(three)
    assert Budget(seconds=1.6).left(three) and not Budget(seconds=1.5).left(three)
    assert not Budget(seconds=1e9).left([trial(i, 0.0) for i in range(MOST_TRIALS)])


@pytest.mark.parametrize("text", ["", "ten", "-3", "3m", "1.5"])
def test_a_budget_that_is_neither_is_refused(text: str) -> None:
    with pytest.raises(
        BadInput, match="neither a number of trials, such as 20, nor of seconds, such as 300s"
    ):
        Budget.parse(text)


def test_no_trials_at_all_are_refused() -> None:
    with pytest.raises(BadInput, match="--tune: 'trials' should be greater than or equal to 1, got 0"):
        Budget.parse("0")


def test_without_optuna_it_says_which_extra_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    with pytest.raises(Missing, match=r"--tune needs the package 'optuna', .* pip install 'expunge\[tune\]'"):
        tuned(tmp_path)
    assert not Store(tmp_path / "store").root.exists()


def test_a_problem_without_a_recipe_cannot_be_tuned(tmp_path: Path) -> None:
    rows = ["id,a,label", *(f"r{i},{i % 5},{i % 2}" for i in range(40))]
    (tmp_path / "rows.csv").write_text("\n".join(rows) + "\n")
    (tmp_path / "net.py").write_text("import torch\ndef make():\n    return torch.nn.Linear(1, 2)\n")
    spec = {
        "data": "rows.csv", "model": {"factory": f"{tmp_path}/net.py:make"}, "inputs": ["a"], "family": "classifier",
        "forget": "fraction=0.1",
    }  # fmt: skip
    options = {"of": spec, "base": str(tmp_path)}
    with pytest.raises((Missing, BadInput), match="recipe"):
        ProblemSpec(benchmark="validation", options=options).build()


@pytest.mark.parametrize(
    ("rows", "forget", "message"),
    [
        (30, "fraction=0.5", "its retain set of 15 rows is too small to be divided; at least 20 are needed"),
        (60, "class=1", "it forgets all groups but one, so none is left to validate on"),
    ],
)
def test_what_cannot_be_divided_is_refused(rows: int, forget: str, message: str, tmp_path: Path) -> None:
    lines = ["id,a,label", *(f"r{i},{i % 5},{i % 2}" for i in range(rows))]
    (tmp_path / "rows.csv").write_text("\n".join(lines) + "\n")
    network = {"kind": "builtin", "name": "mlp", "options": {"inputs": 1, "outputs": 2, "hidden": [4]}}
    spec = {
        "data": "rows.csv",
        "model": network,
        "recipe": {"epochs": 1},
        "family": "classifier",
        "forget": forget,
    }
    with pytest.raises(BadInput, match=message):
        ProblemSpec(benchmark="validation", options={"of": spec, "base": str(tmp_path)}).build()


def test_the_space_of_a_method_by_hand() -> None:
    space = search_space(METHODS["salun"]().replace(lr=0.02, epochs=10))
    shown = [d.shown() for d in space.dimensions]
    assert shown == [
        "epochs: 3 to 40 (log, around the given value)",
        "lr: 0.0002 to 2 (log, around the given value)",
        "mix: sequential or mixed",
        "labels: random or random-other",
        "rho: 0 to 1 (declared)",
    ]
    scrub = search_space(METHODS["scrub"]())
    by_name = {d.parameter: d for d in scrub.dimensions}
    decay = by_name["lr_decay"]  # declared as above 0 and at most 1
    assert (decay.low, decay.high, decay.log, decay.origin) == (0.001, 1.0, False, "declared")
    assert by_name["rewind"].choices == [False, True]
    assert scrub.held["lr_decay_epochs"] == "neither a number nor a choice"
    assert scrub.held["momentum"] == "common to all methods"
    l1 = search_space(METHODS["l1-sparse"]())
    assert l1.held["free_epochs"] == "its value is 0, which gives no scale"


@pytest.mark.parametrize("name", sorted(METHODS))
def test_the_given_values_and_both_ends_of_every_range_are_valid(name: str) -> None:
    method = METHODS[name]()
    for d in search_space(method).dimensions:
        given = getattr(method, d.parameter)
        if d.kind == "choice":
            assert given in d.choices
            ends = d.choices
        else:
            assert d.low is not None and d.high is not None and d.low <= given <= d.high and d.low < d.high
            assert not d.log or d.low > 0
            ends = [int(e) if d.kind == "whole" else e for e in (d.low, d.high)]
        for end in ends:
            method.replace(**{d.parameter: end})
