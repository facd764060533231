"""What was computed before: models and measurements in a folder, each under the name of all that it depends on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch import nn

from expunge.families.weights import read_weights, save_weights
from expunge.files import canonical_json, digest, folder_atomic, read_json, write_atomic


class Kept:
    """A folder of results; without one nothing is kept. `common` is what all of them depend on."""

    def __init__(self, folder: Path | None, common: Sequence[Any]) -> None:
        self.folder, self.common = folder, list(common)

    def content(self, what: Sequence[Any], make: Callable[[], Any]) -> Any:
        """What `make` gives, which is plain data."""
        if self.folder is None:
            return make()
        file = self.folder / f"{digest([self.common, what])}.json"
        if not file.is_file():
            write_atomic(file, canonical_json(make()))
        return read_json(file)

    def model(
        self, what: Sequence[Any], fresh: Callable[[], nn.Module], train: Callable[[], nn.Module]
    ) -> nn.Module:
        """What `train` gives, in eval mode; `fresh` makes one like it, for the weights that were kept."""
        room = None if self.folder is None else self.folder / digest([self.common, what])
        if room is not None and room.is_dir():
            made = fresh()
            made.load_state_dict(read_weights(room / "model.safetensors"))
            return made.eval()
        trained = train().eval()
        if room is not None:
            with folder_atomic(room) as folder:
                save_weights(trained, folder / "model.safetensors")
        return trained
