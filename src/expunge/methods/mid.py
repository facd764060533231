"""MID: training through a noisy bottleneck, so that answers say little about inputs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput, ExpungeError
from expunge.methods.objective import Objective, Pass, State, Step
from expunge.parameters import param
from expunge.problem import Problem

SHIFT = 5.0
"""sigma = softplus(s - SHIFT): noise starts at about 0.0067, so that training starts from what the model computes."""


class Mid(Objective):
    """Train on the retain set under a bound on the mutual information between inputs and answers.

    The last linear layer on features h (`[d]`) is split in two with Gaussian noise between: ``mu, s = A h + a``
    (`[width]` each), ``sigma = softplus(s - 5)``, ``z = mu + sigma eps``, ``eps ~ N(0, I)``, prediction ``W z
    + b`` (a variational information bottleneck). As ``I(X; answer) <= I(X; Z) <= E_x KL(N(mu, sigma^2) || N(0,
    I))``, in nats, the loss is

    ``mean_retain( -ln p(y | z) ) + beta mean_retain KL``, ``KL = sum_j (mu_j^2 + sigma_j^2 - 1 - 2 ln sigma_j) / 2``,

    summed over `width`, mean over the batch. With sigma = 0.0067 the KL starts at some 4.5 nats per
    dimension, which is why beta rises from 0 over the first share `beta_warmup` of the run.

    What it claims. It is a defense against model inversion (reconstructing what the inputs of a class look
    like), made for training. About the forget set it says no more than training without it does: from
    "fresh" weights that is retraining, which is exact; from the "target" it is fine-tuning, which may leave
    everything in place. It is no defense against membership inference. The bound holds for the noisy answer.
    The returned model has the target's architecture and answers with z = mu, a linear map again, of which the
    bound says nothing; the notes give the bound and, for classifiers, the entropy of the answers (the
    predicted classes), which is exactly what a deterministic answer tells about its input. Layers before the
    last are not bounded.

    Limits: beta = 0 is training with a little noise on the last features; for large beta mu goes to 0 and
    sigma to 1, and all inputs get the same answer. What lies between need not be a trade-off: of two Gaussian
    classes, a small beta makes the mean easier to find for an attacker who follows gradients, as answers
    saturate later, until the bottleneck closes and nothing is found.

    Deviations: the reference starts the split layer at random; from "target" it starts as the singular value
    decomposition of the target's layer, so that the answers stay what they were (up to rank `width`). The
    variants for linear regression and decision trees are not in here.
    """

    name = "mid"
    families = frozenset({"classifier", "regressor", "causal_lm"})
    adapters = False
    paper = "Wang et al., AAAI 2021, arXiv:2009.05241"
    needs = frozenset({"retain", "labels"})

    beta: float = param(0.01, "weight of the KL divergence, per nat", source="reference code: 0.01", ge=0)
    width: int | None = param(
        None,
        "dimensions of the bottleneck; None means half the features",
        source="reference code: half",
        ge=1,
    )
    beta_warmup: float = param(0.4, "share of the run in which beta rises from 0", source="ours", ge=0, le=1)
    start: Literal["target", "fresh"] = param(
        "target",
        "weights to begin with: the target's, or fresh ones",
        source="ours; the paper trains from fresh ones",
    )
    epochs: int = param(10, "passes over the retain set", source="ours", ge=0)
    batch_size: int = param(64, "examples per optimizer step", source="reference code: 64", ge=1)

    @classmethod
    def obstacles(cls, problem: Problem) -> list[str]:  # noqa: D102
        found = super().obstacles(problem)
        if problem.model is not None and not any(isinstance(m, nn.Linear) for m in problem.model.modules()):
            found.append(f"it needs a last linear layer, and {type(problem.model).__name__} has none")
        return found

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass("retain")]

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs == 0:
            return
        head = problem.family.head(model)
        if self.start == "fresh":
            # A stream of its own: these must not be the initial weights of a retrained reference.
            seed = int(torch.randint(1 << 31, (), generator=state.workplace.generator(11)))
            model.load_state_dict(problem.fresh_model(seed).state_dict())
        layer = model.get_submodule(head)
        if not isinstance(layer, nn.Linear):
            raise BadInput(
                f"method '{self.name}' needs a linear last layer, and '{head}' is {type(layer).__name__}"
            )
        width = self.width or max(1, layer.in_features // 2)
        model.set_submodule(head, Bottleneck(layer, width))
        if self.start == "target" and width < min(layer.weight.shape):
            state.workplace.notes.append(
                f"a bottleneck of width {width} cannot hold a last layer of rank {min(layer.weight.shape)}; "
                "the run starts from its best approximation"
            )

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        name, bottleneck = find(step.model)
        bottleneck.generator = step.generator
        layer = f"{name}.encoder"
        outputs = step.outputs("retain", [layer])
        beta = self.beta * min(1.0, step.progress / self.beta_warmup) if self.beta_warmup else self.beta
        rate = divergence(*gaussian(outputs.hidden[layer])).flatten(1).sum(1)
        return {
            "nll": step.mean("retain", step.family.nll(outputs, step.retain)),
            "kl": beta * step.mean("retain", rate),
        }

    def finish(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs == 0:
            return
        name, bottleneck = find(model)
        layer, family = f"{name}.encoder", problem.family
        rates, answers = [], []
        for _, batch in state.workplace.batches(problem, "retain").sequential(256):
            outputs = family.forward(model, batch, [layer])
            rates.append(divergence(*gaussian(outputs.hidden[layer])).flatten(1).sum(1).cpu().double())
            if "predicted" in family.quantities:
                answers.append(family.observe(outputs, batch, ["predicted"])["predicted"].cpu())
        note = f"a noisy answer tells at most {torch.cat(rates).mean():.3g} nats about its input"
        if answers:
            note += (
                f"; the predicted class, which the returned model gives without noise, tells "
                f"{entropy(torch.cat(answers).unique(return_counts=True)[1]):.3g} nats"
            )
        state.workplace.notes.append(note + " (on the retain set)")
        model.set_submodule(name, bottleneck.folded())


class Bottleneck(nn.Module):
    """A linear layer in two steps with Gaussian noise between them in train mode, and none in eval mode.

    Args:
        layer: `[outputs, d]`, the layer to replace. What the new one computes without noise is the same, or
            the best approximation of rank `width`.
        width: dimensions between the steps.
    """

    def __init__(self, layer: nn.Linear, width: int) -> None:
        super().__init__()
        has_bias = layer.bias is not None
        self.encoder = nn.Linear(layer.in_features, 2 * width, has_bias).to(layer.weight)
        self.decoder = nn.Linear(width, layer.out_features, has_bias).to(layer.weight)
        self.width = width
        self.generator: torch.Generator | None = None
        with torch.no_grad():
            u, singular, v = torch.linalg.svd(layer.weight.float(), full_matrices=False)
            rank = min(width, len(singular))
            root = singular[:rank].sqrt()
            # Dimensions beyond the rank are read by nobody yet, and learn from there.
            self.decoder.weight.zero_()
            self.decoder.weight[:, :rank] = u[:, :rank] * root
            self.encoder.weight[:rank] = root[:, None] * v[:rank]
            if has_bias:
                self.encoder.bias[:width] = 0
                self.decoder.bias.copy_(layer.bias)

    def forward(self, features: Tensor) -> Tensor:
        """`[..., d]` to `[..., outputs]`."""
        z, sigma = gaussian(self.encoder(features))
        if self.training:
            # Uniform numbers come one by one, so that micro-batches together draw what the whole batch does.
            uniform = torch.rand(z.shape, dtype=torch.float64, generator=self.generator)
            z = z + sigma * torch.special.ndtri(uniform.clamp(min=1e-16)).to(z)
        return self.decoder(z.to(features.dtype))

    def folded(self) -> nn.Linear:
        """The one linear layer that computes the same in eval mode."""
        mean, outer = self.encoder, self.decoder
        layer = nn.Linear(mean.in_features, outer.out_features, outer.bias is not None).to(outer.weight)
        with torch.no_grad():
            layer.weight.copy_(outer.weight @ mean.weight[: self.width])
            if outer.bias is not None:
                layer.bias.copy_(outer.weight @ mean.bias[: self.width] + outer.bias)
        return layer


def gaussian(encoded: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation, `[..., width]` each, from `[..., 2 * width]`; float32 or wider."""
    mu, s = encoded.to(torch.promote_types(encoded.dtype, torch.float32)).chunk(2, -1)
    return mu, F.softplus(s - SHIFT)


def divergence(mu: Tensor, sigma: Tensor) -> Tensor:
    """``KL(N(mu, sigma^2) || N(0, 1))`` in nats, elementwise."""
    return (mu.square() + sigma.square() - 1) / 2 - sigma.log()


def entropy(counts: Tensor) -> float:
    """Entropy in nats of answers that occur `counts` times: what a deterministic answer tells about its input."""
    return float(torch.special.entr(counts.double() / counts.sum()).sum())


def find(model: nn.Module) -> tuple[str, Bottleneck]:
    """The bottleneck of `model`, and its name."""
    for name, module in model.named_modules():
        if isinstance(module, Bottleneck):
            return name, module
    raise ExpungeError(f"{type(model).__name__} has lost its bottleneck during the run; run it again")
