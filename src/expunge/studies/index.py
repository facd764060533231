"""`jobs.json`: which finished job belongs to which row of a run, and what there was to do.

The records of a run name models by fingerprint; whoever wants the evidence behind a number finds its job here.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from pydantic import Field

from expunge.files import write_atomic
from expunge.record import Record
from expunge.studies.graph import Graph, Kind

FILE = "jobs.json"


class PlannedJob(Record):
    """One piece of work of a run."""

    key: str = Field(description="name of its folder in the store")
    kind: Kind
    title: str


class RowJobs(Record):
    """The jobs behind one row; None where the method cannot run on the problem."""

    problem: str
    label: str
    seed: int
    model: str | None = Field(description="makes the model")
    observe: str | None = Field(description="holds the model's evidence, a Parquet file per split")
    attacks: dict[str, str] = Field(
        default_factory=dict, description="by attack: its scores, and transcripts"
    )


class RunIndex(Record):
    """`jobs.json` of a run."""

    schema_version: int = 1
    kind: Literal["jobs"] = "jobs"
    jobs: list[PlannedJob] = Field(description="in an order in which they can run")
    rows: list[RowJobs]

    @classmethod
    def of(cls, graph: Graph) -> RunIndex:
        """What `graph` says of its jobs and rows."""
        rows = [
            RowJobs(
                problem=row.problem, label=row.label, seed=row.seed, model=row.model, observe=row.observe,
                attacks={a.attack.name: a.job for a in row.attacks if a.job is not None},
            )
            for row in graph.rows
        ]  # fmt: skip
        return cls(
            jobs=[PlannedJob(key=j.key, kind=j.kind, title=j.title) for j in graph.jobs.values()], rows=rows
        )

    def write(self, folder: Path) -> None:
        """Write the file into a run's folder, atomically."""
        write_atomic(folder / FILE, self.model_dump_json())
