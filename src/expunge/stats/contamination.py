"""Whether probes stand in the training text: shared n-grams, longest shared run, near-duplicates.

A control probe that was trained on shows nothing about models that did not see it, and a paraphrase of a forget row among the
retain rows teaches again what was to be forgotten.
"""

from __future__ import annotations

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
from sklearn.feature_extraction.text import CountVectorizer

from expunge.errors import BadInput

NGRAM = 13
"""Words; as for GPT-3 (Brown et al. 2020)."""
BOILERPLATE = 10
"""An n-gram in more texts than this is a phrase of the corpus, not a trace of a probe."""
SHINGLE = 5
BLOCK = 1000


class Overlap(NamedTuple):
    """What one probe shares with a corpus."""

    dirty: bool
    """Whether it has an n-gram in common with some text, or lies whole in one where it is shorter than that."""
    run: float
    """Longest run of words that it shares with one text, as a share of its words."""
    text: int | None
    """Index of the text with that run; None where they share no word."""


class Duplicate(NamedTuple):
    """A probe and a text that are nearly the same."""

    probe: int
    text: int
    similarity: float
    """Jaccard index of their sets of shingles, in [0, 1]."""


def words_of(text: str) -> list[str]:
    """Words in compatibility form (NFKC), lower case, without punctuation."""
    return re.findall(r"\w+", unicodedata.normalize("NFKC", text).lower())


def ngram_overlap(probes: Sequence[str], corpus: Sequence[str], n: int = NGRAM) -> list[Overlap]:
    """Each probe's overlap with `corpus`, by word n-grams.

    N-grams in more than 10 texts count as boilerplate and make no probe dirty. Probes shorter than n words are compared as a
    whole. The corpus is read once; time grows with the words of probes plus corpus, times the length of runs.

    Args:
        probes: texts; none may be without a word.
        corpus: texts.
        n: words of an n-gram, above 0.
    """
    if n < 1:
        raise BadInput(f"an n-gram has one word at least, got n = {n}")
    split = [words_of(p) for p in probes]
    for number, words in enumerate(split):
        if not words:
            raise BadInput(f"probe {number} has no words: {probes[number]!r}")
    wanted = {tuple(w[i : i + m]) for w in split for m in (min(n, len(w)),) for i in range(len(w) - m + 1)}
    lengths = sorted({len(gram) for gram in wanted})
    found: Counter[tuple[str, ...]] = Counter()
    places: dict[str, list[tuple[int, int]]] = {}  # of each word of a probe: (probe, position)
    for number, words in enumerate(split):
        for position, word in enumerate(words):
            places.setdefault(word, []).append((number, position))
    longest: list[tuple[int, int | None]] = [(0, None)] * len(split)
    for index, text in enumerate(corpus):
        words = words_of(text)
        found.update(
            {
                g
                for m in lengths
                for i in range(len(words) - m + 1)
                if (g := tuple(words[i : i + m])) in wanted
            }
        )
        # Runs that end here, by the place in the probe where they end: one row of the table of longest common substrings.
        runs: dict[tuple[int, int], int] = {}
        for word in words:
            runs = {(p, i): runs.get((p, i - 1), 0) + 1 for p, i in places.get(word, ())}
            for (p, _), length in runs.items():
                if length > longest[p][0]:
                    longest[p] = (length, index)
    return [
        Overlap(
            any(0 < found[tuple(w[i : i + m])] <= BOILERPLATE for i in range(len(w) - m + 1)),
            run / len(w),
            text,
        )
        for w, (run, text) in zip(split, longest, strict=True)
        for m in (min(n, len(w)),)
    ]


def near_duplicates(
    probes: Sequence[str], corpus: Sequence[str], threshold: float = 0.8, shingle: int = SHINGLE
) -> list[Duplicate]:
    """Pairs of probe and text whose sets of word shingles have a Jaccard index of at least `threshold`, most alike first.

    Exact, by sparse products of a thousand probes at a time; no hashing. Texts shorter than a shingle are one shingle. It
    sees changed words, not changed wording: for paraphrases compare embeddings.

    Args:
        probes: texts.
        corpus: texts.
        threshold: in (0, 1].
        shingle: words, above 0.
    """
    if not 0 < threshold <= 1:
        raise BadInput(f"the threshold of near-duplicates is a Jaccard index in (0, 1], got {threshold}")
    if not probes or not corpus:
        return []

    def shingles(text: str) -> list[str]:
        words = words_of(text)
        return [" ".join(words[i : i + shingle]) for i in range(max(1, len(words) - shingle + 1))]

    options: dict[str, Any] = {"analyzer": shingles, "binary": True, "dtype": np.float64}
    both: Any = CountVectorizer(**options).fit_transform([*probes, *corpus])
    both = both.tocsr()
    ours, theirs = both[: len(probes)], both[len(probes) :]
    sizes = np.asarray(theirs.sum(1)).ravel()
    found = []
    for start in range(0, len(probes), BLOCK):
        block = ours[start : start + BLOCK]
        own = np.asarray(block.sum(1)).ravel()
        shared = (block @ theirs.T).tocoo()
        similarity = shared.data / (own[shared.row] + sizes[shared.col] - shared.data)
        for p, t, s in zip(shared.row, shared.col, similarity, strict=True):
            if s >= threshold - 1e-12:
                found.append(Duplicate(int(p) + start, int(t), float(s)))
    return sorted(found, key=lambda d: (-d.similarity, d.probe, d.text))
