"""How much faster a study is with two workers than with one: worker processes, and Ray where it is installed.

Both runs start cold and compute the same jobs; starting workers (imports, the Ray cluster) is part of the time, as it is
for a user. Give a larger number of seeds for a longer study: python benchmarks/runners.py 6
"""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, Literal

from expunge.studies.runners import Runner
from expunge.studies.study import run_study


def seconds(name: Literal["local", "ray"], workers: int, seeds: int) -> float:
    study: dict[str, Any] = {
        "name": "runners",
        "problems": [{"benchmark": "digits"}],
        "methods": ["retrain", "fine-tune", "scrub", "salun"],
        "seeds": list(range(seeds)),
    }
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        runner = Runner(name=name, memory=0.5)
        finished = run_study(study, Path(folder), workers=workers, runner=runner, display="none")
        taken = time.perf_counter() - started
    if finished.outcome.failed:
        raise SystemExit(f"{name}: {next(iter(finished.outcome.failed.values()))}")
    return taken


def main() -> None:
    seeds = int(sys.argv[1]) if len(sys.argv) > 1 else 4
    kinds: list[Literal["local", "ray"]] = ["local"]
    if importlib.util.find_spec("ray") is not None:
        kinds.append("ray")
    for kind in kinds:
        one, two = seconds(kind, 1, seeds), seconds(kind, 2, seeds)
        print(
            f"{kind:<6} speed-up from one to two workers {one / two:5.2f}   one {one:6.1f} s   two {two:6.1f} s"
            f"   (at most 2; {os.cpu_count()} processors here)"
        )


if __name__ == "__main__":
    main()
