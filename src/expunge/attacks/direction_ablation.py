"""Direction ablation: what comes back when the direction that tells forgotten prompts from others is taken out."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from expunge.attacks.base import Measure, Scene
from expunge.attacks.states import beginnings, hidden_layers, hidden_states
from expunge.attacks.tampering import Tampering, recovery_measures, row_mean, some_rows
from expunge.families.models import clone, innermost
from expunge.parameters import param
from expunge.record import Score


class DirectionAblation(Tampering):
    """Take one direction out of the hidden states, and ask what the model knows.

    ``r = mean_A h - mean_B h`` at one layer, A the forgotten prompts and B retained ones, h the state at the prompt's last
    token (of a classifier or regressor: the mean over positions); ``u = r / |r|``. At the ablated layers every state
    becomes ``h - (u . (h - m)) u`` with m the mean of B there: along u nothing tells a forgotten prompt from a retained
    one any more. A model that recognizes what it must not answer, and turns away along one direction, answers again.

    Each layer gives a direction; it is ablated at that layer alone, or at all layers of the same width, and of both the
    one that recovers more is taken. Only prompts are used, no answers.

    The control takes a random direction out instead, drawn anew for every layer, in as many places: what it brings back came
    from the change alone, or from choosing the best of many. Deviations: Arditi et al. set the component along u
    to 0, which moves retained prompts too, and ablate inside blocks as well.
    """

    name = "direction-ablation"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    paper = "Arditi et al., NeurIPS 2024, arXiv:2406.11717; on unlearned models: Lucki et al., 2024, arXiv:2409.18025"
    threat_model = "weights or activations at inference; the forgotten prompts without answers, and retained rows; no training"
    over = "layer of the direction"
    measures = (
        *recovery_measures(name, "taking one direction out of the hidden states"),
        Measure(
            f"{name}-random",
            "Control: what a random direction adds to the mean knowledge of the forgotten rows, chosen as the best of as many "
            "places; mean over draws. The rise counts for nothing where this is as large. Interval: t over rows.",
            "knowledge",
            title="Knowledge brought back by a random direction",
            low=0.0,
            high=1.0,
        ),
    )

    scopes: tuple[Literal["layer", "all"], ...] = param(
        ("layer", "all"), "where a direction is taken out: at its own layer, at all of the same width",
        source="all: Arditi et al.", min_length=1,
    )  # fmt: skip

    draws: int = param(3, "random directions for each layer, as a control", source="ours", ge=1)

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"directions per layer": 1}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        scores = super().run(scene)
        # The same directions for every model, whatever its seed, so that models are compared and not draws.
        drawn = [torch.Generator().manual_seed(83 + draw) for draw in range(self.draws)]
        rises = [self.recovered(scene, self._ablated(scene, generator)).rise for generator in drawn]
        return [*scores, self.score(f"{self.name}-random", row_mean(np.mean(rises, axis=0)))]

    def variants(self, scene: Scene) -> Iterator[tuple[float, nn.Module]]:  # noqa: D102
        return self._ablated(scene, None)

    def _ablated(self, scene: Scene, generator: torch.Generator | None) -> Iterator[tuple[float, nn.Module]]:
        """Layer and model without its direction, or without one that `generator` draws."""
        family, model = scene.problem.family, clone(scene.model)
        base = innermost(model)
        layers = hidden_layers(family, base)
        gone, kept = (
            hidden_states(family, base, rows, layers, beginnings).layers
            for rows in (self.asked(scene), some_rows(scene, "retain", self.rows))
        )
        neutral = {layer: kept[layer].astype(np.float64).mean(0) for layer in layers}
        for number, layer in enumerate(layers):
            direction = gone[layer].astype(np.float64).mean(0) - neutral[layer]
            if generator is not None:
                direction = torch.randn(len(direction), generator=generator, dtype=torch.float64).numpy()
            length = float(np.linalg.norm(direction))
            if not 0 < length < np.inf:
                continue
            unit = direction / length
            alike = [other for other in layers if neutral[other].shape == unit.shape]
            for scope in self.scopes:
                where = [layer] if scope == "layer" else alike
                with ablated(base, unit, {other: neutral[other] for other in where}):
                    yield float(number), model


@contextlib.contextmanager
def ablated(model: nn.Module, unit: np.ndarray, means: Mapping[str, np.ndarray]) -> Iterator[None]:
    """Inside the block the outputs of the layers in `means` have the component of those means along `unit` (`[d]`)."""
    handles = []
    try:
        for layer, mean in means.items():
            u, offset = torch.from_numpy(unit), float(mean @ unit)

            def hook(
                _module: nn.Module, _inputs: object, output: Any, u: Tensor = u, offset: float = offset
            ) -> Any:
                if isinstance(output, Tensor):
                    return without(output, u, offset)
                return (without(output[0], u, offset), *output[1:])

            handles.append(model.get_submodule(layer).register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


def without(states: Tensor, unit: Tensor, offset: float = 0.0) -> Tensor:
    """`states` (`[..., d]`, of images `[B, d, H, W]`) with the component `offset` along `unit`, whatever they had.

    >>> without(torch.tensor([[3.0, 4.0]]), torch.tensor([0.0, 1.0]))
    tensor([[3., 0.]])
    """
    channels = states.dim() == 4
    h = states.movedim(1, -1) if channels else states
    u = unit.to(h)
    changed = h - ((h @ u)[..., None] - offset) * u
    return changed.movedim(-1, 1) if channels else changed
