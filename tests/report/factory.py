"""A score file of made-up numbers with everything a report has to cope with. The numbers mean nothing."""

from __future__ import annotations

import random

from expunge.record import Interval, Judged, Reference, Score, ScoreFile, Verdict, mean_of
from expunge.report import ReportInput
from expunge.report.content import Losses

SEEDS = (0, 1, 2)
ATTACKS = ("mia-loss-logistic", "mia-entropy-logistic")
METHODS = ("gradient-ascent", "scrub (alpha=0.1, msteps=2)", "ssd", "salun (rho=0.5)", "bad-teacher")
COUNTS = {"train": 1197, "forget": 123, "retain": 1074, "holdout": 200, "test": 400}
# label -> forget accuracy, test accuracy, attack AUC, seconds
SHAPE = {
    "target": (0.995, 0.972, 0.71, 6.0),
    "retrain": (0.0, 0.874, 0.52, 5.4),
    "gradient-ascent": (0.11, 0.702, 0.61, 0.31),
    "scrub (alpha=0.1, msteps=2)": (0.03, 0.868, 0.54, 1.9),
    "ssd": (0.21, 0.861, 0.58, 0.22),
    "salun (rho=0.5)": (0.015, 0.872, 0.53, 2.7),
    "bad-teacher": (0.09, 0.845, 0.44, 2.1),
}


def _score(metric: str, split: str, value: float, unit: str, direction: str, **more: object) -> Score:
    return Score(metric=metric, split=split, value=value, unit=unit, direction=direction, **more)  # pyright: ignore


def _measured(label: str, seed: int, noise: random.Random) -> list[Score]:
    forget, test, auc, seconds = SHAPE[label]

    def share(center: float) -> float:
        return min(1.0, max(0.0, center + noise.gauss(0, 0.012)))

    classes = {str(c): share(test if c != 3 else forget) for c in range(10)}
    accuracies = {
        "forget": share(forget),
        "retain": share(test + 0.02),
        "test": share(test),
        "holdout": share(test),
    }
    scores = [
        _score(
            "accuracy",
            split,
            value,
            "share",
            "match" if split == "forget" else "higher",
            n=COUNTS[split],
            groups=classes if split == "test" else {},
            interval=Interval(low=max(0, value - 0.03), high=min(1, value + 0.03), method="wilson"),
        )
        for split, value in accuracies.items()
    ]
    scores += [
        _score(metric, "forget", share(auc - 0.01 * i), "AUC", "match", n=123, attack=True)
        for i, metric in enumerate(ATTACKS)
    ]
    scores.append(
        Score(
            metric="tpr-at-1-percent-fpr",
            split="forget",
            unit="share",
            direction="match",
            attack=True,
            status="undefined",
            reason="only 20 non-members of the same class; 100 are needed",
        )
    )
    layers = {f"layer{k}": share(0.96 - 0.02 * k) for k in (1, 2, 10)}
    scores.append(
        _score("cka-to-retrained", "test", mean_of(layers.values()), "CKA", "higher", n=400, groups=layers)
    )
    scores.append(
        _score("mean-loss", "forget", abs(2.5 - 2.4 * forget + noise.gauss(0, 0.1)), "nats", "match", n=123)
    )
    if label != "target":
        ratio = seconds / SHAPE["retrain"][3]
        scores += [
            _score("seconds", "run", seconds * (1 + 0.1 * noise.random()), "seconds", "lower"),
            _score("seconds-ratio", "run", ratio * (1 + 0.1 * noise.random()), "times retraining", "lower"),
            _score("peak-bytes", "run", 2**20 * (3.5 + noise.random()), "bytes", "lower"),
            _score(
                "passes",
                "run",
                0.0 if label == "ssd" else 20 * ratio,
                "passes over the training data",
                "lower",
            ),
            _score("passes-ratio", "run", 0.0 if label == "ssd" else ratio, "times retraining", "lower"),
            _score("changed-share", "run", 0.031 if label == "ssd" else 1.0, "share of parameters", "lower"),
        ]
    return scores


def _with_references(judged: list[Judged]) -> list[Judged]:
    """Attach the other retrained models' values, as a study does."""
    retrained = [m for m in judged if m.method == "retrain"]
    finished = []
    for model in judged:
        scores = []
        for score in model.scores:
            others = [m.score(score.metric, score.split) for m in retrained if m is not model]
            values = [o.value for o in others if o is not None and o.value is not None]
            if score.value is not None and values and score.split != "run":
                mean = mean_of(values)
                score = score.model_copy(
                    update={"reference": Reference(mean=mean, values=values, gap=score.value - mean)}
                )
            scores.append(score)
        finished.append(model.model_copy(update={"scores": scores}))
    return finished


def _classifier() -> tuple[list[Judged], list[Verdict]]:
    noise = random.Random(0)
    judged = []
    for label in ("target", "retrain", *METHODS):
        for seed in SEEDS:
            facts = {
                "problem": "digits",
                "problem_id": "b5f0c2",
                "method": label.split(" ")[0],
                "label": label,
                "seed": seed,
                "passed": {"alpha": 0.1, "msteps": 2} if "(" in label else {},
                "effective": {"lr": 0.01, "epochs": 3},
            }
            if label == "bad-teacher" and seed == 2:
                reason = (
                    "bad-teacher produced NaN or infinite weights in 'fc1.weight'; lower its learning rate"
                )
                judged.append(Judged(**facts, status="failed", reason=reason))
            else:
                notes = ["no weight passed the selection threshold alpha = 10"] if label == "ssd" else []
                judged.append(
                    Judged(
                        **facts,
                        model_id=f"{label[:3]}{seed}",
                        notes=notes,
                        scores=_measured(label, seed, noise),
                    )
                )
    judged += [
        Judged(
            problem="digits",
            problem_id="b5f0c2",
            method="blindspot",
            label="blindspot",
            seed=seed,
            status="not_applicable",
            reason="it fits regressor, not classifier",
        )
        for seed in SEEDS
    ]
    return _with_references(judged), _verdicts()


def _verdicts() -> list[Verdict]:
    def verdict(label: str, split: str, interval: tuple[float, float] | None, judgement: str) -> Verdict:
        words = {
            "no larger difference": "no difference larger than 5 percentage points from retraining was found",
            "different": "different from retraining by more than 5 percentage points",
            "undecided": "undecided whether the difference from retraining exceeds 5 percentage points",
        }
        facts: dict[str, object] = {
            "problem": "digits",
            "label": label,
            "metric": "accuracy",
            "split": split,
            "judgement": judgement,
        }
        facts |= {"margin": 0.05, "n": 3, "n_reference": 3, "sentence": words[judgement]}
        if interval is not None:
            low, high = interval
            facts["interval"] = {"low": low, "high": high, "level": 0.9, "method": "welch"}
            facts["difference"] = (low + high) / 2
            facts["more_seeds"] = 4 if judgement == "undecided" else None
        return Verdict.model_validate(facts)

    return [
        verdict("target", "forget", (0.97, 1.0), "different"),
        verdict("ssd", "forget", (0.18, 0.24), "different"),
        verdict("ssd", "test", (-0.034, 0.008), "no larger difference"),
        verdict("scrub (alpha=0.1, msteps=2)", "forget", (-0.01, 0.07), "undecided"),
        verdict("scrub (alpha=0.1, msteps=2)", "test", (-0.02, 0.008), "no larger difference"),
        verdict("salun (rho=0.5)", "forget", (-0.004, 0.034), "no larger difference"),
        verdict("bad-teacher", "forget", None, "undecided"),
    ]


def _regressor() -> list[Judged]:
    """One seed, nothing retrained."""

    def model(method: str, forget: float, test: float) -> Judged:
        errors = (("forget", forget, "match"), ("test", test, "lower"))
        scores = [_score("mae", split, value, "mmHg", direction, n=60) for split, value, direction in errors]
        return Judged(
            problem="pressure", problem_id="77aa01", method=method, label=method, seed=7, scores=scores
        )

    return [model("target", 1234.5, 11.25), model("fine-tune", 1310.0, 0.0123)]


def scores() -> ScoreFile:
    """Two problems: one with everything, one with a single seed and no retrained model."""
    judged, verdicts = _classifier()
    cards = [
        {
            "name": "digits",
            "scope": "class = 3",
            "family": "classifier",
            "fingerprint": "b5f0c2",
            "counts": COUNTS,
            "forget_digest": "0d11aa",
            "train_digest": "93fe20",
            "source": {"benchmark": "digits"},
        },
        {
            "name": "pressure",
            "scope": "a tenth at random",
            "family": "regressor",
            "fingerprint": "77aa01",
            "counts": {"train": 600, "forget": 60, "retain": 540, "test": 60},
            "forget_digest": "5511",
            "train_digest": "aa09",
        },
    ]
    environment = {
        "python": "3.11.2",
        "packages": {"expunge": "0.1.0", "torch": "2.6"},
        "cuda": None,
        "created": "2026-01-02T03:04:05+00:00",
    }
    return ScoreFile(
        name="class-three",
        problems=cards,
        judged=judged + _regressor(),
        verdicts=verdicts,
        environment=environment,
    )


def report_input(file: ScoreFile | None = None) -> ReportInput:
    """The file with made-up losses."""
    noise = random.Random(1)

    def losses(center: float, n: int) -> list[float]:
        return [noise.lognormvariate(center, 1.4) for _ in range(n)]

    centers = {
        "target": (-5.0, -5.0, -3.0),
        "retrained": (1.0, -4.8, -2.8),
        "ssd": (-0.5, -4.2, -2.6),
        "salun (rho=0.5)": (0.9, -4.6, -2.7),
    }
    by_label: Losses = {
        label: dict(
            zip(
                ("forget", "retain", "holdout"), (losses(a, 123), losses(b, 300), losses(c, 200)), strict=True
            )
        )
        for label, (a, b, c) in centers.items()
    }
    spec = "name: class-three\nproblems:\n- benchmark: digits\n  forget: class=3\nseeds: 0-2\n"
    return ReportInput(
        file or scores(), {"digits": by_label}, "expunge run class-three.yaml", spec, spec + "threads: 1\n"
    )
