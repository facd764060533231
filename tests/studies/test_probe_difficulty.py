"""How hard probes are, and what is answered at equal difficulty."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit
from scipy.stats import norm

from expunge.evidence import Evidence
from expunge.record import Judged, ScoreFile
from expunge.studies.probe_difficulty import difficulties
from expunge.studies.results import complete

Answers = dict[str, list[dict[str, np.ndarray]]]
"""By method, of each seed, by split `[n]`."""


def stored(folder: Path, answers: Answers, groups: list[str] | None = None) -> ScoreFile:
    """A run whose store says who answered what right."""
    judged = []
    for method, seeds in answers.items():
        for seed, by_split in enumerate(seeds):
            name = f"{method}{seed}"
            judged.append(
                Judged(
                    problem="p",
                    problem_id="f",
                    method=method,
                    label=method,
                    seed=seed,
                    model_id=name,
                    scores=[],
                )
            )
            model, look = folder / "jobs" / f"m-{name}", folder / "jobs" / f"look-{name}"
            model.mkdir(parents=True)
            look.mkdir()
            (model / "job.json").write_text(json.dumps({"kind": "forget"}))
            (model / "expunge.json").write_text(
                json.dumps({"fingerprint": name, "problem": {"fingerprint": "f"}})
            )
            (look / "job.json").write_text(json.dumps({"kind": "observe", "model": model.name}))
            for split, right in by_split.items():
                columns = {
                    "id": pa.array([f"{split}{i}" for i in range(len(right))]),
                    "correct": pa.array(right.astype(np.int8)),
                }
                if groups is not None and split == "forget":
                    columns["group"] = pa.array(groups)
                Evidence(pa.table(columns)).write(look / f"{split}.parquet")
    return complete("r", [{"name": "p", "fingerprint": "f"}], judged)


def test_worked_out_by_hand(tmp_path: Path):
    """Five models; as in every Rasch model, equally often solved probes are equally hard."""
    control = np.array(
        [[1, 1, 1, 1, 1], [1, 1, 1, 1, 1], [1, 1, 0, 0, 0], [1, 1, 0, 0, 0]]
    ).T  # models, probes
    forget = np.array([[1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 1, 1, 1]]).T
    retrain = [{"forget": f, "test": c} for f, c in zip(forget, control, strict=True)]
    # Knows all that was to be forgotten; of the hard controls one.
    keeps = [{"forget": np.array([1, 1, 1]), "test": np.array([1, 1, 1, 0])}]
    scores = stored(tmp_path, {"retrain": retrain, "keeps": keeps})
    (found,) = difficulties(scores, [tmp_path])
    assert (found.respondents, found.model, found.control, found.unmatched) == (5, "1pl", "test", 0)
    hard = [i.difficulty for i in found.items if i.id in ("forget0", "forget1", "test2", "test3")]
    assert np.ptp(hard) < 1e-3 and min(hard) > max(i.difficulty for i in found.items if i.id == "test0")
    by_label = {m.label: m for m in found.matched}
    # Forget probes 1, 1, 1 against the hard controls (1 + 0) / 2 twice and the easy ones' 1.
    assert by_label["keeps"].difference == pytest.approx((0.5 + 0.5 + 0) / 3)
    # Each retrained model answers the hard controls as it does the forget probes that the others find as hard.
    assert by_label["retrain"].difference == pytest.approx(0) and by_label["retrain"].excess is None
    assert by_label["keeps"].excess == pytest.approx(1 / 3)
    # Two of the seven probes are not fewer than a third: the three easy ones are one stratum.
    strata = {(s.split, s.name): (s.n, s.right) for s in found.strata}
    assert strata["forget", "easy"] == (1, {"retrain": 1.0, "keeps": 1.0})
    (n, right), *rest = [v for (split, name), v in strata.items() if split == "test" and name != "easy"]
    assert not rest and n == 2 and right == {"retrain": pytest.approx(0.4), "keeps": 0.5}


def test_difficulty_is_not_taken_for_forgetting(tmp_path: Path):
    """Forget probes are harder than controls; who answers as the retrained ones do shows no gap at equal difficulty."""
    rng = np.random.default_rng(0)
    hard, easy = rng.normal(1.0, 0.8, 150), rng.normal(-0.5, 1.2, 400)

    def asked(n: int, knows: float = 0.0) -> list[dict[str, np.ndarray]]:
        return [
            {
                "forget": (rng.uniform(size=150) < expit(ability + knows - hard)).astype(int),
                "test": (rng.uniform(size=400) < expit(ability - easy)).astype(int),
            }
            for ability in norm.ppf((np.arange(n) + 0.5) / n)  # of equal mean, however many
        ]

    answers = {"retrain": asked(12), "clean": asked(6), "keeps": asked(6, knows=2.0)}
    (found,) = difficulties(stored(tmp_path, answers), [tmp_path])
    raw = {k: np.mean([a["forget"].mean() - a["test"].mean() for a in v]) for k, v in answers.items()}
    by_label = {m.label: m for m in found.matched}
    clean, keeps = by_label["clean"], by_label["keeps"]
    assert raw["clean"] < -0.2 and clean.interval is not None and keeps.interval is not None
    assert by_label["retrain"].difference < -0.02  # regression to the mean, which the excess is free of
    assert clean.interval.low < 0 < clean.interval.high and (clean.p_value or 0) > 0.05
    assert keeps.interval.low > 0.15 and (keeps.p_value or 1) < 0.01
    for stratum in found.strata:
        assert stratum.right["clean"] == pytest.approx(stratum.right["retrain"], abs=0.1)
    truth = np.concatenate([hard, easy])
    assert np.corrcoef([i.difficulty for i in found.items], truth)[0, 1] > 0.75


def test_groups_are_resampled_as_a_whole(tmp_path: Path):
    rng = np.random.default_rng(1)
    retrain = [{"forget": rng.integers(2, size=40), "test": rng.integers(2, size=60)} for _ in range(6)]
    # Of four authors, ten probes each, everything of two is known.
    known = np.repeat([1, 0, 1, 0], 10)
    answers = {"retrain": retrain, "keeps": [{"forget": known, "test": np.array([1, 0] * 30)}]}
    authors = [f"author{i // 10}" for i in range(40)]
    (found,) = difficulties(stored(tmp_path / "a", answers, authors), [tmp_path / "a"])
    (alone,) = difficulties(stored(tmp_path / "b", answers), [tmp_path / "b"])
    assert (found.clusters, alone.clusters) == (4, None)
    wide, narrow = (next(m for m in d.matched if m.label == "keeps").interval for d in (found, alone))
    assert wide is not None and narrow is not None
    assert wide.high - wide.low > 1.5 * (narrow.high - narrow.low)


def test_what_cannot_be_said_has_a_reason(tmp_path: Path):
    some = [{"forget": np.array([1, 0]), "test": np.array([0, 1])}]
    (few,) = difficulties(stored(tmp_path / "a", {"retrain": some * 3}), [tmp_path / "a"])
    assert few.reason == "difficulty takes 5 retrained models, and there are 3; run more seeds"
    same = [{"forget": np.array([1, 1]), "test": np.array([1, 1])}]
    (equal,) = difficulties(stored(tmp_path / "b", {"retrain": same * 5}), [tmp_path / "b"])
    assert "none is harder than another" in equal.reason
    (without,) = difficulties(stored(tmp_path / "c", {"retrain": [{"forget": np.array([1])}]}), [tmp_path / "c"])  # fmt: skip
    assert without.reason == "no stored evidence says who answered probes that no model was trained on right"
    assert not without.items
