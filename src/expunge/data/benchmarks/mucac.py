"""MUCAC: forgetting persons whom a classifier of facial attributes was trained on."""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features, Value
from pydantic import Field

from expunge.data.benchmarks.base import Benchmark
from expunge.data.benchmarks.mufac import PUBLISHED_SIDE, FaceModel, face_images, face_model
from expunge.data.pictures import read_pictures
from expunge.data.selection import Selection
from expunge.data.worlds.faces import SIDE, faces
from expunge.errors import BadInput
from expunge.families import Classifier
from expunge.problem import Problem

Attribute = Literal["smiling", "young", "glasses", "gender"]
_COLUMN: dict[Attribute, str] = {
    "smiling": "Smiling",
    "young": "Young",
    "glasses": "Eyeglasses",
    "gender": "Male",
}
"""The attribute's name in CelebA."""
_IDENTITIES, _ATTRIBUTES, _PICTURES = "CelebA-HQ-identity.txt", "CelebA-HQ-attribute.txt", "CelebA-HQ-img"

_CUTS, _DRAWN_CUTS = (190, 1250, 4855), (70, 130, 373)
"""Numbers of the first identities to forget, to retain and held out; those before are tested on."""


class Mucac(Benchmark):
    """Pictures of persons, a facial attribute to predict, and persons who want to be forgotten.

    Whoever smiles is not told by a smile, so forgetting a person is not forgetting a class (Choi & Na, 2023). The
    parts are cut by the number of the identity: nobody is in two of them.

    With `data_dir`, the published data: CelebA-HQ-identity.txt (lines of file and identity), CelebA-HQ-attribute.txt
    (a count, a line of names, then lines of file and -1 or 1 per attribute) and the folder CelebA-HQ-img, there or
    in CelebAMask-HQ/. Identities 190 to 1249 are forgotten and 1250 to 4854 retained (25,933 pictures together),
    those before tested on (2,065), those after held out (2,002, "unseen" there). All pictures are read and shrunk to
    128 pixels every time; give a folder of small ones to save minutes. Without `data_dir`, a world of drawn faces of
    the same shape, 443 identities. Numbers of the two cannot be compared.

    Deviations: one attribute is predicted where the publication also predicts three at once; no augmentation, so
    that every model of a study sees the same pixels.
    """

    name: ClassVar[str] = "mucac"
    title: ClassVar[str] = "Faces by attribute (MUCAC)"
    family: ClassVar[str] = "classifier"
    source: ClassVar[str] = (
        "Choi & Na, 2023, arXiv:2311.02240, on CelebA-HQ (Karras et al., ICLR 2018), or faces drawn by expunge"
    )
    license: ClassVar[str] = "drawn faces Apache-2.0; CelebA-HQ: non-commercial research only"
    version: ClassVar[int] = 1

    data_dir: str | None = Field(
        default=None, description="folder of the published lists and pictures; default: drawn faces"
    )
    attribute: Attribute = Field(
        default="smiling", description="what is predicted; gender only for the published pictures"
    )
    forget: Selection = Field(
        default=Selection.parse("where:request == forget"),
        description="what to forget, as a mapping or in short as user:identity=F0024-A",
    )
    model: FaceModel = Field(default="cnn", description="architecture of the classifier")

    def problem(self) -> Problem:  # noqa: D102
        if self.data_dir is None:
            if self.attribute == "gender":
                raise BadInput(
                    "the drawn faces have no gender; choose smiling, young or glasses, or give data_dir"
                )
            data, cuts, side = faces(), _DRAWN_CUTS, SIDE
        else:
            data, cuts = _published(Path(self.data_dir), self.attribute), _CUTS
            side = PUBLISHED_SIDE
        number = np.asarray(data["number"][:])
        train = data.select(np.flatnonzero((number >= cuts[0]) & (number < cuts[2])))
        requests = ["forget" if n < cuts[1] else "retain" for n in train["number"][:]]
        architecture, recipe = face_model(self.model, side, 2)
        return self.assemble(
            Classifier(face_images(side), ["no", "yes"], target=self.attribute),
            train.add_column("request", requests),  # pyright: ignore
            data.select(np.flatnonzero(number < cuts[0])),
            data.select(np.flatnonzero(number >= cuts[2])),
            architecture=architecture,
            recipe=recipe,
        )


def _published(folder: Path, attribute: Attribute) -> Dataset:
    """All published rows, by identity; columns id, image, identity, number and the attribute."""
    folder = folder.expanduser()
    if not folder.is_dir():
        raise BadInput(f"no folder '{folder}' to read MUCAC from; check data_dir")
    identities = {file: int(number) for file, number in _lines(_find(folder, _IDENTITIES), 2)}
    values = _attribute(_find(folder, _ATTRIBUTES), attribute)
    unlabeled = sorted(set(identities) - set(values))
    if unlabeled:
        raise BadInput(
            f"{len(unlabeled)} pictures have no attributes in {_ATTRIBUTES} (first: '{unlabeled[0]}')"
        )
    files = sorted(identities, key=lambda file: (identities[file], file))
    pictures = _find(folder, _PICTURES)
    numbers = [identities[file] for file in files]
    return Dataset.from_dict(
        {
            "id": files,
            "image": read_pictures([pictures / file for file in files], PUBLISHED_SIDE),
            "identity": [str(n) for n in numbers],
            "number": numbers,
            attribute: [int(values[file] > 0) for file in files],
        },
        features=Features(
            {
                "id": Value("string"),
                "image": Array3D((PUBLISHED_SIDE, PUBLISHED_SIDE, 3), "uint8"),
                "identity": Value("string"),
                "number": Value("int64"),
                attribute: ClassLabel(names=["no", "yes"]),
            }
        ),
    )


def _find(folder: Path, name: str) -> Path:
    found = next((p for p in (folder / name, folder / "CelebAMask-HQ" / name) if p.exists()), None)
    if found is None:
        raise BadInput(
            f"'{folder}' holds no {name}; MUCAC needs {_IDENTITIES}, {_ATTRIBUTES} and {_PICTURES}"
        )
    return found


def _lines(path: Path, width: int) -> list[list[str]]:
    """The words of every line, which must be `width`."""
    rows = [line.split() for line in path.read_text().splitlines() if line.strip()]
    wrong = next((i for i, row in enumerate(rows) if len(row) != width), None)
    if wrong is not None:
        raise BadInput(f"'{path}' line {wrong + 1} has {len(rows[wrong])} words instead of {width}")
    return rows


def _attribute(path: Path, attribute: Attribute) -> dict[str, int]:
    """-1 or 1 by file."""
    content = path.read_text().splitlines()
    names = content[1].split() if len(content) > 1 else []
    if _COLUMN[attribute] not in names:
        raise BadInput(
            f"'{path}' names no attribute '{_COLUMN[attribute]}' in its second line, as the lists of CelebA do"
        )
    at = 1 + names.index(_COLUMN[attribute])
    rows = (line.split() for line in content[2:] if line.strip())
    return {row[0]: int(row[at]) for row in rows}
