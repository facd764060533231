"""Fixtures shared by all tests: tiny trained problems, one target each, and the optional reference values."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
# What worlds make once and keep, such as judges of images: shared by all test runs of this checkout.
os.environ.setdefault("EXPUNGE_CACHE", str(Path(__file__).resolve().parents[1] / ".pytest_cache" / "expunge"))


@pytest.fixture(autouse=True, scope="session")
def one_thread() -> None:
    """One thread everywhere: tests run side by side, and results do not depend on the machine's width."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference values and data sets that are not part of the package; tests skip where it is absent."""
    folder = Path(os.environ.get("EXPUNGE_SHARED", Path(__file__).resolve().parents[2] / "shared"))
    if not (folder / "golden").is_dir():
        pytest.skip("reference values are not on this machine (set EXPUNGE_SHARED)")
    return folder
