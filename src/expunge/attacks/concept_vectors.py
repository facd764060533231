"""Concept vectors: are the value vectors of MLP layers that wrote the forgotten answers still there?"""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from scipy import stats
from torch import Tensor, nn

from expunge.attacks.activation_patching import answers, mean_logp
from expunge.attacks.base import Attack, Measure, Scene
from expunge.attacks.knowledge import knowledge_in
from expunge.attacks.positions import predicting
from expunge.families import CausalLM
from expunge.families.models import clone, innermost
from expunge.metrics.base import Estimate, Undefined
from expunge.parameters import param
from expunge.record import Score
from expunge.stats.intervals import t_interval

DOWN = re.compile(r"(^|\.)(down_proj|dense_4h_to_h|fc2|fc_out|mlp\.c_proj)$")
"""The second layer of an MLP in Llama, GPT-NeoX, OPT, GPT-J and GPT-2, and what is named after them."""


class ConceptVectors(Attack):
    """Compare the columns of down-projections that write the forgotten answers with what they were in the target.

    An MLP gives ``sum_j a_j v_j``; v_j is column j of its down-projection. With E the target's output embedding, less its
    mean over tokens, column j adds ``a_j E_y v_j`` to the logit of token y. The concept vectors are the `vectors` columns of
    all layers in which that is largest for the tokens of the forgotten answers, on average and less the same for retained
    answers. They
    count only if they are causal in the target: with noise of `noise` times each one's length on them, the log-likelihood of the
    forgotten answers must fall by more than that of as many retained ones (Welch's one-sided test at 0.05).

    T(v) are the k tokens of largest E v; k is 200, but at most a tenth of the vocabulary. S are the tokens that are more than
    twice as frequent in the forgotten answers as in the retained ones. For each v of the target and v' of the attacked model:
    Jaccard index of T(v) and T(v'), cosine, ``|v - v'| / |v|``, and ``|T(v') & S| / |T(v) & S|``. A v' of zeros has index 0.

    High overlap says that this trace is intact; low overlap says neither that the knowledge is gone (a permutation of
    neurons moves every column) nor that it was there alone. Compare with retrained models.

    Deviation: the authors choose vectors by the judgement of a language model on their projections, and checked by hand;
    here what they add to the answers decides. Noise is relative, theirs is 0.1 for every column.
    """

    name = "concept-vectors"
    paper = "Hong et al., 2024, arXiv:2406.11614"
    threat_model = (
        "weights of the attacked model and of the target before forgetting; forgotten and retained rows"
    )
    access = "weights"
    families = frozenset({"causal_lm"})
    needs = frozenset({"retain"})
    measures = (
        Measure(
            "concept-vectors-jaccard",
            "Mean over concept vectors of the Jaccard index of the k tokens that they promote most, before and after. "
            "Interval: t "
            "over vectors.",
            "share", title="Concept vectors, tokens in common", low=0.0, high=1.0, margin=0.05,
        ),
        Measure(
            "concept-vectors-cosine",
            "Mean over concept vectors of the cosine between before and after; 0 where a vector is zero now. Interval: t "
            "over vectors.",
            "cosine", title="Concept vectors, cosine", low=-1.0, high=1.0,
        ),
        Measure(
            "concept-vectors-distance",
            "Mean over concept vectors of the Euclidean distance between before and after, divided by the length before.",
            "lengths", title="Concept vectors, distance", low=0.0,
        ),
        Measure(
            "concept-vectors-precise",
            "Mean over concept vectors of the number of tokens of the concept that they promote, after divided by before; "
            "vectors "
            "that promoted none before are left out.",
            "ratio", title="Concept vectors, concept tokens", low=0.0,
        ),
        Measure(
            "concept-vectors-effect",
            "Knowledge of the forget rows that the attacked model loses when its columns at these places are zeroed, less "
            "what it "
            "loses of as many retained rows: whether it still uses them.",
            "knowledge", title="Concept vectors, use", low=-1.0, high=1.0,
        ),
    )  # fmt: skip

    vectors: int = param(10, "concept vectors", source="ours; the paper has one per concept", ge=1)
    k: int = param(
        200, "tokens that stand for a vector, at most a tenth of the vocabulary", source="the paper", ge=1
    )
    noise: float = param(1.0, "noise of the causal check, in lengths of the vector", source="ours", gt=0)
    draws: int = param(5, "draws of that noise", source="ours", ge=1)
    batch_size: int = param(32, "rows per pass", source="ours", ge=1)

    @classmethod
    def obstacles(cls, problem: Any) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        if not found and problem.model is not None and not value_matrices(problem.model):
            found.append(
                f"{type(innermost(problem.model)).__name__} has no MLP with a down-projection that is known"
            )
        return found

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"vectors": self.vectors, "draws of noise": self.draws}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        target = scene.problem.model
        if target is None:
            raise Undefined("the target was not given, whose vectors are looked for")
        model, target = scene.model.to(scene.workplace.device), target.to(scene.workplace.device)
        own = value_matrices(model)
        shapes = {name: value.shape for name, value in value_matrices(target).items()}
        if shapes != {name: value.shape for name, value in own.items()}:
            raise Undefined("target and attacked model are not built alike: their down-projections differ")
        family = cast(CausalLM, scene.problem.family)
        embedding = innermost(target).get_submodule(family.head(innermost(target))).weight.detach().float()  # pyright: ignore
        embedding = embedding - embedding.mean(0)
        chosen = self.located(scene, target, embedding)
        self.check(scene, target, chosen)
        concept = concept_tokens(scene, len(embedding))
        k = max(1, min(self.k, len(embedding) // 10))
        before, after = (
            torch.stack([value_matrices(m)[name][j].float() for name, j in chosen]) for m in (target, model)
        )
        traces = [compare(v, w, embedding, concept, k) for v, w in zip(before, after, strict=True)]
        scores = [
            self.mean(f"concept-vectors-{part}", [getattr(trace, part) for trace in traces])
            for part in ("jaccard", "cosine", "distance", "precise")
        ]
        return [*scores, self.effect(scene, chosen)]

    def mean(self, name: str, values: list[float]) -> Score:
        """Mean over vectors; undefined where none has the value."""
        kept = np.asarray([v for v in values if np.isfinite(v)])
        if not len(kept):
            return self.undefined(name, "no concept vector promotes a token that is the concept's own")
        return self.score(name, Estimate(float(kept.mean()), len(kept), t_interval(kept, over="vectors")))

    @torch.no_grad()
    def located(self, scene: Scene, target: nn.Module, embedding: Tensor) -> list[tuple[str, int]]:
        """Layer and column of the concept vectors, largest contribution first."""
        family, names = scene.problem.family, list(value_matrices(target))
        totals = {split: dict.fromkeys(names, 0.0) for split in ("forget", "retain")}
        sums: dict[str, dict[str, Any]] = totals
        for split in sums:
            count = 0
            for batch in answers(scene, split, "value", self.batch_size):
                with _entering(target, names) as keys:
                    family.forward(target, batch)
                where = predicting(family, batch, batch.inputs["input_ids"].shape[1])
                wanted = embedding[batch.targets[batch.mask]]  # [P, d]
                count += len(wanted)
                for name in names:
                    values = value_matrices(target)[name].float()
                    given = keys[name][where].float()  # [P, m]
                    sums[split][name] = sums[split][name] + (given * (wanted @ values.T)).sum(0)
            for name in names:
                sums[split][name] = sums[split][name] / max(count, 1)
        ranked = [
            (float(value), name, j)
            for name in names
            for j, value in enumerate(sums["forget"][name] - sums["retain"][name])
        ]
        ranked.sort(key=lambda one: (-one[0], one[1], one[2]))
        return [(name, j) for _, name, j in ranked[: self.vectors]]

    @torch.no_grad()
    def check(self, scene: Scene, target: nn.Module, chosen: list[tuple[str, int]]) -> None:
        """Raise Undefined unless noise on the chosen columns costs forgotten answers more than retained ones."""
        plain = {split: self._logp(scene, target, split) for split in ("forget", "retain")}
        lost = {split: np.zeros(len(value)) for split, value in plain.items()}
        for draw in range(self.draws):
            noisy, generator = clone(target), scene.workplace.generator(73, draw)
            values = value_matrices(noisy)
            for name, j in chosen:
                column = values[name][j]
                drawn = torch.randn(column.shape, generator=generator).to(column)
                column += self.noise * column.norm() * drawn / drawn.norm()
            for split in lost:
                lost[split] += (plain[split] - self._logp(scene, noisy, split)) / self.draws
        found: Any = stats.ttest_ind(lost["forget"], lost["retain"], equal_var=False, alternative="greater")
        if not found.pvalue < 0.05:  # NaN where nothing varies
            raise Undefined(
                f"noise on the {len(chosen)} vectors that add most to the forgotten answers costs them no more than retained "
                f"ones in the target ({lost['forget'].mean():.3f} and {lost['retain'].mean():.3f} nats): none is the concept's"
            )

    def _logp(self, scene: Scene, model: nn.Module, split: str) -> np.ndarray:
        family = scene.problem.family
        parts = [
            mean_logp(family, family.forward(model, batch).prediction, batch).double().cpu().numpy()
            for batch in answers(scene, split, "value", self.batch_size)
        ]
        return np.concatenate(parts)

    @torch.no_grad()
    def effect(self, scene: Scene, chosen: list[tuple[str, int]]) -> Score:
        """Knowledge lost by zeroing the columns, forget less retain."""
        without = clone(scene.model)
        values = value_matrices(without)
        for name, j in chosen:
            values[name][j].zero_()
        family, lost = scene.problem.family, {}
        for split in ("forget", "retain"):
            parts = []
            for batch in answers(scene, split, "value", self.batch_size):
                known = [
                    knowledge_in(family, family.forward(m, batch), batch) for m in (scene.model, without)
                ]
                parts.append(known[0] - known[1])
            lost[split] = np.concatenate(parts)
        return self.score(
            "concept-vectors-effect",
            Estimate(float(np.nanmean(lost["forget"]) - np.nanmean(lost["retain"])), len(lost["forget"])),
        )


@dataclass(frozen=True)
class Trace:
    """What became of one vector."""

    jaccard: float
    cosine: float
    distance: float
    precise: float
    """NaN where the vector promoted no token of the concept before."""


def compare(before: Tensor, after: Tensor, embedding: Tensor, concept: set[int], k: int) -> Trace:
    """The intrinsic metrics of a vector `[d]` before and after, by its projection on `embedding` `[V, d]`."""
    old, new = (set((embedding @ v).topk(k).indices.tolist()) for v in (before, after))
    gone = not bool(after.any())
    if gone:  # all tokens tie: none is promoted
        new = set()
    cosine = 0.0 if gone else float(torch.cosine_similarity(before, after, dim=0).clamp(-1, 1))
    own = old & concept
    return Trace(
        len(old & new) / len(old | new),
        cosine,
        float((before - after).norm() / before.norm()),
        len(new & concept) / len(own) if own else float("nan"),
    )


def concept_tokens(scene: Scene, vocabulary: int) -> set[int]:
    """Tokens that are more than twice as frequent in the forgotten answers as in the retained ones."""
    shares = {}
    for split in ("forget", "retain"):
        batches = scene.workplace.batches(scene.problem, split).sequential(256)
        counts = sum(
            np.bincount(batch.targets[batch.mask].cpu().numpy(), minlength=vocabulary) for _, batch in batches
        )
        shares[split] = counts / np.sum(counts)
    return set(np.flatnonzero(shares["forget"] > 2 * shares["retain"]).tolist())


def value_matrices(model: nn.Module) -> dict[str, Tensor]:
    """By name of the layer, its value vectors `[m, d]`: views of the weights of down-projections."""
    found = {}
    for name, module in innermost(model).named_modules():
        weight = getattr(module, "weight", None)
        if DOWN.search(name) and isinstance(weight, Tensor) and weight.dim() == 2:
            # GPT-2 and its kin store linear layers transposed.
            found[name] = weight.detach() if type(module).__name__ == "Conv1D" else weight.detach().T
    return found


@contextmanager
def _entering(model: nn.Module, names: list[str]) -> Iterator[dict[str, Tensor]]:
    """Catch what enters the named modules, `[B, positions, m]`."""
    modules, caught, handles = dict(innermost(model).named_modules()), {}, []
    try:
        for name in names:

            def hook(_module: nn.Module, inputs: tuple[Tensor, ...], name: str = name) -> None:
                caught[name] = inputs[0]

            handles.append(modules[name].register_forward_pre_hook(hook))
        yield caught
    finally:
        for handle in handles:
            handle.remove()
