"""Run a study: plan, compute what is missing, judge."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from expunge.errors import BadInput, did_you_mean
from expunge.files import write_atomic
from expunge.record import ScoreFile
from expunge.studies.graph import build_graph
from expunge.studies.index import RunIndex
from expunge.studies.jobs import Store
from expunge.studies.progress import Display, RunProgress
from expunge.studies.results import score_file
from expunge.studies.runner import Outcome, run_graph
from expunge.studies.runners import Runner
from expunge.studies.samples import ImageSamples, LossSamples, image_samples, loss_samples
from expunge.studies.spec import StudySpec, override, read_spec
from expunge.studies.time_to_result import TimeTable, time_to_result
from expunge.studies.tuning import Budget, Tuning, tune, with_found


@dataclass(frozen=True)
class Finished:
    """A finished run."""

    folder: Path
    scores: ScoreFile
    outcome: Outcome
    losses: LossSamples
    images: ImageSamples
    seconds: float
    tuning: Tuning | None = None
    """Every trial, where the study was tuned."""
    times: TimeTable | None = None
    """How long methods take to come near retraining, where the study was tuned."""


def embedded_studies() -> dict[str, Path]:
    """The studies that come with the package, by name."""
    return {path.stem: path for path in sorted((Path(__file__).parent / "embedded").glob("*.yaml"))}


def load_study(
    study: StudySpec | dict[str, Any] | Path | str, assignments: Sequence[str] = ()
) -> tuple[StudySpec, dict[str, Any], Path]:
    """A study from an object, plain data, a file or the name of an embedded one.

    Returns the study, what was passed, and the folder that its relative paths start from.
    """
    if isinstance(study, StudySpec):
        return study, study.model_dump(mode="json", exclude_unset=True), Path.cwd()
    if isinstance(study, dict):
        content, base = override(study, assignments), Path.cwd()
    else:
        embedded = embedded_studies()
        path = embedded.get(str(study), Path(study))
        if not path.is_file():
            raise BadInput(
                f"no study '{study}': it is neither a file nor embedded{did_you_mean(str(study), embedded)}"
            )
        # The paths that somebody gives to an embedded study are not meant to lie inside the package.
        base = Path.cwd() if path in embedded.values() else path.parent.resolve()
        content = {"name": path.stem, **read_spec(path)}
        if "effective" in content:  # the run.yaml of an earlier run: the same study again
            content, base = content["effective"], Path(content["base"])
        content = override(content, assignments)
    return StudySpec(**content), content, base


def run_study(
    study: StudySpec | dict[str, Any] | Path | str,
    runs: Path | str = "runs",
    *,
    workers: int | None = None,
    runner: Runner | None = None,
    budget: Budget | None = None,
    display: Display = "auto",
    assignments: Sequence[str] = (),
    notice: Callable[[str], None] | None = None,
) -> Finished:
    """Run `study` and write ``runs/<name>``; what is complete already is not computed again.

    Args:
        study: a `StudySpec`, plain data, or the path of a YAML, TOML or JSON file.
        runs: folder of all runs; finished jobs are shared between them in ``runs/store``.
        workers: jobs at a time. Here, None means one worker process per core, and 0 runs everything in this process.
        runner: where the jobs run; default: on this machine.
        budget: tune every method with this budget first (`expunge.studies.tuning`); the table then has each method as
            given and as tuned, in the folder ``runs/<name>-tuned`` beside ``tuning.json`` and ``time-to-result.json``.
        display: how progress is shown.
        assignments: ``key.subkey=value`` changes to the study.
        notice: called with a sentence when code named in the study is about to be imported.
    """
    started = time.perf_counter()
    spec, passed, base = load_study(study, assignments)
    say = notice or (lambda _: None)
    for reference in spec.imports():
        say(f"importing {reference}, which runs its code")
    graph = build_graph(spec, base, say)
    name = spec.name if budget is None else f"{spec.name}-tuned"
    folder, store = Path(runs) / name, Store(Path(runs) / "store")
    executor = (runner or Runner()).executor(store, workers)
    _refuse_other_study(folder, name)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomic(folder / "run.yaml", as_yaml(passed, spec, base))
    tuning = None
    with executor:
        if budget is not None:
            tuning = tune(spec, base, budget, store, executor, folder, display=display, notice=say)
            graph = with_found(spec, tuning, base, say)
        RunIndex.of(graph).write(folder)
        missing = sum(not store.has(key) for key in graph.jobs)
        with RunProgress(missing, folder / "log.jsonl", display) as progress:
            outcome = run_graph(graph, store, executor, progress)
    scores = score_file(name, graph, store, outcome.failed, spec.threads)
    scores.write(folder / "scores.json")
    times = None
    if tuning is not None:
        times = time_to_result(scores)
        write_atomic(folder / "time-to-result.json", times.model_dump_json(indent=1))
    losses, images = loss_samples(graph, store), image_samples(graph, store)
    return Finished(folder, scores, outcome, losses, images, time.perf_counter() - started, tuning, times)


def as_yaml(passed: dict[str, Any], spec: StudySpec, base: Path) -> str:
    """The study as passed and as in effect."""
    both = {"base": str(base), "passed": passed, "effective": spec.model_dump(mode="json")}
    return yaml.safe_dump(_plain(both), sort_keys=False, allow_unicode=True)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    return str(value) if isinstance(value, Path) else value


def _refuse_other_study(folder: Path, name: str) -> None:
    """A folder that holds something else than a run is not overwritten."""
    if folder.is_dir() and any(folder.iterdir()) and not (folder / "run.yaml").exists():
        raise BadInput(
            f"'{folder}' exists and is no run; choose another name than '{name}' or another --runs folder"
        )
