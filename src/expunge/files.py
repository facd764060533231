"""Files that are either whole or absent, and fingerprints of what is in them."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from expunge.errors import BadInput, ExpungeError

if TYPE_CHECKING:
    import torch
    from datasets import Dataset


def canonical_json(value: Any) -> str:
    """JSON with sorted keys and no white space; refuses NaN and infinity, which strict readers refuse too."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False, default=_plain)


def _plain(value: Any) -> Any:
    if hasattr(value, "model_dump"):
        return value.model_dump(mode="json")
    if isinstance(value, (set, frozenset)):
        return sorted(value)
    if isinstance(value, Path):
        return str(value)
    if hasattr(value, "item"):
        return value.item()
    raise TypeError(f"{type(value).__name__} has no plain JSON form")


def digest(value: Any) -> str:
    """First 20 hexadecimal digits of the SHA-256 of the canonical JSON of `value`."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()[:20]


def state_digest(state: Mapping[str, torch.Tensor]) -> str:
    """Fingerprint of a state dict: names, shapes, types and every byte."""
    hasher = hashlib.sha256()
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        hasher.update(f"{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        hasher.update(tensor.reshape(-1).view(_byte_type()).numpy().tobytes() if tensor.numel() else b"")
    return hasher.hexdigest()[:20]


def _byte_type() -> torch.dtype:
    import torch

    return torch.uint8


def dataset_digest(dataset: Dataset) -> str:
    """Fingerprint of a data set's contents (column names, types, values, order), whatever file it came from."""
    import pyarrow as pa

    hasher = hashlib.sha256()
    plain = dataset.with_format("arrow")
    hasher.update(str(sorted(dataset.features)).encode())
    for start in range(0, len(dataset), 4096):
        chunk: pa.Table = plain[start : start + 4096]  # pyright: ignore
        table = chunk.select(sorted(chunk.column_names)).combine_chunks()
        sink = pa.BufferOutputStream()
        with pa.ipc.new_stream(sink, table.schema.remove_metadata()) as writer:
            writer.write_table(table.replace_schema_metadata(None))
        hasher.update(sink.getvalue())
    return hasher.hexdigest()[:20]


def write_atomic(path: Path, content: str | bytes) -> None:
    """Write `content` so that a reader sees the old file or the new one, never a part."""
    data = content.encode() if isinstance(content, str) else content
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
    except OSError as error:
        Path(temporary).unlink(missing_ok=True)
        raise _write_error(path, error) from error


@contextmanager
def folder_atomic(path: Path) -> Iterator[Path]:
    """Yield a temporary folder that becomes `path` when the block ends without an error.

    If `path` exists by then (another process did the same work) the new one is dropped: equal inputs give equal folders.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}."))
    try:
        yield temporary
        for file in temporary.rglob("*"):
            if file.is_file():
                with open(file, "rb+") as handle:
                    os.fsync(handle.fileno())
        os.chmod(temporary, 0o755)
        try:
            os.rename(temporary, path)
        except OSError:
            if not path.is_dir():
                raise
    except OSError as error:
        raise _write_error(path, error) from error
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _write_error(path: Path, error: OSError) -> ExpungeError:
    return ExpungeError(
        f"cannot write '{path}': {error.strerror or error}; what was complete before is untouched, "
        "free some space or choose another folder and run the same command again"
    )


def read_json(path: Path) -> Any:
    """Read a JSON file, or say which file is missing or broken."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise BadInput(f"no file '{path}'") from None
    except json.JSONDecodeError as error:
        raise BadInput(f"'{path}' is not valid JSON (line {error.lineno}): {error.msg}") from None


def finite(value: float | None) -> float | None:
    """`value`, or None where it is NaN or infinite: JSON has neither, and undefined is never 0."""
    return value if value is not None and math.isfinite(value) else None


CACHE = "cache:"
"""Begins the name of a file or folder in expunge's own cache, so that records hold no path of one machine."""


def cached(name: str | Path) -> Path:
    """The path that `name` means: with ``cache:`` in front, below ``$EXPUNGE_CACHE``, else ``~/.cache/expunge``."""
    if not str(name).startswith(CACHE):
        return Path(name)
    home = os.environ.get("EXPUNGE_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "expunge"
    return Path(home).expanduser() / str(name).removeprefix(CACHE)
