"""Text-to-image diffusion: one prompt in, the noise of a noisy image out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Family, Outputs, Rows, block_names, wide
from expunge.families.judges import Judge
from expunge.families.models import innermost
from expunge.families.noise import NoiseSchedule, draw_timesteps, row_seed
from expunge.families.tokenizers import describe_tokenizer, require_fast, restore_tokenizer
from expunge.families.viewers import ClipViewer, InceptionViewer, bytes_of

if TYPE_CHECKING:
    from datasets import Dataset

JUDGED = {"concept_correct", "concept_probability", "context_correct", "judge_features"}
"""Quantities that judges of generated images say."""

CLIP_QUANTITIES = {
    "clip_score": "100 times the cosine of the sampled image and the prompt in CLIP, 0 where negative, [n]"
}
INCEPTION_QUANTITIES = {
    "inception_features": "pooled Inception features of the sampled image, [n, 2048]",
    "inception_image_features": "the same of the row's own image, decoded from its latents, [n, 2048]",
}

VALUES_AT_ONCE = 1 << 24
"""Latent values of one forward pass without gradients."""


class Diffusion(Family):
    """Rows are a prompt and the latents of an image; a position is a timestep at which noise is added to them.

    For evidence and references every row has `timesteps` fixed draws of timestep and noise, which its id determines, so
    that the same row means the same question to every model. In training both are drawn anew at every visit (`redraw`),
    one per row.

    ``nll`` is the weighted mean squared error of the denoiser, a reweighted variational bound (Ho et al. 2020), not the
    bound itself: constants are left out, and the mean is over latent values, as everybody trains. A target is the clean
    image; what the denoiser should say of it follows from the noise and the schedule, so that relabeling changes what a
    prompt is taught to show and not what goes in.

    Columns: `prompt`, `latents`, and for rows to forget `anchor_prompt` and `anchor_latents`, what should be asked and shown
    instead. Rows without latents (prompts only) are seen as pure noise at the last timestep and have no valid position.

    Args:
        tokenizer: fast tokenizer of the text encoder.
        schedule: configuration of a diffusers scheduler.
        shape: (channels, height, width) of the latents.
        length: tokens of a prompt, padding included.
        timesteps: fixed draws per row.
        timestep_power: timesteps are ``steps * u ^ power``; 1 is uniform, less prefers noisy ones.
        snr_cap: errors of models that predict the sample weigh ``min(snr + 1, cap)``; None weighs all alike.
        guidance: classifier-free guidance of sampling; 1 is none.
        steps: of sampling (DDIM, deterministic).
        judges: classifiers of generated images.
        concept: what is to be forgotten, where the judges know it: values by column, such as ``{"style": "neon"}``. Of two
            columns it is the pair that is to be forgotten, as with ``{"style": "neon", "object": "cross"}``.
        group: column for breakdowns.
        clip: folder of a CLIP model, where its score of generated images is wanted.
        inception: safetensors file of the Inception network, where distances on its features are.
    """

    name = "diffusion"
    likelihood = "bound"
    redraws = True
    quantities = {
        "loss": "weighted mean squared error of the denoiser, averaged over the row's timesteps, [n]",
        "token_loss": "the same at each timestep, [n, T]",
        "features:LAYER": "activations of LAYER averaged over timesteps and positions, [n, d]",
        "image": "the image sampled from the row's prompt and its own starting noise, 8-bit RGB, [n, 3 * H * W]",
        "concept_correct": "1 where the judges of the concept's columns see what the prompt asks for, else 0, [n]",
        "concept_probability": "probability that they give to the concept to be forgotten; NaN where none is known, [n]",
        "context_correct": "1 where the other judges see what the prompt asks for, else 0; NaN where there are none, [n]",
        "judge_features": "what the judges' last layers read of the sampled image, [n, d]",
        "image_features": "what they read of the row's own image, decoded from its latents, [n, d]",
    }
    generated = frozenset(
        {
            "image",
            "concept_correct",
            "concept_probability",
            "context_correct",
            "judge_features",
            "image_features",
            "clip_score",
            "inception_features",
            "inception_image_features",
        }
    )
    relabelings = {  # the names that classifiers use
        "random": "the row's anchor image: another concept, which its prompt should show instead",
        "noise": "an image of pure noise",
    }

    def __init__(
        self,
        tokenizer: Any,
        schedule: Mapping[str, Any],
        shape: Sequence[int],
        length: int = 77,
        timesteps: int = 8,
        timestep_power: float = 1.0,
        snr_cap: float | None = None,
        guidance: float = 7.5,
        steps: int = 50,
        judges: Sequence[Judge] = (),
        concept: Mapping[str, str] | None = None,
        group: str | None = None,
        clip: str | None = None,
        inception: str | None = None,
    ) -> None:
        self.tokenizer = require_fast(tokenizer)
        self.noise = NoiseSchedule(dict(schedule))
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.length, self.timesteps, self.timestep_power = length, timesteps, timestep_power
        self.snr_cap, self.guidance, self.steps, self.group = snr_cap, guidance, steps, group
        self.judges = {judge.column: judge for judge in judges}
        self.concept = dict(concept or {})
        for column, value in self.concept.items():
            if column not in self.judges:
                raise BadInput(f"no judge knows '{column}', the column of the concept to be forgotten")
            self.judges[column].number(value)
        self.clip = None if clip is None else ClipViewer(clip)
        self.inception = None if inception is None else InceptionViewer(inception)
        # What takes a network that is not there is no quantity, so that no metric asks for it.
        more = {**(CLIP_QUANTITIES if self.clip else {}), **(INCEPTION_QUANTITIES if self.inception else {})}
        self.quantities = {**type(self).quantities, **more}  # pyright: ignore[reportAttributeAccessIssue]

    @property
    def size(self) -> int:
        """Values of one image's latents."""
        return int(np.prod(self.shape))

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "family": self.name,
            "schedule": self.noise.config,
            "shape": list(self.shape),
            "length": self.length,
            "timesteps": self.timesteps,
            "timestep_power": self.timestep_power,
            "snr_cap": self.snr_cap,
            "guidance": self.guidance,
            "steps": self.steps,
            "judges": [judge.describe() for judge in self.judges.values()],
            "concept": self.concept,
            "group": self.group,
            "clip": None if self.clip is None else self.clip.folder,
            "inception": None if self.inception is None else self.inception.weights,
            "tokenizer": describe_tokenizer(self.tokenizer),
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> Diffusion:
        """The inverse of `describe`."""
        values = {k: v for k, v in description.items() if k not in ("family", "tokenizer", "judges")}
        tokenizer = restore_tokenizer(description["tokenizer"], description["length"])
        return cls(tokenizer, judges=[Judge(**judge) for judge in description["judges"]], **values)

    def tokens(self, prompts: Sequence[str]) -> Tensor:
        """`[B, L]` token ids of prompts, cut and padded to the encoder's length."""
        encoded = self.tokenizer(
            list(prompts), padding="max_length", truncation=True, max_length=self.length, return_tensors="pt"
        )
        return encoded["input_ids"]

    def collate(self, rows: Rows) -> Batch:  # noqa: D102
        ids = [str(i) for i in rows["id"]]
        known = "latents" in rows
        n, steps = len(ids), self.timesteps if known else 1
        inputs = {"input_ids": self.tokens([str(p) for p in rows["prompt"]])}
        named = "anchor_prompt" if "anchor_prompt" in rows else "prompt"
        inputs["anchor_ids"] = self.tokens([str(p) for p in rows[named]])
        clean = self._latents(rows["latents"]) if known else torch.zeros(n, self.size)
        noise, places = torch.empty(n, steps, self.size), torch.empty(n, steps)
        for i, name in enumerate(ids):
            random = np.random.default_rng(row_seed(name))
            noise[i] = torch.from_numpy(random.standard_normal((steps, self.size), dtype=np.float32))
            # One draw in each part of the way, so that few timesteps cover it.
            places[i] = torch.from_numpy((np.arange(steps) + random.random(steps)) / steps)
        inputs["noise"] = noise
        last = torch.full((n, steps), self.noise.steps - 1)
        inputs["timesteps"] = draw_timesteps(places, self.noise.steps, self.timestep_power) if known else last
        inputs["clean"] = clean
        inputs["anchor"] = self._latents(rows["anchor_latents"]) if "anchor_latents" in rows else clean
        targets = clean.unsqueeze(1).expand(n, steps, self.size)
        return Batch(ids, inputs, targets, torch.full((n, steps), known))

    def _latents(self, column: Sequence[Any]) -> Tensor:
        return torch.from_numpy(np.stack([np.asarray(v, dtype=np.float32).reshape(-1) for v in column]))

    def redraw(self, batch: Batch, generator: torch.Generator) -> Batch:
        """One new timestep and noise per row; the timesteps of a batch are spread evenly over the way."""
        n = len(batch)
        places = (torch.randperm(n, generator=generator) + torch.rand(n, generator=generator)) / max(n, 1)
        timesteps = draw_timesteps(places, self.noise.steps, self.timestep_power).unsqueeze(1)
        noise = torch.randn(n, 1, self.size, generator=generator)
        device, one = batch.targets.device, slice(0, 1)
        drawn = {"noise": noise.to(device), "timesteps": timesteps.to(device)}
        known = batch.mask[:, one]
        drawn["timesteps"] = torch.where(known, drawn["timesteps"], self.noise.steps - 1)
        return Batch(batch.ids, {**batch.inputs, **drawn}, batch.targets[:, one], known)

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        shaped = self.noisy(batch).unflatten(-1, self.shape)
        return model(shaped, batch.inputs["timesteps"], batch.inputs["input_ids"]).flatten(2)

    def noisy(self, batch: Batch) -> Tensor:
        """`[B, T, D]` what the denoiser sees: the row's own image, whatever its target, under noise."""
        clean = batch.inputs["clean"].unsqueeze(1)
        return self.noise.noisy(clean, batch.inputs["noise"], batch.inputs["timesteps"])

    def at(self, batch: Batch, noisy: Tensor, timesteps: Tensor) -> Batch:
        """The same prompts asked about `noisy` (`[B, C, h, w]`) at `timesteps` (`[B]`); one position a row."""
        steps = timesteps.unsqueeze(1)
        noise = noisy.flatten(1).unsqueeze(1) / self.noise.noise(steps)
        asked = {
            **batch.inputs,
            "clean": torch.zeros_like(batch.inputs["clean"]),
            "noise": noise,
            "timesteps": steps,
        }
        return Batch(batch.ids, asked, torch.zeros_like(noise), torch.ones_like(steps, dtype=torch.bool))

    def arrange(self, hidden: Tensor, batch: Batch) -> Tensor:
        """Timesteps of a row behind each other: `[B * T, positions, d]` to `[B, T * positions, d]`."""
        return hidden.reshape(len(batch), -1, hidden.shape[-1])

    def weights(self, timesteps: Tensor) -> Tensor:
        """`[B, T]` what an error counts at each timestep."""
        if self.snr_cap is None:
            return torch.ones(timesteps.shape, device=timesteps.device)
        return (self.noise.snr(timesteps) + 1).clamp(max=self.snr_cap)

    def errors(self, outputs: Outputs, batch: Batch) -> Tensor:
        """`[B, T]` weighted mean squared error, float32 or wider; 0 where a position does not count."""
        timesteps = batch.inputs["timesteps"]
        wanted = self.noise.wanted(batch.targets, self.noisy(batch), timesteps)
        error = (wide(outputs.prediction) - wanted).square().mean(-1)
        return error * self.weights(timesteps) * batch.mask

    def nll(self, outputs: Outputs, batch: Batch) -> Tensor:  # noqa: D102
        return self.errors(outputs, batch).sum(-1)

    def divergence(self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Weighted mean squared distance of the predictions, in the units of `nll`; divided by the temperature."""
        distance = (wide(p.prediction) - wide(q.prediction)).square().mean(-1)
        return (distance * self.weights(batch.inputs["timesteps"]) / temperature * batch.mask).sum(-1)

    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:  # noqa: D102
        if how == "random":
            targets = batch.inputs["anchor"].unsqueeze(1).expand_as(batch.targets)
        elif how == "noise":
            targets = torch.randn(batch.targets.shape, generator=generator).to(batch.targets)
        else:
            raise BadInput(f"diffusion cannot relabel by '{how}'; known: {', '.join(self.relabelings)}")
        return replace(batch, targets=targets)

    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:  # noqa: D102
        errors = self.errors(outputs, batch)
        made: dict[str, Tensor] = {}
        for quantity in quantities:
            if quantity.startswith("features:"):
                made[quantity] = outputs.hidden[quantity.removeprefix("features:")].float().mean(1)
            elif quantity == "loss":
                made[quantity] = errors.sum(-1) / batch.mask.sum(-1)
            elif quantity == "token_loss":
                made[quantity] = errors
            else:
                raise BadInput(f"diffusion has no quantity '{quantity}'; known: {', '.join(self.quantities)}")
        return made

    def generate(  # noqa: D102
        self, model: nn.Module, dataset: Dataset, quantities: Sequence[str], batch_size: int
    ) -> dict[str, Any]:
        from expunge.families.denoising import decoded, sample, starting_noise

        rows = dataset.with_format(None)
        made: dict[str, Any] = {}
        if set(quantities) - {"image_features", "inception_image_features"}:
            noise = starting_noise(self, [str(i) for i in rows["id"][:]])
            images = sample(self, model, [str(p) for p in rows["prompt"][:]], noise, batch_size)
            made["image"] = bytes_of(images).flatten(1).numpy()
            if self.clip is not None and "clip_score" in quantities:
                cosine = self.clip.similarity(images, [str(p) for p in rows["prompt"][:]])
                made["clip_score"] = 100 * np.maximum(cosine, 0)
            if self.inception is not None and "inception_features" in quantities:
                made["inception_features"] = self.inception.features(images)
            if set(quantities) & JUDGED:
                made |= self._judged(images, rows)
        if set(quantities) & {"image_features", "inception_image_features"}:
            own = decoded(model, self._latents(rows["latents"][:]).unflatten(1, self.shape), batch_size)
            if "image_features" in quantities:
                made["image_features"] = self._features(own)
            if self.inception is not None and "inception_image_features" in quantities:
                made["inception_image_features"] = self.inception.features(own)
        return {name: made[name] for name in quantities}

    def _features(self, images: Tensor) -> np.ndarray:
        return np.concatenate([judge.judge(images).features for judge in self.judges.values()], axis=1)

    def _judged(self, images: Tensor, rows: Dataset) -> dict[str, np.ndarray]:
        if not self.judges:
            raise BadInput(
                "no judge of generated images is known; name some, or leave out what they would say"
            )
        columns = list(self.concept) or [next(iter(self.judges))]
        seen = {name: judge.judge(images) for name, judge in self.judges.items()}
        right, probability = {}, np.ones(len(images))
        for name, judge in self.judges.items():
            asked = np.asarray([judge.number(str(v)) for v in rows[name][:]])
            logp = seen[name].logp
            right[name] = np.where(np.isnan(logp).any(1), np.nan, logp.argmax(-1) == asked)
        for name, value in self.concept.items():
            probability *= np.exp(seen[name].logp[:, self.judges[name].number(value)])
        others = [right[name] for name in self.judges if name not in columns]
        unknown = np.full(len(images), np.nan)
        return {
            "concept_correct": _all_of([right[name] for name in columns]),
            "concept_probability": probability if self.concept else unknown,
            "context_correct": _all_of(others) if others else unknown,
            "judge_features": np.concatenate([s.features for s in seen.values()], axis=1),
        }

    def groups(self, dataset: Dataset) -> np.ndarray | None:
        """The `group` column where one is named."""
        return None if self.group is None else np.asarray([str(v) for v in dataset[self.group][:]])

    def at_once(self, positions: int) -> int | None:  # noqa: D102
        return max(1, VALUES_AT_ONCE // (self.timesteps * self.size))

    def layers(self, model: nn.Module) -> list[str]:
        """Blocks of the denoiser; the text encoder runs once per prompt and has no activations per row."""
        return [f"unet.{name}" for name in block_names(innermost(model).get_submodule("unet"))]

    def compared_layers(self, model: nn.Module) -> list[str]:
        """What each resolution of the denoiser hands on: its attention and residual blocks."""
        return [name for name in self.layers(model) if ".attentions." in name or ".resnets." in name]

    def head(self, model: nn.Module) -> str:
        """The convolution that gives the prediction."""
        return "unet.conv_out"

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        if "prompt" not in dataset.column_names:
            raise BadInput(f"{name} has no column 'prompt'; it has {', '.join(dataset.column_names)}")
        for column in self.judges:
            if column not in dataset.column_names:
                raise BadInput(f"{name} has no column '{column}', which a judge looks for")
        empty = [i for i, p in zip(dataset["id"][:], dataset["prompt"][:], strict=True) if p is None]
        if empty:
            raise BadInput(
                f"{name} has {len(empty)} rows without a prompt (first: id '{empty[0]}'); drop them"
            )
        for column in ("latents", "anchor_latents"):
            if column not in dataset.column_names:
                continue
            values = np.asarray(dataset.with_format("numpy")[column][:])
            if values.reshape(len(values), -1).shape[1] != self.size:
                raise BadInput(
                    f"{name}: '{column}' has {values.reshape(len(values), -1).shape[1]} values a row; the model's latents "
                    f"have {self.size}"
                )
            bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(1))
            if len(bad):
                raise BadInput(
                    f"{name} has {len(bad)} rows with NaN or infinity in '{column}' (first: id '{dataset['id'][int(bad[0])]}')"
                )


def _all_of(right: Sequence[np.ndarray]) -> np.ndarray:
    """`[n]` 1 where all are (`[n]` of 1, 0 and NaN), else 0; NaN where one is, in int8 unless that is somewhere."""
    lowest = np.min(right, axis=0)
    return lowest if np.isnan(lowest).any() else lowest.astype(np.int8)
