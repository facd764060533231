"""The lm-eval harness on a loaded model, with a task of a few rows in a local folder."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from expunge.errors import BadInput
from expunge.families import CausalLM
from expunge.families.models import fingerprint
from expunge.problem import Problem
from expunge.testing import tiny_problem

lm_eval = pytest.importorskip("lm_eval")

PLACES = ["Rome", "Oslo", "Lima", "Bern"]


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("causal_lm")


@pytest.fixture(scope="module")
def tasks(problem: Problem, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A task of multiple choice about the training rows, its data beside it."""
    folder = tmp_path_factory.mktemp("tasks")
    rows = []
    for row in problem.train.to_list()[:12]:
        words = row["answer"].removesuffix(".").split()
        rows.append({"text": " ".join(words[:-1]), "label": PLACES.index(words[-1])})
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "places.yaml").write_text(
        "task: tiny_places\ndataset_path: json\n"
        f"dataset_kwargs:\n  data_files:\n    test: {folder / 'rows.jsonl'}\n"
        "test_split: test\noutput_type: multiple_choice\ndoc_to_text: '{{text}}'\ndoc_to_target: label\n"
        f"doc_to_choice: {json.dumps(PLACES)}\n"
        "metric_list:\n  - metric: acc\n    aggregation: mean\n    higher_is_better: true\n"
        "metadata:\n  version: 1.0\n"
    )
    return folder


def test_accuracy_by_hand(problem, tasks):
    """Share of rows whose own place is the likeliest next word, asked of the bare model."""
    from expunge.evidence.lm_eval import task_scores

    family: Any = problem.family
    model: Any = problem.target
    before = fingerprint(model)
    states = random.getstate(), torch.get_rng_state().tolist()
    (score,) = task_scores(family, model, ["tiny_places"], task_folder=tasks)
    rows = [json.loads(line) for line in (tasks / "rows.jsonl").read_text().splitlines()]
    choices = [family.tokenizer(place)["input_ids"][0] for place in PLACES]
    right = []
    for row in rows:
        with torch.no_grad():
            logits = model(torch.tensor([family.tokenizer(row["text"])["input_ids"]])).logits[0, -1]
        right.append(int(logits[choices].argmax()) == row["label"])
    assert (score.metric, score.split, score.direction, score.n) == (
        "lm-eval-acc",
        "tiny_places",
        "higher",
        12,
    )
    assert score.value == pytest.approx(np.mean(right))
    error = np.std(right, ddof=1) / np.sqrt(12)
    assert score.interval is not None
    assert score.interval.high - score.value == pytest.approx(1.96 * error, rel=1e-3)
    assert fingerprint(model) == before and not model.training
    assert states == (random.getstate(), torch.get_rng_state().tolist())


def test_a_tokenizer_without_padding_stays_so(problem, tasks):
    from expunge.evidence.lm_eval import task_scores

    assert isinstance(problem.family, CausalLM)
    family = CausalLM.restore(problem.family.describe())
    family.tokenizer.pad_token = None
    (score,) = task_scores(family, problem.target, ["tiny_places"], task_folder=tasks, batch_size=3, limit=5)
    assert score.n == 5 and family.tokenizer.pad_token is None


def test_what_is_refused(problem, tasks):
    from expunge.evidence.lm_eval import task_scores

    with pytest.raises(BadInput, match="lm-eval has no task 'tiny_place'; did you mean 'tiny_places'"):
        task_scores(problem.family, problem.target, ["tiny_place"], task_folder=tasks)
    other = tiny_problem("classifier")
    with pytest.raises(
        BadInput, match="measures language models of transformers, not a MLP of family classifier"
    ):
        task_scores(other.family, other.target, ["tiny_places"])


@pytest.fixture(scope="module")
def study(problem: Problem, tasks: Path) -> dict[str, Any]:
    """A study beside the tasks: one model of transformers unlearned, and one that only answers together with another."""
    family: Any = problem.family
    family.tokenizer.save_pretrained(tasks / "model")
    problem.target.save_pretrained(tasks / "model")  # pyright: ignore
    problem.train.to_json(tasks / "train.jsonl")
    short = {"epochs": 1, "batch_size": 6}
    return {
        "name": "asked",
        "problems": [
            {
                "name": "places", "data": str(tasks / "train.jsonl"), "model": str(tasks / "model"), "max_length": 32,
                "forget": "where:id == 't0-0'",
            }
        ],
        "methods": [
            {"name": "gradient-ascent", "lr": 0.05, **short},
            {"name": "whp", "label": "whp", "form": "inference", "reinforcing_epochs": 1},
        ],
        "metrics": ["probability"],
        "lm_eval": {"tasks": ["tiny_places"], "folder": str(tasks), "limit": 8},
        "seeds": [0],
    }  # fmt: skip


@pytest.mark.slow  # every look into the catalog of tasks takes seconds
def test_a_study_asks_every_language_model(study, tasks, tmp_path):
    """Each model has the scores that it has by itself, from a job of its own; again, nothing is computed."""
    from expunge.evidence.lm_eval import task_scores
    from expunge.families.weights import load_folder
    from expunge.studies.graph import build_graph
    from expunge.studies.jobs import Store
    from expunge.studies.spec import StudySpec
    from expunge.studies.study import run_study

    done = run_study(study, tmp_path, workers=0, display="none")
    assert not done.outcome.failed
    rows = {j.method: j for j in done.scores.judged}
    graph = build_graph(StudySpec(**study), tmp_path, lambda _: None)
    (loaded,) = graph.problems.values()
    store = Store(tmp_path / "store")
    assert [j.kind for j in graph.jobs.values()].count("lm-eval") == 3
    for row in graph.rows:
        score = rows[row.method].score("lm-eval-acc", "tiny_places")
        if row.method == "whp":
            refused = rows["whp"].score("lm-eval", "tiny_places")
            assert score is None and refused is not None and refused.status == "not_applicable"
            assert "not a Combined" in refused.reason
            continue
        assert row.model is not None and score is not None
        model, *_ = load_folder(store.folder(row.model))
        (alone,) = task_scores(loaded.family, model, ["tiny_places"], task_folder=tasks, limit=8)
        assert (score.value, score.n) == (alone.value, 8)
    again = run_study(study, tmp_path, workers=0, display="none")
    assert again.outcome.done == 0 and again.outcome.cached == len(graph.jobs)
    # Other tasks are other jobs; nothing else is computed again.
    fewer = run_study(study, tmp_path, workers=0, display="none", assignments=["lm_eval.limit=4"])
    assert fewer.outcome.done == 3
    counts = [s.n for j in fewer.scores.judged if (s := j.score("lm-eval-acc", "tiny_places")) is not None]
    assert counts == [4, 4]


def test_a_study_refuses_unknown_tasks_before_any_work(study, tmp_path):
    from expunge.studies.study import run_study

    for change, message in (
        ({"tasks": ["tiny_place"]}, "lm-eval has no task 'tiny_place'; did you mean 'tiny_places'"),
        ({"folder": "nowhere"}, "lm_eval: no folder '.*nowhere' with tasks"),
        ({"tasks": []}, "'tasks'"),
    ):
        with pytest.raises(BadInput, match=message):
            run_study({**study, "lm_eval": {**study["lm_eval"], **change}}, tmp_path, display="none")
    assert not list(tmp_path.iterdir())
