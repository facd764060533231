"""What a report says in words: claims, what was not tested, and the terms it uses."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from expunge.families import FAMILIES
from expunge.metrics import METRICS
from expunge.record import Verdict

JUDGEMENTS = {
    "no larger difference": "No difference larger than the margin",
    "different": "Different from retraining",
    "undecided": "Undecided",
}
"""Heading of each judgement. A test can exclude large differences; it cannot show that something is gone."""

FINDINGS = {
    "none": "not more than retrained",
    "residue": "more than retrained",
    "away": "different, away from the target",
    "undecided": "undecided",
    "missing": "no value",
    "kept": "kept",
    "damaged": "damaged",
}
"""What each finding of a claim's tests is called."""

DIRECTIONS = {
    "higher": ("↑", "higher is better"),
    "lower": ("↓", "lower is better"),
    "match": ("≈", "match retraining"),
}

SPLITS = {
    "forget": "forget set",
    "concept": "prompts for the concept",
    "earlier": "prompts for earlier requests",
    "retain": "retain set",
    "test": "test",
    "ood": "shifted test",
    "authors": "real authors",
    "world": "world facts",
    "verbatim": "passages to forget",
    "knowledge": "questions on what is to be forgotten",
    "retain-knowledge": "questions on what is kept",
    "holdout": "holdout",
    "run": "whole run",
}
"""How the report calls the data sets, in the order of columns and panels."""


@dataclass(frozen=True)
class Property:
    """Something a reviewer may want to know, and the names of the metrics that would answer it."""

    title: str
    why: str
    answered_by: tuple[str, ...]
    """Beginnings of metric names; empty where no measurement of this library answers it."""


PROPERTIES = (
    Property(
        "Relearning",
        "A model that only hides what it knew may regain it within a few training steps; no such steps "
        "were taken here.",
        ("relearn",),
    ),
    Property(
        "Quantization and pruning",
        "Rounding the weights can bring suppressed behavior back; models were tested only at the "
        "precision they were made in.",
        ("quantiz", "prun"),
    ),
    Property(
        "Extraction and inversion",
        "No attempt was made to reconstruct the forgotten examples from the weights or the outputs.",
        ("extract", "inver", "reconstruct"),
    ),
    Property(
        "Representation probes",
        "Hidden layers may still separate the forgotten examples although the outputs do not; no probe "
        "was trained on them.",
        ("probe", "linear-probe", "logit-lens"),
    ),
    Property(
        "Per-example membership attacks",
        "An attacker with shadow models calibrated on each example is stronger than one attacker for all "
        "examples.",
        ("lira", "u-lira", "rmia"),
    ),
    Property(
        "Distributions over models",
        "Single models were compared with retrained ones; whether unlearned models are distributed as retrained "
        "ones takes some dozens of each.",
        ("klom", "forgetting-score"),
    ),
    Property(
        "Perturbed and adversarial inputs",
        "Inputs were the stored examples; transformed, paraphrased or optimized inputs may behave otherwise.",
        ("adversarial", "perturb", "paraphrase", "jailbreak"),
    ),
    Property(
        "Near-duplicates in the retain set",
        "Examples that resemble the forgotten ones and stay in the training data keep teaching the same.",
        ("duplicate",),
    ),
    Property(
        "Later requests",
        "Further training or further forgetting can undo or disturb this one; only this single request "
        "was measured.",
        ("sequence", "resurrection"),
    ),
    Property(
        "Copies outside the model",
        "Backups, caches, derived models and the data store itself are not covered by any measurement of "
        "a model.",
        (),
    ),
)


@dataclass(frozen=True)
class Term:
    """A term and what this report means by it."""

    term: str
    meaning: str


GLOSSARY = (
    Term("Target model", "the model before forgetting, trained on all training data."),
    Term("Forget set", "the training examples whose influence is to be removed."),
    Term("Retain set", "the other training examples."),
    Term("Holdout", "examples of the same kind that no model was ever trained on."),
    Term("Unlearned model", "what a method makes of the target model."),
    Term(
        "Retrained model",
        "a model trained from scratch on the retain set only: what forgetting should arrive at. Several "
        "are trained with "
        "different seeds, because two of them already differ from one another.",
    ),
    Term(
        "Gap",
        "a model's value minus the mean of the retrained models' values; 0 is the aim where no direction "
        "is better.",
    ),
    Term(
        "Interval",
        "95 % confidence interval: of the mean over seeds (Student's t) where there are several, else "
        "over examples.",
    ),
    Term(
        "Margin",
        "the largest difference from retraining that counts as none. It is declared, not estimated: state "
        "your own where you can.",
    ),
    Term(
        "Equivalence test",
        "two one-sided tests at level 0.05: a difference larger than the margin is excluded when the 90 % "
        "interval of the "
        "difference lies inside the margin on both sides.",
    ),
    Term(
        "Membership inference",
        "an attacker guesses from the outputs whether an example was trained on. An AUC of 0.5 is "
        "guessing; what matters is "
        "the value that retrained models reach.",
    ),
    Term(
        "Claim",
        "what may be said of a method: exact (its parameters were made without the records), removal (within the attackers' "
        "budgets nothing comes back beyond what retrained models give), suppression (the content is not produced, and may still "
        "be in the parameters). Whoever made the model makes the claim; tests can lower it and never raise it.",
    ),
    Term(
        "Excess",
        "what an attack finds in a model beyond what it finds in retrained ones. An attacker with data of their own can teach "
        "any model something; only the excess was left behind.",
    ),
    Term(
        "Undefined",
        "there is no such number here, for the reason given; it is neither zero nor left out of sight.",
    ),
)


def listed(items: Sequence[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return items[0] if len(items) == 1 else f"{', '.join(items[:-1])} and {items[-1]}"


def counted(n: int, noun: str) -> str:
    """``1 model``, ``2 models``, ``no models``."""
    return f"{n or 'no'} {noun}{'' if n == 1 else 's'}"


def split_name(split: str) -> str:
    """How the report calls a data set."""
    return SPLITS.get(split, split)


def split_rank(split: str) -> tuple[int, str]:
    """Sort key of data sets: in the order of `SPLITS`, then others by name."""
    known = list(SPLITS)
    return (known.index(split) if split in SPLITS else len(known), split)


def claim(methods: int, models: int, references: int, verdicts: Sequence[Verdict]) -> str:
    """What was compared with what, and how the judgements came out."""
    against = (
        f"compared with {counted(references, 'model')} retrained from scratch without the forget set"
        if references
        else "without any retrained model to compare with, so that every statement rests on proxies"
    )
    what = f"{counted(methods, 'method').capitalize()} ({counted(models, 'model')})"
    sentence = f"{what} {'was' if methods == 1 else 'were'} judged, {against}."
    if not verdicts:
        return f"{sentence} No equivalence test was made."
    tally = {j: sum(v.judgement == j for v in verdicts) for j in JUDGEMENTS}
    parts = [
        f"{tally['no larger difference']} found no difference larger than the stated margin",
        f"{tally['different']} found a difference",
        f"{tally['undecided']} {'was' if tally['undecided'] == 1 else 'were'} undecided",
    ]
    return f"{sentence} Of {counted(len(verdicts), 'equivalence test')}, {listed(parts)}."


def untested(measured: Collection[str], family: str) -> list[tuple[str, str]]:
    """Everything known minus what ran, as (title, what it means)."""
    missing = [
        (p.title, p.why)
        for p in PROPERTIES
        if not any(name.startswith(p.answered_by) for name in measured if p.answered_by)
    ]
    fitting = [n for n, m in METRICS.items() if family in FAMILIES and m.fits(FAMILIES[family])]
    left_out = [name for name in fitting if name not in measured]
    if left_out:
        missing.append(
            (
                "Metrics left out",
                f"available for this kind of model, but not part of this run: {listed(left_out)}.",
            )
        )
    return missing
