"""How the forget set is named: by ids, by a condition, by class, by user, or at random."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from datasets import Dataset
from pydantic import ConfigDict, Field, model_validator

from expunge.data.conditions import matching, parse
from expunge.data.order import shuffled
from expunge.data.sources import read_table
from expunge.errors import BadInput, did_you_mean
from expunge.families import Classifier, Family, Gan
from expunge.files import read_json
from expunge.parameters import Parameters

_FORMS = "class=NAME, fraction=0.1, user:COLUMN=VALUE, where:CONDITION, ids=FILE or a file of ids"
_LISTS = {".txt", ".json", ".jsonl", ".csv", ".tsv", ".parquet", ".ids", ".gz"}


class Selection(Parameters):
    """Which rows are to be forgotten; exactly one of `ids`, `where`, `class`, `user` and `fraction`."""

    title = "forget"
    model_config = ConfigDict(validate_by_name=True, validate_by_alias=True, serialize_by_alias=True)

    ids: list[str | int] | str | None = Field(
        default=None,
        description="ids, or a file of them: one per line, a JSON list, or a table with an id column",
    )
    where: str | None = Field(
        default=None,
        description="condition on columns such as: age < 30 and city in [Rome, Paris]. Reports show it; "
        "name a person by `user` or `ids`, which they do not show",
    )
    class_: str | int | None = Field(
        default=None, alias="class", description="all rows of one class, by its name or number"
    )
    user: dict[str, str | int | list[str | int]] | None = Field(
        default=None, description="all rows of one or several users, as {COLUMN: VALUE} or {COLUMN: [VALUES]}"
    )
    fraction: float | None = Field(default=None, gt=0, lt=1, description="share of the rows, drawn at random")
    seed: int = Field(default=0, description="seed of `fraction`: another seed, other rows")

    @model_validator(mode="after")
    def _exactly_one(self) -> Selection:
        given = [k for k in ("ids", "where", "class_", "user", "fraction") if getattr(self, k) is not None]
        if len(given) != 1:
            shown = " and ".join(k.rstrip("_") for k in given) or "none"
            raise BadInput(f"forget: give exactly one of ids, where, class, user and fraction, not {shown}")
        if self.user is not None and len(self.user) != 1:
            raise BadInput(f"forget: user names {len(self.user)} columns; give one, such as {{author: anna}}")
        if self.where is not None:
            parse(self.where)
        return self

    @classmethod
    def parse(cls, text: str) -> Selection:
        """From the command line.

        Forms: ``class=3``, ``fraction=0.1``, ``fraction=0.1,seed=2``, ``user:author=anna``,
        ``where:age < 30``, ``ids=FILE``, or just a file of ids.
        """
        text = text.strip()
        kind, equals, value = text.partition("=")
        if text.startswith("where:"):
            return cls(where=text.removeprefix("where:").strip())
        if kind.startswith("user:") and equals:
            return cls(user={kind.removeprefix("user:").strip(): value.strip()})
        if kind == "class" and equals:
            return cls.model_validate({"class": value.strip()})
        if kind == "ids" and equals:
            return cls(ids=value.strip())
        if kind == "fraction" and equals:
            share, _, seed = value.partition(",seed=")
            return cls.model_validate({"fraction": share, "seed": seed or 0})
        if Path(text).suffix.lower() in _LISTS or Path(text).is_file():
            return cls(ids=text)
        raise BadInput(f"'{text}' does not say what to forget; give one of {_FORMS}")

    def apply(
        self, dataset: Dataset, family: Family, base: Path | None = None
    ) -> tuple[tuple[str, ...], str]:
        """The ids of the chosen rows in the data's order, and the choice in words.

        Args:
            dataset: the training data, with a string column `id`.
            family: says which column holds the class.
            base: folder that a relative file of ids starts from; default: the current one.

        The words go into reports: they never contain an id or a user's name.
        """
        known = [str(i) for i in dataset["id"][:]]
        if self.ids is not None:
            wanted = self._ids(base)
            unknown = sorted(wanted - set(known))
            if unknown:
                more = f" and {len(unknown) - 20} more" if len(unknown) > 20 else ""
                raise BadInput(
                    f"{len(unknown)} of the {len(wanted)} ids to forget are not in the data: "
                    f"{', '.join(unknown[:20])}{more}; check the id column"
                )
            chosen, scope = np.asarray([i in wanted for i in known], dtype=bool), "the listed ids"
        elif self.where is not None:
            chosen, scope = matching(dataset, parse(self.where)), f"rows where {self.where}"
        elif self.class_ is not None:
            chosen, scope = self._of_class(dataset, family)
        elif self.user is not None:
            chosen, scope = self._of_user(dataset)
        else:
            chosen = np.zeros(len(known), dtype=bool)
            chosen[shuffled(known, self.seed)[: round((self.fraction or 0) * len(known))]] = True
            scope = f"a random {self.fraction:.4g} of the rows (seed {self.seed})"
        if not chosen.any():
            raise BadInput(f"the forget set is empty: none of the {len(known)} rows is among {scope}")
        if chosen.all():
            raise BadInput(
                f"the forget set is the whole training set: all {len(known)} rows are among {scope}; "
                "use a fresh untrained model instead"
            )
        return tuple(i for i, c in zip(known, chosen, strict=True) if c), scope

    def _ids(self, base: Path | None) -> set[str]:
        found = [str(i) for i in self.ids] if isinstance(self.ids, list) else read_ids(str(self.ids), base)
        if not found:
            raise BadInput("the forget set is empty: the list of ids has no entries")
        return set(found)

    def _of_class(self, dataset: Dataset, family: Family) -> tuple[np.ndarray, str]:
        if not isinstance(family, (Classifier, Gan)) or not family.classes:
            raise BadInput(f"a {family.name} has no classes; choose rows by where, user, ids or fraction")
        given = str(self.class_)
        if given in family.classes:
            number = family.classes.index(given)
        elif given.isdigit() and int(given) < len(family.classes):
            number = int(given)
        else:
            raise BadInput(f"there is no class '{given}'{did_you_mean(given, family.classes)}")
        return np.asarray(dataset[family.target]) == number, f"all rows of class '{family.classes[number]}'"

    def _of_user(self, dataset: Dataset) -> tuple[np.ndarray, str]:
        ((column, values),) = (self.user or {}).items()
        if column not in dataset.column_names:
            raise BadInput(f"the data has no column '{column}'{did_you_mean(column, dataset.column_names)}")
        wanted = {str(v) for v in (values if isinstance(values, list) else [values])}
        found = [str(v) for v in dataset[column]]
        absent = sorted(wanted - set(found))
        if absent:
            raise BadInput(f"column '{column}' has no rows of {', '.join(absent[:20])}; check the spelling")
        users = "one user" if len(wanted) == 1 else f"{len(wanted)} users"
        return np.asarray([v in wanted for v in found]), f"all rows of {users} (column '{column}')"


def read_ids(source: str, base: Path | None = None) -> list[str]:
    """Ids from a file: one per line, a JSON list, or a table with one column or a column `id`."""
    path = (base or Path()) / Path(source).expanduser()
    if not path.is_file():
        raise BadInput(f"no file '{path}' to read the ids to forget from")
    if path.suffix.lower() == ".json":
        content = read_json(path)
        if isinstance(content, list) and all(isinstance(i, (str, int)) for i in content):
            return [str(i) for i in content]
    elif path.suffix.lower() not in (".csv", ".tsv", ".jsonl", ".parquet", ".gz"):
        return [line.strip() for line in path.read_text().splitlines() if line.strip()]
    return _id_column(read_table(path), path)


def _id_column(table: Dataset, path: Path) -> list[str]:
    columns = table.column_names
    if "id" not in columns and len(columns) != 1:
        raise BadInput(
            f"'{path}' has the columns {', '.join(columns)} and none called 'id'; name the ids' column id"
        )
    return [str(i) for i in table["id" if "id" in columns else columns[0]]]
