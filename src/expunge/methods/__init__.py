"""Methods of forgetting, one file each."""

from expunge.methods.base import METHODS, Cost, Edit, Forgotten, Method, Workplace

__all__ = ["METHODS", "Cost", "Edit", "Forgotten", "Method", "Workplace"]
