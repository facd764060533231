"""`expunge ledger`: deletion requests in, certificates out."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from expunge.cli import ledger_demo, ledger_plan, ledger_run
from expunge.cli.output import Json, notice, print_json, print_table
from expunge.errors import BadInput

if TYPE_CHECKING:
    from expunge.ledger import Ledger, Request

app = typer.Typer(
    help="Take deletion requests, execute them, and hand out certificates that anybody can check.",
    no_args_is_help=True,
)

EXAMPLE = "Example: expunge ledger init && expunge ledger submit --record digit-17 --reason 'Art. 17'"

Database = Annotated[
    str,
    typer.Option(
        envvar="EXPUNGE_LEDGER_DATABASE",
        help="URL of the database: sqlite:///FILE or postgresql://USER@HOST/NAME.",
    ),
]
Keys = Annotated[
    Path,
    typer.Option(
        envvar="EXPUNGE_LEDGER_KEYS", help="Folder with the ledger's keys; keep it apart from the database."
    ),
]
LogFile = Annotated[Path, typer.Option("--log", help="File that repeats the log of certificates.")]
DATABASE, KEYS, LOG = "sqlite:///ledger/ledger.db", Path("ledger/keys"), Path("ledger/log.jsonl")

State = Literal["received", "verified", "scheduled", "running", "done", "refused", "failed"]


@contextmanager
def opened(database: str, keys: Path) -> Iterator[Ledger]:
    """The ledger, closed again afterwards."""
    from expunge.extras import load_extra

    load_extra("sqlalchemy", "ledger", "the ledger")
    from expunge.ledger import Ledger, SubjectKey

    ledger = Ledger(database, SubjectKey.load(keys / "subjects.key"))
    try:
        yield ledger
    finally:
        ledger.close()


@app.command("init", epilog="Example: expunge ledger init --database postgresql://ledger@db/ledger")
def init(database: Database = DATABASE, keys: Keys = KEYS, json: Json = False) -> None:
    """Make the tables and the keys, or bring the tables of an older version up to date; keys are never replaced."""
    changed = prepare(database, keys)
    public = keys / "public.pem"
    if json:
        print_json(
            {"database": _shown(database), "changed": changed, "keys": str(keys), "public_key": str(public)}
        )
        return
    sys.stdout.write(f"ledger: {_shown(database)} ({'made' if changed else 'up to date'})\n")
    sys.stdout.write(
        f"keys: {keys}; without them requests cannot be matched with records: keep a copy in a safe\n"
    )
    sys.stdout.write(f"public key, for whoever checks certificates: {public}\n")


def prepare(database: str, keys: Path) -> bool:
    """Make the tables and the keys where they are not there yet; return whether the tables were changed."""
    from expunge.extras import load_extra

    load_extra("sqlalchemy", "ledger", "the ledger")
    from expunge.ledger import SubjectKey, upgrade
    from expunge.ledger.certificates import SigningKey

    changed = upgrade(database)
    subjects, private = keys / "subjects.key", keys / "signing.pem"
    if not subjects.exists():
        SubjectKey.create(subjects)
    if not private.exists():
        SigningKey.create(private)
    SigningKey.load(private).public.write(keys / "public.pem")
    return changed


@app.command(
    "submit", epilog="Example: expunge ledger submit --subject ann@example.org --deadline 2030-01-31T00:00Z"
)
def submit(
    subject: Annotated[
        str | None, typer.Option(help="Whose rows to forget; only a keyed hash is stored.")
    ] = None,
    record: Annotated[list[str] | None, typer.Option(help="Id of a row to forget; may be repeated.")] = None,
    records: Annotated[Path | None, typer.Option(help="File with ids of rows, one per line.")] = None,
    reason: Annotated[str, typer.Option(help="Why; stored as it is, so without personal data.")] = "",
    deadline: Annotated[str | None, typer.Option(help="By when, such as 2030-01-31T12:00Z.")] = None,
    idempotency_key: Annotated[
        str | None, typer.Option(help="The same key again is the same request.")
    ] = None,
    database: Database = DATABASE,
    keys: Keys = KEYS,
    json: Json = False,
) -> None:
    """Accept a request; when this returns, it is on the disk."""
    named = list(record or [])
    if records is not None:
        if not records.is_file():
            raise BadInput(f"no file '{records}' with ids, one per line")
        named += [line.strip() for line in records.read_text().splitlines() if line.strip()]
    with opened(database, keys) as ledger:
        _show(
            ledger.submit(
                subject=subject, record_ids=named, reason=reason, deadline=_time(deadline), idempotency_key=idempotency_key,
            ),
            json,
        )  # fmt: skip


@app.command("status", epilog="Example: expunge ledger status --state failed")
def status(
    request: Annotated[
        str | None, typer.Argument(help="Id of a request; without it, all of them are counted.")
    ] = None,
    state: Annotated[State | None, typer.Option(help="List the requests in this state.")] = None,
    subject: Annotated[str | None, typer.Option(help="List the requests about this subject.")] = None,
    after: Annotated[str | None, typer.Option(help="List those after this id.")] = None,
    limit: Annotated[int, typer.Option(help="List at most so many.")] = 100,
    database: Database = DATABASE,
    keys: Keys = KEYS,
    json: Json = False,
) -> None:
    """Show a request, list requests, or count them by state."""
    with opened(database, keys) as ledger:
        if request is not None:
            _show(ledger.status(request), json)
            return
        if state is not None or subject is not None or after is not None:
            page = ledger.requests(state=state, subject=subject, after=after, limit=limit)
            if json:
                print_json(page)
                return
            rows = [
                [r.id, r.state, _minute(r.received_at), _minute(r.deadline), r.explanation]
                for r in page.requests
            ]
            print_table(["request", "state", "received", "deadline", "explanation"], rows)
            if page.after is not None:
                sys.stdout.write(f"more: --after {page.after}\n")
            return
        counts = ledger.counts()
    if json:
        print_json(counts)
        return
    print_table(["state", "requests"], [[s, str(n)] for s, n in counts.states.items()])
    sys.stdout.write(
        f"{counts.certificates} certificates, {counts.overdue} open requests past their deadline\n"
    )


@app.command("withdraw", epilog="Example: expunge ledger withdraw 01a1fbd2...")
def withdraw(request: str, database: Database = DATABASE, keys: Keys = KEYS, json: Json = False) -> None:
    """Take a request back that is not part of a run yet; it ends as refused."""
    with opened(database, keys) as ledger:
        _show(ledger.withdraw(request), json)


@app.command("retry", epilog="Example: expunge ledger retry 01a1fbd2...")
def retry(request: str, database: Database = DATABASE, keys: Keys = KEYS, json: Json = False) -> None:
    """Give a failed request another chance."""
    with opened(database, keys) as ledger:
        _show(ledger.retry(request), json)


@app.command("export", epilog="Example: expunge ledger export requests.jsonl")
def export(
    out: Annotated[
        Path, typer.Argument(help="File for the requests, one JSON object per line; must not exist.")
    ],
    database: Database = DATABASE,
    keys: Keys = KEYS,
    json: Json = False,
) -> None:
    """Write all requests to a file; no line names a person."""
    with opened(database, keys) as ledger:
        try:
            file = out.open("x")
        except FileExistsError:
            raise BadInput(f"'{out}' exists already; choose another file") from None
        with file:
            count = sum(bool(file.write(request.model_dump_json() + "\n")) for request in ledger.export())
    if json:
        print_json({"file": str(out), "requests": count})
    else:
        sys.stdout.write(f"{count} requests: {out}\n")


@app.command("purge", epilog="Example: expunge ledger purge --days 365")
def purge(
    days: Annotated[float, typer.Option(min=0, help="Keep what ended within so many days.")],
    database: Database = DATABASE,
    keys: Keys = KEYS,
    json: Json = False,
) -> None:
    """Drop subject, reason and idempotency key of finished requests.

    Ids, states and times stay, because certificates refer to them, and so do the keyed hashes of forgotten records: without
    them nobody would notice that a record came back.
    """
    with opened(database, keys) as ledger:
        count = ledger.purge(days * 86_400)
    if json:
        print_json({"purged": count})
    else:
        sys.stdout.write(f"{count} requests purged\n")


@app.command("rotate", epilog="Example: expunge ledger rotate")
def rotate(database: Database = DATABASE, keys: Keys = KEYS, log: LogFile = LOG, json: Json = False) -> None:
    """Hand the log over to a new signing key; the old private key is deleted, the old public key still checks the log.

    The key of subjects and records is not replaced: only keyed hashes of them are kept, which no other key could make again.
    """
    from expunge.ledger.log import Log
    from expunge.ledger.rotation import rotate as hand_over

    with opened(database, keys) as ledger:
        before, key = hand_over(ledger, keys)
        file = Log(log)
        file.mirror(ledger.log())
        file.checkpoint(key)
    if json:
        print_json(
            {"before": before.digits, "after": key.public.digits, "public_key": str(keys / "public.pem")}
        )
        return
    sys.stdout.write(f"signing key: {before.digits[:16]}... -> {key.public.digits[:16]}...\n")
    sys.stdout.write(f"public key, for whoever checks certificates from now on: {keys / 'public.pem'}\n")


app.command("run", epilog=ledger_run.EXAMPLE)(ledger_run.run)
app.command("plan", epilog=ledger_plan.EXAMPLE)(ledger_plan.plan)
app.command("demo", epilog=ledger_demo.EXAMPLE)(ledger_demo.demo)


@app.command("verify", epilog="Example: expunge ledger verify log.jsonl --public-key public.pem")
def verify(
    log: Annotated[Path, typer.Argument(help="File with the log of certificates.")] = LOG,
    public_key: Annotated[Path, typer.Option(help="The ledger's public key.")] = KEYS / "public.pem",
    checkpoint: Annotated[
        Path | None, typer.Option(help="Checkpoint to check against; default: the one beside the log.")
    ] = None,
    json: Json = False,
) -> None:
    """Check a log offline: whether any entry was edited, inserted, moved or removed. Needs no database and no other key."""
    from expunge.extras import load_extra

    load_extra("cryptography", "ledger", "verifying certificates")
    from expunge.ledger.certificates import PublicKey
    from expunge.ledger.chain import Checkpoint
    from expunge.ledger.log import Log

    if not log.is_file():
        raise BadInput(f"no log '{log}'; `expunge ledger run` writes it")
    found = Log(log).verify(
        PublicKey.load(public_key), None if checkpoint is None else Checkpoint.read(checkpoint)
    )
    if json:
        print_json(found)
    elif found.valid:
        sys.stdout.write(f"valid: {found.certificates} certificates for {found.requests} requests in {log}\n")
        if found.checkpoint is None:
            notice("there is no checkpoint, so lines that were cut off at the end would not be noticed")
    else:
        sys.stdout.write(f"not valid: {found.fault}\n")
    if not found.valid:
        raise typer.Exit(1)


@app.command("token", epilog="Example: expunge ledger token mail-desk --role requester --days 90")
def token(
    name: Annotated[str, typer.Argument(help="Who gets it.")],
    role: Annotated[Literal["requester", "operator", "auditor"], typer.Option(help="What its owner may do.")],
    days: Annotated[float | None, typer.Option(help="Days until it expires; default: never.")] = None,
    keys: Keys = KEYS,
    json: Json = False,
) -> None:
    """Make a bearer token for the service. It is shown once; only a hash is kept."""
    from expunge.ledger.tokens import Tokens

    made, text = Tokens(keys / "tokens.json").create(name, role, days)
    if json:
        print_json({**made.model_dump(mode="json"), "token": text})
    else:
        sys.stdout.write(f"{text}\n")
        notice(f"this token of '{made.name}' ({made.role}) is not shown again")


@app.command("serve", epilog="Example: expunge ledger serve --port 8750")
def serve(
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than 127.0.0.1 need TLS in front.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65_535, help="Port to listen on.")] = 8750,
    name: Annotated[
        list[str] | None, typer.Option(help="Further host name that clients use; may be repeated.")
    ] = None,
    database: Database = DATABASE,
    keys: Keys = KEYS,
) -> None:
    """Serve the ledger over HTTP. Workers are processes of their own: expunge ledger run --forever."""
    from expunge.extras import load_extra

    load_extra("fastapi", "service", "serving the ledger")
    load_extra("uvicorn", "service", "serving the ledger")
    from expunge.ledger.certificates import SigningKey
    from expunge.ledger.service import serve as listen
    from expunge.ledger.tokens import Tokens

    with opened(database, keys) as ledger:
        notice(f"listening on http://{host}:{port}; descriptions of all routes: /docs")
        listen(
            ledger, Tokens(keys / "tokens.json"), SigningKey.load(keys / "signing.pem"), host=host, port=port,
            hosts=name or [],
        )  # fmt: skip


def _time(text: str | None) -> datetime | None:
    if text is None:
        return None
    try:
        return datetime.fromisoformat(text)
    except ValueError:
        raise BadInput(f"--deadline '{text}' is not a time; write it such as 2030-01-31T12:00Z") from None


def _minute(time: datetime | None) -> str:
    return "" if time is None else time.strftime("%Y-%m-%d %H:%M")


def _shown(database: str) -> str:
    from expunge.ledger.database import shown

    return shown(database)


def _show(request: Request, json: bool) -> None:
    if json:
        print_json(request)
        return
    facts: dict[str, Any] = {
        k: v for k, v in request.model_dump(mode="json").items() if v not in (None, "", 0)
    }
    for key, value in facts.items():
        sys.stdout.write(f"{key.replace('_', ' ')}: {value}\n")
