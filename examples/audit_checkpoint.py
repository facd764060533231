"""Audit a checkpoint that somebody says has forgotten, against models that never saw the data.

Run: python examples/audit_checkpoint.py
"""

import numpy as np

import expunge
from expunge import train_target
from expunge.evidence import collect
from expunge.metrics.membership import first_half


def main() -> None:
    problem = train_target(expunge.ProblemSpec(benchmark="breast-cancer", forget="fraction=0.2").build())
    # What we were handed: here the work of gradient ascent, pushed rather far.
    handed = expunge.forget(problem, "gradient-ascent", epochs=10, lr=0.02).model
    retrained = [expunge.forget(problem, "retrain", seed=seed).model for seed in range(3)]

    scores = expunge.audit(problem, {"handed over": handed}, retrained=retrained)
    print("model         accuracy on forget   membership AUC on forget (0.5: cannot be told from holdout)")
    for judged in scores.judged:
        accuracy, auc = judged.score("accuracy", "forget"), judged.score("mia-loss-logistic", "forget")
        label = f"{judged.label} {judged.seed}" if judged.method == "retrain" else judged.label
        print(f"{label:13} {accuracy.value:.3f}                {auc.value:.3f}")
    print(next(v.sentence for v in scores.verdicts if v.label == "handed over"))

    # We can also check this by hand: the AUC counts pairs of a forgotten and a held-out row that the attacker
    # was not shown. A row with the smaller loss looks more like a member; ties count one half.
    forget, holdout = (
        collect(problem.family, handed, problem.splits[split], ["loss"]) for split in ("forget", "holdout")
    )
    unseen = holdout["loss"][~first_half(holdout)]
    pairs = np.sign(unseen[None, :] - forget["loss"][:, None])
    by_hand = float((pairs + 1).mean() / 2)
    score = next(j for j in scores.judged if j.label == "handed over").score("mia-loss-logistic", "forget")
    print(f"AUC {score.value:.4f} by the attacker, {by_hand:.4f} by counting pairs (or 1 minus it)")
    assert min(abs(score.value - by_hand), abs(score.value - (1 - by_hand))) < 1e-6


if __name__ == "__main__":
    main()
