"""What may be asked of the service, by whom, and what comes back."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from itertools import islice
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Header, HTTPException, Path, Query, Request, Response
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import AwareDatetime, ConfigDict, Field, field_validator

from expunge.errors import BadInput
from expunge.ledger import requests as ledger_requests
from expunge.ledger.certificates import SigningKey
from expunge.ledger.chain import Checkpoint
from expunge.ledger.gate import Rate
from expunge.ledger.requests import Counts, Page, State
from expunge.ledger.store import Conflict, Ledger
from expunge.ledger.tokens import Role, Token, Tokens
from expunge.ledger.verification import Verification, verify
from expunge.ledger.worker import Worker
from expunge.record import Record

Ids = Annotated[str, Field(min_length=1, max_length=400)]
# Letters of all scripts, digits and simple punctuation: one line that no terminal or log viewer takes for something else.
Line = Annotated[str, Field(pattern=r"^[\w .,;:!?'()/&+\-]*$", max_length=200)]
RequestId = Annotated[
    str, Path(pattern=r"^[0-9a-f]{32}$", description="32 hexadecimal digits, as submitting returned it")
]
TokenId = Annotated[str, Path(pattern=r"^[0-9a-f]{16}$", description="16 hexadecimal digits")]
LAST = 2**31 - 1
LINES: dict[str, Any] = {"content": {"application/x-ndjson": {"schema": {"type": "string"}}}}


class Asked(Record):
    """Why, and by when."""

    # Python's own expressions, so that the pattern means here what it means to who reads it in the API's description.
    model_config = ConfigDict(regex_engine="python-re")

    reason: Line = Field(default="", description="why; stored as it is, so without personal data")
    deadline: AwareDatetime | None = Field(
        default=None, description="by when; RFC 3339 with a time zone, in the years 2000 to 2999"
    )

    @field_validator("deadline")
    @classmethod
    def _near(cls, deadline: datetime | None) -> datetime | None:
        # Years 1 and 9999 leave the calendar when they are moved to another time zone.
        if deadline is not None and not 2000 <= deadline.year < 3000:
            raise ValueError("must lie in the years 2000 to 2999")
        return deadline


class AboutSubject(Asked):
    """Forget all rows of one person."""

    subject: Ids = Field(description="only a keyed hash of it is stored")


class AboutRecords(Asked):
    """Forget these rows."""

    record_ids: list[Ids] = Field(
        min_length=1, max_length=100_000, description="only keyed hashes of them are stored"
    )


class NewToken(Record):
    """A token to make."""

    model_config = ConfigDict(regex_engine="python-re")

    name: Line = Field(min_length=1, max_length=100, description="whose it is")
    role: Role
    days: float | None = Field(
        default=None, gt=0, le=36_500, description="until it expires; never where it is null"
    )


class MadeToken(Token):
    """A new token; this answer is the only one that shows it."""

    text: str = Field(description="what goes into the header Authorization, after 'Bearer '")


class Started(Record):
    """Runs were started."""

    started: bool = Field(description="False where this service was running already")


class ToVerify(Record):
    """What the log is compared with."""

    checkpoint: Checkpoint | None = Field(default=None, description="the newest that you kept; null for none")


class Health(Record):
    """The service answers."""

    status: str = "ok"


@dataclass
class Desk:
    """What the routes work with."""

    ledger: Ledger
    tokens: Tokens
    key: SigningKey
    requests: Rate
    failures: Rate
    worker: Worker | None = None
    stop: threading.Event = field(default_factory=threading.Event)
    running: threading.Lock = field(default_factory=threading.Lock)
    _entries: dict[str, int] = field(default_factory=dict)
    _read: int = 0
    _reading: threading.Lock = field(default_factory=threading.Lock)

    def start(self) -> bool:
        """Work off what is open, in the background; False where that is going on already."""
        worker = self.worker
        if worker is None:
            raise HTTPException(
                503, "this service has no model to forget in; runs are for `expunge ledger run`"
            )
        if not self.running.acquire(blocking=False):
            return False

        def work() -> None:
            try:
                while not self.stop.is_set() and worker.step()[0]:
                    pass
            finally:
                self.running.release()

        threading.Thread(target=work, name="ledger-run").start()
        return True

    def certificate(self, run_id: str) -> str | None:
        """The line of the log that certifies a run. The log is read once; later calls read what was appended since."""
        with self._reading:
            for line in self.ledger.log(self._read):
                certified = json.loads(line)["body"].get("run_id")
                if certified is not None:
                    self._entries[certified] = self._read
                self._read += 1
            place = self._entries.get(run_id)
        return None if place is None else next(iter(self.ledger.log(place)))


def desk(request: Request) -> Desk:
    """The desk of the service that received a request."""
    return request.app.state.desk


At = Annotated[Desk, Depends(desk)]
bearer = HTTPBearer(auto_error=False, description="a token that `expunge ledger token` made")


def allowed(*roles: Role) -> Callable[..., Token]:
    """A dependency that lets in who has a valid token of one of the roles, and not too often."""

    def check(
        request: Request, at: At, given: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> Token:
        token = at.tokens.check(given.credentials) if given else None
        if token is None:
            _slow_down(at.failures, request.client.host if request.client else "")
            raise HTTPException(
                401, "a valid token is needed: Authorization: Bearer ...", {"WWW-Authenticate": "Bearer"}
            )
        request.state.token = token
        _slow_down(at.requests, token.id)
        if token.role not in roles:
            raise HTTPException(403, f"the role '{token.role}' may not do this; needed: {' or '.join(roles)}")
        return token

    return check


def _slow_down(rate: Rate, caller: str) -> None:
    seconds = rate.wait(caller)
    if seconds:
        later = str(int(seconds) + 1)
        raise HTTPException(429, f"too many requests; try again in {later} s", {"Retry-After": later})


ANYONE: tuple[Role, ...] = ("requester", "operator", "auditor")
Submitter = Annotated[Token, Depends(allowed("requester", "operator"))]
router = APIRouter(prefix="/v1")
any_role = [Depends(allowed(*ANYONE))]
seeing = [Depends(allowed("operator", "auditor"))]
operating = [Depends(allowed("operator"))]


@router.post("/requests", status_code=202, tags=["requests"])
def submit(
    asked: AboutSubject | AboutRecords,
    at: At,
    token: Submitter,
    response: Response,
    idempotency_key: Annotated[
        str | None,
        Header(
            pattern=r"^[!-~]{1,100}$",
            description="the same key again returns the first request, not a new one",
        ),
    ] = None,
) -> ledger_requests.Request:
    """Submit a request. It is on the disk when the answer comes."""
    # Each token has keys of its own, so that nobody finds out, or blocks, the requests of others by guessing keys.
    once = None if idempotency_key is None else f"{token.id}:{idempotency_key}"
    about = asked.subject if isinstance(asked, AboutSubject) else None
    ids = () if isinstance(asked, AboutSubject) else asked.record_ids
    made = at.ledger.submit(
        subject=about, record_ids=ids, reason=asked.reason, deadline=asked.deadline, idempotency_key=once
    )
    response.headers["Location"] = f"/v1/requests/{made.id}"
    return made


@router.get("/requests", dependencies=seeing, tags=["requests"])
def list_requests(
    at: At,
    state: State | None = None,
    after: Annotated[
        str | None, Query(pattern=r"^[0-9a-f]{32}$", description="`after` of the page before")
    ] = None,
    limit: Annotated[int, Query(ge=1, le=1000)] = 100,
) -> Page:
    """Requests, oldest first."""
    return at.ledger.requests(state=state, after=after, limit=limit)


@router.get("/requests/{request_id}", dependencies=any_role, tags=["requests"])
def status(request_id: RequestId, at: At) -> ledger_requests.Request:
    """How a request stands."""
    return at.ledger.status(request_id)


@router.post("/requests/{request_id}/withdraw", tags=["requests"])
def withdraw(request_id: RequestId, at: At, token: Submitter) -> ledger_requests.Request:
    """Take a request back that is not yet part of a run."""
    return at.ledger.withdraw(request_id)


@router.post("/requests/{request_id}/retry", dependencies=operating, tags=["runs"])
def retry(request_id: RequestId, at: At) -> ledger_requests.Request:
    """Give a failed request another chance."""
    return at.ledger.retry(request_id)


@router.get("/requests/{request_id}/certificate", dependencies=any_role, tags=["certificates"])
def certificate(request_id: RequestId, at: At) -> Response:
    """The entry of the log that certifies a request, byte for byte, as it is signed."""
    request = at.ledger.status(request_id)
    line = at.certificate(request.run_id) if request.state == "done" and request.run_id else None
    if line is None:
        raise Conflict(f"the request is '{request.state}'; it has a certificate when it is done")
    return Response(line, media_type="application/json")


@router.get("/counts", dependencies=seeing, tags=["requests"])
def counts(at: At) -> Counts:
    """How many requests are in each state, and whether any is late."""
    return at.ledger.counts()


@router.post("/runs", status_code=202, dependencies=operating, tags=["runs"])
def run(at: At) -> Started:
    """Start working off what is open; the requests tell how it goes."""
    return Started(started=at.start())


@router.get("/log", dependencies=seeing, tags=["certificates"], responses={200: LINES})
def log(
    at: At,
    start: Annotated[int, Query(ge=0, le=LAST, description="number of the first entry")] = 0,
    limit: Annotated[int, Query(ge=1, le=1000)] = 1000,
) -> Response:
    """Entries of the log, one per line, byte for byte; fewer than `limit` at its end."""
    lines = islice(at.ledger.log(start), limit)
    return Response("".join(f"{line}\n" for line in lines), media_type="application/x-ndjson")


@router.get("/log/checkpoint", dependencies=any_role, tags=["certificates"])
def checkpoint(at: At) -> Checkpoint:
    """How long the log is and how it ends, signed now. Keep it: it proves later that nothing was cut off."""
    seen = at.ledger.counts().certificates
    first = next(iter(at.ledger.log(0)), None)
    # Entries may have been appended meanwhile.
    end = list(at.ledger.log(max(0, seen - 1)))
    return Checkpoint.of(first, max(0, seen - 1) + len(end), end[-1] if end else None, at.key.current())


@router.post("/log/verification", dependencies=seeing, tags=["certificates"])
def verification(wanted: ToVerify, at: At) -> Verification:
    """Verify the whole log. Who does not trust this service verifies a copy: `expunge ledger verify`."""
    return verify(at.ledger.log(), at.key.current().public, wanted.checkpoint)


@router.get("/key", dependencies=any_role, tags=["certificates"])
def key(at: At) -> dict[str, str]:
    """The public key in force, as PEM. Compare it with one that you have from elsewhere."""
    return {"pem": at.key.current().public.pem}


@router.get("/tokens", dependencies=operating, tags=["tokens"])
def list_tokens(at: At) -> list[Token]:
    """All tokens, without what makes them valid."""
    return at.tokens.all()


@router.post("/tokens", status_code=201, dependencies=operating, tags=["tokens"])
def make_token(wanted: NewToken, at: At) -> MadeToken:
    """Make a token; it is shown in this answer and never again."""
    made, text = at.tokens.create(wanted.name, wanted.role, wanted.days)
    return MadeToken(**made.model_dump(), text=text)


@router.delete("/tokens/{token_id}", dependencies=operating, tags=["tokens"])
def revoke_token(token_id: TokenId, at: At) -> Token:
    """Revoke a token."""
    try:
        return at.tokens.revoke(token_id)
    except BadInput as error:
        raise HTTPException(404, str(error)) from None
