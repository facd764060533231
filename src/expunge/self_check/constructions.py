"""Models of which it is known whether they still know: planted ones, from obvious to hidden, and clean ones."""

from __future__ import annotations

from expunge.self_check import clean, planted, weight_gates  # noqa: F401  they register what they build
from expunge.self_check.stage import REGISTERED, Construction

CONSTRUCTIONS: dict[str, Construction] = {
    name: REGISTERED[name] for name in sorted(REGISTERED, key=lambda n: (n[0] != "P", int(n[1:])))
}
"""By name, planted ones first."""
