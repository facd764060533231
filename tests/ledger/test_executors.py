"""Real methods behind the ledger: the served model, what is erased, and what survives a worker's death."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

from expunge.api import train_target
from expunge.errors import BadInput, ExpungeError
from expunge.exact.certified_removal import CertifiedRemoval
from expunge.exact.decremental import Dare
from expunge.exact.retrain import Retrain
from expunge.exact.shards import ShardedModel
from expunge.exact.sisa import SISA
from expunge.files import digest
from expunge.ledger import Ledger, executors
from expunge.ledger.executors import MethodExecutor, ShardedExecutor
from expunge.ledger.worker import Worker
from expunge.methods import Method, Workplace
from expunge.methods.gradient_ascent import GradientAscent
from expunge.problem import Problem, Training
from expunge.record import Score
from expunge.testing.problems import tiny_problem
from tests.ledger.toy import chain, seal


@pytest.fixture(scope="session")
def problem() -> Problem:
    """96 rows of six users."""
    tiny = tiny_problem("classifier")
    train = tiny.train.add_column("user", [f"u{i % 6}" for i in range(len(tiny.train))])  # pyright: ignore
    recipe = Training(epochs=3, batch_size=16)
    return train_target(replace(tiny, model=None, train=train, recipe=recipe))


@pytest.fixture
def serve(problem: Problem, tmp_path: Path) -> Callable[..., MethodExecutor]:
    def make(method: Method | None = None, **options: object) -> MethodExecutor:
        method = method or Retrain()
        options = {"folder": tmp_path / "served", "subject": "user", **options}
        return MethodExecutor(problem, method, **options)  # type: ignore[arg-type]

    return make


def weights(model: nn.Module) -> torch.Tensor:
    return torch.cat([p.detach().flatten() for p in model.parameters()])


def test_the_target_is_served_first(problem: Problem, serve: Callable[..., MethodExecutor]) -> None:
    executor = serve()
    assert torch.equal(weights(executor.model()), weights(problem.target))
    assert sorted(executor.rows()) == sorted(zip(problem.train["id"], problem.train["user"], strict=True))
    assert serve().fingerprint() == executor.fingerprint()


def test_retraining_for_a_person_equals_retraining(
    problem: Problem, ledger: Ledger, serve: Callable[..., MethodExecutor]
) -> None:
    executor = serve()
    ledger.submit(subject="u2")
    Worker(ledger, executor, seal).run(until_idle=True)
    ledger.submit(record_ids=["r0-0"])
    Worker(ledger, executor, seal).run(until_idle=True)
    mine = [i for i, u in zip(problem.train["id"], problem.train["user"], strict=True) if u == "u2"]
    # Twice forgotten from a shrinking set is the same as once from all rows.
    expected = Retrain().forget(replace(problem, forget_ids=(*mine, "r0-0")), Workplace(0)).model
    assert torch.equal(weights(executor.model()), weights(expected))
    first, second = (entry["outcome"] for entry in chain(list(ledger.log())))
    assert (first["method"], first["guarantee"], first["records"]) == ("retrain", "distributional", 16)
    assert first["model_after"] == second["model_before"] and first["data_after"] == second["data_before"]
    [gone] = {name.split("/")[0] for name in first["erased"]}
    assert gone.startswith("model-") and gone != executor.served().model
    assert gone != f"model-{digest(sorted(problem.train['id']))}", (
        "whoever knows the ids must not know the name"
    )
    everything = gone
    assert first["erased"] == [f"{everything}/expunge.json", f"{everything}/model.safetensors"]
    assert [p.name for p in executor.folder.glob("model-*")] == [executor.served().model]
    assert f'"{mine[0]}"' not in (executor.folder / "served.json").read_text()


def test_a_forest_forgets_row_by_row_for_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    asked = tiny_problem("estimator")
    executor = MethodExecutor(asked, Dare(), tmp_path / "served")
    for row in asked.train["id"][:3]:
        ledger.submit(record_ids=[row])
        Worker(ledger, executor, seal).run(until_idle=True)
    outcomes = [entry["outcome"] for entry in chain(list(ledger.log()))]
    assert [o["guarantee"] for o in outcomes] == ["bitwise (equal random_state)"] * 3
    assert len({o["model_after"] for o in outcomes}) == 3
    grown = asked.fresh_model(0)  # the seed of the tiny target
    asked.family.learn(grown, asked.train.select(range(3, len(asked.train))))
    batch = asked.batches("test").take(torch.arange(64))
    one, two = (asked.family.forward(m, batch).prediction for m in (executor.model(), grown))
    assert torch.equal(one, two)


def test_certified_removal_draws_noise_that_nobody_can_draw_again(
    ledger: Ledger, serve: Callable[..., MethodExecutor], tmp_path: Path
) -> None:
    heads = []
    for turn in range(2):
        executor = serve(CertifiedRemoval(sigma=1.0), folder=tmp_path / f"served-{turn}")
        executor.forget(["r0-0"])
        heads.append(weights(executor.model()))
    assert not torch.equal(*heads), "two runs with one seed must differ in their noise"
    ledger.submit(record_ids=["r0-3"])
    Worker(ledger, executor, seal).run(until_idle=True)
    [entry] = chain(list(ledger.log()))
    text = json.dumps(entry)
    assert "secret noise" in text and "seed" not in text and "r0-3" not in text
    assert entry["outcome"]["guarantee"].startswith("certified")


def test_the_certificate_repeats_scores(ledger: Ledger, serve: Callable[..., MethodExecutor]) -> None:
    seen: list[tuple[int, int]] = []

    def judge(problem: Problem, model: nn.Module) -> list[Score]:
        seen.append((len(problem.forget_rows), len(problem.train)))
        return [Score(metric="accuracy", split="forget", value=0.5, unit="share", direction="match", n=1)]

    ledger.submit(record_ids=["r0-3"])
    Worker(ledger, serve(GradientAscent(epochs=1, lr=1e-3), judge=judge), seal).run(until_idle=True)
    [entry] = chain(list(ledger.log()))
    assert entry["outcome"]["guarantee"] == "empirical" and seen == [(1, 96)]
    assert entry["outcome"]["scores"][0]["value"] == 0.5


@pytest.mark.parametrize("dies_in", ["save_model", "write_atomic", "erase"])
def test_a_worker_that_dies_at_any_step_leaves_work_that_can_be_finished(
    dies_in: str, ledger: Ledger, serve: Callable[..., MethodExecutor], clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = serve()
    request = ledger.submit(record_ids=["r0-0", "r0-1"])

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(executors, dies_in, die)
        Worker(ledger, executor, seal).step()
    clock.now += 61
    helper = serve()
    Worker(ledger, helper, seal).run(until_idle=True)
    assert ledger.status(request.id).state == "done"
    assert helper.served().erasing == [] and len(helper.served().trained) == 94
    assert [p.name for p in helper.folder.glob("*model-*")] == [helper.served().model]
    [entry] = chain(list(ledger.log()))
    assert entry["outcome"]["records"] == 2
    assert entry["outcome"]["model_before"] != entry["outcome"]["model_after"]


def test_an_error_that_names_a_row_is_kept_without_its_id(
    ledger: Ledger, serve: Callable[..., MethodExecutor], monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = serve()

    def fail(ids: list[str]) -> None:
        raise ExpungeError(f"row '{ids[0]}', and others (r0-5): cannot be read after 5 attempts")

    monkeypatch.setattr(executor, "forget", fail)
    request = ledger.submit(record_ids=["r0-3"])
    Worker(ledger, executor, seal, max_attempts=1).run(until_idle=True)
    found = ledger.status(request.id)
    assert found.state == "failed"
    assert found.explanation == "row '(a row)', and others ((a row)): cannot be read after 5 attempts"


def test_refusals(problem: Problem, serve: Callable[..., MethodExecutor], tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="no column 'owner' that could say whose row it is; the data has id, "):
        MethodExecutor(problem, Retrain(), tmp_path / "x", subject="owner")
    with pytest.raises(BadInput, match="method 'retrain' cannot run on .*recipe"):
        MethodExecutor(replace(problem, recipe=None), Retrain(), tmp_path / "x")
    executor = serve()
    smaller = problem.train.select(range(1, 96))
    late = MethodExecutor(replace(problem, train=smaller, forget_ids=("r0-1",)), Retrain(), executor.folder)
    with pytest.raises(ExpungeError, match="1 rows that the served model was trained on are not in the data"):
        late.forget(["r0-1"])


@pytest.fixture
def sharded(problem: Problem, tmp_path: Path) -> ShardedModel:
    model = ShardedModel.create(
        tmp_path / "sharded", problem, SISA(shards=3, slices=2, by="user"), secret=b"s" * 32
    )
    model.train()
    return model


def test_sharded_models_forget_and_prove_it(ledger: Ledger, problem: Problem, sharded: ShardedModel) -> None:
    executor = ShardedExecutor(sharded.folder, subject="user")
    assert sorted(executor.rows()) == sorted(zip(problem.train["id"], problem.train["user"], strict=True))
    before = sharded.served
    requests = [ledger.submit(subject="u2"), ledger.submit(record_ids=["r0-0"])]
    Worker(ledger, executor, seal).run(until_idle=True)
    assert {ledger.status(r.id).state for r in requests} == {"done"}
    [entry] = chain(list(ledger.log()))
    outcome = entry["outcome"]
    after = sharded.served
    assert before is not None and after is not None
    assert (outcome["model_before"], outcome["model_after"]) == (before.model, after.model)
    assert (outcome["method"], outcome["guarantee"], outcome["records"]) == ("sisa", "bitwise", 17)
    assert outcome["parameters"]["shards"] == 3 and outcome["erased"]
    assert sharded.verify(absent=["r0-0", "r0-2"]) == []
    # A person's rows lie in one slice, so that forgetting them costs no more than forgetting one of them.
    of_one = [i for i, u in executor.rows() if u == "u1"]
    assert executor.cost(of_one) == executor.cost(of_one[:1]) > 0


def test_a_sharded_model_that_was_interrupted_is_finished(
    ledger: Ledger, sharded: ShardedModel, clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    executor = ShardedExecutor(sharded.folder)
    request = ledger.submit(record_ids=["r0-0"])
    old = executor.fingerprint()

    def die(*_: object, **__: object) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        # The rows are gone by then, the model that knew them still answers.
        patch.setattr(ShardedModel, "_completed", die)
        Worker(ledger, executor, seal).step()
    assert "r0-0" not in sharded.ids() and executor.fingerprint() == old
    clock.now += 61
    Worker(ledger, ShardedExecutor(sharded.folder), seal).run(until_idle=True)
    assert ledger.status(request.id).state == "done" and sharded.verify() == []
    [entry] = chain(list(ledger.log()))
    assert (
        entry["outcome"]["model_before"] == old != entry["outcome"]["model_after"] == executor.fingerprint()
    )


def test_damage_gets_no_certificate(ledger: Ledger, sharded: ShardedModel) -> None:
    for file in (sharded.folder / "stages").glob("*.safetensors"):
        content = bytearray(file.read_bytes())
        content[-1] ^= 1
        file.write_bytes(bytes(content))
    request = ledger.submit(record_ids=["r0-0"])
    Worker(ledger, ShardedExecutor(sharded.folder), seal, max_attempts=1).step()
    status = ledger.status(request.id)
    assert status.state == "failed" and "damaged" in status.explanation
    assert list(ledger.log()) == []
