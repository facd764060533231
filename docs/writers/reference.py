"""The reference: methods, metrics, attacks, benchmarks, families, specifications, command line."""

from __future__ import annotations

import os
from collections.abc import Callable

from expunge.attacks import ATTACKS
from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.checkpoints import FactoryModel
from expunge.data.selection import Selection
from expunge.data.specification import ProblemSpec
from expunge.families import FAMILIES, Architecture
from expunge.methods.base import METHODS, Method
from expunge.metrics.base import METRICS, Metric
from expunge.problem import Training
from expunge.studies.spec import AttackSpec, MethodSpec, StudySpec
from writers.markdown import code, parameters, table, text_of

MADE = "<!-- Written by docs/generate.py. -->\n\n"


def _methods() -> list[tuple[str, type[Method]]]:
    """The package's own methods: what somebody else registered in this process is not documented here."""
    return [(name, cls) for name, cls in METHODS.items() if cls.__module__.startswith("expunge.")]


def _metrics() -> list[tuple[str, Metric]]:
    return [(name, one) for name, one in METRICS.items() if one.function.__module__.startswith("expunge.")]


def _fits(cls: type[Method], family: str) -> bool:
    return cls.fits(FAMILIES[family])


def _needs(cls: type[Method]) -> str:
    return ", ".join(sorted(cls.needs)) or "nothing"


def methods_by_family() -> str:
    """Every method with the families it runs on; the block of the README."""
    rows = [
        [
            code(name),
            *["✓" if _fits(cls, family) else "" for family in FAMILIES],
            cls.kind,
            _needs(cls),
            cls.paper,
        ]
        for name, cls in _methods()
    ]
    return table(["method", *FAMILIES, "kind", "needs", "paper"], rows)


def paper_index() -> str:
    """For each method its publication, its parameters, and where each default comes from."""
    parts = []
    for name, cls in _methods():
        rows = [[code(p["name"]), code(p["default"]), p["source"]] for p in cls.describe() if p["source"]]
        body = (
            table(["parameter", "default", "where the default comes from"], rows)
            if rows
            else "No parameters of its own."
        )
        parts.append(f"## {name}\n\n{cls.paper}\n\n{body}")
    return "\n\n".join(parts)


def methods() -> str:
    """One section per method."""
    parts = []
    for name, cls in _methods():
        families = ", ".join(f for f in FAMILIES if _fits(cls, f))
        facts = f"{cls.paper}. Kind: {cls.kind}. Needs: {_needs(cls)}. Families: {families}."
        own = parameters(cls.describe()) if cls.model_fields else "It has no parameters."
        parts.append(f"## {name}\n\n{facts}\n\n{text_of(cls)}\n\n{own}")
    return f"{MADE}# Methods\n\nThe same as `expunge show NAME`.\n\n" + "\n\n".join(parts) + "\n"


def _metric(name: str, one: Metric) -> str:
    better = ", ".join(f"{split}: {one.better(split)}" for split in one.splits)
    reads = "; ".join(
        f"{role} model, {'the split' if where == '*' else where}: {', '.join(q)}"
        for (role, where), q in one.reads.items()
    )
    rows = [
        ["unit", one.unit],
        ["range", f"{one.low:.3g} to {one.high:.3g}"],
        ["better, by split", better],
        ["families", ", ".join(f for f, cls in FAMILIES.items() if one.fits(cls))],
        ["reads", reads],
        ["source", one.source],
    ]
    if one.attack:
        rows.append(["threat model", one.attack])
    return f"## {name}\n\n{one.title}.\n\n{one.definition}\n\n{table(['', ''], rows)}"


def metrics() -> str:
    """One section per metric."""
    intro = "`match` means: as near as possible to the retrained model's value, whichever side it is on."
    return f"{MADE}# Metrics\n\n{intro}\n\n" + "\n\n".join(_metric(n, m) for n, m in _metrics()) + "\n"


def attacks() -> str:
    """One section per attack, then the metrics that are an attacker's success."""
    parts = []
    for name, cls in ATTACKS.items():
        if not cls.__module__.startswith("expunge."):
            continue
        facts = table(
            ["", ""],
            [
                ["paper", cls.paper],
                ["threat model", cls.threat_model],
                ["needs", ", ".join(sorted(cls.needs)) or "nothing"],
                ["families", ", ".join(sorted(cls.families or FAMILIES))],
                ["trains models", "yes" if cls.trains else "no"],
            ],
        )
        yields = table(
            ["score", "split", "unit", "definition"],
            [[code(m.name), m.split, m.unit, m.definition] for m in cls.measures],
        )
        own = parameters(cls.describe()) if cls.model_fields else "It has no parameters."
        parts.append(f"## {name}\n\n{text_of(cls)}\n\n{facts}\n\n{yields}\n\n{own}")
    rows = [[f"[{name}](metrics.md#{name})", m.title, m.attack] for name, m in _metrics() if m.attack]
    alone = "Computed of every model without being asked for."
    parts.append(
        f"## From evidence alone\n\n{alone}\n\n{table(['name', 'what it measures', 'threat model'], rows)}"
    )
    intro = (
        "Run by `expunge audit --attacks` and by studies with `attacks:`, on every model, controls included."
    )
    return f"{MADE}# Attacks\n\n{intro}\n\n" + "\n\n".join(parts) + "\n"


def benchmarks() -> str:
    """One section per benchmark."""
    parts = []
    for name, cls in BENCHMARKS.items():
        if not cls.__module__.startswith("expunge."):
            continue
        rows = [
            ["family", cls.family],
            ["data", cls.source],
            ["license", cls.license],
            ["version", cls.version],
        ]
        parts.append(
            f"## {name}\n\n{text_of(cls)}\n\n{table(['', ''], rows)}\n\nOptions:\n\n{parameters(cls.describe(), source=False)}"
        )
    return f"{MADE}# Benchmarks\n\n" + "\n\n".join(parts) + "\n"


def families() -> str:
    """One section per family."""
    parts = []
    for name, family in FAMILIES.items():
        if not family.__module__.startswith("expunge."):
            continue
        quantities = table(["quantity", "definition"], [[code(q), d] for q, d in family.quantities.items()])
        relabelings = table(
            ["relabeling", "definition"], [[code(r), d] for r, d in family.relabelings.items()]
        )
        parts.append(
            f"## {name}\n\n{text_of(family)}\n\nLikelihood: {family.likelihood}.\n\n{quantities}\n\n{relabelings}"
        )
    return f"{MADE}# Families\n\n" + "\n\n".join(parts) + "\n"


def specifications() -> str:
    """The keys of a study file and of what is inside it."""
    parts = [
        ("A study", StudySpec),
        ("A method of a study", MethodSpec),
        ("An attack of a study", AttackSpec),
        ("A problem", ProblemSpec),
        ("forget", Selection),
        ("recipe", Training),
        ("model, from your own code", FactoryModel),
        ("model, an architecture to train", Architecture),
    ]
    sections = [
        f"## {title}\n\n{text_of(cls)}\n\n{parameters(cls.describe(), source=False)}" for title, cls in parts
    ]
    return f"{MADE}# Keys of study and problem files\n\n" + "\n\n".join(sections) + "\n"


def command_line() -> str:
    """What `expunge COMMAND --help` prints, command by command."""
    from typer.main import get_command

    from expunge.cli.main import app

    paths: list[list[str]] = []
    for name, command in get_command(app).commands.items():  # type: ignore[attr-defined]
        paths.append([name])
        paths += [[name, inner] for inner in getattr(command, "commands", {})]
    sections = [f"## expunge {' '.join(path)}\n\n```text\n{_help(path)}\n```" for path in paths]
    return f"{MADE}# Command line\n\n```text\n{_help([])}\n```\n\n" + "\n\n".join(sections) + "\n"


def _help(arguments: list[str]) -> str:
    from typer.testing import CliRunner

    from expunge.cli.main import app

    result = _narrow(lambda: CliRunner().invoke(app, [*arguments, "--help"], prog_name="expunge").output)
    return "\n".join(line.rstrip() for line in result.splitlines()).strip("\n")


def _narrow(run: Callable[[], str]) -> str:
    """The same width whatever the terminal, so that the pages do not depend on where they were made."""
    before = {key: os.environ.get(key) for key in ("COLUMNS", "TERMINAL_WIDTH", "NO_COLOR")}
    os.environ.update(COLUMNS="96", TERMINAL_WIDTH="96", NO_COLOR="1")
    try:
        return run()
    finally:
        for key, value in before.items():
            os.environ.pop(key, None)
            if value is not None:
                os.environ[key] = value
