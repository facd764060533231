"""The standard battery on embedded problems: what an audit costs beside its attacks by themselves."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence

import torch
from timing import line
from torch import nn

import expunge
from expunge.attacks import Attack, Scene, fitting_attacks
from expunge.data.benchmarks.digits import Digits
from expunge.methods.base import Workplace
from expunge.problem import Problem
from expunge.self_check.worlds import FactsWorld


def main() -> None:
    """Print the ratios: an audit of one model with its target and two references, of digits and of made-up persons."""
    torch.set_num_threads(1)
    digits = Digits(model="mlp").problem()
    measure(
        "classifier",
        digits,
        ["accuracy", "mia-loss-logistic"],
        fitting_attacks(digits, "standard"),
        repeats=5,
    )
    world = FactsWorld()
    attacks = [
        a.replace(**world.parameters.get(a.name, {}))
        for a in fitting_attacks(world.problem, "standard")
        if a.name not in world.left_out
    ]
    measure("language model", world.problem, list(world.metrics), attacks, repeats=1)


def measure(
    family: str, problem: Problem, metrics: list[str], attacks: Sequence[Attack], repeats: int
) -> None:
    """Median over `repeats` of the audit's CPU seconds over the sum of its attacks' own."""
    problem = expunge.train_target(problem)
    references = [expunge.forget(problem, "retrain", seed=seed).model for seed in (1, 2)]
    model = expunge.forget(problem, "fine-tune").model
    models = [problem.target, *references, model]

    def battery() -> None:
        expunge.audit(problem, {"audited": model}, retrained=references, metrics=metrics, attacks=attacks)

    ratios, ours, theirs = [], [], []
    battery()  # warms what is loaded lazily
    for _ in range(repeats):
        ours.append(cpu(battery))
        theirs.append(sum(bare(problem, models, i, attack) for i in range(len(models)) for attack in attacks))
        ratios.append(ours[-1] / theirs[-1])
    names = ", ".join(attack.name for attack in attacks)
    what = f"standard battery, {family}, {len(models)} models, {len(attacks)} attacks"
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
