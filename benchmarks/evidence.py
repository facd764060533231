"""Evidence for all metrics of one model on one data set: passes, and time against a bare forward loop."""

from __future__ import annotations

import torch
from loop import digits
from timing import line, paired_ratio

from expunge.evidence import collect
from expunge.families import Batches, metered
from expunge.metrics.base import standard_metrics
from expunge.studies.graph import quantities


def main() -> None:
    for side in (8, 32):
        measure(side)


def measure(side: int) -> None:
    torch.set_num_threads(1)
    problem = digits(side=side)
    metrics = standard_metrics(problem.family)
    wanted = quantities(metrics, problem, ("model", "target", "retrained"))
    names = sorted(wanted["retain"])
    with metered() as meter:
        collect(problem.family, problem.target, problem.retain, names)
    passes = meter.examples / len(problem.retain)
    print(
        f"evidence for {len(metrics)} metrics ({len(names)} quantities on the retain set): {passes:.2f} forward passes"
    )

    batches = Batches(problem.family, problem.retain)
    order = torch.arange(len(batches))

    def bare() -> None:
        model = problem.target.eval()
        with torch.inference_mode():
            for _ in range(5):
                for rows in order.split(256):
                    batch = batches.take(rows)
                    model(batch.inputs["pixel_values"])

    def ours() -> None:
        for _ in range(5):
            collect(problem.family, problem.target, problem.retain, names, batches=batches)

    ratio, a, b = paired_ratio(ours, bare)
    line(f"one evidence pass, CNN, {side} pixels", ratio, a, b, "at most 1.15")


if __name__ == "__main__":
    main()
