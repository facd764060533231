"""Made-up users for data that has none, so that a user's deletion request can be studied on it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from scipy.special import gammaincinv

from expunge.data.order import shuffled


def dirichlet_users(
    ids: Sequence[str], labels: Sequence[int], users: int, concentration: float, seed: int = 0
) -> list[str]:
    """A user for every row, each user with a mix of classes of their own.

    The rows of every class `c` are dealt out to the users in shares ``p_c ~ Dirichlet(concentration)``, as is
    customary for federated learning (Yurochkin et al., ICML 2019, arXiv:1905.12022; Hsu, Qi & Brown, 2019,
    arXiv:1909.06335, draw per user instead). Small concentrations give users of few classes and of very
    different sizes, large ones give users that are all alike.

    Args:
        ids: `[n]`; they decide which rows of a class go where.
        labels: `[n]` class numbers.
        users: how many.
        concentration: the Dirichlet's parameter, equal for all users.
        seed: another seed, another division.

    Returns:
        `[n]` names, ``u00`` to the last. A user may end up without rows.

    Shares are made of quantiles of the gamma distribution at numbers that a hash fixes, not drawn from a
    random generator, whose stream may change between versions.
    """
    digits = len(str(users - 1)) if users > 10 else 2
    names = [f"u{user:0{digits}d}" for user in range(users)]
    # An order of its own: whoever takes the first rows of the common one must not get the first users' alone.
    order, classes = np.asarray(shuffled([f"user:{i}" for i in ids], seed)), np.asarray(labels)
    dealt = [""] * len(ids)
    for number in np.unique(classes):
        rows = order[classes[order] == number]
        shares = _shares(users, concentration, f"{seed}:{number}")
        ends = np.round(np.cumsum(shares) * len(rows)).astype(int)
        for row, user in zip(rows, np.searchsorted(ends, np.arange(len(rows)), side="right"), strict=True):
            dealt[row] = names[min(user, users - 1)]
    return dealt


def _shares(n: int, concentration: float, key: str) -> np.ndarray:
    """`[n]` point of the simplex: independent gamma quantiles divided by their sum."""
    bits = np.frombuffer(hashlib.shake_256(key.encode()).digest(8 * n), dtype=">u8")
    gammas = gammaincinv(concentration, (bits.astype(np.float64) + 0.5) / 2.0**64)
    return gammas / gammas.sum()
