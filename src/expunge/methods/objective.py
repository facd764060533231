"""Objectives: methods that only write a loss, and the one loop that runs them all.

The loop owns data order, accumulation, mixed precision, clipping, masks, checkpoints and logging. An objective says which
passes it makes over the data and what its loss is on one step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, final

import torch
from torch import Tensor, nn

from expunge.errors import ExpungeError
from expunge.families.base import Batch, Family, Outputs
from expunge.families.batches import Batches
from expunge.families.models import clone
from expunge.methods.base import Method, Workplace
from expunge.methods.checkpoint import Checkpoints
from expunge.parameters import param
from expunge.problem import Problem, Training

Split = Literal["forget", "retain", "train"]


@dataclass(frozen=True)
class Pass:
    """One traversal of the data within an epoch."""

    over: Split
    """Which rows are visited, each once. `train` visits forget and retain rows mixed."""
    paired: Split | None = None
    """Rows drawn alongside, batch by batch, cycled when they run out."""
    name: str = ""
    """What `Step.phase` says during this pass."""
    batch_size: int | None = None
    """Where it differs from the objective's."""
    retain_fraction: float = 1.0
    """Share of the retain rows that a pass over `train` visits; the same rows in every epoch."""


class Frozen:
    """Outputs of a model that does not change, by split and row.

    Precomputed, the outputs of every row are stored and the model is let go; live, it is kept and called in each step.
    Both give the same numbers.
    """

    def __init__(
        self,
        model: nn.Module,
        family: Family,
        sources: dict[Split, Batches],
        splits: Sequence[Split],
        hidden: Sequence[str] = (),
        *,
        precompute: bool,
        batch_size: int = 256,
    ) -> None:
        self._family, self._hidden = family, tuple(hidden)
        self._stored: dict[Split, Outputs] = {}
        self._model: nn.Module | None = None
        if not precompute:
            self._model = clone(model).eval()
            for parameter in self._model.parameters():
                parameter.requires_grad_(False)
            return
        was_training = model.training
        model.eval()
        with torch.no_grad():
            for split in splits:
                self._stored[split] = self._collect(model, sources[split], batch_size)
        model.train(was_training)

    def _collect(self, model: nn.Module, batches: Batches, batch_size: int) -> Outputs:
        # Filled in place: concatenating at the end would hold every output twice.
        stored: Outputs | None = None
        for rows, batch in batches.sequential(batch_size):
            made = self._family.forward(model, batch, self._hidden)
            if stored is None:
                n = len(batches)
                stored = Outputs(
                    made.prediction.new_empty((n, *made.prediction.shape[1:])),
                    {k: v.new_empty((n, *v.shape[1:])) for k, v in made.hidden.items()},
                )
            stored.prediction[rows] = made.prediction
            for layer, value in made.hidden.items():
                stored.hidden[layer][rows] = value
        if stored is None:
            raise ExpungeError("a frozen model was asked for the outputs of an empty data set")
        return stored

    def outputs(self, split: Split, rows: Tensor, batch: Batch) -> Outputs:
        """Outputs for the given rows of `split`; `batch` holds the same rows."""
        if self._model is None:
            return self._stored[split].select(rows)
        with torch.no_grad():
            return self._family.forward(self._model, batch, self._hidden)


@dataclass
class State:
    """What an objective keeps during one run; the method object itself holds hyperparameters only."""

    problem: Problem
    sources: dict[Split, Batches]
    workplace: Workplace
    frozen: dict[str, Frozen] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)
    """Tensors that must survive an interruption; saved with every checkpoint."""

    def freeze(self, name: str, model: nn.Module, splits: Sequence[Split], hidden: Sequence[str] = ()) -> None:
        """Register a frozen model whose outputs `Step.frozen(name, ...)` will give."""
        precompute = self.workplace.reference == "precompute"
        self.frozen[name] = Frozen(model, self.problem.family, self.sources, splits, hidden, precompute=precompute)


class _Drawn:
    """The rows of one optimizer step from one split."""

    def __init__(self, split: Split, rows: Tensor, batches: Batches) -> None:
        self.split, self.rows = split, rows
        self.batch = batches.take(rows)
        self.relabeled: dict[str, Batch] = {}


class Step:
    """What an objective sees of one forward pass: batches, cached outputs, frozen outputs.

    With micro-batches one optimizer step is several `Step`s. `mean` and `once` scale so that their sum is exactly the
    loss over the whole batch.
    """

    def __init__(
        self, model: nn.Module, state: State, drawn: dict[Split, _Drawn], piece: dict[Split, Tensor], share: float,
        phase: str, epoch: int, progress: float, generator: torch.Generator,
    ) -> None:  # fmt: skip
        self.model, self.state, self.phase, self.epoch, self.progress = model, state, phase, epoch, progress
        self.family, self.generator = state.problem.family, generator
        self._drawn, self._piece, self._share = drawn, piece, share
        whole = share == 1.0
        self._batches = {s: d.batch if whole else d.batch.select(piece[s]) for s, d in drawn.items()}
        self._outputs: dict[tuple[Split, tuple[str, ...]], Outputs] = {}

    @property
    def forget(self) -> Batch:
        """The forget rows of this step."""
        return self._batches["forget"]

    @property
    def retain(self) -> Batch:
        """The retain rows of this step."""
        return self._batches["retain"]

    def batch(self, split: Split) -> Batch:
        """The rows of this step from `split`."""
        return self._batches[split]

    @property
    def is_forget(self) -> Tensor:
        """`[B]` bool: which rows of a pass over `train` are to be forgotten."""
        flags = torch.from_numpy(self.state.problem.forget_mask)
        return flags[self._rows("train")].to(self._batches["train"].mask.device)

    def outputs(self, split: Split, hidden: Sequence[str] = ()) -> Outputs:
        """Outputs of the model on this step's rows of `split`; one forward pass however often they are asked for."""
        key = (split, tuple(hidden))
        if key not in self._outputs:
            self._outputs[key] = self.family.forward(self.model, self._batches[split], hidden)
        return self._outputs[key]

    def frozen(self, name: str, split: Split) -> Outputs:
        """Outputs of a frozen model on the same rows."""
        return self.state.frozen[name].outputs(split, self._rows(split), self._batches[split])

    def reference(self, split: Split) -> Outputs:
        """Outputs of the target, as it was before the run."""
        return self.frozen("reference", split)

    def relabeled(self, split: Split, how: str) -> Batch:
        """This step's rows with other targets; drawn once for the whole batch, whatever the micro-batches."""
        drawn = self._drawn[split]
        if how not in drawn.relabeled:
            drawn.relabeled[how] = self.family.relabel(drawn.batch, how, self.generator)
        batch = drawn.relabeled[how]
        return batch if self._share == 1.0 else batch.select(self._piece[split])

    def mean(self, split: Split, values: Tensor, where: Tensor | None = None) -> Tensor:
        """This piece's part of the mean of `values` (`[B]`) over the optimizer step's rows of `split`.

        With `where` (`[B]` bool), only those rows count in the sum; the divisor stays the number of all rows.
        """
        if where is not None:
            values = torch.where(where, values, torch.zeros_like(values))
        return values.sum() / len(self._drawn[split].batch)

    def once(self, value: Tensor) -> Tensor:
        """This piece's part of a term that does not depend on data, such as a weight penalty."""
        return value * self._share

    def _rows(self, split: Split) -> Tensor:
        rows = self._drawn[split].rows
        return rows if self._share == 1.0 else rows[self._piece[split]]


class Objective(Method, Training):
    """A method that is a loss. Override `loss`, and `passes` where the default (one pass over forget) is wrong."""

    kind = "objective"
    reference_on: ClassVar[tuple[Split, ...]] = ()
    """Splits on which `Step.reference` will be asked for."""

    epochs: int = param(5, "passes over the data", source="ours: enough on the embedded problems", ge=0)
    lr: float = param(0.01, "learning rate", source="Unlearn-Saliency's default", ge=0)
    clip: float | None = param(None, "largest gradient norm; None means unlimited", source="ours", gt=0)
    shuffle: bool = param(True, "visit rows in a new random order in every epoch", source="customary")
    batchnorm: Literal["update", "freeze"] = param(
        "update", "what batch-norm statistics do during the run", source="reference codes leave models in train mode"
    )
    precision: Literal["no", "bf16", "fp16"] = param("no", "mixed precision of the forward pass", source="ours")

    def passes(self, epoch: int) -> Sequence[Pass]:
        """The passes of epoch `epoch` (from 0)."""
        return [Pass("forget")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:
        """Make what the run needs (frozen teachers, importances); `model` is the target in eval mode."""

    def reference_hidden(self, problem: Problem, model: nn.Module) -> Sequence[str]:
        """Layers whose activations `Step.reference` will be asked for."""
        return ()

    @abstractmethod
    def loss(self, step: Step) -> dict[str, Tensor]:
        """Named terms, each a scalar; the loop adds and logs them."""

    def mask(self, problem: Problem, model: nn.Module, state: State) -> dict[str, Tensor] | None:
        """Per parameter, True where it may change; None means everywhere. Elsewhere weights stay bitwise as they were."""
        return None

    def after_step(self, model: nn.Module, state: State, progress: float) -> None:
        """Called after every optimizer step, under no_grad."""

    def after_epoch(self, model: nn.Module, state: State, epoch: int) -> None:
        """Called after every epoch, under no_grad, in eval mode."""

    def finish(self, problem: Problem, model: nn.Module, state: State) -> None:
        """Called once at the end, under no_grad, in eval mode."""

    def learning_rate(self, epoch: int, progress: float) -> float:
        """Learning rate in epoch `epoch` at `progress` (0 to 1) of the run."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + torch.cos(torch.tensor(progress * torch.pi)).item())
        return self.lr

    def order(self, over: Split, n: int, epoch: int, generator: torch.Generator) -> Tensor:
        """`[n]` positions in the order of visit; for `train` they count the forget rows first, then the retain rows."""
        return torch.randperm(n, generator=generator) if self.shuffle else torch.arange(n)

    @final
    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        return run(self, problem, model, workplace)


def run(objective: Objective, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:
    """Run `objective` on `model` in place and return it."""
    loop = _Loop(objective, problem, model, workplace)
    return loop.run()


class _Loop:
    def __init__(self, objective: Objective, problem: Problem, model: nn.Module, workplace: Workplace) -> None:
        self.objective, self.problem, self.model, self.workplace = objective, problem, model, workplace
        self.plan = [objective.passes(epoch) for epoch in range(objective.epochs)]
        splits: set[Split] = {s for passes in self.plan for p in passes for s in (p.over, p.paired) if s is not None}
        splits |= set(objective.reference_on)
        self.sources: dict[Split, Batches] = {s: workplace.batches(problem, s) for s in sorted(splits)}
        self.state = State(problem, self.sources, workplace)
        self.total_steps = sum(self._n_steps(p) for passes in self.plan for p in passes)
        self.done_steps = 0

    def run(self) -> nn.Module:
        objective, model = self.objective, self.model
        if objective.reference_on:
            self.state.freeze("reference", model, objective.reference_on, objective.reference_hidden(problem=self.problem, model=model))
        objective.prepare(self.problem, model, self.state)
        mask = objective.mask(self.problem, model, self.state)
        if objective.epochs == 0:
            return self._finished()
        from accelerate import Accelerator
        from accelerate.state import AcceleratorState

        # The precision is process-wide state in accelerate; every run sets its own.
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != objective.precision:
            AcceleratorState._reset_state()
        accelerator = Accelerator(cpu=self.workplace.device == "cpu", mixed_precision=objective.precision)
        trainable = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
        held = _Held(trainable, mask)
        optimizer = make_optimizer(objective, [p for _, p in trainable])
        checkpoints = Checkpoints(self.workplace.checkpoint)
        position = checkpoints.load(model, optimizer, self.state.kept)
        wrapped, optimizer = accelerator.prepare(model, optimizer)

        for epoch, passes in enumerate(self.plan):
            for index, traversal in enumerate(passes):
                if (epoch, index) < position[:2]:
                    self.done_steps += self._n_steps(traversal)
                    continue
                skip = position[2] if (epoch, index) == position[:2] else 0
                self._train_mode(wrapped)
                for number, steps in enumerate(self._steps(wrapped, traversal, epoch, index)):
                    self.done_steps += 1
                    if number < skip:
                        continue
                    lr = objective.learning_rate(epoch, (self.done_steps - 1) / self.total_steps)
                    for group in optimizer.param_groups:
                        group["lr"] = lr
                    terms: dict[str, Tensor] = {}
                    for step in steps():
                        parts = objective.loss(step)
                        accelerator.backward(torch.stack(list(parts.values())).sum() if len(parts) > 1 else next(iter(parts.values())))
                        for name, value in parts.items():
                            terms[name] = terms.get(name, 0) + value.detach()  # pyright: ignore
                    held.mask_gradients()
                    if objective.clip is not None:
                        accelerator.clip_grad_norm_(wrapped.parameters(), objective.clip)
                    optimizer.step()
                    optimizer.zero_grad(set_to_none=True)
                    held.restore()
                    with torch.no_grad():
                        objective.after_step(model, self.state, self.done_steps / self.total_steps)
                    self._log(epoch, traversal, terms, lr)
                    if checkpoints.due():
                        checkpoints.save((epoch, index, number + 1), model, optimizer, self.state.kept)
            if epoch >= position[0]:
                with torch.no_grad():
                    model.eval()
                    objective.after_epoch(model, self.state, epoch)
        accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        self._flush_log()
        checkpoints.clear()
        return self._finished()

    def _finished(self) -> nn.Module:
        with torch.no_grad():
            self.model.eval()
            self.objective.finish(self.problem, self.model, self.state)
        return self.model

    def _train_mode(self, model: nn.Module) -> None:
        model.train()
        if self.objective.batchnorm == "freeze":
            for module in model.modules():
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.eval()

    def _size(self, traversal: Pass) -> int:
        return traversal.batch_size or self.objective.batch_size

    def _n_visited(self, traversal: Pass) -> int:
        n = len(self.sources[traversal.over])
        if traversal.over == "train" and traversal.retain_fraction < 1.0:
            n_forget = len(self.problem.forget_rows)
            n = n_forget + round((n - n_forget) * traversal.retain_fraction)
        return n

    def _n_steps(self, traversal: Pass) -> int:
        return -(-self._n_visited(traversal) // self._size(traversal))

    def _visits(self, traversal: Pass, epoch: int, index: int) -> Tensor:
        """Row numbers in the order of visit."""
        n, generator = self._n_visited(traversal), self.workplace.generator(1, epoch, index)
        order = self.objective.order(traversal.over, n, epoch, generator)
        if traversal.over != "train":
            return order
        retain = torch.from_numpy(self.problem.retain_rows)
        if traversal.retain_fraction < 1.0:
            chosen = torch.randperm(len(retain), generator=self.workplace.generator(2))[: n - len(self.problem.forget_rows)]
            retain = retain[chosen]
        return torch.cat([torch.from_numpy(self.problem.forget_rows), retain])[order]

    def _steps(self, model: nn.Module, traversal: Pass, epoch: int, index: int) -> Any:
        """One callable per optimizer step, which yields its micro-steps."""
        size = self._size(traversal)
        chunks = self._visits(traversal, epoch, index).split(size)
        companions = self._companions(traversal, epoch, index)
        for number, rows in enumerate(chunks):
            picked: dict[Split, Tensor] = {traversal.over: rows}
            if traversal.paired is not None:
                picked[traversal.paired] = next(companions)

            def micro(picked: dict[Split, Tensor] = picked, number: int = number) -> Any:
                drawn = {s: _Drawn(s, r, self.sources[s]) for s, r in picked.items()}
                largest = max(len(d.rows) for d in drawn.values())
                pieces = -(-largest // (self.objective.micro_batch_size or largest))
                progress = (self.done_steps - 1) / self.total_steps
                generator = self.workplace.generator(3, epoch, index, number)
                for k in range(pieces):
                    piece = {s: torch.arange(len(d.rows)).tensor_split(pieces)[k] for s, d in drawn.items()}
                    yield Step(
                        model, self.state, drawn, piece, 1.0 / pieces, traversal.name or traversal.over, epoch, progress,
                        generator,
                    )  # fmt: skip

            yield micro

    def _companions(self, traversal: Pass, epoch: int, index: int) -> Any:
        """Batches of the paired split, cycled, in a new order each time round."""
        if traversal.paired is None:
            return
        n, turn = len(self.sources[traversal.paired]), 0
        while True:
            generator = self.workplace.generator(4, epoch, index, turn)
            yield from self.objective.order(traversal.paired, n, epoch, generator).split(self._size(traversal))
            turn += 1

    def _log(self, epoch: int, traversal: Pass, terms: dict[str, Tensor], lr: float) -> None:
        entry = {"step": self.done_steps, "of": self.total_steps, "epoch": epoch, "phase": traversal.name or traversal.over, "lr": lr}
        self.workplace.log.append({**entry, **terms})
        if self.workplace.on_step is not None:
            self.workplace.on_step(entry)

    def _flush_log(self) -> None:
        # Tensors become numbers once, at the end: a read in every step would wait for the device.
        for entry in self.workplace.log:
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    entry[key] = value.item()


class _Held:
    """Keeps masked-out weights bitwise where they were, against momentum and weight decay too."""

    def __init__(self, parameters: list[tuple[str, nn.Parameter]], mask: dict[str, Tensor] | None) -> None:
        self._held = (
            [] if mask is None else [(p, mask[n].to(p.device), p.detach().clone()) for n, p in parameters if n in mask]
        )

    def mask_gradients(self) -> None:
        for parameter, mask, _ in self._held:
            if parameter.grad is not None:
                parameter.grad.mul_(mask)

    @torch.no_grad()
    def restore(self) -> None:
        for parameter, mask, original in self._held:
            parameter.copy_(torch.where(mask, parameter, original))


def make_optimizer(training: Training, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
    """The optimizer that `training` names. Weight decay is L2 for sgd and adam, decoupled for adamw."""
    if training.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=training.lr, momentum=training.momentum, weight_decay=training.weight_decay)
    cls = torch.optim.Adam if training.optimizer == "adam" else torch.optim.AdamW
    return cls(parameters, lr=training.lr, weight_decay=training.weight_decay)


class Fit(Objective):
    """Plain training by maximum likelihood; how targets, retrained models and fresh teachers are made."""

    over: Split = param("train", "rows to train on", source="ours")

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass(self.over)]

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        return {"nll": step.mean(self.over, step.family.nll(step.outputs(self.over), step.batch(self.over)))}


def fit(problem: Problem, model: nn.Module, over: Split, recipe: Training, workplace: Workplace) -> nn.Module:
    """Train `model` on the rows `over` by `recipe`, in place."""
    values = {k: getattr(recipe, k) for k in Training.model_fields}
    return run(Fit(over=over, **values), problem, model, workplace)
