"""Soft prompts: vectors before the question, trained on some forgotten rows and tried on the others."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from expunge.attacks.asking import Asked, Asker, batches, language_of, require_rows, scored, without_questions
from expunge.attacks.base import Attack, Measure, Scene
from expunge.attacks.vectors import divided, embedding_of, placed, with_room
from expunge.metrics.base import Estimate
from expunge.parameters import param
from expunge.problem import Problem
from expunge.record import Curve, Score
from expunge.stats.intervals import t_interval


class SoftPrompt(Attack):
    """k trained vectors stand before the question in the place of token embeddings; the model is left as it is.

    They begin as the embeddings of random tokens and descend by Adam on the mean loss per token of the true answers of
    some forget rows, in random batches. They are measured by knowledge (share of the answer's tokens that are the
    most likely ones given the true ones before) of the other forget rows: vectors can make any model say what they were
    trained to make it say, so that the fit to their own rows, reported beside it, shows nothing. The curve goes
    over steps, 0 being the question without vectors; the value is that of the best point, for retrained models too.

    The control is what the same vectors do to never-seen rows (holdout): a general rise, of form rather than content,
    lifts both.

    Deviation: Schwinn et al. train vectors for one answer each, towards an affirmative beginning. Of a composed model the
    base gets the vectors, its other parts an unused token in their place.
    """

    name = "soft-prompt"
    paper = (
        "Schwinn et al., NeurIPS 2024, arXiv:2402.09063; controls after Chen et al. 2025, arXiv:2502.15836"
    )
    threat_model = (
        "weights (gradients with respect to inputs); some of the forgotten questions with their answers"
    )
    access = "weights"
    families = frozenset({"causal_lm"})
    trains = True  # a prompt, at the cost of training
    costly = True
    measures = (
        Measure(
            "soft-prompt-knowledge",
            "Mean over the forget rows that the vectors were not trained on of the share of the answer's tokens that are "
            "the most likely ones, at the best step, 0 among them; curve by steps. Interval: t over rows.",
            "share",
            title="Knowledge under a soft prompt",
            low=0.0,
            high=1.0,
            margin=0.05,
        ),
        Measure(
            "soft-prompt-control",
            "The same of holdout rows, at their own best step: what the vectors bring out that was never there.",
            "share",
            split="holdout",
            title="Knowledge of never-seen rows under a soft prompt",
            low=0.0,
            high=1.0,
        ),
        Measure(
            "soft-prompt-fit",
            "The same of the rows that the vectors were trained on, after the last step: whether the training worked.",
            "share",
            title="Fit of the soft prompt to its own rows",
            low=0.0,
            high=1.0,
        ),
    )

    vectors: int = param(
        10, "trained vectors", source="Chen et al. 2025: 1 to 10 suffice to say anything", ge=1
    )
    rows: int = param(64, "forget rows to train on, at most half of them", source="ours", ge=1)
    steps: int = param(100, "steps of Adam", source="ours", ge=1)
    lr: float = param(0.02, "learning rate", source="ours; 0.001 to 0.01 are usual for large models", gt=0)
    batch_size: int = param(16, "rows per step", source="ours", ge=1)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        return super().obstacles(problem) + without_questions(problem)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"steps": self.steps, "vectors": self.vectors, "forget rows": self.rows}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        known, other = (self.questions(scene, "forget"), self.questions(scene, "holdout"))
        own, rest = divided(scene, len(known), self.rows, 63)
        held, asked = [known[i] for i in own], [known[i] for i in rest]
        curves: dict[str, list[np.ndarray]] = {"knowledge": [self.knowledge(scene, asked, None)]}
        curves["control"] = [self.knowledge(scene, other, None)] if other else []
        at, vectors = [0], self.start(scene)
        for done, better in self.descend(scene, held, vectors):
            at, vectors = [*at, done], better
            curves["knowledge"].append(self.knowledge(scene, asked, vectors))
            if other:
                curves["control"].append(self.knowledge(scene, other, vectors))
        fit = self.knowledge(scene, held, vectors)
        for one, before, after in zip(asked, curves["knowledge"][0], curves["knowledge"][-1], strict=True):
            scene.keep(
                one.id,
                asked=one.words,
                truth=one.truth,
                knowledge=float(before),
                knowledge_after=float(after),
            )
        return [
            self.best_step("soft-prompt-knowledge", at, curves["knowledge"]),
            self.best_step("soft-prompt-control", at, curves["control"])
            if other
            else self.undefined("soft-prompt-control", "no never-seen rows (holdout) fit in as a control"),
            self.score(
                "soft-prompt-fit",
                Estimate(float(np.nanmean(fit)), len(fit), t_interval(fit, over="examples")),
            )
            if np.isfinite(fit).all()
            else self.undefined("soft-prompt-fit", "with the vectors the model's outputs are not finite"),
        ]

    def questions(self, scene: Scene, split: str) -> list[Asked]:
        """The rows of a split as questions that leave room for the vectors; none where there is no such split."""
        if split not in scene.problem.splits:
            return []
        asker = Asker(language_of(scene.problem), self.vectors)
        rows = [asker.ask(row) for row in require_rows(scene.problem, split)]
        return [one for one in rows if one is not None]

    def start(self, scene: Scene) -> Tensor:
        """`[k, d]` embeddings of random tokens."""
        embedding = embedding_of(scene.model)
        n = len(language_of(scene.problem).tokenizer)
        ids = torch.randint(n, (self.vectors,), generator=scene.workplace.generator(64))
        with torch.no_grad():
            return embedding(ids.to(scene.workplace.device)).float()

    def descend(self, scene: Scene, held: Sequence[Asked], start: Tensor) -> Iterator[tuple[int, Tensor]]:
        """Steps and vectors after a quarter, a half and all of the steps."""
        family, embedding = language_of(scene.problem), embedding_of(scene.model)
        slots = self._slots(scene, held)
        vectors = start.clone().requires_grad_(True)
        optimizer = torch.optim.Adam([vectors], self.lr)
        stops = {max(1, self.steps * part // 4) for part in (1, 2, 4)}
        generator = scene.workplace.generator(65)
        for step in range(1, self.steps + 1):
            chosen = torch.randperm(len(slots), generator=generator)[: self.batch_size].tolist()
            with torch.enable_grad():
                total = count = torch.zeros(())
                for _, batch in batches(family, [slots[i] for i in chosen], self.batch_size):
                    batch = batch.to(scene.workplace.device)
                    with placed(embedding, vectors, [len(family.begin)] * len(batch)):
                        outputs = family.forward(scene.model, batch)
                    total = total + family.nll(outputs, batch).sum()
                    count = count + family.terms(batch).sum()
                # By the vectors alone: the model's own gradients are left as they were.
                (vectors.grad,) = torch.autograd.grad(total / count, [vectors])
            optimizer.step()
            if step in stops:
                yield step, vectors.detach().clone()

    def knowledge(self, scene: Scene, asked: Sequence[Asked], vectors: Tensor | None) -> np.ndarray:
        """`[n]` knowledge of the rows, behind the vectors where there are some."""
        family, device = language_of(scene.problem), scene.workplace.device
        if vectors is None:
            return scored(family, scene.model, asked, device)[1]
        with torch.no_grad(), placed(embedding_of(scene.model), vectors, [len(family.begin)]):
            return scored(family, scene.model, self._slots(scene, asked), device)[1]

    def _slots(self, scene: Scene, asked: Sequence[Asked]) -> list[Asked]:
        family = language_of(scene.problem)
        return [with_room(one, len(family.begin), [family.pad] * self.vectors) for one in asked]

    def best_step(self, name: str, at: Sequence[int], values: Sequence[np.ndarray]) -> Score:
        """The measure at the step where its mean is largest, with its curve over steps; `values` are `[n]` per point."""
        counted = np.isfinite(np.stack(values)).all(0)
        if not counted.any():
            return self.undefined(name, "no answer has anything to grade, or the model has diverged")
        means = [float(v[counted].mean()) for v in values]
        best = values[int(np.argmax(means))][counted]
        curve = Curve(over="steps", at=[float(a) for a in at], values=list(means))
        return self.score(
            name, Estimate(float(best.mean()), len(best), t_interval(best, over="examples")), curve
        )
