"""Per-sample Fisher information by torch.func against a loop of single backward passes."""

from __future__ import annotations

import torch
from timing import line, paired_ratio

from expunge.data.specification import ProblemSpec
from expunge.families import Batches
from expunge.find.importance import sample_importance


def main() -> None:
    torch.set_num_threads(1)
    problem = ProblemSpec(benchmark="digits", forget="fraction=0.1").build()
    model = problem.fresh_model(0).eval()
    family, batches = problem.family, Batches(problem.family, problem.forget)
    parameters = dict(model.named_parameters())
    found = {}

    def loop() -> None:
        total = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for i in range(len(batches)):
            batch = batches.take(torch.tensor([i]))
            gradients = torch.autograd.grad(
                family.nll(family.forward(model, batch), batch).sum(), list(parameters.values())
            )
            for name, gradient in zip(parameters, gradients, strict=True):
                total[name] += gradient.square()
        found["loop"] = {name: value / len(batches) for name, value in total.items()}

    def ours() -> None:
        found["ours"] = sample_importance(family, model, batches, 64)

    ratio, a, b = paired_ratio(ours, loop, repeats=5)
    gap = max((found["ours"][n] - found["loop"][n]).abs().max().item() for n in parameters)
    scale = max(v.abs().max().item() for v in found["loop"].values())
    line(f"per-sample Fisher of {len(batches)} rows, CNN", ratio, a, b, "at most 0.25")
    print(f"{'':<64} {1 / ratio:.1f} times as fast; largest difference {gap:.1e} of {scale:.1e}")


if __name__ == "__main__":
    main()
