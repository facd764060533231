"""A chain of signed entries: each names the SHA-256 of the one before it (Haber & Stornetta, J. Cryptology 1991).

An entry is one line of canonical JSON: `sequence` (0, 1, 2, ...), `previous` (digest of the preceding line; zeros in the
first), `at`, `body` (a certificate, or a rotation of keys), `key` and `signature`. An edited, inserted, moved, repeated or
missing line breaks a signature or the chain. Lines cut off at the end break neither; for that there are *checkpoints*,
signed statements of how long the log was and how it ended (as the signed tree heads of RFC 9162, without the tree).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from expunge.errors import BadInput
from expunge.files import canonical_json, read_json, write_atomic
from expunge.ledger.certificates import Certificate, PublicKey, SigningKey, is_signed, sign
from expunge.ledger.requests import Outcome, Run
from expunge.record import Record

NOTHING = "0" * 64
"""Stands for the line before the first."""
FIELDS = {"sequence", "previous", "at", "body", "key", "signature"}


class Rotation(Record):
    """Later entries are signed by another key. The old key signs this entry, the new one consents at this very place."""

    kind: Literal["rotation"] = "rotation"
    successor: str = Field(description="the new public key, 64 hexadecimal digits")
    consent: dict[str, Any] = Field(description="place in the log, signed by the new key")

    @classmethod
    def to(cls, successor: SigningKey, previous_line: str | None) -> Rotation:
        """The rotation that follows `previous_line` (None in an empty log)."""
        place = {"previous": line_digest(previous_line)}
        return cls(successor=successor.public.digits, consent=sign(place, "handover", successor))


class Checkpoint(Record):
    """How long the log was and how it ended, signed; proves later that nothing was cut off before this point."""

    kind: Literal["checkpoint"] = "checkpoint"
    log: str = Field(description="digest of the first line: which log this is; zeros where it was empty")
    count: int = Field(ge=0, description="entries")
    head: str = Field(description="digest of the last line")
    at: str = Field(description="time of signing, RFC 3339; a text, since the signature covers its spelling")
    key: str = Field(description="public key in force, 64 hexadecimal digits")
    signature: str

    @classmethod
    def of(cls, first: str | None, count: int, last: str | None, key: SigningKey) -> Checkpoint:
        """The checkpoint of a log with these first and last lines."""
        facts = {
            "kind": "checkpoint", "log": line_digest(first), "count": count, "head": line_digest(last), "at": _now(),
        }  # fmt: skip
        return cls.model_validate(sign(facts, "checkpoint", key))

    def write(self, path: Path) -> None:
        """Write it as JSON, whole or not at all."""
        write_atomic(path, canonical_json(self) + "\n")

    @classmethod
    def read(cls, path: Path) -> Checkpoint:
        """Read it; `verify` finds out whether it is genuine."""
        content = read_json(path)
        try:
            return cls.model_validate(content)
        except ValueError:
            raise BadInput(f"'{path}' is not a checkpoint of a log of certificates") from None


def line_digest(line: str | None) -> str:
    """SHA-256 of a line without its newline, `[64]` hexadecimal digits; zeros for None."""
    return NOTHING if line is None else sha256(line.encode()).hexdigest()


def extend(previous_line: str | None, body: Certificate | Rotation, key: SigningKey) -> str:
    """The line that follows `previous_line` (None begins a log), without a newline.

    A pure function apart from the time, so that the same chain grows in a file and in a database transaction.

    Raises:
        BadInput: the previous line is no entry, or `key` is not the one that must sign after it.
    """
    sequence = 0
    if previous_line is not None:
        before = parse_entry(previous_line)
        if isinstance(before, str):
            raise BadInput(f"the log's last line cannot be followed: it {before}")
        if key_after(before) != key.public.digits:
            raise BadInput(
                f"the log is signed by the key {key_after(before)[:16]}..., not by {key.public.digits[:16]}...; "
                "append a rotation signed by the old key first"
            )
        sequence = before["sequence"] + 1
    entry = {
        "sequence": sequence, "previous": line_digest(previous_line), "at": _now(), "body": json.loads(canonical_json(body)),
    }  # fmt: skip
    return canonical_json(sign(entry, "entry", key))


def sealing(key: SigningKey) -> Callable[[Run, Outcome, str | None], str]:
    """What a `Worker` seals its runs with: from a run, what it did and the line before, the line of a signed certificate."""

    def seal(run: Run, outcome: Outcome, previous_line: str | None) -> str:
        return extend(previous_line, Certificate.of(run, outcome), key.current())

    return seal


def certificate_in(line: str, public_key: PublicKey) -> Certificate:
    """The certificate of one line, which its owner can check without the log.

    Raises:
        BadInput: the line is no entry signed by this key, or holds no certificate.
    """
    entry = parse_entry(line)
    if isinstance(entry, str):
        raise BadInput(f"the certificate {entry}")
    if entry["key"] != public_key.digits:
        raise BadInput(f"the certificate is signed by another key, {entry['key'][:16]}...")
    try:
        return Certificate.model_validate(entry["body"])
    except ValueError:
        raise BadInput(
            f"entry {entry['sequence']} holds no certificate of a version that is known here"
        ) from None


def parse_entry(line: str | bytes) -> dict[str, Any] | str:
    """The entry on a line, or what is wrong with it. Accepts one spelling only, so that a changed byte is a changed entry."""
    try:
        text = line if isinstance(line, str) else line.decode("ascii")
        entry = json.loads(text)
        canonical = canonical_json(entry) == text
    except (ValueError, RecursionError):
        return "is not JSON"
    if not canonical:
        return "is not canonical JSON"
    if not isinstance(entry, dict) or set(entry) != FIELDS or not isinstance(entry["body"], dict):
        return "is not an entry of a log of certificates"
    if type(entry["sequence"]) is not int or not isinstance(entry["previous"], str):
        return "is not an entry of a log of certificates"
    if not is_signed(entry, "entry"):
        return "has a wrong signature"
    return entry


def key_after(entry: dict[str, Any]) -> str:
    """The public key that must sign what follows an entry."""
    body = entry["body"]
    return str(body.get("successor")) if body.get("kind") == "rotation" else entry["key"]


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
