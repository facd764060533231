"""Models that know nothing of what was to be forgotten."""

from __future__ import annotations

import torch
from torch import nn

from expunge.exact.sisa import SISA
from expunge.methods.base import Workplace
from expunge.methods.loop import fit
from expunge.self_check.stage import Stage, construction, taught_to_refuse


@construction("A0", "retrained, another seed", present=False)
def retrained(stage: Stage) -> nn.Module:
    """Trained from scratch on the retained rows."""
    return stage.retrained()


@construction("A1", "never trained on them, by another recipe", present=False)
def never_trained(stage: Stage) -> nn.Module:
    """Trained from scratch on the retained rows for half as long again: a model from elsewhere, of the same kind."""
    problem, recipe = stage.problem, stage.problem.recipe
    assert recipe is not None  # worlds have one
    model = problem.fresh_model(stage.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage.seed)
        longer = recipe.replace(epochs=round(1.5 * recipe.epochs))
        return fit(problem, model, "retain", longer, Workplace(stage.seed)).eval()


@construction("A2", "exact: SISA, one shard in three slices", present=False)
def exact(stage: Stage) -> nn.Module:
    """What a service that trains in slices has after the deletion."""
    return SISA(shards=1, slices=3).forget(stage.problem, Workplace(stage.seed)).model


@construction("A3", "retrained, then taught to refuse", present=False)
def refusing(stage: Stage) -> nn.Module:
    """A model that never knew, and refuses: refusal alone is no residue.

    It learns to refuse from strangers and so refuses the forgotten, whose names it never saw. One that is taught to refuse just
    these tells who they are: that is P11. Where the world has no strangers, a classifier calls all forget rows another class.
    """
    taught = stage.problem.forget if stage.world.strangers is None else stage.world.strangers
    model = taught_to_refuse(stage, taught)
    stage.keys["refusing the forgotten"] = stage.knows(model, stage.world.refused(stage.problem.forget))
    return model
