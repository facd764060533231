"""Weights that public implementations of the papers produce from the same start, data and order.

The setting: scikit-learn digits, two small convolutional networks ("plain" and "bn", with batch norm),
forget set A (all of class 3) or B (a random tenth), batches in stored order. The tolerances are how exactly
each result is determined by float32 arithmetic; where Adam amplifies rounding noise the comparison is made
in float64.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from datasets import Array3D, Dataset, Features, Value
from safetensors.torch import load_file
from torch import Tensor, nn

from expunge.families import Architecture, Batch, Classifier, Images
from expunge.find.importance import batch_importance
from expunge.methods import METHODS, Workplace
from expunge.methods.bad_teacher import BadTeacher
from expunge.methods.boundary_shrink import BoundaryShrink
from expunge.methods.fine_tune import FineTune
from expunge.methods.gradient_ascent import GradientAscent
from expunge.methods.gradient_difference import GradientDifference
from expunge.methods.l1_sparse import L1Sparse
from expunge.methods.lfssd import LFSSD
from expunge.methods.loop import Fit
from expunge.methods.random_labeling import RandomLabeling
from expunge.methods.salun import SalUn
from expunge.methods.scrub import Scrub
from expunge.methods.ssd import SSD, dampening
from expunge.methods.unsir import Pool, Unsir, joined
from expunge.problem import Problem

CELLS = [("plain", "A"), ("plain", "B"), ("bn", "A"), ("bn", "B")]
SGD = {"optimizer": "sgd", "momentum": 0.9, "weight_decay": 5e-4, "batch_size": 64, "shuffle": False}
NETS = pytest.mark.parametrize(("net", "cut"), CELLS)


class Net(nn.Module):
    """The architecture of the stored weights; computes in the precision of its weights."""

    def __init__(self, batchnorm: bool) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(8) if batchnorm else nn.Identity()
        self.conv2 = nn.Conv2d(8, 16, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(16) if batchnorm else nn.Identity()
        self.fc1 = nn.Linear(64, 32)
        self.fc2 = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = x.to(self.fc1.weight.dtype)
        x = F.max_pool2d(self.bn1(self.conv1(x)).relu(), 2)
        x = F.max_pool2d(self.bn2(self.conv2(x)).relu(), 2)
        return self.fc2(self.fc1(x.flatten(1)).relu())


class StoredLabels(Classifier):
    """Relabels by a stored draw: the k-th time an id is asked for it gets its label of epoch k."""

    def __init__(self, draws: dict[str, list[int]]) -> None:
        super().__init__(Images(), 10)
        self.draws, self.asked = draws, Counter()

    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:
        labels = []
        for name in batch.ids:
            labels.append(self.draws[name][self.asked[name]])
            self.asked[name] += 1
        return replace(batch, targets=torch.tensor(labels).reshape(-1, 1))


class Golden:
    """The stored setting, as problems."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.split = np.load(folder / "inputs/digits_split.npz")

    def weights(self, name: str) -> dict[str, Tensor]:
        return load_file(self.folder / f"{name}.safetensors")

    def net(self, net: str, which: str, *, double: bool = False) -> nn.Module:
        model = Net(net == "bn")
        model.load_state_dict(self.weights(f"models/{net}_{which}"))
        return model.double() if double else model

    def problem(
        self, net: str, cut: str, *, double: bool = False, family: Classifier | None = None
    ) -> Problem:
        rows = self.split["train"]
        features = Features(
            {"id": Value("string"), "image": Array3D((1, 8, 8), "float32"), "label": Value("int64")}
        )
        images, labels = self.split["images"][rows], self.split["labels"][rows]
        columns = {"id": [str(r) for r in rows], "image": images, "label": labels}
        return Problem(
            f"{net}-{cut}",
            family or Classifier(Images(), 10),
            Dataset.from_dict(columns, features=features),
            tuple(str(r) for r in self.split[f"forget_{cut}"]),
            model=self.net(net, "target", double=double),
            architecture=Architecture(kind="builtin", name="cnn"),
        )


@pytest.fixture(scope="module")
def golden(shared: Path) -> Golden:
    folder = shared / "golden/classifier-tiny"
    if not folder.is_dir():
        pytest.skip("reference values are not on this machine (set EXPUNGE_SHARED)")
    return Golden(folder)


def difference(model: nn.Module, expected: dict[str, Tensor]) -> float:
    found = model.state_dict()
    assert set(found) == set(expected)
    return max(float((found[k].double() - v.double()).abs().max()) for k, v in expected.items())


@NETS
def test_fine_tune(golden: Golden, net: str, cut: str) -> None:
    made = FineTune(lr=0.01, epochs=2, **SGD).forget(golden.problem(net, cut))
    assert difference(made.model, golden.weights(f"salun/weights_{net}_{cut}_FT")) < 5e-6


@NETS
def test_gradient_ascent(golden: Golden, net: str, cut: str) -> None:
    method = GradientAscent(lr=0.02, epochs=2, batchnorm="update", **SGD)
    made = method.forget(golden.problem(net, cut))
    assert difference(made.model, golden.weights(f"salun/weights_{net}_{cut}_GA")) < 5e-6


@NETS
def test_gradient_difference(golden: Golden, net: str, cut: str) -> None:
    made = GradientDifference(alpha=0.95, lr=0.01, epochs=2, **SGD).forget(golden.problem(net, cut))
    assert difference(made.model, golden.weights(f"scrub/weights_{net}_{cut}_neggradplus")) < 5e-6


@NETS
@pytest.mark.parametrize(
    ("free", "epochs", "name"), [(0, 1, "1epoch_alpha0.0005"), (1, 3, "3epochs_alpha0.0005_nol1epochs1")]
)
def test_l1_sparse(golden: Golden, net: str, cut: str, free: int, epochs: int, name: str) -> None:
    made = L1Sparse(gamma=5e-4, free_epochs=free, epochs=epochs, lr=0.01, **SGD).forget(
        golden.problem(net, cut)
    )
    assert difference(made.model, golden.weights(f"l1_sparse/weights_{net}_{cut}_FT_l1_{name}")) < 5e-6


@NETS
def test_saliency_masks(golden: Golden, net: str, cut: str) -> None:
    problem = golden.problem(net, cut)
    stored = golden.weights(f"salun/masks_{net}_{cut}")
    total = sum(p.numel() for p in problem.target.parameters())
    for rho in (0.3, 0.5):
        mask = SalUn(rho=rho, batch_size=64).mask(problem, problem.target, _state(problem))
        flips = sum(int((m != stored[f"{rho}.{name}"].bool()).sum()) for name, m in mask.items())
        assert (flips, sum(int(m.sum()) for m in mask.values())) == (0, int(rho * total))


@NETS
@pytest.mark.parametrize("run", ["RL_nomask", "RL_mask0.3", "RL_mask0.5"])
def test_random_labeling_and_salun(golden: Golden, net: str, cut: str, run: str) -> None:
    draws = np.load(golden.folder / "salun/random_labels.npz")[f"random_labels_{cut}"]
    names = golden.split[f"forget_{cut}"]
    family = StoredLabels({str(name): draws[:, k].tolist() for k, name in enumerate(names)})
    recipe = {"lr": 0.01, "epochs": 2, **SGD}
    method = RandomLabeling(**recipe) if run == "RL_nomask" else SalUn(rho=float(run[-3:]), **recipe)
    made = method.forget(golden.problem(net, cut, family=family))
    assert difference(made.model, golden.weights(f"salun/weights_{net}_{cut}_{run}")) < 5e-6


@NETS
@pytest.mark.parametrize(("alpha", "lam"), [(10, 1), (5, 1), (2, 1), (1, 0.1), (50, 0.1)])
def test_ssd(golden: Golden, net: str, cut: str, alpha: float, lam: float) -> None:
    made = SSD(alpha=alpha, lam=lam, batch_size=64).forget(golden.problem(net, cut))
    stored = golden.weights(f"ssd/weights_{net}_{cut}_batch64_alpha{alpha}_lambda{lam}")
    assert difference(made.model, stored) < 3e-5


def test_ssd_importance_depends_on_the_batch_size(golden: Golden) -> None:
    problem, workplace = golden.problem("plain", "A"), Workplace()
    n_selected = {}
    for size in (64, 1):
        stored = golden.weights(f"ssd/importances_plain_A_batch{size}")
        found = {
            name: batch_importance(problem.family, problem.target, workplace.batches(problem, split), size)
            for name, split in (("forget", "forget"), ("all", "train"))
        }
        for which, importance in found.items():
            for name, value in importance.items():
                torch.testing.assert_close(value, stored[f"{which}.{name}"], rtol=1e-4, atol=1e-12)
        pairs = [(found["forget"][k], found["all"][k]) for k in found["forget"]]
        n_selected[size] = sum(int(dampening(f, d, 10.0, 1.0)[1].sum()) for f, d in pairs)
    assert n_selected == {64: 253, 1: 0}


@NETS
@pytest.mark.parametrize("alpha", [2, 1.2])
def test_lfssd(golden: Golden, net: str, cut: str, alpha: float) -> None:
    path = f"ssd_variants/weights_labelfree_{net}_{cut}_alpha{alpha}_lambda1"
    made = LFSSD(alpha=alpha, lam=1.0, batch_size=64).forget(golden.problem(net, cut))
    assert difference(made.model, golden.weights(path)) < 5e-6


def test_lfssd_selects_as_many_weights(golden: Golden) -> None:
    for alpha, n_selected in ((10, 24), (5, 254), (2, 1208)):
        made = LFSSD(alpha=alpha, batch_size=64).forget(golden.problem("plain", "A"))
        assert made.notes[0].startswith(f"{n_selected} of 3658 weights selected")


@NETS
@pytest.mark.parametrize("setting", ["adam", "sgd_kdT4"])
def test_scrub(golden: Golden, net: str, cut: str, setting: str) -> None:
    adam = Scrub(
        epochs=4, msteps=2, alpha=0.5, gamma=1.0, temperature=2.0, optimizer="adam", lr=5e-4,
        weight_decay=0.1, lr_decay_epochs=(2, 3), batch_size=64, shuffle=False,
    )  # fmt: skip
    sgd = adam.replace(
        alpha=0.001, gamma=0.99, temperature=4.0, optimizer="sgd", lr=1e-3, momentum=0.9,
        weight_decay=5e-4, lr_decay_epochs=(3, 5, 9), forget_batch_size=32,
    )  # fmt: skip
    method = adam if setting == "adam" else sgd
    path = f"scrub/weights_{net}_{cut}_{setting}"
    made = method.forget(golden.problem(net, cut, double=True))
    assert difference(made.model, golden.weights(f"{path}_epoch4_float64")) < 1e-9
    made = method.replace(epochs=1).forget(golden.problem(net, cut))
    assert difference(made.model, golden.weights(f"{path}_epoch1_float32")) < 5e-6


@NETS
@pytest.mark.parametrize("temperature", [1, 2])
def test_bad_teacher(
    golden: Golden, net: str, cut: str, temperature: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    class StoredOrder(BadTeacher):
        def order(self, over: str, n: int, epoch: int, generator: torch.Generator) -> Tensor:
            return torch.from_numpy(golden.split[f"mixed_order_{cut}"])

    teacher = golden.net(net, "incompetent", double=True)
    monkeypatch.setattr(Problem, "fresh_model", lambda self, seed: teacher)
    method = StoredOrder(
        temperature=float(temperature), retain_fraction=1.0, reduction="elementmean", lr=1e-3, batch_size=64
    )
    made = method.forget(golden.problem(net, cut, double=True))
    path = f"bad_teacher/weights_{net}_{cut}_temperature{temperature}_float64"
    assert difference(made.model, golden.weights(path)) < 1e-9


@NETS
def test_boundary_shrink(golden: Golden, net: str, cut: str) -> None:
    method = BoundaryShrink(bound=0.1, low=0.0, high=1.0, pixels=True, lr=0.005, epochs=1, **SGD)
    made = method.forget(golden.problem(net, cut))
    assert difference(made.model, golden.weights(f"salun/weights_{net}_{cut}_boundary_shrink")) < 5e-6


@pytest.mark.parametrize("net", ["plain", "bn"])
def test_unsir(golden: Golden, net: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Learned noise, impaired and repaired weights.

    What the public implementation does and the method does not is done here: noise is learned in train
    mode (which moves batch-norm statistics), its first image alone goes 80 times into the impairing data,
    and rows are visited in stored order. The gradient left over from learning the noise is cleared.
    """
    monkeypatch.setattr(Fit, "order", lambda self, over, n, epoch, generator: torch.arange(n))
    stored = np.load(golden.folder / f"unsir/noise_{net}.npz")
    problem, workplace = golden.problem(net, "A", double=True), Workplace()
    method = Unsir(noise_steps=25, impair_lr=1e-3, repair_lr=1e-3, batch_size=64)
    model = problem.target.train()

    images = problem.batches("forget").take(torch.zeros(len(stored["start"]), dtype=torch.long))
    start = replace(images, inputs={k: torch.from_numpy(stored["start"]).double() for k in images.inputs})
    noise = method.learn_noise(problem.family, model, start)
    (learned,) = noise.inputs.values()
    assert float((learned - torch.from_numpy(stored["learned_float64"])).abs().max()) < 1e-9

    train = problem.batches("train")
    kept = torch.tensor([train.ids.index(str(i)) for i in stored["retain_indices"]])
    both = joined([noise, train.take(kept)])
    clean = torch.arange(len(noise), len(both))
    impairing = torch.cat([torch.zeros(80, dtype=torch.long), clean])
    for stage, rows in (("impair", impairing), ("repair", clean)):
        method.train(problem, model, Pool(problem.family, both, rows), stage, workplace)
        path = f"unsir/weights_{net}_A_gradient_cleared_{stage}ed_float64"
        # Hundreds of steps multiply the last digit, in which processors differ.
        assert difference(model, golden.weights(path)) < 1e-8


def _state(problem: Problem):
    from expunge.methods.objective import State

    return State(problem, {}, Workplace())


def test_every_stored_method_is_registered() -> None:
    assert {"ssd", "lfssd", "salun", "scrub", "bad-teacher", "l1-sparse"} <= set(METHODS)
