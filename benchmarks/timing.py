"""Timing two ways of doing the same thing, in turn, so that a drifting machine hits both."""

from __future__ import annotations

import time
from collections.abc import Callable


def paired_ratio(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = 15
) -> tuple[float, float, float]:
    """Ratio of the least CPU seconds of `repeats` runs each, and those seconds; one warm-up pair first.

    Both do the same work every time, so that what exceeds the least is the machine's other business.
    """
    seconds: dict[Callable[[], object], list[float]] = {ours: [], theirs: []}
    for repeat in range(repeats + 1):
        # The order alternates: whoever runs second finds warmer caches.
        for run in (ours, theirs) if repeat % 2 else (theirs, ours):
            started = time.process_time()
            run()
            if repeat:
                seconds[run].append(time.process_time() - started)
    least, other = min(seconds[ours]), min(seconds[theirs])
    return least / other, least, other


def line(what: str, ratio: float, ours: float, theirs: float, bound: str) -> None:
    """One line of a benchmark's output."""
    print(f"{what:<64} ratio {ratio:6.3f}   ours {ours:8.4f} s   other {theirs:8.4f} s   {bound}")
