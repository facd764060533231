"""Adapters behind a gate: the gate's numbers by hand, and the two ends of it, the base and the merged model."""

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families.gated import Gate, Gated, Request, likeness, visible, visible_means
from expunge.families.models import call_language_model, clone
from expunge.families.weights import load_folder, save_model
from expunge.testing import tiny_problem

BLOCKS = ["model.layers.0", "model.layers.1"]
NAMES = ["model.layers.0.self_attn.q_proj", "model.layers.1.mlp.down_proj"]


@pytest.mark.parametrize(
    ("q", "expected"), [(0.0, 0.99966), (1.0, 0.76371), (2.0, 0.17581), (3.0, 0.12207), (9.0, 0.11920)]
)
def test_published_gate(q, expected):
    found = likeness(torch.tensor([q, -q]), 0.0, 0.0, 1.0)
    assert found.tolist() == pytest.approx([expected] * 2, abs=2e-5)


def test_published_gate_is_symmetric_about_the_middle_of_both_means():
    q = torch.linspace(-3, 3, 7)
    left, right = likeness(0.75 - q, 0.5, 1.0, 0.4), likeness(0.75 + q, 0.5, 1.0, 0.4)
    assert torch.allclose(left, right, atol=1e-5)
    assert int(left.argmax()) == 3


def constant(weight, n_layers=2, width=16):
    """A gate that lets in all (1) or nothing (0), whatever it sees."""
    gate = Gate(n_layers, width)
    gate.importance.fill_(1 / n_layers)
    gate.whitening.copy_(torch.eye(width).expand(n_layers, -1, -1))
    gate.calibration.copy_(torch.tensor([-1e9, -1e9, 1.0] if weight else [1e9, 1e9, 1.0]))
    return gate


def request(model, gate, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = {name: model.get_submodule(name).weight.shape for name in NAMES}
    down = {name: torch.randn(3, d_in, generator=generator) for name, (_, d_in) in shapes.items()}
    up = {name: 0.3 * torch.randn(d_out, 3, generator=generator) for name, (d_out, _) in shapes.items()}
    return Request(down, up, gate)


def merged(model, *requests):
    """The same adapters added to the weights."""
    made = clone(model)
    with torch.no_grad():
        for one in requests:
            for name in one.names:
                down, up = one.adapter(name)
                made.get_submodule(name).weight += up @ down
    return made


def answers(model, problem, rows=None):
    batch = problem.batches("forget").take(torch.arange(6) if rows is None else rows)
    with torch.no_grad():
        return problem.family.forward(model, batch).prediction, batch


def test_closed_it_is_the_base_bit_by_bit_and_open_the_merged_model():
    problem = tiny_problem("causal_lm")
    target = problem.target
    closed, opened = request(target, constant(0)), request(target, constant(1), seed=1)
    base = answers(target, problem)[0]
    assert torch.equal(answers(Gated(target, BLOCKS, [closed]), problem)[0], base)
    assert torch.equal(answers(Gated(target, BLOCKS, []), problem)[0], base)
    found = answers(Gated(target, BLOCKS, [opened]), problem)[0]
    assert not torch.allclose(found, base, atol=0.1)
    assert torch.allclose(found, answers(merged(target, opened), problem)[0], atol=1e-5)
    both = Gated(target, BLOCKS, [opened, closed, request(target, constant(1), seed=2)])
    expected = merged(target, opened, request(target, constant(1), seed=2))
    assert torch.allclose(answers(both, problem)[0], answers(expected, problem)[0], atol=1e-5)
    assert not target.get_submodule(NAMES[0])._forward_hooks  # nothing stays behind


def cloud(n, center, seed, d=16):
    generator = torch.Generator().manual_seed(seed)
    scales = torch.linspace(0.2, 2, d)
    return center + torch.randn(n, 2, d, generator=generator) * scales


def test_fitted_gate_tells_what_it_was_fitted_on_from_the_rest():
    fitted, like = cloud(40, 0.0, 0), cloud(60, 0.0, 1)
    gate = Gate.fitted(fitted, like, 0.1)
    far = cloud(60, 2.0, 2)
    scores = torch.cat([gate.score(like), gate.score(far)]).numpy()
    assert roc_auc_score([1] * 60 + [0] * 60, scores) > 0.95
    assert float(gate(like).median()) > 0.5
    assert float(gate(far).max()) < 0.05
    assert float(gate(cloud(5, 40.0, 3)).max()) == 0.0


def test_distances_are_half_squared_mahalanobis_distances_per_dimension():
    from sklearn.covariance import LedoitWolf

    fitted, other = cloud(30, 0.0, 0), cloud(7, 1.0, 1)
    gate = Gate.fitted(fitted, cloud(30, 0.0, 2), 0.1)
    for layer in range(2):
        estimate = LedoitWolf().fit(fitted[:, layer].double().numpy())
        expected = estimate.mahalanobis(other[:, layer].double().numpy()) / 2 / 16
        assert gate.distances(other)[:, layer].numpy() == pytest.approx(expected, rel=1e-4)


def test_the_gate_falls_with_every_distance_and_lies_between_0_and_1():
    gate = Gate.fitted(cloud(40, 0.0, 0), cloud(40, 0.0, 1), 0.1)
    assert (gate.importance >= 0).all() and float(gate.importance.sum()) == pytest.approx(1, abs=1e-6)
    direction = cloud(1, 0.0, 5) - gate.mean
    along = gate(gate.mean + direction * torch.linspace(0, 6, 50)[:, None, None])
    assert (along[1:] <= along[:-1]).all()
    assert float(along[0]) == pytest.approx(1) and float(along[-1]) < 1e-3


def test_fewer_texts_than_dimensions_do_not_make_it_singular():
    gate = Gate.fitted(cloud(6, 0.0, 0, d=64), cloud(6, 0.0, 1, d=64), 0.1)
    assert torch.isfinite(gate.whitening).all()
    assert torch.isfinite(gate(cloud(4, 1.0, 2, d=64))).all()


def test_visible_tokens():
    ids = torch.zeros(2, 3, dtype=torch.long)
    mask = torch.tensor([[1, 1, 0], [0, 1, 1]])
    found = visible({"input_ids": ids, "attention_mask": mask})
    assert found[0].tolist() == [[True, False, False], [True, True, False], [True, True, False]]
    assert found[1].tolist() == [[False] * 3, [False, True, False], [False, True, True]]
    scores = torch.where(found, 0.0, -1e9)[:, None]
    assert torch.equal(visible({"input_ids": ids, "attention_mask": scores}), found)
    assert torch.equal(visible({"input_ids": ids, "attention_mask": found[:, None]}), found)
    assert visible({"input_ids": ids})[1].int().tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_means_over_visible_tokens_are_those_of_each_prefix_by_itself():
    problem = tiny_problem("causal_lm")
    batch = problem.batches("forget").take(torch.tensor([0]))
    means = visible_means(problem.target, BLOCKS, batch.inputs)
    states = []
    handle = problem.target.get_submodule(BLOCKS[1]).register_forward_hook(
        lambda _m, _a, out: states.append(out if isinstance(out, torch.Tensor) else out[0])
    )
    with torch.no_grad():
        for n in (1, 4, 9):
            call_language_model(problem.target, {"input_ids": batch.inputs["input_ids"][:, :n]}, 1)
            assert torch.allclose(means[0, n - 1, 1], states[-1][0].mean(0), atol=1e-5)
    handle.remove()


@pytest.fixture(scope="module")
def served():
    """A model whose gate is fitted on some rows, so that its weights are neither all 0 nor all 1."""
    problem = tiny_problem("causal_lm")
    batch = problem.batches("forget").take(torch.arange(12))
    features = visible_means(problem.target, BLOCKS, batch.inputs)[:, 8:14].flatten(0, 1)
    gate = Gate.fitted(features[::2], features[1::2], 0.1)
    return Gated(problem.target, BLOCKS, [request(problem.target, gate)]).eval()


def test_answers_depend_neither_on_padding_nor_on_other_rows(served):
    problem = tiny_problem("causal_lm")
    together, batch = answers(served, problem)
    weights = served.weights(batch.inputs)[0]
    assert float(weights.min()) < 0.05 and float(weights.max()) > 0.95
    backwards = answers(served, problem, torch.arange(6).flip(0))[0].flip(0)
    assert torch.allclose(together, backwards, atol=1e-5)
    n = batch.targets.shape[1]
    padded = {k: torch.nn.functional.pad(v, (0, 5)) for k, v in batch.inputs.items()}
    with torch.no_grad():
        longer = call_language_model(served, padded, n + 6)[:, :n]
        left = {k: torch.nn.functional.pad(v[:1], (5, 0)) for k, v in batch.inputs.items()}
        left["position_ids"] = (left["attention_mask"].cumsum(-1) - 1).clamp(min=0)
        shifted = call_language_model(served, left, n + 1)[:, :-1]
    assert torch.allclose(longer, together, atol=1e-5)
    seen = batch.mask[0]
    assert torch.allclose(shifted[0][seen], together[0][seen], atol=1e-4)


def test_several_answers_in_one_sequence_score_as_alone(served):
    problem = tiny_problem("causal_lm")
    rows = problem.forget.select(range(4))
    found = collect(problem.family, served, rows, ["perturbed_loss"])["perturbed_loss"]
    for k in range(3):
        texts = [answers[k] for answers in rows["perturbed_answer"]]
        alone = problem.family.answered(rows, texts)
        expected = collect(problem.family, served, alone, ["loss"])["loss"]
        assert np.abs(found[:, k] - expected).max() < 1e-4


def test_written_and_read_again_it_answers_the_same(served, tmp_path):
    problem = tiny_problem("causal_lm")
    save_model(served, tmp_path, problem.architecture, problem.family.describe(), {})
    read, architecture, _ = load_folder(tmp_path)
    assert isinstance(read, Gated) and architecture.name == "gated"
    assert torch.equal(answers(read.eval(), problem)[0], answers(served, problem)[0])


def test_a_layer_that_mixes_rows_is_refused():
    problem = tiny_problem("causal_lm", sparse=True)
    inputs = problem.batches("forget").take(torch.arange(2)).inputs
    name = "model.layers.0.mlp.gate"  # routes tokens, whatever row they belong to
    n_out, n_in = problem.target.get_submodule(name).weight.shape
    adapters = Request({name: torch.zeros(2, n_in)}, {name: torch.zeros(n_out, 2)}, constant(1))
    model = Gated(problem.target, BLOCKS, [adapters])
    with pytest.raises(BadInput, match="mixes the tokens of all rows"):
        call_language_model(model, inputs, 1)
