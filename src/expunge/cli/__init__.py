"""The command line; one thin file per command."""

from expunge.cli.main import main

__all__ = ["main"]
