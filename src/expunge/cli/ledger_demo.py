"""`expunge ledger demo`: three requests about handwritten digits, from submission to a certificate that is checked."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from expunge.cli.output import Json, print_json, print_table
from expunge.errors import ExpungeError

if TYPE_CHECKING:
    from expunge.ledger import Request
    from expunge.ledger.certificates import Certificate
    from expunge.ledger.verification import Verification

EXAMPLE = "Example: expunge ledger demo"

ASKED = (
    ("mail-1", ("digit-1061", "digit-0627"), "Art. 17"),
    ("mail-2", ("digit-0580",), "Art. 17, by phone"),
    ("mail-3", ("digit-1599",), "consent withdrawn"),
)
"""Idempotency key, rows and reason of each request."""
IDS = [i for _, ids, _ in ASKED for i in ids]
SHARDS, SLICES = 4, 3


def demo(
    folder: Annotated[Path, typer.Option(help="Folder for ledger, keys, log and model.")] = Path(
        "runs/ledger-demo"
    ),
    json: Json = False,
) -> None:
    """Take three deletion requests about handwritten digits, forget exactly (SISA), and check the certificate.

    The same command again submits the same requests, which the ledger recognizes, and shows the same certificate.
    """
    from expunge.extras import load_extra

    load_extra("sqlalchemy", "ledger", "the ledger")
    from expunge.cli.ledger import opened, prepare
    from expunge.cli.ledger_run import executor_of
    from expunge.exact.shards import ShardedModel
    from expunge.ledger.certificates import SigningKey
    from expunge.ledger.chain import certificate_in, sealing
    from expunge.ledger.log import Log
    from expunge.ledger.verification import verify
    from expunge.ledger.worker import Worker

    database, keys, served = f"sqlite:///{folder / 'ledger.db'}", folder / "keys", folder / "served"
    prepare(database, keys)
    key, log = SigningKey.load(keys / "signing.pem"), Log(folder / "log.jsonl")
    with opened(database, keys) as ledger:
        fresh = not (served / "settings.json").exists()
        parameters = {"shards": SHARDS, "slices": SLICES} if fresh else {}
        executor = executor_of(served, benchmark="digits", parameters=parameters)
        asked = [
            ledger.submit(record_ids=ids, reason=reason, idempotency_key=once) for once, ids, reason in ASKED
        ]
        Worker(ledger, executor, sealing(key), name="demo").run(until_idle=True)
        log.mirror(ledger.log())
        log.checkpoint(key)
        asked = [ledger.status(r.id) for r in asked]
    for request in asked:
        if request.state != "done":
            raise ExpungeError(f"request '{request.id}' is {request.state}: {request.explanation}")
    lines = [line.decode() for line in log]
    place, certificate = next(
        (n, c) for n, c in enumerate(certificate_in(line, key.public) for line in lines)
        if asked[0].id in c.request_ids
    )  # fmt: skip
    found = log.verify(key.public)
    rows = f'"records":{certificate.outcome.records}'
    lines[place] = lines[place].replace(rows, f"{rows}0")
    edited = verify(lines, key.public)
    faults = ShardedModel(served).verify(absent=IDS, again=range(SHARDS))
    if json:
        print_json(
            {"requests": asked, "certificate": certificate, "verification": found, "edited": edited, "faults": faults}
        )  # fmt: skip
    else:
        _show_requests(asked)
        _show_certificate(certificate, folder)
        _show_checks(found, edited, faults, folder)
    if not found.valid or edited.valid or faults:
        raise typer.Exit(1)


def _show_requests(asked: list[Request]) -> None:
    rows = [
        [r.id[:16], ", ".join(ids), r.reason, f"{r.state}, {_seconds(r)}"]
        for r, (_, ids, _) in zip(asked, ASKED, strict=True)
    ]
    print_table(["request", "rows to forget", "reason", "state"], rows, "Three deletion requests")


def _seconds(request: Request) -> str:
    if request.finished_at is None:
        return "open"
    return f"after {(request.finished_at - request.received_at).total_seconds():.1f} s"


def _show_certificate(certificate: Certificate, folder: Path) -> None:
    outcome = certificate.outcome
    facts = {
        "requests": ", ".join(i[:16] for i in certificate.request_ids),
        "method": f"{outcome.method}, {SHARDS} shards of {SLICES} slices; guarantee: {outcome.guarantee}",
        "rows forgotten": f"{outcome.records} (not in the data: {certificate.unknown})",
        "training data": f"{outcome.data_before[:16]} -> {outcome.data_after[:16]}",
        "model": f"{outcome.model_before[:16]} -> {outcome.model_after[:16]}",
        "cost": f"{outcome.seconds:.1f} s; {'; '.join(outcome.notes)}",
        "erased": f"{len(outcome.erased)} files with traces of the rows",
    }
    for score in outcome.scores:
        if score.metric == "accuracy" and score.value is not None:
            facts[f"{score.split} accuracy"] = f"{score.value:.3f}"
    facts["verdict"] = certificate.verdict
    sys.stdout.write(f"\nCertificate (a line of {folder / 'log.jsonl'})\n")
    sys.stdout.writelines(f"  {name:<14}  {value}\n" for name, value in facts.items())


def _show_checks(found: Verification, edited: Verification, faults: list[str], folder: Path) -> None:
    sys.stdout.write(
        "\nChecks\n"
        f"  {_mark(found.valid)} signature and chain: {found.certificates} certificate for {found.requests} requests"
        f"{'' if found.valid else f'; {found.fault}'}\n"
        f"  {_mark(not edited.valid)} one figure of the log edited: {edited.fault or 'not noticed'}\n"
        f"  {_mark(not faults)} all shards trained again from scratch on the rows that are left: "
        f"{'; '.join(faults) or 'the same weights, bit by bit'}\n"
        f"Anybody can repeat the first: expunge ledger verify {folder / 'log.jsonl'} "
        f"--public-key {folder / 'keys' / 'public.pem'}\n"
    )


def _mark(good: bool) -> str:
    return "ok  " if good else "FAIL"
