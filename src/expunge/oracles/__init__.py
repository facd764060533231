"""Worlds whose right answer is known: what approximate forgetting is tested against.

Each gives a `Problem` with an exactly solved target, and the exact solution of retraining on any rows.
"""

from expunge.oracles.frequencies import FrequencyWorld
from expunge.oracles.logistic import LogisticWorld
from expunge.oracles.ridge import RidgeWorld

__all__ = ["FrequencyWorld", "LogisticWorld", "RidgeWorld"]
