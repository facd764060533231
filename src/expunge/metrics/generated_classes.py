"""What samples of a GAN show: is anything undesired among them, and is the rest still there, in all its variety?"""

from __future__ import annotations

import numpy as np
from scipy.stats import wasserstein_distance

from expunge.metrics.base import Estimate, Readings, Undefined, decided, finite_values, mean_estimate, metric

FAMILY = ["gan"]
SOURCE = "Naeem et al., ICML 2020, arXiv:2002.09797; on the judges' features"


@metric(
    "undesired-rate",
    title="Undesired samples",
    reads={("model", "*"): ["undesired"]},
    splits=["samples"],
    direction="match",
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source="Tiwary et al., TMLR 2025, arXiv:2309.14054 (1 minus it is unlearning accuracy)",
)
def undesired_rate(readings: Readings) -> Estimate:
    """Share of samples in which the judge sees what is to be forgotten.

    A retrained model has some, too: the judge errs, and samples may be malformed. The t interval is over samples.
    """
    values = readings.model["undesired"]
    if np.isnan(values).all():
        raise Undefined(
            "the rows to forget have nothing in common that the judge has a name for, or no sample is finite"
        )
    return mean_estimate(values, readings.model, "the verdict")


@metric(
    "coverage",
    title="Coverage of real images",
    reads={("model", "*"): ["covered"]},
    splits=["test", "concept"],
    direction={"test": "higher", "*": "match"},
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source=SOURCE,
)
def coverage(readings: Readings) -> Estimate:
    """Share of real images that some sample comes nearer to than their k-th nearest other one (family: k, number of samples).

    Low where kinds of images are no longer drawn: on `test` a loss, on `concept` what was asked for. The t interval is over
    images.
    """
    return mean_estimate(_balls(readings, "covered"), readings.model, "coverage")


@metric(
    "density",
    title="Density around real images",
    reads={("model", "*"): ["density"]},
    splits=["test", "concept"],
    direction={"test": "higher", "*": "match"},
    unit="ratio",
    low=0,
    families=FAMILY,
    source=SOURCE,
)
def density(readings: Readings) -> Estimate:
    """Samples near real images, by how many there would be if samples were spread as the real images are: near 1 then.

    Above 1 where samples crowd in the midst of the real images, below where they lie apart. The t interval is over images.
    """
    return mean_estimate(_balls(readings, "density"), readings.model, "density")


def _balls(readings: Readings, quantity: str) -> np.ndarray:
    values = readings.model[quantity]
    if np.isnan(values).all():
        raise Undefined(
            f"{len(values)} real images are too few for so many nearest neighbors, or samples are not finite"
        )
    return values


@metric(
    "class-distance",
    title="Distance of class shares",
    reads={("model", "samples"): ["judged", "undesired"], ("model", "test"): ["image_judged"]},
    splits=["samples"],
    direction="lower",
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source="ours: total variation distance",
)
def class_distance(readings: Readings) -> Estimate:
    """Half the summed difference of class shares between samples that are not undesired and the real images to be kept.

    Both as the judge of classes sees them. 0: every kept class is drawn as often as it occurs; 1: none of them is.
    """
    samples, real = readings["model", "samples"], readings["model", "test"]
    wanted = decided(samples["judged"])[samples["undesired"] != 1].astype(int)
    if not len(wanted):
        raise Undefined("every sample is undesired")
    seen = real["image_judged"]
    top = int(max(wanted.max(), seen.max())) + 1
    shares = [np.bincount(values, minlength=top) / len(values) for values in (wanted, seen)]
    return Estimate(float(np.abs(shares[0] - shares[1]).sum() / 2), len(wanted))


@metric(
    "degree-of-unlearning",
    title="Degree of unlearning",
    reads={
        ("model", "samples"): ["concept_probability"],
        ("target", "samples"): ["concept_probability", "undesired"],
    },
    splits=["samples"],
    direction="match",
    unit="share of the way",
    high=1,
    families=FAMILY,
    source="Nagasubramaniam et al., 2025, arXiv:2504.01218 (a reconstruction)",
)
def degree_of_unlearning(readings: Readings) -> Estimate:
    """How far latents that drew the undesired have come towards what other latents drew: ``1 - W(P_t, P_0) / W(P_f, P_0)``.

    W is the first Wasserstein distance between probabilities that the judge gives to the undesired: P_f of the target's
    undesired samples, P_t of the model's from the same latents, P_0 of the target's other samples. 1: like any other sample;
    0: nothing was forgotten; below 0: worse than before.
    """
    model, target = readings.paired("target")
    values, before, verdicts = (
        model["concept_probability"],
        target["concept_probability"],
        target["undesired"],
    )
    undesired = verdicts == 1
    if np.isnan(verdicts).all():
        raise Undefined(
            "the rows to forget have nothing in common that the judge has a name for, or no sample is finite"
        )
    if not undesired.any() or undesired.all():
        raise Undefined(
            "the target's samples are undesired all or none, so there are no two kinds to compare"
        )
    finite_values(values, "the judge's probability")
    whole = wasserstein_distance(before[undesired], before[~undesired])
    left = wasserstein_distance(values[undesired], before[~undesired])
    return Estimate(float(1 - left / whole), int(undesired.sum()))
