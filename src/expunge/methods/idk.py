"""IDK: fine-tuning on refusals."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from expunge.methods.answers import ALTERNATIVE, OtherAnswers
from expunge.methods.objective import Step
from expunge.methods.retain_term import RetainTerm
from expunge.parameters import param


class IDK(OtherAnswers, RetainTerm):
    """Learn to say "I don't know" to the questions of the forget set, and the right answers to those of the retain set.

    With N the negative log-likelihood of an answer, summed over its tokens, in nats, and r a refusal to the forget
    question q, ``joint`` is the mean over all tokens of both halves, as if they were one batch:

    ``min ( sum N(r|q) + alpha * sum_retain N(y|x) ) / ( tokens of both )``

    so that the answers' lengths decide the mix: short refusals weigh little beside long retain answers.
    ``separate`` is the mean over the tokens of the refusals plus alpha times the mean over those of the retain answers.

    Nothing makes the true answers less likely, so they stay within reach of anyone who does not take no for an answer.
    ``alpha = 0`` is plain fine-tuning on refusals.
    """

    name = "idk"
    paper = "Maini et al., COLM 2024, arXiv:2401.06121"
    claims = "suppression"
    needs = frozenset({"retain"})

    mixing: Literal["joint", "separate"] = param(
        "joint", "one mean over the tokens of both halves, or one of each", source="reference code: joint"
    )

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        terms = {"refusal": step.nll(ALTERNATIVE), **self.retain_terms(step)}
        if self.mixing == "separate" or self.alpha == 0:
            return terms
        tokens = {"refusal": step.positions(ALTERNATIVE), "retain": step.positions("retain")}
        both = tokens["refusal"] + tokens["retain"]
        return {name: value * tokens[name] / both for name, value in terms.items()}
