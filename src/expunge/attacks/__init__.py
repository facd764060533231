"""Attacks: what an adversary who works with a model, not only with its evidence, can still get out of it."""

from expunge.attacks.base import ATTACKS, Attack, Measure, Scene, Shadow, fitting_attacks

__all__ = ["ATTACKS", "Attack", "Measure", "Scene", "Shadow", "fitting_attacks"]
