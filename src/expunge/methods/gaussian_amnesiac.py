"""Gaussian amnesiac: the amnesiac relabeling of regressors."""

from __future__ import annotations

from expunge.methods.amnesiac import Amnesiac
from expunge.parameters import param


class GaussianAmnesiac(Amnesiac):
    """Fine-tune on the retain set mixed with the forget set under Gaussian targets, drawn once and kept.

    ``min mean_train -ln p(y' | x)``; y' = y on retain rows and, on forget rows, one draw from N(mean, std^2)
    of the training targets, per target column and the same in every epoch. Where the family knows a range of
    possible values, draws are clipped to it, which narrows the law a little.

    Deviation: the loss is the family's likelihood (half the squared error in standardized units); the
    reference uses the absolute error. A fixed draw can be learned by heart, the more so over many epochs;
    `random-labeling` draws anew in every epoch.
    """

    name = "gaussian-amnesiac"
    paper = "Tarun et al., ICML 2023, arXiv:2210.08196"
    families = frozenset({"regressor"})
    relabeling = "random"

    epochs: int = param(1, "passes over the data", source="reference code: 1", ge=0)
    lr: float = param(1e-3, "learning rate", source="reference code: 1e-3", ge=0)
    batch_size: int = param(256, "examples per optimizer step", source="reference code: 256", ge=1)
