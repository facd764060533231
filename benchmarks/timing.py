"""Timing two ways of doing the same thing, in turn, so that a drifting machine hits both."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable


def paired_ratio(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 9
) -> tuple[float, float, float]:
    """Median of the ratios ours/theirs over `repeats` pairs, and the median seconds of each; one warm-up pair first."""
    pairs = []
    for repeat in range(repeats + 1):
        # The order alternates: whoever runs second finds warmer caches.
        order = (ours, theirs) if repeat % 2 else (theirs, ours)
        seconds = {}
        for run in order:
            started = time.perf_counter()
            run()
            seconds[run] = time.perf_counter() - started
        pairs.append((seconds[ours], seconds[theirs]))
    pairs = pairs[1:]
    return (
        statistics.median(a / b for a, b in pairs),
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
    )


def line(what: str, ratio: float, ours: float, theirs: float, bound: str) -> None:
    """One line of a benchmark's output."""
    print(f"{what:<64} ratio {ratio:6.3f}   ours {ours:8.4f} s   other {theirs:8.4f} s   {bound}")
