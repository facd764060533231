import math
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from expunge.data.benchmarks.digits import Digits
from expunge.errors import BadInput
from expunge.methods import Workplace
from expunge.methods.laf import LAF, VAE, collect, phi, represent, turn
from expunge.methods.loop import fit
from expunge.problem import Training

FAST = {"epochs": 3, "batch_size": 4, "lr_ue": 2e-3, "lr_ra": 1e-3, "vae_epochs": 3, "latent": 2, "width": 6}


def transcribed(model, forget, retain, seed, method):
    """The definition on plain tensors for a perceptron with one hidden layer; returns its hidden weight and bias.

    Random numbers come in the order of the method: initial VAE weights from the global generator; permutations
    and codes from the run's own. Batch sums, Adam written out.
    """
    draws = Workplace(seed=seed).generator(11)
    torch.manual_seed(seed)

    def adam(parameters, rate):
        state = [(torch.zeros_like(p), torch.zeros_like(p)) for p in parameters]
        count = 0

        def step(loss):
            nonlocal count
            count += 1
            gradients = torch.autograd.grad(loss, parameters, retain_graph=True)
            with torch.no_grad():
                for p, g, (m, v) in zip(parameters, gradients, state, strict=True):
                    m.mul_(0.9).add_(0.1 * g)
                    v.mul_(0.999).add_(0.001 * g * g)
                    scale = (v / (1 - 0.999**count)).sqrt() + 1e-8
                    p.sub_(rate * (m / (1 - 0.9**count)) / scale)

        return step

    def encode(vae, x):
        hidden = (x @ vae[0].T + vae[1]).clamp(min=0)
        return hidden @ vae[2].T + vae[3], hidden @ vae[4].T + vae[5]

    def decode(vae, z):
        return (z @ vae[6].T + vae[7]).clamp(min=0) @ vae[8].T + vae[9]

    def trained_vae(rows):
        layers = [nn.Linear(8, method.width), nn.Linear(method.width, method.latent)]
        layers += [nn.Linear(method.width, method.latent), nn.Linear(method.latent, method.width)]
        layers += [nn.Linear(method.width, 8)]
        vae = [p for layer in layers for p in (layer.weight, layer.bias)]
        step = adam(vae, method.vae_lr)
        for _ in range(method.vae_epochs):
            for chosen in torch.randperm(len(rows), generator=draws).split(method.batch_size):
                x = rows[chosen]
                mu, log_var = encode(vae, x)
                z = mu + torch.sqrt(torch.exp(log_var)) * torch.randn(mu.shape, generator=draws)
                kl = -0.5 * (log_var + 1 - mu**2 - torch.exp(log_var)).sum() / len(x)
                step(((decode(vae, z) - x) ** 2).sum() / len(x) + 0.025 * kl)
        return [p.detach() for p in vae]

    weights = [model.layers[0].weight.detach().clone(), model.layers[0].bias.detach().clone()]
    for w in weights:
        w.requires_grad_()

    def e(x):
        return (x @ weights[0].T + weights[1]).clamp(min=0)

    def pull(vae, rows):
        r = ((decode(vae, encode(vae, rows)[0]) - rows) ** 2).sum(1)
        return torch.exp(r / (r + 1)).sum()

    def cosine(a, b):
        return 1 - (a * b).sum(1) / (a.norm(dim=1) * b.norm(dim=1))

    before_f, before_r = e(forget).detach(), e(retain).detach()
    vae_r = trained_vae(before_r)
    vae_f = trained_vae(before_f)
    ue, ra = adam(weights, method.lr_ue), adam(weights, method.lr_ra)
    for _ in range(method.epochs):
        order_f = torch.randperm(len(forget), generator=draws).split(method.batch_size)
        order_r = torch.randperm(len(retain), generator=draws).split(method.batch_size)
        for i, j in zip(order_f, order_r, strict=False):
            ue(pull(vae_r, e(retain[j])) - pull(vae_f, e(forget[i])))
            numerators = torch.exp(cosine(e(retain[j]), before_r[j]))
            denominator = torch.exp(cosine(e(forget[i]), before_f[i]) / method.tau).sum()
            ra(torch.log(numerators / denominator).sum())
    return weights


@pytest.mark.parametrize("seed", [0, 5])
def test_the_weights_are_those_of_a_plain_transcription(classification, tensors, seed):
    method = LAF(**FAST)
    (forget, _), (retain, _) = tensors(classification, "forget"), tensors(classification, "retain")
    made = method.forget(classification, Workplace(seed=seed))
    expected = transcribed(classification.target, forget, retain, seed, method)
    for name, value in zip(("layers.0.weight", "layers.0.bias"), expected, strict=True):
        found = made.model.get_parameter(name)
        torch.testing.assert_close(found, value, rtol=0, atol=1e-5)
        assert (found - classification.target.get_parameter(name)).abs().max() > 3e-3
    # 26 retain rows in batches of 4 against 10 forget rows: three steps per epoch.
    assert [entry["step"] for entry in made.log] == list(range(1, 10))
    assert all(entry["of"] == 9 for entry in made.log)


def test_phi():
    r = torch.tensor([0.0, 1.0, 1e6], requires_grad=True)
    values = phi(r)
    assert values[0] == 1
    assert values[1].item() == pytest.approx(math.exp(0.5))
    assert values[2].item() == pytest.approx(math.e, rel=1e-5) and values[2] < math.e
    (slope,) = torch.autograd.grad(values.sum(), r)
    assert slope[0] == 1
    assert slope[2] < 1e-11


def test_losses_by_hand():
    """Two retain rows and one forget row; ln of a sum of one exponential is its exponent."""
    retain, forget = torch.tensor([0.5, 0.25]), torch.tensor([1.0])
    assert LAF(tau=2.0).alignment_loss(retain, forget).item() == pytest.approx(0.75 - 2 * 0.5)
    assert LAF(tau=2.0, reduction="mean").alignment_loss(retain, forget).item() == pytest.approx(-0.125)
    expected = [math.exp(1 / 3), math.exp(1 / 5), -math.exp(1 / 2)]
    assert LAF().extractor_loss(retain, forget).item() == pytest.approx(sum(expected))
    mean = LAF(reduction="mean").extractor_loss(retain, forget).item()
    assert mean == pytest.approx((expected[0] + expected[1]) / 2 + expected[2])


def test_at_the_target_the_alignment_is_stationary(classification, gradient):
    family, model = classification.family, classification.target
    e_f, e_r = (
        represent(family, model, classification.batches(s).take(torch.arange(n)))
        for s, n in (("forget", 10), ("retain", 26))
    )
    loss = LAF(tau=5.0).alignment_loss(turn(e_r, e_r.detach()), turn(e_f, e_f.detach()))
    assert loss.item() == pytest.approx(-26 * math.log(10), rel=1e-5)
    weights = list(model.layers.parameters())
    assert all(g.abs().max() < 1e-5 for g in torch.autograd.grad(loss, weights))


def test_the_alignment_looks_at_directions_only():
    torch.manual_seed(0)
    e, original = torch.randn(5, 4), torch.randn(5, 4)
    torch.testing.assert_close(turn(2 * e, 2 * original), turn(e, original))
    assert turn(e, -3 * e).tolist() == pytest.approx([2.0] * 5)


def test_a_high_temperature_silences_the_forget_rows():
    retain = torch.zeros(3)
    forget = torch.rand(7, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss = LAF(tau=1e6).alignment_loss(retain, forget)
    assert loss.item() == pytest.approx(-3 * math.log(7), rel=1e-5)
    (slope,) = torch.autograd.grad(loss, forget)
    assert slope.abs().max() < 1e-6


@pytest.mark.parametrize("name", ["classification", "regression"])
def test_labels_are_not_read(request, name):
    problem = request.getfixturevalue(name)
    column = "label" if name == "classification" else "y"
    other = problem.train.map(lambda row: {column: (row[column] + 1) % 3})
    assert other[column][:] != problem.train[column][:]
    made = [LAF(**FAST).forget(p).model.state_dict() for p in (problem, replace(problem, train=other))]
    assert all(torch.equal(made[0][key], made[1][key]) for key in made[0])


@pytest.mark.parametrize("name", ["classification", "regression", "normalized", "pictures", "dropout"])
def test_the_head_and_all_statistics_stay(request, name):
    problem = request.getfixturevalue(name)
    before, made = problem.target.state_dict(), LAF(**FAST).forget(problem)
    head = problem.family.head(problem.target)
    for key, value in made.model.state_dict().items():
        same = torch.equal(value, before[key])
        kept = key.startswith(f"{head}.") or "running" in key or "num_batches" in key
        assert same == kept, key
    (note,) = made.notes
    assert note.startswith("representations turned by 1 - cos = ")


def test_rates_of_zero_change_nothing(classification):
    made = LAF(**{**FAST, "lr_ue": 0.0, "lr_ra": 0.0}).forget(classification)
    assert made.cost.changed == 0


def test_repair_trains_the_head_alone(normalized):
    plain = LAF(**FAST).forget(normalized).model
    repaired = LAF(**FAST, repair_epochs=2, repair_lr=0.01).forget(normalized).model
    for key, value in repaired.state_dict().items():
        assert torch.equal(value, plain.state_dict()[key]) == (not key.startswith("head.")), key
    assert all(p.requires_grad for p in repaired.parameters())
    batch = normalized.batches("retain").take(torch.arange(22))
    with torch.no_grad():
        family = normalized.family
        before, after = (family.nll(family.forward(m, batch), batch).mean() for m in (plain, repaired))
    assert after < before


def test_representations_are_what_the_head_reads(normalized):
    batch = normalized.batches("forget").take(torch.arange(8))
    model, family = normalized.target, normalized.family
    e = represent(family, model, batch)
    logits = family.forward(model, batch).prediction[:, 0]
    torch.testing.assert_close(e @ model.head.weight.T + model.head.bias, logits)
    assert not model.head._forward_pre_hooks
    torch.testing.assert_close(collect(family, model, normalized.batches("forget")), e)


def test_several_positions_are_averaged_over_the_valid_ones(classification):
    class Tokens(nn.Module):
        """Gives the head three positions per row, numbered 1, 2, 3."""

        def __init__(self):
            super().__init__()
            self.head = nn.Linear(1, 3)

        def forward(self, features):
            positions = torch.tensor([1.0, 2.0, 3.0]).expand(len(features), 3).unsqueeze(-1)
            return self.head(positions).mean(1)

    batch = classification.batches("forget").take(torch.arange(2))
    assert represent(classification.family, Tokens(), batch).tolist() == [[2.0], [2.0]]
    mask = torch.tensor([[True, True, False], [False, False, True]])
    masked = replace(batch, mask=mask)
    assert represent(classification.family, Tokens(), masked).tolist() == [[1.5], [3.0]]


def test_the_vae_learns_its_rows_and_not_others():
    """Rows on a line in eight dimensions: reconstructed along it, not beside it."""
    torch.manual_seed(0)
    direction = torch.ones(8)
    rows = torch.randn(256, 1) * direction
    vae = LAF(vae_epochs=60, vae_lr=5e-3, latent=1).fit_vae(rows, rows, torch.Generator().manual_seed(0))
    aside = rows + torch.tensor([2.0, -2.0] * 4)
    assert vae.distance(rows).mean() < 0.1 * rows.square().sum(1).mean()
    assert vae.distance(aside).mean() > 10 * vae.distance(rows).mean()
    assert not any(p.requires_grad for p in vae.parameters())


def test_standardized_distances_do_not_depend_on_units():
    """Other units of the representations leave r as it is; a dimension that never changes is left in."""
    torch.manual_seed(0)
    rows = torch.randn(20, 4)
    rows[:, 3] = 7.0
    torch.manual_seed(1)
    plain = VAE(4, 5, 2, rows)
    torch.manual_seed(1)
    scaled = VAE(4, 5, 2, 1000 * rows + 3)
    torch.testing.assert_close(scaled.distance(1000 * rows + 3), plain.distance(rows), rtol=1e-4, atol=1e-4)


def test_which_rows_the_retain_vae_sees(classification, monkeypatch):
    seen = []
    original = LAF.fit_vae

    def note(self, rows, retain, generator):
        seen.append(len(rows))
        return original(self, rows, retain, generator)

    monkeypatch.setattr(LAF, "fit_vae", note)
    LAF(**FAST).forget(classification)
    LAF(**FAST, vae_rows="train").forget(classification)
    assert seen == [26, 10, 36, 10]


def test_a_class_is_forgotten_and_the_others_are_kept():
    made = Digits().problem()
    ids = tuple(i for i, y in zip(made.train["id"], made.train["label"], strict=True) if y == 3)
    problem = replace(made, forget_ids=ids)
    target = fit(problem, problem.fresh_model(0), "train", Training(epochs=6, lr=0.05), Workplace()).eval()
    problem = problem.with_model(target)
    model = LAF(lr_ue=1e-3, lr_ra=3e-3, batch_size=16, tau=5.0, epochs=12, vae_epochs=4).forget(problem).model

    def accuracy(model, split):
        batch = problem.batches(split).take(torch.arange(len(problem.splits[split])))
        with torch.no_grad():
            return (model(*batch.inputs.values()).argmax(-1) == batch.targets[:, 0]).double().mean()

    assert accuracy(target, "forget") > 0.9
    assert accuracy(model, "forget") < 0.3
    assert accuracy(model, "retain") > accuracy(target, "retain") - 0.05


def test_a_model_that_is_only_a_head_is_refused(classification):
    problem = classification.with_model(nn.Linear(3, 3))
    with pytest.raises(BadInput, match="nothing that can be trained lies before the head ''"):
        LAF(**FAST).forget(problem)


def test_cosine_of_torch_is_the_cosine():
    torch.manual_seed(0)
    a, b = torch.randn(3, 4), torch.randn(3, 4)
    torch.testing.assert_close(turn(a, b), 1 - F.normalize(a).mul(F.normalize(b)).sum(1))
