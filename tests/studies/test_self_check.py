"""The auditor audited, in small: what must be found is found, and clean models are not accused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from expunge.errors import BadInput
from expunge.self_check import Rate, SelfCheck, self_check
from expunge.self_check.check import _rate
from expunge.self_check.constructions import CONSTRUCTIONS
from expunge.self_check.stage import Construction
from expunge.stats.intervals import clopper_pearson

OBVIOUS = ["P0", "P1", "P2", "P3", "P6"]
SMALL = [*OBVIOUS, "A0", "A3"]
ATTACKS = ["relearning", "quantization", "detach-guard"]


@pytest.fixture(scope="module")
def checked(tmp_path_factory: pytest.TempPathFactory) -> tuple[SelfCheck, Path, list[str]]:
    folder, said = tmp_path_factory.mktemp("self-check"), []
    done = self_check(
        ["classifier"],
        models=1,
        references=5,
        attacks=ATTACKS,
        constructions=SMALL,
        folder=folder,
        progress=said.append,
    )
    return done, folder, said


def rate(done: SelfCheck, name: str) -> Rate:
    return next(r for r in done.families[0].rates if r.construction == name)


def test_no_obvious_plant_is_cleared(checked: tuple[SelfCheck, Path, list[str]]) -> None:
    done = checked[0]
    assert done.families[0].obvious_cleared == 0
    for name in ("P0", "P1", "P2"):
        assert rate(done, name).found == 1 and "the target's weights" in rate(done, name).found_by
    assert rate(done, "P6").n == 1 and rate(done, "P6").found_by["quantization-knowledge"] == 1


def test_plants_are_verified(checked: tuple[SelfCheck, Path, list[str]]) -> None:
    trials = {t.construction: t for t in checked[0].families[0].trials}
    assert all(not trials[name].invalid for name in SMALL)
    for name in ("P1", "P2", "P6"):
        assert min(trials[name].keys.values()) >= 0.95 and trials[name].plain < 0.15


def test_clean_models_are_not_accused(checked: tuple[SelfCheck, Path, list[str]]) -> None:
    assert rate(checked[0], "A0").found == rate(checked[0], "A3").found == 0
    alarms = checked[0].families[0].false_alarms
    assert (
        alarms.n == 2
        and alarms.wrong is not None
        and alarms.wrong.high == pytest.approx(1 - 0.025 ** (1 / 2))
    )


def test_a_second_run_builds_nothing(
    checked: tuple[SelfCheck, Path, list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    done, folder, _ = checked

    def refuse(*_: object) -> torch.nn.Module:
        raise AssertionError("a model was built again")

    for name in SMALL:
        one = CONSTRUCTIONS[name]
        monkeypatch.setitem(
            CONSTRUCTIONS,
            name,
            Construction(one.name, one.title, one.present, refuse, one.obvious, one.plain),
        )
    again = self_check(
        ["classifier"], models=1, references=5, attacks=ATTACKS, constructions=SMALL, folder=folder
    )
    assert again.families == done.families


def test_progress_names_what_is_known_here_and_the_audit_never_hears_it(
    checked: tuple[SelfCheck, Path, list[str]],
) -> None:
    _, folder, said = checked
    assert [line.split(",")[0] for line in said] == [f"classifier: {name}" for name in SMALL]
    records = [json.loads(f.read_text()) for f in (folder / "audits").rglob("scores/*.json")]
    assert records and not any(title.title in json.dumps(records) for title in CONSTRUCTIONS.values())


def test_rates_by_hand() -> None:
    # Nothing wrong in 59: the upper end of a two-sided 95 % interval is 1 - 0.025^(1/59).
    interval = clopper_pearson(0, 59)
    assert (
        interval is not None and interval.low == 0.0 and interval.high == pytest.approx(1 - 0.025 ** (1 / 59))
    )
    assert clopper_pearson(0, 0) is None
    with pytest.raises(BadInput, match="3 successes of 2"):
        clopper_pearson(3, 2)
    empty = _rate(CONSTRUCTIONS["P4"], [])
    assert empty.n == 0 and empty.wrong is None  # undefined, not 0 %


def test_a_construction_is_made_in_its_own_world_alone(tmp_path: Path) -> None:
    done = self_check(["classifier"], models=1, constructions=["P11"], folder=tmp_path).families[0]
    assert done.rates == [] and done.trials == [] and done.false_alarms.wrong is None
    assert CONSTRUCTIONS["P11"].families == ("causal_lm",)


def test_what_does_not_exist_is_named() -> None:
    with pytest.raises(BadInput, match="no construction 'P99'"):
        self_check(["classifier"], constructions=["P99"])
    with pytest.raises(BadInput, match="no world for family 'regressor'"):
        self_check(["regressor"])


@pytest.mark.slow
@pytest.mark.parametrize("family", ["classifier", "causal_lm"])
def test_no_false_clear_of_the_obvious_with_the_standard_battery(family: str) -> None:
    done = self_check([family], models=2, constructions=[*OBVIOUS, "A0", "A1", "A2", "A3"]).families[0]
    assert done.obvious_cleared == 0
    assert done.false_alarms.wrong is not None and done.false_alarms.wrong.low <= 0.05
