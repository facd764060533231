"""What forgets for the ledger: a sharded model in its folder, or any registered method on a folder of its own."""

from __future__ import annotations

import secrets
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
from pydantic import Field
from torch import nn

from expunge.errors import BadInput, ExpungeError
from expunge.exact.rows import Slice
from expunge.exact.shards import ShardedModel
from expunge.families.models import clone
from expunge.families.weights import load_folder, load_weights, read_weights, save_model
from expunge.files import canonical_json, dataset_digest, digest, folder_atomic, read_json, write_atomic
from expunge.ledger.erasure import erase, remove
from expunge.ledger.worker import Effect, Executor
from expunge.methods.base import Method, Workplace
from expunge.problem import Problem
from expunge.record import Record, Score

Judge = Callable[[Problem, nn.Module], list[Score]]
"""Audits a model that is said to have forgotten the forget set of a problem."""


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time in this folder; the lock goes with its process. Folders on NFS need a server with locks."""
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".worker", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


class Served(Record):
    """`served.json`: which model is served. Whoever replaces this file changes the model, and nothing else does."""

    model: str
    """Folder of the model, beside this file."""
    trained: list[str]
    """Ids of the rows that it was trained on and has not forgotten."""
    erasing: list[str] = []
    """Ids of forgotten rows whose traces may still be on the disk; empty when all are erased."""
    salt: str = Field(default_factory=lambda: secrets.token_hex(16))
    """Mixed into the names of folders, which certificates list: nobody else can tell by them which rows were meant."""


class MethodExecutor(Executor):
    """A method that forgets from the served model, in a folder ``served.json``, ``model-<fingerprint of its rows>``.

    The new model is complete on the disk before it is served; what the old one leaves is erased after. A worker that dies
    in between leaves either the old model served, and the work is done again, or the new one, and the erasing is.

    Args:
        problem: data, recipe and target model; its own forget set plays no part. All its rows count as trained on.
        method: what forgets. One with the guarantee "empirical" leaves a model that is merely judged to have forgotten.
        folder: of the served model; the first worker puts the target there.
        subject: column of the data that says whose row it is, for requests about subjects.
        judge: audits each new model for its certificate; None leaves its scores empty.
        erase_in: folders with evidence and models made from the same data, such as runs of studies.
        seed: fixes everything random.
        device: where models run.
    """

    def __init__(
        self,
        problem: Problem,
        method: Method,
        folder: Path,
        *,
        subject: str | None = None,
        judge: Judge | None = None,
        erase_in: Sequence[Path] = (),
        seed: int = 0,
        device: str = "cpu",
    ) -> None:
        if subject is not None and subject not in problem.train.column_names:
            raise BadInput(
                f"{problem.name}: there is no column '{subject}' that could say whose row it is; "
                f"the data has {', '.join(problem.train.column_names)}"
            )
        obstacles = method.obstacles(problem)
        if obstacles:
            raise BadInput(f"method '{method.name}' cannot run on {problem.name}: {'; '.join(obstacles)}")
        self.problem, self._method, self.folder, self.judge = problem, method, folder, judge
        self.erase_in, self.seed, self.device = tuple(erase_in), seed, device
        self.method, self.guarantee = method.name, method.promise(problem)
        self.parameters = method.model_dump(mode="json")
        self._row_of = {str(id_): row for row, id_ in enumerate(problem.train["id"][:])}
        subjects = (
            [None] * len(self._row_of) if subject is None else [str(s) for s in problem.train[subject][:]]
        )
        self._subject_of = dict(zip(self._row_of, subjects, strict=True))
        with self.exclusive():
            if not self._file.exists():
                self._serve(problem.target, list(self._row_of), [])

    @property
    def _file(self) -> Path:
        return self.folder / "served.json"

    @contextmanager
    def exclusive(self) -> Iterator[None]:  # noqa: D102
        with locked(self.folder):
            yield

    def served(self) -> Served:
        """What is served now."""
        return Served.model_validate(read_json(self._file))

    def model(self) -> nn.Module:
        """The served model."""
        return self._load(self.folder / self.served().model)

    def rows(self) -> list[tuple[str, str | None]]:  # noqa: D102
        return [(i, self._subject_of.get(i)) for i in self.served().trained]

    def fingerprint(self) -> str:  # noqa: D102
        return read_json(self.folder / self.served().model / "expunge.json")["fingerprint"]

    def forget(self, ids: Sequence[str]) -> Effect:  # noqa: D102
        notes: list[str] = []
        if ids:
            notes += self._replace(ids)
        served = self.served()
        if not served.erasing:
            return Effect(erased=self._sweep(served))
        problem = self._problem([*served.trained, *served.erasing], served.erasing)
        scores = [] if self.judge is None else self.judge(problem, self._load(self.folder / served.model))
        before = {dataset_digest(self.problem.train), dataset_digest(problem.train)}
        erased = erase(served.erasing, self.erase_in, before) + self._sweep(served)
        write_atomic(self._file, canonical_json(served.model_copy(update={"erasing": []})))
        notes.append(
            f"{len(served.erasing)} rows were forgotten by the model; remove them from '{self.problem.name}' itself too"
        )
        return Effect(scores, erased, notes)

    def _replace(self, ids: Sequence[str]) -> list[str]:
        """Serve a model without the rows; returns what the method noted."""
        served = self.served()
        problem = self._problem(served.trained, ids)
        current = problem.with_model(self._load(self.folder / served.model))
        scratch = self.folder / f"scratch-{digest([served.salt, served.model, sorted(ids)])}"
        workplace = Workplace(self.seed, self.device, scratch, secret_noise=True)
        forgotten = self._method.forget(current, workplace)
        gone = set(ids)
        left = [i for i in served.trained if i not in gone]
        self._serve(forgotten.model, left, sorted({*served.erasing, *gone}), served.salt)
        return list(forgotten.notes)

    def _serve(
        self, model: nn.Module, trained: list[str], erasing: list[str], salt: str | None = None
    ) -> None:
        salt = salt or secrets.token_hex(16)
        folder = self.folder / f"model-{digest([salt, sorted(trained)])}"
        shutil.rmtree(folder, ignore_errors=True)  # of an attempt that died before it was served
        with folder_atomic(folder) as made:
            save_model(
                model.to("cpu"), made, self.problem.architecture, self.problem.family.describe(),
                {"method": self._method.name if erasing else "target"},
            )  # fmt: skip
        write_atomic(
            self._file, canonical_json(Served(model=folder.name, trained=trained, erasing=erasing, salt=salt))
        )

    def _sweep(self, served: Served) -> list[str]:
        """Delete models that are no longer served, and checkpoints."""
        gone: list[str] = []
        for path in sorted(self.folder.iterdir()):
            if (
                path.is_dir()
                and path.name != served.model
                and path.name.startswith(("model-", "scratch-", ".model-"))
            ):
                gone += remove(path, self.folder)
        return gone

    def _problem(self, trained: Sequence[str], forget: Sequence[str]) -> Problem:
        """The question with the rows of the served model alone."""
        lost = [i for i in trained if i not in self._row_of]
        if lost:
            raise ExpungeError(
                f"{len(lost)} rows that the served model was trained on are not in the data; "
                "forget rows by a request before you remove them from the data"
            )
        rows = np.sort([self._row_of[i] for i in trained])
        return replace(
            self.problem, train=self.problem.train.select(rows), forget_ids=tuple(forget), retrained=None
        )

    def _load(self, folder: Path) -> nn.Module:
        if read_json(folder / "expunge.json")["architecture"] is not None:
            allowed = self.problem.architecture is not None and self.problem.architecture.options.get(
                "allow_pickle"
            )
            return load_folder(folder, allow_pickle=allowed is True)[0]
        model = clone(self.problem.target)
        load_weights(model, read_weights(folder / "model.safetensors"), str(folder))
        return model.eval()


class ShardedExecutor(Executor):
    """A `ShardedModel`: exact, at the price of the touched shards; the folder holds the rows, and forgets them too.

    Args:
        folder: as made by `ShardedModel.create`, and trained.
        subject: column of its rows that says whose row it is, for requests about subjects.
        judge: audits each new model for its certificate; None leaves its scores empty.
        erase_in: folders with evidence and models made from the same data, such as runs of studies.
        device: where to train.
    """

    def __init__(
        self,
        folder: Path,
        *,
        subject: str | None = None,
        judge: Callable[[nn.Module], list[Score]] | None = None,
        erase_in: Sequence[Path] = (),
        device: str = "cpu",
    ) -> None:
        self.model, self.subject, self.judge, self.erase_in = (
            ShardedModel(folder, device),
            subject,
            judge,
            erase_in,
        )
        sisa = self.model.settings.sisa
        self.method, self.guarantee, self.parameters = sisa.name, sisa.guarantee, sisa.model_dump(mode="json")
        self._slices: dict[str, list[tuple[str, str | None]]] = {}

    @contextmanager
    def exclusive(self) -> Iterator[None]:  # noqa: D102
        with locked(self.model.folder):
            yield

    def rows(self) -> list[tuple[str, str | None]]:  # noqa: D102
        parts = [part for part in self.model.manifest.parts if part.rows]
        # Slices are named by their contents, so one that was read before is still the same.
        self._slices = {part.digest: self._slices.get(part.digest) or self._read(part) for part in parts}
        return [row for rows in self._slices.values() for row in rows]

    def _read(self, part: Slice) -> list[tuple[str, str | None]]:
        if self.subject is None:
            return [(i, None) for i in self.model.rows.ids(part)]
        rows = self.model.rows.read(part)
        if self.subject not in rows.column_names:
            raise BadInput(
                f"the rows of '{self.model.folder}' have no column '{self.subject}' that could say whose they are; "
                f"they have {', '.join(rows.column_names)}"
            )
        return [(str(i), str(s)) for i, s in zip(rows["id"][:], rows[self.subject][:], strict=True)]

    def fingerprint(self) -> str:  # noqa: D102
        served = self.model.served
        return "no rows, no model" if served is None else served.model

    def cost(self, ids: Sequence[str]) -> float:
        """Rows that training visits again."""
        return float(self.model.cost(ids))

    def forget(self, ids: Sequence[str]) -> Effect:  # noqa: D102
        erased = erase(ids, self.erase_in)
        change = self.model.forget(ids)
        faults = self.model.verify(absent=ids)
        if faults:
            raise ExpungeError(
                f"the sharded model '{self.model.folder}' is not as it must be: {'; '.join(faults)}"
            )
        scores = [] if self.judge is None or change.after is None else self.judge(self.model.served_model())
        visited = f"training visited {change.visited} rows; from scratch it would visit {change.full}"
        return Effect(scores, [*erased, *change.erased], [visited])
