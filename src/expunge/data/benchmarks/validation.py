"""The validation counterpart of any problem: what hyperparameters are tuned on, so that nothing audited is seen."""

from __future__ import annotations

from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from pydantic import Field

from expunge.data.benchmarks.base import BENCHMARKS, Benchmark
from expunge.data.order import shuffled
from expunge.data.selection import Selection
from expunge.data.specification import ProblemSpec
from expunge.errors import BadInput, Missing
from expunge.problem import Problem

PART = 0.15
"""Share of the retain rows that becomes the test set, and as much again the holdout."""
FEWEST = 20
"""Below this many retain rows their parts say nothing."""


class Validation(Benchmark):
    """Another problem's retain rows, divided anew into training, test and holdout rows, with a forget set of the same kind.

    Where the other problem forgets whole classes, groups or users, others of them are forgotten, as many; otherwise
    random rows, the same share. No row of its forget set, holdout or probes is used. The model is trained from scratch
    by the same recipe.
    """

    name: ClassVar[str] = "validation"
    title: ClassVar[str] = "Validation counterpart of a problem"
    family: ClassVar[str] = "that of the problem"
    source: ClassVar[str] = "the retain rows of the problem that it belongs to"
    license: ClassVar[str] = "that of the problem's data"
    version: ClassVar[int] = 1

    of: dict[str, Any] = Field(
        default={"benchmark": "digits"}, description="the problem that it belongs to, as a study writes it"
    )
    base: str = Field(default="", description="folder that the problem's relative paths start from")
    seed: int = Field(default=0, description="another seed, another division")
    forget: Selection | None = Field(  # pyright: ignore[reportIncompatibleVariableOverride]
        default=None, description="what to forget; default: of the same kind as the problem forgets"
    )

    def problem(self) -> Problem:  # noqa: D102
        spec = ProblemSpec(**self.of)
        audited = spec.build(Path(self.base) if self.base else None)
        if audited.architecture is None or audited.recipe is None:
            lacks = "architecture" if audited.architecture is None else "recipe"
            raise Missing(
                f"{audited.name}: it has no {lacks}, so no validation model can be trained; give the problem one, "
                "or set the hyperparameters by hand"
            )
        if len(audited.retain_rows) < FEWEST:
            raise BadInput(
                f"{audited.name}: its retain set of {len(audited.retain_rows)} rows is too small to be divided; "
                f"at least {FEWEST} are needed"
            )
        rows = shuffled([str(i) for i in audited.retain["id"][:]], self.seed)
        size = round(PART * len(rows))
        test, holdout, train = (
            audited.retain.select(sorted(part))
            for part in (rows[:size], rows[size : 2 * size], rows[2 * size :])
        )
        if self.forget is not None:
            forget_ids, scope = self.forget.apply(train, audited.family)
        else:
            forget_ids, scope = self._like(audited, train, _selection(spec))
        return Problem(
            name=f"{audited.name} (validation)",
            family=audited.family,
            train=train,
            forget_ids=forget_ids,
            holdout=holdout,
            probes={"test": test},
            architecture=audited.architecture,
            recipe=audited.recipe,
            scope=scope,
            source={"validation of": dict(audited.source), "version": self.version},
        )

    def _like(
        self, audited: Problem, train: Dataset, selection: Selection | None
    ) -> tuple[tuple[str, ...], str]:
        """Ids of a forget set of the audited one's kind, and the choice in words."""
        ids = np.asarray([str(i) for i in train["id"][:]])
        by = None if selection is None or selection.user is None else next(iter(selection.user))
        groups = _groups(audited, audited.train, by)
        if groups is not None:
            forgotten = set(groups[audited.forget_rows].tolist())
            if forgotten.isdisjoint(groups[audited.retain_rows].tolist()):
                here = _groups(audited, train, by)
                assert here is not None
                names = sorted(set(here.tolist()))
                if len(names) < 2:
                    raise BadInput(
                        f"{audited.name}: it forgets all groups but one, so none is left to validate on; "
                        "set the hyperparameters by hand"
                    )
                chosen = [names[i] for i in shuffled(names, self.seed)][: min(len(forgotten), len(names) - 1)]
                kind = "group" if by is None else "user"
                return tuple(ids[np.isin(here, chosen)]), f"all rows of {len(chosen)} other {kind}(s)"
        share = len(audited.forget_rows) / len(audited.train)
        count = min(max(1, round(share * len(ids))), len(ids) - 1)
        order = shuffled(ids.tolist(), self.seed + 1)  # not the order that the parts were cut in
        return tuple(ids[sorted(order[:count])]), f"a random {share:.3g} of the rows"


def _selection(spec: ProblemSpec) -> Selection | None:
    """What the problem was told to forget; None where its rows were given as they are."""
    if spec.forget is not None or spec.benchmark is None:
        return spec.forget
    return BENCHMARKS[spec.benchmark](**spec.options).forget


def _groups(problem: Problem, dataset: Dataset, column: str | None) -> np.ndarray | None:
    if column is None:
        return problem.family.groups(dataset)
    return np.asarray([str(v) for v in dataset[column][:]])
