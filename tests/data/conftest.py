"""Fixtures of the data tests."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import datasets
import pytest
import transformers

from expunge.testing.pictures import save_tiny_pipeline


@pytest.fixture(autouse=True)
def private_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is written to the user's cache."""
    cache = tmp_path_factory.mktemp("datasets")
    package: Any = datasets
    monkeypatch.setattr(package.config, "HF_DATASETS_CACHE", cache)


@pytest.fixture(autouse=True, scope="session")
def no_bars() -> None:
    transformers.utils.logging.disable_progress_bar()


@pytest.fixture(scope="session")
def stable_diffusion(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder as diffusers saves it, with every part of Stable Diffusion in small and random weights."""
    return save_tiny_pipeline(tmp_path_factory.mktemp("pipelines") / "tiny")
