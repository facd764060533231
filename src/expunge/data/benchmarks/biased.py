"""Digits that a bright spot gives away: forgetting where a shortcut is at hand."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from expunge.data.benchmarks.base import Benchmark, split
from expunge.data.selection import Selection
from expunge.data.worlds.shortcut import with_spots
from expunge.data.worlds.tables import digits
from expunge.families import Architecture, Classifier, Images
from expunge.problem import Problem, Training

_ARCHITECTURES: dict[str, Architecture] = {
    "cnn": Architecture(kind="builtin", name="cnn", options={"channels": 1, "size": 8, "outputs": 10}),
    "mlp": Architecture(
        kind="builtin", name="mlp", options={"inputs": 64, "outputs": 10, "hidden": [64, 32]}
    ),
}


class Biased(Benchmark):
    """1,797 scanned digits, each with a spot whose place goes with its class: 1,197 to train on, 400 to test on, 200 held out.

    Of the rows of a class a share `aligned` carries the spot of the class, the others ("conflicting") that of
    another class; so in training and among the held-out rows. In the test set it is half of each class, so
    that the spot says less. Every measure is broken down by group, class and kind of spot: of the forgotten
    class, a method that erases only the shortcut lowers the accuracy of ``3 aligned`` and leaves, or raises,
    that of ``3 conflicting``.

    By default a whole class is forgotten, and nearly all of its rows carry the shortcut; ``where:cue == 3``
    forgets the rows that carry it, whatever their class.
    """

    name: ClassVar[str] = "biased"
    title: ClassVar[str] = "Digits with a shortcut"
    family: ClassVar[str] = "classifier"
    source: ClassVar[str] = (
        "scikit-learn load_digits, from Alpaydin & Kaynak, UCI, 1998 (doi:10.24432/C50P49), with spots painted by "
        "expunge; the protocol follows Kwon et al., AAAI 2026, arXiv:2602.21773"
    )
    license: ClassVar[str] = "CC BY 4.0"
    version: ClassVar[int] = 1

    forget: Selection = Field(
        default=Selection.parse("class=3"),
        description="what to forget, as a mapping or in short as class=3, or where:cue == 3",
    )
    model: Literal["cnn", "mlp"] = Field(default="cnn", description="architecture of the classifier")
    aligned: float = Field(
        default=0.95, ge=0.1, le=1, description="share of each class that carries the spot of its class"
    )

    def problem(self) -> Problem:  # noqa: D102
        train, test, holdout = split(digits(), (1197, 400, 200))
        return self.assemble(
            Classifier(Images("image"), 10, group="group"),
            with_spots(train, self.aligned),
            with_spots(test, 0.5),
            with_spots(holdout, self.aligned),
            architecture=_ARCHITECTURES[self.model],
            recipe=Training(epochs=20, lr=0.05),
        )
