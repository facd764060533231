"""`expunge app`: the local web app."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from expunge.errors import BadInput


def app(
    runs: Annotated[Path, typer.Argument(help="Folder of runs.")] = Path("runs"),
    host: Annotated[
        str, typer.Option(help="Address to listen on; other machines cannot reach the default.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="0 takes any that is free.")] = 8642,
    expose: Annotated[
        bool,
        typer.Option(
            "--expose", help="Allow an address that other machines can reach; the app has no passwords."
        ),
    ] = False,
    bundle: Annotated[
        Path | None,
        typer.Option(
            help="Instead of serving, write the pages and their data into this folder, to be published as files."
        ),
    ] = None,
    ledger: Annotated[
        Path, typer.Option(help="Folder of a deletion ledger, shown where there is one.")
    ] = Path("ledger"),
) -> None:
    """Open the web app: see, compare and attack the models of your runs, and start studies.

    It is served to this machine alone and fetches nothing from the network. Studies it starts are processes of their own:
    they go on when the app ends.
    """
    from expunge.extras import load_extra

    load_extra("fastapi", "app", "the app")
    load_extra("uvicorn", "app", "the app")
    if bundle is not None:
        from expunge.app.bundle import write_bundle
        from expunge.app.ledger import LedgerPlace

        written = write_bundle(runs, bundle, LedgerPlace.at(ledger))
        sys.stdout.write(
            f"{written} files in '{bundle}'; to look at them: python -m http.server -d {bundle}\n"
        )
        return
    from expunge.app.ledger import LedgerPlace
    from expunge.app.server import is_loopback, serve

    if not is_loopback(host) and not expose:
        raise BadInput(
            f"at '{host}' other machines could reach the app, which has no passwords; add --expose if that is meant"
        )
    if not is_loopback(host):
        sys.stderr.write(
            f"warning: everybody who can reach {host}:{port} can see these runs and start studies\n"
        )
    runs.mkdir(parents=True, exist_ok=True)

    def announce(address: str) -> None:
        sys.stdout.write(
            f"expunge app: {address}  (runs in '{runs}'; Ctrl-C ends the app, not the studies)\n"
        )
        sys.stdout.flush()

    serve(runs, host, port, announce, LedgerPlace.at(ledger))
