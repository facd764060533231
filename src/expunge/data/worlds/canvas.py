"""A world of styles and objects: small images whose style and object are known exactly, and their prompts."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

SIDE = 16
STYLES = ("flat", "outline", "neon", "hatch", "thermal")
OBJECTS = ("disc", "square", "triangle", "cross", "ring", "moon")
LENGTH = 8
"""Tokens of a prompt, padding included."""

_GRID = 2 * SIDE

Shape = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def _disc(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.hypot(u, v) - r


def _square(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.abs(u), np.abs(v)) - 0.86 * r


def _triangle(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    inner = 0.575 * r
    return np.maximum(v - inner, np.maximum(0.866 * u - 0.5 * v, -0.866 * u - 0.5 * v) - inner)


def _cross(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    def bar(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.maximum(np.abs(a) - 0.32 * r, np.abs(b) - 1.1 * r)

    return np.minimum(bar(u, v), bar(v, u))


def _ring(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.abs(np.hypot(u, v) - 0.8 * r) - 0.24 * r


def _moon(u: np.ndarray, v: np.ndarray, r: np.ndarray) -> np.ndarray:
    return np.maximum(np.hypot(u, v) - 1.05 * r, 0.85 * r - np.hypot(u - 0.6 * r, v))


_SHAPES: dict[str, Shape] = {
    "disc": _disc, "square": _square, "triangle": _triangle, "cross": _cross, "ring": _ring, "moon": _moon,
}  # fmt: skip

_HEAT = np.asarray([[0.05, 0.05, 0.3], [0.45, 0.1, 0.6], [0.95, 0.5, 0.1], [1.0, 0.95, 0.35]])


def render(style: str, thing: str, n: int, seed: int, *, spread: float = 1.0) -> np.ndarray:
    """`[n, 3, 16, 16]` float32 images in -1 to 1 of one object in one style.

    Size, place, angle, hue and phase of each image are random. The style is applied to the signed distance from the
    object's outline on a grid twice as fine, which is then averaged; noise of standard deviation 0.02 is added.

    Args:
        style: one of `STYLES`.
        thing: one of `OBJECTS`.
        n: how many.
        seed: of this style and object; images of different seeds share nothing.
        spread: how far place and angle vary; 2 is what judges are trained on.
    """
    random = np.random.default_rng([seed, STYLES.index(style), OBJECTS.index(thing)])
    size = SIDE * random.uniform(0.28, 0.34, (n, 1, 1))
    angle = random.uniform(-0.1, 0.1, (n, 1, 1)) * spread
    shift = SIDE * random.uniform(-0.04, 0.04, (2, n, 1, 1)) * spread
    axis = (np.arange(_GRID) + 0.5) / 2 - SIDE / 2
    x, y = axis[None, None, :] - shift[0], axis[None, :, None] - shift[1]
    u, v = np.cos(angle) * x + np.sin(angle) * y, -np.sin(angle) * x + np.cos(angle) * y
    distance = _SHAPES[thing](u, v, size)
    image = _paint(style, distance, random)
    image = image.reshape(n, 3, SIDE, 2, SIDE, 2).mean((3, 5))
    image = image + random.normal(0, 0.02, image.shape)
    return np.clip(2 * image - 1, -1, 1).astype(np.float32)


def _paint(style: str, distance: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`[n, 3, 32, 32]` in 0 to 1 from signed distances `[n, 32, 32]` in pixels."""
    n = len(distance)
    inside = 1 / (1 + np.exp(np.clip(distance / 0.15, -60, 60)))[:, None]
    if style == "flat":
        hue = random.random(n)
        return inside * _color(hue, 0.8, 0.9) + (1 - inside) * _color(hue + 0.5, 0.5, 0.45)
    if style == "outline":
        return np.repeat(np.where(np.abs(distance) < 0.7, 0.1, 1.0)[:, None], 3, 1)
    if style == "neon":
        return (
            _color(random.random(n), 0.9, 1.0) * np.exp(-np.maximum(np.abs(distance) - 0.3, 0) / 0.9)[:, None]
        )
    if style == "hatch":
        place = (np.arange(_GRID)[:, None] + np.arange(_GRID)[None, :])[None] / 2
        stripe = ((place + random.uniform(0, 4, (n, 1, 1))) % 4 < 2)[:, None]
        dark, light = (np.asarray(c).reshape(1, 3, 1, 1) for c in ([0.35, 0.2, 0.1], [0.65, 0.45, 0.25]))
        ground = np.asarray([0.96, 0.92, 0.8]).reshape(1, 3, 1, 1)
        return inside * np.where(stripe, dark, light) + (1 - inside) * ground
    heat = 1 / (1 + np.exp(np.clip(distance / 1.3, -60, 60))) * (len(_HEAT) - 1)
    low = np.clip(heat.astype(int), 0, len(_HEAT) - 2)
    part = (heat - low)[..., None]
    return np.moveaxis((1 - part) * _HEAT[low] + part * _HEAT[low + 1], -1, 1)


def _color(hue: np.ndarray, saturation: float, value: float) -> np.ndarray:
    """`[n, 3, 1, 1]` RGB of hues (turns)."""
    turn = (np.asarray(hue)[:, None] * 6 + np.asarray([5.0, 3.0, 1.0])) % 6
    rgb = value - value * saturation * np.clip(np.minimum(turn, 4 - turn), 0, 1)
    return rgb[:, :, None, None]


def prompt(style: str | None, thing: str | None) -> str:
    """What asks for such an image; either part may be left open."""
    if style and thing:
        return f"a {thing} in {style} style"
    return f"a {thing}" if thing else f"{style} style" if style else ""


def tokenizer() -> Any:
    """A CLIP tokenizer with one token per word of the prompts, built in memory."""
    from transformers import CLIPTokenizer

    words = ["a", "in", "style", *STYLES, *OBJECTS]
    vocabulary = ["<|startoftext|>", "<|endoftext|>"]
    merges: list[tuple[str, str]] = []
    for word in words:
        pieces = [*word[:-1], f"{word[-1]}</w>"]
        vocabulary += pieces
        left = pieces[0]
        for right in pieces[1:]:
            merges.append((left, right))
            left += right
            vocabulary.append(left)
    numbers = {token: i for i, token in enumerate(dict.fromkeys(vocabulary))}
    return CLIPTokenizer(vocab=numbers, merges=list(dict.fromkeys(merges)), model_max_length=LENGTH)  # pyright: ignore


def cells(styles: Sequence[str], things: Sequence[str]) -> list[tuple[str, str]]:
    """All pairs of a style and an object."""
    return [(style, thing) for style in styles for thing in things]
