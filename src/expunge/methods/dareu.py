"""DareU-style forgetting: reinforcement learning of answers that cannot be attributed to the owner of the forget set."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch
from expunge.families.causal_lm import CausalLM
from expunge.families.generation import request
from expunge.families.likelihoods import log_likelihoods
from expunge.families.sampling import as_batch, sample
from expunge.methods.answers import language, refusals
from expunge.methods.attributor import Attributor
from expunge.methods.frozen import Frozen
from expunge.methods.objective import Pass, State, Step
from expunge.methods.retain_term import RetainTerm
from expunge.parameters import param
from expunge.problem import Problem


class DareU(RetainTerm):
    """Change what the model says to the forget questions until nothing points to the forget set any more.

    A reconstruction: the paper's idea (rewards for answers that a classifier does not attribute to their owner, policy
    optimization, distillation on the retain set) in formulas and numbers of ours, not a reproduction.

    With A(y) in [0, 1] the attribution of response y, see below, the model pi is to maximize

    ``E_{x in forget, y from pi(.|x)}[ -A(y) - beta * ln( pi(y|x) / pi_target(y|x) ) ]``

    in nats, minus the retain term (`retain_loss`, by default the divergence from the target's predictions). The optimum
    without a retain term is pi_target tilted by exp(-A / beta): fluent, because pi_target is, and without any reward for
    going below zero attribution.

    At the start of each epoch `n_responses` are sampled for every forget row, with the whole distribution. The advantage
    of a response is its reward minus the mean reward of the other responses to the row (Ahmadian et al., ACL 2024), so it
    is 0 where all are worth the same. `inner` passes follow, on the clipped surrogate of PPO (Schulman et al. 2017): per
    token ``min( r a, clip(r, 1 - clip_ratio, 1 + clip_ratio) a )``, with r the ratio to the probability at sampling,
    summed over tokens, averaged over responses. Its gradient at r = 1 is the policy gradient of the whole objective.

    A is a logistic regression on words and word pairs, between the answers of the forget set (owned) and those of the
    retain set together with refusals (not owned). Words that stand in the question do not count. The run ends
    once the mean attribution of an epoch's samples is down to the zero level, the mean of A over others' answers by
    classifiers that did not see them. Notes tell both, and how well A tells owners apart at all.

    Only what is SAID is judged: the true answer may stay likely, and can come out under other prompts. Judge the result by
    likelihoods, extraction and an attributor of another kind, too. The run holds a copy of the target besides the model.
    Dropout makes r differ from 1 at once: samples are drawn in eval mode.
    """

    name = "dareu"
    paper = "Lu et al., ICML 2026, arXiv:2605.30919 (DareU-style: reconstructed from its summary)"
    families = frozenset({"causal_lm"})
    needs = frozenset({"retain", "labels"})

    epochs: int = param(10, "rounds of sampling", source="ours", ge=0)
    retain_loss: Literal["nll", "kl"] = param(
        "kl", "retain term: likelihood, or divergence from the target's predictions", source="the paper: distillation"
    )  # fmt: skip
    n_responses: int = param(4, "responses sampled for each forget row and epoch", source="ours", ge=2)
    inner: int = param(2, "passes over the forget set with the same responses", source="ours", ge=1)
    beta: float = param(0.05, "weight of the divergence from the target, 1/nats", source="ours", ge=0)
    clip_ratio: float = param(
        0.2, "largest change of a token's probability that pays", source="PPO: 0.2", gt=0, lt=1
    )
    max_new_tokens: int = param(128, "most tokens of a response", source="ours", ge=1)

    def passes(self, epoch: int) -> Sequence[Pass]:  # noqa: D102
        return [Pass("forget", paired="retain" if self.alpha > 0 else None)] * self.inner

    def prepare(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs == 0:
            return
        family = language(problem)
        owned, others = (_said(family, rows) for rows in (problem.forget, problem.retain))
        fitted = Attributor.fit(owned, others, [("", text) for text in refusals()])
        state.frozen["target"] = Frozen(model, family, {}, (), precompute=False)
        state.kept["attributor"] = fitted.attributor.weights
        state.kept["zero"] = torch.tensor(fitted.zero)
        state.kept["levels"] = torch.zeros(0)
        state.workplace.notes.append(
            f"an attributor tells forget answers from others with AUC {fitted.auc:.2f} on answers it did not see; "
            f"others' answers have mean attribution {fitted.zero:.3f}, the zero level"
        )
        self._respond(model, state, 0)

    def loss(self, step: Step) -> dict[str, Tensor]:  # noqa: D102
        kept, k = step.state.kept, self.n_responses
        number = {row: i for i, row in enumerate(step.state.sources["forget"].ids)}
        rows = torch.tensor([number[row] * k + j for row in step.forget.ids for j in range(k)])
        whole = Batch(
            [""] * len(rows),
            {name: kept[name][rows] for name in ("input_ids", "attention_mask")},
            kept["input_ids"][rows, 1:],
            kept["mask"][rows],
        )
        batch = step.family.trim(whole).to(step.forget.mask.device)
        # One entry for each sampled token from here on, row after row.
        owner = torch.arange(len(rows)).repeat_interleave(step.family.terms(whole)).to(batch.mask.device)
        logp = log_likelihoods(step.family.forward(step.model, batch).prediction, batch.targets, batch.mask)[
            batch.mask
        ]
        sampled_logp = kept["logp"][rows][whole.mask].to(logp)
        advantage = kept["advantage"][rows].to(logp)[owner]
        gained = logp.new_zeros(len(rows)).index_add(
            0, owner, clipped(logp, sampled_logp, advantage, self.clip_ratio)
        )
        return {"policy": -step.mean("forget", gained.view(-1, k).mean(-1)), **self.retain_terms(step)}

    def after_epoch(self, model: nn.Module, state: State, epoch: int) -> None:  # noqa: D102
        self._respond(model, state, epoch + 1)

    def finish(self, problem: Problem, model: nn.Module, state: State) -> None:  # noqa: D102
        if self.epochs > 0:
            levels = state.kept["levels"].tolist()
            state.workplace.notes.append(
                f"mean attribution of what the model says went from {levels[0]:.3f} to {levels[-1]:.3f}"
            )

    def _respond(self, model: nn.Module, state: State, epoch: int) -> None:
        """Sample responses to all forget rows, judge them, and keep what the steps of an epoch need of them."""
        family, kept, problem = language(state.problem), state.kept, state.problem
        rows: list[Any] = list(problem.forget.with_format(None))
        prompts = [request(family, row).prompt for row in rows for _ in range(self.n_responses)]
        limit = min(self.max_new_tokens, family.max_length - max(map(len, prompts)))
        if limit < 1:
            raise BadInput(
                f"{problem.name}: a question fills the whole context of {family.max_length} tokens"
            )
        said = sample(family, model, prompts, limit, state.workplace.generator(6, epoch))
        responses = family.tokenizer.batch_decode(said, skip_special_tokens=True)
        questions = family.tokenizer.batch_decode(prompts, skip_special_tokens=True)
        attribution = Attributor(kept["attributor"]).scores(list(zip(questions, responses, strict=True)))
        level = attribution.mean().float()
        kept["levels"] = torch.cat([kept["levels"], level[None]])
        if level <= kept["zero"]:
            state.stop(f"mean attribution {level:.3f} is down to the zero level {kept['zero']:.3f}")
        batch = as_batch(family, [str(i) for i in range(len(said))], prompts, said)
        logp, target_logp = self._log_likelihoods(model, state, batch)
        reward = -attribution - self.beta * (logp - target_logp).nan_to_num().sum(-1)
        kept.update(batch.inputs, mask=batch.mask, logp=logp)
        kept["advantage"] = advantages(reward.view(-1, self.n_responses)).flatten().float()

    def _log_likelihoods(self, model: nn.Module, state: State, batch: Batch) -> tuple[Tensor, Tensor]:
        """`[R, T]` ln p of each sampled token under the model and under the target, NaN elsewhere, on the CPU."""
        family, device = state.problem.family, state.workplace.device
        found: tuple[list[Tensor], list[Tensor]] = ([], [])
        with torch.no_grad():
            for rows in torch.arange(len(batch)).split(64):
                part = batch.select(rows).to(device)
                target = state.frozen["target"].outputs("forget", rows, part)
                for parts, outputs in zip(found, (family.forward(model, part), target), strict=True):
                    parts.append(log_likelihoods(outputs.prediction, part.targets, part.mask).cpu())
        return torch.cat(found[0]), torch.cat(found[1])


def advantages(reward: Tensor) -> Tensor:
    """`[n, K]` rewards of K responses to each of n prompts: each minus the mean of the other K - 1.

    The baseline does not depend on the response that it is taken from, so that the policy gradient stays unbiased.
    """
    k = reward.shape[-1]
    return (reward - reward.mean(-1, keepdim=True)) * k / (k - 1)


def clipped(logp: Tensor, sampled_logp: Tensor, advantage: Tensor, clip_ratio: float) -> Tensor:
    """PPO's surrogate: no gain from a ratio to the sampling probability that has left [1 - clip_ratio, 1 + clip_ratio]."""
    ratio = (logp - sampled_logp).exp()
    return torch.minimum(ratio * advantage, ratio.clamp(1 - clip_ratio, 1 + clip_ratio) * advantage)


def _said(family: CausalLM, dataset: Dataset) -> list[tuple[str, str]]:
    """Question and answer of each row."""
    rows: list[Any] = list(dataset.with_format(None))
    asked = [request(family, row) for row in rows]
    questions = family.tokenizer.batch_decode([row.prompt for row in asked], skip_special_tokens=True)
    return [(question, row.answer) for question, row in zip(questions, asked, strict=True)]
