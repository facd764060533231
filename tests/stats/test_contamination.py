from __future__ import annotations

import numpy as np
import pytest

from expunge.errors import BadInput
from expunge.stats.contamination import Duplicate, near_duplicates, ngram_overlap

TEXT = "The quick brown fox jumps over the lazy dog while seven silent owls watch from a tall old oak"


def test_copies_are_found_whatever_their_case_and_punctuation():
    disguised = TEXT.upper().replace(" ", ", ") + "!"
    exact, same, none = ngram_overlap(
        [TEXT, disguised, "nothing at all in common here"], ["unrelated words", TEXT]
    )
    assert exact == same == (True, 1.0, 1)
    assert none == (False, 0.0, None)


def test_runs_and_ngrams_by_hand():
    probe = "one two three four five"
    (found,) = ngram_overlap([probe], ["zero two three four nine", "one two"], n=3)
    assert found == (True, 3 / 5, 0)
    assert ngram_overlap([probe], ["zero two three four nine"], n=4)[0].dirty is False
    # A probe shorter than n is compared as a whole.
    assert ngram_overlap(["owls watch"], [TEXT])[0] == (True, 1.0, 0)
    assert ngram_overlap(["owls watched"], [TEXT])[0] == (False, 0.5, 0)


def test_boilerplate_makes_no_probe_dirty():
    corpus = ["once upon a time there was"] * 11
    assert ngram_overlap(["once upon a time there was"], corpus, n=3)[0].dirty is False
    assert ngram_overlap(["once upon a time there was"], corpus[:10], n=3)[0].dirty is True


def slow_run(one: list[str], two: list[str]) -> int:
    return max(
        (m for m in range(1, len(one) + 1) for i in range(len(one) - m + 1) for j in range(len(two) - m + 1)
         if one[i : i + m] == two[j : j + m]), default=0,
    )  # fmt: skip


@pytest.mark.parametrize("seed", range(5))
def test_runs_are_longest_common_substrings(seed):
    rng = np.random.default_rng(seed)
    probe, *corpus = ([f"w{i}" for i in rng.integers(0, 4, 14)] for _ in range(4))
    (found,) = ngram_overlap([" ".join(probe)], [" ".join(t) for t in corpus])
    assert found.run == max(slow_run(probe, t) for t in corpus) / 14


def slow_jaccard(one: str, two: str) -> float:
    a, b = ({tuple(t.split()[i : i + 5]) for i in range(len(t.split()) - 4)} for t in (one, two))
    return len(a & b) / len(a | b)


def test_near_duplicates_are_those_of_all_pairs():
    rng = np.random.default_rng(0)
    base = [[f"w{i}" for i in rng.integers(0, 30, 40)] for _ in range(6)]
    probes, corpus = [" ".join(b) for b in base], []
    for b in base:
        changed = list(b)
        changed[rng.integers(40)] = "other"
        corpus.append(" ".join(changed))
    expected = [(p, t) for p in range(6) for t in range(6) if slow_jaccard(probes[p], corpus[t]) >= 0.7]
    found = near_duplicates(probes, corpus, threshold=0.7)
    assert sorted((d.probe, d.text) for d in found) == expected != []
    for d in found:
        assert d.similarity == pytest.approx(slow_jaccard(probes[d.probe], corpus[d.text]))
    assert near_duplicates([TEXT], [TEXT + "."]) == [Duplicate(0, 0, 1.0)]
    assert near_duplicates([TEXT], []) == []


def test_refusals():
    with pytest.raises(BadInput, match="one word at least, got n = 0"):
        ngram_overlap(["a"], ["a"], n=0)
    with pytest.raises(BadInput, match="probe 1 has no words: '...'"):
        ngram_overlap(["a", "..."], ["a"])
    with pytest.raises(BadInput, match=r"in \(0, 1\], got 0"):
        near_duplicates(["a"], ["a"], threshold=0)
