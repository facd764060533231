"""Who's Harry Potter: learn what a model would say that had never read the forget set."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self

import torch
from pydantic import field_validator, model_validator
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Outputs
from expunge.families.base import Batch
from expunge.families.combined import Combined, Generic
from expunge.families.models import clone
from expunge.methods.anchors import (
    TRANSLATED,
    Chosen,
    alignments,
    check_anchors,
    choose,
    read_anchors,
    translated,
)
from expunge.methods.answers import language
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import Loop, fit
from expunge.methods.lora import LoRA
from expunge.methods.objective import Objective, State, Step
from expunge.methods.prune_then_unlearn import stage
from expunge.parameters import param
from expunge.problem import Problem, Training


class WHP(Method, Training):
    """Replace what the forget set taught by generic answers, found with a model that knows it even better.

    A copy of the target is trained further on the forget set (the reinforced model, logits v_r). What it makes more
    likely than the target (logits v_b) does is idiosyncratic, and is taken down:
    ``v = v_b - alpha * ReLU(v_r - v_b)``, element by element over the vocabulary.

    In the form ``train`` the target learns v on the forget set, ``min mean_forget( -ln p(y*|x) )`` over positions,
    with ``y* = argmax v`` (hard) or the whole softmax of v (soft, as KL divergence). The weights change, and one model
    is served. In the form ``inference`` nothing is trained but the reinforced model, and v is served: two models in
    memory, twice the time. That removes nothing: the target's weights are part of it.

    With both logits normalized to log-probabilities a shift of either changes nothing; ``normalized = false`` is
    the published arithmetic. ``alpha = 0`` learns, or serves, the target's own answers. Hard labels are noise where v is
    flat; other names of the same world can be among them.

    With `anchors`, in the form ``train``, terms of the text have generic counterparts. v_b is then what the target says in
    the text with all of them replaced, at the token that corresponds; where none does, what it says in the text itself.
    Nothing is learned at the second and later tokens of a term, at any token of a term that occurred before in the row, and
    where the label begins a replacement that stood for a term before: else a text would be taught to change its names half
    way. Such positions count as 0 in the mean. The paper has a large model write the dictionary; here it is given. The
    prompts that steer the paper's reinforced model are not part of it.
    """

    name = "whp"
    paper = "Eldan & Russinovich, 2023, arXiv:2310.02238; as inference alone in MUSE, arXiv:2407.06460"
    kind = "edit"
    needs = frozenset({"labels"})
    families = frozenset({"causal_lm", "classifier"})
    composes = True

    form: Literal["train", "inference"] = param(
        "train",
        "train the target on generic labels, or serve both models together",
        source="the paper: train",
    )
    alpha: float = param(
        5.0,
        "strength of what is taken down",
        source="the paper, as cited: 5; reference code of MUSE: 1",
        ge=0,
    )
    normalized: bool = param(
        True, "compare log-probabilities instead of raw logits", source="ours: raw logits have no common zero"
    )
    anchors: dict[str, str] | None = param(
        None,
        "generic counterpart of each term, whole words, case matters: a mapping, or the path of a JSON file with one",
        source="the paper: about 1,500, written by a large model",
    )
    labels: Literal["hard", "soft"] = param(
        "hard", "learn the most likely generic answer or the whole distribution", source="the paper: hard"
    )
    reinforcing_epochs: int = param(
        3, "passes of the reinforced model over the forget set", source="the paper, as cited: 3", ge=0
    )
    reinforcing_lr: float = param(
        1e-3, "learning rate of the reinforced model", source="ours: small models; the paper, 7B: 3e-6", ge=0
    )
    epochs: int = param(
        2, "passes over the forget set with generic labels", source="the paper, as cited: 2", ge=0
    )
    lr: float = param(1e-3, "learning rate", source="ours: small models; the paper, 7B: 1e-6", ge=0)
    batch_size: int = param(16, "examples per optimizer step", source="ours", ge=1)
    optimizer: Literal["sgd", "adam", "adamw", "rmsprop"] = param("adamw", "update rule", source="customary")
    weight_decay: float = param(0.0, "L2 coefficient (decoupled for adamw)", source="ours", ge=0)
    lora: LoRA | None = param(
        None, "train the labels into low-rank adapters and merge them; None trains the weights", source="ours"
    )

    @field_validator("anchors", mode="before")
    @classmethod
    def _read(cls, given: Any) -> Any:
        return read_anchors(given)

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.anchors is not None:
            check_anchors(self.anchors)
            if self.form == "inference":
                raise BadInput("whp: anchors belong to form train; with inference no text is replaced")
        return self

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        if self.form == "inference":
            return Combined([model, self.reinforced(problem, model, workplace)], self.rule)
        settings = {k: getattr(self, k) for k in Training.model_fields}
        place = stage(workplace, "relabel")
        made = Loop(_Imitation(whp=self, lora=self.lora, **settings), problem, model, place).run()
        workplace.adapter = place.adapter
        return made

    @property
    def rule(self) -> Generic:
        """What makes generic logits of the target's and the reinforced model's."""
        return Generic(alpha=self.alpha, normalized=self.normalized)

    def reinforced(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:
        """A copy of `model` that was trained further on the forget set."""
        recipe = self.replace(epochs=self.reinforcing_epochs, lr=self.reinforcing_lr)
        return fit(problem, clone(model), "forget", recipe, stage(workplace, "reinforce")).eval()


class _Imitation(Objective):
    """Learn on the forget set the generic answers that the method's rule finds."""

    reference_on = ("forget", TRANSLATED)

    whp: WHP

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        if self.whp.anchors:
            family = language(problem)
            state.attach(TRANSLATED, translated(family, problem.forget, self.whp.anchors))
            state.kept.update(alignments(family, problem.forget, self.whp.anchors))
        state.freeze("reinforced", self.whp.reinforced(problem, model, state.workplace), ("forget",))

    def loss(self, step: Step) -> dict[str, Tensor]:
        base, batch = step.reference("forget").prediction, step.forget
        chosen = self._chosen(step) if self.whp.anchors else None
        if chosen is not None:
            other = step.reference(TRANSLATED).prediction
            base = torch.where(chosen.known[..., None], other.gather(1, chosen.index(other)), base)
        generic = self.whp.rule([base, step.frozen("reinforced", "forget").prediction])
        labels, outputs = generic.argmax(-1), step.outputs("forget")
        if chosen is not None:
            batch = replace(batch, mask=batch.mask & chosen.learned & ~chosen.said(labels))
        if self.whp.labels == "soft":
            values = step.family.divergence(Outputs(generic), outputs, batch)
        else:
            values = step.family.nll(outputs, replace(batch, targets=labels))
        return {"forget": step.per_position("forget", values)}

    def _chosen(self, step: Step) -> Chosen:
        known = {row: i for i, row in enumerate(step.state.problem.forget["id"][:])}
        rows = torch.tensor([known[row] for row in step.forget.ids])
        own, other = (_first_target(step.batch(split)) for split in ("forget", TRANSLATED))
        return choose(
            step.state.kept, rows, own, step.forget.targets.shape[1], other, step.forget.targets.device
        )


def _first_target(batch: Batch) -> int:
    """Number of the token that the first position of a batch is about; batches are trimmed on both sides."""
    return batch.inputs["input_ids"].shape[1] - batch.targets.shape[1]
