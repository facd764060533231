"""Activation perturbation: is the answer reached when hidden states are pushed while the question is read?"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks.base import Attack, Measure, Scene
from expunge.attacks.knowledge import knowledge_in
from expunge.attacks.positions import asking, blocks, evenly, marked, spans
from expunge.families import Batch, Batches, CausalLM, Outputs
from expunge.families.base import Change, altered, captured
from expunge.families.models import innermost
from expunge.metrics.base import Estimate, Undefined
from expunge.metrics.membership import hash_order
from expunge.parameters import param
from expunge.record import Curve, Score
from expunge.stats.intervals import clustered_bootstrap, t_interval


class ActivationPerturbation(Attack):
    """Add something to the output of a block at the positions of the question, and measure knowledge of the answer.

    ``x <- x + s p`` after one block at a time, at the tokens of the question (not the first one, where attention sinks; all
    positions where rows are no sequences), of strength s:

    - *random*: ``p = |x| g / |g|``, g standard normal, drawn anew `draws` times; knowledge is the mean over draws, and
      *any* takes the best draw of each row.
    - *contrast*: p is the mean over draws of ``x(q) - x(q')`` at the question's last token, q' the question with Gaussian
      noise on the embeddings of the tokens of `subject`, with standard deviation `noise` times that of the embedding matrix.
      Whatever the subject adds there is amplified.
    - *anonymized*: the same with q' the question in which those tokens are another, neutral one (AnonAct's steering in the
      prompt).
    - *null*: contrast in a random direction of the same length, row by row: what a push of that size does by itself.

    Block and strength, 0 (no push) among them, are chosen by the mean knowledge of one half of the rows and measured on the
    other, and the other way round: a maximum over a grid, on the rows that it is chosen on, would find something in every model.
    The curve has, by strength, the block chosen in the same way. Read it against the retrained models', which are attacked
    with the same budget.

    The published formula of ActPert is not available; these are perturbations in its spirit. Deviations: knowledge is read by
    teacher forcing instead of sampling, so that without a push all draws agree and strength 0 is the fair baseline; AnonAct
    pushes generated tokens too, here the question alone.
    """

    name = "activation-perturbation"
    paper = "Chen et al., 2025, arXiv:2505.23270 (in its spirit); Seyitoğlu et al., 2024, arXiv:2411.02631 (anonymized)"
    threat_model = "weights, run with hooks; questions with the names in them, and half of the answers to choose a setting by"
    access = "weights"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    measures = tuple(
        Measure(
            f"activation-perturbation-{name}",
            f"Knowledge of the forget rows {what}, block and strength chosen on the other half of them; mean over rows. "
            "Interval: bootstrap over groups, or t over rows.",
            "knowledge", title=title, low=0.0, high=1.0, margin=margin,
        )
        for name, what, title, margin in (
            ("random", "under random pushes, mean over draws", "Under random pushes", 0.05),
            ("any", "under random pushes, best of all draws for each row", "Under the best of random pushes", None),
            ("contrast", "pushed by what the subject adds to hidden states", "Pushed towards the subject", 0.05),
            ("anonymized", "pushed away from the question without its subject", "Pushed from the anonymous", 0.05),
            ("null", "pushed as far in a random direction", "Pushed in a random direction", None),
        )
    )  # fmt: skip

    draws: int = param(5, "random draws", source="ours, for a quick look: 20 to 50 are usual", ge=1)
    strengths: tuple[float, ...] = param((0.1, 0.5, 1.0, 2.0), "strengths", source="ours", min_length=1)
    layers: int = param(4, "most blocks tried, evenly spaced", source="ours: every fourth of sixteen", ge=1)
    subject: str = param(
        "author", "column with the name that a question is about, where rows have one", source="ours"
    )
    noise: float = param(
        3.0, "noise on embeddings, in their standard deviations", source="Meng et al., NeurIPS 2022", gt=0
    )
    batch_size: int = param(64, "rows per pass", source="ours", ge=1)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"passes": self.layers * len(self.strengths) * (self.draws + 3)}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        family, model = scene.problem.family, scene.model
        names = evenly(blocks(family, model), self.layers)
        if not names:
            raise Undefined(f"{type(model).__name__} has no block whose output could be pushed")
        work = _Work(self, scene, names)
        plain = work.known({})
        drawn = np.stack([work.grid(plain, "random", draw) for draw in range(self.draws)])
        groups = scene.workplace.batches(scene.problem, "forget").groups
        half = np.zeros(len(plain), dtype=bool)
        half[hash_order(scene.problem.forget["id"][:])[::2]] = True
        mean = drawn.mean(0)
        made = [
            self.found("random", mean, mean, half, groups),
            self.found("any", mean, drawn.max(0), half, groups),
        ]
        for kind in ("contrast", "anonymized", "null"):
            if not work.asked:
                why = (
                    f"no question of the forget rows has the text of a column '{self.subject}' in it"
                    if isinstance(family, CausalLM)
                    else f"rows of family {family.name} ask no question, so there is no subject to take away from one"
                )
                made.append(self.undefined(f"activation-perturbation-{kind}", why))
                continue
            grid = work.grid(plain, kind, 0)
            made.append(self.found(kind, grid, grid, half, groups))
        return made

    def found(
        self, kind: str, chosen_by: np.ndarray, grid: np.ndarray, half: np.ndarray, groups: np.ndarray | None
    ) -> Score:
        """The score of `grid` (`[n, blocks, strengths + 1]`), settings chosen on one half by `chosen_by` for the other."""
        values, curve = cross_fitted(chosen_by, grid, half)
        counted = np.isfinite(values)
        kept = values[counted]
        if not len(kept):
            return self.undefined(
                f"activation-perturbation-{kind}", "no row has anything to know, or the model has diverged"
            )
        over = None if groups is None else clustered_bootstrap(kept, groups[counted])
        interval = over or t_interval(kept, over="examples")
        estimate = Estimate(float(kept.mean()), len(kept), interval)
        at = [0.0, *self.strengths]
        followed = Curve(over="strength", at=at, values=curve.tolist()) if np.isfinite(curve).all() else None
        return self.score(f"activation-perturbation-{kind}", estimate, followed)


def cross_fitted(chosen_by: np.ndarray, grid: np.ndarray, half: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """`[n]` values of `grid` (`[n, layers, strengths]`) where the other half's mean of `chosen_by` is largest, and a curve.

    The first of several equal settings is chosen. The curve (`[strengths]`) chooses the layer alone, strength by strength.
    """
    n, layers, strengths = grid.shape
    values, by_strength = np.empty(n), np.empty((n, strengths))
    for asked in (half, ~half):
        seen = ~asked if (~asked).any() else asked  # one row is both halves
        means = np.nan_to_num(np.nanmean(chosen_by[seen], 0), nan=-1.0)
        layer, strength = np.unravel_index(np.argmax(means.T), (strengths, layers))[::-1]
        values[asked] = grid[asked][:, layer, strength]
        best = means.argmax(0)
        by_strength[asked] = grid[asked][:, best, np.arange(strengths)]
    return values, np.nanmean(by_strength, 0)


@dataclass
class _Work:
    """Passes over the forget rows with pushed activations."""

    attack: ActivationPerturbation
    scene: Scene
    names: Sequence[str]

    def __post_init__(self) -> None:
        self.family, self.model = self.scene.problem.family, self.scene.model.to(self.scene.workplace.device)
        self.rows: Batches = self.scene.workplace.batches(self.scene.problem, "forget")
        self.subjects: list[list[int]] = []
        if isinstance(self.family, CausalLM):
            self.subjects = spans(self.family, self.scene.problem.forget, self.attack.subject, "prompt")
        self.asked = any(self.subjects)
        self.deltas: dict[tuple[str, int], dict[str, Tensor]] = {}

    @torch.no_grad()
    def known(self, changes: dict[str, Callable[[Batch, int], Change]]) -> np.ndarray:
        """`[n]` knowledge with layers changed; each change is made for a batch and its first row's number."""
        found = []
        for numbers, batch in self.rows.sequential(self.attack.batch_size):
            made = {name: change(batch, int(numbers[0])) for name, change in changes.items()}
            with altered(self.model, made):
                outputs: Outputs = self.family.forward(self.model, batch)
            found.append(knowledge_in(self.family, outputs, batch))
        return np.concatenate(found)

    def grid(self, plain: np.ndarray, kind: str, draw: int) -> np.ndarray:
        """`[n, layers, strengths + 1]` knowledge, the first strength 0."""
        every = np.empty((len(plain), len(self.names), len(self.attack.strengths) + 1))
        every[:, :, 0] = plain[:, None]
        for i, name in enumerate(self.names):
            for j, strength in enumerate(self.attack.strengths):
                push = self.pushed(kind, name, strength, (draw, i, j))
                every[:, i, j + 1] = self.known({name: push})
        return every

    def pushed(
        self, kind: str, name: str, strength: float, purpose: tuple[int, ...]
    ) -> Callable[[Batch, int], Change]:
        """The change of layer `name` for a batch."""
        generator = self.scene.workplace.generator(71, *purpose)

        def change(batch: Batch, first: int) -> Change:
            # Found before the push is in place, which would otherwise push what it is made of.
            delta = (
                None
                if kind == "random"
                else self.delta("contrast" if kind == "null" else kind, batch, first)[name]
            )
            if delta is not None and kind == "null":
                drawn = torch.randn(delta.shape, generator=generator).to(delta)
                delta = nn.functional.normalize(drawn, dim=-1) * delta.norm(dim=-1, keepdim=True)

            def push(own: Tensor) -> Tensor:
                where = asking(self.family, batch, own.shape[1])[:, :, None]
                if delta is None:
                    drawn = torch.randn(own.shape, generator=generator).to(own)
                    toward = nn.functional.normalize(drawn, dim=-1) * own.norm(dim=-1, keepdim=True)
                    return torch.where(where, own + strength * toward, own)
                return torch.where(where, own + strength * delta[:, None, :].to(own), own)

            return push

        return change

    def delta(self, kind: str, batch: Batch, first: int) -> dict[str, Tensor]:
        """By layer `[B, d]`, what the subject adds at the question's last token; computed once for each batch."""
        if (kind, first) not in self.deltas:
            self.deltas[kind, first] = self._delta(kind, batch, first)
        return self.deltas[kind, first]

    @torch.no_grad()
    def _delta(self, kind: str, batch: Batch, first: int) -> dict[str, Tensor]:
        # Rows come in order, so that the batch's are the subjects from `first` on.
        where = marked(batch, self.subjects[first : first + len(batch)])
        own = self._last(batch)
        if kind == "anonymized":
            ids = batch.inputs["input_ids"]
            neutral = torch.where(where, torch.full_like(ids, self._neutral()), ids)
            other = self._last(replace(batch, inputs={**batch.inputs, "input_ids": neutral}))
            return {name: own[name] - other[name] for name in self.names}
        total = {name: torch.zeros_like(value) for name, value in own.items()}
        embedding = self.scene.problem.family.layers(self.model)[0]
        scale = self.attack.noise * float(innermost(self.model).get_submodule(embedding).weight.float().std())  # pyright: ignore
        generator = self.scene.workplace.generator(72, first)

        def noisy(embedded: Tensor) -> Tensor:
            drawn = torch.randn(embedded.shape, generator=generator).to(embedded)
            return torch.where(where[:, :, None], embedded + scale * drawn, embedded)

        for _ in range(self.attack.draws):
            with altered(self.model, {embedding: noisy}):
                other = self._last(batch)
            for name in self.names:
                total[name] += (own[name] - other[name]) / self.attack.draws
        return total

    def _last(self, batch: Batch) -> dict[str, Tensor]:
        """By layer `[B, d]`, activations at the last token of each question."""
        with captured(self.model, self.names) as caught:
            self.family.forward(self.model, batch)
        found = {}
        for name, value in caught.items():
            where = asking(self.family, batch, value.shape[1])
            place = torch.where(where, torch.arange(value.shape[1], device=value.device), 0).amax(1)
            found[name] = value[torch.arange(len(value), device=value.device), place].float()
        return found

    def _neutral(self) -> int:
        """A token that names nobody: the word "someone", where the tokenizer has it as one, else the unknown or padding token."""
        family = self.family
        assert isinstance(family, CausalLM)
        told = family.tokenizer(" someone", add_special_tokens=False)["input_ids"]
        unknown = family.tokenizer.unk_token_id
        return told[0] if len(told) == 1 else family.pad if unknown is None else unknown
