"""Tables, images and texts become what the model's own preparation makes of them."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from datasets import Array2D, Dataset, Features, Image, Value
from PIL import Image as Picture

from expunge.data.worlds.reviews import reviews, word_tokenizer
from expunge.errors import BadInput
from expunge.families import Batches, Classifier, Images, Table, Text
from expunge.families.inputs import Inputs, restore_inputs
from expunge.files import canonical_json


def pictures(n: int, height: int, width: int, mode: str = "RGB") -> list[Picture.Image]:
    shape = (n, height, width, 3) if mode == "RGB" else (n, height, width)
    return [Picture.fromarray(a) for a in np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)]


def again(inputs: Inputs) -> Inputs:
    """Through JSON, as a stored model's record goes."""
    return restore_inputs(json.loads(canonical_json(inputs.describe())))  # pyright: ignore


def test_table_standardizes_by_what_it_was_fitted_on() -> None:
    data = Dataset.from_dict({"a": [1.0, 2.0, 6.0], "b": [4, 4, 4], "c": ["x", "y", "z"]})
    table = Table.fit(data, ["b", "a"])
    expected = [[0.0, (v - 3) / np.sqrt(14 / 3)] for v in (1, 2, 6)]  # the constant column keeps scale 1
    for each in (table, again(table)):
        np.testing.assert_allclose(each.encode(data.with_format("numpy")[:])["features"], expected, rtol=1e-6)  # pyright: ignore


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTImageProcessor", {"size": {"height": 8, "width": 12}}),
        ("ViTImageProcessor", {"size": {"height": 8, "width": 8}, "do_normalize": False, "resample": 0}),
        ("ViTImageProcessor", {"do_resize": False}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 14}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 20}, "crop_size": {"height": 16, "width": 16}}),
    ],
)
def test_images_equal_the_processors(tmp_path: Path, kind: str, settings: dict) -> None:
    processor = getattr(transformers, kind)(**settings)
    processor.save_pretrained(tmp_path)
    inputs = Images.from_processor(tmp_path, "image", 3)
    for height, width in ((30, 25), (25, 40)):
        shown = pictures(2, height, width)
        theirs = processor([np.asarray(p) for p in shown], return_tensors="pt")["pixel_values"]
        for each in (inputs, again(inputs)):
            ours = each.encode({"image": shown})["pixel_values"]  # pyright: ignore
            torch.testing.assert_close(ours, torch.as_tensor(theirs).float(), atol=1e-5, rtol=1e-5)


def test_processors_with_unknown_steps_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path)

    class Flipping(type(processor)):
        def __call__(self, *images: Any, **given: Any) -> Any:
            return {"pixel_values": super().__call__(*images, **given)["pixel_values"][..., ::-1]}

    loaded = Flipping(size={"height": 8, "width": 8})
    monkeypatch.setattr(transformers.AutoImageProcessor, "from_pretrained", lambda *_, **__: loaded)
    with pytest.raises(BadInput, match="Flipping does more than resize, center-crop, rescale and normalize"):
        Images.from_processor(tmp_path, "image", 3)


def test_processor_and_model_must_agree_on_channels(tmp_path: Path) -> None:
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path)
    with pytest.raises(BadInput, match="normalizes 3 color channels, but its model reads 1; give image_mean"):
        Images.from_processor(tmp_path, "image", 1)
    transformers.ViTImageProcessor(
        size={"height": 8, "width": 8}, image_mean=[0.3], image_std=[0.2]
    ).save_pretrained(tmp_path)
    grey = Images.from_processor(tmp_path, "image", 1)
    (shown,) = pictures(1, 8, 8, "L")
    expected = (np.asarray(shown, dtype=np.float64) / 255 - 0.3) / 0.2
    np.testing.assert_allclose(grey.encode({"image": [shown]})["pixel_values"][0, 0], expected, atol=1e-5)


def test_arrays_pictures_and_stored_bytes_agree() -> None:
    shown = pictures(3, 8, 8)
    arrays = [np.asarray(p) for p in shown]
    inputs = Images("image", channels=3, rescale=1 / 255)
    expected = np.stack(arrays).transpose(0, 3, 1, 2) / 255
    stored = Dataset.from_dict({"image": shown}, features=Features({"image": Image()}))
    undecoded = stored.cast_column("image", Image(decode=False))
    for rows in ({"image": shown}, {"image": arrays}, stored.with_format("numpy")[:], undecoded[:]):
        np.testing.assert_allclose(inputs.encode(rows)["pixel_values"], expected, atol=1e-6)


def test_conversions_between_grey_and_color() -> None:
    (color,) = pictures(1, 8, 8)
    luma = np.asarray(color.convert("L"))[None] / 255
    for shown in (color, np.asarray(color)):
        ours = Images("image", channels=1, rescale=1 / 255).encode({"image": [shown]})["pixel_values"][0]
        np.testing.assert_allclose(ours, luma, atol=1e-6)
    (grey,) = pictures(1, 8, 8, "L")
    for shown in (grey, np.asarray(grey)):
        ours = Images("image", channels=3, rescale=1 / 255).encode({"image": [shown]})["pixel_values"][0]
        np.testing.assert_allclose(ours, np.repeat(np.asarray(grey)[None] / 255, 3, axis=0), atol=1e-6)


def test_uint8_arrays_are_resized_like_pictures() -> None:
    (shown,) = pictures(1, 10, 14, "L")
    inputs = Images("image", size=(5, 7), rescale=1 / 255)
    expected = np.asarray(shown.resize((7, 5), resample=Picture.Resampling.BILINEAR)) / 255
    np.testing.assert_allclose(
        inputs.encode({"image": [np.asarray(shown)]})["pixel_values"][0, 0], expected, atol=1e-6
    )


def test_refused_images() -> None:
    with pytest.raises(
        BadInput, match=r"the images in 'image' differ in shape \(\(3, 8, 8\), \(3, 8, 9\)\); resize them"
    ):
        Images("image", channels=3).encode({"image": [pictures(1, 8, 8)[0], pictures(1, 8, 9)[0]]})
    with pytest.raises(BadInput, match=r"an image of \(8, 8\) pixels is smaller than the crop \(16, 16\)"):
        Images("image", channels=3, crop=(16, 16)).encode({"image": pictures(1, 8, 8)})
    missing = Dataset.from_dict(
        {"id": ["a", "b"], "image": [pictures(1, 8, 8)[0], None]},
        features=Features({"id": Value("string"), "image": Image()}),
    )
    with pytest.raises(BadInput, match=r"probe has 1 rows without an image \(first: id 'b'\); drop them"):
        Images("image").check(missing, "probe")
    array = Dataset.from_dict(
        {"id": ["a", "b"], "image": np.array([np.zeros((2, 2)), np.full((2, 2), np.nan)])},
        features=Features({"id": Value("string"), "image": Array2D((2, 2), "float32")}),
    )
    with pytest.raises(BadInput, match=r"probe has 1 rows with NaN or infinity in 'image' \(first: id 'b'\)"):
        Images("image").check(array, "probe")


@pytest.mark.parametrize("side", ["right", "left"])
def test_text_description_does_not_depend_on_use_and_restores(side: str) -> None:
    data = reviews(30)
    tokenizer = word_tokenizer(data["text"], 12)
    tokenizer.padding_side = side
    tokenizer.model_input_names = ["input_ids", "attention_mask"]  # as DistilBERT and RoBERTa have it
    inputs = Text(["text"], tokenizer, 12)
    before = inputs.describe()
    encoded = inputs.encode(data.with_format("numpy")[:])
    assert inputs.describe() == before and set(encoded) == {"input_ids", "attention_mask"}
    restored = restore_inputs(json.loads(canonical_json(before)))
    assert restored.describe() == before
    other = restored.encode(data.with_format("numpy")[:])
    assert all(torch.equal(other[k], encoded[k]) for k in encoded) and set(other) == set(encoded)


def test_text_worked_out_by_hand() -> None:
    tokenizer = word_tokenizer(["good bike", "Bad bike"], 8)  # [PAD] [UNK] [CLS] [SEP] bad bike good = 0..6
    inputs = Text(["text"], tokenizer, 8)
    encoded = inputs.encode({"text": ["a good bike", "bad"]})
    assert encoded["input_ids"].tolist() == [[2, 1, 6, 5, 3], [2, 4, 3, 0, 0]]
    assert encoded["attention_mask"].tolist() == [[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]]
    short = Text(["text"], word_tokenizer(["good bike"], 3), 3).encode({"text": ["good bike good bike"]})
    assert short["input_ids"].tolist() == [[2, 5, 3]]  # cut to [CLS] good [SEP]
    pair = Text(["a", "b"], tokenizer, 8).encode({"a": ["good"], "b": ["bad bike"]})
    assert pair["input_ids"].tolist() == [[2, 6, 3, 4, 5, 3]] and pair["token_type_ids"].tolist() == [
        [0, 0, 0, 1, 1, 1]
    ]


def test_batches_trim_padding_and_stay_equal_to_single_rows() -> None:
    data = reviews(40)
    family = Classifier(Text(["text"], word_tokenizer(data["text"], 32), 32), 3)
    batches = Batches(family, data)
    for rows in (torch.tensor([3]), torch.tensor([5, 1, 30])):
        batch = batches.take(rows)
        alone = family.collate(data.with_format("numpy")[rows.tolist()])
        assert batch.ids == alone.ids and torch.equal(batch.targets, alone.targets)
        assert all(torch.equal(batch.inputs[k], alone.inputs[k]) for k in alone.inputs)


def test_taking_batches_costs_no_tokenizing() -> None:
    data = reviews(600)
    family = Classifier(Text(["text"], word_tokenizer(data["text"], 32), 32), 3)
    calls = []
    encode = family.inputs.encode
    family.inputs.encode = lambda rows: calls.append(1) or encode(rows)  # pyright: ignore
    batches = Batches(family, data)
    made = len(calls)
    started = time.perf_counter()
    for _ in range(20):
        for _rows, _ in batches.sequential(64):
            pass
    assert len(calls) == made and time.perf_counter() - started < 2


def test_refused_texts() -> None:
    tokenizer = word_tokenizer(["good"], 8)
    with pytest.raises(BadInput, match="a text model reads one column or a pair, got 3: a, b, c"):
        Text(["a", "b", "c"], tokenizer, 8)
    data = Dataset.from_dict({"id": ["a", "b", "c"], "text": ["good", " ", None]})
    with pytest.raises(BadInput, match=r"probe has 2 empty texts in 'text' \(first: id 'b'\); drop them"):
        Text(["text"], tokenizer, 8).check(data, "probe")
    with pytest.raises(BadInput, match="unknown kind of inputs 'txt'; did you mean 'text'"):
        restore_inputs({"kind": "txt"})
