"""Results of a run as a page of tables."""

from __future__ import annotations

from pathlib import Path

from expunge.record import Judged, Score, ScoreFile, mean_of
from expunge.report.notation import scale, shown
from expunge.stats.intervals import t_interval
from writers.markdown import table

COLUMNS = (
    ("accuracy", "forget"), ("accuracy", "retain"), ("accuracy", "test"), ("mae", "forget"), ("mae", "retain"), ("mae", "test"),
    ("probability", "forget"), ("probability", "retain"), ("rouge-l-recall", "forget"), ("extraction-strength", "forget"),
    ("truth-ratio", "forget"), ("forget-quality", "forget"), ("model-utility", "retain"), ("privleak", "forget"),
    ("unlearning-accuracy", "concept"), ("concept-probability", "concept"), ("unlearning-accuracy", "earlier"),
    ("in-domain-retain-accuracy", "test"), ("cross-domain-retain-accuracy", "test"), ("frechet-distance", "test"),
    *((f"{attack}-{when}-asr", "concept") for attack in ("unlearndiffatk", "p4d", "ring-a-bell", "concept-inversion")
      for when in ("pre", "post")),
    ("undesired-rate", "samples"), ("coverage", "test"), ("coverage", "concept"),
    ("corrected-accuracy", "affected"), ("manipulation-success", "attacked"), ("mia-loss-logistic", "forget"),
    ("average-gap", "run"), ("passes-ratio", "run"),
)  # fmt: skip
"""What a row shows, where the family has it. Passes over the data stand for cost: seconds belong to one machine."""

MARKS = {"no larger difference": "≈", "different": "≠", "undecided": "?"}

INTRO = """Each cell: mean over seeds ± half of the 95 % interval (Student's t; none where all seeds agree), in parentheses the
gap to the mean of the retrained models, and the verdict of the equivalence test with its default margin: **≈** no difference
larger than the margin was found, **≠** a difference larger than the margin, **?** undecided. No sign: no verdict is given on
that column. The rows `target` (before forgetting) and `retrain` are the two ends of the scale.
"""


def page(path: Path) -> tuple[str, str]:
    """Name of the study, and the markdown of the whole page."""
    scores = ScoreFile.read(path)
    packages = scores.environment.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("expunge", "torch") if name in packages)
    machine = f"{scores.environment.get('system', '')}, {scores.environment.get('threads', '?')} thread(s)"
    seeds = sorted({judged.seed for judged in scores.judged})
    head = (
        f"<!-- Written by docs/generate.py from the scores.json of a run. -->\n\n# Results of the study “{scores.name}”\n\n"
        f"{INTRO}\nSeeds {', '.join(map(str, seeds))}; {versions}; {machine}.\n\n"
    )
    return scores.name, head + "\n\n".join(_problem(problem, scores) for problem in scores.problems) + "\n"


def _problem(problem: dict, scores: ScoreFile) -> str:
    name, counts = problem["name"], problem["counts"]
    mine = [judged for judged in scores.judged if judged.problem == name]
    columns = [key for key in COLUMNS if any(_values(judged, *key) for judged in mine)]
    rows = []
    for label in dict.fromkeys(judged.label for judged in mine):
        models = [judged for judged in mine if judged.label == label]
        skipped = next((judged for judged in models if judged.status != "ok"), None)
        if skipped is not None:
            rows.append(
                [label, f"{skipped.status.replace('_', ' ')}: {skipped.reason}", *[""] * (len(columns) - 1)]
            )
            continue
        rows.append([label, *[_cell(models, key, scores, name) for key in columns]])
    table_of = table(["method", *[_title(mine, *key) for key in columns]], rows)
    what = f"{problem['scope']}: {counts['forget']} of {counts['train']} training rows"
    return f"## {name}\n\n{what[0].upper()}{what[1:]}.\n\n{table_of}"


def _values(judged: Judged, metric: str, split: str) -> list[Score]:
    score = judged.score(metric, split)
    return [] if score is None or score.value is None else [score]


def _title(models: list[Judged], metric: str, split: str) -> str:
    unit = next(score.unit for judged in models for score in _values(judged, metric, split))
    where = "" if split == "run" else f" on {split}"
    return f"{metric}{where} ({scale(unit).symbol})"


def _cell(models: list[Judged], key: tuple[str, str], scores: ScoreFile, problem: str) -> str:
    asked = [score for judged in models if (score := judged.score(*key)) is not None]
    found = [score for judged in models for score in _values(judged, *key)]
    if not found:
        return "undefined" if asked else "–"
    values = [score.value for score in found if score.value is not None]
    unit = found[0].unit
    text = shown(mean_of(values), unit)
    decimals = len(
        text.partition(".")[2]
    )  # the digits that the mean shows are those its uncertainty is given in

    def alike(value: float, sign: str = "") -> str:
        rounded = round(value * scale(unit).factor, decimals) + 0.0  # never minus zero
        return f"{rounded:{sign}.{decimals}f}".replace("-", "−")

    interval = t_interval(values)
    # Counts such as passes over the data do not vary; their interval would only show rounding.
    if interval is not None and max(values) - min(values) > 1e-9 * abs(mean_of(values)):
        text += f" ± {alike((interval.high - interval.low) / 2)}"
    gaps = [score.reference.gap for score in found if score.reference is not None]
    if gaps and models[0].method != "retrain":
        text += f" ({alike(mean_of(gaps), '+')})"
    label = models[0].label
    verdicts = {(v.problem, v.label, v.metric, v.split): v for v in scores.verdicts}
    verdict = verdicts.get((problem, label, *key))
    return text if verdict is None else f"{text} {MARKS[verdict.judgement]}"
