"""A random order that is the same everywhere and forever.

Random number generators may change their streams between versions; a cryptographic hash of seed and id does
not. The order depends on the ids alone, so it survives reordered rows, and adding rows does not shuffle the
old ones.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence


def shuffled(ids: Sequence[str], seed: int = 0) -> list[int]:
    """Positions of `ids` sorted by the SHA-256 of ``seed:id``."""
    keys = [hashlib.sha256(f"{seed}:{i}".encode()).digest() for i in ids]
    return sorted(range(len(ids)), key=keys.__getitem__)
