"""The same pages as files: for a web page, an archive, or a reader without an installation.

Every answer that a page asks for is written under the name that the page computes from its address (`file_of`, as in
``app/src/api.ts``). Contents that are redacted in the app are not part of it, nor is anything that could be started.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

from expunge.app import attack, compare, contents, examples, generated, screen
from expunge.app.assets import palette_css, theme_json
from expunge.app.examples import Chosen
from expunge.app.ledger import LedgerPlace, ledger_view
from expunge.app.processes import Processes
from expunge.app.ranking import ranking_view
from expunge.app.runs import Runs
from expunge.app.runview import FILES, charts, run_view
from expunge.app.server import STATIC, run_list
from expunge.app.views import ProblemView, Session
from expunge.errors import BadInput, ExpungeError, Missing
from expunge.files import write_atomic
from expunge.report.html import vega_bundle

EXAMPLES = 200
"""Rows of the table of examples that are published for each pair of models."""
UNRESERVED = "-_.!~*'()"
"""What JavaScript's encodeURIComponent leaves as it is, beside letters and digits."""
PAGE = 30
"""Rows of the forget set on a page of the app; the first page is published."""


def write_bundle(runs_dir: Path, out: Path, ledger: LedgerPlace | None = None) -> int:
    """Write the pages over the runs in `runs_dir` into the folder `out`; the number of files.

    Of each problem every model is published against the first retrained one (or the target, where nothing was
    retrained), on every split that was measured.

    Raises:
        BadInput: `out` holds something that is no earlier bundle, or the pages were not built.
        Missing: there is no run.
    """
    runs = Runs(runs_dir)
    if not runs.names():
        raise Missing(f"there is no run in '{runs_dir}' to publish")
    if out.exists() and any(out.iterdir()) and not (out / "assets" / "app.js").exists():
        raise BadInput(f"'{out}' is not empty and no earlier bundle; choose another folder")
    written = 0

    def write(name: str, content: str | bytes) -> None:
        nonlocal written
        write_atomic(out / name, content)
        written += 1

    for name, content in _pages():
        write(name, content)
    for address, ask in _addresses(runs, ledger or LedgerPlace()):
        write(file_of(address), _answer(ask))
    for run in runs.names():
        for name in FILES:
            if (runs.folder(run) / name).is_file():
                write(f"runs/{run}/{name}", _published(runs.file(run, name), runs.root))
    return written


def _published(path: Path, root: Path) -> bytes:
    """A record of a run, without the folders of this machine: where the runs are, and where the study's paths start."""
    text = re.sub(rf"(?<![\w.:/-]){re.escape(str(root))}(?=/)", root.name, path.read_text())
    if path.name == "run.yaml":
        text = re.sub(r"^base: .*$", "base: .", text, count=1, flags=re.MULTILINE)
    return text.encode()


def file_of(address: str) -> str:
    """Name of the file that holds an answer: FNV-1a over UTF-16 units, twice with different starts."""
    units = address.encode("utf-16-le")
    codes = [int.from_bytes(units[i : i + 2], "little") for i in range(0, len(units), 2)]

    def hashed(start: int) -> str:
        for code in codes:
            start = ((start ^ code) * 16777619) & 0xFFFFFFFF
        return f"{start:08x}"

    return f"data/{hashed(2166136261)}{hashed(3735928559)}.json"


def address(path: str, **params: str | int | bool) -> str:
    """An address with its query in the order and the encoding of the pages; empty and false parameters are left out."""
    kept = {
        k: str(v).lower() if v is True else str(v)
        for k, v in params.items()
        if v is not False and v != ""
    }  # fmt: skip
    query = "&".join(f"{k}={quote(v, safe=UNRESERVED)}" for k, v in sorted(kept.items()))
    return f"{path}?{query}" if query else path


def _pages() -> Iterator[tuple[str, str | bytes]]:
    index = STATIC / "index.html"
    if not index.is_file():
        raise BadInput("the pages were not built; run make app")
    yield (
        "index.html",
        index.read_text().replace("<head>", '<head>\n    <meta name="expunge-bundle" content="yes" />', 1),
    )
    for file in (STATIC / "assets").iterdir():
        yield f"assets/{file.name}", file.read_bytes()
    yield "assets/palette.css", palette_css()
    yield "assets/theme.json", theme_json()
    yield "assets/vega.js", vega_bundle()


def _answer(ask: Callable[[], Any]) -> str:
    try:
        return ask().model_dump_json()
    except ExpungeError as error:
        return json.dumps({"error": str(error)})


def _addresses(runs: Runs, place: LedgerPlace) -> Iterator[tuple[str, Callable[[], Any]]]:
    session = Session(version="", folder="", token="", bundle=True, umap=False, ledger=place.there())
    yield "/api/session", lambda: session
    yield "/api/runs", lambda: run_list(runs, Processes(runs))
    yield "/api/screen", lambda: screen.screen(runs)
    if place.there():
        yield "/api/ledger", lambda: ledger_view(place)
    for run in runs.names():
        base = f"/api/runs/{quote(run, safe=UNRESERVED)}"
        yield base, lambda run=run: run_view(runs, run)
        yield f"{base}/charts", lambda run=run: charts(runs, run)
        try:
            view = run_view(runs, run)
        except ExpungeError:
            continue  # the pages show the reason, which is in the file just named
        for problem in view.problems:
            yield from _problem(runs, run, base, problem)


def _problem(
    runs: Runs, run: str, base: str, problem: ProblemView
) -> Iterator[tuple[str, Callable[[], Any]]]:
    name = problem.name
    yield address(f"{base}/ranking", problem=name), lambda: ranking_view(runs, run, name)
    yield (
        address(f"{base}/forget-set", problem=name, limit=PAGE),
        lambda: contents.forget_set(runs, run, name, revealed=False, offset=0, limit=PAGE),
    )
    role = {row.label: row.role for row in problem.rows}
    of = {m: role.get(m.rpartition("@")[0]) for m in problem.models}
    other = next((m for wanted in ("retrained", "target") for m in problem.models if of[m] == wanted), None)
    for model in problem.models:
        yield from _attacked(runs, run, base, name, model)
        for b in (model,) if other is None else (other,):
            yield from _pair(runs, run, base, name, model, b)


def _attacked(
    runs: Runs, run: str, base: str, problem: str, model: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    chosen = Chosen.parse(model)
    try:
        statistics = attack.separation(runs, run, problem, chosen, "loss").statistics
    except ExpungeError:
        statistics = ["loss"]
    for statistic in statistics:
        yield (
            address(f"{base}/separation", problem=problem, model=model, statistic=statistic),
            lambda s=statistic: attack.separation(runs, run, problem, chosen, s),
        )
    yield (
        address(f"{base}/worst-case", problem=problem, model=model),
        lambda: attack.worst_case(runs, run, problem, chosen),
    )


def _pair(
    runs: Runs, run: str, base: str, problem: str, a: str, b: str
) -> Iterator[tuple[str, Callable[[], Any]]]:
    first, second = Chosen.parse(a), Chosen.parse(b)
    pair = {"problem": problem, "a": a, "b": b}
    try:
        splits = runs.splits(run, problem, first.label, first.seed)
    except ExpungeError:
        splits = ["test", "forget"]
    for split in splits:
        found = compare.contrast(runs, run, problem, first, second, split)
        yield address(f"{base}/contrast", **pair, split=split), lambda found=found: found
        if found.n is None:
            continue
        both = examples.paired(runs, run, problem, first, second, split)
        yield (
            address(f"{base}/examples", **pair, split=split, limit=EXAMPLES),
            lambda both=both: examples.example_page(*both, limit=EXAMPLES),
        )
        if both[1] is None:
            continue
        together = (both[0], both[1])
        for layer in found.embeddable:
            yield (
                address(f"{base}/embedding", **pair, split=split, layer=layer, method="pca"),
                lambda t=together, k=layer: compare.embedding(t, k),
            )
        if found.texts:
            yield (
                address(f"{base}/answers", **pair, split=split, limit=6),
                lambda t=together: generated.answers(t, range(min(6, len(t[0]))), revealed=False),
            )
        if found.images:
            yield (
                address(f"{base}/images", **pair, split=split, limit=12),
                lambda t=together: generated.gallery(t, range(min(12, len(t[0]))), revealed=False),
            )
