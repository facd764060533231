"""Fashion-MNIST from every source it is distributed in; made-up users."""

from __future__ import annotations

import gzip
import io
import lzma
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import ClassLabel, Dataset, Features, Image
from PIL import Image as Pictures
from small_files import write_idx

from expunge.data.benchmarks.fashion_mnist import FashionMnist
from expunge.data.idx import FASHION_CLASSES
from expunge.data.published import read_published
from expunge.data.users import _shares, dirichlet_users
from expunge.errors import BadInput, Missing
from expunge.evidence.collect import collect
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.testing import Check, check_benchmark

N_TRAIN, N_TEST = 60, 31


def clothes(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    labels = np.arange(n, dtype=np.uint8) * 3 % 10
    return np.random.default_rng(seed).integers(0, 256, (n, 28, 28), dtype=np.uint8), labels


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The four official files, with made-up pixels."""
    made = tmp_path_factory.mktemp("files")
    for part, n, seed in (("train", N_TRAIN, 0), ("t10k", N_TEST, 1)):
        images, labels = clothes(n, seed)
        write_idx(made / f"{part}-images-idx3-ubyte", images)
        write_idx(made / f"{part}-labels-idx1-ubyte", labels)
    return made


def test_parts_and_pixels(folder: Path) -> None:
    problem = FashionMnist(data_dir=str(folder)).problem()
    images, labels = clothes(N_TRAIN, 0)
    assert problem.train["id"][:2] == ["train-000000", "train-000001"]
    assert {s: len(d) for s, d in problem.splits.items()} == {
        "forget": 6, "retain": 54, "holdout": 16, "test": 15,
    }  # fmt: skip
    official = [*problem.splits["test"]["id"], *problem.splits["holdout"]["id"]]
    assert sorted(official) == [f"test-{i:06d}" for i in range(N_TEST)]
    assert problem.forget_ids == tuple(f"train-{i:06d}" for i in np.flatnonzero(labels == 3))
    assert problem.scope == "all rows of class 'Dress'"
    batch = problem.batches("train").take(torch.arange(N_TRAIN))
    expected = (images[:, None] / 255 - 0.2860) / 0.3530
    assert np.allclose(batch.inputs["pixel_values"], expected, atol=1e-6)
    assert batch.targets.flatten().tolist() == labels.tolist()


def test_gzipped_files_parquet_and_folders_give_the_same_pictures(folder: Path, tmp_path: Path) -> None:
    packed, tables, pictures = (tmp_path / name for name in ("packed", "tables", "pictures"))
    packed.mkdir()
    for file in folder.iterdir():
        (packed / f"{file.name}.gz").write_bytes(gzip.compress(file.read_bytes()))
    # The hub writes two names with other spaces.
    names = [{"T-shirt/top": "T - shirt / top"}.get(c, c) for c in FASHION_CLASSES]
    for part, n, seed in (("train", N_TRAIN, 0), ("test", N_TEST, 1)):
        images, labels = clothes(n, seed)
        hub = Dataset.from_dict(
            {"image": [Pictures.fromarray(i) for i in images], "label": labels.astype(int)},
            features=Features({"image": Image(), "label": ClassLabel(names=names)}),
        )
        (tables / "fashion_mnist").mkdir(parents=True, exist_ok=True)
        hub.to_parquet(tables / "fashion_mnist" / f"{part}-00000-of-00001.parquet")
        for row, (image, label) in enumerate(zip(images, labels, strict=True)):
            (pictures / part / str(label)).mkdir(parents=True, exist_ok=True)
            Pictures.fromarray(image).save(pictures / part / str(label) / f"{row:03d}.png")
    plain = FashionMnist(data_dir=str(folder)).problem().batches("train")
    rows = torch.arange(N_TRAIN)
    for source in (packed, tables, pictures):
        other = FashionMnist(data_dir=str(source)).problem().batches("train")
        ours, theirs = plain.take(rows), other.take(rows)
        # Folders of pictures come class by class.
        order = (
            np.argsort(plain.take(rows).targets.flatten().numpy(), kind="stable")
            if source == pictures
            else rows
        )
        assert np.array_equal(ours.inputs["pixel_values"][order], theirs.inputs["pixel_values"])
        assert np.array_equal(ours.targets[order], theirs.targets)


def test_class_folders_with_unknown_names_are_refused(tmp_path: Path) -> None:
    """Alphabetical folders of names that are not the official ones would be the wrong classes."""
    for part in ("train", "test"):
        for name in ("boots", "dress"):
            (tmp_path / part / name).mkdir(parents=True)
            Pictures.fromarray(clothes(1, 0)[0][0]).save(tmp_path / part / name / "0.png")
    with pytest.raises(BadInput, match=r"label 'boots' of id 'train/boots/0.png' is none of the 10 classes"):
        FashionMnist(data_dir=str(tmp_path)).problem()


def test_fewer_rows_and_one_user(folder: Path) -> None:
    problem = FashionMnist(data_dir=str(folder), size=40, users=4, forget="user:user=u01").problem()  # pyright: ignore
    assert len(problem.train) == 40 and problem.train["id"][:] == sorted(problem.train["id"][:])
    owners = dict(zip(problem.train["id"], problem.train["user"], strict=True))
    assert set(problem.forget_ids) == {i for i, owner in owners.items() if owner == "u01"}
    assert problem.scope == "all rows of one user (column 'user')"


def test_shares_have_the_moments_of_the_dirichlet_distribution() -> None:
    users, concentration = 5, 0.7
    shares = np.stack([_shares(users, concentration, str(key)) for key in range(4000)])
    assert np.allclose(shares.sum(1), 1)
    assert np.allclose(shares.mean(0), 1 / users, atol=0.01)
    variance = (1 / users) * (1 - 1 / users) / (users * concentration + 1)
    assert np.allclose(shares.var(0), variance, rtol=0.08)
    assert np.allclose(np.cov(shares.T)[0, 1:], -1 / users**2 / (users * concentration + 1), rtol=0.15)


def test_large_concentrations_make_users_alike_and_small_ones_do_not() -> None:
    ids, labels = [f"r{i}" for i in range(2000)], [i % 4 for i in range(2000)]
    alike = dirichlet_users(ids, labels, 5, 1e6)
    assert set(np.unique(alike, return_counts=True)[1]) == {400}
    unlike = dirichlet_users(ids, labels, 5, 0.1)
    shares = np.asarray(
        [[np.mean([u == f"u{k:02d}" for u in unlike[c::4]]) for k in range(5)] for c in range(4)]
    )
    assert (shares.max(axis=1) > 0.5).sum() >= 3 and np.allclose(shares.sum(axis=1), 1)


def test_divisions_never_change() -> None:
    """Once published: results of different versions could not be compared."""
    owners = dirichlet_users([f"r{i}" for i in range(12)], [i % 2 for i in range(12)], 3, 0.5)
    assert " ".join(owners) == "u00 u02 u00 u02 u00 u02 u00 u02 u00 u02 u00 u01"


@pytest.mark.parametrize("check", [*check_benchmark("fashion-mnist")], ids=lambda c: c.name)
def test_the_contract_holds_where_the_data_is(check: Check, folder: Path) -> None:
    (here,) = [
        c
        for c in check_benchmark("fashion-mnist", options={"data_dir": str(folder), "forget": "class=3"})
        if c.name == check.name
    ]
    here()


def test_offline_it_says_what_to_give() -> None:
    with pytest.raises(
        Missing, match="Fashion-MNIST is not part of expunge and .* option data_dir"
    ) as caught:
        FashionMnist().problem()
    assert caught.value.exit_code == 3


def test_incomplete_folders_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder '.*absent' to read Fashion-MNIST from; check data_dir"):
        FashionMnist(data_dir=str(tmp_path / "absent")).problem()
    half = tmp_path / "half"
    half.mkdir()
    for file in folder.glob("train*"):
        shutil.copy(file, half)
    with pytest.raises(BadInput, match="holds no test rows of Fashion-MNIST; give a folder with IDX files"):
        FashionMnist(data_dir=str(half)).problem()
    (half / "t10k-images-idx3-ubyte").write_bytes((folder / "t10k-images-idx3-ubyte").read_bytes())
    with pytest.raises(BadInput, match="has no labels beside it"):
        FashionMnist(data_dir=str(half)).problem()


@pytest.fixture
def real(shared: Path, tmp_path: Path) -> Path:
    """The official files: 30,000 of the training rows and all test rows."""
    data = shared / "data" / "fashion_mnist"
    if not data.is_dir():
        pytest.skip("Fashion-MNIST is not on this machine")
    for part, x, y in (("train", "train_x_30k", "train_y_30k"), ("t10k", "test_x", "test_y")):
        images = np.load(io.BytesIO(lzma.decompress((data / f"{x}.npy.xz").read_bytes())))
        write_idx(tmp_path / f"{part}-images-idx3-ubyte", images)
        write_idx(tmp_path / f"{part}-labels-idx1-ubyte", np.load(data / f"{y}.npy"))
    return tmp_path


@pytest.mark.slow
def test_the_real_rows_are_read_as_published_and_learned(real: Path) -> None:
    _, test = read_published("Fashion-MNIST", str(real), "unused/unused", FASHION_CLASSES)
    assert np.asarray(test.with_format("numpy")["image"][:]).mean() == pytest.approx(73.147, abs=1e-3)
    assert np.bincount(test["label"][:]).tolist() == [1000] * 10
    problem = FashionMnist(data_dir=str(real), size=3000, model="mlp").problem()
    assert problem.recipe is not None
    model = fit(problem, problem.fresh_model(0), "train", problem.recipe, Workplace(seed=0))
    correct = collect(problem.family, model, problem.splits["test"], ["correct"])["correct"]
    assert correct.mean() > 0.8
