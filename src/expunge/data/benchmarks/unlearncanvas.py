"""UnlearnCanvas: erasing one of 50 styles or 20 objects from a Stable Diffusion model that was fine-tuned to draw them all."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from pydantic import Field
from torch import nn

from expunge.data.benchmarks.base import Benchmark
from expunge.data.checkpoints import Checkpoint
from expunge.data.concepts import shared_values, shows
from expunge.data.pictures import read_pictures
from expunge.data.selection import Selection
from expunge.errors import BadInput, Missing, did_you_mean
from expunge.families import Diffusion
from expunge.families.judges import Judge
from expunge.families.models import fingerprint
from expunge.families.pipelines import DiffusionModel
from expunge.families.timm_vit import read_timm_vit
from expunge.files import CACHE, cached, digest, folder_atomic
from expunge.parameters import param
from expunge.problem import Concept, Problem, Training

STYLES = tuple(
    """
    Abstractionism Artist_Sketch Blossom_Season Bricks Byzantine Cartoon Cold_Warm Color_Fantasy Comic_Etch Crayon Cubism
    Dadaism Dapple Defoliation Early_Autumn Expressionism Fauvism French Glowing_Sunset Gorgeous_Love Greenfield
    Impressionism Ink_Art Joy Liquid_Dreams Magic_Cube Meta_Physics Meteor_Shower Monet Mosaic Neon_Lines On_Fire Pastel
    Pencil_Drawing Picasso Pop_Art Red_Blue_Ink Rust Seed_Images Sketch Sponge_Dabbed Structuralism Superstring Surrealism
    Ukiyoe Van_Gogh Vibrant_Flow Warm_Love Warm_Smear Watercolor Winter
    """.split()  # noqa: SIM905
)
"""Fifty styles, and the photographs that they were painted from."""
OBJECTS = tuple(
    """
    Architectures Bears Birds Butterfly Cats Dogs Fishes Flame Flowers Frogs Horses Human Jellyfish Rabbits Sandwiches Sea
    Statues Towers Trees Waterfalls
    """.split()  # noqa: SIM905
)
PHOTOGRAPHS = "Seed_Images"
CHECKPOINTS = "https://drive.google.com/drive/folders/18dhkXyZQWjdMvlAlxZx3fZhdCZvlj2Hw"

FINE_TUNING = Training(epochs=10, lr=1e-6, batch_size=32, optimizer="adamw", weight_decay=0.01)
"""As published for Stable Diffusion 1.5: 5,000 to 10,000 steps."""


def prompt(style: str, thing: str) -> str:
    """How the published models were taught to be asked."""
    return f"A {thing} image in {style.replace('_', ' ')} style."


class UnlearnCanvas(Benchmark):
    """51 styles (photographs among them) of 20 objects, 20 images of each pair; a style, an object or a pair is to be erased.

    Zhang et al., NeurIPS 2024. Give the folder of the published images as `data_dir` (STYLE/OBJECT/NUMBER.jpg), a Stable
    Diffusion folder fine-tuned on them as `model`, and two image classifiers as judges: folders of `transformers`, or the
    published checkpoints (a vision transformer of timm in a pickle, which needs `allow_pickle`). With `pretrained` (Stable
    Diffusion 1.5) in the place of `model`, the target is fine-tuned here, and retrained models are too.

    Rows: `train`, every image as latents of the model's own encoder; `concept`, the prompts that name what is erased,
    and `test` all others, `answers` of each pair: 5,100 images for every model. For a pair (where:style == NAME and object ==
    NAME) an image counts as erased if style or object is not seen; in-domain accuracy is then of both. `earlier` names what
    earlier requests erased (the sequential setting), and `unlearndiffatk` among a study's attacks is the robust one.
    Anchors are the photographs (for a style; of the same objects, which the style was painted from) or the next object.

    Deviations: the starting noise of an image is fixed by its style, object and number, not by the order of sampling, so
    that all models draw from the same; images are not written as JPEG before they are judged; Fréchet distances are on the
    judges' features. The published models saw every image: there are no holdout rows, and membership of single images is
    not asked.
    """

    name: ClassVar[str] = "unlearncanvas"
    title: ClassVar[str] = "UnlearnCanvas"
    family: ClassVar[str] = "diffusion"
    source: ClassVar[str] = "Zhang et al., NeurIPS 2024, arXiv:2402.11846; hub: OPTML-Group/UnlearnCanvas"
    license: ClassVar[str] = "MIT"
    version: ClassVar[int] = 1

    forget: Selection = Field(
        default=Selection.parse("where:style == Van_Gogh"),
        description="what to forget: where:style == NAME, where:object == NAME, or both joined by 'and'",
    )
    data_dir: str | None = Field(default=None, description="folder of the images, as STYLE/OBJECT/NUMBER.jpg")
    style_judge: str | None = Field(
        default=None, description="image classifier of styles: a folder, or the published file"
    )
    object_judge: str | None = Field(default=None, description="image classifier of objects, likewise")
    allow_pickle: bool = Field(
        default=False, description="read judges that are pickle files, which can run code"
    )
    styles: list[str] = Field(default=list(STYLES), description="styles of the model, in the judge's order")
    objects: list[str] = Field(
        default=list(OBJECTS), description="objects of the model, in the judge's order"
    )
    earlier: list[str] = Field(
        default_factory=list,
        description="styles (or objects, as in forget) of earlier requests: their images are gone, and whether they are drawn "
        "again is measured on 'earlier'; goes with 'after' in a study",
    )
    images: int = param(20, "training images of each pair", source="the paper", ge=1)
    answers: int = param(5, "images to be generated for each pair by each model", source="the paper", ge=1)
    guidance: float = param(9.0, "classifier-free guidance of sampling", source="the reference code", ge=1)
    steps: int = param(100, "of sampling (DDIM)", source="the reference code", ge=1)
    clip: str | None = Field(
        default=None, description="folder of a CLIP model (transformers), for its score of generated images"
    )
    inception: str | None = Field(
        default=None,
        description="safetensors file of torch-fidelity's Inception network, for distances on its features",
    )

    def problem(self) -> Problem:  # noqa: D102
        raise Missing(
            "unlearncanvas is about a given model: give a Stable Diffusion folder as model, or as pretrained to fine-tune "
            f"it here (published ones: {CHECKPOINTS}), and the images as data_dir"
        )

    def about(self, checkpoint: Checkpoint, start: nn.Module | None = None) -> Problem:  # noqa: D102
        model = checkpoint.model if checkpoint.model is not None else start
        if not isinstance(checkpoint.family, Diffusion) or not isinstance(model, DiffusionModel):
            raise BadInput(
                "unlearncanvas: the model is no text-to-image model; give a Stable Diffusion folder"
            )
        judges = [
            self._judge("style", self.style_judge, self.styles),
            self._judge("object", self.object_judge, self.objects),
        ]
        about = checkpoint.family
        family = Diffusion(
            about.tokenizer, about.noise.config, about.shape, about.length, guidance=self.guidance, steps=self.steps,
            judges=judges, group="style", clip=self.clip, inception=self.inception,
        )  # fmt: skip
        train = [
            self._row(s, o, i, "train") for s in self.styles for o in self.objects for i in range(self.images)
        ]
        forget_ids, scope = self.forget.apply(Dataset.from_list(train), family)
        values = shared_values(Dataset.from_list(train), set(forget_ids), ("style", "object"))
        if not values:
            raise BadInput(
                f"unlearncanvas: {scope} is no style, no object and no pair of both; name one, such as "
                "where:style == Van_Gogh"
            )
        gone = self._gone(values)
        family.concept = values
        family.group = next((c for c in ("object", "style") if c not in values), "style")
        latents = self._latents(model)
        train = [row for row in train if not shows(row, gone)]
        asked = [
            self._row(s, o, i, "test") for s in self.styles for o in self.objects for i in range(self.answers)
        ]
        for row in asked:
            row["latents"] = latents[row["style"]][self._place(row["object"], row.pop("number"))]
        for row in train:
            number = row.pop("number")
            row["latents"] = latents[row["style"]][self._place(row["object"], number)]
            style, thing = self._instead(row, values, gone)
            row["anchor_prompt"] = prompt(style, thing)
            row["anchor_latents"] = latents[style][self._place(thing, number)]
        probes = {
            "test": [row for row in asked if not shows(row, values) and not shows(row, gone)],
            "concept": [row for row in asked if shows(row, values)],
            "earlier": [row for row in asked if shows(row, gone)],
        }
        return Problem(
            name=self.name,
            family=family,
            train=_as_dataset(train),
            forget_ids=forget_ids,
            probes={name: _as_dataset(rows) for name, rows in probes.items() if rows},
            model=checkpoint.model,
            architecture=checkpoint.architecture,
            # From fresh weights nobody would train it.
            recipe=FINE_TUNING if start is not None else None,
            start=start,
            scope=scope,
            source={"benchmark": self.name, "version": self.version, "data": self.source},
            concept=self._concept(values, gone),
        )

    def _row(self, style: str, thing: str, number: int, part: str) -> dict[str, Any]:
        name = f"{part}-{style}-{thing}-{number:02d}"
        return {"id": name, "style": style, "object": thing, "number": number, "prompt": prompt(style, thing)}

    def _place(self, thing: str, number: int) -> int:
        """Row of an image among those of its style; more answers than images start over."""
        return self.objects.index(thing) * self.images + number % self.images

    def _gone(self, values: dict[str, str]) -> dict[str, tuple[str, ...]]:
        if not self.earlier:
            return {}
        column, value = next(iter(values.items()))
        known = self.styles if column == "style" else self.objects
        if len(values) == 2 or value in self.earlier:
            raise BadInput(
                f"unlearncanvas: 'earlier' goes with another style or object to forget now, not with {values}"
            )
        for name in self.earlier:
            if name not in known:
                raise BadInput(f"unlearncanvas: no {column} is called '{name}'{did_you_mean(name, known)}")
        return {column: tuple(self.earlier)}

    def _instead(
        self, row: dict[str, Any], values: dict[str, str], gone: dict[str, tuple[str, ...]]
    ) -> tuple[str, str]:
        """Style and object that the row's prompt should show; its own where it is to be kept."""
        if not shows(row, values):
            return row["style"], row["object"]
        column = next(iter(values))
        known = self.styles if column == "style" else self.objects
        left = [name for name in known if name not in (values[column], *gone.get(column, ()))]
        if not left:
            raise BadInput(f"unlearncanvas: no other {column} is left that could be drawn instead")
        if column == "style":
            return (PHOTOGRAPHS if PHOTOGRAPHS in left else left[0]), row["object"]
        return row["style"], left[0]

    def _concept(self, values: dict[str, str], gone: dict[str, tuple[str, ...]]) -> Concept:
        pairs = [{"style": s, "object": o} for s in self.styles for o in self.objects]
        asked = [row for row in pairs if shows(row, values)]
        kept = [row for row in pairs if not shows(row, values) and not shows(row, gone)]
        return Concept(
            " ".join(values.values()).replace("_", " "),
            tuple(prompt(row["style"], row["object"]) for row in asked),
            tuple(prompt(*self._instead(row, values, gone)) for row in asked),
            (*(prompt(row["style"], row["object"]) for row in kept), ""),
        )

    def _judge(self, column: str, given: str | None, classes: list[str]) -> Judge:
        if given is None:
            raise Missing(
                f"unlearncanvas: no judge of the {column} is given; set {column}_judge to an image classifier's folder or to "
                f"the published file ({CHECKPOINTS})"
            )
        path = Path(given).expanduser()
        if path.is_dir():
            return Judge(column, str(path.resolve()), classes)
        if not path.is_file():
            raise BadInput(
                f"unlearncanvas: there is no judge of the {column} at '{path}'; check {column}_judge"
            )
        name = (
            f"{CACHE}unlearncanvas/judge-{digest({'file': str(path.resolve()), 'size': path.stat().st_size})}"
        )
        _converted(path, cached(name), self.allow_pickle)
        return Judge(column, name, classes)

    @torch.no_grad()
    def _latents(self, model: DiffusionModel) -> dict[str, np.ndarray]:
        """`[objects * images, values]` latents of each style's images; encoded once for every encoder, style by style."""
        if self.data_dir is None:
            raise Missing(
                "unlearncanvas: the images are not part of expunge; give the folder of a copy as data_dir "
                "(https://huggingface.co/datasets/OPTML-Group/UnlearnCanvas)"
            )
        folder = Path(self.data_dir).expanduser()
        absent = [s for s in self.styles if not (folder / s).is_dir()]
        if absent:
            raise BadInput(
                f"'{folder}' has no folder of {len(absent)} of {len(self.styles)} styles (first: '{absent[0]}'); give those "
                "that it has as 'styles'"
            )
        facts = {
            "encoder": fingerprint(model.vae) if model.vae is not None else None, "side": model.side, "images": self.images,
            "objects": self.objects, "folder": str(folder.resolve()),
        }  # fmt: skip
        place = cached(f"{CACHE}unlearncanvas/latents-{digest(facts)}")
        place.mkdir(parents=True, exist_ok=True)
        made = {}
        for style in self.styles:
            path = place / f"{style}.npy"
            with FileLock(f"{path}.lock"):
                if not path.exists():
                    files = [_file(folder / style / o, i) for o in self.objects for i in range(self.images)]
                    pixels = (
                        torch.from_numpy(read_pictures(files, model.side)).permute(0, 3, 1, 2) / 127.5 - 1
                    )
                    parts = [model.encode_images(part).flatten(1) for part in pixels.split(8)]
                    with path.with_suffix(".part").open("wb") as out:
                        np.save(out, torch.cat(parts).cpu().numpy())
                    path.with_suffix(".part").rename(path)
            made[style] = np.load(path)
        return made


def _file(folder: Path, number: int) -> Path:
    """Image `number` (from 0) of a folder; their names count from 1."""
    named = [folder / f"{number + 1}.{ending}" for ending in ("jpg", "jpeg", "png")]
    return next((file for file in named if file.is_file()), named[0])


def _as_dataset(rows: list[dict[str, Any]]) -> Dataset:
    columns: dict[str, Any] = {name: [row[name] for row in rows] for name in rows[0]}
    return Dataset.from_dict(columns)


def _converted(path: Path, folder: Path, allow_pickle: bool) -> None:
    """Write a published judge as a folder of `transformers`."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if folder.exists():
            return
        model = read_timm_vit(path, allow_pickle=allow_pickle)
        side = model.config.image_size
        # As the reference code prepares images.
        processor = {
            "image_processor_type": "ViTImageProcessor", "do_resize": True, "size": {"height": side, "width": side},
            "resample": 2, "do_rescale": True, "rescale_factor": 1 / 255, "do_normalize": True,
            "image_mean": [0.5] * 3, "image_std": [0.5] * 3,
        }  # fmt: skip
        with folder_atomic(folder) as made:
            model.save_pretrained(made, safe_serialization=True)
            (made / "preprocessor_config.json").write_text(json.dumps(processor))
