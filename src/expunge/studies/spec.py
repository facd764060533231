"""A study as data: problems × methods × seeds, and the metrics to judge by."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal, Self

import yaml
from pydantic import Field, field_validator

from expunge.attacks import ATTACKS, Attack
from expunge.data.benchmarks.base import BENCHMARKS
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput
from expunge.methods.base import METHODS, Method
from expunge.parameters import Parameters
from expunge.registry import load_object


class NamedSpec(Parameters):
    """One thing by name, with its parameters: a method, an attack."""

    name: str
    parameters: dict[str, Any] = Field(default_factory=dict)

    example: ClassVar[str]
    """How a mapping looks, for error messages."""

    @classmethod
    def parse(cls, given: str | dict[str, Any]) -> Self:
        """From ``npo`` or ``{name: npo, beta: 0.2, label: ...}``."""
        if isinstance(given, str):
            return cls(name=given)
        if not isinstance(given, dict) or "name" not in given:
            raise BadInput(
                f"{cls.title}: {given!r} is neither a name nor a mapping with a 'name', such as {cls.example}"
            )
        fields = set(cls.model_fields)
        if set(given) <= fields:
            return cls(**given)
        own = fields - {"parameters"}
        rest = {k: v for k, v in given.items() if k not in own}
        return cls(**{k: v for k, v in given.items() if k in own}, parameters=rest)


class MethodSpec(NamedSpec):
    """One method with its parameters."""

    title = "methods"
    example = "{name: npo, beta: 0.2}"

    name: str = Field(
        description="name of a method, or ./file.py:Class or package.module:Class, whose code is then imported"
    )
    label: str | None = Field(
        default=None, description="what tables call it; default: the name and what differs from defaults"
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="hyperparameters that differ from the defaults"
    )

    def resolve(self) -> Method:
        """The method with its parameters, validated."""
        return find_method(self.name)(**self.parameters)

    def shown(self) -> str:
        """What tables call it."""
        if self.label:
            return self.label
        method = self.resolve()
        differing = {
            k: getattr(method, k)
            for k, f in type(method).model_fields.items()
            if getattr(method, k) != f.get_default()
        }
        inside = ", ".join(f"{k}={v}" for k, v in differing.items())
        return f"{method.name} ({inside})" if inside else method.name


class AttackSpec(NamedSpec):
    """One attack with its parameters."""

    title = "attacks"
    example = "{name: lira, shadows: 32}"

    name: str = Field(
        description="name of an attack, or ./file.py:Class or package.module:Class, whose code is then imported"
    )
    parameters: dict[str, Any] = Field(
        default_factory=dict, description="parameters that differ from the defaults"
    )

    def resolve(self) -> Attack:
        """The attack with its parameters, validated."""
        return find_attack(self.name)(**self.parameters)


class TaskSpec(Parameters):
    """Public tasks of the lm-eval harness, asked of every language model of the table."""

    title = "lm_eval"

    tasks: list[str] = Field(min_length=1, description="names as in `lm-eval ls tasks`, groups included")
    folder: str | None = Field(
        default=None, description="folder with further tasks in YAML, from the study's own folder on"
    )
    batch_size: int = Field(default=16, ge=1, description="sequences in one forward pass")
    limit: int | None = Field(default=None, ge=1, description="only the first so many rows of each task")

    def place(self, base: Path) -> Path | None:
        """The folder, where one is named."""
        return None if self.folder is None else base / Path(self.folder).expanduser()


def find_method(name: str) -> type[Method]:
    """A method by name, or by ``./file.py:Class`` (whose code is imported)."""
    if ":" not in name:
        return METHODS[name]
    found = load_object(name)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise BadInput(f"'{name}' is not a subclass of expunge.methods.Method")
    return found


def find_attack(name: str) -> type[Attack]:
    """An attack by name, or by ``./file.py:Class`` (whose code is imported)."""
    if ":" not in name:
        return ATTACKS[name]
    found = load_object(name)
    if not (isinstance(found, type) and issubclass(found, Attack)):
        raise BadInput(f"'{name}' is not a subclass of expunge.attacks.Attack")
    return found


class StudySpec(Parameters):
    """Problems × methods × seeds."""

    title = "study"

    name: str = Field(description="name of the run's folder", pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    problems: list[ProblemSpec] = Field(min_length=1, description="what to forget, from which model")
    methods: list[MethodSpec] = Field(min_length=1, description="methods to compare")
    seeds: list[int] = Field(
        default=[0, 1, 2],
        min_length=1,
        description="one target, retrained model and run of each method per seed",
    )
    init: int | None = Field(
        default=None,
        description="seed of the fresh weights of targets and retrained models, so that `seeds` vary the rest alone; "
        "null: each model's own seed",
    )
    metrics: Literal["standard"] | list[str] = Field(
        default="standard",
        description="metrics to compute: standard, or names; `standard` among them means those and more",
    )
    attacks: Literal["standard", "all"] | list[AttackSpec] = Field(
        default_factory=list,
        description="attacks on every model of the table; standard: all that fit and train nothing; all: all that fit",
    )
    lm_eval: TaskSpec | None = Field(
        default=None,
        description="tasks of the lm-eval harness (extra lm-eval) for every language model of the table",
    )
    device: str = Field(default="cpu", description="where models run: cpu, cuda, cuda:1, mps")
    threads: int = Field(default=1, ge=1, description="CPU threads per job; part of what fixes the numbers")
    reference: Literal["precompute", "live"] = Field(
        default="precompute", description="outputs of frozen models: stored once, or computed in every step"
    )

    @field_validator("methods", mode="before")
    @classmethod
    def _methods(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        specs = [m if isinstance(m, MethodSpec) else MethodSpec.parse(m) for m in given]
        taken = next((m for m in specs if m.label in ("target", "retrain") and m.name != m.label), None)
        if taken is not None:
            raise BadInput(
                f"methods: {taken.name} cannot be labeled '{taken.label}', as the models to compare with are"
            )
        rows = [m.label or f"{m.name} {sorted(m.parameters.items())}" for m in specs]
        twice = next((m for m, row in zip(specs, rows, strict=True) if rows.count(row) > 1), None)
        if twice is not None:
            raise BadInput(
                f"methods: '{twice.label or twice.name}' is listed twice, so its runs could not be told apart; give each "
                "a label of its own, or more seeds"
            )
        return specs

    @field_validator("attacks", mode="before")
    @classmethod
    def _attacks(cls, given: Any) -> Any:
        if not isinstance(given, list):
            return given
        specs = [a if isinstance(a, AttackSpec) else AttackSpec.parse(a) for a in given]
        # Code of other files is imported later, after it was announced.
        names = [spec.name if ":" in spec.name else spec.resolve().name for spec in specs]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise BadInput(
                f"attacks: '{twice}' is listed twice, so its scores could not be told apart; use two studies"
            )
        return specs

    @field_validator("seeds", mode="before")
    @classmethod
    def _seeds(cls, given: Any) -> Any:
        if isinstance(given, str) and (found := re.fullmatch(r"(\d+)-(\d+)", given.strip())):
            return list(range(int(found[1]), int(found[2]) + 1))
        return [given] if isinstance(given, int) else given

    def imports(self) -> list[str]:
        """References whose code this study imports."""
        attacks = [] if isinstance(self.attacks, str) else self.attacks
        return [named.name for named in (*self.methods, *attacks) if ":" in named.name]


def read_spec(path: Path) -> dict[str, Any]:
    """Read YAML, TOML or JSON into plain data."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        raise BadInput(f"no file '{path}'") from None
    try:
        if path.suffix == ".toml":
            import tomllib

            content = tomllib.loads(text)
        else:
            content = yaml.safe_load(text)  # JSON is YAML
    except Exception as error:
        where = f" (line {mark.line + 1})" if (mark := getattr(error, "problem_mark", None)) else ""
        raise BadInput(f"'{path}' cannot be read{where}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise BadInput(f"'{path}' must hold a mapping of keys to values, not a {type(content).__name__}")
    return content


def override(content: dict[str, Any], assignments: Sequence[str]) -> dict[str, Any]:
    """Apply ``a.b.0.c=value`` assignments; values are read as YAML.

    A first key that a study does not know is looked for in its problems: an option of their benchmarks, else a key of
    a problem, is set in every problem that has it. So ``split=forget05`` says what ``problems.0.options.split=forget05``
    does.
    """
    import copy

    content = copy.deepcopy(content)
    for assignment in assignments:
        path, equals, value = assignment.partition("=")
        if not equals:
            raise BadInput(f"--set {assignment!r} is not of the form key.subkey=value")
        parsed = yaml.safe_load(value)
        # PyYAML reads 1e-5 as text, because YAML 1.1 wants a dot; nobody means text here.
        if isinstance(parsed, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", parsed):
            parsed = float(parsed)
        for parts in _meant(content, path.strip().split(".")):
            place: Any = content
            for part in parts[:-1]:
                place = _enter(place, part, assignment)
            last = parts[-1]
            if isinstance(place, list):
                place[_index(place, last, assignment)] = parsed
            else:
                place[last] = parsed
    return content


def _meant(content: dict[str, Any], parts: list[str]) -> list[list[str]]:
    """The paths that an assignment to ``parts`` means."""
    if parts[0] in StudySpec.model_fields:
        return [parts]
    found = []
    for number, problem in enumerate(content.get("problems") or []):
        if not isinstance(problem, dict):
            continue
        name = str(problem.get("benchmark"))
        options = BENCHMARKS[name].model_fields if name in BENCHMARKS else {}
        if parts[0] in options and parts[0] not in problem:
            found.append(["problems", str(number), "options", *parts])
        elif parts[0] in ProblemSpec.model_fields:
            found.append(["problems", str(number), *parts])
    return found or [parts]


def _enter(place: Any, part: str, assignment: str) -> Any:
    if isinstance(place, list):
        index = _index(place, part, assignment)
        if isinstance(place[index], str):  # a method given by name only gets parameters
            place[index] = {"name": place[index]}
        return place[index]
    if not isinstance(place, dict):
        raise BadInput(f"--set {assignment!r}: '{part}' is below a value that has no keys")
    return place.setdefault(part, {})


def _index(place: list[Any], part: str, assignment: str) -> int:
    if not part.isdigit() or int(part) >= len(place):
        raise BadInput(f"--set {assignment!r}: '{part}' must be a number below {len(place)}")
    return int(part)
