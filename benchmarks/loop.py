"""The shared loop against a bare PyTorch loop with the same objective, data order and optimizer."""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from timing import line, paired_ratio

from expunge.data.specification import ProblemSpec
from expunge.families.models import Architecture, clone
from expunge.methods import METHODS, Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training

EPOCHS = 8


def digits() -> Problem:
    problem = ProblemSpec(benchmark="digits", forget="fraction=0.1").build()
    options = {"channels": 1, "size": 8, "outputs": 10, "widths": [32, 64], "hidden": 128}
    problem = Problem(
        problem.name, problem.family, problem.train, problem.forget_ids, problem.holdout, problem.probes,
        architecture=Architecture(kind="builtin", name="cnn", options=options), recipe=Training(epochs=3),
    )  # fmt: skip
    return problem.with_model(fit(problem, problem.fresh_model(0), "train", Training(epochs=3), Workplace()))


def tensors(problem: Problem, split: str) -> tuple[torch.Tensor, torch.Tensor]:
    rows = problem.splits[split].with_format("numpy")[:]
    return torch.from_numpy(np.asarray(rows["image"], dtype=np.float32))[:, None], torch.from_numpy(
        np.asarray(rows["label"])
    )


def main() -> None:
    torch.set_num_threads(1)
    problem = digits()
    forget, retain = tensors(problem, "forget"), tensors(problem, "retain")
    results = {}

    def bare_fine_tune() -> None:
        model = clone(problem.target).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        x, y = retain
        for epoch in range(EPOCHS):
            for rows in torch.randperm(len(x), generator=torch.Generator().manual_seed(epoch)).split(64):
                F.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        results["bare fine-tune"] = model

    def bare_difference() -> None:
        model = clone(problem.target).train()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4)
        (xf, yf), (xr, yr) = forget, retain
        for epoch in range(EPOCHS):
            generator = torch.Generator().manual_seed(epoch)
            forgets = torch.randperm(len(xf), generator=generator).split(64)
            for i, rows in enumerate(torch.randperm(len(xr), generator=generator).split(64)):
                other = forgets[i % len(forgets)]
                loss = 0.95 * F.cross_entropy(model(xr[rows]), yr[rows]) - 0.05 * F.cross_entropy(
                    model(xf[other]), yf[other]
                )
                loss.backward()
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

    for name, bare in (("fine-tune", bare_fine_tune), ("gradient-difference", bare_difference)):
        method = METHODS[name](epochs=EPOCHS, lr=0.01)
        ratio, ours, theirs = paired_ratio(
            lambda method=method: method.produce(problem, clone(problem.target), Workplace()), bare
        )
        line(
            f"shared loop, {name}, CNN of {count(problem):,} weights, batch 64",
            ratio,
            ours,
            theirs,
            "at most 1.05",
        )


def count(problem: Problem) -> int:
    return sum(p.numel() for p in problem.target.parameters())


if __name__ == "__main__":
    main()
