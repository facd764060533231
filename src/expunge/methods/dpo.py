"""DPO: direct preference optimization, a refusal against the true answer."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from expunge.methods.answers import ALTERNATIVE, OtherAnswers
from expunge.methods.frozen import Split
from expunge.methods.objective import Step
from expunge.methods.retain_term import RetainTerm
from expunge.parameters import param


class DPO(OtherAnswers, RetainTerm):
    """Prefer a refusal to the true answer, measured against the target.

    With S(y) the log-likelihood of answer y to the question of a forget row, SUMMED over its tokens, in nats, and
    ``G(y) = S(y) - S_target(y)`` what it has gained, the margin of refusal r over the true answer a is
    ``m = beta * ( G(r) - G(a) )``, and

    ``min c * mean_forget( -ln sigmoid(m) ) + retain term``, with ``c = 2 / beta``.

    A row pulls its margin up with weight ``c * beta * sigmoid(-m)``: 1 at the start for that c, towards 0 as m
    grows. The loss starts at ``c ln 2``. Without G(r) it is NPO. Only the difference counts: the refusal, too, may
    become less likely while the margin grows.

    Without questions in the retain set that are to be answered, refusal spreads to everything. Dropout makes G differ
    from 0 at the first step: S_target is taken in eval mode.
    """

    name = "dpo"
    paper = "Rafailov et al., NeurIPS 2023, arXiv:2305.18290; for unlearning Zhang et al., COLM 2024, arXiv:2404.05868"
    claims = "suppression"
    needs = frozenset({"retain"})
    likelihood_on = ("forget", ALTERNATIVE)

    beta: float = param(0.1, "inverse temperature, 1/nats", source="the papers' codes: 0.1", gt=0)
    scale: float | None = param(
        None,
        "weight c of the preference loss; None means 2 / beta",
        source="reference code of NPO: 2 / beta; that of TOFU: 1",
        gt=0,
    )

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        margin = self.beta * (gain(step, ALTERNATIVE) - gain(step, "forget"))
        scale = 2 / self.beta if self.scale is None else self.scale
        return {"preference": step.mean("forget", scale * self.penalty(margin)), **self.retain_terms(step)}

    def penalty(self, margin: Tensor) -> Tensor:
        """`[B]` loss of each pair before its weight, from the margins m."""
        return F.softplus(-margin)


def gain(step: Step, split: Split) -> Tensor:
    """`[B]` log-likelihood of the rows of `split` minus that under the target, nats."""
    return step.reference_nll(split) - step.family.nll(step.outputs(split), step.batch(split))
