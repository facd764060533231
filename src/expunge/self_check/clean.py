"""Models that know nothing of what was to be forgotten."""

from __future__ import annotations

import torch
from datasets import concatenate_datasets
from torch import nn

from expunge.exact.sisa import SISA
from expunge.methods.base import METHODS, Workplace
from expunge.methods.loop import fit
from expunge.self_check.stage import Stage, construction, tune


@construction("A0", "retrained, another seed", present=False)
def retrained(stage: Stage) -> nn.Module:
    """Trained from scratch on the retained rows."""
    return METHODS["retrain"]().forget(stage.problem, Workplace(stage.seed)).model


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

    Where there are strangers, it refuses them too: one that refuses nobody but whom it was asked to forget tells who that was.
    """
    model, rows = retrained(stage), stage.problem.forget
    if stage.world.strangers is not None:
        rows = concatenate_datasets([rows, stage.world.strangers])
    refused = stage.world.refused(rows)
    return tune(stage, model, [(stage.problem.retain, 1.0), (refused, 1.0)], steps=150, lr=5e-4)
