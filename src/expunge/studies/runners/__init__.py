"""Where the jobs of a study run: worker processes here, a Ray cluster, a Slurm cluster."""

from __future__ import annotations

import os
from typing import Any, Literal

from pydantic import Field, model_validator

from expunge.errors import BadInput
from expunge.parameters import Parameters
from expunge.studies.jobs import Store
from expunge.studies.runner import Executor


class Runner(Parameters):
    """Where jobs run and what each may use. The results are the same everywhere."""

    title = "runner"

    name: Literal["local", "ray", "slurm"] = Field(default="local", description="kind of runner")
    memory: float = Field(default=1.0, gt=0, description="GiB that a job declares to a cluster")
    retries: int = Field(
        default=1, ge=0, description="how often a job whose process or machine died is tried again"
    )
    ray_address: str | None = Field(
        default=None,
        description="a Ray cluster that exists already: host:port, or auto; default: start one here",
    )
    slurm: dict[str, Any] = Field(
        default_factory=dict, description="options for submitit, such as {partition: gpu, timeout_min: 240}"
    )

    @model_validator(mode="after")
    def _fitting(self) -> Runner:
        for option, owner in (("ray_address", "ray"), ("slurm", "slurm")):
            if getattr(self, option) and self.name != owner:
                flag = "--" + option.replace("_", "-")
                raise BadInput(f"{flag} belongs to --runner {owner}, not to --runner {self.name}")
        return self

    def executor(self, store: Store, workers: int | None) -> Executor:
        """The executor, of which `workers` jobs run at a time at most; None is a default that fits the kind."""
        if workers == 0 and self.name != "local":
            raise BadInput(f"--workers 0 runs jobs in this process; --runner {self.name} needs at least 1")
        if self.name == "ray":
            from expunge.studies.runners.ray import RayTasks

            return RayTasks(store, self.ray_address, workers, int(self.memory * (1 << 30)), self.retries)
        if self.name == "slurm":
            from expunge.studies.runners.slurm import SlurmJobs

            return SlurmJobs(store, self.slurm, workers, self.memory, self.retries)
        from expunge.studies.runners.local import InProcess, Pool

        return InProcess(store) if workers == 0 else Pool(store, workers or os.cpu_count() or 1, self.retries)
