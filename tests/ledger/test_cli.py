"""The commands, from an empty folder to a certificate that verifies."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from expunge.data.benchmarks import digits
from expunge.problem import Training
from tests.cli.conftest import Run, expunge, mine  # noqa: F401 (fixtures)
from tests.ledger import conftest  # noqa: F401 (skips where the extra is absent)

pytest.importorskip("cryptography")

PROBLEM = """
model: {kind: builtin, name: mlp, options: {inputs: 2, outputs: 2, hidden: [4]}}
recipe: {epochs: 2, batch_size: 16}
data: train.csv
test: held.csv
family: classifier
id: key
inputs: [a, b]
group: user
"""


@pytest.fixture
def place(mine: Path, expunge: Run) -> Path:  # noqa: F811
    """A folder with data and an empty ledger."""
    (mine / "problem.yaml").write_text(PROBLEM)
    made = expunge("ledger", "init", "--json")
    assert made.code == 0 and made.json["changed"] is True
    return mine


def test_from_requests_to_a_certificate(place: Path, expunge: Run) -> None:  # noqa: F811
    (place / "ids.txt").write_text("r1\nr2\n")
    by_record = expunge("ledger", "submit", "--records", "ids.txt", "--reason", "Art. 17", "--json").json
    by_person = expunge(
        "ledger", "submit", "--subject", "ann", "--deadline", "2030-01-31T00:00Z", "--json"
    ).json
    unknown = expunge("ledger", "submit", "--record", "r999", "--json").json
    assert expunge("ledger", "status", "--json").json["states"] == {"received": 3}
    command = [
        "ledger", "run", "--model", "served", "--problem", "problem.yaml", "--subject-column", "user", "--set", "shards=2",
        "--set", "slices=2", "--set", "by=user", "--json",
    ]  # fmt: skip
    done = expunge(*command)
    assert done.code == 0, done.err
    assert done.json["runs"] == 1 and done.json["states"] == {"done": 2, "refused": 1}
    status = expunge("ledger", "status", by_person["id"], "--json").json
    assert status["state"] == "done" and "ann" not in json.dumps(status)
    [refused] = expunge("ledger", "status", "--state", "refused", "--json").json["requests"]
    assert (
        refused["id"] == unknown["id"]
        and refused["explanation"] == "none of the 1 records is in the training data"
    )

    log = place / "ledger" / "log.jsonl"
    [line] = log.read_text().splitlines()
    body = json.loads(line)["body"]
    assert body["request_ids"] == sorted([by_record["id"], by_person["id"]])
    outcome = body["outcome"]
    assert (outcome["method"], outcome["guarantee"], outcome["records"]) == ("sisa", "bitwise", 10)
    assert {score["split"] for score in outcome["scores"]} == {"test"}
    checked = expunge("ledger", "verify", "--json")
    assert checked.code == 0 and checked.json["requests"] == 2 and checked.json["checkpoint"] == 1
    log.write_text(log.read_text().replace('"records":10', '"records":11'))
    broken = expunge("ledger", "verify", log, "--public-key", "ledger/keys/public.pem")
    assert broken.code == 1 and broken.out.startswith("not valid: entry 0")


def test_a_folder_goes_on_without_the_data(place: Path, expunge: Run) -> None:  # noqa: F811
    start = ["ledger", "run", "--model", "served", "--no-audit", "--json"]
    problem = ["--problem", "problem.yaml", "--set", "shards=1", "--set", "slices=1"]
    assert "holds no sharded model; say by --problem or --benchmark" in expunge(*start).err
    assert expunge(*start, *problem).code == 0
    (place / "train.csv").unlink()
    expunge("ledger", "submit", "--record", "r1")
    assert expunge(*start).json["states"] == {"done": 1}
    again = expunge(*start, "--set", "shards=2")
    assert again.code == 2 and "has its own method and parameters; leave them out" in again.err


def test_other_methods(place: Path, expunge: Run) -> None:  # noqa: F811
    expunge("ledger", "submit", "--record", "r1")
    done = expunge(
        "ledger",
        "run",
        "--model",
        "served",
        "--problem",
        "problem.yaml",
        "--method",
        "retrain",
        "--no-audit",
        "--json",
    )
    assert done.code == 0, done.err
    body = json.loads((place / "ledger" / "log.jsonl").read_text())["body"]
    assert (body["outcome"]["method"], body["outcome"]["guarantee"]) == ("retrain", "distributional")


def test_requests_can_be_withdrawn_exported_and_purged(place: Path, expunge: Run) -> None:  # noqa: F811
    request = expunge("ledger", "submit", "--subject", "ann", "--reason", "why", "--json").json["id"]
    assert expunge("ledger", "withdraw", request, "--json").json["state"] == "refused"
    again = expunge("ledger", "retry", request)
    assert again.code == 2 and "is refused; that is possible while it is failed" in again.err
    assert expunge("ledger", "purge", "--days", "0", "--json").json == {"purged": 1}
    assert expunge("ledger", "export", "all.jsonl", "--json").json == {"file": "all.jsonl", "requests": 1}
    [line] = (place / "all.jsonl").read_text().splitlines()
    assert json.loads(line)["id"] == request and json.loads(line)["reason"] == ""
    assert "exists already" in expunge("ledger", "export", "all.jsonl").err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["submit"], 2, "either a subject or records"),
        (["submit", "--records", "absent.txt"], 2, "no file 'absent.txt' with ids"),
        (["submit", "--subject", "a", "--deadline", "soon"], 2, "--deadline 'soon' is not a time"),
        (["submit", "--subject", "a", "--deadline", "2030-01-01"], 2, "must say its time zone"),
        (["status", "0" * 32], 2, "no request has the id"),
        (["status", "--database", "sqlite:///absent.db"], 3, "run `expunge ledger init`"),
        (["status", "--keys", "absent"], 3, "there is no key 'absent/subjects.key'"),
        (["verify"], 2, "no log 'ledger/log.jsonl'"),
    ],
)
def test_refusals(place: Path, expunge: Run, arguments: list[str], code: int, message: str) -> None:  # noqa: F811
    done = expunge("ledger", *arguments)
    assert done.code == code and message in done.err and "Traceback" not in done.err


def test_keys_stay_when_a_ledger_is_made_again(place: Path, expunge: Run) -> None:  # noqa: F811
    before = {file.name: file.read_bytes() for file in (place / "ledger" / "keys").iterdir()}
    assert expunge("ledger", "init", "--json").json["changed"] is False
    assert {file.name: file.read_bytes() for file in (place / "ledger" / "keys").iterdir()} == before
    assert (place / "ledger" / "ledger.db").stat().st_mode & 0o777 == 0o600


def test_demo_ends_with_a_checked_certificate_and_can_be_repeated(
    tmp_path: Path,
    expunge: Run,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(digits._RECIPES, "cnn", Training(epochs=2, batch_size=64))
    shown = expunge("ledger", "demo")
    assert shown.code == 0, shown.err
    assert shown.out.count("done, after") == 3 and "the same weights, bit by bit" in shown.out
    assert "guarantee: bitwise" in shown.out and "entry 0 has a wrong signature" in shown.out
    again = expunge("ledger", "demo", "--json").json
    assert again["verification"]["valid"] and again["verification"]["certificates"] == 1
    assert not again["edited"]["valid"] and again["faults"] == []
    assert sorted(r["id"] for r in again["requests"]) == again["certificate"]["request_ids"]
    assert again["certificate"]["outcome"]["records"] == 4
    folder = tmp_path / "runs" / "ledger-demo"
    public = folder / "keys" / "public.pem"
    assert expunge("ledger", "verify", folder / "log.jsonl", "--public-key", public).code == 0
