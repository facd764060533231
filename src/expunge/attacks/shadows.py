"""Shadow models: the attacker's own, trained with and without each row in question.

The rows in question, the pool, are the forget rows and as many holdout rows of the groups that occur among them. A
shadow is trained by the problem's own recipe on all retained rows and a random half of the pool. Where an attack asks for
it, its members of the pool are then unlearned with the method that made the attacked model. So a shadow's training set
and its forget set have the sizes of the real ones, and a forget and a holdout row of the pool are treated alike: on a
model that was never trained on either, nothing but chance tells them apart.

Shadows come in pairs that divide the pool between them, so each row is in exactly half of them (Carlini et al., S&P 2022).
What a shadow is depends on the problem and its number alone; methods and seeds of a study share it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from expunge.attacks.base import Attack, Scene, Shadow
from expunge.errors import Missing
from expunge.evidence import Evidence
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.metrics.membership import hash_order
from expunge.problem import Problem

SHADOW_SEED = 15_485_863
"""Seed of the first shadow model, far from the seeds that studies use."""


@dataclass(frozen=True)
class Pool:
    """The rows in question, as row numbers."""

    forget: np.ndarray
    """In the forget set: all of it."""
    holdout: np.ndarray
    """In the holdout: the non-members that the forget rows are compared with."""


def pool_of(problem: Problem) -> Pool:
    """The pool of a problem; which of the matching holdout rows are in it is decided by a hash of their ids."""
    holdout = _holdout(problem)
    ids = [str(i) for i in holdout["id"][:]]
    order = hash_order(ids)
    asked, groups = problem.batches("forget").groups, problem.batches("holdout").groups
    if asked is not None and groups is not None:
        order = order[np.isin(groups[order], np.unique(asked))]
    return Pool(np.arange(len(problem.forget)), np.sort(order[: len(problem.forget)]))


def membership(problem: Problem, index: int) -> dict[str, bool]:
    """By id of every row of the pool: whether shadow number `index` is trained on it."""
    pool, member = pool_of(problem), {}
    rng = np.random.default_rng([SHADOW_SEED, index // 2])
    for dataset, rows in ((problem.forget, pool.forget), (_holdout(problem), pool.holdout)):
        chosen = rng.permutation(len(rows)) < (len(rows) + 1) // 2
        ids = dataset["id"][:]
        member.update(
            {str(ids[row]): bool(taken) != bool(index % 2) for row, taken in zip(rows, chosen, strict=True)}
        )
    return member


def shadow_problem(problem: Problem, index: int) -> Problem:
    """What shadow number `index` is trained on, with its members of the pool as the rows to forget."""
    member = membership(problem, index)
    inside = {i for i, taken in member.items() if taken}
    train, holdout = problem.train, _holdout(problem)
    outside_forget = set(problem.forget_ids) - inside
    kept = train.select([row for row, i in enumerate(train["id"][:]) if str(i) not in outside_forget])
    taken = np.asarray([str(i) in inside for i in holdout["id"][:]])
    shared = [name for name in kept.column_names if name in holdout.column_names]
    kept, added = kept.select_columns(shared), holdout.select(np.flatnonzero(taken)).select_columns(shared)
    if added.features != kept.features:
        added = added.cast(kept.features)
    together = concatenate_datasets([kept, added])
    left = holdout.select(np.flatnonzero(~taken))
    return replace(
        problem, name=f"{problem.name} (shadow {index})", train=together, holdout=left if len(left) else None, model=None,
        forget_ids=tuple(i for i in map(str, together["id"][:]) if i in inside), scope="members of the attacker's pool",
    )  # fmt: skip


def train_shadow(problem: Problem, index: int, workplace: Workplace) -> nn.Module:
    """Shadow number `index` of `problem`, trained from fresh weights; of `workplace` the seed is not used."""
    if problem.recipe is None:
        raise Missing(f"{problem.name}: shadow models need the recipe the target was trained with; state it")
    seed = SHADOW_SEED + index
    mine = shadow_problem(problem, index)
    model = mine.fresh_model(seed).to(workplace.device)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return fit(mine, model, "train", problem.recipe, replace(workplace, seed=seed)).eval()


def unlearn_shadow(
    problem: Problem, index: int, shadow: nn.Module, method: Method, workplace: Workplace
) -> nn.Module:
    """What `method` makes of shadow number `index` of `problem`, asked to forget its members of the pool."""
    mine = shadow_problem(problem, index).with_model(shadow)
    return method.forget(mine, replace(workplace, seed=SHADOW_SEED + index)).model


class ShadowModels:
    """The shadow models of one problem, trained and unlearned when first asked for and kept in memory."""

    def __init__(self, problem: Problem, workplace: Workplace) -> None:
        self._problem, self._workplace = problem, workplace
        self._models: dict[int, nn.Module] = {}
        self._unlearned: dict[tuple[int, str], nn.Module] = {}

    def trained(self, attack: Attack) -> list[Shadow]:
        """As many as `attack` asks for, and what it reads of them."""
        return [self._shadow(index, attack) for index in range(attack.shadow_models())]

    def unlearned(self, attack: Attack, method: Method) -> list[Shadow]:
        """The same, with what `attack` reads of them after `method` unlearned their members."""
        made = []
        for index, shadow in enumerate(self.trained(attack)):
            key = (index, repr(method))
            if key not in self._unlearned:
                self._unlearned[key] = unlearn_shadow(
                    self._problem, index, self._models[index], method, self._workplace
                )
            made.append(replace(shadow, after=self._look(self._unlearned[key], attack)))
        return made

    def _shadow(self, index: int, attack: Attack) -> Shadow:
        if index not in self._models:
            self._models[index] = train_shadow(self._problem, index, self._workplace)
        return Shadow(membership(self._problem, index), self._look(self._models[index], attack))

    def _look(self, model: nn.Module, attack: Attack) -> dict[str, Evidence]:
        scene = Scene(self._problem, model, self._workplace)
        return {s: scene.evidence(s, attack.quantities(self._problem.family)) for s in ("forget", "holdout")}


def _holdout(problem: Problem) -> Dataset:
    if problem.holdout is None:
        raise Missing(f"{problem.name}: a pool of rows in question needs a holdout set; state one")
    return problem.holdout
