"""A method of your own in one small class, compared with retraining.

Run: python examples/own_method.py
"""

import torch

import expunge
from expunge import train_target
from expunge.families import Outputs
from expunge.methods.objective import Objective, Pass, Step
from expunge.parameters import param


class Flatten(Objective):
    """Pull the forget rows towards the uniform prediction u, and keep the likelihood of the retain rows.

    ``min strength * mean_forget KL( u || p(.|x) ) + mean_retain( -ln p(y|x) )``, in nats.
    """

    name = "flatten"
    paper = "example"
    needs, families = frozenset({"retain"}), frozenset({"classifier"})
    strength: float = param(1.0, "weight of the divergence on the forget set", source="example", ge=0)

    def passes(self, epoch: int) -> list[Pass]:
        return [Pass("forget", paired="retain")]

    def loss(self, step: Step) -> dict[str, torch.Tensor]:
        own = step.outputs("forget")
        uniform = Outputs(torch.zeros_like(own.prediction))  # equal logits
        apart = step.family.divergence(uniform, own, step.forget)
        kept = step.family.nll(step.outputs("retain"), step.retain)
        return {"flatten": self.strength * step.mean("forget", apart), "retain": step.mean("retain", kept)}


def main() -> None:
    problem = train_target(expunge.ProblemSpec(benchmark="digits", forget="fraction=0.1").build())
    mine = expunge.forget(problem, Flatten(epochs=3))
    retrained = [expunge.forget(problem, "retrain", seed=seed).model for seed in (0, 1)]
    scores = expunge.audit(problem, {"flatten": mine.model}, retrained=retrained, metrics=["accuracy"])
    for judged in scores.judged:
        score = judged.score("accuracy", "forget")
        print(f"{judged.label:8} seed {judged.seed}: accuracy on the forget set {score.value:.3f}")

    # We can also check this by hand: KL(u || p) = -ln C - (1/C) sum_c ln p_c.
    batch = problem.batches("forget").take(torch.arange(len(problem.forget_rows)))
    with torch.no_grad():
        outputs = problem.family.forward(mine.model, batch)
    uniform = Outputs(torch.zeros_like(outputs.prediction))
    by_family = problem.family.divergence(uniform, outputs, batch).mean()
    logp = outputs.prediction.squeeze(1).log_softmax(-1)
    by_hand = (-torch.log(torch.tensor(10.0)) - logp.mean(-1)).mean()
    print(f"KL from uniform: {by_family:.5f} by the family, {by_hand:.5f} by hand")
    assert torch.isclose(by_family, by_hand, atol=1e-5)


if __name__ == "__main__":
    main()
