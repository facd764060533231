"""Regressors: one or several real values per example."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Family, Outputs, Rows
from expunge.families.inputs import Inputs, restore_inputs
from expunge.families.models import call

if TYPE_CHECKING:
    from datasets import Dataset


class Regressor(Family):
    """Real values with Gaussian likelihood of unit variance in standardized units.

    The model works in standardized units ``(value - center) / scale``, or in the target's own units where `raw` says so
    (its values are then standardized before anything is computed); evidence is reported in the target's own units.
    Predictions are `[B, 1, C]` with C target columns. The log-likelihood is that of N(prediction, 1), so its gradient
    is that of half the squared error.
    """

    name = "regressor"
    likelihood = "exact"
    quantities = {
        "loss": "Gaussian -ln p(y), nats: (error / scale)^2 / 2 + ln(2 pi) / 2, summed over target columns, [n]",
        "predicted": "predicted value in the target's unit, [n] ([n, C] for several columns)",
        "target": "true value in the target's unit, [n] ([n, C] for several columns)",
        "error": "predicted - target in the target's unit, [n] ([n, C] for several columns)",
        "absolute_error": "mean over target columns of |error|, target's unit, [n]",
        "features:LAYER": "activations of LAYER averaged over positions, [n, d]",
    }
    relabelings = {
        "random": "Gaussian with the training targets' mean and standard deviation (Tarun et al. 2023), clipped to their range",
        "mean": "the training targets' mean",
    }

    def __init__(
        self,
        inputs: Inputs,
        target: str | Sequence[str] = "target",
        center: float | Sequence[float] = 0.0,
        scale: float | Sequence[float] = 1.0,
        low: float | Sequence[float] | None = None,
        high: float | Sequence[float] | None = None,
        group: str | None = None,
        raw: bool = False,
    ) -> None:
        self.inputs = inputs
        self.targets = [target] if isinstance(target, str) else list(target)
        n = len(self.targets)
        self.center, self.scale = _vector(center, n), _vector(scale, n)
        self.low = None if low is None else _vector(low, n)
        self.high = None if high is None else _vector(high, n)
        self.group, self.raw = group, raw
        if (self.scale <= 0).any():
            raise BadInput(f"the targets' scale must be above 0, got {self.scale.tolist()}")

    @classmethod
    def fit(
        cls,
        inputs: Inputs,
        dataset: Dataset,
        target: str | Sequence[str],
        group: str | None = None,
        raw: bool = False,
    ) -> Regressor:
        """Take center, scale and range from the targets in `dataset`."""
        names = [target] if isinstance(target, str) else list(target)
        values = np.column_stack([np.asarray(dataset[t], dtype=np.float64) for t in names])
        scale = np.where(values.std(0) > 0, values.std(0), 1.0)
        return cls(
            inputs,
            names,
            values.mean(0).tolist(),
            scale.tolist(),
            values.min(0).tolist(),
            values.max(0).tolist(),
            group,
            raw,
        )

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "family": self.name,
            "inputs": self.inputs.describe(),
            "target": self.targets,
            "center": self.center.tolist(),
            "scale": self.scale.tolist(),
            "low": None if self.low is None else self.low.tolist(),
            "high": None if self.high is None else self.high.tolist(),
            "group": self.group,
            "raw": self.raw,
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Regressor:
        """The inverse of `describe`."""
        values = {k: v for k, v in description.items() if k not in ("family", "inputs")}
        return cls(restore_inputs(description["inputs"]), **values)

    def collate(self, rows: Rows) -> Batch:  # noqa: D102
        values = np.column_stack([np.asarray(rows[t], dtype=np.float64) for t in self.targets])
        standard = torch.from_numpy(((values - self.center) / self.scale).astype(np.float32)).unsqueeze(1)
        mask = torch.ones(standard.shape[:2], dtype=torch.bool)
        return Batch([str(i) for i in rows["id"]], self.inputs.encode(rows), standard, mask)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        values = call(model, batch.inputs).reshape(len(batch), 1, len(self.targets))
        if self.raw:
            values = (values - torch.from_numpy(self.center).to(values)) / torch.from_numpy(self.scale).to(
                values
            )
        return values

    def nll(self, outputs: Outputs, batch: Batch) -> Tensor:  # noqa: D102
        error = outputs.prediction - batch.targets.to(outputs.prediction.dtype)
        per_position = (0.5 * error.square() + 0.5 * math.log(2 * math.pi)).sum(-1)
        return (per_position * batch.mask).sum(-1)

    def divergence(self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Gaussian KL: half the squared distance of the means; raising to 1/temperature multiplies the variance."""
        distance = (p.prediction - q.prediction).square().sum(-1)
        return (0.5 * distance / temperature * batch.mask).sum(-1)

    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:  # noqa: D102
        if how == "random":
            # Standardized targets: mean 0, standard deviation 1. Clipping keeps values possible and narrows the law a little.
            drawn = torch.randn(batch.targets.shape, generator=generator, dtype=torch.float32)
            if self.low is not None and self.high is not None:
                low = torch.from_numpy((self.low - self.center) / self.scale).float()
                high = torch.from_numpy((self.high - self.center) / self.scale).float()
                drawn = drawn.clamp(low, high)
        elif how == "mean":
            drawn = torch.zeros(batch.targets.shape)
        else:
            raise BadInput(f"regressor cannot relabel by '{how}'; known: {', '.join(self.relabelings)}")
        return Batch(batch.ids, batch.inputs, drawn.to(batch.targets), batch.mask)

    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:  # noqa: D102
        scale = torch.from_numpy(self.scale).to(outputs.prediction.device)
        center = torch.from_numpy(self.center).to(outputs.prediction.device)
        predicted = outputs.prediction.squeeze(1).double() * scale + center
        target = batch.targets.squeeze(1).double() * scale + center
        error = predicted - target
        single = len(self.targets) == 1
        made: dict[str, Tensor] = {}
        for quantity in quantities:
            if quantity.startswith("features:"):
                made[quantity] = outputs.hidden[quantity.removeprefix("features:")].float().mean(1)
            elif quantity == "loss":
                made[quantity] = self.nll(outputs, batch)
            elif quantity in ("predicted", "target", "error"):
                value = {"predicted": predicted, "target": target, "error": error}[quantity]
                made[quantity] = value.squeeze(1) if single else value
            elif quantity == "absolute_error":
                made[quantity] = error.abs().mean(1)
            else:
                raise BadInput(f"regressor has no quantity '{quantity}'; known: {', '.join(self.quantities)}")
        return made

    def groups(self, dataset: Dataset) -> np.ndarray | None:
        """The `group` column where one is named."""
        return None if self.group is None else np.asarray([str(v) for v in dataset[self.group][:]])

    def trim(self, batch: Batch) -> Batch:  # noqa: D102
        return Batch(batch.ids, self.inputs.trim(batch.inputs), batch.targets, batch.mask)

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        self.inputs.check(dataset, name)
        for column in self.targets:
            if column not in dataset.column_names:
                raise BadInput(
                    f"{name} has no target column '{column}'; it has {', '.join(dataset.column_names)}"
                )
            values = np.asarray([np.nan if v is None else v for v in dataset[column]], dtype=np.float64)
            bad = np.flatnonzero(~np.isfinite(values))
            if len(bad):
                raise BadInput(
                    f"{name} has {len(bad)} rows with NaN or infinity in '{column}' "
                    f"(first: id '{dataset['id'][int(bad[0])]}'); drop them"
                )


def _vector(value: float | Sequence[float], n: int) -> np.ndarray:
    array = np.atleast_1d(np.asarray(value, dtype=np.float64))
    return np.repeat(array, n) if len(array) == 1 and n > 1 else array
