"""Population attack: one attacker for all examples, who has no shadow models."""

from __future__ import annotations

from typing import Literal

from expunge.attacks.base import Attack, Scene
from expunge.attacks.roc import roc_measures, roc_scores
from expunge.errors import BadInput
from expunge.evidence import Evidence
from expunge.metrics.base import Readings, Role
from expunge.metrics.membership import inquire
from expunge.parameters import param
from expunge.record import Score


class PopulationMia(Attack):
    """Membership inference by one statistic of each row, with one decision rule for all rows.

    The attacker is a logistic regression on one statistic, fitted on one half of the retained rows (members) and of the
    holdout rows (non-members), with balanced weights. It is then asked about the forget rows, against the other half of
    the holdout rows, those of groups that occur in the forget set. Rows are halved group by group by a hash of the id. One
    statistic leaves the rule nothing to learn but a direction, so the curve is that of the statistic itself.

    Attackers who calibrate on each row with shadow models (`lira`) are stronger: a failure here proves little.

    Deviation: Yeom et al. compare the loss with its training mean; here the whole ROC curve is reported.
    """

    name = "population-mia"
    paper = "Yeom et al., CSF 2018, arXiv:1709.01604; Song & Mittal, USENIX Security 2021 (confidence)"
    threat_model = (
        "logits and labels of single rows; some retained rows and rows never trained on; no training"
    )
    access = "logits"
    likelihood = True
    measures = roc_measures("population-mia", "one statistic, population")
    needs = frozenset({"retain", "holdout"})

    statistic: Literal["loss", "confidence", "margin"] = param(
        "loss", "what is measured of a row", source="Yeom et al. 2018; every family has it"
    )

    def spends(self) -> dict[str, float]:  # noqa: D102
        return {"queries per row": 1}

    def run(self, scene: Scene) -> list[Score]:  # noqa: D102
        if self.statistic not in scene.problem.family.quantities:
            raise BadInput(
                f"attack '{self.name}': {scene.problem.family.name} has no '{self.statistic}'; choose statistic: loss"
            )
        evidence: dict[tuple[Role, str], Evidence] = {
            ("model", split): scene.evidence(split, [self.statistic])
            for split in ("forget", "retain", "holdout")
        }
        attacker, asked, matched = inquire(Readings("forget", evidence), "logistic", self.statistic)
        if not len(matched):
            return self.unanswered(
                "undefined", "the other half of the holdout has no row of a forgotten group"
            )
        return roc_scores(self, attacker.decide(asked), attacker.decide(matched))
