"""`expunge compare`: several runs in one table, and which method is better."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, print_json, print_scores, print_table
from expunge.errors import BadInput
from expunge.record import Judged, ScoreFile

if TYPE_CHECKING:
    from collections.abc import Sequence

    from expunge.studies.comparison import Comparison, Floor, Front
    from expunge.studies.probe_difficulty import Difficulty
    from expunge.studies.spread import Variance
    from expunge.studies.standings import Ranking

Score = "METRIC@SPLIT"


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Run folders or scores.json files.")],
    metric: Annotated[
        list[str] | None,
        typer.Option(
            metavar=Score, help="Rank on this score; may be repeated, or 'all'. Default: a balanced set."
        ),
    ] = None,
    floor: Annotated[
        list[str] | None,
        typer.Option(
            metavar=f"{Score}=VALUE",
            help="Do not rank methods that miss this, such as accuracy@test=0.8; may be repeated.",
        ),
    ] = None,
    objective: Annotated[
        list[str] | None,
        typer.Option(
            metavar=Score,
            help="An axis of the Pareto front; give two or more. Default: forgetting and utility.",
        ),
    ] = None,
    variance: Annotated[
        bool,
        typer.Option(
            "--variance",
            help="How much of the spread between runs is the data, the initialization, the order.",
        ),
    ] = False,
    items: Annotated[
        bool,
        typer.Option(
            "--items",
            help="How hard each probe is to retrained models, and what methods answer at equal difficulty.",
        ),
    ] = False,
    resamples: Annotated[int, typer.Option(min=100, max=100_000, help="Of the bootstrap.")] = 1000,
    out: Annotated[
        Path | None, typer.Option(help="Folder to write comparison.html and comparison.json to.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare methods across runs: one table per problem, rankings with uncertainty, Pareto front, sensitivity.

    Rows about the same problem (same data, split, model and recipe) stand in one table. Runs need not have the same methods.
    """
    from expunge.files import write_atomic
    from expunge.studies.comparison import ComparedScores, chosen_scores, compare_scores, ranked_metrics
    from expunge.studies.instances import instance_tables
    from expunge.studies.probe_difficulty import difficulties
    from expunge.studies.spread import variances

    floors = [_floor(text) for text in floor or []]
    merged = merge([read_run(path) for path in runs])
    stores = list(dict.fromkeys(run.parent / "store" for run in runs if run.is_dir()))
    metrics = "all" if metric == ["all"] else ranked_metrics(metric) if metric else None
    comparison = compare_scores(
        merged,
        metrics=metrics,
        floors=floors,
        objectives=ranked_metrics(objective or []),
        instances=instance_tables(merged, stores),
        resamples=resamples,
    )
    if variance:
        comparison.variance = variances(merged, chosen_scores(merged, metrics))
    if items:
        comparison.difficulty = difficulties(merged, stores)
    found = ComparedScores(**dict(merged), comparison=comparison)
    if out is not None:
        from expunge.report.comparison import render_comparison

        page = render_comparison(merged.name, comparison)
        write_atomic(out / "comparison.json", comparison.model_dump_json(indent=1))
        write_atomic(out / "comparison.html", page)
    if json:
        print_json(found)
        return
    print_scores(merged)
    print_comparison(comparison)
    if out is not None:
        sys.stdout.write(f"report: {out / 'comparison.html'}\n")


def read_run(path: Path) -> ScoreFile:
    """The scores of a run folder or file."""
    file = path / "scores.json" if path.is_dir() else path
    if not file.exists():
        raise BadInput(f"'{path}' is no finished run: there is no '{file}'")
    return ScoreFile.read(file)


def merge(files: list[ScoreFile]) -> ScoreFile:
    """One table: problems with equal fingerprints are one problem, equal models are shown once."""
    from expunge.studies.results import complete

    names: dict[str, str] = {}
    problems, judged, seen = [], [], set()
    for file in files:
        for problem in file.problems:
            if problem["fingerprint"] not in names:
                name = problem["name"]
                if name in names.values():
                    name = f"{name} ({file.name})"
                names[problem["fingerprint"]] = name
                problems.append({**problem, "name": name})
        for one in file.judged:
            identity = (one.problem_id, one.model_id or one.label, one.label, one.seed, one.init)
            if identity not in seen:
                seen.add(identity)
                judged.append(_raw(one, names[one.problem_id]))
    return complete(" + ".join(f.name for f in files), problems, judged)


def _raw(judged: Judged, problem: str) -> Judged:
    """Without what is derived from the other models of its run."""
    derived = ("average-gap", "tow")
    scores = [
        s.model_copy(update={"reference": None})
        for s in judged.scores
        if s.metric not in derived and not s.metric.endswith("-ratio")
    ]
    return judged.model_copy(update={"problem": problem, "scores": scores})


def _floor(text: str) -> Floor:
    from expunge.studies.comparison import Floor, ranked_metrics

    name, equals, value = text.partition("=")
    ((metric, split),) = ranked_metrics([name])
    try:
        return Floor(metric, split, float(value if equals else "none"))
    except ValueError:
        raise BadInput(f"--floor '{text}' has no number; write it as accuracy@test=0.8") from None


def print_comparison(found: Comparison) -> None:
    """The rankings, the Pareto fronts and what they hang on, as tables."""
    for ranking, title in ((found.task, "Ranking by metric"), (found.instance, "Ranking by example")):
        if ranking is not None:
            _print_ranking(ranking, title)
    for front in found.fronts:
        _print_front(front)
    for name in dict.fromkeys(", ".join(v.problems) for v in found.variance):
        _print_variance(name, [v for v in found.variance if ", ".join(v.problems) == name])
    for difficulty in found.difficulty:
        _print_difficulty(difficulty)
    changed = [w for w in found.without if w.moved]
    if found.without:
        taus = ["undefined" if w.tau is None else f"{w.tau:.2f}" for w in changed]
        rows = [[w.metric, tau, ", ".join(w.leaders)] for w, tau in zip(changed, taus, strict=True)]
        if rows:
            print_table(["without", "tau", "then first"], rows, "Which metric the ranking hangs on")
        else:
            sys.stdout.write("The ranking stays as it is without any one of the metrics.\n")
    lines = [f"{label} is not ranked: {reason}" for label, reason in found.excluded.items()]
    for line in [*lines, *found.notes]:
        sys.stdout.write(f"  {line}\n")


def _print_ranking(ranking: Ranking, title: str) -> None:
    rows = [
        [
            f"{s.label} (reference)" if s.reference else s.label,
            f"{s.rank:g}",
            "" if s.interval is None else f"{s.interval.low:.3g}–{s.interval.high:.3g}",
            "" if s.first is None else f"{s.first:.2f}",
            f"{s.share:.2f}",
            f"{s.kemeny_best}" if s.kemeny_best == s.kemeny_worst else f"{s.kemeny_best}–{s.kemeny_worst}",
            "" if s.strength is None else f"{s.strength:+.2f}",
            str(s.ballots),
        ]
        for s in ranking.standings
    ]
    columns = ["method", "rank", "95 %", "P(first)", "won", "Kemeny", "strength", "ballots"]
    print_table(columns, rows, f"{title}: {ranking.ballots} ballots")
    said = [
        f"intervals over {ranking.resampled}" if ranking.resampled else "one seed: ranks have no interval"
    ]
    if ranking.kemeny_optima is not None and ranking.kemeny_optima > 1:
        said.append(f"{ranking.kemeny_optima} Kemeny orders are equally good")
    if ranking.critical_difference is not None and ranking.friedman_p is not None:
        said.append(
            f"average ranks nearer than {ranking.critical_difference:.2f} are not told apart "
            f"(Friedman p = {ranking.friedman_p:.2g} on {ranking.complete} complete ballots)"
        )
    disagree = [f"{k} {v:.2f}" for k, v in ranking.agreement.items() if v is not None and v < 1 - 1e-9]
    if disagree:
        said.append("the ways of ranking disagree, Kendall's tau: " + ", ".join(disagree))
    for line in [*said, *ranking.notes]:
        sys.stdout.write(f"  {line}\n")
    sys.stdout.write("\n")


def _print_front(front: Front) -> None:
    rows = [
        [
            label,
            *(f"{v:.3g}" for v in point),
            "yes" if label in front.front else "no",
            _share(front.probability.get(label)),
        ]
        for label, point in front.points.items()
    ]
    arrows = [
        f"{n} {'↑' if d == 'higher' else '↓'}"
        for n, d in zip(front.objectives, front.directions, strict=True)
    ]
    print_table(["method", *arrows, "on the front", "P(front)"], rows, f"{front.problem}: Pareto front")
    sys.stdout.write("\n")


def _print_variance(problems: str, found: Sequence[Variance]) -> None:
    factors = list(dict.fromkeys(p.factor for v in found for p in v.parts if p.deviation is not None))
    rows = []
    for v in found:
        shares = {p.factor: p.share for p in v.parts if p.deviation is not None}
        rows.append(
            [
                v.label, f"{v.metric}@{v.split}", str(v.runs), f"{v.mean:.4g}",
                "" if v.deviation is None else f"{v.deviation:.2g}",
                "" if v.interval is None else f"{v.interval.low:.2g}–{v.interval.high:.2g}",
                "" if v.examples is None else f"{v.examples:.2g}",
                *("" if (s := shares.get(f)) is None else f"{s:.0%}" for f in factors),
            ]
        )  # fmt: skip
    columns = ["method", "score", "runs", "mean", "sd of runs", "95 %", "se of examples", *factors]
    print_table(columns, rows, f"{problems}: where the spread comes from")
    reasons = dict.fromkeys(f"{p.factor}: {p.reason}" for v in found for p in v.parts if p.reason)
    for line in reasons:
        sys.stdout.write(f"  {line}\n")
    sys.stdout.write("\n")


def _print_difficulty(found: Difficulty) -> None:
    if found.reason:
        sys.stdout.write(f"{found.problem}: no difficulty of probes; {found.reason}\n\n")
        return
    labels = list(dict.fromkeys(label for s in found.strata for label in s.right))
    rows = [
        [
            f"{s.split}, {s.name}",
            str(s.n),
            f"{s.low:+.2f} to {s.high:+.2f}",
            *(_share(s.right.get(label)) for label in labels),
        ]
        for s in found.strata
    ]
    title = f"{found.problem}: share right by difficulty ({found.model} model of {found.respondents} retrained models)"
    print_table(["probes", "n", "difficulty", *labels], rows, title)
    sys.stdout.write("\n")
    over = "" if found.clusters is None else f"; intervals over {found.clusters} groups"
    rows = [
        [
            m.label,
            str(m.n),
            f"{m.difference:+.3f}",
            "" if m.excess is None else f"{m.excess:+.3f}",
            "" if m.interval is None else f"{m.interval.low:+.3f} to {m.interval.high:+.3f}",
            "" if m.p_value is None else f"{m.p_value:.2g}",
        ]
        for m in found.matched
    ]
    title = f"{found.problem}: forget probes minus {found.control} probes of equal difficulty{over}"
    print_table(["method", "probes", "difference", "minus retrained", "95 %", "p"], rows, title)
    if found.unmatched:
        sys.stdout.write(
            f"  {found.unmatched} forget probes have no {found.control} probe of equal difficulty\n"
        )
    sys.stdout.write("\n")


def _share(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"
