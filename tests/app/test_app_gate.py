"""Nobody but this machine's own page: hosts, origins, tokens, policies, and no path outside the runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from expunge.app import create_app
from expunge.app.gate import TOKEN_HEADER
from expunge.app.server import hosts_for, is_loopback

from .conftest import TOKEN


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "secret.txt").write_text("outside")
    runs = tmp_path / "runs"
    (runs / "one").mkdir(parents=True)
    (runs / "one" / "run.yaml").write_text("effective: {}\n")
    return runs


def _client(folder: Path) -> TestClient:
    return TestClient(create_app(folder, hosts=["testserver"], token=TOKEN), follow_redirects=False)


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8642", "testserver.evil", "", "127.0.0.1"])
def test_another_host_is_refused(folder: Path, host: str) -> None:
    answer = _client(folder).get("/api/session", headers={"Host": host})
    assert answer.status_code == 421 and TOKEN not in answer.text


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "https://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://testserver.evil"},
        {"Sec-Fetch-Site": "cross-site"},
    ],
)
def test_another_origin_is_refused_even_with_the_token(folder: Path, headers: dict[str, str]) -> None:
    for method in ("get", "post"):
        answer = getattr(_client(folder), method)("/api/session", headers={**headers, TOKEN_HEADER: TOKEN})
        assert answer.status_code == 403 and TOKEN not in answer.text


@pytest.mark.parametrize("given", [None, "", "wrong", TOKEN + "x"])
def test_changes_need_the_token(folder: Path, given: str | None) -> None:
    headers = {} if given is None else {TOKEN_HEADER: given}
    for path in ("/api/studies", "/api/plan", "/api/runs/one/cancel"):
        answer = _client(folder).post(path, headers=headers, json={"study": {}})
        assert answer.status_code == 403
        assert "token" in answer.json()["error"]


def test_with_the_token_and_the_own_origin_changes_are_let_through(folder: Path) -> None:
    headers = {TOKEN_HEADER: TOKEN, "Origin": "http://testserver"}
    answer = _client(folder).post("/api/runs/one/cancel", headers=headers)
    assert answer.status_code == 400 and "not under way" in answer.json()["error"]


def test_every_answer_carries_the_policy(folder: Path) -> None:
    client = _client(folder)
    for path in ("/", "/api/session", "/nothing", "/api/runs/none"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy and "script-src 'self';" in policy
        assert "unsafe-eval" not in policy and "script-src 'self' 'unsafe-inline'" not in policy
        assert client.get(path).headers["x-content-type-options"] == "nosniff"


def test_the_report_is_an_origin_of_its_own(folder: Path) -> None:
    (folder / "one" / "report.html").write_text("<script>fetch('/api/session')</script>")
    policy = _client(folder).get("/runs/one/report.html").headers["content-security-policy"]
    assert policy.startswith("sandbox allow-scripts") and "allow-same-origin" not in policy
    assert "connect-src" not in policy and "default-src 'none'" in policy


@pytest.mark.parametrize(
    "path",
    [
        "/runs/../secret.txt", "/runs/..%2f..%2fsecret.txt", "/runs/one/..%2f..%2fsecret.txt", "/runs/%2e%2e/secret.txt",
        "/runs/one/%2e%2e%2f%2e%2e%2fsecret.txt", "/runs/one/secret.txt", "/runs/one//etc/passwd", "/assets/..%2f__init__.py",
        "/assets/../gate.py", "/api/runs/..", "/api/runs/%2e%2e%2fx", "/api/runs/store", "/api/runs/.app",
        "/api/runs/one/examples?problem=p&a=x@0&split=..%2f..%2fsecret", "/api/runs/one/separation?problem=p&model=..%2f@0",
    ],
)  # fmt: skip
def test_no_path_leads_out(folder: Path, path: str) -> None:
    answer = _client(folder).get(path)
    assert answer.status_code in (400, 404, 405, 422)
    assert "outside" not in answer.text and "root:" not in answer.text


def test_links_that_lead_out_are_not_followed(folder: Path) -> None:
    outside = folder.parent / "elsewhere"
    outside.mkdir()
    (outside / "scores.json").write_text('{"outside": true}')
    (outside / "run.yaml").write_text("outside")
    (folder / "linked").symlink_to(outside)
    (folder / "one" / "scores.json").symlink_to(outside / "scores.json")
    (folder / "one" / "report.html").symlink_to(folder.parent / "secret.txt")
    client = _client(folder)
    assert [r["name"] for r in client.get("/api/runs").json()["runs"]] == ["one"]
    for path in (
        "/runs/linked/run.yaml",
        "/api/runs/linked",
        "/runs/one/scores.json",
        "/runs/one/report.html",
        "/api/runs/one",
    ):
        answer = client.get(path)
        assert answer.status_code == 404, path
        assert "outside" not in answer.text.replace("leads out of", "")


def test_a_link_inside_is_followed(folder: Path) -> None:
    (folder / "one" / "log.jsonl").symlink_to(folder / "one" / "run.yaml")
    assert _client(folder).get("/runs/one/log.jsonl").status_code == 200


def test_only_records_are_served(folder: Path) -> None:
    (folder / "one" / "model.safetensors").write_bytes(b"weights")
    assert _client(folder).get("/runs/one/model.safetensors").status_code == 404


def test_hosts_are_this_machine_at_this_port() -> None:
    assert hosts_for(80) == {"127.0.0.1:80", "localhost:80", "[::1]:80"}
    assert "[::2]:80" in hosts_for(80, "::2")
    assert is_loopback("127.0.0.1") and is_loopback("::1") and is_loopback("localhost")
    assert not is_loopback("0.0.0.0") and not is_loopback("192.168.1.2") and not is_loopback("example.org")
