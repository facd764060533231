"""Timing two ways of doing the same thing, in turn, so that a drifting machine hits both."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable


def paired_ratio(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 15
) -> tuple[float, float, float]:
    """Median over `repeats` neighbouring runs of their ratio in CPU seconds, and the least seconds of each.

    One warm-up pair comes first. Neighbours share the processor's clock, which on a rented machine drifts by half within
    minutes; the median drops the pairs that something else ran into.
    """
    ratios, least, other = [], math.inf, math.inf
    for repeat in range(repeats + 1):
        seconds: dict[Callable[[], object], float] = {}
        # The order alternates: whoever runs second finds warmer caches.
        for run in (ours, theirs) if repeat % 2 else (theirs, ours):
            started = time.process_time()
            run()
            seconds[run] = time.process_time() - started
        if repeat:
            ratios.append(seconds[ours] / seconds[theirs])
            least, other = min(least, seconds[ours]), min(other, seconds[theirs])
    return statistics.median(ratios), least, other


def line(what: str, ratio: float, ours: float, theirs: float, bound: str) -> None:
    """One line of a benchmark's output."""
    print(f"{what:<64} ratio {ratio:6.3f}   ours {ours:8.4f} s   other {theirs:8.4f} s   {bound}")
