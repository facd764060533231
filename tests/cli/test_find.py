"""`expunge find`: ids that --forget takes, and whether the order of training matters."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run

FIND = ["find", "worst-case", "--size", "6", "--set", "rounds=2", "--set", "lr=0.01"]


@pytest.fixture
def problem(mine: Path) -> Path:
    """The user's own problem as a file."""
    content = {
        "model": {"factory": "./net.py:make", "weights": "net.safetensors"}, "data": "train.csv",
        "family": "classifier", "id": "key", "inputs": ["a", "b"], "forget": "class=1",
    }  # fmt: skip
    (mine / "problem.yaml").write_text(yaml.safe_dump(content))
    return mine / "problem.yaml"


def test_the_ids_can_be_forgotten(problem: Path, expunge: Run) -> None:
    done = expunge(*FIND, "--problem", problem, "--out", "ids.txt", "--json")
    assert done.code == 0, done.err
    ids = Path("ids.txt").read_text().split()
    assert done.json["ids"] == ids and len(ids) == 6
    assert len(done.json["random_losses"]) == 19 and 0.05 <= done.json["p_value"] <= 1
    assert done.json["search"]["rounds"] == 2
    assert sum(done.json["groups"].values()) == 6
    forgot = expunge(
        "forget", "--problem", problem, "--forget", "ids.txt", "--method", "ssd", "--out", "out", "--json"
    )
    assert forgot.code == 0, forgot.err
    assert forgot.json["problem"]["counts"]["forget"] == 6


def test_what_is_printed(problem: Path, expunge: Run) -> None:
    done = expunge(*FIND, "--problem", problem, "--random-sets", "0", "--easiest", "--out", "ids.txt")
    assert done.code == 0, done.err
    assert "easiest to forget" in done.out and "found" in done.out and "ids: ids.txt" in done.out
    assert "p-value" not in done.out


def test_refusals(problem: Path, expunge: Run) -> None:
    (problem.parent / "ids.txt").write_text("r1\n")
    done = expunge(*FIND, "--problem", problem, "--out", "ids.txt")
    assert done.code == 2 and "'ids.txt' exists already" in done.err
    assert Path("ids.txt").read_text() == "r1\n"
    done = expunge("find", "worst-case", "--size", "600", "--problem", problem, "--out", "other.txt")
    assert done.code == 2 and "'size' must be below the 60 training rows, got 600" in done.err
    assert not Path("other.txt").exists()
    done = expunge(*FIND, "--set", "round=3", "--problem", problem, "--out", "other.txt")
    assert done.code == 2 and "unknown key 'round'; did you mean 'rounds'?" in done.err
    done = expunge(*FIND, "--out", "other.txt")
    assert done.code == 2 and "there is no data" in done.err


@pytest.fixture
def untrained(mine: Path) -> Path:
    """The user's data with a recipe instead of a trained model."""
    content = {
        "model": {"kind": "builtin", "name": "mlp", "options": {"inputs": 2, "outputs": 2, "hidden": [4]}},
        "recipe": {"epochs": 3, "lr": 0.1, "batch_size": 16}, "data": "train.csv", "test": "held.csv",
        "family": "classifier", "id": "key", "inputs": ["a", "b"], "forget": {"user": {"user": "ann"}},
    }  # fmt: skip
    (mine / "untrained.yaml").write_text(yaml.safe_dump(content))
    return mine / "untrained.yaml"


def test_path_dependence(untrained: Path, expunge: Run) -> None:
    command = ["find", "path-dependence", "--problem", untrained, "--method", "npo", "--set", "npo.epochs=2"]
    command += ["--parts", "1", "--seeds", "2"]
    done = expunge(*command, "--json")
    assert done.code == 0, done.err
    effects = done.json["effects"]
    assert {e["model"] for e in effects} == {"target", "retrained", "npo", "npo (matched)"}
    assert {e["split"] for e in effects} == {"forget", "part-1", "test"}
    target = next(
        e for e in effects if (e["model"], e["quantity"], e["split"]) == ("target", "loss", "forget")
    )
    assert {order: len(values) for order, values in target["by_path"].items()} == {
        "forget > part-1": 2, "part-1 > forget": 2,
    }  # fmt: skip
    shown = expunge(*command)
    assert shown.code == 0 and "accuracy on forget" in shown.out and "npo (matched)" in shown.out
    refused = expunge(*command, "--set", "npoo.lr=0.1")
    assert refused.code == 2 and "--set names 'npoo', which is none of the methods: npo" in refused.err


def test_help_has_an_example(expunge: Run) -> None:
    for arguments in (["find", "--help"], ["find", "worst-case", "--help"]):
        assert "expunge find worst-case --benchmark digits" in " ".join(expunge(*arguments).out.split())


def test_probes_that_were_trained_on(problem: Path, expunge: Run) -> None:
    rows = Path("train.csv").read_text().splitlines()
    Path("test.csv").write_text("\n".join([rows[0], *(r.replace("r", "t", 1) for r in rows[1:4])]) + "\n")
    content = yaml.safe_load(problem.read_text()) | {"test": "test.csv", "holdout": "held.csv"}
    problem.write_text(yaml.safe_dump(content))
    found = {
        c["split"]: c
        for c in expunge("find", "contamination", "--problem", problem, "--json").json["contamination"]
    }
    assert (found["test"]["exact"], found["holdout"]["exact"]) == (3, 0)
    assert {"probe": "t0", "row": "r0", "similarity": 1.0} in found["test"]["pairs"]
    assert "test 't0' is like train 'r0': 1.00" in expunge("find", "contamination", "--problem", problem).out
    Path("study.yaml").write_text(yaml.safe_dump({"problems": [content], "methods": ["ssd"]}))
    checked = expunge("validate", "study.yaml", "--contamination", "--json")
    assert checked.code == 0 and len(checked.json["contamination"]) == 1
    assert checked.json["contamination"][0].endswith("of 3 test rows, to train rows: 3 equal")
