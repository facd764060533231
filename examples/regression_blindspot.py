"""Forget a range of a regression target with the blindspot model, and compare with retraining.

Run: python examples/regression_blindspot.py
"""

import numpy as np
import torch

import expunge
from expunge import train_target


def main() -> None:
    # Patients whose disease progressed by 200 or more.
    problem = train_target(expunge.ProblemSpec(benchmark="diabetes").build())
    blind = expunge.forget(problem, "blindspot")
    retrained = [expunge.forget(problem, "retrain", seed=seed).model for seed in (0, 1)]
    scores = expunge.audit(problem, {"blindspot": blind.model}, retrained=retrained)

    print(f"{problem.scope}: {len(problem.forget_rows)} of {len(problem.train)} training rows")
    print("mean absolute error   forget   retain")
    for judged in scores.judged:
        forget, retain = (judged.score("mae", split).value for split in ("forget", "retain"))
        print(f"{judged.label:10} seed {judged.seed}     {forget:6.1f}   {retain:6.1f}")
    print(f"took {blind.cost.passes:.1f} passes over the data, {blind.cost.seconds:.2f} s")

    # We can also check this by hand: undo the standardization ourselves and average |prediction - truth|.
    rows = problem.forget.with_format("numpy")[:]
    family = problem.family
    inputs = np.column_stack([rows[c] for c in family.inputs.columns])
    standardized = torch.tensor((inputs - family.inputs.mean) / family.inputs.scale, dtype=torch.float32)
    with torch.no_grad():
        predicted = blind.model(standardized).numpy()[:, 0] * family.scale[0] + family.center[0]
    by_hand = float(np.abs(predicted - rows["progression"]).mean())
    by_expunge = next(j for j in scores.judged if j.label == "blindspot").score("mae", "forget").value
    print(f"error on the forget set: {by_expunge:.4f} by expunge, {by_hand:.4f} by hand")
    assert np.isclose(by_expunge, by_hand, rtol=1e-5)


if __name__ == "__main__":
    main()
