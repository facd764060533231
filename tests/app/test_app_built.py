"""The committed pages are those of the sources, and speak of what the server answers; neither check needs Node."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

import pytest

from expunge.app.typescript import types

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("app_build", ROOT / "app" / "build.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_types_are_those_of_the_server() -> None:
    assert (ROOT / "app" / "src" / "api-types.ts").read_text() == types(), "run make app"


def test_bundle_was_built_from_these_sources(builder: ModuleType) -> None:
    assert builder.current(), "the committed bundle is stale; run make app"


def test_a_changed_source_is_noticed(
    builder: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name in ("index.html", "package-lock.json", "tsconfig.json", "vite.config.ts"):
        (tmp_path / name).write_text((ROOT / "app" / name).read_text())
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "main.tsx").write_text("a")
    monkeypatch.setattr(builder, "HERE", tmp_path)
    before = builder.fingerprint()
    (tmp_path / "src" / "main.tsx").write_text("b")
    assert builder.fingerprint() != before and not builder.current()


def test_no_private_place_is_written_down() -> None:
    lock = (ROOT / "app" / "package-lock.json").read_text()
    assert '"resolved"' not in lock
    for file in (ROOT / "src" / "expunge" / "app" / "static").rglob("*"):
        if file.is_file():
            found = set(re.findall(r"https?://([\w.-]+)", file.read_text()))
            assert found <= {"www.w3.org", "react.dev", "127.0.0.1"}, (file.name, found)


def test_the_bundle_is_small_enough_to_be_kept() -> None:
    files = [f for f in (ROOT / "src" / "expunge" / "app" / "static").rglob("*") if f.is_file()]
    assert sum(f.stat().st_size for f in files) < 600_000


def test_types_of_every_shape_of_schema() -> None:
    from expunge.app.typescript import _type

    assert _type({"anyOf": [{"type": "number"}, {"type": "null"}]}) == "number | null"
    assert (
        _type({"type": "array", "items": {"anyOf": [{"type": "string"}, {"type": "null"}]}})
        == "(string | null)[]"
    )
    assert (
        _type({"type": "array", "prefixItems": [{"type": "number"}, {"type": "number"}]})
        == "[number, number]"
    )
    assert (
        _type({"type": "object", "additionalProperties": {"$ref": "#/components/schemas/X-Output"}})
        == "Record<string, X>"
    )
    assert _type({"enum": ["a", "b"]}) == '"a" | "b"'
