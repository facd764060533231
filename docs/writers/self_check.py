"""What the self-check found, as a page."""

from __future__ import annotations

from expunge.self_check import FamilyCheck, Rate, SelfCheck
from writers.markdown import table

INTRO = """How often the audit is wrong, on models of which it is known whether they still know. Each was built, opened by its
own key (or left out as invalid), and judged under a name that says nothing, against retrained models that are not among
those judged.
`expunge audit --self-check` makes this page's numbers again; [the guide](guide/audit.md#how-often-the-audit-is-wrong) says what
the words mean.

*Judged wrongly*: cleared of those with planted knowledge, found of the clean ones; 95 % Clopper–Pearson interval. Obvious
constructions are marked with an asterisk: none of them may be cleared. *Inconclusive* is neither: a test that the claim needs
was undecided or missing.

A model that none of these tests gives away may still know: the list says what this battery finds, not what it would find of
constructions that nobody has made.
"""


_WORLDS = {
    "classifier": "All threes are to be forgotten; a retrained network tells them apart in its features all the same, which "
    "leaves probes and new heads little to find. ",
    "causal_lm": "64 persons with three facts each, 24 persons to be forgotten; a fact is one word of 32. ",
}


def page(checks: list[SelfCheck]) -> str:
    """The markdown of the page; the worlds of all `checks` one after another."""
    environment = checks[0].environment
    packages = environment.get("packages", {})
    versions = ", ".join(f"{name} {packages[name]}" for name in ("expunge", "torch") if name in packages)
    written = "<!-- Written by docs/generate.py from the JSON of a self-check. -->"
    head = f"{written}\n\n# Self-check of the audit\n\n{INTRO}\n{versions}.\n\n"
    return head + "\n\n".join(_world(one) for check in checks for one in check.families) + "\n"


def _world(one: FamilyCheck) -> str:
    title = {"classifier": "Classifier: handwritten digits", "causal_lm": "Language model: made-up persons"}
    rows = [_row(rate) for rate in [*one.rates, one.false_alarms]]
    columns = [
        "",
        "construction",
        "models",
        "found",
        "inconclusive",
        "cleared",
        "invalid",
        "judged wrongly",
        "found by",
    ]
    none = "none of these constructions"
    invalid = dict.fromkeys(f"{t.construction}: {t.invalid}" for t in one.trials if t.invalid)
    left_out = "; ".join(f"{name} ({why})" for name, why in one.left_out.items())
    lines = [
        f"## {title.get(one.family, one.family)}",
        f"{one.calibration} retrained models to compare with. {_WORLDS.get(one.family, '')}Attacks: {', '.join(one.attacks)}.",
        *([f"Of the standard battery left out: {left_out}."] if left_out else []),
        table(columns, rows),
        f"**Not detected**: {_named(one, one.undetected) or none}.",
    ]
    if one.false_alarms.left_open:
        open_tests = ", ".join(
            f"{name if ' ' in name else f'`{name}`'} {n}" for name, n in one.false_alarms.left_open.items()
        )
        lines.append(f"**What left clean models open**, by number of models: {open_tests}.")
    if one.partly:
        lines.append(f"**Detected in part**: {_named(one, one.partly)}.")
    if invalid:
        lines.append("Left out:\n\n" + "\n".join(f"- {reason}" for reason in invalid))
    return "\n\n".join(lines)


def _named(one: FamilyCheck, names: list[str]) -> str:
    titles = {rate.construction: rate.title for rate in one.rates}
    return ", ".join(f"{name} ({titles[name]})" for name in names)


def _row(rate: Rate) -> list[str]:
    wrong = rate.cleared if rate.present else rate.found
    share = (
        "undefined: no valid model" if rate.wrong is None
        else f"{100 * wrong / rate.n:.0f} % ({100 * rate.wrong.low:.0f} to {100 * rate.wrong.high:.0f})"
    )  # fmt: skip
    found_by = ", ".join(f"{name if ' ' in name else f'`{name}`'} {n}" for name, n in rate.found_by.items())
    counts = [str(n) for n in (rate.n, rate.found, rate.inconclusive, rate.cleared, rate.invalid)]
    star = "\\*" if rate.obvious else ""
    return [f"{rate.construction}{star}", rate.title, *counts, share, found_by]
