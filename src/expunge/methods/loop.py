"""The one loop that runs every objective.

It owns data order, accumulation, mixed precision, clipping, masks, checkpoints, logging, and the sharing of work among
processes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import islice

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.batches import Batches
from expunge.methods import distributed, sharding
from expunge.methods.base import Workplace
from expunge.methods.checkpoint import Checkpoints
from expunge.methods.frozen import Frozen, Split
from expunge.methods.lora import Adapters
from expunge.methods.objective import Objective, Pass, State, Step, Turn
from expunge.methods.optimizer import Held, make_optimizer
from expunge.parameters import param
from expunge.problem import Problem, Training

BATCH_NORM = nn.modules.batchnorm._BatchNorm


class Loop:
    """One run of one objective on one model, in place."""

    def __init__(
        self, objective: Objective, problem: Problem, model: nn.Module, workplace: Workplace
    ) -> None:
        self.objective, self.problem, self.model, self.workplace = objective, problem, model, workplace
        self.plan = [objective.passes(epoch) for epoch in range(objective.epochs)]
        splits: set[Split] = {
            s for passes in self.plan for p in passes for s in (p.over, p.paired) if s is not None
        }
        splits |= {*objective.references(), *objective.likelihood_on} & {"forget", "retain", "train"}
        self.sources: dict[Split, Batches] = {s: workplace.batches(problem, s) for s in sorted(splits)}
        rows = objective.micro_batch_size or objective.batch_size
        self.state = State(problem, self.sources, workplace, rows)
        self.total_steps = sum(self._n_steps(p) for passes in self.plan for p in passes)
        self.done_steps = 0
        self.norms = [m for m in model.modules() if isinstance(m, BATCH_NORM)]
        self.combines = type(objective).combine is not Objective.combine
        self.processes = distributed.current(workplace.device)
        self.sharded = self.processes.kind == "fsdp2"
        if self.sharded:
            sharding.check_sharded(objective, workplace.reference)
        if self.processes.count > 1 and self.norms and objective.batchnorm == "update":
            raise BadInput(
                f"{problem.name}: the model normalizes by batch, and each process sees another part of it; "
                "set batchnorm to 'freeze', or use one process"
            )

    def run(self) -> nn.Module:
        """Prepare, make every step that no checkpoint has made yet, finish; returns the model."""
        objective, model = self.objective, self.model
        shown = model
        asked, scored = objective.references(), objective.likelihood_on
        known = {*self.sources}
        if asked or scored:
            layers = objective.reference_hidden(self.problem, model)
            # What knows the target's outputs holds the head of a sharded copy, and lets go of everything else.
            if self.sharded:
                shown = sharding.shard(model, self.processes)
            self.state.freeze("reference", shown, self._known(asked), layers, self._known(scored))
        objective.prepare(self.problem, model, self.state)
        # What `prepare` attached.
        asked, scored = ([s for s in splits if s not in known] for splits in (asked, scored))
        if asked or scored:
            self.state.frozen["reference"].cover(shown, self.sources, self._known(asked), self._known(scored))
        del shown  # the shards of a copy are memory
        mask = objective.mask(self.problem, model, self.state)
        if objective.epochs == 0:
            return self._finished()
        with self._opened():
            self._run(mask)
        return self._finished()

    def _known(self, splits: Sequence[Split]) -> list[Split]:
        return [split for split in splits if split in self.sources]

    @contextlib.contextmanager
    def _opened(self) -> Iterator[None]:
        """Inside the block only what the objective trains is open: some parameters, or adapters in their place."""
        objective, model = self.objective, self.model
        only = objective.trainable(self.problem, model, self.state)
        was = {p: p.requires_grad for p in model.parameters()}
        if only is not None:
            for name, parameter in model.named_parameters():
                parameter.requires_grad_(name in only and (objective.opens or was[parameter]))
        try:
            if objective.lora is None:
                yield
                return
            if not objective.adapters or type(objective).mask is not Objective.mask:
                raise BadInput(
                    f"method '{objective.name}' works on the weights themselves and cannot train adapters; leave out lora"
                )
            adapters = Adapters(model, objective.lora, self.problem.family.head(model))
            live = self.workplace.reference == "live" or self.problem.family.redraws
            if "reference" in self.state.frozen and live:
                layers = objective.reference_hidden(self.problem, model)
                self.state.frozen["reference"] = Frozen.behind(adapters, self.problem.family, layers)
            with torch.no_grad():
                objective.start_adapters(self.problem, adapters, self.state)
            yield
            self.workplace.adapter = adapters.save()
            adapters.merge()
        finally:
            for parameter, is_open in was.items():
                parameter.requires_grad_(is_open)

    def _run(self, mask: dict[str, Tensor] | None) -> None:
        """Make the optimizer and every step that no checkpoint has made yet."""
        objective, model = self.objective, self.model
        # The precision is process-wide state in accelerate; every run sets its own.
        if AcceleratorState._shared_state and AcceleratorState().mixed_precision != objective.precision:
            AcceleratorState._reset_state()
        device = self.processes.device or self.workplace.device
        accelerator = Accelerator(cpu=device == "cpu", mixed_precision=objective.precision)
        if self.combines and accelerator.scaler is not None:
            raise BadInput(
                f"method '{objective.name}' combines gradients of several losses, which precision 'fp16' would "
                "scale; use 'bf16' or 'no'"
            )
        self.processes.agree([*model.parameters(), *(mask or {}).values()])
        trained = sharding.shard(model, self.processes) if self.sharded else model
        self.norms = [m for m in trained.modules() if isinstance(m, BATCH_NORM)]
        trainable = [(n, p) for n, p in trained.named_parameters() if p.requires_grad]
        if not trainable:
            raise BadInput(
                f"{self.problem.name}: nothing can be trained, for every parameter of the model is frozen; "
                "set requires_grad on some"
            )
        held = Held(trainable, mask)
        optimizer = make_optimizer(objective, [p for _, p in trainable])
        checkpoints = Checkpoints(self.workplace.checkpoint, self.processes)
        # Mixed precision without the wrapper for several processes, as the loop itself adds up gradients.
        wrapped = accelerator.prepare_model(trained, device_placement=False, evaluation_mode=True)
        with self.processes.own_randomness(), self.processes.counted():
            start = checkpoints.load(trained, optimizer, self.state.kept)
            if accelerator.scaler is not None:
                # Only loss scaling needs the wrapped optimizer, which looks for optional packages on disk in every step.
                optimizer = accelerator.prepare(optimizer)
            self._train(wrapped, optimizer, held, accelerator, checkpoints, start)
        if objective.precision != "no":
            accelerator.unwrap_model(wrapped, keep_fp32_wrapper=False)
        if self.sharded:
            sharding.gather(trained, model)
        self._flush_log()
        checkpoints.clear()

    def _train(
        self,
        wrapped: nn.Module,
        optimizer: torch.optim.Optimizer,
        held: Held,
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        start: tuple[int, int, int],
    ) -> None:
        """Every step from position `start` on, until the plan ends or the objective says stop."""
        objective, model = self.objective, self.model
        for epoch, passes in enumerate(self.plan):
            for index, traversal in enumerate(passes):
                if (epoch, index) < start[:2]:
                    self.done_steps += self._n_steps(traversal)
                    continue
                skip = start[2] if (epoch, index) == start[:2] else 0
                wrapped.train()
                for number, (smallest, steps) in enumerate(self._steps(wrapped, traversal, epoch, index)):
                    self.done_steps += 1
                    if number < skip:
                        continue
                    # One row has no variance: batch norm cannot train on it and uses its statistics instead.
                    self._batchnorm_training(objective.batchnorm == "update" and smallest > 1)
                    lr = objective.learning_rate(epoch, (self.done_steps - 1) / self.total_steps)
                    if self.combines:
                        terms = self._combined(wrapped, steps, lr)
                    else:
                        terms = self._gradients(wrapped, steps, accelerator)
                    if self.state.stopped is None:
                        self._update(wrapped, optimizer, lr, held, accelerator)
                    self._log(epoch, traversal, terms, lr)
                    if self.state.stopped is not None:
                        self.workplace.notes.append(
                            f"stopped at step {self.done_steps} of {self.total_steps}: {self.state.stopped}"
                        )
                        return
                    if checkpoints.due():
                        checkpoints.save((epoch, index, number + 1), wrapped, optimizer, self.state.kept)
            if epoch >= start[0]:
                with torch.no_grad():
                    model.eval()
                    objective.after_epoch(model, self.state, epoch)

    def _gradients(
        self, model: nn.Module, steps: Callable[[], Iterator[Step]], accelerator: Accelerator
    ) -> dict[str, Tensor]:
        """Add up the gradients of all pieces of one step; returns the loss terms."""
        terms: dict[str, Tensor] = {}
        for step in steps():
            parts = self.objective.loss(step)
            first, *others = parts.values()
            total = sum(others, start=first)
            # What accelerate adds where nothing is scaled is a division by its own accumulation count, which is 1.
            total.backward() if accelerator.scaler is None else accelerator.backward(total)
            for name, value in parts.items():
                terms[name] = terms[name] + value.detach() if name in terms else value.detach()
        if self.processes.count > 1:
            # Shards are summed within the backward pass.
            parameters = [] if self.sharded else [p for p in model.parameters() if p.requires_grad]
            terms, summed = self._together(terms, parameters, [p.grad for p in parameters])
            for parameter, gradient in zip(parameters, summed, strict=True):
                parameter.grad = gradient
        return terms

    def _combined(
        self, model: nn.Module, steps: Callable[[], Iterator[Step]], lr: float
    ) -> dict[str, Tensor]:
        """Differentiate each term by itself, summed over all pieces; set the gradient that the objective makes of them."""
        parameters = [p for p in model.parameters() if p.requires_grad]
        terms: dict[str, Tensor] = {}
        gradients: dict[str, list[Tensor]] = {}
        for step in steps():
            parts = self.objective.loss(step)
            for number, (name, value) in enumerate(parts.items(), 1):
                # Terms of one forward pass share its graph, which must outlive all but the last.
                shared = number < len(parts)
                found = torch.autograd.grad(value, parameters, retain_graph=shared, materialize_grads=True)
                if name in terms:
                    terms[name] = terms[name] + value.detach()
                    gradients[name] = [a + b for a, b in zip(gradients[name], found, strict=True)]
                else:
                    terms[name], gradients[name] = value.detach(), list(found)
        if self.processes.count > 1:
            flat: list[Tensor | None] = [g for parts in gradients.values() for g in parts]
            terms, summed = self._together(terms, parameters * len(gradients), flat)
            rest = (g for g in summed if g is not None)
            gradients = {name: list(islice(rest, len(parameters))) for name in gradients}
        with torch.no_grad():
            combined = self.objective.combine(gradients, lr, self.state, terms)
        for parameter, gradient in zip(parameters, combined, strict=True):
            parameter.grad = gradient
        return terms

    def _together(
        self, terms: dict[str, Tensor], parameters: list[nn.Parameter], gradients: list[Tensor | None]
    ) -> tuple[dict[str, Tensor], list[Tensor | None]]:
        """Terms and gradients summed over all processes, which all stop where one of them wants to."""
        found = self.processes.total_of_step(terms, parameters, gradients, self.state.stopped)
        self.state.stopped = found.stopped
        return found.terms, found.gradients

    def _update(
        self,
        model: nn.Module,
        optimizer: torch.optim.Optimizer,
        lr: float,
        held: Held,
        accelerator: Accelerator,
    ) -> None:
        for group in optimizer.param_groups:
            group["lr"] = lr
        held.mask_gradients()
        if self.objective.clip is not None:
            accelerator.clip_grad_norm_(model.parameters(), self.objective.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        held.restore()
        if type(self.objective).after_step is not Objective.after_step:
            with torch.no_grad():
                self.objective.after_step(self.model, self.state, self.done_steps / self.total_steps)

    def _finished(self) -> nn.Module:
        with torch.no_grad():
            self.model.eval()
            self.objective.finish(self.problem, self.model, self.state)
        return self.model

    def _batchnorm_training(self, wanted: bool) -> None:
        for norm in self.norms:
            if norm.training != wanted:
                norm.train(wanted)

    def _size(self, traversal: Pass) -> int:
        return traversal.batch_size or self.objective.batch_size

    def _n_visited(self, traversal: Pass) -> int:
        n = len(self.sources[traversal.over])
        if traversal.over == "train":
            n_forget = len(self.problem.forget_rows)
            n_retain = round((n - n_forget) * traversal.retain_fraction)
            if traversal.retain_per_forget is not None:
                n_retain = min(n_retain, round(n_forget * traversal.retain_per_forget))
            n = n_forget + n_retain
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
        n_retain = n - len(self.problem.forget_rows)
        if n_retain < len(retain):
            chosen = torch.randperm(len(retain), generator=self.workplace.generator(2))[:n_retain]
            retain = retain[chosen]
        return torch.cat([torch.from_numpy(self.problem.forget_rows), retain])[order]

    def _steps(
        self, model: nn.Module, traversal: Pass, epoch: int, index: int
    ) -> Iterator[tuple[int, Callable[[], Iterator[Step]]]]:
        """Per optimizer step: rows of its smallest forward pass, and a function that yields its pieces."""
        companions = self._companions(traversal, epoch, index)
        for number, rows in enumerate(self._visits(traversal, epoch, index).split(self._size(traversal))):
            picked: dict[Split, Tensor] = {traversal.over: rows}
            if traversal.paired is not None:
                picked[traversal.paired] = next(companions)
            largest = max(len(r) for r in picked.values())
            n_processes = self.processes.count
            each = -(-largest // n_processes)
            pieces = n_processes * -(-each // min(self.objective.micro_batch_size or each, each))

            def micro(
                picked: dict[Split, Tensor] = picked, pieces: int = pieces, number: int = number
            ) -> Iterator[Step]:
                progress = (self.done_steps - 1) / self.total_steps
                phase = traversal.name or traversal.over
                turn = Turn(self.state, picked, phase, epoch, progress, 3, epoch, index, number)
                if self.processes.device is not None:
                    turn.batches = {s: b.to(self.processes.device) for s, b in turn.batches.items()}
                if pieces == 1:
                    yield Step(model, turn)
                    return
                parts: dict[Split, Sequence[Tensor]] = {
                    s: torch.arange(len(r)).tensor_split(pieces) for s, r in turn.rows.items()
                }
                for k in self.processes.share(pieces):
                    yield Step(model, turn, {s: part[k] for s, part in parts.items()}, 1.0 / pieces)

            yield min(len(r) for r in picked.values()) // pieces, micro

    def _companions(self, traversal: Pass, epoch: int, index: int) -> Iterator[Tensor]:
        """Batches of the paired split, cycled, in a new order each time round."""
        if traversal.paired is None:
            return
        n, turn = len(self.sources[traversal.paired]), 0
        while True:
            generator = self.workplace.generator(4, epoch, index, turn)
            yield from self.objective.order(traversal.paired, n, epoch, generator).split(
                self._size(traversal)
            )
            turn += 1

    def _log(self, epoch: int, traversal: Pass, terms: dict[str, Tensor], lr: float) -> None:
        entry = {
            "step": self.done_steps,
            "of": self.total_steps,
            "epoch": epoch,
            "phase": traversal.name or traversal.over,
            "lr": lr,
        }
        self.workplace.log.append({**entry, **terms})
        if self.workplace.on_step is not None:
            self.workplace.on_step({**entry, **terms})  # tensors: only who shows them waits for the device

    def _flush_log(self) -> None:
        # Tensors become numbers once, at the end: a read in every step would wait for the device.
        for entry in self.workplace.log:
            for key, value in entry.items():
                if isinstance(value, Tensor):
                    entry[key] = value.item()


class Fit(Objective):
    """Plain training; how targets, retrained models and fresh teachers are made.

    By maximum likelihood, or by what a family without a likelihood trains by.
    """

    over: Split = param("train", "rows to train on", source="ours")

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass(self.over)]

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        if step.family.likelihood != "none":
            return {"nll": step.nll(self.over)}
        losses = step.family.losses(step.model, step.batch(self.over))
        return {name: step.mean(self.over, loss) for name, loss in losses.items()}


def fit(problem: Problem, model: nn.Module, over: Split, recipe: Training, workplace: Workplace) -> nn.Module:
    """Train `model` on the rows `over` by `recipe`, in place; one without gradients is fitted to them."""
    if not problem.family.gradients:
        problem.family.learn(model, problem.train if over == "train" else problem.splits[over])
        return model
    values = {k: getattr(recipe, k) for k in Training.model_fields}
    return Loop(Fit(over=over, **values), problem, model, workplace).run()
