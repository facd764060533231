"""UNSIR: impair the model with noise that stands for the class to forget, then repair it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from expunge.families import Batch, Batches, Family
from expunge.methods.base import Edit, Workplace
from expunge.methods.boundary_shrink import discrete_inputs
from expunge.methods.loop import fit
from expunge.parameters import param
from expunge.problem import Problem, Training


class Unsir(Edit):
    """Unlearning with single pass impair and repair, for whole classes.

    For each class c that occurs in the forget set, `noise_size` inputs N are learned from standard normal
    starts against the fixed target, ``min mean_b( ln p_target(c | N_b) + noise_penalty * sum(N_b^2) )``, in
    nats: inputs that the target would never take for c. Impair: one epoch of ``min mean -ln p(y | x)`` over
    the noise, labeled c and repeated `noise_repeats` times, mixed with up to `retain_per_class` retain rows
    of each class. Repair: one epoch over these retain rows alone, with a new optimizer. Of the forget rows
    nothing but classes and the shape of inputs is used.

    What sets the strength is the number of noise rows (`noise_size` times `noise_repeats` per class) against
    that of retain rows, and of optimizer steps. With some hundred retain rows the defaults leave repair a few
    steps only and wreck the model: use fewer noise rows and a smaller batch, such as 16 inputs, 10 repeats,
    batch 32 for a thousand small images.

    Deviations from the reference code, which is for class 0: the noise of every class is labeled with its own
    class, and every learned input is used (its collecting loop takes as many as the image has channels);
    noise is learned in eval mode, so that it does not enter the running statistics of batch norm; and no
    gradient is carried over from learning the noise to the first impairing step, where it would dominate
    Adam's second moment. Rows of inputs that are not real numbers (tokens) are refused.

    Meant for forgetting whole classes: where retain rows have a forgotten class, repair teaches it again.
    """

    name = "unsir"
    paper = "Tarun et al., TNNLS 2023, arXiv:2111.08947"
    families = frozenset({"classifier"})
    needs = frozenset({"retain", "labels"})

    noise_size: int = param(256, "noise inputs per class", source="reference code: 256", ge=1)
    noise_steps: int = param(40, "Adam steps that learn the noise", source="reference code: 5 x 8", ge=0)
    noise_lr: float = param(0.1, "learning rate of the noise", source="reference code: 0.1", ge=0)
    noise_penalty: float = param(
        0.1, "weight of the squared norm of a noise input", source="reference code: 0.1", ge=0
    )
    noise_repeats: int = param(20, "times the noise is repeated", source="reference code: 20", ge=1)
    retain_per_class: int = param(
        1000, "largest number of retain rows of a class", source="reference code: 1000", ge=1
    )
    impair_lr: float = param(0.02, "learning rate (Adam) of impairing", source="reference code: 0.02", ge=0)
    repair_lr: float = param(0.01, "learning rate (Adam) of repairing", source="reference code: 0.01", ge=0)
    batch_size: int = param(256, "examples per optimizer step", source="reference code: 256", ge=1)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        return super().obstacles(problem) + discrete_inputs(problem)

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        family, generator = problem.family, workplace.generator(9)
        forget, retain = workplace.batches(problem, "forget"), workplace.batches(problem, "retain")
        forgotten, kept = targets_of(forget), targets_of(retain)
        noise = []
        for label in forgotten.unique():
            first = int((forgotten == label).nonzero()[0])
            start = standard_normal(forget.take(torch.full((self.noise_size,), first)), generator)
            noise.append(self.learn_noise(family, model, start))
            with torch.no_grad():
                reached = family.nll(family.forward(model, noise[-1]), noise[-1]).mean()
            workplace.notes.append(
                f"noise of class {int(label)} has a cross-entropy of {float(reached):.3g} nats at the target"
            )
        shared = int(torch.isin(kept, forgotten).sum())
        if shared:
            workplace.notes.append(
                f"{shared} retain rows have a class that occurs in the forget set; unsir is meant for whole classes"
            )
        rows = at_most(self.retain_per_class, kept, generator)
        noisy = joined([*noise, retain.take(rows)])
        n_noise = len(noisy) - len(rows)
        repeated = torch.arange(n_noise).repeat(self.noise_repeats)
        clean = torch.arange(n_noise, len(noisy))
        self.train(problem, model, Pool(family, noisy, torch.cat([repeated, clean])), "impair", workplace)
        self.train(problem, model, Pool(family, noisy, clean), "repair", workplace)

    def learn_noise(self, family: Family, model: nn.Module, start: Batch) -> Batch:
        """The inputs of `start` changed by `noise_steps` steps of Adam, with its targets; `model` stays as it is."""
        inputs = {name: value.clone().requires_grad_() for name, value in start.inputs.items()}
        batch, values = replace(start, inputs=inputs), list(inputs.values())
        optimizer = torch.optim.Adam(values, lr=self.noise_lr)
        for _ in range(self.noise_steps):
            penalty = sum(
                (v.square().flatten(1).sum(1) for v in values[1:]), values[0].square().flatten(1).sum(1)
            )
            loss = (self.noise_penalty * penalty - family.nll(family.forward(model, batch), batch)).mean()
            for value, gradient in zip(values, torch.autograd.grad(loss, values), strict=True):
                value.grad = gradient  # of the noise alone: the model's gradients stay empty
            optimizer.step()
        return replace(start, inputs={name: value.detach() for name, value in inputs.items()})

    def train(self, problem: Problem, model: nn.Module, pool: Pool, stage: str, workplace: Workplace) -> None:
        """One epoch of maximum likelihood over `pool` with an Adam of its own, in place."""
        recipe = Training(
            epochs=1, lr=self.impair_lr if stage == "impair" else self.repair_lr, optimizer="adam",
            weight_decay=0.0, batch_size=self.batch_size,
        )  # fmt: skip
        fit(problem, model, "retain", recipe, Stage.of(workplace, stage, pool))


class Pool(Batches):
    """Rows of one batch in memory, some of them several times.

    Args:
        family: how models read them.
        batch: the distinct rows.
        rows: `[n]` which row of `batch` each row of the pool is.
    """

    def __init__(self, family: Family, batch: Batch, rows: Tensor) -> None:
        self.family, self.device = family, batch.mask.device
        self._batch, self._rows = batch, rows

    def __len__(self) -> int:
        return len(self._rows)

    def take(self, rows: Tensor) -> Batch:  # noqa: D102
        return self._batch.select(self._rows[rows].to(self.device))


@dataclass
class Stage(Workplace):
    """A workplace for one stage of a method, whose retain set is a pool; log and notes are those of the whole."""

    pool: Pool | None = None

    @classmethod
    def of(cls, workplace: Workplace, name: str, pool: Pool) -> Stage:
        """The stage `name` of what runs at `workplace`, with a folder of its own for checkpoints."""
        values = dict(vars(workplace))
        if workplace.checkpoint is not None:
            values["checkpoint"] = workplace.checkpoint / name
        return cls(**values, pool=pool)

    def batches(self, problem: Problem, split: str) -> Batches:  # noqa: D102
        return super().batches(problem, split) if self.pool is None else self.pool


def targets_of(batches: Batches) -> Tensor:
    """`[n]` class of each row, on the CPU."""
    return torch.cat([batch.targets.flatten().cpu() for _, batch in batches.sequential(256)])


def at_most(n: int, classes: Tensor, generator: torch.Generator) -> Tensor:
    """Positions of up to `n` random rows of each class, class by class."""
    chosen = []
    for label in classes.unique():
        rows = (classes == label).nonzero().flatten()
        chosen.append(rows[torch.randperm(len(rows), generator=generator)[:n]])
    return torch.cat(chosen)


def standard_normal(batch: Batch, generator: torch.Generator) -> Batch:
    """The batch with inputs drawn from the standard normal law."""
    drawn = {k: torch.randn(v.shape, generator=generator).to(v) for k, v in batch.inputs.items()}
    return replace(batch, inputs=drawn)


def joined(parts: list[Batch]) -> Batch:
    """The rows of several batches in a row."""
    return Batch(
        [name for part in parts for name in part.ids],
        {key: torch.cat([part.inputs[key] for part in parts]) for key in parts[0].inputs},
        torch.cat([part.targets for part in parts]),
        torch.cat([part.mask for part in parts]),
    )
