"""Networks that tests build by name, as a user's own module."""

from __future__ import annotations

from torch import nn


def dropping() -> nn.Module:
    """Three inputs, three classes; drops units in train mode."""
    return nn.Sequential(nn.Linear(3, 16), nn.ReLU(), nn.Dropout(0.4), nn.Linear(16, 3))
