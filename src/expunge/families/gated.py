"""A model with low-rank adapters that are let in only where the text is like what they were trained to forget."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import captured
from expunge.families.models import Architecture, Composed, Past, architecture_of, call_language_model

SLOPE, SHIFT = 10.0, 2.0
"""Constants of the gate in the reference code."""


class Gate(nn.Module):
    """How much a text is like those that a request was about, from a model's own hidden states: 1 at the most.

    A layer's features are far from the forgotten ones by ``D_l = |(z - mu_l) W_l|^2 / (2 d)``, half a squared Mahalanobis
    distance per dimension; ``q = - sum_l v_l D_l`` with v_l >= 0 scores them all. With F the mean of two normal
    distribution functions, at the mean scores m1 of the texts that were fitted and m2 of others like them, both of standard
    deviation s, and ``x0 = (m1 + m2) / 2``: ``g(q) = sigmoid(10 (1 - |F(q) - F(2 x0 - q)|) - 2)`` (`likeness`).
    The gate is g(min(q, x0)) stretched from ``[sigmoid(-2), sigmoid(8)]`` to [0, 1]: a text nearer than usual is not
    taken for a stranger, and an unrelated one does not load an eighth of the adapter.
    """

    mean: Tensor
    whitening: Tensor
    importance: Tensor
    calibration: Tensor

    def __init__(self, n_layers: int, width: int) -> None:
        super().__init__()
        # Buffers: they describe the forgotten texts and are not to be trained.
        self.register_buffer("mean", torch.zeros(n_layers, width))
        self.register_buffer("whitening", torch.zeros(n_layers, width, width))
        self.register_buffer("importance", torch.zeros(n_layers))
        self.register_buffer("calibration", torch.tensor([0.0, 0.0, 1.0]))  # m1, m2, s

    @classmethod
    @torch.no_grad()
    def fitted(cls, features: Tensor, others: Tensor, nu: float) -> Gate:
        """A gate for texts with `features` `[n, layers, d]`; `others` `[m, layers, d]`, texts of the same kind, set its width.

        mu and W come from the Ledoit-Wolf estimate of the covariance, which n < d does not make singular; v is the
        normal of a linear one-class SVM with parameter `nu` on the vectors of -D_l. Those lie in the negative orthant,
        and so does the normal, which is turned around: q falls with every distance.
        """
        from sklearn.covariance import LedoitWolf
        from sklearn.svm import OneClassSVM

        made = cls(features.shape[1], features.shape[2])
        for layer in range(features.shape[1]):
            estimate = LedoitWolf().fit(features[:, layer].double().cpu().numpy())
            made.mean[layer] = torch.from_numpy(estimate.location_)
            made.whitening[layer] = torch.linalg.cholesky(torch.from_numpy(estimate.precision_))
        near, far = made.distances(features.cpu()), made.distances(others.cpu())
        machine = OneClassSVM(kernel="linear", nu=nu).fit(-near.double().numpy())
        normal = torch.from_numpy(-machine.coef_[0])
        made.importance.copy_(normal / normal.sum())
        own, held_out = -(near @ made.importance), -(far @ made.importance)
        spread = held_out.std(correction=0).clamp(min=1e-6)
        made.calibration.copy_(torch.stack([own.mean(), held_out.mean(), spread]))
        return made.to(features.device)

    def distances(self, features: Tensor) -> Tensor:
        """`[..., layers]` D_l of features `[..., layers, d]`."""
        moved = torch.einsum("...ld,lde->...le", features - self.mean, self.whitening)
        return moved.square().mean(-1) / 2

    def score(self, features: Tensor) -> Tensor:
        """`[...]` q of features `[..., layers, d]`; higher is more like what was fitted."""
        return -(self.distances(features) @ self.importance)

    def forward(self, features: Tensor) -> Tensor:
        """`[...]` weights in [0, 1] of features `[..., layers, d]`."""
        m1, m2, spread = self.calibration
        raw = likeness(torch.minimum(self.score(features), (m1 + m2) / 2), m1, m2, spread)
        low, high = (1 / (1 + math.exp(-u)) for u in (-SHIFT, SLOPE - SHIFT))
        return ((raw - low) / (high - low)).clamp(0, 1)


def likeness(q: Tensor, m1: Tensor | float, m2: Tensor | float, spread: Tensor | float) -> Tensor:
    """The published gate: ``sigmoid(10 (1 - |F(q) - F(2 x0 - q)|) - 2)``, largest at ``x0 = (m1 + m2) / 2`` (`Gate`)."""

    def distribution(x: Tensor) -> Tensor:
        return (torch.special.ndtr((x - m1) / spread) + torch.special.ndtr((x - m2) / spread)) / 2

    return torch.sigmoid(SLOPE * (1 - (distribution(q) - distribution(m1 + m2 - q)).abs()) - SHIFT)


class Request(nn.Module):
    """What one request left: low-rank adapters ``B A`` by layer (their scale is in B), and the gate that lets them in."""

    def __init__(self, down: Mapping[str, Tensor], up: Mapping[str, Tensor], gate: nn.Module) -> None:
        super().__init__()
        self.down = nn.ParameterDict({_key(name): nn.Parameter(value) for name, value in down.items()})
        self.up = nn.ParameterDict({_key(name): nn.Parameter(value) for name, value in up.items()})
        self.gate = gate

    @property
    def names(self) -> list[str]:
        """Layers with an adapter."""
        return [key.replace("/", ".") for key in self.down]

    def adapter(self, name: str) -> tuple[nn.Parameter, nn.Parameter]:
        """A `[r, d_in]` and B `[d_out, r]` of one layer."""
        return self.down[_key(name)], self.up[_key(name)]

    def describe(self) -> dict[str, Any]:
        """Shapes, by layer ``[d_out, r, d_in]``, as plain data."""
        return {name: [up.shape[0], *down.shape] for name in self.names for down, up in [self.adapter(name)]}

    @classmethod
    def rebuilt(cls, shapes: Mapping[str, Sequence[int]], gate: Gate) -> Request:
        """Empty adapters of these shapes."""
        down = {name: torch.zeros(r, d_in) for name, (_, r, d_in) in shapes.items()}
        up = {name: torch.zeros(d_out, r) for name, (d_out, r, _) in shapes.items()}
        return cls(down, up, gate)


class Gated(Composed):
    """A causal language model and the adapters of several requests: ``W x + sum_k g_k B_k A_k x`` in each adapted layer.

    The weight g_k of request k is found anew at each token, from the mean over the tokens that this one sees of the
    base's hidden states in some layers. So it depends neither on padding nor on other rows, and a text is scored as it would be
    generated. Where all weights are 0 the answers are the base's, bit by bit. Every call goes through the base twice, first
    without adapters. Whoever holds the weights can leave the adapters out.
    """

    def __init__(self, target: nn.Module, layers: Sequence[str], requests: Sequence[Request]) -> None:
        super().__init__()
        self.target, self.layers, self.adapted = target, list(layers), nn.ModuleList(requests)

    @property
    def requests(self) -> list[Request]:
        """What each request left, in order."""
        return [request for request in self.adapted if isinstance(request, Request)]

    @property
    def base(self) -> nn.Module:  # noqa: D102
        return self.target

    @property
    def members(self) -> Sequence[nn.Module]:  # noqa: D102
        return [self.target]

    def weights(self, inputs: Mapping[str, Tensor], past: Past | None = None) -> list[Tensor]:
        """By request, the `[B, T]` weight of its adapters at each token."""
        features = visible_means(self.target, self.layers, inputs, past)
        return [request.gate(features) for request in self.requests]

    def logits(  # noqa: D102
        self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None
    ) -> Tensor:
        keep = inputs["input_ids"].shape[1] if keep is None else keep
        plain, adapted = (None, None) if past is None else (past.part("plain"), past.part("adapted"))
        weights = self.weights(inputs, plain) if self.requests else []
        with self._adapted(weights):
            return call_language_model(self.target, inputs, keep, adapted)

    @contextlib.contextmanager
    def _adapted(self, weights: Sequence[Tensor]) -> Iterator[None]:
        """Inside the block the base's layers add what the adapters give, each by its weight."""
        modules = dict(self.target.named_modules())
        handles = []
        try:
            for request, weight in zip(self.requests, weights, strict=True):
                for name in request.names:
                    hook = _adding(name, *request.adapter(name), weight)
                    handles.append(modules[name].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def architecture(self, known: Architecture | None) -> Architecture | None:  # noqa: D102
        base = architecture_of(self.target, known)
        if base is None:
            return None
        requests = [
            {"adapters": r.describe(), "width": r.gate.get_buffer("mean").shape[1]} for r in self.requests
        ]
        options = {"base": base.model_dump(mode="json"), "layers": self.layers, "requests": requests}
        return Architecture(kind="composed", name="gated", options=options)

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any]) -> Gated:  # noqa: D102
        layers = options["layers"]
        requests = [
            Request.rebuilt(request["adapters"], Gate(len(layers), request["width"]))
            for request in options["requests"]
        ]
        return cls(Architecture(**options["base"]).with_drawn_weights(), layers, requests)


@torch.no_grad()
def visible_means(
    model: nn.Module, layers: Sequence[str], inputs: Mapping[str, Tensor], past: Past | None = None
) -> Tensor:
    """`[B, T, layers, d]`: each layer's activations, averaged at every token over the tokens that it sees."""
    read = None if past is None else past.part("model")
    with captured(model, layers) as caught:
        call_language_model(model, inputs, 1, read)
    made = {layer: caught[layer].float() for layer in layers}
    if past is not None:
        if past.kept is not None:
            made = {layer: torch.cat([past.kept[layer], value], 1) for layer, value in made.items()}
        past.kept = made
    seen = visible(inputs).float()
    seen = seen / seen.sum(-1, keepdim=True).clamp(min=1)
    return torch.stack([seen @ made[layer] for layer in layers], 2)


def visible(inputs: Mapping[str, Tensor]) -> Tensor:
    """`[B, T, L]` bool: which of all L tokens so far each of the last T sees, itself among them; L is T without a past."""
    ids, mask = inputs["input_ids"], inputs.get("attention_mask")
    n, total = ids.shape[1], ids.shape[1] if mask is None else mask.shape[-1]
    earlier = torch.ones(n, total, dtype=torch.bool, device=ids.device).tril(total - n)
    if mask is None:
        return earlier.expand(len(ids), -1, -1)
    if mask.dim() == 2:
        return earlier & mask[:, None, :].bool()
    # One mask for all heads, True or a score of 0 where a token is seen.
    return earlier & (mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0)


def _adding(name: str, down: Tensor, up: Tensor, weight: Tensor) -> Any:
    def add(_module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        if x.dim() != 3:
            raise BadInput(
                f"layer '{name}' mixes the tokens of all rows and can have no gated adapter; name others"
            )
        # A head sees the last positions only.
        part = weight[:, -x.shape[1] :, None].to(output.dtype)
        return output + part * F.linear(F.linear(x, down.to(x.dtype)), up.to(x.dtype))

    return add


def _key(name: str) -> str:
    return name.replace(".", "/")  # a dot separates modules in the names of a state dict
