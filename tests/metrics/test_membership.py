from __future__ import annotations

import hashlib
import json
import math

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score, roc_curve
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import LinearSVC

from expunge.metrics import METRICS, Readings
from expunge.metrics.membership import first_half, inquire, svc_efficacy

AUC, EFFICACY, TPR = (
    METRICS[n] for n in ("mia-loss-logistic", "mia-efficacy-loss-logistic", "tpr-at-1-percent-fpr")
)


@pytest.fixture
def losses(evidence, rng):
    """Members have losses around 0.1, all others around 1; the forget rows are half forgotten."""

    def rows(name, values, groups=None):
        return evidence(ids=[f"{name}-{i}" for i in range(len(values))], groups=groups, loss=values)

    return {
        ("model", "forget"): [rows("f", np.r_[rng.exponential(0.1, 30), rng.exponential(1.0, 30)])],
        ("model", "retain"): [rows("r", rng.exponential(0.1, 300))],
        ("model", "holdout"): [rows("h", rng.exponential(1.0, 240))],
    }


def grouped(evidence, rng, holdout_sevens=40, sevens_loss=5.0) -> dict:
    """Class forgetting: all of class 7 is forgotten, a hard class, whose loss is high trained on or not."""
    names = [str(i % 7) for i in range(210)]
    sevens = ["7"] * holdout_sevens
    return {
        ("model", "forget"): [
            evidence(
                ids=[f"f{i}" for i in range(50)], groups=["7"] * 50, loss=sevens_loss + rng.exponential(1, 50)
            )
        ],
        ("model", "retain"): [
            evidence(ids=[f"r{i}" for i in range(210)], groups=names, loss=rng.exponential(0.3, 210))
        ],
        ("model", "holdout"): [
            evidence(
                ids=[f"h{i}" for i in range(210 + holdout_sevens)],
                groups=names + sevens,
                loss=np.r_[rng.exponential(1, 210), sevens_loss + rng.exponential(1, holdout_sevens)],
            )
        ],
    }


def readings(given, split="forget"):
    return Readings(split, {key: found[0] for key, found in given.items()})


def test_the_auc_is_that_of_the_statistic_in_the_learned_direction(losses):
    forget, holdout = losses["model", "forget"][0]["loss"], losses["model", "holdout"][0]
    unseen = holdout["loss"][~first_half(holdout)]
    # Members have lower losses, so the attacker ranks by minus the loss.
    expected = roc_auc_score(np.r_[np.ones(60), np.zeros(120)], -np.r_[forget, unseen])
    for name in ("mia-loss-logistic", "mia-loss-svm"):
        score = METRICS[name]("forget", losses)
        assert score.value == pytest.approx(expected, abs=1e-12)
        assert score.n == 60
        assert score.interval is not None
        assert score.interval.low < expected < score.interval.high


def test_the_direction_is_learned_not_assumed(losses):
    flipped = {
        key: [type(rows)(rows.table.set_column(1, "loss", [-rows["loss"]]))]
        for key, (rows,) in losses.items()
    }
    assert AUC("forget", flipped).value == pytest.approx(AUC("forget", losses).value, abs=1e-12)


def test_raised_losses_are_found_below_one_half(losses, evidence):
    # Losses above those of any non-member (over-forgetting) leak too: the AUC is 0, not 0.5.
    losses["model", "forget"] = [evidence(ids=["x", "y", "z"], loss=[50.0, 60.0, 70.0])]
    score = AUC("forget", losses)
    assert score.value == 0.0
    assert score.interval is None


def test_the_same_distribution_cannot_be_told_apart(losses, evidence, rng):
    losses["model", "forget"] = [evidence(ids=[f"n{i}" for i in range(400)], loss=rng.exponential(1.0, 400))]
    score = AUC("forget", losses)
    assert score.interval is not None
    assert score.interval.low < 0.5 < score.interval.high
    assert score.value == pytest.approx(0.5, abs=0.07)


def test_on_retain_it_is_the_power_on_known_members_that_were_not_shown(losses):
    retain, holdout = losses["model", "retain"][0], losses["model", "holdout"][0]
    members, nonmembers = retain["loss"][~first_half(retain)], holdout["loss"][~first_half(holdout)]
    expected = roc_auc_score(np.r_[np.ones(150), np.zeros(120)], -np.r_[members, nonmembers])
    score = AUC("retain", losses)
    assert (score.value, score.n) == (pytest.approx(expected, abs=1e-12), 150)


def test_the_efficacy_is_that_of_a_pipeline_fitted_on_the_first_halves(losses):
    forget, retain, holdout = (losses["model", s][0] for s in ("forget", "retain", "holdout"))
    shown, shown_holdout = retain["loss"][first_half(retain)], holdout["loss"][first_half(holdout)]
    pipeline = make_pipeline(StandardScaler(), LinearSVC(class_weight="balanced"))
    pipeline.fit(np.r_[shown, shown_holdout][:, None], np.r_[np.ones(150), np.zeros(120)])
    expected = np.mean(pipeline.predict(forget["loss"][:, None]) == 0)
    score = METRICS["mia-efficacy-loss-svm"]("forget", losses)
    assert score.value == pytest.approx(expected, abs=1e-12)
    assert score.value is not None
    assert 0.2 < score.value < 0.8  # half of the forget rows were made like non-members


def test_rows_asked_about_do_not_change_the_attacker(losses, evidence):
    before = inquire(readings(losses), "logistic", "loss").attacker
    retain, holdout = losses["model", "retain"][0], losses["model", "holdout"][0]
    for split, rows in (("retain", retain), ("holdout", holdout)):
        changed = np.where(first_half(rows), rows["loss"], 1000.0)
        losses["model", split] = [evidence(ids=rows.ids, loss=changed)]
    after = inquire(readings(losses), "logistic", "loss").attacker
    assert (after.center, after.scale) == (before.center, before.scale)
    assert after.classifier.coef_ == before.classifier.coef_


@pytest.mark.parametrize("name", ["mia-loss-svm", "mia-efficacy-loss-logistic", "tpr-at-1-percent-fpr"])
def test_the_order_of_the_rows_does_not_matter(losses, rng, name):
    shuffled = {key: [rows.select(rng.permutation(len(rows)))] for key, (rows,) in losses.items()}
    assert METRICS[name]("forget", shuffled).value == METRICS[name]("forget", losses).value


def test_halves_are_halves_within_every_group(evidence):
    groups = ["a"] * 9 + ["b"] * 4 + ["c"] * 7
    half = first_half(evidence(groups=groups, loss=np.zeros(20)))
    assert half.sum() == 10
    for group in "abc":
        inside = half[np.array(groups) == group]
        assert abs(2 * inside.sum() - len(inside)) <= 1


def test_a_hard_class_is_not_mistaken_for_a_forgotten_one(evidence, rng):
    """Among holdout rows of class 7 the forgotten 7s are ordinary; among all, they would look exposed."""
    given = grouped(evidence, rng)
    assert AUC("forget", given).value == pytest.approx(0.5, abs=0.12)
    unmatched: dict = {key: [type(rows)(rows.table.drop_columns("group"))] for key, (rows,) in given.items()}
    exposed = AUC("forget", unmatched).value
    assert exposed is not None
    assert exposed < 0.2


def test_the_forgotten_class_is_not_shown_as_non_member(evidence, rng):
    given = grouped(evidence, rng)
    found = inquire(readings(given), "logistic", "loss")
    # All 40 holdout rows of class 7 remain for the comparison, none was used to fit.
    assert (len(found.matched), set(found.matched.table["group"].to_pylist())) == (40, {"7"})
    without: dict = {**given, ("model", "holdout"): [given["model", "holdout"][0].select(np.arange(210))]}
    assert inquire(readings(without), "logistic", "loss").attacker.center == found.attacker.center


def test_too_few_matched_non_members_give_a_reason_not_a_number(evidence, rng):
    score = AUC("forget", grouped(evidence, rng, holdout_sevens=9))
    assert score.value is None
    assert score.reason == "only 9 held-out non-members of the groups in 'forget'; at least 10 are needed"
    # The efficacy needs no matched non-members.
    assert EFFICACY("forget", grouped(evidence, rng, holdout_sevens=9)).value is not None


def test_tpr_is_the_roc_curves(losses):
    forget, holdout = losses["model", "forget"][0]["loss"], losses["model", "holdout"][0]
    unseen = holdout["loss"][~first_half(holdout)]
    fpr, tpr, _ = roc_curve(
        np.r_[np.ones(60), np.zeros(120)], -np.r_[forget, unseen], drop_intermediate=False
    )
    assert TPR("forget", losses).value == pytest.approx(tpr[fpr <= 0.01].max(), abs=1e-12)


def test_tpr_counts_ties_as_not_found(losses, evidence):
    """A model that gives the same loss to all rows asked about separates nothing."""
    holdout = losses["model", "holdout"][0]
    losses["model", "holdout"] = [
        evidence(ids=holdout.ids, loss=np.where(first_half(holdout), holdout["loss"], 0.5))
    ]
    losses["model", "forget"] = [evidence(ids=["x", "y"], loss=[0.5, 0.5])]
    assert TPR("forget", losses).value == 0.0
    assert AUC("forget", losses).value == 0.5


def test_tpr_needs_100_non_members(losses):
    losses["model", "holdout"] = [losses["model", "holdout"][0].select(np.arange(198))]
    assert TPR("forget", losses).reason == "only 99 held-out non-members; at least 100 are needed"


def test_a_diverged_model_and_a_constant_statistic_give_reasons(losses, evidence):
    holdout, retain = losses["model", "holdout"][0], losses["model", "retain"][0]
    broken: dict = {**losses, ("model", "forget"): [evidence(ids=["x", "y"], loss=[math.nan, 1.0])]}
    assert EFFICACY("forget", broken).reason == "loss is not finite for 1 of 2 values; the model has diverged"
    constant: dict = {
        **losses,
        ("model", "retain"): [evidence(ids=retain.ids, loss=np.ones(len(retain)))],
        ("model", "holdout"): [evidence(ids=holdout.ids, loss=np.ones(len(holdout)))],
    }
    assert "of all retained and holdout rows is the same" in EFFICACY("forget", constant).reason
    few: dict = {**losses, ("model", "retain"): [retain.select(np.arange(18))]}
    assert EFFICACY("forget", few).reason == (
        "only 9 retained rows to fit the attacker on; at least 10 are needed"
    )


def test_loss_and_confidence_rank_alike(from_logits, rng):
    given: dict = {}
    for split, n, fit in (("forget", 50, 1.0), ("retain", 200, 3.0), ("holdout", 200, 1.0)):
        labels = rng.integers(3, size=n)
        logits = rng.normal(size=(n, 3)) + fit * np.eye(3)[labels]
        given["model", split] = [from_logits(logits, labels, [f"{split}{i}" for i in range(n)])]
    values = {s: METRICS[f"mia-{s}-logistic"]("forget", given).value for s in ("loss", "confidence")}
    assert values["loss"] == pytest.approx(values["confidence"], abs=1e-6)


def test_every_pair_of_statistic_and_attacker_is_registered():
    names = {n for n in METRICS if n.startswith("mia-")}
    for statistic in ("loss", "confidence", "entropy", "modified-entropy"):
        for attacker in ("logistic", "svm"):
            assert {f"mia-{statistic}-{attacker}", f"mia-efficacy-{statistic}-{attacker}"} <= names
    assert METRICS["mia-modified-entropy-svm"].title == "Membership AUC (modified entropy, linear SVM)"
    assert "linear SVM attacker by modified entropy" in METRICS["mia-modified-entropy-svm"].definition


@pytest.mark.parametrize(
    "which", ["plain_A_target", "plain_A_retrained_A", "plain_B_target", "plain_B_RL", "bn_B_retrained_B"]
)
def test_svc_reference_values(shared, from_logits, which):
    folder = shared / "golden" / "classifier-tiny"
    stored = np.load(folder / "membership" / "logits_and_scores.npz")
    data = np.load(folder / "inputs" / "digits_split.npz")
    published = json.loads((folder / "membership" / "values.json").read_text())[which]["forget_efficacy"]
    subset = which.split("_")[1]
    numbers = {
        "retain": data[f"retain_{subset}"][:400],
        "test": data["test"],
        "forget": data[f"forget_{subset}"],
    }
    rows = {
        s: from_logits(stored[f"{which}.logits.{s}"].astype(np.float64), data["labels"][numbers[s]])
        for s in numbers
    }
    features = {
        "correctness": lambda e: e["correct"].astype(float),
        "confidence": lambda e: e["confidence"],
        "entropy": lambda e: e["entropy"],
        "prob": lambda e: np.exp(e["logp"]),
    }
    one_row = 1.01 / len(numbers["forget"])
    for name, feature in features.items():
        value = svc_efficacy(*(feature(rows[s]) for s in ("retain", "test", "forget")))
        assert value == pytest.approx(published[name], abs=one_row), name


def test_the_registered_svc_takes_as_many_members_as_there_are_test_rows(evidence, rng):
    ids = [f"r{i}" for i in range(300)]
    given: dict = {
        ("model", "forget"): [evidence(confidence=rng.beta(5, 2, 40))],
        ("model", "retain"): [evidence(ids=ids, confidence=rng.beta(9, 1, 300))],
        ("model", "test"): [evidence(confidence=rng.beta(3, 3, 80))],
    }
    retain, test, forget = (given["model", s][0]["confidence"] for s in ("retain", "test", "forget"))
    chosen = sorted(range(300), key=lambda i: hashlib.sha256(ids[i].encode()).hexdigest())[:80]
    score = METRICS["mia-svc-confidence"]("forget", given)
    assert score.value == pytest.approx(svc_efficacy(retain[chosen], test, forget), abs=1e-12)
    assert score.value is not None
    assert 0.1 < score.value < 0.9


def test_one_row_in_question_is_no_distribution(losses) -> None:
    one = losses | {("model", "forget"): [losses["model", "forget"][0].select(np.arange(1))]}
    two = losses | {("model", "forget"): [losses["model", "forget"][0].select(np.arange(2))]}
    for metric in (AUC, EFFICACY, TPR):
        score = metric("forget", one)
        assert (score.status, score.value) == ("undefined", None)
        assert score.reason == "only 1 row of 'forget' to ask about; at least 2 are needed"
        assert metric("forget", two).status == "ok"


@pytest.mark.parametrize(("split", "n"), [("forget", 1), ("retain", 1), ("test", 1), ("test", 0)])
def test_the_published_attack_needs_two_rows_of_each_kind(evidence, rng, split, n) -> None:
    sizes = {"forget": 5, "retain": 30, "test": 20} | {split: n}
    rows = {
        ("model", name): [evidence(ids=[f"{name}-{i}" for i in range(size)], confidence=rng.random(size))]
        for name, size in sizes.items()
    }
    score = METRICS["mia-svc-confidence"]("forget", rows)
    assert score.status == "undefined" and (n == 0 or f"only 1 row of '{split}'" in score.reason)
