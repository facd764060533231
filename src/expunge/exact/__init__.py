"""Forgetting that is exact by construction."""
