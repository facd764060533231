"""Problems from users' files and models: each gives the model's own outputs, or says what is wrong."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas
import pytest
import torch
import transformers
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Picture
from safetensors.torch import save_file
from small_files import FACTORY, pixels, save_transformer, write_idx, write_picture_folder

from expunge.data.specification import ProblemSpec
from expunge.data.worlds.reviews import reviews, word_tokenizer
from expunge.errors import BadInput, Missing
from expunge.families import Classifier, Regressor, Text
from expunge.families.weights import save_model
from expunge.files import canonical_json
from expunge.problem import Problem

RECIPE: Any = {"epochs": 1, "lr": 0.1}


def outputs(problem: Problem) -> torch.Tensor:
    batch = problem.family.collate(problem.train.with_format("numpy")[:])
    with torch.no_grad():
        return problem.family.forward(problem.target, batch).prediction.squeeze(1)


@pytest.fixture
def people(tmp_path: Path) -> Path:
    """A table with labels in words, a value and a user column; a factory and weights for both tasks."""
    generator = np.random.default_rng(0)
    frame = pandas.DataFrame(
        {
            "key": [f"k{i}" for i in range(20)],
            "a": generator.normal(5, 3, 20),
            "b": generator.integers(0, 9, 20),
            "note": ["x"] * 20,
            "who": ["ann", "bob", "cy", "dee"] * 5,
            "verdict": ["no", "yes"] * 10,
            "value": generator.normal(100, 20, 20),
        }
    )
    frame.to_csv(tmp_path / "people.csv", index=False)
    frame.iloc[:12].to_parquet(tmp_path / "people.parquet")
    frame.iloc[12:].to_json(tmp_path / "held.jsonl", orient="records", lines=True)
    (tmp_path / "own.py").write_text(FACTORY)
    for name, n_outputs in (("two", 2), ("one", 1)):
        torch.manual_seed(n_outputs)
        save_file(
            {"1.weight": torch.randn(n_outputs, 2), "1.bias": torch.randn(n_outputs)},
            tmp_path / f"{name}.safetensors",
        )
    return tmp_path


def factory(n_inputs: int, n_outputs: int, weights: str | None) -> dict:
    return {
        "factory": "./own.py:linear",
        "weights": weights,
        "options": {"inputs": n_inputs, "outputs": n_outputs},
    }


TABLE = {
    "data": "people.csv", "family": "classifier", "id": "key", "target": "verdict", "inputs": ["a", "b"],
    "forget": "user:who=ann", "model": factory(2, 2, "two.safetensors"),
}  # fmt: skip


def test_csv_with_a_model_of_the_users_own(people: Path) -> None:
    said: list[str] = []
    problem = ProblemSpec(**TABLE, group="who", recipe=RECIPE).build(people, said.append)
    frame = pandas.read_csv(people / "people.csv")
    assert problem.name == "people" and problem.forget_ids == ("k0", "k4", "k8", "k12", "k16")
    assert isinstance(problem.family, Classifier) and problem.family.classes == ["no", "yes"]
    assert list(problem.train["verdict"]) == [0, 1] * 10
    assert list(problem.family.groups(problem.train)) == list(frame["who"])
    assert said == ["importing and running './own.py:linear' to build the model"]
    # The model is the user's: it sees the columns as they are.
    from safetensors.torch import load_file

    weights = load_file(people / "two.safetensors")
    expected = (
        frame[["a", "b"]].to_numpy() @ weights["1.weight"].double().numpy().T
        + weights["1.bias"].double().numpy()
    )
    np.testing.assert_allclose(outputs(problem).numpy(), expected, rtol=1e-4)
    assert not torch.equal(problem.fresh_model(1)[1].weight, problem.target[1].weight)  # pyright: ignore
    assert problem.recipe is not None and problem.recipe.epochs == 1


def test_parquet_and_jsonl_with_forget_and_retain_apart(people: Path) -> None:
    spec = {k: v for k, v in TABLE.items() if k not in ("data", "forget")}
    problem = ProblemSpec(**spec, forget_data="held.jsonl", retain="people.parquet").build(people)
    assert problem.forget_ids == tuple(f"k{i}" for i in range(12, 20))
    assert [problem.retain["key"][0], len(problem.retain)] == ["k0", 12]
    alone = ProblemSpec(**spec, forget_data="held.jsonl").build(people)
    assert len(alone.forget) == 8 and len(alone.retain) == 0 and "retain" not in alone.offers()


def test_parts_that_do_not_fit_together(people: Path) -> None:
    spec = {k: v for k, v in TABLE.items() if k not in ("data", "forget")}
    frame = pandas.read_csv(people / "people.csv")
    frame.iloc[:12].assign(b=frame["b"] + 0.5).to_csv(people / "real.csv", index=False)
    joined = ProblemSpec(**spec, forget_data="held.jsonl", retain="real.csv").build(people)
    assert list(joined.retain["b"]) == list(frame["b"][:12] + 0.5) and list(joined.forget["b"]) == list(
        frame["b"][12:]
    )
    frame.iloc[:12].assign(b="x").to_csv(people / "words.csv", index=False)
    with pytest.raises(
        BadInput, match="do not fit together: column 'b' holds .*int64.* in one and .*string.* in the other"
    ):
        ProblemSpec(**spec, forget_data="held.jsonl", retain="words.csv").build(people)


def test_holdout_test_and_probes(people: Path) -> None:
    spec = {**TABLE, "data": "people.parquet", "holdout": "held.jsonl", "probes": {"again": "people.csv"}}
    problem = ProblemSpec(**spec).build(people)
    assert {k: len(v) for k, v in problem.splits.items()} == {
        "forget": 3,
        "retain": 9,
        "holdout": 8,
        "again": 20,
    }
    with pytest.raises(BadInput, match="holdout shares 12 ids with the training data"):
        ProblemSpec(**{**spec, "data": "people.csv", "holdout": "people.parquet"}).build(people)


def test_regression_by_a_ready_model_is_in_the_targets_unit(people: Path) -> None:
    spec = {**TABLE, "family": "regressor", "target": "value", "model": factory(2, 1, "one.safetensors")}
    problem = ProblemSpec(**spec).build(people)
    family, frame = problem.family, pandas.read_csv(people / "people.csv")
    assert isinstance(family, Regressor) and family.raw
    raw = (
        problem.target(torch.tensor(frame[["a", "b"]].to_numpy(), dtype=torch.float32))
        .detach()
        .numpy()
        .ravel()
    )
    batch = family.collate(problem.train.with_format("numpy")[:])
    seen = family.observe(family.forward(problem.target, batch), batch, ["predicted", "target", "error"])
    np.testing.assert_allclose(seen["predicted"].detach().numpy(), raw, rtol=1e-4)
    np.testing.assert_allclose(seen["target"].numpy(), frame["value"], rtol=1e-6)
    # Relabeled targets are in the standardized units of the predictions: 0 is the mean of the targets.
    relabeled = family.relabel(batch, "mean", torch.Generator())
    assert family.center[0] == pytest.approx(frame["value"].mean()) and (relabeled.targets == 0).all()


def test_regression_trained_here_is_standardized_by_the_training_rows(people: Path) -> None:
    architecture = {"kind": "builtin", "name": "mlp", "options": {"inputs": 2, "outputs": 1, "hidden": [4]}}
    spec = {
        **TABLE,
        "data": "people.parquet",
        "family": "regressor",
        "target": "value",
        "holdout": "held.jsonl",
    }
    problem = ProblemSpec(**{**spec, "model": architecture}, recipe=RECIPE).build(people)
    assert problem.model is None and isinstance(problem.family, Regressor) and not problem.family.raw
    frame = pandas.read_parquet(people / "people.parquet")
    batch = problem.family.collate(problem.train.with_format("numpy")[:])
    expected = (frame[["a", "b"]] - frame[["a", "b"]].mean()) / frame[["a", "b"]].std(ddof=0)
    np.testing.assert_allclose(batch.inputs["features"].numpy(), expected, atol=1e-6)
    values = (frame["value"] - frame["value"].mean()) / frame["value"].std(ddof=0)
    np.testing.assert_allclose(batch.targets.squeeze().numpy(), values, atol=1e-6)


def test_default_inputs_are_the_other_numeric_columns(people: Path) -> None:
    spec = {k: v for k, v in TABLE.items() if k != "inputs"}
    problem = ProblemSpec(**{**spec, "model": factory(3, 2, None)}, recipe=RECIPE).build(people)
    assert list(problem.family.inputs.columns) == ["a", "b", "value"]  # pyright: ignore


@pytest.mark.parametrize("model_type", ["vit", "resnet"])
def test_image_folder_with_a_transformers_model(tmp_path: Path, model_type: str) -> None:
    write_picture_folder(tmp_path / "train", 3, seed=1)
    write_picture_folder(tmp_path / "holdout", 2, seed=9)
    model = save_transformer(
        tmp_path / "model", model_type, id2label={0: "dog", 1: "cat"}, label2id={"dog": 0, "cat": 1}
    )
    processor = transformers.ViTImageProcessor(size={"height": 8, "width": 8})
    processor.save_pretrained(tmp_path / "model")
    spec = ProblemSpec(data="train", holdout="holdout", model="model", forget="ids=ids.txt", recipe=RECIPE)  # pyright: ignore
    (tmp_path / "ids.txt").write_text("train/dog/1.png\n")
    problem = spec.build(tmp_path)
    assert problem.forget_ids == ("train/dog/1.png",)
    # Labels follow the model's numbers, not the folders' order.
    assert isinstance(problem.family, Classifier) and problem.family.classes == ["dog", "cat"]
    assert list(problem.train["label"]) == [1, 1, 1, 0, 0, 0]
    pictures = list(problem.train["image"])
    expected = model(**processor([np.asarray(p) for p in pictures], return_tensors="pt")).logits
    torch.testing.assert_close(outputs(problem), expected.detach(), atol=1e-5, rtol=1e-5)
    assert problem.fresh_model(0).config.id2label == {0: "dog", 1: "cat"}  # pyright: ignore


def test_idx_images_with_a_factory_see_pixels_between_0_and_1(tmp_path: Path) -> None:
    write_idx(tmp_path / "train-images-idx3-ubyte", pixels(6))
    write_idx(tmp_path / "train-labels-idx1-ubyte", np.array([0, 1, 2, 0, 1, 2], dtype=np.uint8))
    (tmp_path / "own.py").write_text(FACTORY)
    spec = {
        "data": ".",
        "family": "classifier",
        "forget": "class=2",
        "model": factory(64, 3, None),
        "recipe": RECIPE,
    }
    problem = ProblemSpec(**spec).build(tmp_path)
    batch = problem.family.collate(problem.train.with_format("numpy")[:])
    np.testing.assert_allclose(batch.inputs["pixel_values"].numpy(), pixels(6)[:, None] / 255, atol=1e-6)
    assert problem.forget_ids == ("data-000002", "data-000005")


@pytest.mark.parametrize("names", [None, {0: "positive", 1: "mixed", 2: "negative"}])
def test_text_with_a_transformers_model(tmp_path: Path, names: dict[int, str] | None) -> None:
    data = reviews(24)
    tokenizer = word_tokenizer(data["text"], 512)
    tokenizer.save_pretrained(tmp_path / "model")
    named = {} if names is None else {"id2label": names, "label2id": {v: k for k, v in names.items()}}
    model = save_transformer(tmp_path / "model", "bert", vocab_size=len(tokenizer), num_labels=3, **named)
    words = [data.features["label"].int2str(v) for v in data["label"]]
    frame = pandas.DataFrame(
        {"id": data["id"], "text": data["text"], "label": words, "author": data["author"]}
    )
    frame.to_json(tmp_path / "texts.jsonl", orient="records", lines=True)
    spec = ProblemSpec(data="texts.jsonl", model="model", forget="user:author=lena")  # pyright: ignore
    problem = spec.build(tmp_path)
    assert isinstance(problem.family, Classifier) and isinstance(problem.family.inputs, Text)
    assert problem.family.classes == (
        ["mixed", "negative", "positive"] if names is None else list(names.values())
    )
    assert [problem.family.classes[v] for v in problem.train["label"]] == words
    assert problem.family.inputs.max_length == 16  # the model has no more positions
    encoded = tokenizer(
        frame["text"].tolist(), padding=True, truncation=True, max_length=16, return_tensors="pt"
    )
    torch.testing.assert_close(outputs(problem), model(**encoded).logits.detach(), atol=1e-5, rtol=1e-5)


def test_class_label_columns_are_matched_by_name(tmp_path: Path) -> None:
    images = [Picture.fromarray(a) for a in pixels(4, channels=3)]
    features = Features({"image": Image(), "label": ClassLabel(names=["b", "a"])})
    data = Dataset.from_dict({"image": images, "label": [0, 1, 1, 0]}, features=features)
    data.save_to_disk(str(tmp_path / "d"))
    save_transformer(tmp_path / "model", "vit", id2label={0: "a", 1: "b"}, label2id={"a": 0, "b": 1})
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    problem = ProblemSpec(data="d", model="model", forget="class=a").build(tmp_path)  # pyright: ignore
    assert list(problem.train["label"]) == [1, 0, 0, 1] and problem.forget_ids == (
        "data-000001",
        "data-000002",
    )
    with pytest.raises(BadInput, match="label 'b' of id 'data-000000' is none of the 2 classes"):
        ProblemSpec(data="d", model="model", forget="class=a", classes=["a", "x"]).build(tmp_path)  # pyright: ignore


def test_model_folder_of_expunge_brings_its_family(people: Path) -> None:
    first = ProblemSpec(**TABLE).build(people)
    architecture = first.architecture
    assert architecture is not None
    save_model(first.target, people / "saved", architecture, first.family.describe(), {})
    again = ProblemSpec(data="people.csv", id="key", forget="user:who=ann", model="saved").build(people)  # pyright: ignore
    assert again.family.describe() == first.family.describe()
    assert torch.equal(outputs(again), outputs(first)) and again.fingerprint == first.fingerprint


def test_specification_survives_json(people: Path) -> None:
    spec = ProblemSpec(**TABLE, recipe=RECIPE)
    again = ProblemSpec(**json.loads(canonical_json(spec.model_dump(mode="json"))))
    assert again == spec and again.build(people).fingerprint == spec.build(people).fingerprint


def test_benchmark_by_name_with_a_model_of_ones_own(tmp_path: Path) -> None:
    problem = ProblemSpec(benchmark="breast-cancer", forget="class=malignant", name="mine").build()  # pyright: ignore
    assert (
        problem.name == "mine" and problem.scope == "all rows of class 'malignant'" and problem.model is None
    )
    model = problem.fresh_model(5)
    save_model(model, tmp_path / "m", problem.architecture, problem.family.describe(), {})
    judged = ProblemSpec(benchmark="breast-cancer", model="m", recipe={"epochs": 3}).build(tmp_path)  # pyright: ignore
    assert torch.equal(judged.target.head.weight, model.head.weight)  # pyright: ignore
    assert judged.recipe is not None and judged.recipe.epochs == 3


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {"benchmark": "digits", "data": "x.csv"},
            "'data' describes data of your own; leave it out, or leave out benchmark 'digits'",
        ),
        (
            {"data": "x.csv", "model": "m"},
            "'forget' is missing; say what to forget, such as class=3 or ids=FILE",
        ),
        (
            {"data": "x.csv", "forget": "class=3"},
            "'model' is missing; give a model's folder, a hub id or a factory",
        ),
        (
            {"data": "x", "forget_data": "y", "model": "m"},
            "give 'data' and what to 'forget', or 'forget_data' .*not both",
        ),
        ({"model": "m"}, "give 'data' and what to 'forget', or 'forget_data' .*or name a benchmark"),
        ({"data": "x", "retain": "y", "forget": "class=3", "model": "m"}, "'retain' goes with 'forget_data'"),
        (
            {"forget_data": "x", "forget": "class=3", "model": "m"},
            "'forget_data' is the forget set already; leave out 'forget'",
        ),
        (
            {"data": "x", "forget": "class=3", "model": "m", "options": {"a": 1}},
            "'options' belong to a benchmark",
        ),
        ({"data": "x", "forget": "nothing much", "model": "m"}, "'nothing much' does not say what to forget"),
        ({"benchmark": "digits", "trust_remote_code": True}, "unknown key 'trust_remote_code'"),
        (
            {"data": "x", "forget": "class=3", "model": {"factry": "a:b"}},
            "model: 'factory' is missing; unknown key 'factry'; did you mean 'factory'",
        ),
    ],
)
def test_refusals_before_anything_is_read(fields: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ProblemSpec(**fields)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": factory(2, 2, None)}, "the model has no weights and there is no 'recipe' to train it"),
        ({"family": None}, "the model does not say what it predicts; give family: classifier or regressor"),
        ({"target": None}, "no column 'label' or 'target' .*name the right one with 'target'"),
        ({"target": "verdikt"}, "the training data has no column 'verdikt'; did you mean 'verdict'"),
        ({"target": ["a", "b"]}, "a classifier has one label column, got a, b"),
        ({"inputs": ["a", "bb"]}, "the training data has no column 'bb'"),
        ({"inputs": ["a", "note"]}, "training data: column 'note' is not numeric"),
        ({"group": "whom"}, "the training data has no column 'whom'; did you mean 'who'"),
        ({"id": "nr"}, "no id column 'nr'; the data has key, a, b"),
        ({"id": "who"}, "id 'ann' occurs more than once"),
        ({"model": factory(5, 2, None), "recipe": RECIPE}, r"cannot read the data \(features \(2, 2\)\): .*shapes"),
        ({"model": factory(2, 7, None), "recipe": RECIPE}, r"gives 7 values per row, but .* 2 classes \(no, yes\)"),
        ({"classes": ["no", "maybe"]}, r"training data: label 'yes' of id 'k1' is none of the 2 classes \(no, maybe\)"),
        ({"classes": ["no", "yes", "no"]}, "the class names no, yes, no are not distinct"),
        ({"family": "regressor", "model": factory(2, 1, None)}, "target column 'verdict' does not hold numbers"),
        ({"model": {"factory": "./own.py:number"}, "recipe": RECIPE}, "returned a int; it must return"),
        ({"model": {"factory": "./own.py:nothing"}, "recipe": RECIPE}, "has no 'nothing'"),
        ({"model": factory(2, 2, "one.safetensors")}, r"'1.bias' has shape \(1,\), the model expects \(2,\)"),
        ({"model": factory(2, 2, "none.safetensors")}, "no weights at '.*none.safetensors'"),
        ({"model": "."}, "holds neither expunge.json, model_index.json"),
        ({"model": "./absent"}, "is no folder with a model; give a model's folder or a hub id"),
    ],
)  # fmt: skip
def test_refusals_of_tables_and_models(people: Path, changes: dict, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        ProblemSpec(**{**TABLE, **changes}).build(people)


def test_unlabeled_rows_are_named(people: Path) -> None:
    frame = pandas.read_csv(people / "people.csv")
    frame.loc[[3, 5], "verdict"] = None
    frame.to_csv(people / "people.csv", index=False)
    with pytest.raises(
        BadInput,
        match=r"data has 2 rows without a label in 'verdict' \(first: id 'k3'\); drop them or label",
    ):
        ProblemSpec(**TABLE).build(people)


def test_missing_values_are_named(people: Path) -> None:
    frame = pandas.read_csv(people / "people.csv")
    frame.loc[4, "a"] = None
    frame.to_csv(people / "people.csv", index=False)
    with pytest.raises(
        BadInput, match=r"training data has 1 rows with NaN or infinity in 'a' \(first: id 'k4'\)"
    ):
        ProblemSpec(**TABLE).build(people)
    spec = {
        **TABLE,
        "family": "regressor",
        "target": "a",
        "inputs": ["b"],
        "model": factory(1, 1, None),
        "recipe": RECIPE,
    }
    with pytest.raises(
        BadInput, match=r"training data has 1 rows with NaN or infinity in 'a' \(first: id 'k4'\)"
    ):
        ProblemSpec(**spec).build(people)


def test_pickle_weights_need_permission(people: Path) -> None:
    torch.manual_seed(0)
    state = {"1.weight": torch.randn(2, 2), "1.bias": torch.zeros(2)}
    torch.save(state, people / "two.pt")
    spec = {**TABLE, "model": factory(2, 2, "two.pt")}
    with pytest.raises(BadInput, match="is a pickle checkpoint, which can run code .* pass --allow-pickle"):
        ProblemSpec(**spec).build(people)
    allowed = ProblemSpec(**spec, allow_pickle=True).build(people)
    assert torch.equal(allowed.target[1].weight, state["1.weight"])  # pyright: ignore


@pytest.fixture
def pictures(tmp_path: Path) -> dict:
    write_picture_folder(tmp_path / "train", 2, seed=1)
    save_transformer(tmp_path / "model", "vit", id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1})
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(tmp_path / "model")
    return {"data": "train", "model": "model", "forget": "ids=ids.txt"}


def test_pickle_inside_a_transformers_folder_needs_permission(tmp_path: Path, pictures: dict) -> None:
    from safetensors.torch import load_file

    weights = load_file(tmp_path / "model" / "model.safetensors")
    torch.save(weights, tmp_path / "model" / "pytorch_model.bin")
    (tmp_path / "model" / "model.safetensors").unlink()
    (tmp_path / "ids.txt").write_text("train/cat/0.png")
    with pytest.raises(BadInput, match="has no safetensors weights, and pickle can run code when it is read"):
        ProblemSpec(**pictures).build(tmp_path)
    allowed = ProblemSpec(**pictures, allow_pickle=True).build(tmp_path)
    assert torch.equal(allowed.target.classifier.weight, weights["classifier.weight"])  # pyright: ignore


def test_incomplete_weights_are_refused(tmp_path: Path, pictures: dict) -> None:
    from safetensors.torch import load_file

    path = tmp_path / "model" / "model.safetensors"
    save_file(
        {k: v for k, v in load_file(path).items() if "classifier" not in k}, path, metadata={"format": "pt"}
    )
    with pytest.raises(
        BadInput, match=r"'classifier.bias' is missing \(2 in all\); save the fine-tuned model whole"
    ):
        ProblemSpec(**pictures).build(tmp_path)


def test_models_for_other_tasks_are_refused(tmp_path: Path, pictures: dict) -> None:
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    (tmp_path / "model" / "config.json").write_text(
        json.dumps({**config, "architectures": ["ViTForMaskedImageModeling"]})
    )
    with pytest.raises(
        BadInput, match="is a ViTForMaskedImageModeling; expunge reads models for image classification"
    ):
        ProblemSpec(**pictures).build(tmp_path)


def test_remote_code_is_never_run(tmp_path: Path, pictures: dict) -> None:
    config = json.loads((tmp_path / "model" / "config.json").read_text())
    config |= {"model_type": "own", "auto_map": {"AutoConfig": "trap.Config"}}
    (tmp_path / "model" / "config.json").write_text(json.dumps(config))
    (tmp_path / "model" / "trap.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    with pytest.raises(BadInput, match="cannot be loaded"):
        ProblemSpec(**pictures).build(tmp_path)
    assert not (tmp_path / "ran").exists()


def test_hub_model_out_of_reach_is_missing(people: Path) -> None:
    with pytest.raises(
        Missing, match="'someone/model' is no folder here, and the Hugging Face hub cannot be reached"
    ):
        ProblemSpec(**{**TABLE, "model": "someone/model"}).build(people)
