"""`expunge ledger run`: a worker."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from expunge.cli import problem as options
from expunge.cli.output import Json, Set, notice, print_json
from expunge.errors import BadInput

if TYPE_CHECKING:
    from torch import nn

    from expunge.ledger.worker import Executor
    from expunge.methods import Method
    from expunge.problem import Problem
    from expunge.record import Score

EXAMPLE = "Example: expunge ledger run --model served --benchmark digits --method sisa --set shards=4"


def run(
    model: Annotated[Path, typer.Option(help="Folder of the served model; the first run makes it.")],
    method: Annotated[
        str | None, typer.Option(help="Method that forgets (expunge list methods); default: sisa.")
    ] = None,
    problem: options.ProblemFile = None,
    benchmark: options.Benchmark = None,
    subject_column: Annotated[str | None, typer.Option(help="Column that says whose row it is.")] = None,
    erase_in: Annotated[
        list[Path] | None,
        typer.Option(
            help="Folder whose evidence, checkpoints and models go too, where they know forgotten rows."
        ),
    ] = None,
    set_: Set = None,
    audit: Annotated[bool, typer.Option(help="Measure each new model for its certificate.")] = True,
    forever: Annotated[
        bool, typer.Option("--forever", help="Wait for further requests instead of ending.")
    ] = False,
    size: Annotated[int, typer.Option(help="Requests that are run together at most.")] = 64,
    wait: Annotated[float, typer.Option(help="Seconds that a request waits for company.")] = 0.0,
    margin: Annotated[
        float, typer.Option(help="Seconds before its deadline when it waits no longer.")
    ] = 86_400.0,
    cost: Annotated[
        float | None, typer.Option(help="Largest cost of a run, in the method's unit (sisa: rows visited).")
    ] = None,
    lease: Annotated[
        float, typer.Option(min=1, help="Seconds after which a silent worker has lost its run.")
    ] = 60.0,
    attempts: Annotated[int, typer.Option(min=1, help="Attempts before requests are failed.")] = 5,
    seed: Annotated[int, typer.Option(help="Fixes everything random.")] = 0,
    device: Annotated[str, typer.Option(help="cpu, cuda, cuda:1, mps")] = "cpu",
    database: Annotated[
        str, typer.Option(envvar="EXPUNGE_LEDGER_DATABASE", help="URL of the database.")
    ] = "sqlite:///ledger/ledger.db",
    keys: Annotated[
        Path, typer.Option(envvar="EXPUNGE_LEDGER_KEYS", help="Folder with the ledger's keys.")
    ] = Path("ledger/keys"),
    log: Annotated[Path, typer.Option(help="File that repeats the log of certificates.")] = Path(
        "ledger/log.jsonl"
    ),
    json: Json = False,
) -> None:
    """Execute requests: verify them, forget their records together, audit, sign a certificate.

    Any number of these may run at once. Ctrl-C or SIGTERM ends one after its current run; one that is killed is replaced
    when its lease ends. A folder that holds a sharded model needs no data beside it.
    """
    from expunge.extras import load_extra

    load_extra("sqlalchemy", "ledger", "the ledger")
    from expunge.cli.ledger import opened
    from expunge.ledger import Batching
    from expunge.ledger.certificates import SigningKey
    from expunge.ledger.chain import sealing
    from expunge.ledger.log import Log
    from expunge.ledger.worker import Worker

    batching = Batching(size=size, wait=wait, margin=margin, cost=cost)
    with opened(database, keys) as ledger:
        key = SigningKey.load(keys / "signing.pem")
        executor = executor_of(
            model, method, problem, benchmark, options.assigned(set_ or []), subject=subject_column,
            erase_in=erase_in or [], audit=audit, seed=seed, device=device,
        )  # fmt: skip
        worker = Worker(
            ledger, executor, sealing(key), name=f"{socket.gethostname()}-{os.getpid()}", batching=batching,
            lease_seconds=lease, max_attempts=attempts,
        )  # fmt: skip
        failed = ledger.counts().states.get("failed", 0)
        file = Log(log)

        def publish() -> None:
            file.mirror(ledger.log())
            file.checkpoint(key.current())

        publish()  # also what a worker that was killed has left in the database alone
        with _stopped_by_signals() as stop:
            finished = worker.run(stop, until_idle=not forever, on_done=publish)
        publish()
        counts = ledger.counts()
    failed = counts.states.get("failed", 0) - failed
    if json:
        print_json({"runs": finished, "log": str(log), "failed": failed, **counts.model_dump(mode="json")})
    else:
        states = ", ".join(f"{n} {state}" for state, n in counts.states.items()) or "no requests"
        sys.stdout.write(f"{finished} runs; {states}\ncertificates: {log}\n")
    if failed > 0:
        raise typer.Exit(1)


@contextmanager
def _stopped_by_signals() -> Iterator[threading.Event]:
    """An event that the first Ctrl-C or SIGTERM sets; a second Ctrl-C interrupts at once."""
    stop = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def ask(_number: int, _frame: Any) -> None:
        notice("ending after the current run; press Ctrl-C again to end at once")
        signal.signal(signal.SIGINT, signal.default_int_handler)
        stop.set()

    before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def executor_of(
    folder: Path,
    name: str | None = None,
    file: Path | None = None,
    benchmark: str | None = None,
    parameters: dict[str, Any] | None = None,
    *,
    subject: str | None = None,
    erase_in: Sequence[Path] = (),
    audit: bool = True,
    seed: int = 0,
    device: str = "cpu",
) -> Executor:
    """What forgets: the sharded model in the folder, or a method on the problem's data."""
    from expunge import api
    from expunge.data.specification import ProblemSpec
    from expunge.exact.shards import ShardedModel
    from expunge.exact.sisa import SISA
    from expunge.ledger.executors import MethodExecutor, ShardedExecutor
    from expunge.studies.spec import find_method, read_spec

    stored, parameters = (folder / "settings.json").exists(), parameters or {}
    found: type[Method] = SISA if name is None else find_method(name)
    if stored and (found is not SISA or parameters):
        raise BadInput(
            f"'{folder}' holds a sharded model, which has its own method and parameters; leave them out"
        )
    if file is None and benchmark is None:
        if not stored:
            raise BadInput(
                f"'{folder}' holds no sharded model; say by --problem or --benchmark what is trained there"
            )
        built = None
    else:
        content: dict[str, Any] = {"benchmark": benchmark} if file is None else read_spec(file)
        if not any(content.get(key) for key in ("benchmark", "forget", "forget_data")):
            content["forget"] = (
                "fraction=0.1"  # a problem is not complete without; here requests say what to forget
            )
        built = ProblemSpec(**content).build(Path.cwd(), notice=notice)
    if found is SISA:
        if not stored and built is not None:
            notice(f"training a sharded model of {built.name} in '{folder}'")
            ShardedModel.create(folder, built, SISA(**parameters), seed, device=device)
        ShardedModel(folder, device).train()
        tested = built if audit and built is not None and "test" in built.splits else None
        judge = None if tested is None else (lambda made: measured(tested, made, device, ("test",)))
        return ShardedExecutor(folder, subject=subject, judge=judge, erase_in=erase_in, device=device)
    if built is None:
        raise AssertionError("a folder without a sharded model needs a problem")
    if built.model is None:
        notice(f"{built.name} has no trained target; training one by its recipe")
        built = api.train_target(built, seed, device)
    audits = (lambda asked, made: measured(asked, made, device)) if audit else None
    return MethodExecutor(
        built,
        found(**parameters),
        folder,
        subject=subject,
        judge=audits,
        erase_in=erase_in,
        seed=seed,
        device=device,
    )


def measured(problem: Problem, model: nn.Module, device: str, splits: Sequence[str] = ()) -> list[Score]:
    """Scores of a model that need no other model to compare with; those on `splits`, where any are named."""
    from expunge import api
    from expunge.metrics.base import standard_metrics

    alone = [m.name for m in standard_metrics(problem.family) if all(role == "model" for role, _ in m.reads)]
    scores = api.audit(problem, {"served": model}, metrics=alone, device=device)
    return [
        score for judged in scores.judged if judged.label == "served" for score in judged.scores
        if not splits or score.split in splits
    ]  # fmt: skip
