"""The standard battery on embedded problems: what an audit costs beside its attacks by themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable

import torch
from timing import line
from torch import nn

import expunge
from expunge.attacks import Attack, Scene, fitting_attacks
from expunge.data.benchmarks.digits import Digits
from expunge.methods.base import Workplace
from expunge.problem import Problem

REPEATS = 5


def main() -> None:
    """Print the ratio for a classifier; an audit of one model with its target and two references."""
    torch.set_num_threads(1)
    problem = expunge.train_target(Digits(model="mlp").problem())
    references = [expunge.forget(problem, "retrain", seed=seed).model for seed in (1, 2)]
    model = expunge.forget(problem, "fine-tune").model
    models = [problem.target, *references, model]
    attacks = fitting_attacks(problem, "standard")
    metrics = ["accuracy", "mia-loss-logistic"]

    def battery() -> None:
        expunge.audit(problem, {"audited": model}, retrained=references, metrics=metrics, attacks=attacks)

    ratios, ours, theirs = [], [], []
    battery()  # warms what is loaded lazily
    for _ in range(REPEATS):
        ours.append(cpu(battery))
        theirs.append(sum(bare(problem, models, i, attack) for i in range(len(models)) for attack in attacks))
        ratios.append(ours[-1] / theirs[-1])
    names = ", ".join(attack.name for attack in attacks)
    what = f"standard battery, {len(models)} models, {len(attacks)} attacks"
    line(what, statistics.median(ratios), min(ours), min(theirs), "at most 1.3")
    print(f"attacks: {names}; metrics: {', '.join(metrics)}; CPU seconds")


def bare(problem: Problem, models: list[nn.Module], index: int, attack: Attack) -> float:
    """CPU seconds of one attack on one model that nothing is known of yet."""
    others = [m for k, m in enumerate(models[1:3], 1) if k != index]
    return cpu(lambda: attack.attack(Scene(problem, models[index], Workplace(0), (), others)))


def cpu(run: Callable[[], object]) -> float:
    """CPU seconds of a call."""
    started = time.process_time()
    run()
    return time.process_time() - started


if __name__ == "__main__":
    main()
