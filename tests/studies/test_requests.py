"""Studies about given models, options in short, and requests that arrive one after the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import expunge
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.families.weights import load_folder
from expunge.methods.base import Workplace
from expunge.studies.graph import build_graph
from expunge.studies.jobs import Store
from expunge.studies.spec import StudySpec, override
from expunge.studies.study import embedded_studies, load_study

NPO = {"name": "npo", "epochs": 1}
STUDY: dict[str, Any] = {
    "name": "requests",
    "problems": [
        {"name": "first", "benchmark": "diabetes", "forget": {"fraction": 0.1}},
        {"name": "second", "benchmark": "diabetes", "forget": {"fraction": 0.1, "seed": 1}, "after": "first"},
    ],
    "methods": [NPO],
    "metrics": ["mae"],
    "seeds": [0, 1],
}


def test_options_in_short_reach_every_problem_that_has_them():
    content = {"problems": [{"benchmark": "tofu"}, {"benchmark": "digits", "forget": "class=3"}]}
    changed = override(
        content,
        [
            "model=org/name",
            "split=forget05",
            "data_dir=here",
            "forget=class=4",
            "template.kind=chat",
            "seeds=[1]",
        ],
    )
    tofu, digits = changed["problems"]
    options = {"split": "forget05", "data_dir": "here", "forget": "class=4", "template": {"kind": "chat"}}
    assert tofu == {"benchmark": "tofu", "model": "org/name", "options": options}
    # Of digits, `model` is an option; `forget` stands in the problem, and a template belongs to users' own data.
    assert digits["options"] == {"model": "org/name"} and digits["forget"] == "class=4"
    assert changed["seeds"] == [1]


def test_what_no_problem_knows_is_an_unknown_key():
    content = override({**STUDY}, ["splitt=forget05"])
    with pytest.raises(BadInput, match="unknown key 'splitt'"):
        StudySpec(**content)


def test_a_later_request_starts_from_what_the_earlier_one_left(tmp_path: Path):
    expunge.run(STUDY, tmp_path, workers=0, display="none")
    spec = StudySpec(**STUDY)
    graph, store = build_graph(spec, Path(), lambda _: None), Store(tmp_path / "store")
    rows = {(row.problem, row.method, row.seed): row for row in graph.rows}
    method, problem = spec.methods[0].resolve(), spec.problems[1].build()
    for seed in (0, 1):
        keys = {name: rows[name, "npo", seed].model for name in ("first", "second")}
        models = {name: load_folder(store.folder(str(key)))[0] for name, key in keys.items()}
        by_hand = method.forget(problem.with_model(models["first"]), Workplace(seed)).model
        for made, wanted in zip(models["second"].parameters(), by_hand.parameters(), strict=True):
            assert torch.equal(made, wanted)
        # The target is the same, for it learned before any request.
        assert rows["second", "target", seed].model == rows["first", "target", seed].model


def test_an_earlier_request_must_stand_before():
    turned = {**STUDY, "problems": STUDY["problems"][::-1]}
    with pytest.raises(
        BadInput, match="'second' comes after 'first', as which no problem before it is known"
    ):
        build_graph(StudySpec(**turned), Path(), lambda _: None)


def test_a_given_retrained_model_is_one_row_and_the_yardstick(tmp_path: Path):
    """Whatever the seeds: shown once, never trained, and every method is compared with it."""
    trained = expunge.run(
        {**STUDY, "problems": STUDY["problems"][:1], "seeds": [0]}, tmp_path / "a", workers=0, display="none"
    )
    models = {row.method: row.model_id for row in trained.scores.judged}
    folders = {
        method: next(f for f in (tmp_path / "a/store/jobs").iterdir() if _holds(f, str(model_id)))
        for method, model_id in models.items()
    }
    given = {**STUDY["problems"][0], "model": str(folders["target"]), "retrained": str(folders["retrain"])}
    study = {**STUDY, "problems": [given]}
    finished = expunge.run(study, tmp_path / "b", workers=0, display="none")
    rows = [(row.method, row.seed) for row in finished.scores.judged]
    assert sorted(rows) == [("npo", 0), ("npo", 1), ("retrain", 0), ("target", 0)]
    assert next(r for r in finished.scores.judged if r.method == "retrain").model_id == models["retrain"]
    gap = next(r for r in finished.scores.judged if r.method == "npo").score("mae", "forget")
    assert gap is not None and gap.reference is not None and len(gap.reference.values) == 1


def _holds(folder: Path, model_id: str) -> bool:
    record = folder / "expunge.json"
    return record.is_file() and model_id in record.read_text()


def test_embedded_studies_of_language_models_are_well_formed():
    """Names and parameters of all methods are valid, and paths given to them start where the command is run."""
    for name in ("tofu-mini", "tofu", "muse", "muse-scalability", "muse-sustainability"):
        assert name in embedded_studies()
        spec, _, base = load_study(name)
        assert base == Path.cwd() and all(method.resolve() for method in spec.methods)
    spec, _, _ = load_study("tofu", ["model=./folder", "split=forget01", "data_dir=/here"])
    assert spec.problems == [
        ProblemSpec(benchmark="tofu", model="./folder", options={"split": "forget01", "data_dir": "/here"})
    ]
