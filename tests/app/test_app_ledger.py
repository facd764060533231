"""The Ledger page's numbers against the ledger's own, and against the log as it lies there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from expunge.app import create_app
from expunge.app.ledger import LedgerPlace, ledger_view
from expunge.errors import Missing


def test_the_page_says_what_the_ledger_says(ledger: Path, tmp_path: Path) -> None:
    from expunge.cli.ledger import opened

    app = create_app(tmp_path, hosts=["testserver"], ledger=LedgerPlace.at(ledger))
    client = TestClient(app)
    assert client.get("/api/session").json()["ledger"]
    view = client.get("/api/ledger").json()
    place = LedgerPlace.at(ledger)
    with opened(place.database, Path(place.keys)) as found:
        counts, own = found.counts(), {r.id: r for r in found.export()}
    assert view["counts"] == {str(k): v for k, v in counts.states.items()}
    assert (
        view["counts"]["done"] == 1
        and view["counts"]["refused"] == 1
        and view["overdue"] == counts.overdue == 1
    )
    assert {r["id"]: (r["state"], r["explanation"]) for r in view["requests"]} == {
        i: (r.state, r.explanation) for i, r in own.items()
    }
    assert [r["reason"] for r in view["requests"] if r["overdue"]] == ["late"]
    [line] = (ledger / "log.jsonl").read_text().splitlines()
    [entry] = view["certificates"]
    assert entry["body"] == json.loads(line)["body"] and entry["body"]["outcome"]["records"] == 2
    assert view["valid"] and view["verification"].startswith("1 entry, 1 certificate, 1 request certified")
    assert "row-1" not in json.dumps(view["requests"])


def test_an_edited_log_does_not_hold(ledger: Path, tmp_path: Path) -> None:
    copied = Path(shutil.copytree(ledger, tmp_path / "ledger"))
    log = copied / "log.jsonl"
    log.write_text(log.read_text().replace('"records":2', '"records":3'))
    view = ledger_view(LedgerPlace.at(copied))
    assert view.valid is False and "signature" in view.verification
    (copied / "keys" / "public.pem").unlink()
    assert ledger_view(LedgerPlace.at(copied)).valid is None
    with pytest.raises(Missing, match="no ledger"):
        ledger_view(LedgerPlace.at(tmp_path / "none"))
