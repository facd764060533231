"""Optional packages: imported where they are used, and named with the extra that brings them where they are absent."""

from __future__ import annotations

import importlib
from typing import Any

from expunge.errors import Missing


def load_extra(package: str, extra: str, purpose: str) -> Any:
    """Import `package`, which comes with ``pip install 'expunge[extra]'``; `purpose` begins the error where it is absent."""
    try:
        return importlib.import_module(package)
    except ImportError:
        raise Missing(
            f"{purpose} needs the package '{package}', which is not installed; run pip install 'expunge[{extra}]'"
        ) from None
