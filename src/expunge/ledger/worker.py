"""Workers: they turn requests into runs, runs into forgetting, and forgetting into certificates.

Any number of workers may share a ledger. They may be killed at any instant: whatever one leaves unfinished is taken over
when its lease ends.
"""

from __future__ import annotations

import logging
import re
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Any

from expunge.errors import ExpungeError
from expunge.ledger.requests import Batching, Outcome, Run
from expunge.ledger.runs import LeaseLost
from expunge.ledger.store import Ledger
from expunge.record import Score

logger = logging.getLogger("expunge.ledger")

Seal = Callable[[Run, Outcome, str | None], str]
"""From a run, what it did, and the last line of the log (None where it is empty): the line to append."""


@dataclass(frozen=True)
class Effect:
    """What an executor did beside forgetting."""

    scores: list[Score] = field(default_factory=list)
    erased: list[str] = field(default_factory=list)
    """Files that held traces of the records, by name."""
    notes: list[str] = field(default_factory=list)


class Executor(ABC):
    """A served model that can forget rows of its training data.

    `forget` may be cut off at any instant and is then called again, perhaps by another process, with those of the rows
    that are still among `rows`: it must go on or start over, and without rows erase what an earlier call left behind.
    """

    method: str
    """Name of the method."""
    guarantee: str
    """What the method promises: bitwise, numeric (tolerance), distributional, certified (eps, delta), empirical."""
    parameters: Mapping[str, Any] = {}

    @abstractmethod
    def exclusive(self) -> AbstractContextManager[None]:
        """Keep all other processes from changing the model while the block runs; freed when the process dies."""

    @abstractmethod
    def rows(self) -> Iterable[tuple[str, str | None]]:
        """Id and subject (None where unknown) of every row that the served model was trained on."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Fingerprint of the served model's weights."""

    @abstractmethod
    def forget(self, ids: Sequence[str]) -> Effect:
        """Serve a model without these rows, all of them among `rows`, and erase what else knows them; then say what was done."""

    def cost(self, ids: Sequence[str]) -> float:
        """What forgetting these rows together costs, relative to other sets; here always the same: one run."""
        return 1.0


@dataclass(frozen=True)
class Index:
    """The rows that the served model was trained on, by keyed hash."""

    ids: dict[str, str]
    """Record hash to id."""
    subjects: dict[str, list[str]]
    """Subject hash to record hashes."""

    @property
    def digest(self) -> str:
        """Fingerprint of the set of rows; it says nothing about any of them without the ledger's key."""
        return sha256("\n".join(sorted(self.ids)).encode()).hexdigest()


class Worker:
    """Works a ledger off with one executor.

    Args:
        ledger: where requests are.
        executor: what forgets.
        seal: makes the certificate of a run, as a line of the log.
        name: who it is, for operators; no secret.
        batching: when and what to run together.
        lease_seconds: a worker that is silent for so long has lost its run.
        max_attempts: after so many a run is failed.
        pause: seconds before a failed run is tried again; doubles with each attempt.
    """

    def __init__(
        self,
        ledger: Ledger,
        executor: Executor,
        seal: Seal,
        *,
        name: str = "worker",
        batching: Batching | None = None,
        lease_seconds: float = 60.0,
        max_attempts: int = 5,
        pause: float = 1.0,
    ) -> None:
        self.ledger, self.executor, self.seal, self.name = ledger, executor, seal, name
        self.batching = batching or Batching()
        self.lease_seconds, self.max_attempts, self.pause = lease_seconds, max_attempts, pause
        self._hashes: dict[tuple[str, str | None], tuple[str, str | None]] = {}
        self._seen: dict[str, str] = {}

    def run(
        self,
        stop: threading.Event | None = None,
        *,
        until_idle: bool = False,
        poll_seconds: float = 1.0,
        on_done: Callable[[], None] | None = None,
    ) -> int:
        """Work until told to stop, or until nothing is left; return how many runs this worker finished.

        Args:
            stop: set it to end after the current run.
            until_idle: end when no request is open, those of other workers included.
            poll_seconds: how long to wait before looking for work again.
            on_done: called after each run that this worker finished.
        """
        stop = stop or threading.Event()
        finished = 0
        while not stop.is_set():
            worked, done = self.step()
            finished += done
            if done and on_done is not None:
                on_done()
            if not worked:
                if until_idle and self.ledger.idle():
                    break
                stop.wait(poll_seconds)
        return finished

    def step(self) -> tuple[bool, bool]:
        """Verify what came in, schedule what is due, execute one run.

        Returns:
            Whether there was anything to do, and whether a run was finished.
        """
        verified = self._verify()
        self.ledger.schedule(self.batching, self._cost)
        run = self.ledger.claim(self.name, self.lease_seconds, self.max_attempts)
        if run is None:
            return verified > 0, False
        return True, self._attempt(run)

    def index(self) -> Index:
        """What the served model was trained on now."""
        key, known = self.ledger.key, self._hashes
        ids: dict[str, str] = {}
        subjects: dict[str, list[str]] = {}
        self._hashes = {}
        for row in self.executor.rows():
            record, subject = row
            # A keyed hash costs more than a look-up, and most rows were there before.
            made = known.get(row) or (key.record(record), None if subject is None else key.subject(subject))
            self._hashes[row] = made
            hashed, person = made
            ids[hashed] = record
            if person is not None:
                subjects.setdefault(person, []).append(hashed)
        self._seen = ids
        return Index(ids, subjects)

    def _verify(self) -> int:
        """Find the records of new requests. Returns how many were looked at."""
        waiting = self.ledger.received()
        if not waiting:
            return 0
        # The index comes first: a row that a run takes out after this look is still in it, and one that was taken out
        # before belongs to a request that the ledger knows.
        index = self.index()
        for request_id, subject, named in waiting:
            if subject is not None:
                found = set(index.subjects.get(subject, [])) | self.ledger.records_of(subject)
                nothing = "no row of this subject is in the training data"
            else:
                found = {r for r in named if r in index.ids}
                found |= self.ledger.known([r for r in named if r not in found])
                nothing = f"none of the {len(named)} records is in the training data"
            if found:
                self.ledger.verify(request_id, sorted(found), unknown=max(0, len(named) - len(found)))
            else:
                self.ledger.refuse(request_id, nothing)
        return len(waiting)

    def _cost(self, records: frozenset[str]) -> float:
        if not self._seen:
            self.index()
        return self.executor.cost([self._seen[r] for r in sorted(records) if r in self._seen])

    def _attempt(self, run: Run) -> bool:
        """Execute a run; returns whether it is done."""
        try:
            with self._heartbeat(run), self.executor.exclusive():
                outcome = self._execute(run)
                self.ledger.complete(run, lambda previous: self.seal(run, outcome, previous))
        except LeaseLost as lost:
            logger.warning("%s", lost)
            return False
        except Exception as error:
            reason = str(error) if isinstance(error, ExpungeError) else f"{type(error).__name__}: {error}"
            return self._give_back(run, self._without_ids(reason))
        except KeyboardInterrupt:
            self._give_back(run, "interrupted")
            raise
        logger.info("run %s done: %d requests, %d records", run.id, len(run.request_ids), outcome.records)
        return True

    def _without_ids(self, text: str) -> str:
        """The text without ids of rows, which errors name and the ledger must not keep."""
        known = {*self._seen.values(), *(record for record, _ in self._hashes)}
        return re.sub(r"[^\s'\",;:()\[\]]+", lambda word: "(a row)" if word[0] in known else word[0], text)

    def _give_back(self, run: Run, reason: str) -> bool:
        logger.error("run %s, attempt %d: %s", run.id, run.attempts, reason)
        try:
            pause = self.pause * 2.0 ** (run.attempts - 1)
            self.ledger.fail(run, reason, max_attempts=self.max_attempts, pause=pause)
        except LeaseLost as lost:
            logger.warning("%s", lost)
        return False

    def _execute(self, run: Run) -> Outcome:
        """Forget the records of a run, and those of earlier requests that have come back; then look whether any is left."""
        started = time.perf_counter()
        index = self.index()
        earlier = set(self.ledger.forgotten()) - set(run.records)
        back = sorted(earlier & index.ids.keys())
        here = [r for r in run.records if r in index.ids]
        ids = sorted(index.ids[r] for r in [*here, *back])
        before = self.ledger.begin(
            run,
            {
                "model": self.executor.fingerprint(), "data": index.digest, "records": len(here), "resurrected": len(back),
            },
        )  # fmt: skip
        effect = self.executor.forget(ids)
        after = self.index()
        left = [r for r in (*run.records, *earlier) if r in after.ids]
        if left:
            raise ExpungeError(
                f"{len(left)} forgotten records are in the training data of the new model; it is not accepted, "
                "look for what puts them back"
            )
        notes = list(effect.notes)
        if run.attempts > 1:
            notes.append(f"attempt {run.attempts}; files that an earlier one erased are not listed")
        return Outcome(
            method=self.executor.method,
            parameters=dict(self.executor.parameters),
            guarantee=self.executor.guarantee,
            model_before=before["model"],
            model_after=self.executor.fingerprint(),
            data_before=before["data"],
            data_after=after.digest,
            records=before["records"],
            scores=effect.scores,
            reaudited=len(earlier) + len(run.records),
            resurrected=before["resurrected"],
            erased=effect.erased,
            notes=notes,
            seconds=time.perf_counter() - started,
        )

    @contextmanager
    def _heartbeat(self, run: Run) -> Iterator[None]:
        """Renew the lease while the block runs; a lease that is lost is noticed when the run ends."""
        over = threading.Event()

        def renew() -> None:
            while not over.wait(self.lease_seconds / 3):
                try:
                    self.ledger.renew(run, self.lease_seconds)
                except LeaseLost:
                    return
                except ExpungeError as error:  # the database may be away for a moment
                    logger.warning("lease of run %s not renewed: %s", run.id, error)

        thread = threading.Thread(target=renew, daemon=True, name=f"lease-{run.id}")
        thread.start()
        try:
            yield
        finally:
            over.set()
            thread.join()
