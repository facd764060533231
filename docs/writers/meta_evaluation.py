"""Meta-evaluations as a page of tables."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from expunge.studies.meta_evaluation import MetaEvaluation, Quality
from writers.markdown import table

INTRO = """Which numbers can be trusted? For each problem a pool of models was trained on all rows and one without the forget
set, from different seeds. **Faithful**: AUC with which a number tells the pools apart, with DeLong’s interval over models; which
way it points was read from two further models, so that 0.5 is guessing and less is pointing the wrong way. A number may be
unfaithful here because there is nothing to see: models that generalize know most random rows without having seen them.

**Relearning** and **4 bits**: robustness of the number on models that a method has unlearned and that kept most of what is to
be retained: ``1 - |a - b| / (|a| + |b|)`` of the changes a of unlearned and b of retrained models after one epoch on the forget
rows, and of the values before and after rounding the weights to NF4. Both are 1 for a number that never changes, so they say
nothing without the first. Relearning is 0 where only the unlearned models move in that epoch, or both move apart: what was hidden
comes back faster than a retrained model learns it. The last column is the harmonic mean of the three. Definitions after
OpenUnlearning (arXiv:2506.12618) and arXiv:2605.24614.

`expunge meta-evaluate` makes the tables of digits, `expunge meta-evaluate meta-text` that of the language model,
and any study one of its own; attacks that need shadow models are left out. With few models an AUC takes few values:
of three against three, one pair in the wrong order is 0.11.
"""


def page(files: Sequence[Path]) -> str:
    """The markdown of the whole page."""
    found = [MetaEvaluation.read(file) for file in files]
    head = "<!-- Written by docs/generate.py from the files of expunge meta-evaluate. -->\n\n# Meta-evaluation\n\n"
    return head + INTRO + "\n" + "\n\n".join(_problem(one) for one in found) + "\n"


def _problem(found: MetaEvaluation) -> str:
    facts, packages = found.problem, found.environment.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("expunge", "torch") if name in packages)
    counts = facts["counts"]
    text = (
        f"## {facts['name']}\n\n{facts['scope'][:1].upper()}{facts['scope'][1:]}: {counts['forget']} of {counts['train']} "
        f"training rows. {found.models} models in each pool; robustness on models of {', '.join(found.unlearned) or 'no method'}"
    )
    if found.left_out:
        text += f" ({', '.join(found.left_out)} left out: too much of the retained rows was lost)"
    text += f". {versions}.\n\n"
    known = [q for q in found.qualities if q.auc is not None]
    columns = ["number", "kind", "knowing", "ignorant", "faithful", "relearning", "4 bits", "harmonic mean"]
    text += table(columns, [_row(q) for q in known])
    reasons: dict[str, list[str]] = {}
    for q in found.qualities:
        if q.auc is None:
            reasons.setdefault(q.reason, []).append(f"`{q.metric}`")
    if reasons:
        text += "\n\nWithout a value:\n\n" + "\n".join(
            f"- {', '.join(names)}: {why}" for why, names in reasons.items()
        )
    return text


def _row(q: Quality) -> list[str]:
    means = [f"{sum(values) / len(values):.3g}" for values in (q.knowing, q.ignorant)]
    auc = _number(q.auc)
    if q.interval is not None:
        auc += f" ({q.interval.low:.2f} to {q.interval.high:.2f})"
    return [
        f"`{q.metric}`",
        q.kind,
        *means,
        auc,
        *(_number(v) for v in (q.relearning, q.quantization, q.overall)),
    ]


def _number(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"
