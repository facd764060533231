"""Drawn faces, and the published formats of MUFAC and MUCAC."""

from __future__ import annotations

import csv
import gzip
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.linear_model import LogisticRegression

from expunge.data.benchmarks import mufac as mufac_module
from expunge.data.benchmarks.mucac import Mucac
from expunge.data.benchmarks.mufac import Mufac
from expunge.data.worlds.faces import AGES, faces
from expunge.errors import BadInput
from expunge.evidence.collect import collect
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem


def identities(problem: Problem, split: str) -> set[str]:
    return set(problem.splits[split]["identity"])


def pixels() -> np.ndarray:
    """`[n, 24 * 24 * 3]` in [0, 1]."""
    return np.asarray(faces().with_format("numpy")["image"][:]).reshape(len(faces()), -1) / 255


def test_the_world_has_families_of_two_to_four_with_four_pictures_each() -> None:
    data = faces()
    members = {f: set() for f in data["family"]}
    for family, identity in zip(data["family"], data["identity"], strict=True):
        members[family].add(identity)
    assert len(members) == 150 and {len(m) for m in members.values()} == {2, 3, 4}
    assert set(np.unique(data["identity"], return_counts=True)[1]) == {4}
    numbers = dict(zip(data["identity"], data["number"], strict=True))
    assert sorted(numbers.values()) == list(range(len(numbers)))


def test_ages_follow_the_published_bounds() -> None:
    for years, age, young in zip(faces()["years"], faces()["age"], faces()["young"], strict=True):
        low, high = map(int, AGES[age].split("-"))
        assert low <= years <= high and young == (years < 40)


def test_pictures_of_a_person_look_alike_and_kin_a_little() -> None:
    data, x = faces(), pixels()
    # The center: the background changes from picture to picture.
    x = x.reshape(-1, 24, 24, 3)[:, 6:18, 8:16].reshape(len(x), -1)
    x = x - x.mean(axis=1, keepdims=True)
    distance = np.sqrt(((x[:400, None] - x[None, :400]) ** 2).mean(-1))
    person, family = np.asarray(data["identity"][:400]), np.asarray(data["family"][:400])
    same = (person[:, None] == person) & ~np.eye(400, dtype=bool)
    kin = (family[:, None] == family) & (person[:, None] != person)
    strangers = family[:, None] != family
    assert distance[same].mean() < 0.85 * distance[kin].mean()
    assert distance[kin].mean() < 0.95 * distance[strangers].mean()


@pytest.mark.parametrize(("label", "least"), [("glasses", 0.9), ("young", 0.75), ("smiling", 0.62)])
def test_labels_can_be_seen_in_persons_never_met(label: str, least: float) -> None:
    data, x = faces(), pixels()
    y, met = np.asarray(data[label]), np.asarray(data["number"]) < 300
    seen = LogisticRegression(C=0.05, max_iter=200).fit(x[met], y[met]).score(x[~met], y[~met])
    assert seen > least > max(y[~met].mean(), 1 - y[~met].mean())


@pytest.mark.parametrize("make", [Mufac, Mucac])
def test_no_identity_is_in_two_parts(make: type[Mufac] | type[Mucac]) -> None:
    problem = make().problem()
    seen = [identities(problem, split) for split in ("forget", "retain", "test", "holdout")]
    assert sum(map(len, seen)) == len(set().union(*seen)) == len(set(faces()["identity"]))
    assert problem.fingerprint == make().problem().fingerprint


def test_parts_of_the_drawn_worlds() -> None:
    """Once published, they must never change."""
    sizes = {b: {s: len(d) for s, d in b().problem().splits.items()} for b in (Mufac, Mucac)}
    assert sizes[Mufac] == {"forget": 180, "retain": 988, "holdout": 308, "test": 296}
    assert sizes[Mucac] == {"forget": 240, "retain": 972, "holdout": 280, "test": 280}
    rows = Mufac(by="row").problem()
    assert len(rows.forget_ids) == round(1168 * 1500 / 10025) == 175
    assert identities(rows, "forget") & identities(rows, "retain")


def test_one_person_or_family_can_be_forgotten() -> None:
    problem = Mufac(forget="user:identity=F0007-B").problem()  # pyright: ignore
    assert problem.forget_ids == tuple(f"F0007-B-{i}" for i in range(4))
    problem = Mucac(attribute="glasses", forget="user:family=F0050").problem()  # pyright: ignore
    assert set(problem.forget["family"]) == {"F0050"} and "F0050" not in set(problem.retain["family"])
    with pytest.raises(BadInput, match="the drawn faces have no gender"):
        Mucac(attribute="gender").problem()


def published_tables(folder: Path) -> dict[str, list[dict[str, str]]]:
    return {
        part: list(csv.DictReader(gzip.open(folder / f"custom_{part}_dataset.csv.gz", "rt")))
        for part in ("train", "val", "test")
    }


def test_split_of_the_published_tables(shared: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = shared / "data" / "mufac_meta"
    if not source.is_dir():
        pytest.skip("the tables of MUFAC are not on this machine")
    for file in source.glob("*.csv.gz"):
        (tmp_path / file.stem).write_bytes(gzip.decompress(file.read_bytes()))
    # The pictures themselves may not be copied; what is checked here is who is in which part.
    monkeypatch.setattr(mufac_module, "PUBLISHED_SIDE", 2)
    monkeypatch.setattr(mufac_module, "read_pictures", lambda f, s: np.zeros((len(f), s, s, 3), np.uint8))
    families = Mufac(data_dir=str(tmp_path)).problem()
    sizes = {split: len(rows) for split, rows in families.splits.items()}
    # The 1,500th row is of family F0046, whose 25 pictures are rows 1,496 to 1,520.
    assert sizes == {"forget": 1520, "retain": 8505, "test": 1539, "holdout": 1504}
    parts = [set(families.splits[s]["family"]) for s in ("forget", "retain", "test", "holdout")]
    assert sum(map(len, parts)) == len(set().union(*parts)) == 399
    rows = Mufac(data_dir=str(tmp_path), by="row").problem()
    first = [row["image_path"] for row in published_tables(source)["train"][:1500]]
    assert list(rows.forget_ids) == first
    assert identities(rows, "forget") & identities(rows, "retain") == {"F0046-D"}


def write_mufac(folder: Path) -> None:
    """Eight families: four to train on, two to test on, two held out; uniform pictures."""
    number = 0
    for part, families in (("train", "1234"), ("val", "56"), ("test", "78")):
        (folder / f"{part}_images").mkdir(parents=True)
        with (folder / f"custom_{part}_dataset.csv").open("w") as table:
            table.write("family_id,person_id,age_class,image_path\n")
            for family in families:
                for person in ("F", "D2"):
                    file = f"F000{family}_AGE_{person}_30.JPG"
                    table.write(f"F000{family},{person},{'abcdefgh'[number % 8]},{file}\n")
                    Image.new("RGB", (150, 140), (10 * number, 100, 250)).save(
                        folder / f"{part}_images" / file, "JPEG", quality=100
                    )
                    number += 1


def test_the_published_folder(tmp_path: Path) -> None:
    write_mufac(tmp_path)
    problem = Mufac(data_dir=str(tmp_path)).problem()
    assert problem.forget_ids == ("F0001_AGE_F_30.JPG", "F0001_AGE_D2_30.JPG")
    batch = problem.family.collate(problem.splits["holdout"].with_format("numpy")[:])
    assert batch.inputs["pixel_values"].shape == (4, 3, 128, 128)
    assert batch.targets.flatten().tolist() == [12 % 8, 13 % 8, 14 % 8, 15 % 8]
    red = (np.asarray([120, 130, 140, 150]) / 255 - 0.5) / 0.25
    assert np.allclose(batch.inputs["pixel_values"].mean((2, 3))[:, 0], red, atol=0.03)
    assert problem.splits["test"]["identity"][:2] == ["F0005-F", "F0005-D2"]


def test_broken_published_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no folder '.*absent' to read MUFAC from; check data_dir"):
        Mufac(data_dir=str(tmp_path / "absent")).problem()
    write_mufac(tmp_path)
    (tmp_path / "val_images" / "F0005_AGE_F_30.JPG").unlink()
    with pytest.raises(BadInput, match="1 of 4 pictures are not there .*F0005_AGE_F_30.JPG"):
        Mufac(data_dir=str(tmp_path)).problem()
    (tmp_path / "val_images" / "F0005_AGE_F_30.JPG").write_text("no picture")
    with pytest.raises(BadInput, match="is not a readable picture"):
        Mufac(data_dir=str(tmp_path)).problem()
    table = tmp_path / "custom_val_dataset.csv"
    text = table.read_text()
    table.write_text(text.replace(",e,", ",x,").replace(",a,", ",x,"))
    with pytest.raises(BadInput, match="row 1 has age class 'x', which is none of a to h"):
        Mufac(data_dir=str(tmp_path)).problem()
    table.write_text(text.replace("age_class", "age"))
    with pytest.raises(BadInput, match="has no column 'age_class'"):
        Mufac(data_dir=str(tmp_path)).problem()


def test_a_family_in_two_parts_is_refused(tmp_path: Path) -> None:
    write_mufac(tmp_path)
    table = tmp_path / "custom_test_dataset.csv"
    table.write_text(table.read_text().replace("F0007,", "F0002,"))
    with pytest.raises(BadInput, match="family 'F0002' is in the train and in the test table"):
        Mufac(data_dir=str(tmp_path)).problem()


NAMES = "Bald Eyeglasses Male Smiling Young"


def write_mucac(folder: Path, identities: list[int]) -> dict[str, list[int]]:
    """Uniform pictures, one per identity; the attributes by file."""
    inner = folder / "CelebAMask-HQ"
    (inner / "CelebA-HQ-img").mkdir(parents=True)
    rng = np.random.default_rng(0)
    values = {f"{i}.jpg": (2 * rng.integers(0, 2, 5) - 1).tolist() for i in range(len(identities))}
    for file in values:
        Image.new("RGB", (160, 160), (0, 200, 0)).save(inner / "CelebA-HQ-img" / file)
    pairs = zip(values, identities, strict=True)
    (folder / "CelebA-HQ-identity.txt").write_text("".join(f"{f} {i}\n" for f, i in pairs))
    rows = "".join(f"{f}  {' '.join(map(str, v))}\n" for f, v in values.items())
    (folder / "CelebA-HQ-attribute.txt").write_text(f"{len(values)}\n{NAMES}\n{rows}")
    return values


def test_the_published_lists_of_celeba(tmp_path: Path) -> None:
    people = [4855, 189, 190, 1249, 1250, 4854, 6000, 0, 190]
    values = write_mucac(tmp_path, people)
    for attribute, column in (("smiling", "Smiling"), ("gender", "Male"), ("glasses", "Eyeglasses")):
        problem = Mucac(data_dir=str(tmp_path), attribute=attribute).problem()  # pyright: ignore
        parts = {s: sorted(map(int, d["identity"])) for s, d in problem.splits.items()}
        assert parts == {
            "forget": [190, 190, 1249], "retain": [1250, 4854], "holdout": [4855, 6000], "test": [0, 189],
        }  # fmt: skip
        at = NAMES.split().index(column)
        for rows in problem.splits.values():
            assert rows[attribute][:] == [int(values[i][at] > 0) for i in rows["id"]]


def test_broken_lists_are_refused(tmp_path: Path) -> None:
    write_mucac(tmp_path, [0, 300, 2000, 5000])
    listed = tmp_path / "CelebA-HQ-attribute.txt"
    text = listed.read_text()
    listed.write_text(text.replace("Smiling", "Grinning"))
    with pytest.raises(BadInput, match="names no attribute 'Smiling' in its second line"):
        Mucac(data_dir=str(tmp_path)).problem()
    listed.write_text("\n".join(text.splitlines()[:-1]))
    with pytest.raises(BadInput, match=r"1 pictures have no attributes .*first: '3.jpg'"):
        Mucac(data_dir=str(tmp_path)).problem()
    listed.unlink()
    with pytest.raises(BadInput, match="holds no CelebA-HQ-attribute.txt; MUCAC needs"):
        Mucac(data_dir=str(tmp_path)).problem()
    (tmp_path / "CelebA-HQ-identity.txt").write_text("0.jpg 0\n1.jpg\n")
    listed.write_text(text)
    with pytest.raises(BadInput, match="line 2 has 1 words instead of 2"):
        Mucac(data_dir=str(tmp_path)).problem()


@pytest.mark.slow
@pytest.mark.parametrize(("make", "least"), [(Mufac, 0.4), (Mucac, 0.75)])
def test_targets_learn_and_know_whom_they_have_met(make: type[Mufac] | type[Mucac], least: float) -> None:
    """Chance is 1/8 and 1/2; a model trained without the persons to forget does worse on them."""
    problem = make().problem()
    assert problem.recipe is not None
    right = {}
    for split in ("train", "retain"):
        model = fit(problem, problem.fresh_model(1), split, problem.recipe, Workplace(seed=1))
        right[split] = {
            s: collect(problem.family, model, problem.splits[s], ["correct"])["correct"].mean()
            for s in ("test", "forget")
        }
    assert right["train"]["test"] > least
    assert right["train"]["forget"] > right["retain"]["forget"] + 0.1
