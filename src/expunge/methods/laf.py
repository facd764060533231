"""LAF: forget without labels, by moving representations off the manifold of the forget set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batch, Batches, Family
from expunge.families.base import as_positions
from expunge.methods.base import Edit, Workplace
from expunge.methods.loop import Fit, Loop
from expunge.parameters import param
from expunge.problem import Problem


class LAF(Edit):
    """Label-agnostic forgetting: two variational auto-encoders tell what is typical of either set.

    e(x), `[d]`, is the input of the head (`Family.head`), averaged over positions where there are several,
    and e_o(x) that of the target. Two VAEs are fitted to e_o and then kept, V_r on the retain set and V_f on
    the forget set: ``min mean_i |V(e_i) - e_i|^2 + kl_weight * KL( q(z|e_i) || N(0, I) )``. With ``r(V, e) =
    |V(e) - e|^2``, summed over d and decoded from the mean code, and ``phi(r) = exp(r / (r + 1))``, which lies
    in [1, e), every pair of batches B_f of forget and B_r of retain rows takes two steps, by two Adam
    optimizers over the same weights:

    1. extractor: ``L_UE = sum_{i in B_r} phi(r(V_r, e_i)) - sum_{j in B_f} phi(r(V_f, e_j))``;
    2. alignment, after a new forward pass, with ``c = 1 - cos(e, e_o)``: ``L_RA = sum_{i in B_r} c_i -
       |B_r| * ln sum_{j in B_f} exp(c_j / tau)``.

    Retain rows stay on their manifold and keep their direction, forget rows leave theirs and turn away. An
    epoch ends with the shorter set. No label is read, and the head is unchanged bitwise, as neither loss
    reaches it; `repair_epochs` adds the paper's LAF+R, which trains the head alone on labeled retain rows.
    The model is in eval mode, so that batch norm keeps its statistics.

    Limits: at the target L_RA is ``-|B_r| ln |B_f|`` and stationary, so that only the extractor starts the
    movement. The slope of phi falls as 1/(r + 1)^2: where r is far above 1, for long or wide
    representations, the extractor hears its nearest rows only. `standardize` divides each dimension of e by its
    standard deviation over the retain set at the target and r by d. `reduction` "mean" takes means for the
    sums over B_r and B_f in L_UE, and divides L_RA by \\|B_r\\|: for batches of unequal size.

    The default rates are for thousands of steps on a convolutional network of the paper; on some hundred
    small images ``lr_ue=1e-3, lr_ra=3e-3, batch_size=16`` forgets a class.

    Deviations from the reference code: V_r is fitted to the retain set, not to all training rows
    (`vae_rows`); codes are not drawn at random after the fit, so that the losses are functions of the weights;
    the VAEs have one hidden layer and a linear output, where a final sigmoid cannot reach representations
    outside [0, 1].
    """

    name = "laf"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    paper = "Shen et al., ICLR 2024, arXiv:2404.00506"
    needs = frozenset({"retain"})

    epochs: int = param(20, "passes over the shorter set", source="reference code, small networks: 20", ge=0)
    batch_size: int = param(64, "rows of either set per step", source="ours", ge=1)
    lr_ue: float = param(
        5e-5, "learning rate (Adam) of the extractor", source="reference code, small networks: 5e-5", ge=0
    )
    lr_ra: float = param(
        1e-4, "learning rate (Adam) of the alignment", source="reference code, small networks: 1e-4", ge=0
    )
    tau: float = param(
        20.0, "temperature of the forget rows in the alignment", source="reference code: 20, in some cases 5",
        gt=0,
    )  # fmt: skip
    latent: int = param(8, "dimension of the code", source="reference code, small networks: 8", ge=1)
    width: int = param(
        128, "hidden units of the VAEs", source="reference code: 128 in one of its layers", ge=1
    )
    vae_epochs: int = param(10, "passes that fit the VAEs", source="reference code: 10", ge=0)
    vae_lr: float = param(1e-3, "learning rate (Adam) of the VAEs", source="reference code: 1e-3", ge=0)
    kl_weight: float = param(0.025, "weight of the VAEs' KL term", source="reference code: 0.025", ge=0)
    vae_rows: Literal["retain", "train"] = param(
        "retain",
        "rows that V_r is fitted to",
        source="ours: with train, V_r holds the forget set too; reference code: train",
    )
    standardize: bool = param(False, "standardize what the VAEs see", source="reference code: no")
    reduction: Literal["sum", "mean"] = param(
        "sum", "how the rows of a batch enter the losses", source="reference code: sum"
    )
    repair_epochs: int = param(
        0,
        "passes of the head over the labeled retain set",
        source="the paper: LAF+R has some, LAF none",
        ge=0,
    )
    repair_lr: float = param(1e-3, "learning rate (Adam) of the repair", source="ours", ge=0)

    def edit(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:  # noqa: D102
        family, generator = problem.family, workplace.generator(11)
        forget, retain = workplace.batches(problem, "forget"), workplace.batches(problem, "retain")
        original_f, original_r = collect(family, model, forget), collect(family, model, retain)
        seen = original_r if self.vae_rows == "retain" else torch.cat([original_f, original_r])
        vae_r = self.fit_vae(seen, original_r, generator)
        vae_f = self.fit_vae(original_f, original_r, generator)
        weights = [p for p in model.parameters() if p.requires_grad]
        extract, align = torch.optim.Adam(weights, lr=self.lr_ue), torch.optim.Adam(weights, lr=self.lr_ra)
        n_steps = -(-min(len(forget), len(retain)) // self.batch_size)  # of an epoch
        for epoch in range(self.epochs):
            orders = (self.order(len(batches), generator) for batches in (forget, retain))
            for number, (rows_f, rows_r) in enumerate(zip(*orders, strict=False), epoch * n_steps + 1):
                batch_f, batch_r = forget.take(rows_f), retain.take(rows_r)
                e_f, e_r = represent(family, model, batch_f), represent(family, model, batch_r)
                if not e_f.requires_grad:
                    raise BadInput(
                        f"method '{self.name}' moves representations, and nothing that can be trained lies before "
                        f"the head '{family.head(model)}' of {problem.name}'s {type(model).__name__}"
                    )
                extractor = self.extractor_loss(vae_r.distance(e_r), vae_f.distance(e_f))
                descend(extractor, extract)
                e_f, e_r = represent(family, model, batch_f), represent(family, model, batch_r)
                alignment = self.alignment_loss(turn(e_r, original_r[rows_r]), turn(e_f, original_f[rows_f]))
                descend(alignment, align)
                entry = {"step": number, "of": self.epochs * n_steps, "epoch": epoch, "phase": "forget"}
                workplace.log.append({**entry, "extractor": extractor.item(), "alignment": alignment.item()})
                if workplace.on_step is not None:
                    workplace.on_step(entry)
        turned_f, turned_r = (
            turn(collect(family, model, batches), original).mean()
            for batches, original in ((forget, original_f), (retain, original_r))
        )
        workplace.notes.append(
            f"representations turned by 1 - cos = {turned_f:.3g} on forget rows and {turned_r:.3g} on retain rows"
        )
        if self.repair_epochs:
            self.repair(problem, model, workplace)

    def order(self, n: int, generator: torch.Generator) -> Sequence[Tensor]:
        """Rows 0 to n - 1 in a random order, batch by batch."""
        return torch.randperm(n, generator=generator).split(self.batch_size)

    def fit_vae(self, rows: Tensor, retain: Tensor, generator: torch.Generator) -> VAE:
        """A VAE fitted to `rows` (`[n, d]`), frozen; standardized, where that is asked for, by `retain` (`[m, d]`)."""
        vae = VAE(rows.shape[1], self.width, self.latent, retain if self.standardize else None).to(rows)
        optimizer = torch.optim.Adam(vae.parameters(), lr=self.vae_lr)
        for _ in range(self.vae_epochs):
            for chosen in self.order(len(rows), generator):
                descend(vae.loss(rows[chosen], self.kl_weight, generator), optimizer)
        return vae.requires_grad_(False)

    def extractor_loss(self, retain: Tensor, forget: Tensor) -> Tensor:
        """L_UE of the distances r of retain and forget rows, `[b_r]` and `[b_f]`, each from their own manifold."""
        if self.reduction == "mean":
            return phi(retain).mean() - phi(forget).mean()
        return phi(retain).sum() - phi(forget).sum()

    def alignment_loss(self, retain: Tensor, forget: Tensor) -> Tensor:
        """L_RA of the turns c of retain and forget rows, `[b_r]` and `[b_f]`."""
        loss = retain.sum() - len(retain) * (forget / self.tau).logsumexp(0)
        return loss / len(retain) if self.reduction == "mean" else loss

    def repair(self, problem: Problem, model: nn.Module, workplace: Workplace) -> None:
        """Train the head alone on the labeled retain set, in place."""
        head = {id(p) for p in model.get_submodule(problem.family.head(model)).parameters()}
        before_head = [p for p in model.parameters() if p.requires_grad and id(p) not in head]
        for parameter in before_head:
            parameter.requires_grad_(False)
        recipe = Fit(
            over="retain", epochs=self.repair_epochs, lr=self.repair_lr, optimizer="adam", weight_decay=0.0,
            batch_size=self.batch_size, batchnorm="freeze",
        )  # fmt: skip
        Loop(recipe, problem, model, workplace).run()
        for parameter in before_head:
            parameter.requires_grad_(True)


class VAE(nn.Module):
    """Variational auto-encoder of representations with one hidden layer on either side.

    Args:
        d: dimension of a representation.
        width: hidden units.
        latent: dimension of the code.
        standard: `[m, d]` representations whose mean and standard deviation standardize the input, or None.
    """

    center: Tensor
    scale: Tensor

    def __init__(self, d: int, width: int, latent: int, standard: Tensor | None = None) -> None:
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(d, width), nn.ReLU())
        self.mean, self.log_var = nn.Linear(width, latent), nn.Linear(width, latent)
        self.decoder = nn.Sequential(nn.Linear(latent, width), nn.ReLU(), nn.Linear(width, d))
        self.standardize = standard is not None
        center, scale = (torch.zeros(d), torch.ones(d)) if standard is None else _moments(standard)
        self.register_buffer("center", center)
        self.register_buffer("scale", scale)

    def loss(self, e: Tensor, kl_weight: float, generator: torch.Generator) -> Tensor:
        """Mean over rows of the squared error plus the weighted KL divergence from N(0, I), of a drawn code."""
        x = (e - self.center) / self.scale
        hidden = self.encoder(x)
        mean, log_var = self.mean(hidden), self.log_var(hidden)
        drawn = torch.randn(mean.shape, generator=generator).to(mean)
        error = (self.decoder(mean + (0.5 * log_var).exp() * drawn) - x).square().sum(1)
        kl = 0.5 * (mean.square() + log_var.exp() - 1 - log_var).sum(1)
        return (error + kl_weight * kl).mean()

    def distance(self, e: Tensor) -> Tensor:
        """`[B]` r: squared distance of each row from its reconstruction by the mean code."""
        x = (e - self.center) / self.scale
        squares = (self.decoder(self.mean(self.encoder(x))) - x).square()
        return squares.mean(1) if self.standardize else squares.sum(1)


def _moments(rows: Tensor) -> tuple[Tensor, Tensor]:
    """`[d]` mean and standard deviation; 1 for the deviation of a dimension that never changes."""
    deviation = rows.std(0, unbiased=False)
    return rows.mean(0), torch.where(deviation > 0, deviation, torch.ones_like(deviation))


def phi(r: Tensor) -> Tensor:
    """exp(r / (r + 1)): from 1 at r = 0 towards e, with slope 1 at r = 0."""
    return (r / (r + 1)).exp()


def turn(e: Tensor, original: Tensor) -> Tensor:
    """`[B]` c = 1 - cos(e, e_o)."""
    return 1 - F.cosine_similarity(e, original, dim=1)


def descend(loss: Tensor, optimizer: torch.optim.Optimizer) -> None:
    """One step of `optimizer` down `loss`."""
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


@contextmanager
def head_inputs(family: Family, model: nn.Module) -> Iterator[list[Tensor]]:
    """Catch what the head is called with, once per forward pass."""
    caught: list[Tensor] = []

    def catch(_module: nn.Module, inputs: tuple[Any, ...]) -> None:
        caught.append(inputs[0])

    handle = model.get_submodule(family.head(model)).register_forward_pre_hook(catch)
    try:
        yield caught
    finally:
        handle.remove()


def represent(family: Family, model: nn.Module, batch: Batch) -> Tensor:
    """`[B, d]` representations: the input of the head, in float32 or wider, averaged over (valid) positions."""
    with head_inputs(family, model) as caught:
        family.forward(model, batch)
    e = as_positions(caught[-1])  # [B, positions, d]
    e = e.to(torch.promote_types(e.dtype, torch.float32))
    if e.shape[:2] != batch.mask.shape:
        return e.mean(1)
    weight = batch.mask.unsqueeze(-1).to(e)
    return (e * weight).sum(1) / weight.sum(1).clamp(min=1)


@torch.no_grad()
def collect(family: Family, model: nn.Module, batches: Batches) -> Tensor:
    """`[n, d]` representations of all rows."""
    return torch.cat([represent(family, model, batch) for _, batch in batches.sequential(256)])
