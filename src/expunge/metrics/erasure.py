"""Is a concept still drawn, is everything else, and how far are generated images from real ones?

A judge (an image classifier) looks at one sampled image per prompt. Of the two things that an image shows, the *concept's*
attribute is the one that is to be forgotten in part (a style), and the *context* is the other (the object).
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from expunge.metrics.base import Estimate, Readings, Undefined, finite_values, mean_estimate, metric
from expunge.stats.intervals import t_interval

FAMILY = ["diffusion"]
SOURCE = "Zhang et al., UnlearnCanvas, NeurIPS 2024, arXiv:2402.11846"


@metric(
    "unlearning-accuracy",
    title="Unlearning accuracy",
    reads={("model", "*"): ["concept_correct"]},
    splits=["concept", "earlier"],
    direction="match",
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source=SOURCE,
)
def unlearning_accuracy(readings: Readings) -> Estimate:
    """Share of images from prompts for the erased concept in which the judge does not see it.

    A model that draws noise has 1, so it means nothing without the retain accuracies beside it; the value to match is the
    retrained model's. Of a pair such as a style and an object, one of the two missing is enough. On `earlier`, prompts for
    what was erased by earlier requests: below what it was then, a later request has brought it back. By context; the t
    interval is over images.
    """
    return mean_estimate(
        1 - readings.model["concept_correct"].astype(np.float64), readings.model, "the judgement"
    )


@metric(
    "concept-probability",
    title="Probability of the concept",
    reads={("model", "*"): ["concept_probability"]},
    splits=["concept", "test", "samples"],
    direction="match",
    unit="probability",
    low=0,
    high=1,
    families=[*FAMILY, "gan"],
    source="ours: what unlearning accuracy hides by looking at the most likely class alone",
)
def concept_probability(readings: Readings) -> Estimate:
    """Mean probability that the judge gives to the erased concept, on `samples` those of a GAN. The t interval is over images."""
    values = readings.model["concept_probability"]
    if np.isnan(values).all():
        raise Undefined(
            "the rows to forget are no concept that the judge has a name for, or no image is finite"
        )
    return mean_estimate(values, readings.model, "the judge's probability")


@metric(
    "in-domain-retain-accuracy",
    title="In-domain retain accuracy",
    reads={("model", "*"): ["concept_correct"]},
    splits=["test"],
    direction="higher",
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source=SOURCE,
)
def in_domain_retain_accuracy(readings: Readings) -> Estimate:
    """Share of images from prompts without the concept that show the asked other value of its attribute.

    For an erased style: the other styles. The t interval is over images.
    """
    return mean_estimate(
        readings.model["concept_correct"].astype(np.float64), readings.model, "the judgement"
    )


@metric(
    "cross-domain-retain-accuracy",
    title="Cross-domain retain accuracy",
    reads={("model", "*"): ["context_correct"]},
    splits=["test", "concept"],
    direction={"test": "higher", "*": "match"},
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source=f"{SOURCE} (its README)",
)
def cross_domain_retain_accuracy(readings: Readings) -> Estimate:
    """Share of images that show the asked context: for an erased style the object, for an object the style.

    On `test`, prompts that do not name the concept, as the benchmark's README says; on `concept`, whether the rest of a
    prompt is still followed when its concept is erased. The t interval is over images.
    """
    return mean_estimate(_context(readings.model["context_correct"]), readings.model, "the judgement")


@metric(
    "cross-domain-retain-accuracy-script",
    title="Cross-domain retain accuracy (over all prompts)",
    reads={("model", split): ["context_correct"] for split in ("test", "concept")},
    splits=["test"],
    direction="higher",
    unit="share",
    low=0,
    high=1,
    families=FAMILY,
    source=f"{SOURCE} (its script)",
)
def published_cross_domain_retain_accuracy(readings: Readings) -> Estimate:
    """As the benchmark's script computes it: over all prompts, those that name the erased concept included."""
    values = _context(np.concatenate([readings["model", s]["context_correct"] for s in ("test", "concept")]))
    values = finite_values(values, "the judgement")
    return Estimate(float(values.mean()), len(values), t_interval(values, over="examples"))


def _context(values: np.ndarray) -> np.ndarray:
    if np.isnan(values).all():
        raise Undefined(
            "the concept takes all that the judges look at, so there is no context, or no image is finite"
        )
    return values.astype(np.float64)


def frechet_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Squared Fréchet distance of Gaussians with the moments of two samples `[n, d]` and `[m, d]`.

    ``|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2))``, covariances with n - 1. The trace of the root is the sum of the roots
    of the eigenvalues of ``S1 S2``. With fewer samples than dimensions it is biased upwards.
    """
    one, two = first.astype(np.float64), second.astype(np.float64)
    covariances = [np.atleast_2d(np.cov(x, rowvar=False)) for x in (one, two)]
    values = np.linalg.eigvals(covariances[0] @ covariances[1])
    root = np.sqrt(np.clip(values.real, 0, None)).sum()
    difference = one.mean(0) - two.mean(0)
    return float(max(difference @ difference + sum(np.trace(c) for c in covariances) - 2 * root, 0.0))


def kernel_distance(first: np.ndarray, second: np.ndarray) -> float:
    """Unbiased squared maximum mean discrepancy of `[n, d]` and `[m, d]` under ``(x y / d + 1)^3`` (Binkowski et al. 2018).

    Near 0 where both samples are of one distribution, below 0 by chance.
    """
    one, two = first.astype(np.float64), second.astype(np.float64)
    d = one.shape[1]

    def kernel(x: np.ndarray, y: np.ndarray) -> np.ndarray:
        return (x @ y.T / d + 1) ** 3

    def within(x: np.ndarray) -> float:
        values = kernel(x, x)
        return float((values.sum() - np.trace(values)) / (len(x) * (len(x) - 1)))

    return within(one) + within(two) - 2 * float(kernel(one, two).mean())


def _distance(
    readings: Readings,
    measure: Callable[[np.ndarray, np.ndarray], float],
    features: tuple[str, str] = ("judge_features", "image_features"),
) -> Estimate:
    evidence = readings.model
    drawn, real = (finite_values(evidence[q], q) for q in features)
    if len(drawn) < 2:
        raise Undefined("one image has no distribution; at least 2 are needed")
    by_class = {}
    if (groups := evidence.groups) is not None:
        counted = {g: groups == g for g in np.unique(groups)}
        by_class = {str(g): measure(drawn[m], real[m]) for g, m in counted.items() if m.sum() > 1}
    return Estimate(measure(drawn, real), len(drawn), None, by_class)


@metric(
    "frechet-distance",
    title="Fréchet distance to real images",
    reads={("model", "*"): ["judge_features", "image_features"]},
    splits=["test", "concept"],
    direction={"test": "lower", "*": "match"},
    unit="squared feature units",
    low=0,
    families=[*FAMILY, "gan"],
    source="Heusel et al., NeurIPS 2017, arXiv:1706.08500; on the judges' features instead of Inception's",
)
def frechet_to_images(readings: Readings) -> Estimate:
    """Fréchet distance between generated images and the rows' own, on what the judges' last layers read.

    An unconditional GAN draws as many samples as there are rows, whatever the rows show.

    Not comparable with distances on Inception features. Biased upwards where there are fewer images than features.
    """
    return _distance(readings, frechet_distance)


@metric(
    "kernel-distance",
    title="Kernel distance to real images",
    reads={("model", "*"): ["judge_features", "image_features"]},
    splits=["test", "concept"],
    direction={"test": "lower", "*": "match"},
    unit="squared kernel units",
    families=[*FAMILY, "gan"],
    source="Binkowski et al., ICLR 2018, arXiv:1801.01401; on the judges' features instead of Inception's",
)
def kernel_to_images(readings: Readings) -> Estimate:
    """Unbiased squared kernel distance between generated images and the rows' own, on the judges' features."""
    return _distance(readings, kernel_distance)


@metric(
    "inception-frechet-distance",
    title="Fréchet distance to real images (Inception)",
    reads={("model", "*"): ["inception_features", "inception_image_features"]},
    splits=["test", "concept"],
    direction={"test": "lower", "*": "match"},
    unit="squared feature units",
    low=0,
    families=FAMILY,
    source="Heusel et al., NeurIPS 2017, arXiv:1706.08500 (FID)",
)
def inception_frechet(readings: Readings) -> Estimate:
    """Fréchet distance between generated images and the rows' own on the 2048 pooled features of Inception.

    Features are torch-fidelity's (extra `fid`), so that values can be compared with others of that tool as far as the
    images are the same; with fewer images than features, which is usual here, it is biased far upwards. Only where
    `inception` names the network's weights.
    """
    return _distance(readings, frechet_distance, ("inception_features", "inception_image_features"))


@metric(
    "clip-score",
    title="CLIP score",
    reads={("model", "*"): ["clip_score"]},
    splits=["test", "concept"],
    direction={"test": "higher", "*": "match"},
    unit="100 x cosine",
    low=0,
    high=100,
    families=FAMILY,
    source="Hessel et al., EMNLP 2021, arXiv:2104.08718, with weight 100 instead of 2.5, as usual",
)
def clip_score(readings: Readings) -> Estimate:
    """Mean of 100 max(cos(image, prompt), 0) in a CLIP model's embedding, over generated images.

    Only where `clip` names a model's folder; values of different CLIP models cannot be compared. The t interval is over
    images.
    """
    return mean_estimate(readings.model["clip_score"], readings.model, "the CLIP score")
