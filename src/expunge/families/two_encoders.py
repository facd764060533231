"""Stable Diffusion XL: prompts are read by two text encoders, and the denoiser also takes a summary and the image's size."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.pipelines import DiffusionModel, plain_config


class TwoEncoders(nn.Module):
    """Both encoders' penultimate hidden states side by side, and behind the last position the second one's summary.

    The summary (`pooled`, `[p]`) is filled up with zeros to the width of a position, so that everything a prompt becomes is
    one tensor `[B, L + 1, d]`.

    Args:
        first: CLIP text model.
        second: CLIP text model with projection, of the same vocabulary.
        second_pad: what the second one's tokenizer pads with; the first one's pads with the end token.
        blank_is_zero: whether the empty prompt is all zeros, as the published models were trained.
    """

    def __init__(self, first: nn.Module, second: nn.Module, second_pad: int, *, blank_is_zero: bool) -> None:
        super().__init__()
        self.first, self.second = first, second
        self.second_pad, self.blank_is_zero = second_pad, blank_is_zero

    def forward(self, input_ids: Tensor) -> tuple[Tensor]:
        """`[B, L]` token ids of the first tokenizer to `[B, L + 1, d]`."""
        end = int(self.first.config.eos_token_id)  # pyright: ignore
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        first_end = input_ids.eq(end).int().argmax(1, keepdim=True)
        theirs = torch.where(places > first_end, self.second_pad, input_ids)
        one = self.first(input_ids, output_hidden_states=True).hidden_states[-2]
        two = self.second(theirs, output_hidden_states=True)
        states = torch.cat([one, two.hidden_states[-2]], dim=-1)
        summary = nn.functional.pad(two.text_embeds, (0, states.shape[-1] - two.text_embeds.shape[-1]))
        made = torch.cat([states, summary[:, None]], dim=1)
        if self.blank_is_zero:
            made = made * (first_end > 1)[..., None]
        return (made,)

    @property
    def width(self) -> int:
        """Values of the summary."""
        return int(self.second.config.projection_dim)  # pyright: ignore

    def get_input_embeddings(self) -> nn.Module:
        """There is no one table of token embeddings."""
        raise BadInput(
            "the model reads prompts with two text encoders, and token embeddings are searched or trained in one; "
            "take a Stable Diffusion 1.x or 2.x model for that"
        )


class TwoEncoderModel(DiffusionModel):
    """A denoiser that is told the summary of the prompt and the image's size besides; sizes are the model's own, uncropped."""

    text_encoder: TwoEncoders

    def denoise(  # noqa: D102
        self, noisy: Tensor, timesteps: Tensor, embedded: Tensor, admitted: Tensor | None = None
    ) -> Tensor:
        side = float(self.side)
        sizes = torch.tensor([side, side, 0, 0, side, side], device=noisy.device, dtype=embedded.dtype)
        told = {
            "text_embeds": embedded[:, -1, : self.text_encoder.width],
            "time_ids": sizes.expand(len(noisy), -1),
        }
        return self.unet(
            noisy,
            timesteps,
            encoder_hidden_states=embedded[:, :-1],
            added_cond_kwargs=told,
            return_dict=False,
        )[0]

    def positions(self, embedded: Tensor) -> Tensor:  # noqa: D102
        return embedded[:, :-1]

    @property
    def config(self) -> dict[str, Any]:  # noqa: D102
        made = {"unet": plain_config(self.unet.config), "vae": plain_config(self.vae.config)}  # pyright: ignore
        encoder = self.text_encoder
        return {
            **made,
            "text_encoder": encoder.first.config.to_dict(),  # pyright: ignore
            "second_encoder": encoder.second.config.to_dict(),  # pyright: ignore
            "second_pad": encoder.second_pad,
            "blank_is_zero": encoder.blank_is_zero,
        }
