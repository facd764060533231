"""The options that say what a problem is, shared by `forget` and `audit`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.errors import BadInput
from expunge.parameters import Parameters

if TYPE_CHECKING:
    from expunge.methods import Method

Lora = Annotated[
    str | None,
    typer.Option(
        help="Train low-rank adapters, such as r=16,alpha=32,dropout=0.05,targets=q_proj+v_proj; the model is written "
        "with them merged, and they by themselves beside it, in OUT/adapter."
    ),
]
ProblemFile = Annotated[
    Path | None,
    typer.Option("--problem", help="YAML, TOML or JSON file with a problem; the options below override it."),
]
Benchmark = Annotated[
    str | None, typer.Option(help="A benchmark instead of your own data (expunge list benchmarks).")
]
Data = Annotated[
    str | None, typer.Option(help="Training data: hub id, Parquet, JSONL, CSV, image folder, IDX files.")
]
Forget = Annotated[
    str | None,
    typer.Option(help="class=NAME, fraction=0.1, user:COLUMN=VALUE, 'where:age < 30', or a file of ids."),
]
Family = Annotated[str | None, typer.Option(help="classifier, regressor, ... (expunge list families).")]
Holdout = Annotated[
    str | None, typer.Option(help="Data that was never trained on; membership inference needs it.")
]
Test = Annotated[str | None, typer.Option(help="Test data.")]
Column = Annotated[str | None, typer.Option(help="Column of labels or target values.")]
IdColumn = Annotated[str | None, typer.Option("--id", help="Column of example ids.")]
GroupColumn = Annotated[str | None, typer.Option("--group", help="Column for breakdowns by group.")]
Inputs = Annotated[str | None, typer.Option(help="Input columns, separated by commas.")]
Concept = Annotated[
    str | None, typer.Option(help="What to erase from a text-to-image model, in words, such as 'Van Gogh'.")
]
Anchor = Annotated[str | None, typer.Option(help="What its prompts should show instead, in words.")]
Preserve = Annotated[
    list[str] | None,
    typer.Option(help="A prompt whose images must stay as they are; may be given several times."),
]
AllowPickle = Annotated[
    bool, typer.Option("--allow-pickle", help="Read pickle checkpoints, which can run code.")
]


def problem_spec(file: Path | None, **given: Any) -> Any:
    """A `ProblemSpec` from a file and the options that were given."""
    from expunge.data.specification import ProblemSpec
    from expunge.studies.spec import read_spec

    content = read_spec(file) if file is not None else {}
    content |= {k: v for k, v in given.items() if v is not None and v is not False}
    if content.get("concept"):
        return ProblemSpec(**content)
    if not any(content.get(key) for key in ("benchmark", "data", "forget_data")):
        raise BadInput("there is no data: give --data FILE, --benchmark NAME or --problem FILE")
    if not any(content.get(key) for key in ("benchmark", "forget", "forget_data")):
        raise BadInput(
            "nothing is said to be forgotten: give --forget, such as --forget class=3 or --forget ids.txt"
        )
    return ProblemSpec(**content)


def assigned(assignments: list[str]) -> dict[str, Any]:
    """Hyperparameters from ``--set beta=0.2`` or ``--set method.beta=0.2``."""
    from expunge.studies.spec import override

    return override({}, [a.removeprefix("method.") for a in assignments])


def adapters(method: type[Method], text: str | None) -> dict[str, Any]:
    """The hyperparameter ``lora`` from ``--lora r=16``; nothing where the option is not given."""
    from expunge.methods.lora import LoRA
    from expunge.methods.objective import Objective

    if text is None:
        return {}
    if "lora" not in method.model_fields or (issubclass(method, Objective) and not method.adapters):
        raise BadInput(f"method '{method.name}' cannot train low-rank adapters; leave out --lora")
    return {"lora": LoRA.parse(text)}


def columns(text: str | None) -> list[str] | None:
    """Comma-separated names."""
    return None if text is None else [part.strip() for part in text.split(",") if part.strip()]


class Exported(Parameters):
    """What `expunge forget` prints."""

    folder: str
    adapter: str | None = None
    method: str
    parameters: dict[str, Any]
    seed: int
    model_id: str
    cost: dict[str, Any]
    notes: list[str]
    problem: dict[str, Any]
