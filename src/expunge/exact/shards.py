"""SISA as a system on disk: rows come and go, and the served model always is that of the rows which are there."""

from __future__ import annotations

import os
import secrets
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, concatenate_datasets
from torch import nn

from expunge.errors import BadInput, ExpungeError, Missing
from expunge.exact.checkpoints import CheckpointFolder
from expunge.exact.layout import VERSION, Change, Manifest, Served, Settings
from expunge.exact.rows import RowFolder, Slice
from expunge.exact.sisa import SISA, together
from expunge.exact.stages import Stages, Weights, in_order, visits
from expunge.families import restore_family
from expunge.families.models import fingerprint
from expunge.families.weights import load_folder, save_model
from expunge.files import folder_atomic, read_json, write_atomic
from expunge.methods.base import Workplace
from expunge.problem import Problem


class ShardedModel:
    """A SISA ensemble in a folder, which can be told to forget rows and to learn further ones.

    After any sequence of `add`, `forget` and `train`, interrupted anywhere and begun again, weights are bit by bit those of
    an ensemble that was trained on the rows that are there now, in the folder's partition and with its seed; on the
    same machine, number of threads and versions.

    The folder holds the rows, slice by slice (``rows``), the weights after each stage (``stages``), each file named by
    a fingerprint, the secret of the partition (``partition.key``, readable by its owner alone), and which of these make up
    the data (``manifest.json``) and the model (``served.json``). A change replaces the manifest, trains the stages that the
    new rows ask for, replaces the served model, and erases every file that neither names, rows, stages and unfinished
    training alike. Whoever asks for the model in between gets the old one. One process changes a folder at a time;
    others wait.

    Erasing unlinks files; what a file system, a backup, or the source of the rows keeps is beyond this class. Not covered
    either: a start that had seen the rows, and what the family was fitted to (vocabulary, means of inputs). Row ids are in
    the folder in the clear, as part of the rows.

    Args:
        folder: as made by `create`.
        device: where to train.
        on_step: called with facts about each training step.
    """

    def __init__(
        self,
        folder: Path | str,
        device: str = "cpu",
        on_step: Callable[[Mapping[str, Any]], None] | None = None,
    ) -> None:
        self.folder, self.device, self.on_step = Path(folder), device, on_step
        if not (self.folder / "settings.json").exists():
            raise Missing(f"'{folder}' holds no sharded model (no settings.json); make one first")
        content = read_json(self.folder / "settings.json")
        if content.get("version") != VERSION:
            raise BadInput(
                f"'{folder}' has layout version {content.get('version')}; this expunge reads {VERSION}"
            )
        self.settings = Settings(**content)
        self.rows = RowFolder(self.folder / "rows", self._secret)
        self.checkpoints = CheckpointFolder(self.folder / "stages")

    @classmethod
    def create(
        cls,
        folder: Path | str,
        problem: Problem,
        sisa: SISA | None = None,
        seed: int = 0,
        secret: bytes | None = None,
        device: str = "cpu",
    ) -> ShardedModel:
        """Make the folder with all training rows of `problem`; nothing is trained yet.

        Args:
            folder: must not exist.
            problem: whose family, architecture, recipe, start and training rows are taken.
            sisa: shards, slices and the rest.
            seed: of weights and orders.
            secret: key of the partition; None draws one.
            device: where to train.
        """
        path, sisa = Path(folder), sisa or SISA()
        if obstacles := [o for o in sisa.obstacles(problem) if "retain set" not in o]:
            raise BadInput(f"method 'sisa' cannot run on {problem.name}: {'; '.join(obstacles)}")
        if path.exists():
            raise BadInput(f"'{path}' exists already; choose another folder for the sharded model")
        if problem.architecture is None or problem.recipe is None:
            raise AssertionError("checked by `obstacles`")
        sisa.rule(problem.family)
        settings = Settings(
            sisa=sisa, seed=seed, family=problem.family.describe(), architecture=problem.architecture,
            recipe=problem.recipe, started=problem.start is not None,
        )  # fmt: skip
        secret = secrets.token_bytes(32) if secret is None else secret
        with folder_atomic(path) as made:
            with os.fdopen(os.open(made / "partition.key", os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
                file.write(secret)
            if problem.start is not None:
                save_model(problem.start, made / "start", problem.architecture, problem.family.describe(), {})
            rows = RowFolder(made / "rows", secret)
            manifest = Manifest(slices=[[Slice() for _ in range(sisa.slices)] for _ in range(sisa.shards)])
            _add(rows, manifest, problem.train, sisa.cells(problem.train, secret))
            write_atomic(made / "manifest.json", manifest.model_dump_json(indent=1))
            write_atomic(made / "settings.json", settings.model_dump_json(indent=1))
        return cls(path, device)

    @cached_property
    def stages(self) -> Stages:
        """How shards are trained."""
        start = load_folder(self.folder / "start")[0] if self.settings.started else None
        family = restore_family(self.settings.family)
        s = self.settings
        return Stages(
            family, s.recipe, s.architecture, start, s.sisa.slices, s.seed, s.sisa.lora, device=self.device
        )

    @property
    def manifest(self) -> Manifest:
        """The rows that are there."""
        return Manifest(**read_json(self.folder / "manifest.json"))

    @property
    def served(self) -> Served | None:
        """The model that answers; None before the first training, and where no rows are left."""
        file = self.folder / "served.json"
        return Served(**read_json(file)) if file.exists() else None

    @property
    def data(self) -> str:
        """Fingerprint of the rows that are there, keyed, so that it cannot be compared with a guess."""
        return self.manifest.data

    def ids(self) -> list[str]:
        """Ids of all rows that are there, sorted."""
        return sorted(i for part in self.manifest.parts for i in self.rows.ids(part))

    def train(self) -> Change:
        """Train whatever is missing; after an interruption, finish what was begun."""
        with self._alone():
            return self._completed()

    def forget(self, ids: Collection[str]) -> Change:
        """Delete rows, train again what knew them, serve the new model, and erase what is left of the old one.

        Ids that are not there are reported, not refused, so that a call that was interrupted can be made again.
        """
        with self._alone():
            manifest, found = self.manifest, self._located(ids)
            for (shard, number), gone in found.items():
                kept = self.rows.read(manifest.slices[shard][number])
                manifest.slices[shard][number] = self.rows.write(_without(kept, gone))
            if found:
                self._replace(manifest)
            removed = {i for gone in found.values() for i in gone}
            return self._completed(removed=len(removed), absent=tuple(sorted(set(ids) - removed)))

    def add(self, rows: Dataset) -> Change:
        """Learn further rows. Rows that are there already with the same content are left as they are.

        Raises:
            BadInput: the columns are others, an id is there with other content, or twice among `rows`.
        """
        with self._alone():
            manifest = self.manifest
            self.stages.family.check(rows, "rows to add")
            before = int(manifest.sizes.sum())
            _add(self.rows, manifest, rows, self.settings.sisa.cells(rows, self._secret))
            self._replace(manifest)
            return self._completed(added=int(manifest.sizes.sum()) - before)

    def cost(self, ids: Collection[str]) -> int:
        """Rows that training will visit at most when `ids` are forgotten together; less than one by one, or as many."""
        sizes = self.manifest.sizes
        first = np.full(len(sizes), self.settings.sisa.slices)
        for shard, number in self._located(ids):
            first[shard] = min(first[shard], number)
        return visits(sizes, self.settings.recipe.epochs, first)

    def served_model(self) -> nn.Module:
        """The ensemble that answers, in eval mode.

        Raises:
            Missing: nothing was trained yet, or no rows are left.
        """
        served = self.served
        if served is None:
            raise Missing(f"'{self.folder}' serves no model; train it, or add rows where none are left")
        try:
            return self._ensemble(served)
        except ExpungeError:
            if self.served == served:
                raise
            return self.served_model()  # replaced while it was read

    def verify(self, absent: Collection[str] = (), again: Iterable[int] = ()) -> list[str]:
        """What is not as it must be, one sentence each; empty where all is well.

        Checked are: every row against its fingerprint and its place in the partition; that the served stages are
        exactly those which the rows ask for; every weight against its fingerprint; that the folder holds no other
        stage, row or unfinished training.

        Args:
            absent: ids that must not be in the data.
            again: shards that are trained from scratch, in memory, and compared bit by bit.
        """
        manifest, served = self.manifest, self.served
        faults = [*self._wrong_rows(manifest, set(map(str, absent)))]
        wanted = self._chains(manifest)
        if served is None and manifest.sizes.any():
            faults.append("there are rows and no served model; train")
        if served is not None:
            if served.stages != wanted or served.data != manifest.data:
                faults.append("the served model was not trained on the rows that are there; train")
            damaged = [key for key in served.weights if not self.checkpoints.intact(key)]
            faults += [f"the weights of stage {key} are missing or damaged" for key in damaged]
            if not damaged and fingerprint(self._ensemble(served)) != served.model:
                faults.append("the weights are not those that served.json names")
        useless = self.checkpoints.others([] if served is None else served.weights)
        useless += self.rows.others(manifest.parts)
        faults += [f"'{path.name}' belongs to nothing that is served" for path in useless]
        if served is not None and not faults:
            for shard in again:
                report = Workplace(device=self.device)
                fresh = self.stages.complete(shard, wanted[shard], self._prefixes(manifest, shard), report)
                if not _equal(fresh, self._last(served, shard)):
                    faults.append(f"shard {shard}, trained again from scratch, has other weights")
        return faults

    # ------------------------------------------------------------ changing the folder

    def _completed(self, removed: int = 0, added: int = 0, absent: tuple[str, ...] = ()) -> Change:
        """Bring stages, served model and files in line with the manifest; can be interrupted and repeated anywhere."""
        started = time.perf_counter()
        manifest, before = self.manifest, self.served
        # Rows go first: the old model answers without them while the new one is trained.
        erased = self.rows.keep(manifest.parts)
        sizes, stages = manifest.sizes, self._chains(manifest)
        report = Workplace(device=self.device, on_step=self.on_step)
        first = np.zeros(len(stages), dtype=int)
        for shard, keys in enumerate(stages):
            first[shard] = max((n + 1 for n, key in enumerate(keys) if key in self.checkpoints), default=0)
            self.stages.complete(shard, keys, self._prefixes(manifest, shard), report, self.checkpoints)
        after = None
        if sizes.any():
            after = Served(stages=stages, sizes=sizes.tolist(), model="", data=manifest.data)
            after.model = fingerprint(self._ensemble(after))
            if after != before:
                write_atomic(self.folder / "served.json", after.model_dump_json(indent=1))
        else:
            (self.folder / "served.json").unlink(missing_ok=True)
        erased += self.checkpoints.keep([] if after is None else after.weights)
        trained = np.flatnonzero((first < self.settings.sisa.slices) & sizes.any(1))
        epochs = self.settings.recipe.epochs
        return Change(
            before, after, removed, absent, added, tuple(trained.tolist()), visits(sizes, epochs, first),
            visits(sizes, epochs), tuple(erased), time.perf_counter() - started,
        )  # fmt: skip

    @contextmanager
    def _alone(self) -> Iterator[None]:
        """Inside the block no other process changes the folder."""
        from filelock import FileLock

        with FileLock(self.folder / ".lock"):
            yield

    def _replace(self, manifest: Manifest) -> None:
        write_atomic(self.folder / "manifest.json", manifest.model_dump_json(indent=1))

    # ------------------------------------------------------------ reading it

    @cached_property
    def _secret(self) -> bytes:
        return (self.folder / "partition.key").read_bytes()

    def _chains(self, manifest: Manifest) -> list[list[str]]:
        return [self.stages.chain(k, [p.digest for p in row]) for k, row in enumerate(manifest.slices)]

    def _prefixes(self, manifest: Manifest, shard: int) -> Callable[[int], Dataset]:
        """Reads the rows of the slices of a shard up to that of a stage, in the order of their ids."""

        def read(stage: int) -> Dataset:
            parts = [self.rows.read(part) for part in manifest.slices[shard][: stage + 1] if part.rows]
            return in_order(concatenate_datasets(parts)) if parts else Dataset.from_dict({})

        return read

    def _last(self, served: Served, shard: int) -> Weights | None:
        return self.checkpoints.read(served.stages[shard][-1]) if sum(served.sizes[shard]) else None

    def _ensemble(self, served: Served) -> nn.Module:
        learned = ((k, self._last(served, k)) for k in range(len(served.stages)))
        parts = [self.stages.model(shard, weights) for shard, weights in learned if weights is not None]
        return together(parts, self.settings.sisa.rule(self.stages.family))

    def _located(self, ids: Collection[str]) -> dict[tuple[int, int], set[str]]:
        """Which of `ids` are there, by shard and slice."""
        wanted, slices = set(map(str, ids)), self.manifest.slices
        places = [(shard, number) for shard, row in enumerate(slices) for number in range(len(row))]
        if self.settings.sisa.by == "id" and wanted:
            # The id alone says where a row is, so that no other slice need be read.
            cells = self.settings.sisa.cells(Dataset.from_dict({"id": sorted(wanted)}), self._secret)
            places = sorted(set(map(tuple, cells.tolist())))
        found = {(k, n): wanted & set(self.rows.ids(slices[k][n])) for k, n in places if wanted}
        return {place: held for place, held in found.items() if held}

    def _wrong_rows(self, manifest: Manifest, absent: set[str]) -> Iterator[str]:
        for shard, row in enumerate(manifest.slices):
            for number, part in enumerate(row):
                if not part.rows:
                    continue
                where = f"slice {number} of shard {shard}"
                try:
                    rows = self.rows.read(part)
                except ExpungeError:
                    yield f"the rows of {where} are missing or damaged"
                    continue
                if self.rows.slice_of(rows) != part:
                    yield f"the rows of {where} are not those that the manifest names"
                if (self.settings.sisa.cells(rows, self._secret) != (shard, number)).any():
                    yield f"{where} holds rows of other slices"
                if held := absent & set(map(str, rows["id"][:])):
                    yield f"{where} holds {len(held)} rows that must not be there"


def _add(folder: RowFolder, manifest: Manifest, rows: Dataset, cells: np.ndarray) -> None:
    """Write `rows` into their slices and name these in `manifest`."""
    for shard, number in sorted(set(map(tuple, cells.tolist()))):
        new = rows.select(np.flatnonzero((cells == (shard, number)).all(1)))
        old = manifest.slices[shard][number]
        manifest.slices[shard][number] = folder.write(folder.joined(old, new))


def _without(rows: Dataset, gone: Collection[str]) -> Dataset:
    return rows.select([n for n, i in enumerate(rows["id"][:]) if str(i) not in gone])


def _equal(a: Weights | None, b: Weights | None) -> bool:
    if a is None or b is None:
        return a is b
    return a.keys() == b.keys() and all(torch.equal(a[k].cpu(), b[k].cpu()) for k in a)
