"""S3T: adapters that are learned slice by slice and layer by layer, so that a deletion only drops some of them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import block_names
from expunge.families.combined import Combined, Mean
from expunge.families.models import clone
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import Fit, Loop
from expunge.methods.lora import Adapters, LoRA, SavedAdapter, target_names
from expunge.methods.objective import State
from expunge.methods.slices import Prefix, allot, cyclic, delete, expected_deletions, matched
from expunge.parameters import param
from expunge.problem import Problem, Training


class S3T(Method, Training):
    """Sequence-aware sharded and sliced training: the model that such a service serves after the deletion.

    The rows are allotted by a hash of their id to `shards` (m), and within each to `slices` (L). A model of a shard learns
    along a sequence, a permutation of the slices: at its i-th place a low-rank adapter on the i-th group of blocks,
    counted from the top of the network, is trained on the slice at that place, and the head with it; everything below is
    the base's, everything learned before is frozen. So what stands after i places depends on the first i
    slices only. A deletion from a slice cuts every sequence before that slice, without any training. Of each shard the
    longest prefix left of its `sequences` (B) is served, and the shards answer together by the mean of their logits.
    A shard of which nothing is left is trained again, along its first sequence, without the deleted rows.

    What would be dropped is not trained here at all: the weights are bit by bit those of a service that had learned
    from every row and then dropped it. Notes say what such a service would have kept and how many more deletions it
    would stand. With one shard the result is one model of the target's shape; with more, every answer costs m forward
    passes and m models' memory.

    The base is what the target's training starts from: a pretrained model that never saw the rows, or random weights.
    Exact with respect to what the adapters learn, for deletions that do not depend on the model's answers. Not covered:
    the base, its pretraining, and what was fitted to the rows before (vocabulary, means of inputs). A head
    is kept for each place; a shared one would know every slice. Statistics of batch norm stay those of the base.

    Deviations: published scripts learn from all slices so far at each place (``data: cumulative``), give every block
    below ``L floor(n / L)`` no adapter (here groups differ by at most one block), choose checkpoints on a validation set
    (here the last), and scale adapters by ``alpha / sqrt(r)`` (here alpha / r; ``alpha = 2 r^1.5`` is the same).
    """

    name = "s3t"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    paper = "Basu Roy Chowdhury et al., ICLR 2025, arXiv:2406.16257"
    kind = "exact"
    guarantee = "bitwise"
    needs = frozenset({"retain", "architecture"})
    composes = True

    shards: int = param(5, "parts of the data with models of their own", source="paper", ge=1)
    slices: int = param(
        4, "parts of a shard; at most as many as the network has blocks", source="paper's smallest", ge=1
    )
    sequences: int = param(4, "orders of the slices that a service keeps per shard", source="paper", ge=1)
    prior: tuple[float, ...] | None = param(
        None,
        "weight of a deletion from each slice, which the orders are matched to; None means equal, with cyclic orders",
        source="paper",
    )
    by: str = param(
        "id", "column whose value is hashed; a user's rows stay together by the user's column", source="ours"
    )
    data: Literal["slice", "cumulative"] = param(
        "slice", "what a place learns from: its slice, or all slices so far", source="paper's text"
    )
    head: Literal["auto", "train", "keep"] = param(
        "auto",
        "what becomes of the head; auto trains it, except that of a pretrained language model",
        source="reference code",
    )
    lora: LoRA = param(LoRA(r=16), "the adapters", source="paper: r 16, alpha 2 r")
    epochs: int = param(
        10, "passes over the data of a place", source="ours: enough on the embedded problems", ge=1
    )
    lr: float = param(0.01, "learning rate", source="ours: base and data are small; the paper has 1e-4", ge=0)
    batch_size: int = param(16, "examples per optimizer step", source="ours: slices are small", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param(
        "adamw", "update rule", source="customary for adapters"
    )
    weight_decay: float = param(
        0.0, "L2 coefficient (decoupled for adamw)", source="customary for adapters", ge=0
    )

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        if (
            not found
            and problem.model is not None
            and not layer_groups(problem.model, problem.family.head(problem.model), LoRA(), 1)
        ):
            found.append("it needs a model with repeated blocks that have linear layers")
        return found

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        # Another stream than the target's, as in retraining.
        base = problem.fresh_model(workplace.seed + 7_919).to(workplace.device)
        groups = layer_groups(base, problem.family.head(base), self.lora, self.slices)
        if not groups:
            raise BadInput(
                f"s3t: no repeated block of {type(base).__name__} has a layer that gets an adapter; see lora"
            )
        slices = len(groups)
        if slices < self.slices:
            workplace.notes.append(f"as many slices as the network has blocks that get adapters: {slices}")
        orders = self._orders(slices)
        cells = self.cells(problem, slices)
        hit = {(int(s), int(c)) for s, c in cells[problem.forget_rows]}
        served: list[nn.Module] = []
        lengths, begun, retrained = [], set(), 0
        for shard in range(self.shards):
            tree = PrefixTree(self, problem, base, groups, shard, cells, problem.retain_rows, workplace)
            left = orders
            for deleted in (c for s, c in hit if s == shard):
                left = delete(left, deleted)
            prefix = max(left, key=len, default=())
            if not tree.rows(prefix):
                # Nothing is left, or nothing that was learned.
                prefix, left = orders[0], orders
                retrained += tree.rows(prefix) > 0
            if tree.rows(prefix):
                begun |= {(shard, order[0]) for order in left}
                lengths.append(len(prefix))
                served.append(tree.model(prefix))
        n = self.shards * slices
        what = "random weights" if problem.start is None else "the weights that training starts from"
        workplace.notes += [
            f"exact with respect to what adapters learned on {what}, which are not covered themselves",
            f"{len(hit)} of {n} slices held rows to forget; {retrained} of {self.shards} shards had no prefix left and "
            f"were trained again without them; served are prefixes of {', '.join(map(str, lengths))} of {slices} slices",
            f"a service that keeps {len(orders)} sequences per shard is expected to stand "
            f"{expected_deletions(n, len(begun)):.1f} more deletions from random slices before no shard has a prefix left",
        ]
        return served[0] if len(served) == 1 else Combined(served, Mean())

    def cells(self, problem: Problem, slices: int) -> np.ndarray:
        """`[n, 2]` shard and slice of each training row."""
        if self.by not in problem.train.column_names:
            raise BadInput(
                f"{problem.name}: the data has no column '{self.by}' to allot rows by; it has "
                f"{', '.join(problem.train.column_names)}"
            )
        return allot([str(v) for v in problem.train[self.by][:]], self.shards, slices)

    def _orders(self, slices: int) -> list[Prefix]:
        if self.prior is None:
            return cyclic(slices, min(self.sequences, math.factorial(slices)))
        if len(self.prior) != slices:
            raise BadInput(f"the prior has {len(self.prior)} weights for {slices} slices; give one per slice")
        return matched(self.prior, min(self.sequences, slices))


@dataclass(frozen=True)
class Snapshot:
    """What was learned at one place of a sequence."""

    adapter: SavedAdapter | None
    """None where the place had no rows."""
    head: dict[str, Tensor]
    """The head's parameters as they stood then; empty where it is not trained."""


class PrefixTree:
    """All that was learned from one shard: a snapshot for each prefix, shared by the sequences that begin with it.

    Args:
        settings: the hyperparameters.
        problem: whose rows are learned, and by which family.
        base: the model under the adapters; never changed.
        groups: names of the layers adapted at each place, from the top of the network down.
        shard: number of the shard.
        cells: `[n, 2]` shard and slice of each training row.
        learned: numbers of the training rows that may be learned from.
        workplace: seed, device, log.
    """

    def __init__(
        self, settings: S3T, problem: Problem, base: nn.Module, groups: Sequence[Sequence[str]], shard: int,
        cells: np.ndarray, learned: np.ndarray, workplace: Workplace,
    ) -> None:  # fmt: skip
        self.settings, self.problem, self.base, self.groups = settings, problem, base, groups
        self.shard, self.workplace = shard, workplace
        self.head = problem.family.head(base)
        own = learned[cells[learned, 0] == shard]
        self._slices = [own[cells[own, 1] == c] for c in range(len(groups))]
        keeps = problem.family.sequences and problem.start is not None
        self.trains_head = settings.head == "train" or (settings.head == "auto" and not keeps)
        self.snapshots: dict[Prefix, Snapshot] = {}

    def rows(self, prefix: Prefix) -> int:
        """Rows that were learned along `prefix`."""
        return sum(len(self._slices[c]) for c in prefix)

    def grow(self, prefix: Prefix) -> None:
        """Learn what is missing along `prefix`."""
        for place in range(1, len(prefix) + 1):
            if prefix[:place] not in self.snapshots:
                self.snapshots[prefix[:place]] = self._learned(prefix[:place])

    def forget(self, deleted: int) -> list[Prefix]:
        """Drop whatever depends on slice `deleted`; returns the prefixes that are gone."""
        gone = [prefix for prefix in self.snapshots if deleted in prefix]
        for prefix in gone:
            del self.snapshots[prefix]
        return gone

    def model(self, prefix: Prefix) -> nn.Module:
        """The base with what was learned along `prefix`, merged."""
        self.grow(prefix)
        model = clone(self.base)
        for place in range(1, len(prefix) + 1):
            snapshot = self.snapshots[prefix[:place]]
            if snapshot.adapter is not None:
                snapshot.adapter.apply(model)
        if prefix and self.snapshots[prefix].head:
            model.get_submodule(self.head).load_state_dict(self.snapshots[prefix].head)
        return model

    def _learned(self, prefix: Prefix) -> Snapshot:
        slices = prefix[-1:] if self.settings.data == "slice" else prefix
        rows = np.sort(np.concatenate([self._slices[c] for c in slices]))
        model = self.model(prefix[:-1])
        if not len(rows):
            return Snapshot(None, self._head(model))
        train = self.problem.train.select(rows)
        part = replace(
            self.problem,
            train=train,
            forget_ids=tuple(map(str, train["id"][:])),
            holdout=None,
            probes={},
            model=None,
        )
        given = {k: getattr(self.settings, k) for k in Training.model_fields}
        lora = self.settings.lora.replace(targets=tuple(self.groups[len(prefix) - 1]))
        stage = _Place(over="forget", lora=lora, batchnorm="freeze", with_head=self.trains_head, **given)
        # Its randomness belongs to the place alone, whatever was or was not learned before elsewhere.
        name = f"{self.workplace.seed}|{self.shard}|{prefix}"
        seed = int.from_bytes(hashlib.sha256(name.encode()).digest()[:7])
        workplace = Workplace(seed, self.workplace.device, on_step=self.workplace.on_step)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            Loop(stage, part, model, workplace).run()
        where = {"shard": self.shard, "slices": ",".join(map(str, prefix))}
        self.workplace.log += [{**where, **entry} for entry in workplace.log]
        return Snapshot(workplace.adapter, self._head(model))

    def _head(self, model: nn.Module) -> dict[str, Tensor]:
        if not self.trains_head:
            return {}
        return {k: v.detach().clone() for k, v in model.get_submodule(self.head).state_dict().items()}


class _Place(Fit):
    """Training of the adapters of one place, and of the head with them."""

    with_head: bool = Field(default=False, description="train the head, too")

    def start_adapters(self, problem: Problem, adapters: Adapters, state: State) -> None:
        if self.with_head:
            adapters.model.get_submodule(problem.family.head(adapters.model)).requires_grad_(True)


def layer_groups(model: nn.Module, head: str, lora: LoRA, groups: int) -> list[list[str]]:
    """Names of the layers that get adapters at each place, from the top of the network down.

    The repeated blocks are shared out in order, so that groups differ by at most one block; a group has at least one.
    """
    try:
        adapted = target_names(model, lora, head)
    except BadInput:
        if lora.targets is not None:
            raise
        return []
    names = block_names(model)
    blocks = [n for n in names if isinstance(model.get_submodule(n.rpartition(".")[0]), nn.ModuleList)]
    inside = [[a for a in adapted if a == block or a.startswith(f"{block}.")] for block in reversed(blocks)]
    filled = [layers for layers in inside if layers]
    parts = np.array_split(np.arange(len(filled)), min(groups, len(filled)) or 1)
    return [[layer for i in part for layer in filled[i]] for part in parts if len(part)]
