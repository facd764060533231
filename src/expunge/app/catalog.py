"""What a study can be put together from, with the schema of every parameter."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any

from pydantic import Field

from expunge.attacks import ATTACKS
from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.specification import ProblemSpec
from expunge.families import FAMILIES
from expunge.methods.base import METHODS
from expunge.parameters import Parameters
from expunge.record import Record
from expunge.studies.spec import StudySpec, read_spec
from expunge.studies.study import embedded_studies


class Choice(Record):
    """A method, attack or benchmark that a study can name."""

    name: str
    summary: str = Field(description="first sentence of its definition")
    families: list[str]
    source: str
    note: str = Field(description="guarantee of a method, threat model of an attack, license of a benchmark")
    form: dict[str, Any] = Field(description="JSON Schema of its parameters")


class Catalog(Record):
    """Everything a study can name."""

    methods: list[Choice]
    attacks: list[Choice]
    benchmarks: list[Choice]
    problem: dict[str, Any] = Field(description="JSON Schema of a problem of one's own")
    study: dict[str, Any] = Field(description="JSON Schema of a study")
    embedded: dict[str, dict[str, Any]] = Field(description="studies that come with the package, as data")


def catalog() -> Catalog:
    """The choices of this installation."""
    families = sorted(FAMILIES.items())
    return Catalog(
        methods=[
            _choice(name, m, [n for n, f in families if m.fits(f)], m.paper, m.guarantee)
            for name, m in METHODS.items()
        ],
        attacks=[
            _choice(name, a, [n for n, f in families if a.fits(f)], a.paper, a.threat_model)
            for name, a in ATTACKS.items()
        ],
        benchmarks=[_choice(name, b, [b.family], b.source, b.license) for name, b in BENCHMARKS.items()],
        problem=ProblemSpec.model_json_schema(),
        study=StudySpec.model_json_schema(),
        embedded={name: read_spec(path) for name, path in embedded_studies().items()},
    )


def _choice(name: str, item: type[Parameters], families: list[str], source: str, note: str) -> Choice:
    said = (inspect.getdoc(item) or "").split("\n\n")[0]
    return Choice(
        name=name,
        summary=" ".join(said.split()),
        families=families,
        source=source,
        note=note,
        form=form(item),
    )


def form(item: type[Parameters]) -> dict[str, Any]:
    """JSON Schema of an item's parameters; its definition stands elsewhere."""
    schema = item.model_json_schema()
    schema.pop("description", None)
    return _plain(schema)


def _plain(value: Any) -> Any:
    """Without infinities, which JSON has not."""
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return None
    return value
