"""Attacks in studies: their scores stand in the rows, shadow models are shared, a killed run goes on where it was."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from expunge.errors import BadInput
from expunge.record import Judged, ScoreFile
from expunge.studies.graph import Job, build_graph
from expunge.studies.progress import RunProgress
from expunge.studies.spec import StudySpec
from expunge.studies.study import Finished, run_study
from tests.studies.test_study import numbers

ATTACKED: dict[str, Any] = {
    "name": "attacked",
    "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1"}],
    "methods": ["retrain", {"name": "fine-tune", "epochs": 1}],
    "seeds": [0],
    "metrics": ["mae"],
    "attacks": ["population-mia", {"name": "lira", "shadows": 4}, {"name": "u-lira", "shadows": 4}, "inversion"],
}  # fmt: skip
NEW_KINDS = {"shadow", "shadow-forget", "attack"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("attacked")


@pytest.fixture(scope="module")
def attacked(runs: Path) -> Finished:
    return run_study(ATTACKED, runs, workers=0, display="none")


def graph_of(**changes: Any) -> Any:
    return build_graph(StudySpec(**{**ATTACKED, **changes}), Path(), lambda _: None)


def row(finished: Finished, method: str) -> Judged:
    return next(j for j in finished.scores.judged if j.method == method)


def test_every_row_is_attacked_and_the_controls_too(attacked: Finished) -> None:
    assert not attacked.outcome.failed
    for method in ("target", "retrain", "fine-tune"):
        for attack in ("population-mia", "lira", "u-lira"):
            score = row(attacked, method).score(f"{attack}-auc", "forget")
            assert score is not None and score.status == "ok" and score.attack
            assert score.value is not None and 0 <= score.value <= 1


def test_success_is_compared_with_the_retrained_model(attacked: Finished) -> None:
    mine, other = (row(attacked, m).score("u-lira-auc", "forget") for m in ("fine-tune", "retrain"))
    assert mine is not None and other is not None and mine.reference is not None
    assert mine.reference.values == [other.value]


def test_u_lira_of_the_target_is_lira(attacked: Finished) -> None:
    lira, u_lira = (row(attacked, "target").score(f"{a}-auc", "forget") for a in ("lira", "u-lira"))
    assert lira is not None and u_lira is not None and lira.value == u_lira.value
    # Elsewhere they compare with other models.
    lira, u_lira = (row(attacked, "retrain").score(f"{a}-auc", "forget") for a in ("lira", "u-lira"))
    assert lira is not None and u_lira is not None and lira.value != u_lira.value


def test_an_attack_that_does_not_fit_says_so(attacked: Finished) -> None:
    score = row(attacked, "target").score("inversion-accuracy", "forget")
    assert score is not None
    assert score.status == "not_applicable" and score.reason.startswith("it fits classifier, not regressor")


def test_run_twice_computes_nothing_the_second_time(attacked: Finished, runs: Path) -> None:
    again = run_study(ATTACKED, runs, workers=0, display="none")
    assert again.outcome.done == 0
    assert numbers(again.scores) == numbers(attacked.scores)


def test_a_study_without_attacks_keeps_its_jobs(attacked: Finished) -> None:
    plain, all_of_it = graph_of(attacks=[]), graph_of()
    assert set(plain.jobs) <= set(all_of_it.jobs)
    assert not {j.kind for j in plain.jobs.values()} & NEW_KINDS
    added = {j.kind for k, j in all_of_it.jobs.items() if k not in plain.jobs}
    assert added == NEW_KINDS | {"observe"}  # the looks at shadow models


def test_shadows_are_shared_between_methods_seeds_and_attacks() -> None:
    def shadows(**changes: Any) -> set[str]:
        return {k for k, j in graph_of(**changes).jobs.items() if j.kind == "shadow"}

    four = shadows()
    assert len(four) == 4
    assert shadows(seeds=[5, 6], methods=["ssd", "npo"]) == four
    assert shadows(attacks=["u-lira"]) > four  # 16 by default, the first four among them
    assert not shadows(attacks=["population-mia"])


def test_each_shadow_is_unlearned_once_for_all_seeds() -> None:
    kinds = [j.kind for j in graph_of(seeds=[0, 1, 2]).jobs.values()]
    # Four shadows by two methods; the target row needs none. Three rows by three seeds by three attacks that fit.
    assert kinds.count("shadow-forget") == 8
    assert kinds.count("attack") == 27


def test_standard_trains_no_shadows_and_all_does() -> None:
    kinds = {w: {j.kind for j in graph_of(attacks=w).jobs.values()} for w in ("standard", "all")}
    assert "attack" in kinds["standard"] and "shadow" not in kinds["standard"]
    assert "shadow" in kinds["all"]


def test_a_failed_attack_leaves_its_reason_and_the_rest_of_the_row(tmp_path: Path) -> None:
    (tmp_path / "broken.py").write_text(
        "from expunge.attacks import Attack, Measure\n"
        "class Broken(Attack):\n"
        "    '''Fails.'''\n"
        "    name = 'broken'\n"
        "    paper = threat_model = 'none'\n"
        "    access = 'text'\n"
        "    measures = (Measure('broken-share', 'a number for a test', 'share'),)\n"
        "    def run(self, scene):\n"
        "        raise RuntimeError('out of luck')\n"
    )
    study = {**ATTACKED, "methods": ["retrain"], "attacks": [f"{tmp_path}/broken.py:Broken"]}
    finished = run_study(study, tmp_path / "runs", workers=0, display="none")
    retrained = row(finished, "retrain")
    score, mae = retrained.score("broken-share", "forget"), retrained.score("mae", "forget")
    assert score is not None and mae is not None
    assert (score.status, score.reason) == ("failed", "RuntimeError: out of luck")
    assert (retrained.status, mae.status) == ("ok", "ok")
    from expunge.attacks import ATTACKS

    del ATTACKS._items["broken"]


@pytest.mark.parametrize(
    ("attacks", "message"),
    [
        (["lyra"], "unknown attack 'lyra'; did you mean 'lira'?"),
        ([{"name": "lira", "shadow": 8}], "lira: unknown key 'shadow'; did you mean 'shadows'?"),
        ([{"name": "lira", "shadows": 2}], "lira: 'shadows' should be greater than or equal to 4, got 2"),
        (["lira", {"name": "lira", "shadows": 8}], "attacks: 'lira' is listed twice"),
        ([{"shadows": 8}], "is neither a name nor a mapping with a 'name', such as {name: lira, shadows: 32}"),
        ("some", "'attacks"),
    ],
)  # fmt: skip
def test_faults_are_named(attacks: Any, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        StudySpec(**{**ATTACKED, "attacks": attacks})
    assert message in str(caught.value)


def test_interrupted_in_the_middle_of_a_shadow_and_run_again(
    attacked: Finished, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shadows = {k for k, j in graph_of().jobs.items() if j.kind == "shadow"}
    begun: set[str] = set()

    def stepped(self: RunProgress, job: Job, step: int, of: int, terms: object = None) -> None:
        begun.add(job.key)
        if len(begun & shadows) == 2 and step == 5:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunProgress, "stepped", stepped)
        run_study(ATTACKED, tmp_path, workers=0, display="none")
    jobs = tmp_path / "store" / "jobs"
    before = {p.name: p.stat().st_mtime_ns for p in jobs.glob("[!.]*")}
    assert len(shadows & set(before)) == 1
    again = run_study(ATTACKED, tmp_path, workers=0, display="none")
    assert {name: (jobs / name).stat().st_mtime_ns for name in before} == before
    assert again.outcome.done == attacked.outcome.done - len(before)
    assert numbers(again.scores) == numbers(attacked.scores)


@pytest.mark.slow
def test_killed_among_the_shadows_and_run_again(attacked: Finished, tmp_path: Path) -> None:
    study = tmp_path / "attacked.yaml"
    study.write_text(yaml.safe_dump(ATTACKED))
    arguments = ["run", str(study), "--runs", str(tmp_path / "runs"), "--workers", "1", "--display", "none"]
    command = [sys.executable, "-c", "from expunge.cli import main; main()", *arguments]
    jobs = tmp_path / "runs" / "store" / "jobs"
    shadows = {k for k, j in graph_of().jobs.items() if j.kind == "shadow"}

    def done() -> dict[str, int]:
        return {p.name: p.stat().st_mtime_ns for p in jobs.glob("[!.]*")} if jobs.is_dir() else {}

    process = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not shadows & set(done()) and time.monotonic() < deadline:
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(1.0)  # workers notice that their parent is gone
    before = done()
    assert shadows & set(before)
    assert len(before) < attacked.outcome.done, (
        "the run was over before it was killed; the test proves nothing"
    )

    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=120)
    after = done()
    assert {k: after[k] for k in before} == before, "a complete job was computed again"
    scores = ScoreFile.read(tmp_path / "runs" / "attacked" / "scores.json")
    assert numbers(scores) == numbers(attacked.scores)


def test_attacks_that_compare_are_given_the_other_retrained_models(tmp_path: Path) -> None:
    """Every row's depth is measured against retrained models other than itself, so that each has a value."""
    patching = {"name": "activation-patching", "fluency": 0.01}
    study = {**ATTACKED, "name": "compared", "seeds": [0, 1], "attacks": [patching]}
    finished = run_study(study, tmp_path, workers=0, display="none")
    depths = {
        (j.method, j.seed): j.score("activation-patching-uds", "forget") for j in finished.scores.judged
    }
    assert len(depths) == 6
    values = {row: score.value for row, score in depths.items() if score is not None}
    assert values["target", 0] == values["target", 1] == 0
    assert all(values["retrain", seed] is not None for seed in (0, 1))
    alone = run_study({**study, "seeds": [0]}, tmp_path, workers=0, display="none")
    score = row(alone, "retrain").score("activation-patching-uds", "forget")
    assert score is not None and score.status == "undefined" and "no other one" in score.reason
