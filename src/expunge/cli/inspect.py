"""`expunge list`, `expunge show`, `expunge env`: what there is."""

from __future__ import annotations

import sys
from typing import Annotated, Any, Literal

import typer

from expunge.cli.output import Json, print_json, print_table
from expunge.errors import BadInput

Kind = Literal["methods", "benchmarks", "metrics", "attacks", "families", "studies"]


def list_(
    kind: Annotated[str, typer.Argument(help="methods, benchmarks, metrics, attacks, families or studies")],
    json: Json = False,
) -> None:
    """List what is there of one kind."""
    catalogues = {
        "methods": methods, "benchmarks": benchmarks, "metrics": metrics, "attacks": attacks, "families": families,
        "studies": studies,
    }  # fmt: skip
    if kind not in catalogues:
        from expunge.errors import did_you_mean

        raise BadInput(f"cannot list '{kind}'{did_you_mean(kind, catalogues)}")
    rows = catalogues[kind]()
    if json:
        print_json(rows)
        return
    columns = list(rows[0]) if rows else []
    print_table(columns, [[_text(row[c]) for c in columns] for row in rows])


def methods() -> list[dict[str, Any]]:
    """Name, families, needs, paper and kind of every method."""
    from expunge.families import FAMILIES
    from expunge.methods.base import METHODS

    fits = {name: sorted(n for n, f in FAMILIES.items() if cls.fits(f)) for name, cls in METHODS.items()}
    return [
        {
            "name": name,
            "families": fits[name],
            "needs": sorted(cls.needs),
            "kind": cls.kind,
            "guarantee": cls.guarantee,
            "paper": cls.paper,
        }
        for name, cls in METHODS.items()
    ]


def metrics() -> list[dict[str, Any]]:
    """Name, title, splits, direction, unit and families of every metric."""
    from expunge.families import FAMILIES
    from expunge.metrics.base import METRICS

    return [
        {
            "name": name, "title": m.title, "splits": list(m.splits), "better": sorted({m.better(s) for s in m.splits}),
            "unit": m.unit, "families": sorted(n for n, f in FAMILIES.items() if m.fits(f)),
        }
        for name, m in METRICS.items()
    ]  # fmt: skip


def attacks() -> list[dict[str, Any]]:
    """Name, needs, threat model and paper of every attack, then the metrics that are an attacker's success."""
    from expunge.attacks import ATTACKS
    from expunge.families import FAMILIES
    from expunge.metrics.base import METRICS

    rows = [
        {
            "name": name, "kind": "attack", "families": sorted(n for n, f in FAMILIES.items() if cls.fits(f)),
            "needs": sorted(cls.needs),
            "threat_model": cls.threat_model, "source": cls.paper,
        }
        for name, cls in ATTACKS.items()
    ]  # fmt: skip
    return rows + [
        {
            "name": name, "kind": "metric", "families": sorted(n for n, f in FAMILIES.items() if m.fits(f)), "needs": [],
            "threat_model": m.attack, "source": m.source,
        }
        for name, m in METRICS.items()
        if m.attack
    ]  # fmt: skip


def benchmarks() -> list[dict[str, Any]]:
    """Facts of every benchmark."""
    from expunge.data.benchmarks.base import BENCHMARKS

    return [
        {"name": name, "title": b.title, "family": b.family, "source": b.source, "license": b.license}
        for name, b in BENCHMARKS.items()
    ]


def families() -> list[dict[str, Any]]:
    """Likelihood, relabelings and quantities of every family."""
    from expunge.families import FAMILIES

    return [
        {
            "name": name,
            "likelihood": f.likelihood,
            "relabelings": sorted(f.relabelings),
            "quantities": sorted(f.quantities),
        }
        for name, f in FAMILIES.items()
    ]


def studies() -> list[dict[str, Any]]:
    """Name and problems of every embedded study."""
    from expunge.studies.spec import read_spec
    from expunge.studies.study import embedded_studies

    return [
        {"name": name, "problems": [p.get("name", p.get("benchmark")) for p in read_spec(path)["problems"]]}
        for name, path in embedded_studies().items()
    ]


def show(
    name: Annotated[str, typer.Argument(help="Name of a method, attack, metric, benchmark or family.")],
    json: Json = False,
) -> None:
    """Show one thing: definition, needs, parameters with their ranges and where each default comes from."""
    facts = _facts(name)
    if json:
        print_json(facts)
        return
    parameters, measures = facts.pop("parameters", []), facts.pop("measures", {})
    for key, value in facts.items():
        sys.stdout.write(f"{key}: {_text(value)}\n" if key != "definition" else f"\n{value}\n\n")
    for measure, meaning in measures.items():
        sys.stdout.write(f"{measure}: {meaning}\n")
    if parameters:
        sys.stdout.write("\n")
        rows = [
            [p["name"], _text(p["default"]), _limits(p["limits"]), p["doc"], p["source"]] for p in parameters
        ]
        print_table(["parameter", "default", "range", "meaning", "default from"], rows)


def _facts(name: str) -> dict[str, Any]:
    import inspect

    from expunge.attacks import ATTACKS
    from expunge.data.benchmarks.base import BENCHMARKS
    from expunge.errors import did_you_mean
    from expunge.families import FAMILIES
    from expunge.methods.base import METHODS
    from expunge.metrics.base import METRICS

    if name in METHODS:
        cls = METHODS[name]
        row = next(r for r in methods() if r["name"] == name)
        return {"what": "method", **row, "definition": inspect.getdoc(cls), "parameters": cls.describe()}
    if name in ATTACKS:
        attack = ATTACKS[name]
        row = next(r for r in attacks() if r["name"] == name)
        return {
            "what": "attack", **row, "measures": {m.name: m.definition for m in attack.measures},
            "definition": inspect.getdoc(attack), "parameters": attack.describe(),
        }  # fmt: skip
    if name in METRICS:
        m = METRICS[name]
        row = next(r for r in metrics() if r["name"] == name)
        return {
            "what": "metric",
            **row,
            "source": m.source,
            "attack": m.attack,
            "definition": inspect.cleandoc(m.definition),
        }
    if name in BENCHMARKS:
        row = next(r for r in benchmarks() if r["name"] == name)
        return {"what": "benchmark", **row, "definition": inspect.getdoc(BENCHMARKS[name])}
    if name in FAMILIES:
        family = FAMILIES[name]
        return {
            "what": "family", "name": name, "likelihood": family.likelihood, "definition": inspect.getdoc(family),
            "relabelings": dict(family.relabelings), "quantities": dict(family.quantities),
        }  # fmt: skip
    known = [*METHODS, *ATTACKS, *METRICS, *BENCHMARKS, *FAMILIES]
    raise BadInput(f"nothing is called '{name}'{did_you_mean(name, known)}")


def env(json: Json = False) -> None:
    """Print versions and devices: what a bug report needs."""
    import torch

    from expunge.record import environment

    facts = environment()
    facts["devices"] = ["cpu", *[torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]]
    if json:
        print_json(facts)
        return
    for key, value in facts.items():
        sys.stdout.write(f"{key}: {_text(value)}\n")


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)


def _limits(limits: dict[str, Any]) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤", "min_length": "length ≥", "max_length": "length ≤"}
    return ", ".join(f"{signs[k]} {v}" for k, v in limits.items())
