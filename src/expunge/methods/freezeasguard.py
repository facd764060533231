"""FreezeAsGuard: forget, then freeze the weight tensors through which the forgotten would be learned again."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Batch, Batches, Family
from expunge.families.models import clone
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.methods.prune_then_unlearn import MethodChoice, stage
from expunge.parameters import param
from expunge.problem import Problem, Training

Weights = dict[str, Tensor]


class FreezeAsGuard(Method, Training):
    """Forget by another method, then choose which tensors must stay frozen in whatever fine-tuning follows.

    theta_pre are the weights after the method `erase` (None: the target's), theta_ft those of a simulated
    user who has fine-tuned them on forget and retain rows mixed, by this method's recipe. Each of the J trainable
    tensors (one named parameter, whatever its size) has a logit x_j and a mask ``m_j = sigmoid(x_j / T)``,
    1 for frozen, and ``theta_j(m) = theta_ft,j + m_j * (theta_pre,j - theta_ft,j)``. With L the mean of -ln
    p(y|x) over the rows of a batch (per valid position), `mask_steps` gradient steps on x descend

        ``0.5 * ( L_retain(theta(m)) - L_forget(theta(m)) ) + c_s * ( rho - mean_j m_j )^2``,

    and after every `user_interval` of them the user goes on by one step on ``0.5 * ( L_retain + L_forget )``:
    ``theta_ft,j <- theta_ft,j - lr * (1 - m_j) * dL/d theta_j``. Both are written in closed form,
    ``d/d x_j = ( <theta_pre,j - theta_ft,j, dL/d theta_j> + 2 c_s (mean m - rho) / J ) * m_j (1 - m_j) / T``.

    The model that is returned has the weights theta_pre and ``requires_grad = False`` where m_j > 0.5:
    training here, and any that honors the flag, leaves these tensors alone. The notes name them, since weight
    files do not carry the flag. This is a guard of a fine-tuning service, not of weights that were given away: who
    has them can set the flag again, or add layers beside frozen ones. Batch-norm statistics are not frozen.

    Limits: ``mask_steps = 0`` freezes every tensor, as logits start in [0, 1); where forget and retain rows
    are the same, only the share rho moves the mask. -L_forget has no lower bound, so that a mask can win by a
    model that is bad at everything; the log gives both losses at theta(m).

    Deviations from the reference code: x is kept in [-`bound`, `bound`], because a tensor with a large gradient
    otherwise saturates its mask in one step and never comes back; theta(m) is computed anew in every step, where
    increments drift; rates and c_s are ours, as those of the reference are for hundreds of tensors.
    """

    name = "freezeasguard"
    paper = "Huang et al., 2024, arXiv:2405.17472"
    kind = "edit"
    needs = frozenset({"retain", "labels"})

    erase: MethodChoice | None = param(
        # Not validated: a look-up would import every method while this one is being imported.
        MethodChoice.model_construct(name="random-labeling", parameters={}),
        "method that forgets first, by name or as a mapping of name and parameters; None guards the target",
        source="ours; the paper erases concepts of diffusion models in closed form",
    )
    temperature: float = param(0.2, "T, softness of the mask", source="the paper: 0.2", gt=0)
    rho: float = param(
        0.2, "share of the tensors to freeze", source="the authors' documented run: 0.2", ge=0, le=1
    )
    c_s: float = param(10.0, "weight of the deviation from rho", source="ours; reference run: 5e3", ge=0)
    mask_lr: float = param(0.1, "learning rate of the logits", source="ours; reference run: 10", ge=0)
    mask_steps: int = param(100, "steps of the mask", source="ours; reference run: 2000", ge=0)
    user_interval: int = param(5, "mask steps per user step", source="reference run: 5", ge=1)
    bound: float = param(1.0, "largest absolute logit", source="ours: m stays within 0.7 % of 0 and 1", gt=0)
    epochs: int = param(
        10, "passes of the simulated user over all rows", source="ours; reference run: 2000 steps", ge=0
    )
    lr: float = param(0.01, "learning rate of the simulated user", source="ours", ge=0)

    def produce(self, problem: Problem, model: nn.Module, workplace: Workplace) -> nn.Module:  # noqa: D102
        if self.erase is not None:
            model = self.erase.produce(problem, model, stage(workplace, "erase"), self.name)
            model.eval()
        trainable = [name for name, p in model.named_parameters() if p.requires_grad]
        if not trainable:
            raise BadInput(
                f"method '{self.name}': no tensor of {type(model).__name__} can be trained, so that none is "
                "left to freeze"
            )
        user = fit(problem, clone(model), "train", self, stage(workplace, "user"))
        tuned = {name: user.get_parameter(name).detach().clone() for name in trainable}
        mask = self.learn_mask(problem, model, tuned, workplace)
        frozen = [name for name, m in zip(tuned, mask.tolist(), strict=True) if m > 0.5]
        for name in frozen:
            model.get_parameter(name).requires_grad_(False)
        n_frozen, n_all = (sum(tuned[name].numel() for name in names) for names in (frozen, tuned))
        unclear = int(((mask - 0.5).abs() < 0.1).sum())
        workplace.notes.append(
            f"{len(frozen)} of {len(tuned)} tensors frozen ({n_frozen / n_all:.1%} of the weights; {unclear} with a "
            f"mask within 0.1 of 0.5): {', '.join(frozen) or 'none'}"
        )
        return model

    def learn_mask(self, problem: Problem, model: nn.Module, tuned: Weights, workplace: Workplace) -> Tensor:
        """`[J]` masks of the tensors named in `tuned`, theta_ft, which the simulated user changes in place.

        `model` has the weights theta_pre, and has them again at the end.
        """
        family, generator = problem.family, workplace.generator(12)
        start = {name: model.get_parameter(name).detach().clone() for name in tuned}
        logits = torch.rand(len(tuned), generator=generator)
        batches = zip(
            *(
                endless(workplace.batches(problem, s), self.batch_size, generator)
                for s in ("forget", "retain")
            ),
            strict=True,
        )
        for step in range(self.mask_steps):
            forget, retain = next(batches)
            mask = torch.sigmoid(logits / self.temperature)
            place(model, start, tuned, mask)
            loss_f, loss_r = mean_loss(family, model, forget), mean_loss(family, model, retain)
            slope = self.slope(start, tuned, gradients(0.5 * (loss_r - loss_f), model, tuned), mask)
            logits = (logits - self.mask_lr * slope).clamp(-self.bound, self.bound)
            if (step + 1) % self.user_interval == 0:
                mask = torch.sigmoid(logits / self.temperature)
                place(model, start, tuned, mask)
                joint = 0.5 * (mean_loss(family, model, retain) + mean_loss(family, model, forget))
                found = gradients(joint, model, tuned)
                for m, (name, weight) in zip(mask.tolist(), tuned.items(), strict=True):
                    weight.sub_(self.lr * (1 - m) * found[name])
            entry = {"step": step + 1, "of": self.mask_steps, "epoch": 0, "phase": "mask"}
            terms = {"forget": loss_f.item(), "retain": loss_r.item(), "frozen": mask.mean().item()}
            workplace.log.append({**entry, **terms})
            if workplace.on_step is not None:
                workplace.on_step(entry)
        place(model, start, tuned, torch.ones(len(tuned)))
        return torch.sigmoid(logits / self.temperature)

    def slope(self, start: Weights, tuned: Weights, found: Weights, mask: Tensor) -> Tensor:
        """`[J]` gradient of the mask's objective with respect to the logits, from that with respect to theta(m)."""
        along = torch.stack([((start[n] - tuned[n]) * found[n]).sum().cpu() for n in tuned])
        share = 2 * self.c_s * (mask.mean() - self.rho) / len(mask)
        return (along + share) * mask * (1 - mask) / self.temperature


@torch.no_grad()
def place(model: nn.Module, start: Weights, tuned: Weights, mask: Tensor) -> None:
    """Give `model` the weights ``tuned + mask * (start - tuned)``; exactly `start` where the mask is 1."""
    for m, (name, weight) in zip(mask.tolist(), tuned.items(), strict=True):
        model.get_parameter(name).copy_(torch.lerp(weight, start[name], m))


def mean_loss(family: Family, model: nn.Module, batch: Batch) -> Tensor:
    """Mean over rows of -ln p(y|x) per valid position, nats."""
    return (family.nll(family.forward(model, batch), batch) / family.terms(batch)).mean()


def gradients(loss: Tensor, model: nn.Module, tuned: Weights) -> Weights:
    """Gradient of `loss` with respect to the tensors named in `tuned`; zero where it does not reach them."""
    parameters = [model.get_parameter(name) for name in tuned]
    found = torch.autograd.grad(loss, parameters, allow_unused=True)
    return {
        name: torch.zeros_like(p) if g is None else g
        for name, p, g in zip(tuned, parameters, found, strict=True)
    }


def endless(batches: Batches, batch_size: int, generator: torch.Generator) -> Iterator[Batch]:
    """Batches of all rows in a new random order each time round."""
    while True:
        for rows in torch.randperm(len(batches), generator=generator).split(batch_size):
            yield batches.take(rows)
