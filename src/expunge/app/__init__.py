"""The local web app: see, compare and attack the models of a folder of runs."""

from __future__ import annotations

from typing import Any

__all__ = ["create_app"]


def create_app(*args: Any, **more: Any) -> Any:
    """`expunge.app.server.create_app`; needs the extra `app`."""
    from expunge.app.server import create_app as made

    return made(*args, **more)
