"""Forgetting a digit, or heavy strokes, in a small GAN of handwritten digits."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
from datasets import Dataset
from pydantic import Field

from expunge.data.benchmarks.base import Benchmark, split
from expunge.data.concepts import shared_values
from expunge.data.selection import Selection
from expunge.data.worlds.digit_judges import all_digits, judge
from expunge.families import Architecture, Gan, Images
from expunge.parameters import param
from expunge.problem import Problem, Training

LATENT = 16

RECIPE = Training(
    epochs=160, lr=3e-3, batch_size=64, optimizer="rmsprop", weight_decay=0.0, schedule="linear", warmup=0.02
)  # fmt: skip
"""3,040 steps of both players, about a minute on one thread; half as many cover half as many real images."""


class GanMini(Benchmark):
    """1,797 scanned digits of 8x8 pixels: 1,197 to train a GAN on, 400 to compare its samples with, 200 held out.

    To be forgotten is a class (``class=3``) or a feature (``where:stroke == heavy``). Judges, trained on the same 1,197
    images, say what samples show; a guide with other layers and another seed, which methods may ask, was trained like them.

    `samples` are ids to draw from, `test` real images of what is to be kept, `concept` those of what is not.
    """

    name: ClassVar[str] = "gan-mini"
    title: ClassVar[str] = "Digits from a small GAN"
    family: ClassVar[str] = "gan"
    source: ClassVar[str] = (
        "scikit-learn load_digits, from Alpaydin & Kaynak, UCI, 1998 (doi:10.24432/C50P49)"
    )
    license: ClassVar[str] = "CC BY 4.0"
    version: ClassVar[int] = 1

    forget: Selection = Field(
        default=Selection.parse("class=3"),
        description="what to forget: class=DIGIT, where:stroke == heavy, or any other rows",
    )
    conditional: bool = Field(default=False, description="whether the GAN is told the class to draw")
    mapping: int = param(
        2, "layers from z to the latent that the generator reads; 0: it reads z", source="ours", ge=0
    )
    samples: int = param(1000, "samples by which shares are measured", source="ours", ge=10)

    def problem(self) -> Problem:  # noqa: D102
        train, test, holdout = split(all_digits(), (1197, 400, 200))
        judges = [judge("label", train), judge("stroke", train)]
        family = Gan(
            Images("image", channels=1, mean=[0.5], std=[0.5]), (1, 8, 8), LATENT, 10, conditional=self.conditional,
            judges=judges,
        )  # fmt: skip
        forget_ids, scope = self.forget.apply(train, family)
        alone = (shared_values(train, set(forget_ids), [column]) for column in ("label", "stroke"))
        concept = next((item for values in alone for item in values.items()), None)
        probes = {"test": test, "samples": self._samples()}
        if concept is not None:
            family.concept, (column, value) = concept, concept
            family.guide = judge(column, train, "guide")
            shown = np.asarray([str(v) == value for v in test[column][:]])
            probes |= {
                "test": test.select(np.flatnonzero(~shown)),
                "concept": test.select(np.flatnonzero(shown)),
            }
        options: dict[str, Any] = {"size": 8, "latent": LATENT, "mapping": self.mapping}
        return Problem(
            name=self.name,
            family=family,
            train=train,
            forget_ids=forget_ids,
            holdout=holdout,
            probes=probes,
            architecture=Architecture(
                kind="builtin", name="gan", options=options | ({"classes": 10} if self.conditional else {})
            ),
            recipe=RECIPE,
            scope=scope,
            source={"benchmark": self.name, "version": self.version, "data": self.source},
        )

    def _samples(self) -> Dataset:
        rows: dict[str, Any] = {"id": [f"sample-{i:04d}" for i in range(self.samples)]}
        if self.conditional:
            rows["label"] = [i % 10 for i in range(self.samples)]
        return Dataset.from_dict(rows)
