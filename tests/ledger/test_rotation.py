"""Another signing key: logs go on, old public keys go on checking, old private keys sign nothing."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

pytest.importorskip("cryptography")

from expunge.errors import BadInput
from expunge.ledger import Ledger
from expunge.ledger.certificates import Certificate, SigningKey
from expunge.ledger.chain import Checkpoint, extend, sealing
from expunge.ledger.rotation import rotate
from expunge.ledger.verification import verify
from expunge.ledger.worker import Worker
from tests.cli.conftest import Run, expunge  # noqa: F401 (fixtures)
from tests.ledger.toy import RowList


def made(folder: Path) -> SigningKey:
    key = SigningKey.create(folder / "signing.pem")
    key.public.write(folder / "public.pem")
    return key


def test_a_worker_goes_on_under_the_new_key(ledger: Ledger, tmp_path: Path) -> None:
    keys = tmp_path / "keys"
    old = made(keys)
    executor = RowList.create(tmp_path / "model", dict.fromkeys(["r-1", "r-2", "r-3"]))
    worker = Worker(ledger, executor, sealing(SigningKey.load(keys / "signing.pem")))
    ledger.submit(record_ids=["r-1"])
    worker.run(until_idle=True)
    before, key = rotate(ledger, keys)
    assert before == old.public != key.public
    ledger.submit(record_ids=["r-2"])
    worker.run(until_idle=True)
    lines = list(ledger.log())
    for public in (old.public, key.public):
        found = verify(lines, public, Checkpoint.of(lines[0], 3, lines[-1], key))
        assert found.valid and found.certificates == 2 and found.key == key.public.digits
    # The old private key is gone from the folder, and what it would sign is refused.
    assert SigningKey.load(keys / "signing.pem").public == key.public
    assert sorted(p.name for p in keys.iterdir()) == ["public.pem", "signing.pem"]
    with pytest.raises(BadInput, match="is signed by the key"):
        extend(lines[-1], _certificate(lines[0]), old)


def _certificate(line: str) -> Certificate:
    return Certificate.model_validate(json.loads(line)["body"])


def test_an_empty_log_can_be_handed_over(ledger: Ledger, tmp_path: Path) -> None:
    old = made(tmp_path)
    _, key = rotate(ledger, tmp_path)
    assert verify(ledger.log(), old.public).valid
    assert key.public.digits == verify(ledger.log(), old.public).key


@pytest.mark.parametrize("step", ["append", "replace"])
def test_a_rotation_that_was_cut_off_is_finished_with_the_same_key(
    step: str, ledger: Ledger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(tmp_path)

    def die(*_: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        if step == "append":
            patch.setattr(ledger, "append", die)
        else:
            patch.setattr(os, "replace", die)
        rotate(ledger, tmp_path)
    waiting = SigningKey.load(tmp_path / "signing.next.pem")
    _, key = rotate(ledger, tmp_path)
    assert key.public == waiting.public and len(list(ledger.log())) == 1


def test_command(tmp_path: Path, expunge: Run, monkeypatch: pytest.MonkeyPatch) -> None:  # noqa: F811
    monkeypatch.chdir(tmp_path)
    expunge("ledger", "init")
    old = Path("ledger/keys/public.pem").read_text()
    Path("old.pem").write_text(old)
    rotated = expunge("ledger", "rotate", "--json").json
    assert rotated["before"] != rotated["after"]
    assert Path("ledger/keys/public.pem").read_text() != old
    for public in ("old.pem", "ledger/keys/public.pem"):
        assert expunge("ledger", "verify", "--public-key", public).code == 0
