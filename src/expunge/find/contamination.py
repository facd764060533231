"""Which probes stand in the training data, and which rows to keep teach again what is to be forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from datasets import Dataset

from expunge.errors import BadInput
from expunge.families import CausalLM
from expunge.families.inputs import Text
from expunge.problem import Problem
from expunge.stats.contamination import NGRAM, near_duplicates, ngram_overlap, words_of

ROWS_AT_ONCE = 256
THRESHOLD = 0.8
"""Jaccard index from which two texts are near-duplicates."""
SHOWN = 10
"""Pairs of each kind that are listed."""


@dataclass(frozen=True)
class Pair:
    """A probe and the row that gives it away."""

    probe: str
    row: str
    similarity: float
    """Jaccard index of word shingles, or 1 for equal inputs."""


@dataclass(frozen=True)
class Contamination:
    """What the rows of one split share with others that they should share nothing with."""

    split: str
    against: str
    """``train`` for probes and holdout rows; ``retain`` for forget rows."""
    n: int
    exact: int | None = None
    """Rows whose inputs are equal to those of some other; of text, word by word."""
    overlapping: int | None = None
    """Rows with an n-gram in common with some other, boilerplate aside; None where rows are no text."""
    near: int | None = None
    """Rows with a near-duplicate."""
    longest: float | None = None
    """Longest run of words in common with one other, as a share of the row's words; the largest of all rows."""
    pairs: list[Pair] = field(default_factory=list)
    """Of the duplicates, the most alike first; ten at the most."""
    reason: str = ""
    """Why there is nothing to say."""

    @property
    def found(self) -> bool:
        """Whether any row is contaminated."""
        return any((self.exact, self.overlapping, self.near))


def contamination(problem: Problem, ngram: int = NGRAM) -> list[Contamination]:
    """Every probe against the training data, and the forget set against the retain set.

    A probe that was trained on says nothing of models that did not see it; probes of what is to be kept may be trained on by
    design. A near copy of a forget row among the rows to keep teaches it again: retraining without the row is no yardstick
    then, and no forgetting lasts. Texts are compared by word
    n-grams (13, as for GPT-3; those in more than 10 texts are boilerplate) and by the Jaccard index of their 5-word shingles
    (near-duplicates from 0.8 on); everything else by equal inputs. Rows in other words (paraphrases, translations) are not
    found.

    Args:
        problem: whose rows are read, all of them.
        ngram: words of an n-gram.
    """
    family = problem.family
    probes = {k: v for k, v in problem.splits.items() if k not in ("forget", "retain")}
    wanted = [(name, rows, "train", problem.train) for name, rows in probes.items()]
    if len(problem.retain_rows):
        wanted.insert(0, ("forget", problem.forget, "retain", problem.retain))
    if family.name == "diffusion":
        reason = "pictures drawn from noise have no rows to compare"
        return [Contamination(name, other, len(rows), reason=reason) for name, rows, other, _ in wanted]
    made = []
    for name, rows, other, corpus in wanted:
        texts = _texts(problem, rows)
        if texts is not None:
            made.append(_of_texts(name, rows, other, corpus, texts, _texts(problem, corpus) or [], ngram))
        else:
            made.append(_of_inputs(problem, name, rows, other, corpus))
    return made


def _texts(problem: Problem, rows: Dataset) -> list[str] | None:
    """What each row says, without template and labels; None where rows are no text."""
    family = problem.family
    if isinstance(family, CausalLM):
        columns = list(family.template.columns)
    elif isinstance(found := getattr(family, "inputs", None), Text):
        columns = list(found.columns)
    else:
        return None
    values = rows.select_columns(columns)[:]
    return [" ".join(_said(values[c][i]) for c in columns) for i in range(len(rows))]


def _said(value: Any) -> str:
    return " ".join(str(turn["content"]) for turn in value) if isinstance(value, list) else str(value)


def _ids(rows: Dataset) -> list[str]:
    return [str(i) for i in rows["id"][:]]


def _of_texts(
    name: str, rows: Dataset, other: str, corpus: Dataset, ours: Sequence[str], theirs: Sequence[str], n: int
) -> Contamination:  # fmt: skip
    ids, others = _ids(rows), _ids(corpus)
    spoken = [i for i, text in enumerate(ours) if words_of(text)]
    if not spoken:
        return Contamination(name, other, len(rows), reason="no row has a word of letters or digits")
    texts = [ours[i] for i in spoken]
    overlaps = ngram_overlap(texts, theirs, n)
    twins = near_duplicates(texts, theirs, THRESHOLD)
    whole = {" ".join(words_of(text)) for text in theirs}
    return Contamination(
        name, other, len(rows),
        exact=sum(" ".join(words_of(text)) in whole for text in texts),
        overlapping=sum(o.dirty for o in overlaps), near=len({t.probe for t in twins}),
        longest=max(o.run for o in overlaps),
        pairs=[Pair(ids[spoken[t.probe]], others[t.text], t.similarity) for t in twins[:SHOWN]],
    )  # fmt: skip


def _of_inputs(problem: Problem, name: str, rows: Dataset, other: str, corpus: Dataset) -> Contamination:
    known = dict(zip(_inputs(problem, corpus), _ids(corpus), strict=True))
    twins = [
        Pair(i, known[key], 1.0)
        for i, key in zip(_ids(rows), _inputs(problem, rows), strict=True)
        if key in known
    ]
    return Contamination(name, other, len(rows), exact=len(twins), near=None, pairs=twins[:SHOWN])


def _inputs(problem: Problem, rows: Dataset) -> list[bytes]:
    """What the model reads of each row."""
    found: list[bytes] = []
    for start in range(0, len(rows), ROWS_AT_ONCE):
        batch = problem.family.collate(rows[start : start + ROWS_AT_ONCE])
        tensors = [t for _, t in sorted(batch.inputs.items()) if isinstance(t, torch.Tensor)]
        if not tensors:
            raise BadInput(f"rows of {problem.name} have no inputs that could be compared")
        found += [b"".join(t[i].contiguous().numpy().tobytes() for t in tensors) for i in range(len(batch))]
    return found
