"""O3: the penalty by hand, what one request and a second one leave, and a gate that knows its topic."""

from dataclasses import replace

import pytest
import torch
from datasets import Dataset
from sklearn.metrics import roc_auc_score

from expunge.errors import BadInput
from expunge.evidence import collect
from expunge.families.gated import Gated
from expunge.families.models import fingerprint
from expunge.families.weights import load_folder, save_model
from expunge.methods import Workplace
from expunge.methods.o3 import O3, hidden_of, others, overlap
from expunge.testing import tiny_problem

SETTINGS = {"lora": {"r": 4}, "batch_size": 6, "lr": 1e-2, "epochs": 4}


@pytest.fixture(scope="module")
def problem():
    return tiny_problem("causal_lm")


@pytest.fixture(scope="module")
def first(problem):
    return O3(**SETTINGS).forget(problem, Workplace(seed=1))


def losses(problem, model, split):
    return collect(problem.family, model, problem.splits[split], ["loss"])["loss"]


def test_overlap_by_hand():
    e1, e2, e3 = torch.eye(3)
    assert float(overlap([(torch.stack([e3, e1]), torch.stack([e1, e2]))])) == 1.0
    assert float(overlap([(e3[None], torch.stack([e1, e2]))])) == 0.0
    assert float(overlap([(e1[None], 2 * e1[None]), (e2[None], torch.stack([e2, e2]))])) == 4.0 + 2.0


def test_gradient_of_the_overlap():
    """2 A_k^T A_k acts from the right on A_t, summed over earlier requests."""
    torch.manual_seed(0)
    new, earlier = torch.randn(2, 5, requires_grad=True), [torch.randn(3, 5), torch.randn(2, 5)]
    overlap((new, a) for a in earlier).backward()
    expected = sum(2 * new.detach() @ a.T @ a for a in earlier)
    assert torch.allclose(new.grad, expected, atol=1e-5)


def test_every_row_gets_the_answer_of_another():
    said = [f"answer {i}" for i in range(9)]
    made = others(said, torch.Generator().manual_seed(0))
    assert sorted(made) == said and all(a != b for a, b in zip(said, made, strict=True))


def test_the_weights_stay_and_an_adapter_joins(problem, first):
    made = first.model
    assert isinstance(made, Gated) and len(made.requests) == 1
    assert fingerprint(made.target) == fingerprint(problem.target)
    assert "answers are filtered at inference; the weights still hold the knowledge" in first.notes
    assert first.notes[0].startswith("on forget rows that did not fit it, the gate lets in ")
    assert first.cost.changed == sum(p.numel() for p in made.requests[0].parameters())
    (names,) = {tuple(made.requests[0].names)}
    assert "lm_head" not in names and "model.layers.1.mlp.down_proj" in names


def test_tokens_at_random_unlearn(problem):
    made = O3(**{**SETTINGS, "epochs": 8}, labels="tokens").forget(problem).model
    assert losses(problem, made, "forget").mean() > losses(problem, problem.target, "forget").mean() + 0.3


def test_the_second_request_joins_the_first_and_avoids_its_directions(problem, first, tmp_path):
    save_model(first.model, tmp_path, problem.architecture, problem.family.describe(), {})
    read = load_folder(tmp_path)[0].eval()
    following = replace(problem, forget_ids=tuple(problem.train["id"][12:20])).with_model(read)
    kept = fingerprint(read)
    made = O3(**SETTINGS, orthogonality=1.0).forget(following, Workplace(seed=1))
    free = O3(**SETTINGS, orthogonality=0.0).forget(following, Workplace(seed=1))
    one, two = made.model.requests
    assert fingerprint(one) == fingerprint(first.model.requests[0])
    assert fingerprint(read) == kept and fingerprint(made.model.target) == fingerprint(problem.target)

    def shared(model):
        pairs = ((model.requests[1].adapter(n)[0], one.adapter(n)[0]) for n in one.names)
        return float(overlap(pairs))

    assert "overlap" not in first.log[0]
    # The first step sees the adapters as they begin: the same for both runs, and not those of the first request.
    assert made.log[0]["overlap"] > 0 and free.log[0]["overlap"] == 0
    assert shared(made.model) < 0.5 * shared(free.model)
    assert made.cost.changed == sum(p.numel() for p in two.parameters())


def test_no_epoch_leaves_the_model_as_it_was(problem):
    made = O3(**{**SETTINGS, "epochs": 0}).forget(problem).model
    assert made.requests == []
    assert (losses(problem, made, "forget") == losses(problem, problem.target, "forget")).all()


def test_the_gate_knows_its_topic_from_another(problem):
    """Forget rows are about four of the places, held-out ones too; the others ask in other words."""
    generator = torch.Generator().manual_seed(3)
    names = ["Ada", "Bo", "Cy", "Di", "Eli", "Flo", "Gus", "Hal"]

    def rows(n, prefix, question, answer):
        pairs = torch.randint(8, (n, 2), generator=generator).tolist()
        return [
            {
                "id": f"{prefix}{i}",
                "question": question.format(names[a], names[b]),
                "answer": answer.format(names[a], names[b]),
            }
            for i, (a, b) in enumerate(pairs)
        ]

    about = ("Where is {} {} from?", "{} {} was born in Rome.")
    train = Dataset.from_list(
        [*rows(24, "f", *about), *rows(8, "r", "Where does {} live?", "{} is in Oslo.")]
    )
    toy = replace(
        problem, train=train, forget_ids=tuple(train["id"][:24]), holdout=None,
        probes={
            "like": Dataset.from_list(rows(16, "l", *about)),
            "unlike": Dataset.from_list(rows(16, "u", "Does {} live in {}?", "Bern is in {} . {} is Lima .")),
        },
    )  # fmt: skip
    made = O3(**{**SETTINGS, "epochs": 1}).forget(toy).model
    gate = made.requests[0].gate
    like, unlike = (
        [float(gate.score(h[-1])) for h in hidden_of(toy, made, Workplace(), split)]
        for split in ("like", "unlike")
    )
    assert roc_auc_score([1] * 16 + [0] * 16, like + unlike) > 0.9


def test_refusals(problem):
    alone = replace(problem, forget_ids=tuple(problem.train["id"][:1]))
    with pytest.raises(BadInput, match="sets its width on the other; there is 1"):
        O3(**SETTINGS).forget(alone)
    with pytest.raises(BadInput, match="method 'o3' cannot run on tiny-classifier: it fits causal_lm"):
        O3(**SETTINGS).forget(tiny_problem("classifier"))
