"""A small real study, run once for the tests that only look at it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from expunge.studies.study import Finished, run_study

SMALL: dict[str, Any] = {
    "name": "small",
    "problems": [{"benchmark": "diabetes", "forget": "fraction=0.1"}],
    "methods": ["retrain", "fine-tune", {"name": "npo", "beta": 0.2}, "ssd"],
    "seeds": [0, 1],
}


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="session")
def finished(runs: Path) -> Finished:
    return run_study(SMALL, runs, workers=0, display="none")
