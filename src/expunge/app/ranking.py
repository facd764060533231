"""Where the methods of a problem stand, by the rankings of `expunge compare`."""

from __future__ import annotations

from pydantic import Field

from expunge.app.runs import Runs
from expunge.app.views import Ends
from expunge.errors import Missing
from expunge.record import Record
from expunge.studies.comparison import Comparison, compare_scores

RESAMPLES = 300
"""Of the bootstrap: enough for the ends of an interval of ranks, and a page that does not wait."""


class StandingLine(Record):
    """Where one method stands."""

    label: str
    reference: bool = Field(description="retraining: the yardstick, no competitor")
    rank: float = Field(description="by the Borda count, from 1; ties averaged")
    interval: Ends | None = Field(description="of the rank, over resampled seeds")
    first: float | None = Field(description="share of the resamples in which it is alone on rank 1")
    share: float = Field(description="of its comparisons, the share won; a tie is one half")
    kemeny: Ends = Field(description="best and worst rank over all Kemeny orders")
    strength: float | None = Field(description="Plackett and Luce's log-strength; mean 0 over methods")


class RankingView(Record):
    """The methods of a problem, best first."""

    measures: list[str] = Field(description="metric@split of what was ranked on")
    resampled: str = Field(description="what the intervals are over; empty where nothing could be resampled")
    standings: list[StandingLine]
    excluded: dict[str, str] = Field(description="methods that are not ranked, with the reason")
    alike: list[list[str]] = Field(description="methods within the critical difference of one another")
    notes: list[str]


def ranking_view(runs: Runs, run: str, problem: str) -> RankingView:
    """The ranking of a problem of a run.

    Raises:
        Missing: the run has no such problem.
    """
    scores = runs.scores(run)
    if all(p["name"] != problem for p in scores.problems):
        raise Missing(f"run '{run}' has no problem '{problem}'")
    mine = scores.model_copy(
        update={
            "problems": [p for p in scores.problems if p["name"] == problem],
            "judged": [j for j in scores.judged if j.problem == problem],
        }
    )

    def compared(_: object) -> Comparison:
        return compare_scores(mine, resamples=RESAMPLES)

    found = runs.kept(runs.file(run, "scores.json"), compared, f"ranking of {problem}")
    task = found.task
    return RankingView(
        measures=[f"{b.metric}@{b.split}" for b in found.ballots],
        resampled="" if task is None else task.resampled,
        standings=[
            StandingLine(
                label=s.label, reference=s.reference, rank=s.rank, interval=Ends.of(s.interval), first=s.first, share=s.share,
                kemeny=Ends(low=s.kemeny_best, high=s.kemeny_worst), strength=s.strength,
            )
            for s in (task.standings if task is not None else ())
        ],
        excluded=found.excluded,
        alike=[] if task is None else task.alike,
        notes=[*found.notes, *(task.notes if task is not None else ())],
    )  # fmt: skip
