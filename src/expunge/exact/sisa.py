"""SISA: an ensemble of models of disjoint shards, so that a deletion retrains a part of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from datasets import Dataset
from torch import nn

from expunge.errors import BadInput
from expunge.exact.checkpoints import CheckpointFolder
from expunge.exact.stages import Stages, cells_of, counts, expected_share, first_stages, in_order, visits
from expunge.families import Family, Regressor
from expunge.families.combined import Combined, Mean, Probabilities, Rule, Vote
from expunge.methods.base import Method, Workplace
from expunge.methods.lora import LoRA
from expunge.parameters import param
from expunge.problem import Problem


class SISA(Method):
    """Sharded, isolated, sliced, aggregated training: the ensemble that such a service serves after the deletion.

    Rows are allotted by a keyed hash of their id to `shards` (S), and within each to `slices` (R). The model of a shard is
    trained in R stages by the target's recipe; stage r goes on from stage r-1 and learns from slices 1 to r, for
    ``2 E / (R + 1)`` epochs, so that all stages together visit as many rows as E epochs would. A deletion from slice r of
    shard k discards stages r to R of model k and trains them again; with equal slices that is ``2/3 + 1/(3R)`` of a shard's
    training on average. The models answer together, by the mean of their probabilities (of their values, for
    regressors) or by majority.

    What would be discarded is not trained here at all: the weights are bit by bit those of a service that had learned
    from every row and then deleted, which is what `expunge.exact.shards.ShardedModel` keeps on disk. Notes say what the
    deletion costs that service. With one shard and one slice it is retraining; with one shard the result is a single
    model of the target's shape. More shards cost accuracy where a shard has few rows of a class (below about 50), and
    every answer costs S forward passes and S models' memory.

    With `lora`, shards are adapters on a shared frozen base, which is what training starts from; then the guarantee is
    about what adapters and head learn. A shard without rows abstains.

    Exact for deletions that do not depend on the model's answers (Gupta et al. 2021 for those that do). Not covered: a
    pretrained base, and what was fitted to all rows before (vocabulary, means of inputs, hyperparameters).

    Deviations: the reference code cuts each shard into R equal slices and leaves the remainder of the division out of the
    fingerprint by which it finds its checkpoints, so that deleting one of these rows deletes nothing; here slices come
    from the hash, sizes differ, every row is in one, and fingerprints cover exactly what was trained on. The reference
    drops deleted rows out of batches that stay otherwise as they were; here batches are made anew.
    """

    name = "sisa"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    paper = "Bourtoule et al., IEEE S&P 2021, arXiv:1912.03817"
    kind = "exact"
    guarantee = "bitwise"
    needs = frozenset({"retain", "architecture", "recipe"})
    composes = True

    shards: int = param(5, "(S) disjoint parts of the data, each with a model", source="paper: 5 to 50", ge=1)
    slices: int = param(5, "(R) parts of a shard, learned one after the other", source="paper: 1 to 50", ge=1)
    aggregation: Literal["mean", "vote"] = param(
        "mean",
        "how models answer together: by the mean of their probabilities, or by majority, ties going to the higher mean",
        source="ours: keeps probabilities; the reference votes",
    )
    by: str = param(
        "id", "column whose value is hashed; a user's rows stay together by the user's column", source="ours"
    )
    lora: LoRA | None = param(
        None, "train adapters on a shared frozen base; None trains whole models", source="ours"
    )

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        stages = Stages.of(problem, self.slices, workplace.seed, workplace.device, lora=self.lora)
        rule = self.rule(problem.family)
        secret = f"expunge sisa {workplace.seed}".encode()
        cells = self.cells(problem.train, secret)
        kept = cells[problem.retain_rows]
        checkpoints = None if workplace.checkpoint is None else CheckpointFolder(workplace.checkpoint)
        parts: list[nn.Module] = []
        for shard in range(self.shards):
            own = in_order(problem.retain.select(np.flatnonzero(kept[:, 0] == shard)))
            weights = stages.train(shard, own, self.cells(own, secret)[:, 1], workplace, checkpoints)
            if weights is not None:
                parts.append(stages.model(shard, weights))
        if checkpoints is not None:
            checkpoints.clear()
        workplace.notes += self._told(problem, cells, stages.recipe.epochs, len(parts))
        return together(parts, rule)

    def cells(self, rows: Dataset, secret: bytes) -> np.ndarray:
        """`[n, 2]` shard and slice of each row."""
        if self.by not in rows.column_names:
            raise BadInput(
                f"sisa: the data has no column '{self.by}' to allot rows by; it has {', '.join(rows.column_names)}"
            )
        return cells_of([str(v) for v in rows[self.by][:]], self.shards, self.slices, secret)

    def rule(self, family: Family) -> Rule:
        """How models of `family` answer together."""
        if not isinstance(family, Regressor):
            return Probabilities() if self.aggregation == "mean" else Vote()
        if self.aggregation == "vote":
            raise BadInput("sisa: values cannot be voted on; set aggregation to 'mean'")
        return Mean()

    def _told(self, problem: Problem, cells: np.ndarray, epochs: int, served: int) -> list[str]:
        first = first_stages(cells[problem.forget_rows], self.shards, self.slices)
        sizes = counts(cells[problem.retain_rows], self.shards, self.slices)
        share = visits(sizes, epochs, first) / max(visits(sizes, epochs), 1)
        notes = [
            f"a service that had learned from all rows makes stages of {int((first < self.slices).sum())} of {self.shards} "
            f"shards again for this deletion, {share:.1%} of its training; for one row it is "
            f"{expected_share(self.slices) / self.shards:.1%} on average",
        ]
        if self.lora is not None:
            what = "random weights" if problem.start is None else "the weights that training starts from"
            notes.append(f"exact with respect to what adapters learned on {what}, which are not covered")
        if served < self.shards:
            notes.append(f"{self.shards - served} of {self.shards} shards have no rows and abstain")
        return notes


def together(parts: Sequence[nn.Module], rule: Rule) -> nn.Module:
    """The models as one; a single one is itself."""
    if not parts:
        raise BadInput(
            "no shard has any rows left, so there is no model; add rows before a model is asked for"
        )
    return parts[0] if len(parts) == 1 else Combined(parts, rule)
