"""What each command does for a user."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from expunge.files import state_digest
from expunge.record import ScoreFile
from expunge.studies.comparison import ComparedScores
from tests.cli.conftest import OWN, Run

METHOD = '''
from expunge.methods.objective import Objective

class MyMethod(Objective):
    """Half the ascent."""

    name = "my-method"
    paper = "mine"

    def loss(self, step):
        return {"forget": -0.5 * step.mean("forget", step.family.nll(step.outputs("forget"), step.forget))}
'''


def test_list_methods_as_json_gives_name_families_needs_paper_kind(expunge: Run) -> None:
    rows = expunge("list", "methods", "--json").json
    by_name = {row["name"]: row for row in rows}
    assert set(by_name["npo"]) == {"name", "families", "needs", "paper", "kind", "guarantee"}
    assert by_name["blindspot"]["families"] == ["regressor"]
    assert by_name["ssd"]["kind"] == "edit" and by_name["retrain"]["kind"] == "exact"


@pytest.mark.parametrize("kind", ["methods", "benchmarks", "metrics", "attacks", "families", "studies"])
def test_list_prints_every_name(kind: str, expunge: Run) -> None:
    rows = expunge("list", kind, "--json").json
    assert rows
    table = expunge("list", kind)
    assert table.code == 0
    assert all(row["name"] in table.out for row in rows)


def test_show_a_method_with_ranges_and_sources(expunge: Run) -> None:
    facts = expunge("show", "npo", "--json").json
    beta = next(p for p in facts["parameters"] if p["name"] == "beta")
    assert beta["limits"] == {"gt": 0.0} and beta["default"] == 0.1 and beta["source"]
    shown = expunge("show", "npo")
    assert "beta" in shown.out and "> 0" in shown.out


@pytest.mark.parametrize("name", ["accuracy", "digits", "classifier"])
def test_show_other_things(name: str, expunge: Run) -> None:
    assert expunge("show", name, "--json").json["name"] == name


def test_env_names_versions(expunge: Run) -> None:
    assert expunge("env", "--json").json["packages"]["torch"] == torch.__version__


def test_forget_from_my_own_model_and_data(mine: Path, expunge: Run) -> None:
    done = expunge(
        "forget",
        *OWN,
        "--forget",
        "user:user=ann",
        "--method",
        "gradient-ascent",
        "--set",
        "epochs=2",
        "--out",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    assert "importing" in done.err and "net.py" in done.err  # code of the user's runs, and it is said
    facts = done.json
    assert facts["problem"]["counts"]["forget"] == 8  # r0, r8, ..., r56
    assert facts["parameters"]["epochs"] == 2
    before, after = load_file("net.safetensors"), load_file("out/model.safetensors")
    assert set(before) == set(after)
    assert any(not torch.equal(before[k], after[k]) for k in before)
    assert facts["model_id"] == state_digest(after)
    assert "unlearning" in Path("out/README.md").read_text()
    assert "ann" not in Path("out/expunge.json").read_text()  # whom it was about is not in the record


@pytest.mark.parametrize("form", ["ids.txt", "ids=ids.txt", "where:a > 1.5", "class=1", "fraction=0.2"])
def test_every_way_to_name_the_forget_set(form: str, mine: Path, expunge: Run) -> None:
    (mine / "ids.txt").write_text("r1\nr5\n")
    done = expunge("forget", *OWN, "--forget", form, "--method", "ssd", "--out", "out", "--json")
    assert done.code == 0, done.err
    expected = {"ids.txt": 2, "ids=ids.txt": 2, "class=1": 30, "fraction=0.2": 12}
    assert done.json["problem"]["counts"]["forget"] == expected.get(
        form, done.json["problem"]["counts"]["forget"]
    )


def test_forget_rows_in_a_file_of_their_own_beside_a_retain_file(mine: Path, expunge: Run) -> None:
    lines = Path("train.csv").read_text().splitlines()
    Path("gone.csv").write_text("\n".join(lines[:6]) + "\n")
    Path("kept.csv").write_text("\n".join([lines[0], *lines[6:]]) + "\n")
    options = [part if part != "train.csv" else "gone.csv" for part in OWN]
    done = expunge(
        "forget",
        *options,
        "--retain",
        "kept.csv",
        "--method",
        "gradient-difference",
        "--out",
        "out",
        "--json",
    )
    assert done.code == 0, done.err
    counts = done.json["problem"]["counts"]
    assert (counts["forget"], counts["retain"]) == (5, 55)


def test_audit_somebody_elses_checkpoint(mine: Path, expunge: Run) -> None:
    assert (
        expunge(
            "forget", *OWN, "--forget", "class=1", "--method", "gradient-ascent", "--out", "gone", "--json"
        ).code
        == 0
    )
    own = [*OWN[4:], "--forget", "class=1", "--holdout", "held.csv", "--test", "held.csv"]
    done = expunge("audit", "--model", "gone", "--target", "gone", *own, "--out", "report", "--json")
    assert done.code == 0, done.err
    scores = ScoreFile.model_validate(done.json)
    assert ScoreFile.read(Path("report/scores.json")) == scores
    audited = next(j for j in scores.judged if j.label == "gone")
    kl = audited.score("kl-to-retrained", "forget")
    assert kl is not None and (kl.status, kl.reason) == (
        "undefined",
        "there is no retrained model to compare with",
    )
    assert audited.score("accuracy", "forget") is not None
    assert Path("report/report.html").stat().st_size > 100_000


def test_a_model_audited_against_itself_has_no_gap(mine: Path, expunge: Run) -> None:
    assert (
        expunge(
            "forget", *OWN, "--forget", "class=1", "--method", "gradient-ascent", "--out", "gone", "--json"
        ).code
        == 0
    )
    own = [*OWN[4:], "--forget", "class=1", "--holdout", "held.csv", "--test", "held.csv"]
    scores = ScoreFile.model_validate(
        expunge("audit", "--model", "gone", "--reference", "gone", *own, "--json").json
    )
    audited = next(j for j in scores.judged if j.label == "gone")
    gaps = [s.reference.gap for s in audited.scores if s.reference is not None]
    assert len(gaps) > 10 and all(abs(g) < 1e-9 for g in gaps)


def test_a_method_of_my_own_beside_the_others(mine: Path, expunge: Run) -> None:
    (mine / "mine.py").write_text(METHOD)
    study = {
        "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1"}],
        "methods": ["gradient-ascent", {"name": "./mine.py:MyMethod", "epochs": 2}], "seeds": [0],
    }  # fmt: skip
    (mine / "study.yaml").write_text(yaml.safe_dump(study))
    done = expunge("run", "study.yaml", "--workers", "0", "--json")
    assert done.code == 0, done.err
    assert "importing" in done.err and "mine.py:MyMethod" in done.err
    labels = [j["label"] for j in done.json["judged"]]
    assert labels == ["target", "retrain", "gradient-ascent", "my-method (epochs=2)"]
    assert (mine / "runs" / "study" / "report.html").exists()


@pytest.fixture
def ran(tmp_path: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    study = {
        "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1"}],
        "methods": ["fine-tune"],
        "seeds": "0-1",
    }
    Path("first.yaml").write_text(yaml.safe_dump(study))
    assert expunge("run", "first.yaml", "--workers", "0", "--display", "none").code == 0
    return tmp_path


def test_compare_puts_equal_problems_into_one_table(ran: Path, expunge: Run) -> None:
    Path("second.yaml").write_text(Path("first.yaml").read_text().replace("fine-tune", "npo"))
    assert expunge("run", "second.yaml", "--workers", "0", "--display", "none").code == 0
    merged = ComparedScores.model_validate(
        expunge("compare", "runs/first", "runs/second", "--out", "compared", "--json").json
    )
    assert {s.label for s in merged.comparison.task.standings} == {"retrain", "fine-tune", "npo"}
    assert merged.comparison.instance is not None and merged.comparison.instance.ballots > 100
    assert Path("compared/comparison.html").exists() and Path("compared/comparison.json").exists()
    shown = expunge("compare", "runs/first/scores.json", "runs/second/scores.json", "--floor", "r2@test=0.9")
    assert shown.code == 0 and "Ranking by example" not in shown.out  # files without a store beside them
    assert "npo is not ranked: r2@test is" in shown.out
    assert len(merged.problems) == 1
    assert [(j.label, j.seed) for j in merged.judged] == [
        (label, s) for label in ("target", "retrain", "fine-tune", "npo") for s in (0, 1)
    ]
    single = ScoreFile.read(Path("runs/second/scores.json"))
    by_label = {(j.label, j.seed): j for j in merged.judged}
    for one in single.judged:
        assert by_label[one.label, one.seed].score("mae", "test") == one.score("mae", "test")


def test_compare_says_where_the_spread_comes_from_and_what_it_cannot_tell(ran: Path, expunge: Run) -> None:
    asked = ("compare", "runs/first", "--variance", "--items", "--metric", "mae@test")
    found = ComparedScores.model_validate(expunge(*asked, "--out", "compared", "--json").json).comparison
    assert [(v.label, v.metric, v.runs) for v in found.variance] == [
        (label, "mae", 2) for label in ("target", "retrain", "fine-tune")
    ]
    parts = {p.factor: p for p in found.variance[0].parts}
    assert parts["residual"].share == 1.0 and "every run has a level of its own" in parts["seed"].reason
    assert found.difficulty[0].reason.startswith("no stored evidence says who answered")
    shown = expunge(*asked)
    assert "where the spread comes from" in shown.out and "no difficulty of probes" in shown.out
    page = Path("compared/comparison.html").read_text()
    assert "Where the spread comes from" in page and "no stored evidence says" in page


def test_report_is_written_again_from_records_alone(ran: Path, expunge: Run) -> None:
    before = Path("runs/first/report.json").read_text()
    Path("runs/first/report.html").unlink()
    done = expunge("report", "runs/first", "--out", "elsewhere", "--json")
    assert done.code == 0 and Path("elsewhere/report.html").exists()
    assert Path("elsewhere/report.json").exists() and before


def test_plan_says_what_is_done_and_what_is_not(ran: Path, expunge: Run) -> None:
    jobs = expunge("plan", "first.yaml", "--set", "methods.0.lr=0.02", "--json").json["jobs"]
    to_do = sorted(j["kind"] for j in jobs if not j["done"])
    assert to_do == ["forget", "forget", "observe", "observe", "score", "score"]
    assert expunge("plan", "first.yaml").code == 0


def test_validate_lists_every_fault_at_once(tmp_path: Path, expunge: Run) -> None:
    study = {
        "name": "bad",
        "problems": [{"benchmark": "digitz"}, {"benchmark": "diabetes"}],
        "methods": ["nop", "blindspt"],
    }
    (tmp_path / "bad.yaml").write_text(yaml.safe_dump(study))
    done = expunge("validate", tmp_path / "bad.yaml", "--json")
    assert done.code == 2
    faults = " | ".join(done.json["faults"])
    for expected in ("did you mean 'npo'", "did you mean 'blindspot'", "did you mean 'digits'"):
        assert expected in faults


def test_validate_says_what_would_be_skipped(tmp_path: Path, expunge: Run) -> None:
    study = {"name": "s", "problems": [{"benchmark": "breast-cancer"}], "methods": ["blindspot", "npo"]}
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(study))
    done = expunge("validate", tmp_path / "s.yaml", "--json")
    assert done.code == 0
    assert done.json["skipped"] == ["blindspot on breast-cancer: it fits regressor, not classifier"]


def test_every_command_has_help_with_an_example(expunge: Run) -> None:
    for command in (
        "demo",
        "forget",
        "audit",
        "run",
        "compare",
        "report",
        "list",
        "show",
        "validate",
        "plan",
        "env",
    ):
        shown = expunge(command, "--help")
        assert shown.code == 0 and "Example" in shown.out and "--json" in shown.out


def test_a_study_on_my_own_model_without_a_recipe(mine: Path, expunge: Run) -> None:
    problem = {
        "name": "mine", "model": {"factory": "./net.py:make", "weights": "net.safetensors"}, "data": "train.csv",
        "test": "held.csv", "family": "classifier", "id": "key", "inputs": ["a", "b"], "forget": "class=1",
    }  # fmt: skip
    Path("own.yaml").write_text(
        yaml.safe_dump({"problems": [problem], "methods": ["retrain", "ssd"], "seeds": [0, 1]})
    )
    done = expunge("run", "own.yaml", "--workers", "0", "--json")
    assert done.code == 0, done.err
    scores = ScoreFile.model_validate(done.json)
    # One given target is one model, not one per seed.
    assert [(j.label, j.seed) for j in scores.judged] == [
        ("target", 0), ("retrain", 0), ("retrain", 1), ("ssd", 0), ("ssd", 1)
    ]  # fmt: skip
    retrain, ssd = scores.judged[1], scores.judged[-1]
    assert (retrain.status, retrain.reason) == (
        "not_applicable",
        "it needs the recipe the target was trained with",
    )
    gap, attack = ssd.score("average-gap", "run"), ssd.score("mia-loss-logistic", "forget")
    assert gap is not None and gap.reason == "there is no retrained model to compare with"
    assert attack is not None and attack.reason == "the problem has no 'holdout' data"
    assert scores.verdicts == []
