"""What can go wrong, sorted by who has to act.

Every message is one sentence that says what is wrong, with the offending value, and what to do. The command line prints
it without a traceback and exits with `exit_code`.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class ExpungeError(Exception):
    """A run that could not be finished (exit code 1)."""

    exit_code = 1


class BadInput(ExpungeError):
    """Something the caller passed is wrong (exit code 2)."""

    exit_code = 2


class Missing(ExpungeError):
    """A prerequisite is absent: a package, a file that an earlier step writes, a device (exit code 3)."""

    exit_code = 3


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """Return ``"; did you mean 'x'?"`` for the nearest known name, else a list of what is known.

    >>> did_you_mean("nop", ["npo", "ssd"])
    "; did you mean 'npo'?"
    >>> did_you_mean("zzz", ["npo", "ssd"])
    '; known: npo, ssd'
    """
    known = sorted(known)
    near = difflib.get_close_matches(word.lower(), known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean '{near[0]}'?"
    return f"; known: {', '.join(known)}" if known else ""
