"""MeMo: knowledge in memory models beside an executive that never saw it, so that it can be dropped exactly."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput
from expunge.exact.stages import Stages, cells_of, in_order
from expunge.families.combined import Combined, Recall
from expunge.methods.base import Method, Workplace
from expunge.parameters import param
from expunge.problem import Problem


class Memo(Method):
    """Knowledge in detachable memories: what such a service serves after documents were deleted from it.

    The executive is what training starts from (a pretrained model, or random weights): it is frozen and never sees a row.
    Each of `shards` memories is a model of its own, trained by the target's recipe on the rows of its documents. They answer
    together with probability ``(1 - weight) p_executive + weight * mean over memories of p``. Documents are allotted to
    memories by a keyed hash; a deletion trains the memory of the document again, without its rows, and leaves executive and
    other memories as they are, bit by bit. `detached` takes all memories away and leaves the executive itself.

    A row that was made of several documents goes with any of them: with `provenance`, a column of lists of documents, every
    row whose list names a deleted document is dropped too, and a note says how many were not asked for. Such a row is learned
    by the memory of its own document alone.

    The result equals a system that never saw the dropped rows, bit by bit. Not covered: what the executive knew before
    (ask it alone, by `detached`), and rows about a deleted document whose provenance does not say so.

    Deviations from Quek et al. (2026): the memory answers token by token beside the executive, not in a dialog of
    sub-questions; rows are taken as they are, without a generator that makes questions of documents.
    """

    name = "memo"
    paper = "Quek et al., 2026, arXiv:2605.15156"
    kind = "exact"
    guarantee = "bitwise"
    families = frozenset({"classifier", "causal_lm"})
    needs = frozenset({"retain", "architecture", "recipe"})
    composes = True

    shards: int = param(2, "memories", source="ours", ge=1)
    document: str = param("id", "column that names the document of a row", source="ours")
    provenance: str | None = param(
        None,
        "column with the list of all documents that a row was made of; None means its own alone",
        source="ours",
    )
    weight: float = param(0.9, "how much the memories count beside the executive", source="ours", gt=0, le=1)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        gone = set(self._documents(problem.forget)) if self.provenance is not None else set()
        tainted = [bool(gone & made_of) for made_of in self._provenance(problem.retain)]
        kept = in_order(problem.retain.select(np.flatnonzero(~np.asarray(tainted, dtype=bool))))
        secret = f"expunge memo {workplace.seed}".encode()
        cells = cells_of(self._documents(kept), self.shards, 1, secret)[:, 0]
        stages = Stages.of(problem, 1, workplace.seed, workplace.device)
        memories: list[nn.Module] = []
        for shard in range(self.shards):
            own = kept.select(np.flatnonzero(cells == shard))
            weights = stages.train(shard, own, np.zeros(len(own), dtype=int), workplace)
            if weights is not None:
                memories.append(stages.model(shard, weights))
        touched = len(set(cells_of(self._documents(problem.forget), self.shards, 1, secret)[:, 0].tolist()))
        workplace.notes.append(
            f"{touched} of {self.shards} memories are made again; the executive never saw a row"
        )
        if any(tainted):
            workplace.notes.append(
                f"{sum(tainted)} further rows were made of the deleted documents too, and went with them"
            )
        # Another stream than the target's: the executive has nothing of the target in it.
        executive = problem.fresh_model(workplace.seed + 104_729).to(workplace.device).eval()
        return Combined([executive, *memories], Recall(weight=self.weight)) if memories else executive

    def _documents(self, rows: Dataset) -> list[str]:
        self._require(rows, self.document)
        return [str(v) for v in rows[self.document][:]]

    def _provenance(self, rows: Dataset) -> Sequence[set[str]]:
        if self.provenance is None:
            return [set()] * len(rows)
        self._require(rows, self.provenance)
        own = self._documents(rows)
        return [{name, *map(str, more)} for name, more in zip(own, rows[self.provenance][:], strict=True)]

    def _require(self, rows: Dataset, column: str) -> None:
        if column not in rows.column_names:
            raise BadInput(f"memo: the data has no column '{column}'; it has {', '.join(rows.column_names)}")


def detached(model: nn.Module) -> nn.Module:
    """The executive alone: the model without any memory."""
    if isinstance(model, Combined) and isinstance(model.rule, Recall):
        return model.base
    return model
