"""S3T: orders and their capacity by hand and by simulation, deletions bit by bit, what is served."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families import Architecture
from expunge.families.combined import Combined
from expunge.families.models import clone
from expunge.families.weights import load_folder, save_model
from expunge.methods import Workplace
from expunge.methods.lora import LoRA
from expunge.methods.s3t import S3T, PrefixTree, layer_groups
from expunge.methods.slices import allot, cyclic, delete, expected_deletions, matched, simulated_deletions
from expunge.problem import Problem
from expunge.testing.problems import tiny_problem

DEEP = Architecture(kind="builtin", name="mlp", options={"inputs": 4, "outputs": 3, "hidden": [8, 8, 8]})


@pytest.fixture(scope="module")
def deep() -> Problem:
    """A classification problem whose network has three blocks."""
    return replace(tiny_problem("classifier"), architecture=DEEP, model=DEEP.build(0))


@pytest.fixture(scope="module", params=["classifier", "causal_lm"])
def problem(request: pytest.FixtureRequest, deep: Problem) -> Problem:
    return deep if request.param == "classifier" else tiny_problem("causal_lm")


def weights(model: nn.Module) -> Tensor:
    return torch.cat([v.flatten().double() for v in model.state_dict().values()])


# ---------------------------------------------------------------- orders


def test_cyclic_orders_are_rotations() -> None:
    assert cyclic(4, 4) == [(0, 1, 2, 3), (3, 0, 1, 2), (2, 3, 0, 1), (1, 2, 3, 0)]
    assert cyclic(4, 2) == cyclic(4, 4)[:2]
    assert sorted(order[0] for order in cyclic(6, 6)) == list(range(6))


@pytest.mark.parametrize("budget", [5, 8, 13, 24])
def test_beyond_one_per_slice_suffixes_are_rotated_and_firsts_stay_even(budget: int) -> None:
    orders = cyclic(4, budget)
    assert len(set(orders)) == budget and set(orders) <= set(itertools.permutations(range(4)))
    firsts = [sum(order[0] == s for order in orders) for s in range(4)]
    assert max(firsts) - min(firsts) <= 1


@pytest.mark.parametrize("slices", [1, 3, 6])
def test_matched_orders_of_equal_slices_are_a_latin_square(slices: int) -> None:
    square = np.asarray(matched([1.0] * slices, slices))
    assert all(sorted(square[:, n]) == list(range(slices)) for n in range(slices))
    assert all(sorted(row) == list(range(slices)) for row in square)


def test_matched_orders_maximize_the_score_in_each_round() -> None:
    """Against all assignments, the score of every prefix written out as the sum that defines it."""
    p, horizon = np.asarray([0.4, 0.3, 0.2, 0.1]), 5

    def score(prefix: tuple[int, ...]) -> float:
        return sum(n * (1 - p[list(prefix[:n])].sum()) ** horizon for n in range(1, len(prefix) + 1))

    orders = matched(p.tolist(), 4, horizon)
    for length in range(1, 5):
        before = [order[: length - 1] for order in orders]
        best = max(
            sum(score((*prefix, s)) for prefix, s in zip(before, given, strict=True))
            for given in itertools.permutations(range(4))
            if all(s not in prefix for prefix, s in zip(before, given, strict=True))
        )
        assert sum(score(order[:length]) for order in orders) == pytest.approx(best, abs=1e-12)
    assert sorted(orders, key=score, reverse=True) == orders and matched(p.tolist(), 2, horizon) == orders[:2]
    assert orders[0][0] == 3  # the safest slice is learned first where only one order is kept


@pytest.mark.parametrize(("call", "message"), [
    (lambda: cyclic(3, 7), "3 slices have 6 orders, not 7; choose sequences between these"),
    (lambda: cyclic(3, 0), "3 slices have 6 orders, not 0"),
    (lambda: matched([0.5, 0.5], 3), "2 slices have 2 orders, not 3"),
    (lambda: matched([0.4, 0.3, 0.3], 4), "at most one sequence per slice: 3, not 4"),
    (lambda: matched([0.5, -0.1], 1), "no list of weights"),
    (lambda: matched([0.0, 0.0], 1), "not all 0"),
])  # fmt: skip
def test_orders_that_cannot_be_are_refused(call: Any, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        call()


def test_a_deletion_cuts_before_its_slice() -> None:
    assert delete([(2, 0, 1)], 0) == [(2,)]
    assert delete([(2, 0, 1)], 2) == []
    assert delete([(2, 0, 1)], 3) == [(2, 0, 1)]
    assert delete([(10, 1, 0), (1, 10, 0)], 1) == [(10,)]  # numbers, not digits


@pytest.mark.parametrize(("budget", "expected"), [(1, 68.5), (3, 99.547), (6, 119.850)])
def test_simulated_deletions_agree_with_the_coupon_collector(budget: int, expected: float) -> None:
    """Five shards of six slices: 30 H_5, 30 H_15, 30 H_30."""
    assert expected_deletions(30, 5 * budget) == pytest.approx(expected, abs=1e-3)
    counts = simulated_deletions([cyclic(6, budget)] * 5, 400, seed=1)
    assert abs(counts.mean() - expected) < 4 * counts.std() / math.sqrt(400)


def test_rows_are_allotted_by_their_key_alone() -> None:
    keys = [f"row-{i}" for i in range(2000)]
    cells = allot(keys, 5, 4)
    assert np.array_equal(allot(keys[::7], 5, 4), cells[::7])
    counts = np.bincount(cells[:, 0] * 4 + cells[:, 1], minlength=20)
    assert ((counts - 100) ** 2 / 100).sum() < 43.8  # chi-squared with 19 degrees of freedom, 0.1 %
    assert np.array_equal(*allot(["ann", "ann"], 5, 4))


# ---------------------------------------------------------------- the prefix tree


def grown(problem: Problem, learned: np.ndarray, settings: S3T, slices: int = 2) -> PrefixTree:
    base = problem.fresh_model(1)
    groups = layer_groups(base, problem.family.head(base), settings.lora, slices)
    cells = settings.cells(problem, slices)
    tree = PrefixTree(settings, problem, base, groups, 0, cells, learned, Workplace(seed=5))
    for order in cyclic(slices, slices):
        tree.grow(order)
    return tree


@pytest.mark.parametrize("data", ["slice", "cumulative"])
def test_what_a_deletion_leaves_is_bit_by_bit_what_was_never_told(problem: Problem, data: Any) -> None:
    """Learn from everything, then delete one row; or never learn from it: the same weights stand."""
    settings = S3T(shards=1, slices=2, epochs=2, data=data, lora=LoRA(r=2, dropout=0.1))
    everything = np.arange(len(problem.train))
    row = int(np.flatnonzero(settings.cells(problem, 2)[:, 1] == 0)[0])  # of slice 0
    service = grown(problem, everything, settings)
    spared = grown(problem, np.delete(everything, row), settings)
    whole = weights(service.model((1, 0)))
    assert set(service.forget(0)) == {(0,), (0, 1), (1, 0)}
    assert set(service.snapshots) == {(1,)} and delete(cyclic(2, 2), 0) == [(1,)]
    assert torch.equal(weights(service.model((1,))), weights(spared.model((1,))))
    # The row had been learned from: where its slice takes part the weights differ.
    assert not torch.equal(whole, weights(spared.model((1, 0))))


def test_the_result_is_that_of_a_service_that_learned_from_every_row(problem: Problem) -> None:
    method = S3T(shards=1, slices=2, sequences=2, epochs=2)
    cells = method.cells(problem, 2)
    gone = tuple(np.asarray(problem.train["id"][:])[np.flatnonzero(cells[:, 1] == 1)[:3]].tolist())
    asked = replace(problem, forget_ids=gone)
    made = method.forget(asked, Workplace(seed=5))
    # The base is drawn as the method draws it.
    base = asked.fresh_model(5 + 7_919)
    groups = layer_groups(base, asked.family.head(base), method.lora, 2)
    service = PrefixTree(method, asked, base, groups, 0, cells, np.arange(len(cells)), Workplace(seed=5))
    for order in cyclic(2, 2):
        service.grow(order)
    service.forget(1)
    assert torch.equal(weights(made.model), weights(service.model((0,))))
    assert any("1 of 2 slices held rows to forget; 0 of 1 shards had no prefix left" in n for n in made.notes)
    assert any("stand 2.0 more deletions" in n for n in made.notes)  # 2 H_1


def test_each_place_moves_its_layers_from_the_top_down_and_the_head(deep: Problem) -> None:
    tree = grown(deep, np.arange(len(deep.train)), S3T(shards=1, slices=3, epochs=1), slices=3)
    before = tree.base.state_dict()

    def moved(prefix: tuple[int, ...], since: dict[str, Tensor]) -> set[str]:
        return {n for n, v in tree.model(prefix).state_dict().items() if not torch.equal(v, since[n])}

    head = {"head.weight", "head.bias"}
    assert moved((0,), before) == head | {"layers.2.weight"}
    assert moved((0, 1), tree.model((0,)).state_dict()) == head | {"layers.1.weight"}
    assert moved((0, 1, 2), tree.model((0, 1)).state_dict()) == head | {"layers.0.weight"}


def test_prefixes_are_learned_once_for_all_orders_that_begin_with_them(deep: Problem) -> None:
    tree = grown(deep, np.arange(len(deep.train)), S3T(shards=1, slices=3, epochs=1), slices=3)
    assert len(tree.snapshots) == 9
    n_steps = len(tree.workplace.log)
    tree.grow((0, 1, 2))
    assert len(tree.workplace.log) == n_steps
    tree.grow((0, 2, 1))  # two new places behind a known one
    assert len(tree.snapshots) == 11


def test_a_pretrained_language_model_keeps_its_head() -> None:
    problem = tiny_problem("causal_lm")
    base = problem.fresh_model(77)
    made = S3T(shards=1, slices=2, epochs=1).forget(replace(problem, start=base), Workplace(seed=5))
    before = base.state_dict()
    moved = {n for n, v in made.model.state_dict().items() if not torch.equal(v, before[n])}
    assert moved and all(n.startswith("model.layers.") and n.endswith("_proj.weight") for n in moved)
    assert "on the weights that training starts from" in made.notes[0]


def test_groups_go_from_the_top_down_and_differ_by_one_block() -> None:
    options = {"inputs": 2, "outputs": 2, "hidden": [3, 3, 3, 3, 3]}
    model = Architecture(kind="builtin", name="mlp", options=options).build(0)
    assert layer_groups(model, "head", LoRA(), 2) == [
        ["layers.4", "layers.3", "layers.2"],
        ["layers.1", "layers.0"],
    ]
    assert layer_groups(model, "head", LoRA(), 9) == [[f"layers.{i}"] for i in (4, 3, 2, 1, 0)]
    llama = tiny_problem("causal_lm").fresh_model(0)
    only = layer_groups(llama, "lm_head", LoRA(targets=("q_proj", "v_proj")), 1)
    assert only == [[f"model.layers.{i}.self_attn.{p}_proj" for i in (1, 0) for p in "qv"]]


# ---------------------------------------------------------------- what is served


def test_shards_answer_together_by_the_mean_of_their_logits(problem: Problem, tmp_path: Path) -> None:
    made = S3T(shards=3, slices=2, epochs=1).forget(problem, Workplace(seed=5))
    assert isinstance(made.model, Combined) and len(made.model.parts) == 3
    batch = problem.batches("forget").take(torch.arange(6))
    with torch.no_grad():
        together = problem.family.forward(made.model, batch).prediction
        apart = [problem.family.forward(part, batch).prediction for part in made.model.parts]
    torch.testing.assert_close(together, sum(apart) / 3)
    save_model(made.model, tmp_path, problem.architecture, problem.family.describe(), {})
    read = load_folder(tmp_path)[0].eval()
    with torch.no_grad():
        assert torch.equal(problem.family.forward(read, batch).prediction, together)


def test_no_row_to_forget_is_ever_read(problem: Problem, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[str] = set()
    family = type(problem.family)
    collate = family.collate

    def watched(self: Any, rows: Any) -> Any:
        seen.update(map(str, rows["id"]))
        return collate(self, rows)

    monkeypatch.setattr(family, "collate", watched)
    fresh = replace(problem)  # nothing collated yet
    S3T(shards=2, slices=2, epochs=1).forget(fresh)
    assert seen and not seen & set(problem.forget_ids)


def test_a_shard_without_any_prefix_is_trained_again(deep: Problem) -> None:
    method = S3T(shards=1, slices=2, sequences=1, epochs=1)
    cells = method.cells(deep, 2)
    first = np.asarray(deep.train["id"][:])[np.flatnonzero(cells[:, 1] == 0)[:1]]
    asked = replace(deep, forget_ids=tuple(first.tolist()))
    made = method.forget(asked, Workplace(seed=5))
    assert any("1 of 1 shards had no prefix left and were trained again" in n for n in made.notes)
    assert {entry["slices"] for entry in made.log} == {"0", "0,1"}
    # With a second order the other slice survives.
    kept = method.replace(sequences=2).forget(asked, Workplace(seed=5))
    assert {entry["slices"] for entry in kept.log} == {"1"}


def test_all_rows_of_a_user_share_a_slice(deep: Problem) -> None:
    users = [f"user-{i % 7}" for i in range(len(deep.train))]
    owned = replace(deep, train=deep.train.add_column("user", users))  # pyright: ignore
    cells = S3T(by="user").cells(owned, 3)
    assert all(
        len({tuple(c) for c, u in zip(cells.tolist(), users, strict=True) if u == v}) == 1 for v in set(users)
    )
    with pytest.raises(BadInput, match="no column 'owner' to allot rows by; it has id, a, b"):
        S3T(by="owner").cells(owned, 3)


def test_a_network_of_fewer_blocks_has_fewer_slices() -> None:
    made = S3T(shards=1, epochs=1).forget(tiny_problem("classifier"))
    assert "as many slices as the network has blocks that get adapters: 1" in made.notes


def test_networks_without_blocks_of_linear_layers_are_refused(deep: Problem) -> None:
    flat = deep.with_model(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)))
    with pytest.raises(
        BadInput, match="method 's3t' cannot run on .*: it needs a model with repeated blocks"
    ):
        S3T().forget(flat)


def test_adapters_outside_of_the_blocks_are_refused(deep: Problem) -> None:
    with pytest.raises(BadInput, match="no repeated block of MLP has a layer that gets an adapter"):
        S3T(lora=LoRA(targets=("head",))).forget(deep)


def test_a_prior_has_a_weight_per_slice(deep: Problem) -> None:
    made = S3T(shards=1, slices=3, sequences=1, prior=(0.6, 0.3, 0.1), epochs=1).forget(deep)
    assert {entry["slices"] for entry in made.log} == {"2", "2,1", "2,1,0"}
    with pytest.raises(BadInput, match="the prior has 2 weights for 3 slices"):
        S3T(slices=3, prior=(0.5, 0.5)).forget(deep)


def test_nothing_of_the_base_is_changed(deep: Problem) -> None:
    settings = S3T(shards=1, slices=2, epochs=1)
    tree = grown(deep, np.arange(len(deep.train)), settings)
    assert torch.equal(weights(tree.base), weights(clone(deep.fresh_model(1))))
