"""Estimators of scikit-learn's kind as models of a problem: what they say, how they are kept, what forgets from them."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import joblib
import numpy as np
import pytest
import torch
from datasets import Dataset
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.svm import LinearSVC

from expunge import api
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families import Architecture, Table
from expunge.families.estimator import Labels, Probabilities, Scores, Values, of_classes
from expunge.families.fitted import ESTIMATORS, FittedModel, answers_of, estimator_class
from expunge.families.models import fingerprint
from expunge.families.weights import load_folder, save_model
from expunge.problem import Problem, Training
from expunge.testing import check_family

COLUMNS = ["a", "b", "c"]
REGRESSORS = ("ridge", "kernel-ridge")
OPTIONS: dict[str, dict[str, Any]] = {
    "dare": {"n_estimators": 3, "max_depth": 4},
    "certified": {"sigma": 1e-6, "epsilon": 1e6},  # as good as no noise, and a budget that one step keeps
}


def rows(seed: int, n: int = 60) -> Dataset:
    rng = np.random.default_rng(seed)
    label = rng.integers(3, size=n)
    x = rng.poisson(2.0 + label[:, None] * [1.0, 0.0, 2.0]).astype(float)
    columns = {name: x[:, j] for j, name in enumerate(COLUMNS)}
    value = x @ [1.0, -2.0, 0.5] + rng.normal(size=n)
    return Dataset.from_dict(
        {"id": [f"{seed}-{i}" for i in range(n)], **columns, "label": label, "value": value}
    )


def problem(name: str) -> Problem:
    """Twelve rows to forget, all of class 2 but the last among them."""
    train, table = rows(0), Table(COLUMNS)
    last = [i for i, label in zip(train["id"], train["label"], strict=True) if label == 2][:-1]
    if name in REGRESSORS:
        family, outputs = Values.fit(table, train, "value"), 1
    else:
        kind = answers_of(estimator_class(name)())
        family, outputs = of_classes(kind)(table, ["x", "y", "z"]), 3
    made = Problem(
        name, family, train, tuple(last), rows(1), {"test": rows(2)},
        architecture=Architecture(kind="estimator", name=name, options={"outputs": outputs, **OPTIONS.get(name, {})}),
        recipe=Training(epochs=1),
    )  # fmt: skip
    return api.train_target(made, seed=5)


def said(asked: Problem, model: torch.nn.Module) -> np.ndarray:
    batch = asked.batches("test").take(torch.arange(60))
    return asked.family.forward(model, batch).prediction.numpy()


NAMES = sorted(ESTIMATORS)


@pytest.mark.parametrize("name", NAMES)
def test_every_estimator_keeps_the_contract(name: str) -> None:
    for check in check_family(problem(name)):
        check()


@pytest.mark.parametrize("name", NAMES)
def test_forgetting_ends_where_fitting_on_the_rest_ends(name: str) -> None:
    asked = problem(name)
    forgotten = api.forget(asked, "decremental")
    again = asked.fresh_model(5)
    asked.family.learn(again, asked.retain)
    estimator = estimator_class(name)
    bitwise = estimator.guarantee.startswith("bitwise")
    # The noise of a certified model is another after each training; here it is as good as none.
    tolerance = 0.0 if bitwise else 1e-3 if name == "certified" else 1e-7
    np.testing.assert_allclose(
        said(asked, forgotten.model), said(asked, again), rtol=tolerance, atol=tolerance
    )
    assert estimator.guarantee in forgotten.notes[0]
    assert fingerprint(asked.target) != fingerprint(forgotten.model)


@pytest.mark.parametrize("name", NAMES)
def test_saved_without_pickle_it_says_the_same_and_goes_on_forgetting(name: str, tmp_path: Path) -> None:
    asked = problem(name)
    save_model(asked.target, tmp_path / "model", asked.architecture, asked.family.describe(), {})
    read, _, _ = load_folder(tmp_path / "model")
    assert isinstance(read, FittedModel)
    np.testing.assert_array_equal(said(asked, read), said(asked, asked.target))
    ids = list(asked.forget_ids[:5])
    before = asked.with_model(read).target
    for model in (before, asked.target):
        model.estimator.forget(ids)  # pyright: ignore
    tolerance = 1e-9 if name == "certified" else 0.0
    np.testing.assert_allclose(said(asked, before), said(asked, asked.target), rtol=tolerance)
    assert b"pickle" not in (tmp_path / "model" / "model.safetensors").read_bytes()[:4096]


def test_probabilities_and_values_are_those_of_scikit_learn() -> None:
    train, test = rows(0), rows(1)
    x, y = (np.column_stack([s[c] for c in COLUMNS]) for s in (train, test))
    sklearn = LogisticRegression().fit(x, train["label"])
    model = FittedModel(sklearn, 3)
    family = Probabilities(Table(COLUMNS), 3)
    found = collect(family, model, test, ["loss", "logp", "correct"])
    expected = sklearn.predict_log_proba(y)
    np.testing.assert_allclose(found["logp"], expected, rtol=1e-6)
    truth = np.asarray(test["label"][:])
    np.testing.assert_allclose(found["loss"], -expected[np.arange(60), truth], rtol=1e-6)
    ridge = problem("ridge")
    predicted = collect(ridge.family, ridge.target, test, ["predicted"])["predicted"]
    own = ridge.target.estimator  # pyright: ignore
    np.testing.assert_allclose(predicted, own.predict(y), rtol=1e-5)


def test_a_class_without_rows_is_as_good_as_impossible() -> None:
    asked = problem("gaussian-nb")
    model: Any = asked.target
    model.estimator.forget(
        [i for i, c in zip(asked.train["id"], asked.train["label"], strict=True) if c == 2]
    )
    probabilities = np.exp(said(asked, model))[:, 0]
    assert (probabilities[:, 2] < 1e-8).all()
    np.testing.assert_allclose(probabilities[:, :2].sum(1), 1.0)


def test_without_probabilities_there_is_no_likelihood() -> None:
    train, test = rows(0), rows(1)
    x, y = (np.column_stack([s[c] for c in COLUMNS]) for s in (train, test))
    machine = LinearSVC().fit(x, train["label"])
    assert answers_of(machine) == "scores" and answers_of(estimator_class("nearest-centroid")()) == "labels"
    scores = Scores(Table(COLUMNS), 3)
    assert scores.likelihood == "none" and "loss" not in scores.quantities
    found = collect(scores, FittedModel(machine, 3), test, ["margin", "predicted"])
    np.testing.assert_array_equal(found["predicted"], machine.predict(y))
    decided, truth = machine.decision_function(y), np.asarray(test["label"][:])
    rest = np.array([np.log(np.exp(np.delete(d, t)).sum()) for d, t in zip(decided, truth, strict=True)])
    np.testing.assert_allclose(found["margin"], decided[np.arange(60), truth] - rest, rtol=1e-5)
    assert set(Labels.quantities) == {"correct", "predicted", "target"}
    asked = problem("nearest-centroid")
    audited = api.audit(asked, api.forget(asked, "retrain").model)
    names = {s.metric for s in audited.judged[-1].scores}
    assert "accuracy" in names and "loss" not in names


@pytest.mark.parametrize(
    ("name", "method", "words"),
    [
        ("gaussian-nb", "gradient-ascent", "needs gradients and layers, which estimator has not"),
        ("gaussian-nb", "scrub", "needs gradients and layers"),
        ("gaussian-nb", "sisa", "cannot run on gaussian-nb: it fits .*, not estimator"),
        ("gaussian-nb", "dare", "needs a DaRE forest, not a GaussianNB; 'decremental' forgets from that one"),
    ],
)
def test_methods_that_do_not_fit_are_refused(name: str, method: str, words: str) -> None:
    with pytest.raises(BadInput, match=words):
        api.forget(problem(name), method)


def forest(tmp_path: Path, *, allow_pickle: bool) -> Problem:
    """A random forest of scikit-learn with words as classes, in a pickle, and its data in a file."""
    train = rows(0)
    words = np.asarray(["x", "y", "z"])[np.asarray(train["label"][:])]
    x = np.column_stack([train[c] for c in COLUMNS])
    fitted = RandomForestClassifier(n_estimators=5, random_state=0).fit(x, words)
    joblib.dump(fitted, tmp_path / "forest.joblib")
    train.remove_columns("label").add_column("label", words.tolist()).to_csv(tmp_path / "train.csv")  # pyright: ignore
    spec = ProblemSpec(
        model=str(tmp_path / "forest.joblib"), data=str(tmp_path / "train.csv"), target="label", inputs=COLUMNS,
        forget="fraction=0.2", allow_pickle=allow_pickle,
    )  # fmt: skip
    return spec.build(tmp_path)


def test_estimators_of_other_libraries_need_the_pickle_flag(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="can run code when it is read; pass --allow-pickle"):
        forest(tmp_path, allow_pickle=False)
    asked = forest(tmp_path, allow_pickle=True)
    assert isinstance(asked.family, Probabilities) and asked.family.classes == ["x", "y", "z"]
    right = collect(asked.family, asked.target, asked.train, ["correct"])["correct"]
    own, table = asked.target.estimator, np.column_stack([asked.train[c] for c in COLUMNS])  # pyright: ignore
    words = np.asarray(["x", "y", "z"])[np.asarray(asked.train["label"][:])]
    assert right.mean() == own.score(table, words)
    with pytest.raises(BadInput, match="which a RandomForestClassifier does not; retrain fits it again"):
        api.forget(asked, "decremental")
    save_model(asked.target, tmp_path / "target", asked.architecture, asked.family.describe(), {})
    known = load_folder(tmp_path / "target", allow_pickle=True)[0]
    np.testing.assert_array_equal(
        *(
            asked.family.forward(m, asked.batches("forget").take(torch.arange(4))).prediction
            for m in (known, asked.target)
        )
    )
    again = api.forget(asked, "retrain").model
    folder = tmp_path / "again"
    save_model(again, folder, asked.architecture, asked.family.describe(), {})
    with pytest.raises(BadInput, match="holds a pickled estimator"):
        load_folder(folder)
    read, _, _ = load_folder(folder, allow_pickle=True)
    batch = asked.batches("forget").take(torch.arange(4))
    one, two = (asked.family.forward(m, batch).prediction for m in (read, again))
    assert torch.equal(one, two)
    # What the folder says of itself counts for nothing.
    assert json.loads((folder / "expunge.json").read_text())["architecture"]["options"]["allow_pickle"]
    refused = FittedModel(RandomForestClassifier(), 3)
    with pytest.raises(BadInput, match="can only be written as a pickle"):
        save_model(refused, tmp_path / "refused", asked.architecture, asked.family.describe(), {})


class Evil:
    def __reduce__(self) -> Any:
        return (print, ("ran",))


def test_damaged_states_are_refused_and_run_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    model: Any = problem("gaussian-nb").target
    state = model.estimator.to_state()
    for change in (
        {"structure": np.frombuffer(b'{"class":"os","fields":{"pairs":[]}}', dtype=np.uint8)},
        {"structure": np.frombuffer(b"{", dtype=np.uint8)},
        {"structure": np.frombuffer(pickle.dumps(Evil()), dtype=np.uint8)},
        {"float64": state["float64"][:2]},
        {"structure": np.frombuffer(b'{"pairs":[]}', dtype=np.uint8)},
    ):
        with pytest.raises(BadInput, match="state"):
            model.estimator.from_state({**state, **change})
    assert capsys.readouterr().out == ""


def test_own_tables_are_fitted_as_the_problem_says(tmp_path: Path) -> None:
    rows(0).to_csv(tmp_path / "train.csv")
    for name, target, kind in (("gaussian-nb", "label", Probabilities), ("ridge", "value", Values)):
        spec = ProblemSpec(
            model={"kind": "estimator", "name": name}, data="train.csv", target=target, inputs=COLUMNS, forget="fraction=0.2",
        )  # fmt: skip
        asked = api.train_target(spec.build(tmp_path))
        assert type(asked.family) is kind
        forgotten = api.forget(asked, "decremental")
        again = asked.fresh_model(0)
        asked.family.learn(again, asked.retain)
        batch = asked.batches("retain").take(torch.arange(20))
        one, two = (asked.family.forward(m, batch).prediction for m in (forgotten.model, again))
        torch.testing.assert_close(one, two, rtol=1e-8, atol=1e-8)


def test_a_study_compares_dare_with_growing_again(tmp_path: Path) -> None:
    study = {
        "name": "trees", "seeds": [0, 1], "methods": ["retrain", "dare"],
        "problems": [
            {"benchmark": "breast-cancer", "options": {"model": "dare"}, "forget": "fraction=0.1"},
            {"name": "values", "benchmark": "diabetes", "options": {"model": "ridge"}},
        ],
    }  # fmt: skip
    finished = api.run(study, tmp_path, workers=0, display="none")
    scores = {(j.problem, j.method): j for j in finished.scores.judged if j.seed == 0}
    dare = scores["breast-cancer", "dare"]
    assert dare.status == "ok" and dare.score("accuracy", "test") is not None
    assert scores["values", "dare"].status == "not_applicable"
    assert "needs a DaRE forest" in scores["values", "dare"].reason
    retrained = scores["values", "retrain"].score("mae", "test")
    assert retrained is not None and retrained.value is not None
    assert (finished.folder / "report.html").exists()


def test_without_rows_nothing_is_said_wrongly() -> None:
    asked = problem("k-nn")
    fresh = asked.fresh_model(0)
    assert not fresh.fitted  # pyright: ignore
    assert (said(asked, fresh) == 0).all()
    with pytest.raises(BadInput, match="fitted to nothing yet"):
        api.forget(replace(asked, model=fresh), "decremental")
    with pytest.raises(BadInput, match=r"unknown estimator 'gausian-nb'.*gaussian-nb"):
        estimator_class("gausian-nb")
