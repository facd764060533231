"""What two models make beside each other: answers of language models, images of generators."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pydantic import Field

from expunge.app.examples import Evidence
from expunge.evidence.pictures import as_png, square_image
from expunge.record import Record


class Answer(Record):
    """What two models say to one prompt. Contents are None until they are asked for."""

    id: str
    group: str | None
    truth: str | None
    a: str | None
    b: str | None
    tokens: list[str] | None = Field(description="of the true answer, where its tokenizer can be had")
    logp_a: list[float | None] = Field(description="log-probability of each token of the true answer, nats")
    logp_b: list[float | None]
    loss_a: float | None
    loss_b: float | None


class Answers(Record):
    """A page of answers."""

    total: int
    revealed: bool
    rows: list[Answer]


def answers(
    pair: tuple[Evidence, Evidence],
    order: Sequence[int],
    revealed: bool,
    tokens: Sequence[list[str] | None] | None = None,
) -> Answers:
    """The answers of the rows numbered `order`; texts only where `revealed`."""
    ids = pair[0].table["id"].to_pylist()
    groups = pair[0].table["group"].to_pylist() if "group" in pair[0].table.column_names else None

    def texts(e: Evidence, name: str) -> list[Any]:
        return e.lists(name, order) if revealed and name in e.names else [None] * len(order)

    def numbers(e: Evidence) -> list[list[float | None]]:
        if "token_logp" not in e.names:
            return [[] for _ in order]
        return [[float(v) if np.isfinite(v) else None for v in row] for row in e.lists("token_logp", order)]

    truth, said_a, said_b = texts(pair[0], "answer_text"), texts(pair[0], "text"), texts(pair[1], "text")
    logp_a, logp_b = numbers(pair[0]), numbers(pair[1])
    losses = [e.table["loss"].to_pylist() if "loss" in e.quantities else None for e in pair]

    def loss(side: int, row: int) -> float | None:
        found = losses[side]
        return float(found[row]) if found is not None and np.isfinite(found[row]) else None

    rows = [
        Answer(
            id=str(ids[row]), group=None if groups is None else str(groups[row]), truth=truth[i], a=said_a[i], b=said_b[i],
            tokens=None if tokens is None or not revealed else tokens[i], logp_a=logp_a[i], logp_b=logp_b[i],
            loss_a=loss(0, row), loss_b=loss(1, row),
        )
        for i, row in enumerate(order)
    ]  # fmt: skip
    return Answers(total=len(pair[0]), revealed=revealed, rows=rows)


class Drawn(Record):
    """What two generators make of one row, from the same starting noise. Contents are None until they are asked for."""

    id: str
    group: str | None
    prompt: str | None = Field(description="None too where the data of the run is not here")
    a: str | None = Field(description="PNG as a data address")
    b: str | None


class Gallery(Record):
    """A page of images."""

    total: int
    revealed: bool
    rows: list[Drawn]


def gallery(
    pair: tuple[Evidence, Evidence],
    order: Sequence[int],
    revealed: bool,
    prompts: Sequence[str] | None = None,
) -> Gallery:
    """The images of the rows numbered `order`; images and prompts only where `revealed`."""
    ids = pair[0].table["id"].to_pylist()
    groups = pair[0].table["group"].to_pylist() if "group" in pair[0].table.column_names else None
    made = [_pictures(e, order) if revealed else [None] * len(order) for e in pair]
    rows = [
        Drawn(
            id=str(ids[row]), group=None if groups is None else str(groups[row]),
            prompt=prompts[i] if revealed and prompts is not None else None, a=made[0][i], b=made[1][i],
        )
        for i, row in enumerate(order)
    ]  # fmt: skip
    return Gallery(total=len(pair[0]), revealed=revealed, rows=rows)


def _pictures(found: Evidence, order: Sequence[int]) -> list[str]:
    """PNG data of the recorded images."""
    return [as_png(square_image(flat)) for flat in found.lists("image", order)]
