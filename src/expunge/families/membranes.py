"""A text-to-image model with low-rank adapters that a prompt lets in the more, the more it asks for what they erase."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.gated import Request
from expunge.families.models import Architecture, Composed, Past, architecture_of, clone
from expunge.families.pipelines import DiffusionModel

Likeness = Literal["cosine", "centered"]


class PromptGate(nn.Module):
    """How much of an adapter a prompt p lets in: facilitated transport, for the erased phrases e.

    ``max_e max(cos(vec t(p), vec t(e)), |words(p) & words(e)| / |words(e)|)``, t the `[L, d]` embeddings of all positions,
    words the distinct tokens without special ones; clamped to [0, 1] and raised to `power`.

    Embeddings of any two prompts of CLIP are near each other, start and padding being alike. ``centered`` takes the cosine
    of their differences from the embeddings of the empty prompt, so that unrelated prompts let in next to nothing.
    """

    phrases: Tensor
    embedded: Tensor
    nothing: Tensor
    special: Tensor

    def __init__(
        self, n: int, length: int, positions: int, width: int, n_special: int, likeness: Likeness = "cosine", power: int = 1
    ) -> None:  # fmt: skip
        super().__init__()
        self.likeness, self.power = likeness, power
        # Buffers: what the target says of the phrases, which is not trained.
        self.register_buffer("phrases", torch.zeros(n, length, dtype=torch.long))
        self.register_buffer("embedded", torch.zeros(n, positions, width))
        self.register_buffer("nothing", torch.zeros(positions, width))
        self.register_buffer("special", torch.zeros(n_special, dtype=torch.long))

    @classmethod
    @torch.no_grad()
    def fitted(
        cls, model: DiffusionModel, phrases: Tensor, empty: Tensor, likeness: Likeness, power: int
    ) -> PromptGate:
        """A gate for phrases `[n, L]`; the tokens of the `empty` prompt (`[L]`) are the special ones."""
        special = empty.unique()
        nothing = model.encode(empty[None])[0]
        made = cls(*phrases.shape, *nothing.shape, len(special), likeness, power)  # pyright: ignore[reportCallIssue]
        made.phrases.copy_(phrases)
        made.embedded.copy_(model.encode(phrases))
        made.nothing.copy_(nothing)
        made.special.copy_(special)
        return made.to(phrases.device)

    def cosine(self, embedded: Tensor) -> Tensor:
        """`[N, n]` of embeddings `[N, L, d]` and the phrases', all positions as one vector."""
        known, shown = self.embedded, embedded.to(self.embedded)
        if self.likeness == "centered":
            known, shown = known - self.nothing, shown - self.nothing
        return F.cosine_similarity(shown.flatten(1)[:, None], known.flatten(1)[None], dim=-1)

    def overlap(self, input_ids: Tensor) -> Tensor:
        """`[N, n]` share of a phrase's distinct words that the prompt has, too."""
        phrases = [self._words(row) for row in self.phrases.tolist()]
        prompts = [self._words(row) for row in input_ids.tolist()]
        shares = [[len(p & e) / max(1, len(e)) for e in phrases] for p in prompts]
        return torch.tensor(shares, device=self.embedded.device).reshape(len(prompts), len(phrases))

    def _words(self, row: list[int]) -> set[int]:
        return set(row) - set(self.special.tolist())

    def forward(self, embedded: Tensor, input_ids: Tensor | None = None) -> Tensor:
        """`[N]` weights in [0, 1]; where the words are not known, of the embeddings alone."""
        likeness = self.cosine(embedded)
        if input_ids is not None:
            likeness = torch.maximum(likeness, self.overlap(input_ids).to(likeness))
        return likeness.amax(-1).clamp(0, 1) ** self.power

    def describe(self) -> dict[str, Any]:
        """What builds an empty gate of the same shape."""
        n, positions, width = self.embedded.shape
        return {
            "n": n, "length": self.phrases.shape[1], "positions": positions, "width": width, "n_special": len(self.special),
            "likeness": self.likeness, "power": self.power,
        }  # fmt: skip


class Membrane(Request):
    """One adapter of linear and convolution layers: A `[r, d_in]` or `[r, d_in, h, w]`, B `[d_out, r]` or with 1 by 1."""

    def describe(self) -> dict[str, Any]:
        """Shapes of A and B by layer, as plain data."""
        return {name: [list(part.shape) for part in self.adapter(name)] for name in self.names}

    @classmethod
    def rebuilt(cls, shapes: Mapping[str, Sequence[Any]], gate: nn.Module) -> Membrane:
        """An empty adapter of these shapes."""
        down = {name: torch.zeros(*a) for name, (a, _) in shapes.items()}
        return cls(down, {name: torch.zeros(*b) for name, (_, b) in shapes.items()}, gate)  # pyright: ignore

    def change(self, name: str) -> Tensor:
        """``B A`` in the shape of the layer's weight."""
        down, up = self.adapter(name)
        return (up.flatten(1) @ down.flatten(1)).unflatten(1, down.shape[1:])


class Permeable(Composed):
    """A `DiffusionModel` and adapters: ``W x + sum_k g_k B_k A_k x`` in each adapted layer, g_k of the row's prompt.

    It encodes, denoises and decodes as its base does. A prompt that lets nothing in is answered by the base, bit by bit.
    Whoever holds the weights can leave the adapters out.
    """

    def __init__(self, target: nn.Module, membranes: Sequence[Membrane]) -> None:
        super().__init__()
        self.target, self.adapted = target, nn.ModuleList(membranes)

    @property
    def base(self) -> DiffusionModel:  # noqa: D102
        assert isinstance(self.target, DiffusionModel)
        return self.target

    @property
    def members(self) -> Sequence[nn.Module]:  # noqa: D102
        return [self.target]

    @property
    def membranes(self) -> list[Membrane]:
        """The adapters, in order."""
        return [m for m in self.adapted if isinstance(m, Membrane)]

    @property
    def config(self) -> dict[str, Any]:
        """That of the base."""
        return self.base.config

    def forward(self, noisy: Tensor, timesteps: Tensor, input_ids: Tensor) -> Tensor:  # pyright: ignore
        """As of `DiffusionModel`: `[B, T, C, h, w]` at `[B, T]` under `[B, L]`."""
        embedded = self.encode(input_ids)
        admitted = self.admitted(input_ids, embedded)
        embedded, admitted = (v.repeat_interleave(noisy.shape[1], 0) for v in (embedded, admitted))
        flat = self.denoise(noisy.flatten(0, 1), timesteps.flatten(), embedded, admitted)
        return flat.unflatten(0, noisy.shape[:2])

    def encode(self, input_ids: Tensor) -> Tensor:
        """`[B, L]` token ids to `[B, L, d]` embeddings."""
        return self.base.encode(input_ids)

    def admitted(self, input_ids: Tensor | None, embedded: Tensor) -> Tensor:
        """`[N, K]` weight of each adapter for prompts of these tokens and embeddings."""
        weights = [m.gate(embedded, input_ids) for m in self.membranes]
        return torch.stack(weights, 1) if weights else embedded.new_zeros(len(embedded), 0)

    def denoise(
        self, noisy: Tensor, timesteps: Tensor, embedded: Tensor, admitted: Tensor | None = None
    ) -> Tensor:
        """As of `DiffusionModel`; without `admitted` the weights follow from the embeddings alone."""
        weights = self.admitted(None, embedded) if admitted is None else admitted
        with self._let_in(weights):
            return self.base.denoise(noisy, timesteps, embedded)

    def positions(self, embedded: Tensor) -> Tensor:
        """As of `DiffusionModel`."""
        return self.base.positions(embedded)

    def decode(self, latents: Tensor) -> Tensor:
        """`[N, C, h, w]` latents to images."""
        return self.base.decode(latents)

    @contextlib.contextmanager
    def _let_in(self, weights: Tensor) -> Iterator[None]:
        modules = dict(self.base.named_modules())
        handles = []
        try:
            for membrane, weight in zip(self.membranes, weights.unbind(1), strict=True):
                for name in membrane.names:
                    hook = _adding(*membrane.adapter(name), weight)
                    handles.append(modules[name].register_forward_hook(hook))
            yield
        finally:
            for handle in handles:
                handle.remove()

    @torch.no_grad()
    def merged(self) -> DiffusionModel:
        """A model of its own with all adapters fully in whatever the prompt: what a plain pipeline can hold."""
        made = clone(self.base)
        assert isinstance(made, DiffusionModel)
        for membrane in self.membranes:
            for name in membrane.names:
                weight = made.get_parameter(f"{name}.weight")
                weight += membrane.change(name).to(weight)
        return made

    def logits(self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None) -> Tensor:  # noqa: D102
        raise BadInput("a diffusion model has no logits; call it with noisy latents, timesteps and token ids")

    def architecture(self, known: Architecture | None) -> Architecture | None:  # noqa: D102
        base = architecture_of(self.target, known)
        if base is None:
            return None
        parts = [{"adapters": m.describe(), "gate": m.gate.describe()} for m in self.membranes]  # pyright: ignore
        options = {"base": base.model_dump(mode="json"), "membranes": parts}
        return Architecture(kind="composed", name="permeable", options=options)

    @classmethod
    def rebuilt(cls, options: Mapping[str, Any]) -> Permeable:  # noqa: D102
        membranes = [
            Membrane.rebuilt(part["adapters"], PromptGate(**part["gate"])) for part in options["membranes"]
        ]
        return cls(Architecture(**options["base"]).with_drawn_weights(), membranes)


def _adding(down: Tensor, up: Tensor, weight: Tensor) -> Any:
    def add(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
        x = args[0]
        if isinstance(module, nn.Conv2d):
            inner = F.conv2d(x, down.to(x), None, module.stride, module.padding, module.dilation)
            part = F.conv2d(inner, up.to(x))
        else:
            part = F.linear(F.linear(x, down.to(x)), up.to(x))
        return output + weight.to(x).view(-1, *[1] * (x.dim() - 1)) * part

    return add
