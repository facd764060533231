"""A real small study, run once, and the app over its records."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("fastapi")
from fastapi.testclient import TestClient

from expunge.app import create_app
from expunge.studies.jobs import Store

TOKEN = "token"
MILD = {"name": "gradient-ascent", "label": "gradient-ascent", "lr": 0.001, "epochs": 1}
METRICS = [
    "accuracy", "mae", "r2", "mean-loss", "kl-to-retrained", "cka-to-retrained", "cka-to-target", "mia-loss-logistic",
    "mia-loss-svm",
    "mia-efficacy-loss-logistic", "mia-efficacy-loss-svm", "tpr-at-1-percent-fpr",
]  # fmt: skip


def study(name: str) -> dict[str, Any]:
    return {
        "name": name,
        "problems": [
            {
                "name": "digits",
                "benchmark": "digits",
                "forget": "fraction=0.1",
                "recipe": {"epochs": 5, "lr": 0.05},
            },
            {
                "name": "diabetes",
                "benchmark": "diabetes",
                "forget": "fraction=0.2",
                "recipe": {"epochs": 5, "lr": 0.05},
            },
        ],
        "methods": ["retrain", MILD, {"name": "npo", "epochs": 2}, "boundary-expand"],
        "metrics": METRICS,
        "attacks": ["population-mia", "quantization", "pruning"],
        "seeds": [0, 1],
    }


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from expunge import api

    folder = tmp_path_factory.mktemp("app") / "runs"
    api.run(study("small"), folder, workers=0, display="none")
    _keep_transcripts(folder)
    return folder


def _keep_transcripts(folder: Path) -> None:
    """Transcripts beside an attack, in the form in which attacks write them."""
    from expunge.studies.jobs import TRANSCRIPTS, write_transcripts

    index = json.loads((folder / "small" / "jobs.json").read_text())
    row = next(
        r for r in index["rows"] if (r["problem"], r["label"], r["seed"]) == ("digits", "gradient-ascent", 0)
    )
    said = [
        {"id": f"digit-{i}", "asked": f"secret question {i}", "answered": "secret answer", "score": i / 4}
        for i in range(4)
    ]
    write_transcripts(Store(folder / "store").folder(row["attacks"]["population-mia"]) / TRANSCRIPTS, said)


@pytest.fixture(scope="session")
def client(runs: Path) -> TestClient:
    return TestClient(create_app(runs, hosts=["testserver"], token=TOKEN))


@pytest.fixture(scope="session")
def ledger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A ledger with a request done, one refused, one late and one waiting, as `expunge ledger` leaves it."""
    pytest.importorskip("sqlalchemy")
    pytest.importorskip("cryptography")
    from datetime import UTC, datetime, timedelta

    from expunge.cli.ledger import opened, prepare
    from expunge.ledger.certificates import SigningKey
    from expunge.ledger.chain import sealing
    from expunge.ledger.log import Log
    from expunge.ledger.worker import Worker
    from tests.ledger.toy import RowList

    folder = tmp_path_factory.mktemp("ledger") / "ledger"
    (folder / "model").mkdir(parents=True)
    database, keys = f"sqlite:///{folder / 'ledger.db'}", folder / "keys"
    prepare(database, keys)
    key = SigningKey.load(keys / "signing.pem")
    executor = RowList.create(folder / "model", {f"row-{i}": None for i in range(9)})
    with opened(database, keys) as found:
        found.submit(record_ids=["row-1", "row-2"], reason="Art. 17")
        found.submit(record_ids=["elsewhere"], reason="by phone")
        Worker(found, executor, sealing(key), name="test").run(until_idle=True)
        now = datetime.now(UTC)
        found.submit(record_ids=["row-3"], reason="late", deadline=now - timedelta(days=1))
        found.submit(record_ids=["row-4"], reason="waiting", deadline=now + timedelta(days=20))
        Log(folder / "log.jsonl").mirror(found.log())
    return folder
