"""The deletion ledger as the app shows it: requests, deadlines, certificates and whether the log holds."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from expunge.errors import ExpungeError, Missing
from expunge.extras import load_extra
from expunge.record import Record

MOST = 500


class LedgerRequest(Record):
    """A request; no field names a person."""

    id: str
    state: str
    reason: str
    received_at: str
    deadline: str | None
    finished_at: str | None
    overdue: bool
    explanation: str


class LedgerCertificate(Record):
    """An entry of the log."""

    sequence: int
    kind: str
    body: dict[str, Any]


class LedgerView(Record):
    """A ledger."""

    requests: list[LedgerRequest]
    counts: dict[str, int]
    overdue: int
    certificates: list[LedgerCertificate]
    valid: bool | None = Field(
        description="whether the log is whole and genuine; None where it was not checked"
    )
    verification: str = Field(description="what was checked, or why not")
    missing: dict[str, str]


class LedgerPlace(Record):
    """Where a ledger is."""

    database: str = "sqlite:///ledger/ledger.db"
    keys: str = "ledger/keys"
    log: str = "ledger/log.jsonl"

    @classmethod
    def at(cls, folder: Path) -> LedgerPlace:
        """The ledger in a folder that ``expunge ledger`` made."""
        return cls(
            database=f"sqlite:///{folder / 'ledger.db'}",
            keys=str(folder / "keys"),
            log=str(folder / "log.jsonl"),
        )

    def there(self) -> bool:
        """Whether its database, or its log, exists."""
        kind, _, file = self.database.partition(":///")
        return kind != "sqlite" or Path(file).exists() or Path(self.log).exists()


def ledger_view(place: LedgerPlace) -> LedgerView:
    """What the ledger says now.

    Raises:
        Missing: there is no ledger.
    """
    if not place.there():
        raise Missing(
            "there is no ledger here; expunge ledger init makes one, in the folder the app is started from"
        )
    missing: dict[str, str] = {}
    asked: list[LedgerRequest] = []
    counts: dict[str, int] = {}
    overdue = 0
    try:
        asked, counts, overdue = _requests(place)
    except ExpungeError as error:
        missing["requests"] = str(error)
    entries: list[LedgerCertificate] = []
    log = Path(place.log)
    if log.exists():
        for line in log.read_text().splitlines()[-MOST:]:
            entry = json.loads(line)
            body = entry.get("body", {})
            entries.append(
                LedgerCertificate(
                    sequence=entry.get("sequence", -1), kind=str(body.get("kind", "")), body=body
                )
            )
    else:
        missing["certificates"] = f"there is no log at '{place.log}'; no certificate was handed out yet"
    valid, said = _verify(place) if log.exists() else (None, missing["certificates"])
    return LedgerView(
        requests=asked,
        counts=counts,
        overdue=overdue,
        certificates=entries[::-1],
        valid=valid,
        verification=said,
        missing=missing,
    )


def _requests(place: LedgerPlace) -> tuple[list[LedgerRequest], dict[str, int], int]:
    load_extra("sqlalchemy", "ledger", "the ledger")
    from expunge.ledger import Ledger, SubjectKey

    ledger = Ledger(place.database, SubjectKey.load(Path(place.keys) / "subjects.key"))
    try:
        counts = ledger.counts()
        found = list(ledger.export())[-MOST:]
    finally:
        ledger.close()
    now = datetime.now(UTC)
    rows = [
        LedgerRequest(
            id=r.id, state=r.state, reason=r.reason, received_at=r.received_at.isoformat(timespec="seconds"),
            deadline=None if r.deadline is None else r.deadline.isoformat(timespec="seconds"),
            finished_at=None if r.finished_at is None else r.finished_at.isoformat(timespec="seconds"),
            overdue=r.deadline is not None and r.finished_at is None and r.deadline < now, explanation=r.explanation,
        )
        for r in reversed(found)
    ]  # fmt: skip
    return rows, {str(k): v for k, v in counts.states.items()}, counts.overdue


def _verify(place: LedgerPlace) -> tuple[bool | None, str]:
    load_extra("cryptography", "ledger", "the check of certificates")
    from expunge.ledger.certificates import PublicKey
    from expunge.ledger.log import Log

    public = Path(place.keys) / "public.pem"
    if not public.exists():
        return None, f"the public key '{public.name}' is not here, so the log was not checked"
    found = Log(Path(place.log)).verify(PublicKey.load(public))
    if not found.valid:
        return False, found.fault
    counted = ", ".join(
        f"{n} {one if n == 1 else many}"
        for n, one, many in (
            (found.entries, "entry", "entries"), (found.certificates, "certificate", "certificates"),
            (found.requests, "request certified", "requests certified"),
        )
    )  # fmt: skip
    limit = "Without a checkpoint from elsewhere, entries missing at the end would not be noticed."
    return True, f"{counted}: whole and signed by the key here. {limit}"
