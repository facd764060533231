"""Attacks on the command line: what there is, and audits that use them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from expunge import api
from expunge.methods import METHODS
from expunge.record import ScoreFile
from tests.cli.conftest import Run


def test_attacks_are_listed_with_their_threat_model(expunge: Run) -> None:
    rows = {row["name"]: row for row in expunge("list", "attacks", "--json").json}
    assert {"population-mia", "lira", "u-lira", "mia-loss-logistic"} <= set(rows)
    assert rows["lira"]["kind"] == "attack" and rows["mia-loss-logistic"]["kind"] == "metric"
    assert all(row["threat_model"] for row in rows.values())
    assert "recipe" in rows["u-lira"]["needs"]


def test_show_says_what_an_attack_yields(expunge: Run) -> None:
    facts = expunge("show", "lira", "--json").json
    assert facts["what"] == "attack"
    assert "lira-auc" in facts["measures"]
    assert {p["name"] for p in facts["parameters"]} == {"shadows", "variant", "variance"}
    assert "lira-tpr-at-1-percent-fpr: Share of forget rows" in expunge("show", "lira").out


@pytest.fixture
def handed_over(expunge: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that `expunge forget` wrote, in the current folder."""
    monkeypatch.chdir(tmp_path)
    made = expunge(
        "forget", "--benchmark", "breast-cancer", "--method", "fine-tune", "--set", "epochs=1", "--out", "mine",
        "--save-target", "before",
    )  # fmt: skip
    assert made.code == 0, made.err
    return tmp_path


AUDIT = ["audit", "--benchmark", "breast-cancer", "--model", "mine", "--target", "before", "--metrics", "accuracy"]  # fmt: skip


def test_an_audit_attacks_the_controls_too(handed_over: Path, expunge: Run) -> None:
    done = expunge(
        *AUDIT, "--attacks", "population-mia", "--set", "population-mia.statistic=margin", "--json"
    )
    assert done.code == 0, done.err
    scores = ScoreFile.model_validate_json(done.out)
    found = {j.label: j.score("population-mia-auc", "forget") for j in scores.judged}
    assert set(found) == {"target", "mine"}
    assert all(s is not None and s.status == "ok" for s in found.values())


def test_the_method_is_read_from_the_models_folder(
    handed_over: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}

    def audited(*given: Any, **more: Any) -> Any:
        seen.update(more)
        raise KeyboardInterrupt  # what was passed is all that matters here

    monkeypatch.setattr(api, "audit_with_losses", audited)
    expunge(*AUDIT, "--attacks", "u-lira", "--set", "u-lira.shadows=4")
    (attack,) = seen["attacks"]
    assert (attack.name, attack.shadows) == ("u-lira", 4)
    assert seen["methods"] == {"mine": METHODS["fine-tune"](epochs=1)}
    record = json.loads((handed_over / "mine" / "expunge.json").read_text())
    assert record["parameters"] == METHODS["fine-tune"](epochs=1).model_dump(mode="json")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attacks", "lyra"], "unknown attack 'lyra'; did you mean 'lira'?"),
        (["--attacks", "all", "--set", "lira.shadows=8"], "needs the attacks by name, not --attacks all"),
        (["--attacks", "lira", "--set", "u-lira.shadows=8"], "is about no attack in --attacks; did you mean 'lira'?"),
        (["--attacks", "lira", "--set", "lira.shadow=8"], "unknown key 'shadow'; did you mean 'shadows'?"),
    ],
)  # fmt: skip
def test_faults_are_named(arguments: list[str], message: str, handed_over: Path, expunge: Run) -> None:
    done = expunge(*AUDIT, *arguments)
    assert done.code == 2
    assert message in done.err


OURS = """
from expunge.attacks import Attack, Measure
from expunge.metrics.base import Estimate
from expunge.parameters import param

class Ours(Attack):
    "Answers with what it was told."
    name, paper, threat_model, access = "ours", "none", "none", "text"
    measures = (Measure("ours-told", "what it was told", "share"),)
    told: float = param(0.0, "what to say", source="ours")

    def run(self, scene):
        return [self.score("ours-told", Estimate(self.told, 1))]
"""


def test_an_attack_of_ones_own_has_parameters(handed_over: Path, expunge: Run) -> None:
    (handed_over / "ours.py").write_text(OURS)
    done = expunge(*AUDIT, "--attacks", "./ours.py:Ours", "--set", "ours.told=0.25", "--json")
    assert done.code == 0, done.err
    found = ScoreFile.model_validate_json(done.out).judged[-1].score("ours-told", "forget")
    assert found is not None and found.value == 0.25
