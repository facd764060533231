"""The app's server: the pages, what they ask for, and the few things that they can start."""

from __future__ import annotations

import importlib.util
import io
import ipaddress
import socket
import threading
from collections.abc import Callable, Collection
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any, Literal

import pyarrow as pa
import pyarrow.csv as arrow_csv
import pyarrow.parquet as pq
from fastapi import FastAPI, Query, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import FileResponse, JSONResponse
from starlette.exceptions import HTTPException

from expunge.app import attack, compare, contents, examples, generated, screen
from expunge.app.assets import palette_css, theme_json
from expunge.app.catalog import Catalog, catalog
from expunge.app.examples import Chosen
from expunge.app.gate import DOCUMENT_POLICY, Gate
from expunge.app.ledger import LedgerPlace, LedgerView, ledger_view
from expunge.app.processes import Processes, Progress
from expunge.app.ranking import RankingView, ranking_view
from expunge.app.runs import Runs
from expunge.app.runview import FILES, charts, plan_view, run_view
from expunge.app.views import (
    Charts,
    ErrorView,
    PlanView,
    RunLine,
    RunList,
    RunView,
    Session,
    Start,
    StartedRun,
    seconds_ago,
)
from expunge.errors import BadInput, ExpungeError, Missing
from expunge.report.html import vega_bundle

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
STATIC = files("expunge.app") / "static"
TYPES = {
    ".yaml": "text/plain; charset=utf-8",
    ".jsonl": "text/plain; charset=utf-8",
    ".json": "application/json",
}
Model = Annotated[str, Query(description="label@seed", max_length=400)]
Limit = Annotated[int, Query(ge=1, le=1000)]
Offset = Annotated[int, Query(ge=0)]


def hosts_for(port: int, host: str = "127.0.0.1") -> set[str]:
    """What browsers may call a server on this machine."""
    named = f"[{host}]" if ":" in host else host
    return {f"{name}:{port}" for name in {*LOOPBACK, named}}


def create_app(
    runs_dir: Runs | Path | str,
    *,
    hosts: Collection[str] = (),
    token: str | None = None,
    ledger: LedgerPlace | None = None,
) -> FastAPI:
    """The app over a folder of runs.

    Args:
        runs_dir: the folder; nothing outside it is ever served.
        hosts: values of the Host header that are answered; default: this machine at port 8642.
        token: what changes must carry; default: a new one.
        ledger: where a deletion ledger is; default: where ``expunge ledger`` puts it.
    """
    runs, place = runs_dir if isinstance(runs_dir, Runs) else Runs(Path(runs_dir)), ledger or LedgerPlace()
    gate = Gate(hosts or hosts_for(8642), token)
    app = FastAPI(title="expunge", version=_version(), docs_url=None, redoc_url=None, openapi_url=None)
    app.middleware("http")(gate)
    _errors(app)
    _pages(app)
    _runs(app, runs, gate, place)
    _models(app, runs)
    _files(app, runs)
    _studies(app, runs)
    return app


def serve(
    runs_dir: Path, host: str, port: int, announce: Callable[[str], None] = lambda _: None, ledger: LedgerPlace | None = None
) -> None:  # fmt: skip
    """Serve until interrupted; `announce` is told the address once it answers. Port 0 takes any that is free."""
    import uvicorn

    catalog()  # imports every method, metric and attack now, and not when the first page asks
    vega_bundle()
    runs = Runs(runs_dir)
    threading.Thread(target=screen.read_ahead, args=(runs,), daemon=True).start()
    listening = socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    with listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(
            create_app(runs, hosts=hosts_for(port, host), ledger=ledger), access_log=False, server_header=False,
            log_level="warning", h11_max_incomplete_event_size=65_536,
        )  # fmt: skip
        announce(f"http://{f'[{host}]' if ':' in host else host}:{port}/")
        uvicorn.Server(config).run(sockets=[listening])


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server there."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _version() -> str:
    try:
        return version("expunge")
    except PackageNotFoundError:
        return "unknown"


def _errors(app: FastAPI) -> None:
    @app.exception_handler(ExpungeError)
    def _ours(_: Request, error: ExpungeError) -> JSONResponse:
        status = 404 if isinstance(error, Missing) else 400 if isinstance(error, BadInput) else 500
        return JSONResponse({"error": str(error)}, status)

    @app.exception_handler(RequestValidationError)
    def _invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        said = "; ".join(f"'{'.'.join(map(str, e['loc'][1:]))}' {e['msg']}" for e in error.errors())
        return JSONResponse({"error": said[:600]}, 422)

    @app.exception_handler(HTTPException)
    def _plain(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": str(error.detail)}, error.status_code)


def _json(made: Any) -> Response:
    """A record as it is: records refuse NaN, so none can come out."""
    return Response(made.model_dump_json(), media_type="application/json")


def _pages(app: FastAPI) -> None:
    @app.get("/", include_in_schema=False)
    def _index() -> Response:
        return _static("index.html")

    @app.get("/assets/{name}", include_in_schema=False)
    def _asset(name: str) -> Response:
        match name:
            case "palette.css":
                return Response(palette_css(), media_type="text/css")
            case "vega.js":
                return Response(
                    vega_bundle(), media_type="text/javascript", headers={"Cache-Control": "max-age=3600"}
                )
            case "theme.json":
                return Response(theme_json(), media_type="application/json")
        return _static(f"assets/{name}")


def _static(name: str) -> Response:
    known = (
        {f"assets/{f.name}" for f in (STATIC / "assets").iterdir()} if (STATIC / "assets").is_dir() else set()
    )
    if name != "index.html" and name not in known:
        raise HTTPException(404, "there is no such page")
    path = STATIC / name
    if not path.is_file():
        raise HTTPException(404, "the pages were not built; run make app")
    kinds = {
        "html": "text/html; charset=utf-8",
        "js": "text/javascript",
        "css": "text/css",
        "svg": "image/svg+xml",
    }
    return Response(
        path.read_bytes(), media_type=kinds.get(name.rpartition(".")[2], "application/octet-stream")
    )


def _runs(app: FastAPI, runs: Runs, gate: Gate, place: LedgerPlace) -> None:
    processes = Processes(runs)

    @app.get("/api/session", response_model=Session)
    def _session() -> Session:
        return Session(
            version=_version(), folder=runs.root.name, token=gate.token, bundle=False,
            umap=importlib.util.find_spec("umap") is not None, ledger=place.there(),
        )  # fmt: skip

    @app.get("/api/runs", response_model=RunList)
    def _list() -> Response:
        return _json(run_list(runs, processes))

    @app.get("/api/screen", response_model=screen.Screen)
    def _screen() -> Response:
        return Response(screen.screen_json(runs), media_type="application/json")

    @app.get("/api/runs/{run}", response_model=RunView)
    def _run(run: str) -> Response:
        return _json(run_view(runs, run))

    @app.get("/api/runs/{run}/charts", response_model=Charts)
    def _charts(run: str) -> Response:
        return _json(charts(runs, run))

    @app.get("/api/runs/{run}/ranking", response_model=RankingView)
    def _ranking(run: str, problem: str) -> Response:
        return _json(ranking_view(runs, run, problem))

    @app.get("/api/runs/{run}/progress", response_model=Progress)
    def _progress(run: str) -> Response:
        return _json(processes.progress(run))

    @app.get("/api/ledger", response_model=LedgerView)
    def _ledger() -> Response:
        return _json(ledger_view(place))

    @app.get("/api/catalog", response_model=Catalog)
    def _catalog() -> Response:
        return _json(catalog())


def run_list(runs: Runs, processes: Processes) -> RunList:
    """Every run with its state; a run that was just started may have no folder yet."""
    lines = []
    names = runs.names()
    for name in [*(n for n in processes.started_here() if n not in names), *names]:
        state, controlled = processes.state(name)
        folder = runs.root / name
        marker = next((p for p in (folder / "scores.json", folder / "run.yaml") if p.exists()), None)
        at = (marker or runs.root).stat().st_mtime
        lines.append(
            RunLine(
                name=name,
                state=state,
                controlled=controlled,
                modified=f"{at:.0f}",
                seconds_ago=seconds_ago(at),
                report=(folder / "report.html").is_file(),
            )
        )
    return RunList(runs=lines)


def _models(app: FastAPI, runs: Runs) -> None:
    @app.get("/api/runs/{run}/contrast", response_model=compare.Contrast)
    def _contrast(run: str, problem: str, a: Model, b: Model, split: str = "test") -> Response:
        return _json(compare.contrast(runs, run, problem, Chosen.parse(a), Chosen.parse(b), split))

    @app.get("/api/runs/{run}/examples", response_model=examples.ExamplePage)
    def _examples(
        run: str, problem: str, a: Model, split: str, b: str = "", sort: str = "", descending: bool = False,
        search: Annotated[str, Query(max_length=200)] = "", only: str = "", offset: Offset = 0, limit: Limit = 100,
    ) -> Response:  # fmt: skip
        second = Chosen.parse(b) if b else None
        pair = examples.paired(runs, run, problem, Chosen.parse(a), second, split)
        return _json(
            examples.example_page(
                *pair, sort=sort, descending=descending, search=search, only=only, offset=offset, limit=limit
            )
        )

    @app.get("/api/runs/{run}/embedding", response_model=compare.Embedding)
    def _embedding(
        run: str, problem: str, a: Model, b: Model, split: str, layer: str, method: Literal["pca", "umap"] = "pca",
        aligned: bool = True,
    ) -> Response:  # fmt: skip
        return _json(compare.embedding(_pair(run, problem, a, b, split), layer, method, aligned))

    def _pair(
        run: str, problem: str, a: str, b: str, split: str
    ) -> tuple[examples.Evidence, examples.Evidence]:
        first, second = examples.paired(runs, run, problem, Chosen.parse(a), Chosen.parse(b), split)
        assert second is not None
        return first, second

    @app.get("/api/runs/{run}/answers", response_model=generated.Answers)
    def _answers(
        run: str, problem: str, a: Model, b: Model, split: str, reveal: bool = False, offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 10,
    ) -> Response:  # fmt: skip
        pair = _pair(run, problem, a, b, split)
        order = list(range(offset, min(len(pair[0]), offset + limit)))
        tokens = None
        if reveal and order:
            try:
                tokens = contents.answer_tokens(contents.problem_of(runs, run, problem), split, order)
            except ExpungeError:
                tokens = None  # the answers themselves are in the evidence
        return _json(generated.answers(pair, order, reveal, tokens))

    @app.get("/api/runs/{run}/images", response_model=generated.Gallery)
    def _images(
        run: str, problem: str, a: Model, b: Model, split: str, reveal: bool = False, offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=100)] = 12,
    ) -> Response:  # fmt: skip
        pair = _pair(run, problem, a, b, split)
        order = list(range(offset, min(len(pair[0]), offset + limit)))
        prompts = None
        if reveal and order:
            with suppress(ExpungeError):  # the images themselves are in the evidence
                prompts = contents.prompts_of(contents.problem_of(runs, run, problem), split, order)
        return _json(generated.gallery(pair, order, reveal, prompts))

    @app.get("/api/runs/{run}/separation", response_model=attack.Separation)
    def _separation(run: str, problem: str, model: Model, statistic: str = "loss") -> Response:
        return _json(attack.separation(runs, run, problem, Chosen.parse(model), statistic))

    @app.get("/api/runs/{run}/worst-case", response_model=attack.WorstCase)
    def _worst(run: str, problem: str, model: Model) -> Response:
        return _json(attack.worst_case(runs, run, problem, Chosen.parse(model)))

    @app.get("/api/runs/{run}/transcripts", response_model=contents.Transcripts)
    def _transcripts(
        run: str,
        problem: str,
        model: Model,
        attack: str,
        reveal: bool = False,
        offset: Offset = 0,
        limit: Limit = 50,
    ) -> Response:
        return _json(
            contents.transcripts(
                runs, run, problem, Chosen.parse(model), attack, revealed=reveal, offset=offset, limit=limit
            )
        )

    @app.get("/api/runs/{run}/forget-set", response_model=contents.ForgetSet)
    def _forget(
        run: str, problem: str, reveal: bool = False, sort: str = "", offset: Offset = 0,
        limit: Annotated[int, Query(ge=1, le=200)] = 30,
    ) -> Response:  # fmt: skip
        return _json(
            contents.forget_set(runs, run, problem, revealed=reveal, offset=offset, limit=limit, sort=sort)
        )


def _files(app: FastAPI, runs: Runs) -> None:
    @app.get("/runs/{run}/{name}", include_in_schema=False)
    def _record(run: str, name: str) -> Response:
        if name not in FILES:
            raise Missing(f"only these records of a run are served: {', '.join(FILES)}")
        path = runs.file(run, name)
        if name.endswith(".html"):
            return FileResponse(
                path, media_type="text/html", headers={"Content-Security-Policy": DOCUMENT_POLICY}
            )
        return FileResponse(path, media_type=TYPES[path.suffix], filename=f"{run}-{name}")

    @app.get("/api/runs/{run}/examples.{kind}", include_in_schema=False)
    def _export(
        kind: Literal["csv", "parquet"], run: str, problem: str, a: Model, split: str, b: str = ""
    ) -> Response:
        first, second = examples.paired(
            runs, run, problem, Chosen.parse(a), Chosen.parse(b) if b else None, split
        )
        table = first.table
        if second is not None:
            table = pa.table(
                {
                    **{n: table[n] for n in ("id", "group") if n in table.column_names},
                    **{f"{q} · {a}": table[q] for q in first.quantities},
                    **{f"{q} · {b}": second.table[q] for q in second.quantities},
                }
            )
        out = io.BytesIO()
        if kind == "csv":
            arrow_csv.write_csv(table, out)
        else:
            pq.write_table(table, out)
        media = "text/csv" if kind == "csv" else "application/vnd.apache.parquet"
        disposition = f'attachment; filename="{run}-{split}.{kind}"'
        return Response(out.getvalue(), media_type=media, headers={"Content-Disposition": disposition})


def _studies(app: FastAPI, runs: Runs) -> None:
    processes = Processes(runs)
    refused: dict[int | str, dict[str, Any]] = {400: {"model": ErrorView}, 404: {"model": ErrorView}}

    @app.post("/api/plan", response_model=PlanView, responses=refused)
    def _plan(given: Start) -> Response:
        return _json(plan_view(given.study, runs.root))

    @app.post("/api/studies", response_model=StartedRun, responses=refused)
    def _start(given: Start) -> StartedRun:
        return StartedRun(run=processes.start(given.study, given.workers))

    @app.post("/api/runs/{run}/{action}", response_model=Progress, responses=refused)
    def _act(run: str, action: Literal["pause", "resume", "cancel"]) -> Progress:
        {"pause": processes.pause, "resume": processes.resume, "cancel": processes.cancel}[action](run)
        return processes.progress(run)
