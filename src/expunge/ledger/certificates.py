"""Certificates of forgetting, and the signatures that make them checkable by anyone who has the public key.

Signatures are Ed25519 (RFC 8032) over the canonical JSON of a document, preceded by its purpose, so that what was signed
as one kind of document never passes as another.

A certificate says what the ledger's owner did and found. A signature proves who says so and that nothing was changed
since; it does not prove that the statement is true. That rests on the method's guarantee and on the audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, Self

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from pydantic import Field

from expunge.errors import BadInput, Missing
from expunge.files import canonical_json, write_atomic
from expunge.ledger.keys import read_private, write_private
from expunge.ledger.requests import Outcome, Run
from expunge.record import Record

CERTIFICATE_VERSION = 1


class Certificate(Record):
    """What one run forgot, for whom, by what method, and what the audit found afterwards. No field names a person."""

    kind: Literal["certificate"] = "certificate"
    version: int = CERTIFICATE_VERSION
    run_id: str
    request_ids: list[str] = Field(min_length=1, description="the requests that this run fulfilled")
    received_at: datetime = Field(description="when the oldest of the requests arrived")
    finished_at: datetime = Field(description="when the run ended")
    unknown: int = Field(default=0, ge=0, description="named records that were never in the training data")
    outcome: Outcome
    verdict: str = Field(description="what the audit after the run says, in words")

    @classmethod
    def of(cls, run: Run, outcome: Outcome) -> Self:
        """The certificate of a run that ends now, and well; its verdict is read off the outcome."""
        return cls(
            run_id=run.id,
            request_ids=sorted(run.request_ids),
            received_at=run.received_at,
            finished_at=datetime.now(UTC),
            unknown=run.unknown,
            outcome=outcome,
            verdict=verdict(outcome),
        )


def verdict(outcome: Outcome) -> str:
    """The audit of a run in one sentence; says what was looked for, and never more than that."""
    if not outcome.reaudited:
        return "not audited: no forgotten record was looked for after the run"
    many = outcome.reaudited != 1
    found = (
        f"the {outcome.reaudited} forgotten {'records' if many else 'record'} looked for "
        f"{'are' if many else 'is'} not in the data that the served model was trained on"
    )
    missing = [score.metric for score in outcome.scores if score.status != "ok"]
    return f"{found}; without a value: {', '.join(missing)}" if missing else found


class PublicKey:
    """What anyone may have, and all that verification needs: 32 bytes, here as 64 hexadecimal digits or as a PEM file."""

    def __init__(self, digits: str) -> None:
        try:
            raw = bytes.fromhex(digits)
            self._key = Ed25519PublicKey.from_public_bytes(raw)
        except ValueError:
            raise BadInput(
                f"{digits[:80]!r} is not an Ed25519 public key; it must be 64 hexadecimal digits"
            ) from None
        self.digits = raw.hex()

    def __repr__(self) -> str:
        return f"PublicKey({self.digits!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PublicKey) and self.digits == other.digits

    def __hash__(self) -> int:
        return hash(self.digits)

    @property
    def pem(self) -> str:
        """The key as PEM (SubjectPublicKeyInfo), which OpenSSL reads too."""
        return self._key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()

    @classmethod
    def load(cls, path: Path) -> PublicKey:
        """Read a PEM file."""
        try:
            key = load_pem_public_key(path.read_bytes())
        except FileNotFoundError:
            raise Missing(f"there is no public key '{path}'; ask the ledger's owner for it") from None
        except ValueError:
            raise BadInput(f"'{path}' is not a public key in PEM form") from None
        if not isinstance(key, Ed25519PublicKey):
            raise BadInput(f"'{path}' holds a key of another kind; certificates are signed with Ed25519")
        return cls(key.public_bytes_raw().hex())

    def write(self, path: Path) -> None:
        """Write the key as PEM."""
        write_atomic(path, self.pem)

    def accepts(self, signature: bytes, message: bytes) -> bool:
        """Whether the owner of this key signed exactly `message`."""
        try:
            self._key.verify(signature, message)
        except InvalidSignature:
            return False
        return True


class SigningKey:
    """The private key. It stays in a file that only its owner can read; whoever has it can write certificates."""

    def __init__(self, key: Ed25519PrivateKey, path: Path | None = None) -> None:
        self._key, self._path = key, path
        self.public = PublicKey(key.public_key().public_bytes_raw().hex())

    def __repr__(self) -> str:
        return f"SigningKey(public={self.public.digits!r})"

    @classmethod
    def generate(cls) -> SigningKey:
        """A new key that is nowhere but in memory."""
        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def create(cls, path: Path) -> SigningKey:
        """Write a new key to `path` (PEM, PKCS #8, mode 0600), which must not exist."""
        key = cls(Ed25519PrivateKey.generate(), path)
        write_private(path, key._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return key

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read a PEM file; one that others can read is refused."""
        try:
            key = load_pem_private_key(read_private(path), password=None)
        except (ValueError, TypeError):
            raise BadInput(f"'{path}' is not an unencrypted private key in PEM form") from None
        if not isinstance(key, Ed25519PrivateKey):
            raise BadInput(f"'{path}' holds a key of another kind; certificates are signed with Ed25519")
        return cls(key, path)

    def current(self) -> SigningKey:
        """The key that is in the file now, another one after a rotation; itself where it is in no file."""
        return self if self._path is None else SigningKey.load(self._path)

    def sign(self, message: bytes) -> bytes:
        """The 64 bytes of the signature."""
        return self._key.sign(message)


Purpose = Literal["entry", "handover", "checkpoint"]
"""What a signature stands under: an entry of the log, a new key's consent to succeed, the head of the log."""


def sign(document: Mapping[str, Any], purpose: Purpose, key: SigningKey) -> dict[str, Any]:
    """`document` with the signer's public key and its signature (128 hexadecimal digits) over everything else."""
    named = {**document, "key": key.public.digits}
    return {**named, "signature": key.sign(_message(named, purpose)).hex()}


def is_signed(document: Mapping[str, Any], purpose: Purpose) -> bool:
    """Whether the key that `document` names signed it, for this purpose. Whether that key deserves trust is another question."""
    digits, signature = document.get("key"), document.get("signature")
    if not isinstance(digits, str) or not isinstance(signature, str):
        return False
    try:
        key, raw = PublicKey(digits), bytes.fromhex(signature)
    except (BadInput, ValueError):
        return False
    # One spelling only: hexadecimal digits in capitals or with spaces would be another document that passes as this one.
    if key.digits != digits or raw.hex() != signature:
        return False
    return key.accepts(raw, _message({k: v for k, v in document.items() if k != "signature"}, purpose))


def _message(document: Mapping[str, Any], purpose: Purpose) -> bytes:
    return f"expunge ledger {purpose}\n{canonical_json(document)}".encode()
