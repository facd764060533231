"""What `expunge run` adds to a study: where it runs, and tuning."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import yaml

from tests.cli.conftest import Run

STUDY = {
    "name": "short",
    "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1", "recipe": {"epochs": 5}}],
    "methods": ["ssd"],
    "metrics": ["mae"],
    "seeds": [0],
}


@pytest.fixture
def study(tmp_path: Path) -> Path:
    path = tmp_path / "short.yaml"
    path.write_text(yaml.safe_dump(STUDY))
    return path


def test_tune_as_json_gives_scores_trials_and_times(study: Path, expunge: Run, tmp_path: Path) -> None:
    runs = ["--runs", tmp_path / "runs", "--workers", "0"]
    result = expunge("run", study, *runs, "--tune", "2", "--json")
    assert result.code == 0
    assert set(result.json) == {"scores", "tuning", "time_to_result"}
    (method,) = result.json["tuning"]["methods"]
    assert [t["number"] for t in method["trials"]] == [0, 1]
    labels = {j["label"] for j in result.json["scores"]["judged"]}
    assert labels == {"target", "retrain", "ssd", "ssd, tuned"}

    shown = expunge("run", study, *runs, "--tune", "2", "--display", "none")
    assert shown.code == 0 and "0 jobs computed" in shown.out
    for words in (
        "tuned by average gap to the retrained model", "2 trials each", "searched ssd: alpha: 0.1 to 1000",
        "every trial, and what was held",
        "time to result: median over seeds", "ssd, tuned",
    ):  # fmt: skip
        assert words in shown.out


@pytest.mark.parametrize(
    ("options", "code", "message"),
    [
        (["--tune", "soon"], 2, "--tune 'soon' is neither a number of trials, such as 20, nor of seconds"),
        (["--ray-address", "auto"], 2, "--ray-address belongs to --runner ray, not to --runner local"),
        (["--slurm", "partition=gpu"], 2, "--slurm belongs to --runner slurm, not to --runner local"),
        (["--runner", "slurm", "--slurm", "gpu"], 2, "--slurm 'gpu' is not of the form KEY=VALUE"),
        (["--memory", "0"], 2, "runner: 'memory' should be greater than 0, got 0.0"),
        (["--runner", "ray"], 3, "--runner ray needs the package 'ray', which is not installed"),
        (["--runner", "slurm"], 3, "--runner slurm needs the package 'submitit', which is not installed"),
        (["--tune", "2"], 3, "--tune needs the package 'optuna', which is not installed"),
    ],
)
def test_what_is_wrong_or_missing_has_its_exit_code(
    options: list[str], code: int, message: str, study: Path, expunge: Run, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    for package in ("ray", "submitit", "optuna"):
        monkeypatch.setitem(sys.modules, package, None)
    result = expunge("run", study, "--runs", tmp_path / "runs", "--workers", "1", *options)
    assert (result.code, message in result.err) == (code, True), result.err
    assert not (tmp_path / "runs" / "store").exists()
