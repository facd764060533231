"""EU-k: train the last k layers again from fresh weights."""

from __future__ import annotations

import torch
from torch import nn

from expunge.methods.cf_k import CFk
from expunge.methods.objective import State
from expunge.parameters import param
from expunge.problem import Problem


class EUk(CFk):
    """Give the last k layers fresh weights and train them on the retain set ("exactly unlearn the last k").

    As `cf-k`, after all parameters and buffers (batch-norm statistics) of those layers have been replaced by
    a freshly initialized model's. Exact only in those k layers, and only given the layers below, which have
    seen the forget set.

    Limits: with k at least the number of layers this is retraining by this method's own recipe, parameters
    outside every layer included. Zero epochs leave the target as it is: layers that are fresh and untrained
    would only look forgotten.

    Deviation: the reference re-initializes the last convolutional stage and leaves out the linear head behind
    it, which keeps what the head has learned; here nothing behind the first of the k layers is left out.
    """

    name = "eu-k"
    paper = "Goel et al., 2022, arXiv:2201.06640"
    needs = frozenset({"retain", "architecture"})

    epochs: int = param(
        20, "passes over the retain set", source="ours; reference code of SCRUB: as the target's", ge=0
    )

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs == 0:
            return
        # A stream of its own: the fresh layers must not be the initial ones of a retrained reference.
        seed = int(torch.randint(1 << 31, (), generator=state.workplace.generator(7)))
        fresh, own = problem.fresh_model(seed).state_dict(), model.state_dict()
        trained = self.trained(problem.family, model)
        model.load_state_dict({k: fresh[k] if k.startswith(trained) else v for k, v in own.items()})
