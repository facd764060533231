"""Several models that answer as one: the rules' arithmetic by hand, and what holds of any composed model."""

import math

import pytest
import torch
from torch import nn

from expunge.api import audit
from expunge.data.checkpoints import load_checkpoint
from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families.combined import Combined, Difference, Generic, Mean
from expunge.families.models import MLP, Architecture, call, clone
from expunge.families.weights import load_folder, save_model
from expunge.testing import tiny_problem


def row(*values):
    return torch.tensor(values, dtype=torch.float32)


def test_generic_logits_by_hand():
    base, reinforced = row(2, 1, 0), row(4, 1, -1)
    assert Generic(alpha=1, normalized=False)([base, reinforced]).tolist() == [0, 1, 0]
    assert Generic(alpha=5, normalized=False)([base, reinforced]).tolist() == [-8, 1, 0]


def test_generic_normalized_by_hand():
    """p_b = (1/2, 1/4, 1/4), p_r = (3/4, 1/8, 1/8): only the first token gained, ln 3/2."""
    base, reinforced = row(0.5, 0.25, 0.25).log(), row(0.75, 0.125, 0.125).log()
    found = Generic(alpha=2.0)([base + 3, reinforced - 7])  # a shift of either means nothing
    expected = [math.log(0.5) - 2 * math.log(1.5), math.log(0.25), math.log(0.25)]
    assert found.tolist() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("normalized", [True, False])
@pytest.mark.parametrize("alpha", [0.0, 0.5, 5.0])
def test_generic_never_exceeds_the_base_and_leaves_what_was_not_reinforced(normalized, alpha):
    torch.manual_seed(0)
    base, reinforced = torch.randn(4, 7), torch.randn(4, 7)
    start = base.log_softmax(-1) if normalized else base
    rule = Generic(alpha=alpha, normalized=normalized)
    found = rule([base, reinforced])
    gained = reinforced.log_softmax(-1) > start if normalized else reinforced > start
    assert torch.equal(found[~gained], start[~gained])
    assert (found <= start).all()
    assert torch.allclose(rule([base, base]), start, atol=1e-6)


def test_the_filter_by_hand():
    """Half of the largest probability is 0.69 nats below it, the second largest logit 1 below: two are kept."""
    base = row(5, 4, 0, 0)
    assert Difference(rho=0.5).kept(base).tolist() == [True, True, False, False]
    assert Difference(rho=0.9).kept(base).tolist() == [True, True, True, True]  # int(0.9 * 4) = 3, and a tie
    assert Difference(rho=0.1).kept(base).tolist() == [True, True, False, False]  # 1/10 is 2.3 nats below


def test_tokens_that_are_filtered_stay_below_those_that_are_kept():
    base, assistant = row(5, 4, 3.5, 0), row(9, 1, 100, 0)
    found = Difference(weight=-1.0, rho=0.5)([base, assistant])
    assert found.tolist() == [-4, 3, -4.5, -8]  # kept: 5 - 9 and 4 - 1; the least of them sank from 4 to -4
    risen = Difference(weight=-1.0, rho=0.5)([base, row(-1, -2, 100, 0)])
    assert risen.tolist() == [6, 6, 3.5, 0]


def test_difference_without_weight_is_the_base_and_with_itself_uniform():
    torch.manual_seed(1)
    base = torch.randn(3, 8)
    for rho in (0.0, 0.2, 0.9):
        assert torch.equal(Difference(weight=0.0, rho=rho)([base, torch.randn(3, 8)]), base)
    assert torch.equal(Difference(weight=-1.0, rho=0.0)([base, base]), torch.zeros(3, 8))
    flat = Difference(weight=-0.7, rho=0.0)([base, torch.full((3, 8), 2.5)])
    assert torch.allclose(flat.softmax(-1), base.softmax(-1), atol=1e-6)


def test_the_mean_of_logits():
    torch.manual_seed(2)
    models = [MLP(3, 2, [4]) for _ in range(3)]
    x = torch.randn(5, 3)
    found = call(Combined(models, Mean()), {"features": x})
    assert torch.allclose(found, sum(m(x) for m in models) / 3)


def test_a_rule_refuses_another_number_of_models():
    with pytest.raises(BadInput, match="rule 'generic' combines 2 models, got 1"):
        Combined([MLP(3, 2, [4])], Generic())
    with pytest.raises(BadInput, match="rule 'mean' combines 1 or more models, got 0"):
        Combined([], Mean())


def test_other_vocabularies_are_refused():
    model = Combined([MLP(3, 2, [4]), MLP(3, 4, [4])], Mean())
    with pytest.raises(BadInput, match="models of 2 and 4 logits cannot be combined"):
        call(model, {"features": torch.zeros(1, 3)})


def test_written_and_read_again_it_answers_the_same(tmp_path):
    problem = tiny_problem("causal_lm")
    other = problem.fresh_model(5).eval()
    model = Combined([clone(problem.target), other], Generic(alpha=2.0, normalized=False))
    save_model(model, tmp_path, problem.architecture, problem.family.describe(), {})
    read, architecture, _ = load_folder(tmp_path)
    assert isinstance(read, Combined) and read.rule == model.rule
    assert architecture.kind == "composed"
    quantities = ["token_logp", "perturbed_loss", "text"]
    one, two = (collect(problem.family, m, problem.forget, quantities) for m in (model, read))
    assert one.table.equals(two.table)


def test_models_of_unknown_architecture_cannot_be_rebuilt():
    assert Combined([nn.Linear(2, 2)], Mean()).architecture(None) is None


def test_an_unknown_composition_is_refused():
    with pytest.raises(BadInput, match="unknown composed model 'combind'; did you mean 'combined'"):
        Architecture(kind="composed", name="combind").build(0)
    with pytest.raises(BadInput, match="unknown rule 'sum' for several models"):
        Architecture(kind="composed", name="combined", options={"how": "sum"}).build(0)


def test_layers_are_those_of_the_base():
    problem = tiny_problem("causal_lm")
    model = Combined([problem.target, problem.fresh_model(5)], Generic())
    assert problem.family.layers(model) == problem.family.layers(problem.target)
    quantity = "features:model.layers.1"
    one, two = (
        collect(problem.family, m, problem.forget, [quantity])[quantity] for m in (model, problem.target)
    )
    assert (one == two).all()


def test_a_text_is_scored_and_continued_under_one_distribution():
    """What greedy decoding gives is the most likely next token, step by step, of the logits that score texts."""
    problem = tiny_problem("causal_lm")
    model = Combined([problem.target, problem.fresh_model(5).eval()], Difference(weight=-0.5, rho=0.2)).eval()
    family = problem.family
    row = problem.forget[0]
    said = collect(family, model, problem.forget.select([0]), ["text"])["text"][0]
    ids, n_prompt = family.tokens(*family.template.render(row, family.tokenizer))
    ids = ids[:n_prompt]
    for _ in range(12):
        with torch.no_grad():
            one, two = (part(torch.tensor([ids])).logits[0, -1] for part in model.parts)
        ids.append(int(model.rule([one, two]).argmax()))
        if ids[-1] == family.tokenizer.eos_token_id:
            break
    assert family.tokenizer.decode(ids[n_prompt:], skip_special_tokens=True).strip() == said


def test_a_folder_is_audited_as_any_other(tmp_path):
    problem = tiny_problem("causal_lm")
    model = Combined([clone(problem.target), problem.fresh_model(5).eval()], Difference(weight=-0.5, rho=0.2))
    save_model(model, tmp_path / "served", problem.architecture, problem.family.describe(), {})
    found = load_checkpoint("served", tmp_path)
    assert found.model is not None and found.family is not None
    metrics = ["cka-to-target", "extraction-strength"]
    scores = audit(problem, {"served": found.model}, metrics=metrics)
    (judged,) = [j for j in scores.judged if j.label == "served"]
    similarity = judged.score("cka-to-target", "forget")
    # The base is the target: its representation is what it was.
    assert similarity is not None and similarity.value == pytest.approx(1.0)
    strength = judged.score("extraction-strength", "forget")
    assert strength is not None and strength.status == "ok"
