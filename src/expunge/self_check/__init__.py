"""The auditor audited: models with planted residue and clean ones, judged blind, and how often the audit was wrong."""

from expunge.self_check.check import FamilyCheck, Rate, SelfCheck, Trial, self_check
from expunge.self_check.worlds import WORLDS

__all__ = ["WORLDS", "FamilyCheck", "Rate", "SelfCheck", "Trial", "self_check"]
