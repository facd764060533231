"""Handing the log over to another signing key.

The old key signs an entry of the log that names its successor, and the successor consents at that place; from then on
only the successor may sign. Whoever checks the log with the old public key goes on doing so. The old private key is deleted:
it can sign nothing any more that would be accepted.
"""

from __future__ import annotations

import os
from pathlib import Path

from expunge.ledger.certificates import PublicKey, SigningKey
from expunge.ledger.chain import Rotation, extend, key_after, parse_entry
from expunge.ledger.store import Ledger

SIGNING, SUCCESSOR, PUBLIC = "signing.pem", "signing.next.pem", "public.pem"


def rotate(ledger: Ledger, keys: Path) -> tuple[PublicKey, SigningKey]:
    """Make a new signing key in the folder `keys`, hand the log over to it, and delete the old private key.

    Workers and services read the key anew for each signature. A rotation that was cut off anywhere is finished by the next
    call, which then makes no further key.

    Returns:
        The old public key, and the new key.
    """
    old = SigningKey.load(keys / SIGNING)
    waiting = keys / SUCCESSOR
    successor = SigningKey.load(waiting) if waiting.exists() else SigningKey.create(waiting)
    if _in_force(ledger, old.public.digits) != successor.public.digits:
        ledger.append(lambda last: extend(last, Rotation.to(successor, last), old))
    successor.public.write(keys / PUBLIC)
    os.replace(waiting, keys / SIGNING)
    return old.public, SigningKey.load(keys / SIGNING)


def _in_force(ledger: Ledger, otherwise: str) -> str:
    """The key that must sign next."""
    count = ledger.counts().certificates
    entries = [
        entry for line in ledger.log(max(0, count - 1)) if isinstance(entry := parse_entry(line), dict)
    ]
    return key_after(entries[-1]) if entries else otherwise
