"""What the benchmarks of published labeled images share: where they are read from, and made-up users."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from pydantic import Field

from expunge.data.benchmarks.base import Benchmark, split
from expunge.data.order import shuffled
from expunge.data.published import read_published
from expunge.data.users import dirichlet_users
from expunge.families import Architecture, Classifier, Images
from expunge.parameters import param
from expunge.problem import Problem, Training


class LabeledImages(Benchmark):
    """Base of the benchmarks of a published image set with an official test part.

    The official test rows are halved, by their ids: one half to test on, one held out as non-members.
    """

    hub: ClassVar[str]
    """Id on the Hugging Face hub."""
    classes: ClassVar[list[str]]
    pictures: ClassVar[Images]
    """How models read them."""

    data_dir: str | None = Field(
        default=None,
        description="folder of the official files, of Parquet files as on the hub, or with folders train and test of "
        "pictures; default: read it from the Hugging Face hub",
    )
    size: int | None = Field(
        default=None,
        ge=1,
        description="how many of the training rows to use, drawn by their ids; default: all",
    )
    users: int = param(
        10,
        "how many made-up users own the training rows (column user: u00, u01, ...), to forget one with user:user=u03",
        source="ours: as many as classes",
        ge=1,
        le=1000,
    )
    concentration: float = param(
        0.5,
        "of the Dirichlet distribution that deals each class out to the users; small: few classes per user",
        source="Yurochkin et al., ICML 2019, arXiv:1905.12022",
        ge=0.05,
    )

    @abstractmethod
    def model_and_recipe(self) -> tuple[Architecture, Training]:
        """What is trained, and how."""

    def problem(self) -> Problem:  # noqa: D102
        train, test = read_published(self.title, self.data_dir, self.hub, self.classes)
        owners = dirichlet_users(train["id"][:], train["label"][:], self.users, self.concentration)
        train = train.add_column("user", owners)  # pyright: ignore
        if self.size is not None:
            train = train.select(sorted(shuffled(train["id"][:])[: self.size]))
        test, holdout = split(test, (len(test) // 2, len(test) - len(test) // 2))
        architecture, recipe = self.model_and_recipe()
        family = Classifier(self.pictures, self.classes)
        return self.assemble(family, train, test, holdout, architecture=architecture, recipe=recipe)
