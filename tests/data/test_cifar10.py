"""CIFAR-10 from its binary version, Parquet and folders; never from pickles."""

from __future__ import annotations

import io
import pickle
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image as Pictures

from expunge.data.benchmarks.cifar10 import Cifar10
from expunge.data.cifar import CLASSES, read_cifar
from expunge.errors import BadInput, Missing
from expunge.evidence.collect import collect
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.testing import Check, check_benchmark

MEAN, STD = np.asarray([0.4914, 0.4822, 0.4465]), np.asarray([0.2470, 0.2435, 0.2616])


def photographs(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """`[n, 32, 32, 3]` pixels and `[n]` labels."""
    labels = np.arange(n, dtype=np.uint8) * 7 % 10
    return np.random.default_rng(seed).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8), labels


def write_binary(file: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Byte by byte as the format is described: the label, all red, all green, all blue values."""
    with file.open("wb") as out:
        for image, label in zip(images, labels, strict=True):
            out.write(bytes([int(label)]))
            for channel in range(3):
                out.write(image[:, :, channel].tobytes())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The official archive, unpacked: five batches of eight rows, and 21 rows to test on."""
    top = tmp_path_factory.mktemp("cifar")
    made = top / "cifar-10-batches-bin"
    made.mkdir()
    images, labels = photographs(40, 0)
    for batch in range(5):
        part = slice(8 * batch, 8 * batch + 8)
        write_binary(made / f"data_batch_{batch + 1}.bin", images[part], labels[part])
    write_binary(made / "test_batch.bin", *photographs(21, 1))
    return top


def test_pixels_and_labels_of_the_binary_version(folder: Path) -> None:
    problem = Cifar10(data_dir=str(folder), forget="class=cat").problem()  # pyright: ignore
    images, labels = photographs(40, 0)
    batch = problem.batches("train").take(torch.arange(40))
    expected = (images / 255 - MEAN) / STD
    assert np.allclose(batch.inputs["pixel_values"], expected.transpose(0, 3, 1, 2), atol=1e-5)
    assert batch.targets.flatten().tolist() == labels.tolist()
    assert problem.forget_ids == tuple(f"train-{i:06d}" for i in np.flatnonzero(labels == 3))
    assert (len(problem.splits["test"]), len(problem.splits["holdout"])) == (10, 11)


def png(picture: Pictures.Image) -> bytes:
    out = io.BytesIO()
    picture.save(out, "PNG")
    return out.getvalue()


def test_hub_parquet_and_folders_give_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    tables, pictures = tmp_path / "tables", tmp_path / "pictures"
    for part, n, seed in (("train", 40, 0), ("test", 21, 1)):
        images, labels = photographs(n, seed)
        kept = [Pictures.fromarray(i) for i in images]
        # As another program writes it: no types of `datasets`, plain numbers as labels, two files.
        (tables / "plain_text").mkdir(parents=True, exist_ok=True)
        for half, rows in enumerate(np.array_split(np.arange(n), 2)):
            encoded = [{"bytes": png(kept[row]), "path": None} for row in rows]
            made = pa.table({"img": encoded, "label": labels[rows].astype(int)})
            pq.write_table(made, tables / "plain_text" / f"{part}-{half:05d}-of-00002.parquet")
        for row, (picture, label) in enumerate(zip(kept, labels, strict=True)):
            (pictures / part / CLASSES[label]).mkdir(parents=True, exist_ok=True)
            picture.save(pictures / part / CLASSES[label] / f"{row:03d}.png")
    rows = torch.arange(40)
    plain = Cifar10(data_dir=str(folder)).problem().batches("train").take(rows)
    for source in (tables, pictures):
        other = Cifar10(data_dir=str(source)).problem().batches("train").take(rows)
        order = np.argsort(plain.targets.flatten().numpy(), kind="stable") if source == pictures else rows
        assert np.allclose(plain.inputs["pixel_values"][order], other.inputs["pixel_values"], atol=1e-6)
        assert np.array_equal(plain.targets[order], other.targets)


class Bomb:
    """Runs code when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return exec, ("raise SystemExit('a pickle was read')",)


def test_the_python_version_is_refused_unread(tmp_path: Path) -> None:
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"):
        (tmp_path / name).write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(
        BadInput, match=r"pickle files, which can run code .* download cifar-10-binary.tar.gz"
    ):
        Cifar10(data_dir=str(tmp_path)).problem()


def test_broken_binary_files_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "data_batch_1.bin"
    file.write_bytes(bytes(3073 + 5))
    with pytest.raises(BadInput, match="has 3078 bytes, not a multiple of 3073"):
        read_cifar([file])
    file.write_bytes(bytes([77]) + bytes(3072))
    with pytest.raises(BadInput, match="has label 77, but CIFAR-10 has 10 classes"):
        read_cifar([file])


def test_offline_it_says_what_to_give() -> None:
    with pytest.raises(Missing, match="CIFAR-10 is not part of expunge and .* option data_dir"):
        Cifar10().problem()


@pytest.mark.parametrize("model", ["resnet", "resnet18", "cnn"])
def test_every_model_reads_the_pictures(model: str, folder: Path) -> None:
    problem = Cifar10(data_dir=str(folder), model=model).problem()  # pyright: ignore
    built = problem.fresh_model(0).eval()
    batch = problem.batches("train").take(torch.arange(2))
    assert problem.family.predict(built, batch).shape == (2, 1, 10)


@pytest.mark.parametrize("check", [*check_benchmark("cifar10")], ids=lambda c: c.name)
def test_the_contract_holds_where_the_data_is(check: Check, folder: Path) -> None:
    for here in check_benchmark("cifar10", options={"data_dir": str(folder)}):
        if here.name == check.name:
            here()


@pytest.mark.slow
def test_real_photographs_are_learned(shared: Path, tmp_path: Path) -> None:
    data = shared / "data" / "cifar10_jpeg"
    if not data.is_dir():
        pytest.skip("CIFAR-10 is not on this machine")
    for part, file, n in (("train", "data_batch_1.bin", 3000), ("test", "test_batch.bin", 1000)):
        packed = np.load(data / f"{part}.npz")
        assert tuple(packed["classes"]) == CLASSES
        head, body, ends = packed["head"].tobytes(), packed["body"], packed["offs"]
        jpegs = [io.BytesIO(head + body[ends[i] : ends[i + 1]].tobytes()) for i in range(n)]
        write_binary(
            tmp_path / file, np.stack([np.asarray(Pictures.open(j)) for j in jpegs]), packed["y"][:n]
        )
    problem = Cifar10(data_dir=str(tmp_path)).problem()
    assert problem.recipe is not None
    recipe = problem.recipe.replace(epochs=5)
    model = fit(problem, problem.fresh_model(0), "train", recipe, Workplace(seed=0))
    correct = collect(problem.family, model, problem.splits["test"], ["correct"])["correct"]
    assert correct.mean() > 0.4  # chance is 0.1
