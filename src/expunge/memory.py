"""Peak memory of a block of code."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


@dataclass
class Peak:
    """Filled in when the block ends."""

    bytes: int | None = None


@contextlib.contextmanager
def peak_memory(device: str = "cpu") -> Iterator[Peak]:
    """Measure the peak above the level at entry: CUDA's own count, or the resident set of the process on Linux.

    Resident memory moves in pages and allocator arenas, so differences below a few MiB mean nothing. Elsewhere, or
    where the kernel does not let the high-water mark be reset, `bytes` stays None.
    """
    peak = Peak()
    if device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats(device)
        start = torch.cuda.memory_allocated(device)
        yield peak
        peak.bytes = torch.cuda.max_memory_allocated(device) - start
        return
    start = _reset()
    yield peak
    if start is not None:
        peak.bytes = max(0, _read("VmHWM") - start)


def _reset() -> int | None:
    try:
        _CLEAR.write_text("5")  # resets the high-water mark to the current size
        return _read("VmRSS")
    except (OSError, AttributeError):
        return None


def _read(key: str) -> int:
    found = re.search(rf"{key}:\s+(\d+) kB", _STATUS.read_text())
    if found is None:
        raise OSError(f"no {key}")
    return int(found.group(1)) * 1024
