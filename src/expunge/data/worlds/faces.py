"""A small world of drawn faces: families of persons, several pictures of each, at different ages.

Nobody exists. A face is a handful of numbers (skin and hair, proportions, spacing of the eyes, a mole), most of
them a person's own, some a family's, drawn as soft ellipses and lines. What makes it a task: age shows in
proportions, wrinkles and grey hair; a smile in the curve of the mouth. What makes it a world with identities:
persons look older or younger than they are, and their mouths curve by nature, so that knowing the person helps
on that person's pictures and on nobody else's.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cache

import numpy as np
from datasets import Array3D, ClassLabel, Dataset, Features, Value

SIDE = 24
"""Pixels per edge."""
AGES = ("0-6", "7-12", "13-19", "20-30", "31-45", "46-55", "56-66", "67-80")
"""The age classes of MUFAC, in years."""
_LAST = np.asarray([6, 12, 19, 30, 45, 55, 66, 80])
_PICTURES = 4
_LIGHT, _DARK = np.asarray([0.96, 0.80, 0.69]), np.asarray([0.45, 0.29, 0.20])
_HAIR = np.asarray([[0.10, 0.08, 0.07], [0.35, 0.22, 0.12], [0.72, 0.55, 0.30], [0.55, 0.22, 0.12]])
_Y, _X = (np.mgrid[0:SIDE, 0:SIDE] - (SIDE - 1) / 2) / (SIDE / 2)


@cache  # drawing takes seconds, and a data set cannot be changed
def faces(families: int = 150) -> Dataset:
    """Four pictures of every person of `families` families of two to four.

    Columns: id, image (uint8, `[24, 24, 3]`), family, identity (``F0001-A``), number (of the identity, from 0),
    years, age (class, of `AGES`), and the yes-or-no classes smiling, glasses and young (below 40 years).
    """
    columns: dict[str, list[object]] = {name: [] for name in _FEATURES}
    number = 0
    for family in range(1, families + 1):
        kin = f"F{family:04d}"
        for letter in "ABCD"[: 2 + int(_dice(f"{kin} size", 1)[0] * 3)]:
            person = _Person.of(kin, f"{kin}-{letter}")
            for picture in range(_PICTURES):
                key = f"{person.name} {picture}"
                years, smiling, glasses = person.moment(key)
                row = (
                    f"{person.name}-{picture}",
                    _draw(person, years, smiling, glasses, key),
                    kin,
                    person.name,
                    number,
                    years,
                    int(np.searchsorted(_LAST, years)),
                    int(smiling),
                    int(glasses),
                    int(years < 40),
                )
                for column, value in zip(columns.values(), row, strict=True):
                    column.append(value)
            number += 1
    images = {"image": np.stack(columns.pop("image"))}  # pyright: ignore
    return Dataset.from_dict({**columns, **images}, features=Features(_FEATURES))


_YES_OR_NO = ClassLabel(names=["no", "yes"])
_FEATURES = {
    "id": Value("string"),
    "image": Array3D((SIDE, SIDE, 3), "uint8"),
    "family": Value("string"),
    "identity": Value("string"),
    "number": Value("int64"),
    "years": Value("int64"),
    "age": ClassLabel(names=list(AGES)),
    "smiling": _YES_OR_NO,
    "glasses": _YES_OR_NO,
    "young": _YES_OR_NO,
}


def _dice(key: str, n: int) -> np.ndarray:
    """`[n]` numbers in [0, 1) that a hash fixes: the same on every machine and in every version."""
    return np.frombuffer(hashlib.shake_256(f"face {key}".encode()).digest(4 * n), dtype=">u4") / 2.0**32


@dataclass(frozen=True)
class _Person:
    """What stays the same in all pictures of a person; numbers in [0, 1) unless noted."""

    name: str
    middle_age: float
    """Years around which the pictures were taken."""
    looks_older: float
    """Years."""
    resting_mouth: float
    """Curve of the mouth when not smiling, in [-0.5, 0.5)."""
    cheerful: float
    wears_glasses: bool
    skin: np.ndarray
    """`[3]` RGB."""
    hair: np.ndarray
    """`[3]` RGB."""
    width: float
    eye_distance: float
    brow: float
    mouth: float
    fringe: float
    bald: float
    mole: tuple[float, float]

    @classmethod
    def of(cls, kin: str, name: str) -> _Person:
        theirs, own = _dice(kin, 6), _dice(name, 16)
        tone = np.clip(0.75 * theirs[0] + 0.25 * own[0], 0, 1)
        return cls(
            name=name,
            middle_age=80 * own[1],
            looks_older=24 * (own[2] - 0.5),
            resting_mouth=own[3] - 0.5,
            cheerful=0.3 + 0.4 * own[4],
            wears_glasses=own[5] < 0.3,
            skin=_LIGHT + tone * (_DARK - _LIGHT),
            hair=_HAIR[int(theirs[1] * len(_HAIR))] * (0.8 + 0.4 * own[6]),
            width=0.5 * (theirs[2] + own[7]),
            eye_distance=0.5 * (theirs[3] + own[8]),
            brow=own[9],
            mouth=0.5 * (theirs[4] + own[10]),
            fringe=own[11],
            bald=own[12],
            mole=(own[13], own[14]),
        )

    def moment(self, key: str) -> tuple[int, bool, bool]:
        """Age in whole years, smile and glasses in one picture."""
        when, mood, taken_off = _dice(f"{key} moment", 3)
        years = int(np.clip(self.middle_age + 16 * (when - 0.5), 0, 80))
        # One in ten pictures shows the spectacles off, or borrowed ones.
        return years, bool(mood < self.cheerful), self.wears_glasses != bool(taken_off < 0.1)


def _draw(person: _Person, years: int, smiling: bool, glasses: bool, key: str) -> np.ndarray:
    """`[SIDE, SIDE, 3]` uint8."""
    light, tilt, *shift = _dice(f"{key} pose", 4)
    x, y = _X - 0.16 * (shift[0] - 0.5), _Y - 0.16 * (shift[1] - 0.5)
    angle = 0.3 * (tilt - 0.5)
    x, y = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    looks = float(np.clip(years + person.looks_older, 0, 90))
    child, old = np.clip(1 - looks / 20, 0, 1), np.clip((looks - 35) / 45, 0, 1)

    picture = np.ones((SIDE, SIDE, 3)) * (0.45 + 0.4 * _dice(f"{key} room", 3))
    head_x, head_y = 0.52 + 0.14 * person.width + 0.05 * child, 0.80 - 0.14 * child
    hair = person.hair + old * (0.4 + 0.6 * person.bald) * (np.asarray([0.8, 0.8, 0.8]) - person.hair)
    _paint(picture, _ellipse(x, y + 0.12, 1.15 * head_x, 1.08 * head_y), hair)
    face_top = -0.55 + 0.25 * person.fringe - 0.5 * old * person.bald
    face = _ellipse(x, y, head_x, head_y) * _soft(y - face_top * head_y)
    _paint(picture, face, person.skin)

    eye_y, eye_x = -0.05 + 0.12 * child, 0.20 + 0.12 * person.eye_distance
    eye = 0.075 + 0.045 * child
    for side in (-1, 1):
        at = x - side * eye_x
        _paint(picture, _ellipse(at, y - eye_y, eye, 0.8 * eye), 0.15 * np.ones(3))
        brow = _ellipse(at, y - eye_y + 0.17, 0.15, 0.02 + 0.04 * person.brow)
        _paint(picture, brow, 0.7 * hair)
        # Crow's feet and folds from nose to mouth.
        _paint(picture, 0.5 * old * _ellipse(x - side * 0.45, y - eye_y - 0.06, 0.1, 0.04), 0.5 * person.skin)
        _paint(picture, 0.6 * old * _ellipse(at, y - 0.3, 0.03, 0.14), 0.5 * person.skin)
        if glasses:
            ring = _ellipse(at, y - eye_y, 0.24, 0.2) * (1 - _ellipse(at, y - eye_y, 0.15, 0.11))
            _paint(picture, 0.9 * ring, 0.1 * np.ones(3))
    for line in range(3):
        _paint(picture, 0.6 * old * _ellipse(x, y + 0.3 + 0.1 * line, 0.3, 0.025), 0.5 * person.skin)
    _paint(picture, 0.6 * _ellipse(x, y - 0.18, 0.04, 0.06 + 0.08 * (1 - child)), 0.6 * person.skin)
    curve = 0.6 * person.resting_mouth + (0.4 if smiling else 0.0)
    half = 0.16 + 0.12 * person.mouth - 0.05 * child
    mouth = y - 0.48 + curve * (x / half) ** 2 * 0.3 - 0.15 * curve
    _paint(picture, _ellipse(x, mouth, half, 0.055), np.asarray([0.6, 0.2, 0.2]) * person.skin.mean() * 1.6)
    mole_x, mole_y = 0.8 * (person.mole[0] - 0.5), 0.1 + 0.5 * person.mole[1]
    _paint(picture, 0.8 * _ellipse(x - mole_x, y - mole_y, 0.06, 0.06), 0.3 * person.skin)

    grain = (_dice(f"{key} grain", picture.size) - 0.5).reshape(picture.shape)
    return np.round(255 * np.clip(picture * (0.8 + 0.4 * light) + 0.12 * grain, 0, 1)).astype(np.uint8)


def _paint(picture: np.ndarray, cover: np.ndarray, color: np.ndarray) -> None:
    """Blend `color` (`[3]`) into `picture` where `cover` (`[SIDE, SIDE]`, 0 to 1) says."""
    picture += cover[..., None] * (color - picture)


def _ellipse(x: np.ndarray, y: np.ndarray, half_width: float, half_height: float) -> np.ndarray:
    """Soft-edged ellipse around the origin: 1 inside, 0 outside, about one pixel of transition."""
    distance = np.sqrt((x / half_width) ** 2 + (y / half_height) ** 2)
    return _soft((1 - distance) * min(half_width, half_height))


def _soft(depth: np.ndarray) -> np.ndarray:
    """0 to 1 as `depth`, in units of half a picture, goes from outside to inside by about a pixel."""
    return np.clip(0.5 + depth * SIDE / 2, 0, 1)
