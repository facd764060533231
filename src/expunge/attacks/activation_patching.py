"""Activation patching: do the hidden states of an unlearned model still carry what a knowing model can use?"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks.base import Attack, Measure, Scene
from expunge.attacks.knowledge import knowledge_in
from expunge.attacks.positions import blocks, marked, predicting, spans
from expunge.errors import BadInput
from expunge.families import Batch, Batches, CausalLM, Family, Outputs
from expunge.families.base import Change, altered, captured
from expunge.metrics.base import Estimate, Undefined
from expunge.metrics.membership import hash_order
from expunge.parameters import param
from expunge.record import Curve, Score
from expunge.stats.intervals import t_interval


class ActivationPatching(Attack):
    """Paste hidden states of the attacked model into the target and of the target into it, block by block.

    Patched are the outputs of one block at a time, at the positions that predict the answer (all positions where rows are no
    sequences), as hooks see them: before any final normalization, with no cache. The answer is the text of `column`
    where a row has one that occurs in its answer, else the whole answer without its end-of-sequence token. M(l, S) is the target
    with block l's output from a model S.

    - *carried*: knowledge of M(l, attacked), mean over blocks: what the target can use of the attacked model's states.
    - *restored*: knowledge of the attacked model with the target's states, mean over blocks: what its own later blocks
      can still use. Late blocks hand over the target's answer whoever receives it: compare with retrained models.
    - *UDS* (Unlearning Depth Score): s(S, l) is the mean log-likelihood of the answer's tokens under M(l, S). With
      ``d1 = s(target, l) - s(retrained, l)``, ``d2 = s(target, l) - s(attacked, l)`` and the blocks that encode the
      answer, ``KE = {l : d1 > tau}``: ``sum_KE d1 clip(d2/d1, 0, 1) / sum_KE d1``, mean over rows, rows with empty KE left
      out, and over the retrained models of the scene. 1: as erased as by retraining; 0: intact. The value of a
      retrained model is what retraining itself gets against other ones.
    - *UDS, unclipped*: ``sum_KE d2 / sum_KE d1``, mean alike: above 1 where states were destroyed rather than erased.

    Patching means something only between models that grew from one start: in a model trained from other random weights
    the same block speaks another language, whatever it knows. So a model is compared only where its states let the target
    keep at least `fluency` of its knowledge of as many retained rows; everything else of it is undefined, and so is
    the UDS where no retrained model passes.

    Deviations: the reference code normalizes the last block's states twice, so that the target itself would not get 0;
    here it does. The paper has language models only; for others the log-likelihood is that of the label.
    """

    name = "activation-patching"
    paper = "Lee, Kim & Jo, 2026, arXiv:2605.24614 (UDS); Meng et al., NeurIPS 2022, arXiv:2202.05262 (causal tracing)"
    threat_model = (
        "weights of the attacked model and of the target before forgetting; for the UDS a retrained model too"
    )
    access = "weights"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    needs = frozenset({"retain"})
    compares = True
    measures = (
        Measure(
            "activation-patching-carried",
            "Knowledge of the forget rows that the target has with the attacked model's hidden states, mean over blocks "
            "and rows. Interval: t over rows.",
            "knowledge", title="Carried by hidden states", low=0.0, high=1.0, margin=0.05,
        ),
        Measure(
            "activation-patching-restored",
            "Knowledge of the forget rows that the attacked model has with the target's hidden states, mean over blocks "
            "and rows. Interval: t over rows.",
            "knowledge", title="Restored by the target's states", low=0.0, high=1.0, margin=0.05,
        ),
        Measure(
            "activation-patching-uds",
            "Unlearning Depth Score: share of the target's log-likelihood of the answer that is lost by patching retrained "
            "states and is lost as well by patching the attacked model's; mean over rows whose answer some block encodes. "
            "The curve has each block's ratio, weighted by d1 over rows. Interval: t over rows.",
            "share", title="Unlearning depth (UDS)", low=0.0, high=1.0, margin=0.05,
        ),
        Measure(
            "activation-patching-uds-unclipped",
            "The same without clipping ratios to [0, 1]: above 1 where more is lost than by retraining.",
            "share", title="Unlearning depth, unclipped",
        ),
    )  # fmt: skip

    tau: float = param(
        0.05, "least d1, in nats per token, of a block that encodes the answer", source="the paper", ge=0
    )
    column: str = param(
        "value",
        "column with the text that an answer is about, where rows have one",
        source="the paper: spans of entities, annotated",
    )
    fluency: float = param(
        0.5, "least share of the target's knowledge of retained rows that patched states must keep", source="ours", gt=0, le=1
    )  # fmt: skip
    batch_size: int = param(32, "rows per pass", source="the paper", ge=1)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"patched passes per block": 3}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        target = scene.problem.model
        if target is None:
            raise Undefined("the target was not given, into which states are patched")
        names = blocks(scene.problem.family, target)
        if not names:
            raise Undefined(f"{type(target).__name__} has no block whose output could be patched")
        kept = self.kept(scene, target, scene.model, names)
        if kept < self.fluency:
            raise Undefined(
                f"patched, the model's hidden states leave the target {kept:.2f} of its knowledge of retained rows, less than "
                f"{self.fluency}: they grew from another start, or were destroyed"
            )
        carried, lost = self.patched(scene, target, scene.model, names, "forget")
        restored, _ = self.patched(scene, scene.model, target, names, "forget")
        at = [float(i + 1) for i in range(len(names))]

        def score(name: str, known: np.ndarray) -> Score:
            curve = Curve(over="block", at=at, values=known.mean(0).tolist())
            return self.score(name, _estimate(known.mean(1)), curve)

        return [
            score("activation-patching-carried", carried),
            score("activation-patching-restored", restored),
            *self.depth(scene, target, names, lost, at),
        ]

    def depth(
        self, scene: Scene, target: nn.Module, names: list[str], lost: np.ndarray, at: list[float]
    ) -> list[Score]:
        """Both depth scores from d2 (`lost`, `[n, blocks]`); d1 is found for each retrained model of the scene."""

        def undefined(reason: str) -> list[Score]:
            names_of = ("activation-patching-uds", "activation-patching-uds-unclipped")
            return [self.undefined(name, reason) for name in names_of]

        if not scene.retrained:
            return undefined(
                "there is no retrained model to compare with (of a retrained model: no other one)"
            )
        fluent = [r for r in scene.retrained if self.kept(scene, target, r, names) >= self.fluency]
        if not fluent:
            return undefined(
                "no retrained model grew from the target's start, so that its hidden states could be patched"
            )
        found = [
            unlearning_depth(self.patched(scene, target, retrained, names, "forget")[1], lost, self.tau)
            for retrained in fluent
        ]
        rows = np.stack([depth.rows for depth in found]).any(0)
        if not rows.any():
            return undefined(
                f"no block encodes an answer: retrained states cost the target at most {self.tau} nats"
            )
        clipped, raw = (
            np.nanmean([getattr(depth, part)[rows] for depth in found], 0) for part in ("clipped", "raw")
        )
        curves = np.asarray([depth.by_block for depth in found])
        values = [float(np.nanmean(one)) if np.isfinite(one).any() else None for one in curves.T]
        return [
            self.score(
                "activation-patching-uds", _estimate(clipped), Curve(over="block", at=at, values=values)
            ),
            self.score("activation-patching-uds-unclipped", _estimate(raw)),
        ]

    def kept(self, scene: Scene, target: nn.Module, source: nn.Module, names: list[str]) -> float:
        """Share of the target's knowledge of retained rows that is left with states from `source`, mean over blocks."""
        with_own = self.patched(scene, target, target, names[:1], "retain")[0].mean()
        if with_own == 0:
            raise Undefined("the target knows nothing of the retained rows, so that no control is left")
        return float(self.patched(scene, target, source, names, "retain")[0].mean() / with_own)

    def patched(
        self, scene: Scene, receiver: nn.Module, source: nn.Module, names: list[str], split: str
    ) -> tuple[np.ndarray, np.ndarray]:
        """With patched states, knowledge of the rows and log-likelihood lost, nats per token, each `[n, blocks]`.

        Of the retained rows as many as are to be forgotten.
        """
        family = scene.problem.family
        known, lost = [], []
        receiver, source = (model.to(scene.workplace.device).eval() for model in (receiver, source))
        with torch.no_grad():
            for batch in answers(scene, split, self.column, self.batch_size):
                states = _states(family, source, batch, names)
                plain = mean_logp(family, family.forward(receiver, batch).prediction, batch)
                row_known, row_lost = [], []
                for name in names:
                    with altered(receiver, {name: _pasting(family, batch, name, states[name])}):
                        outputs = family.forward(receiver, batch)
                    row_known.append(knowledge_in(family, outputs, batch))
                    row_lost.append(plain - mean_logp(family, outputs.prediction, batch))
                known.append(np.stack(row_known, 1))
                lost.append(torch.stack(row_lost, 1).double().cpu().numpy())
        return np.concatenate(known), np.concatenate(lost)


@dataclass(frozen=True)
class Depth:
    """Unlearning depth by row and by block."""

    clipped: np.ndarray
    """`[n]`; NaN for rows that no block encodes."""
    raw: np.ndarray
    """`[n]` without clipping."""
    by_block: np.ndarray
    """`[blocks]` ratio of each block, weighted by d1 over rows; NaN where it encodes no row."""

    @property
    def rows(self) -> np.ndarray:
        """`[n]` bool: rows that some block encodes."""
        return np.isfinite(self.clipped)


def unlearning_depth(d1: np.ndarray, d2: np.ndarray, tau: float) -> Depth:
    """UDS from what retrained (`d1`) and attacked (`d2`) states cost the target, `[n, blocks]` each, in nats per token."""
    encodes = d1 > tau
    weight = np.where(encodes, d1, 0.0)
    ratio = np.where(encodes, d2 / np.where(encodes, d1, 1.0), 0.0)
    with np.errstate(invalid="ignore"):
        clipped = (weight * ratio.clip(0, 1)).sum(1) / weight.sum(1)
        raw = (weight * ratio).sum(1) / weight.sum(1)
        by_block = (weight * ratio.clip(0, 1)).sum(0) / weight.sum(0)
    return Depth(clipped, raw, by_block)


def answers(scene: Scene, split: str, column: str, batch_size: int) -> Iterator[Batch]:
    """Rows of which only the tokens of `column` count where they have it, and never the end of the sequence.

    Of the retained rows as many as are to be forgotten, by a hash of their ids.
    """
    family, rows = scene.problem.family, scene.problem.splits[split]
    if split == "retain":
        rows = rows.select(np.sort(hash_order(rows["id"][:])[: len(scene.problem.forget)]))
    batches = Batches(family, rows, scene.workplace.device)
    if not isinstance(family, CausalLM):
        yield from (batch for _, batch in batches.sequential(batch_size))
        return
    tokens = spans(family, rows, column, "completion")
    for numbers, batch in batches.sequential(batch_size):
        own = family.without_ends(batch)
        wanted = marked(batch, [tokens[i] for i in numbers.tolist()])[:, -batch.mask.shape[1] :] & own.mask
        mask = torch.where(wanted.any(1, keepdim=True), wanted, own.mask)
        yield replace(batch, mask=torch.where(mask.any(1, keepdim=True), mask, batch.mask))


def mean_logp(family: Family, prediction: Tensor, batch: Batch) -> Tensor:
    """`[B]` log-likelihood of the targets that count, nats per position."""
    return -family.nll(Outputs(prediction), batch) / family.terms(batch).clamp(min=1)


def _states(family: Family, source: nn.Module, batch: Batch, names: list[str]) -> dict[str, Tensor]:
    try:
        with captured(source, names) as caught:
            family.forward(source, batch)
    except BadInput as error:
        raise Undefined(f"target and attacked model are not built alike: {error}") from None
    return dict(caught)


def _pasting(family: Family, batch: Batch, name: str, states: Tensor) -> Change:
    def paste(own: Tensor) -> Tensor:
        if own.shape != states.shape:
            raise Undefined(
                f"target and attacked model are not built alike: '{name}' gives {tuple(own.shape[1:])} and "
                f"{tuple(states.shape[1:])}"
            )
        where = predicting(family, batch, own.shape[1])
        return torch.where(where[:, :, None], states.to(own), own)

    return paste


def _estimate(rows: np.ndarray) -> Estimate:
    return Estimate(float(rows.mean()), len(rows), t_interval(rows, over="examples"))
