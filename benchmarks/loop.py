"""The shared loop against a bare PyTorch loop with the same objective, data order and optimizer."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from datasets import Dataset
from timing import line, paired_ratio

from expunge.data.specification import ProblemSpec
from expunge.families.models import Architecture, clone
from expunge.methods import METHODS, Method, Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

SIDE = 8


def digits(model: str = "cnn", side: int = SIDE) -> Problem:
    """Digits of `side` pixels with a convolutional network of our own, or a ResNet of transformers, a little trained."""
    problem = ProblemSpec(benchmark="digits", forget="fraction=0.1", options={"model": model}).build()
    architecture = problem.architecture
    if model == "cnn":
        options = {"channels": 1, "size": side, "outputs": 10, "widths": [32, 64], "hidden": 128}
        architecture = Architecture(kind="builtin", name="cnn", options=options)
    problem = Problem(
        problem.name, problem.family, enlarged(problem.train, side), problem.forget_ids,
        architecture=architecture, recipe=Training(epochs=3),
    )  # fmt: skip
    return problem.with_model(fit(problem, problem.fresh_model(0), "train", Training(epochs=3), Workplace()))


def enlarged(dataset: Dataset, side: int) -> Dataset:
    """The same pictures with every pixel repeated."""
    if side == SIDE:
        return dataset
    images = (
        np.asarray(dataset.with_format("numpy")["image"][:]).repeat(side // SIDE, 1).repeat(side // SIDE, 2)
    )
    return Dataset.from_dict({**dataset.with_format(None)[:], "image": images})


def tensors(problem: Problem, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = problem.splits[split].with_format("numpy")[:]
    return torch.from_numpy(np.asarray(rows["image"], dtype=np.float32))[:, None], torch.from_numpy(
        np.asarray(rows["label"])
    )


def main() -> None:
    torch.set_num_threads(1)
    for name, side, epochs, repeats in (("cnn", 32, 1, 15), ("cnn", SIDE, 4, 30), ("resnet", SIDE, 4, 30)):
        compare(digits(name, side), name, epochs, repeats)


def compare(problem: Problem, architecture: str, epochs: int, repeats: int) -> None:
    """Print the ratio for an objective with one forward pass and for one with two."""
    (xf, yf), (xr, yr) = tensors(problem, "forget"), tensors(problem, "retain")
    pretrained = architecture == "resnet"

    def logits(model: torch.nn.Module, x: torch.Tensor) -> torch.Tensor:
        return model(x).logits if pretrained else model(x)

    def bare(paired: bool) -> None:
        model = clone(problem.target).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        for epoch in range(epochs):
            generator = torch.Generator().manual_seed(epoch)
            forgets = torch.randperm(len(xf), generator=generator).split(64)
            for i, rows in enumerate(torch.randperm(len(xr), generator=generator).split(64)):
                loss = F.cross_entropy(logits(model, xr[rows]), yr[rows])
                if paired:
                    other = forgets[i % len(forgets)]
                    loss = 0.95 * loss - 0.05 * F.cross_entropy(logits(model, xf[other]), yf[other])
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    for name, paired in (("fine-tune", False), ("gradient-difference", True)):
        method = METHODS[name](epochs=epochs, lr=0.01)

        def ours(method: Method = method) -> None:
            method.produce(problem, clone(problem.target), Workplace())

        ratio, least, other = paired_ratio(ours, lambda paired=paired: bare(paired), repeats)
        steps = epochs * -(-len(xr) // 64)
        what = (
            f"shared loop, {name}, {architecture}, {xr.shape[-1]} pixels, {other / steps * 1e3:.1f} ms a step"
        )
        line(what, ratio, least, other, "at most 1.05")


if __name__ == "__main__":
    main()
