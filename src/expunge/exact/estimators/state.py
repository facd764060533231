"""What an estimator has learned, as arrays and JSON: written and read without running anything that a file says."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from expunge.errors import BadInput

KINDS = {"f": "float64", "i": "int64", "u": "int64", "b": "bool"}
"""In which row of numbers an array of a kind (of numpy) is kept; unsigned ones by their bits."""


class Writer:
    """Collects the arrays of a structure in one row per type: of the many small ones of a forest it makes a few large ones."""

    def __init__(self, known: Mapping[str, type[Any]]) -> None:
        self._names = {cls: name for name, cls in known.items()}
        self._parts: dict[str, list[np.ndarray]] = {name: [] for name in dict.fromkeys(KINDS.values())}
        self._used = dict.fromkeys(self._parts, 0)

    def arrays(self, content: Any) -> dict[str, np.ndarray]:
        """`content` as the JSON ``structure`` (uint8) and one row of numbers per type."""
        text = json.dumps(self._plain(content), separators=(",", ":"))
        rows = {
            name: np.concatenate([np.zeros(0, dtype=name), *parts]) for name, parts in self._parts.items()
        }
        return {"structure": np.frombuffer(text.encode(), dtype=np.uint8).copy(), **rows}

    def _plain(self, value: Any) -> Any:
        if value is None or type(value) in (bool, int, float, str):
            return value
        match value:
            case np.ndarray():
                return self._array(value)
            case np.generic():
                return {"scalar": value.dtype.str, "value": value.item()}
            case list():
                return [self._plain(v) for v in value]
            case tuple():
                return {"tuple": [self._plain(v) for v in value]}
            case dict():
                return {"pairs": [[self._plain(k), self._plain(v)] for k, v in value.items()]}
            case np.random.Generator():
                return {"generator": None}  # its state would tell the noise to come
        if type(value) not in self._names:
            raise BadInput(f"a {type(value).__name__} cannot be written as arrays and JSON")
        return {"class": self._names[type(value)], "fields": self._plain(_fields(value))}

    def _array(self, array: np.ndarray) -> Any:
        if array.dtype.kind not in KINDS:
            return {
                "values": [self._plain(v) for v in array.ravel().tolist()],
                "type": array.dtype.str,
                "shape": array.shape,
            }
        row, order = KINDS[array.dtype.kind], "C" if array.flags.c_contiguous else "F"
        flat = np.ravel(array, order=order)
        self._parts[row].append(flat.view(np.int64) if array.dtype == np.uint64 else flat.astype(row))
        start = self._used[row]
        self._used[row] += flat.size
        return {"array": array.dtype.str, "shape": array.shape, "order": order, "start": start}


def read(arrays: Mapping[str, np.ndarray], known: Mapping[str, type[Any]]) -> Any:
    """The inverse of `Writer.arrays`; makes objects of the `known` classes alone."""
    try:
        content = json.loads(arrays["structure"].tobytes())
        return _Reader(arrays, known).value(content)
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise BadInput(f"the state of the estimator is damaged: {error}") from None


class _Reader:
    def __init__(self, arrays: Mapping[str, np.ndarray], known: Mapping[str, type[Any]]) -> None:
        self._arrays, self._known = arrays, known
        self._makers: dict[str, Callable[[dict[str, Any]], Any]] = {
            "scalar": lambda v: np.dtype(v["scalar"]).type(v["value"]),
            "tuple": lambda v: tuple(map(self.value, v["tuple"])),
            "pairs": lambda v: {self.value(k): self.value(e) for k, e in v["pairs"]},
            "generator": lambda v: np.random.default_rng(),
            "values": self._objects,
            "array": self._array,
            "class": self._object,
        }

    def value(self, plain: Any) -> Any:
        if isinstance(plain, list):
            return [self.value(v) for v in plain]
        return self._makers[next(iter(plain))](plain) if isinstance(plain, dict) else plain

    def _objects(self, plain: dict[str, Any]) -> np.ndarray:
        made = np.empty(len(plain["values"]), dtype=plain["type"])
        made[:] = [self.value(v) for v in plain["values"]]
        return made.reshape(plain["shape"])

    def _array(self, plain: dict[str, Any]) -> np.ndarray:
        dtype, shape = np.dtype(plain["array"]), tuple(plain["shape"])
        if dtype.kind not in KINDS:
            raise ValueError(f"arrays of {dtype} are not kept so")
        size = int(np.prod(shape, dtype=np.int64))
        part = self._arrays[KINDS[dtype.kind]][plain["start"] : plain["start"] + size]
        if part.size != size:
            raise ValueError("an array is cut off")
        flat = part.view(np.uint64) if dtype == np.uint64 else part.astype(dtype)
        return np.array(flat.reshape(shape, order=plain["order"]), order=plain["order"])

    def _object(self, plain: dict[str, Any]) -> Any:
        kind = self._known[plain["class"]]
        made = object.__new__(kind)
        for name, value in self.value(plain["fields"]).items():
            object.__setattr__(made, name, value)
        return made


def _fields(value: Any) -> dict[str, Any]:
    slots = getattr(type(value), "__slots__", None)
    return dict(vars(value)) if slots is None else {name: getattr(value, name) for name in slots}
