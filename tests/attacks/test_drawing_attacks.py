"""Attacks on image generators: models whose concept only changed its name, models that never had it, searches by brute force."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
from datasets import Dataset

import expunge
from expunge.attacks import ATTACKS, Scene
from expunge.attacks.concept_inversion import ConceptInversion, with_new_word
from expunge.attacks.drawing import DrawingAttack, Hunt, asked_rows, concept_images, denoised
from expunge.attacks.frames import Frame, all_free, vocabulary, with_inserted, with_prefix, words_of
from expunge.attacks.p4d import P4D, distance, drawn
from expunge.attacks.ring_a_bell import RingABell, distances, wanted_embedding
from expunge.attacks.unlearndiffatk import UnlearnDiffAtk, onto_simplex
from expunge.data.concepts import concept_problem, named_concept
from expunge.errors import BadInput
from expunge.families import Diffusion
from expunge.families.denoising import sample, sample_latents, starting_noise
from expunge.families.models import clone
from expunge.families.pipelines import DiffusionModel
from expunge.methods.base import Workplace
from expunge.problem import Concept, Problem
from expunge.record import Score
from expunge.testing.pictures import save_tiny_pipeline, tokenizer
from expunge.testing.problems import tiny_problem

ALL = (UnlearnDiffAtk, P4D, RingABell, ConceptInversion)


@pytest.fixture(scope="module")
def problem() -> Problem:
    return tiny_problem("diffusion")


@pytest.fixture(scope="module")
def family(problem: Problem) -> Diffusion:
    assert isinstance(problem.family, Diffusion)
    return problem.family


@pytest.fixture(scope="module")
def target(problem: Problem) -> DiffusionModel:
    assert isinstance(problem.target, DiffusionModel)
    return problem.target


@pytest.fixture(scope="module")
def renamed(family: Diffusion, target: DiffusionModel) -> DiffusionModel:
    """The target with the embeddings of red and blue exchanged: nothing is gone, it answers to another word."""
    made = clone(target)
    assert isinstance(made, DiffusionModel)
    red, blue = (family.tokenizer.convert_tokens_to_ids(word) for word in ("red", "blue"))
    with torch.no_grad():
        table = made.text_encoder.get_input_embeddings().weight  # pyright: ignore
        table[[red, blue]] = table[[blue, red]].clone()
    return made


@pytest.fixture(scope="module")
def retrained(problem: Problem) -> torch.nn.Module:
    return expunge.forget(problem, "retrain", seed=1).model


def clone_of(family: Diffusion, concept: dict[str, str]) -> Diffusion:
    """The family with another concept."""
    made = Diffusion.restore(family.describe())
    made.concept = concept
    return made


def run(attack: DrawingAttack, problem: Problem, model: torch.nn.Module) -> tuple[dict[str, Score], Scene]:
    scene = Scene(problem, model, Workplace(seed=0))
    return {s.metric.removeprefix(f"{attack.name}-"): s for s in attack.attack(scene)}, scene


def value(score: Score) -> float:
    assert score.value is not None, score.reason
    return score.value


def test_the_names_are_the_fields() -> None:
    assert {"unlearndiffatk", "p4d", "ring-a-bell", "concept-inversion"} <= set(ATTACKS)


@pytest.mark.parametrize("attack", ALL, ids=lambda a: a.name)
def test_the_target_succeeds_before_anything_is_searched(
    attack: type[DrawingAttack], problem: Problem
) -> None:
    scores, scene = run(attack(rows=4), problem, clone(problem.target))
    assert value(scores["pre-asr"]) == value(scores["post-asr"]) == 1
    curve = scores["post-asr"].curve
    assert curve is not None and curve.at[0] == 0 and set(curve.values) == {1.0}
    assert [said["prompt"] for said in scene.transcripts] == [
        said["asked"] for said in scene.transcripts
    ] or (attack is ConceptInversion)


@pytest.mark.parametrize(
    "attack", [UnlearnDiffAtk(tokens=2, rows=4, lr=0.05), P4D(variant="n", rows=4), ConceptInversion(rows=4)],
    ids=lambda a: a.name,
)  # fmt: skip
def test_what_only_changed_its_name_is_found_and_what_is_gone_is_not(
    attack: DrawingAttack, problem: Problem, renamed: DiffusionModel, retrained: torch.nn.Module
) -> None:
    scores, scene = run(attack, problem, renamed)
    assert value(scores["pre-asr"]) == 0
    assert value(scores["post-asr"]) >= 0.75
    curve = scores["post-asr"].curve
    assert curve is not None and all(np.diff(np.asarray(curve.values, dtype=float)) >= 0)
    assert curve.values[-1] == value(scores["post-asr"])
    assert len(scene.transcripts) == 4 and sum(said["drawn"] for said in scene.transcripts) >= 3
    if attack.name != "concept-inversion":
        found = [said["prompt"] for said in scene.transcripts if said["drawn"]]
        assert all("blue" in prompt for prompt in found)
        assert value(scores["text-asr"]) == value(scores["post-asr"])
        assert 0 <= value(scores["random-asr"]) <= 1
    gone, _ = run(attack, problem, retrained)
    assert value(gone["post-asr"]) <= 0.25


def test_the_bell_is_heard_only_where_the_words_mean_what_they_meant(
    problem: Problem, target: DiffusionModel, renamed: DiffusionModel
) -> None:
    attack = RingABell(rows=4, strength=1, steps=20, population=20)
    scores, _ = run(attack, problem, renamed)
    # Its prompts come from the encoder as published, where red is red.
    assert value(scores["post-asr"]) == 0
    # The embedding itself skips the renamed words, and the denoiser is the target's.
    assert value(scores["embedding-asr"]) == 1


def test_projection_onto_the_simplex_by_hand() -> None:
    given = torch.tensor([[0.5, 0.2, -0.1], [2.0, 0.0, 0.0]])
    wanted = torch.tensor([[0.6333, 0.3333, 0.0333], [1.0, 0.0, 0.0]])
    torch.testing.assert_close(onto_simplex(given), wanted, atol=1e-4, rtol=0)
    torch.testing.assert_close(onto_simplex(torch.ones(1, 2)), torch.full((1, 2), 0.5))
    random = torch.randn(20, 30, generator=torch.Generator().manual_seed(0))
    once = onto_simplex(random)
    torch.testing.assert_close(onto_simplex(once), once)
    # By bisection on the shift, as published.
    low, high = random.min(1).values - 1, random.max(1).values
    for _ in range(60):
        shift = (low + high) / 2
        above = (random - shift[:, None]).clamp(0, 1).sum(1) > 1
        low, high = torch.where(above, shift, low), torch.where(above, high, shift)
    torch.testing.assert_close(once, (random - low[:, None]).clamp(0, 1), atol=1e-5, rtol=0)


def test_the_search_comes_near_what_trying_all_prompts_finds(
    problem: Problem, family: Diffusion, renamed: DiffusionModel
) -> None:
    scene = Scene(problem, renamed, Workplace(seed=0))
    asked = asked_rows(scene, 4)
    images, random = concept_images(scene, asked), torch.Generator().manual_seed(5)
    times, noise = drawn(family, len(asked), 16, random)
    ids, frame = vocabulary(family), all_free(family, len(asked), 2)

    def loss(pair: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            tokens = frame.filled(pair.repeat(len(asked)))
            said, batch = denoised(family, renamed, images, times, noise, renamed.encode(tokens))
            return family.errors(said, batch).mean(1)

    pairs = [torch.tensor(pair) for pair in product(ids.tolist(), repeat=2)]
    losses = torch.stack([loss(pair) for pair in pairs])
    _, after = run(UnlearnDiffAtk(tokens=2, rows=4, lr=0.05), problem, renamed)
    for i, said in enumerate(after.transcripts):
        searched = loss(torch.tensor(words_of(family, family.tokens([said["prompt"]]))[0]))[i]
        best, plain = losses[:, i].min(), loss(torch.tensor(words_of(family, asked.tokens)[i]))[i]
        assert best <= searched + 1e-6
        assert searched - best < 0.5 * (plain - best), "no better than half way to the best of all prompts"


def test_chance_is_counted_over_as_many_draws(
    problem: Problem, family: Diffusion, renamed: DiffusionModel, retrained: torch.nn.Module
) -> None:
    """Of all prompts of two words those that say blue draw red here, so that random ones find it sooner or later."""
    for model, least, most in ((renamed, 0.75, 1), (retrained, 0, 0.25)):
        scene = Scene(problem, model, Workplace(seed=0))
        asked = asked_rows(scene, 4)
        frame, hunt = all_free(family, 4, 2), Hunt(scene, asked)
        assert least <= hunt.at_random([frame], 40).mean() <= most
        assert hunt.at_random([frame], 0).tolist() == hunt.before.tolist() == [False] * 4


def test_free_places(family: Diffusion) -> None:
    words = {
        w: family.tokenizer.convert_tokens_to_ids(w) for w in ("red", "left", "green", "<start>", "<end>")
    }
    tokens = family.tokens(["red left", "red"])
    whole = all_free(family, 1, 16)
    assert whole.free.tolist() == [[False, True, True, False]]  # as many as fit in
    before = with_prefix(family, tokens, 1)
    filled = before.filled(torch.tensor([words["green"], words["left"]]))
    assert filled.tolist() == [
        [words["<start>"], words["green"], words["red"], words["<end>"]],  # the prompt's end is cut
        [words["<start>"], words["left"], words["red"], words["<end>"]],
    ]
    between = with_inserted(family, tokens, 1)
    assert between.free.tolist() == [[False, False, True, False]] * 2
    assert words_of(family, tokens) == [[words["red"], words["left"]], [words["red"]]]
    assert with_prefix(family, tokens, 0).filled(torch.zeros(0)).tolist() == tokens.tolist()
    assert set(vocabulary(family).tolist()) == {2, 3, 4, 5, 6}


def test_a_prompt_ends_where_padding_is_not_the_end(family: Diffusion) -> None:
    padded = tokenizer(6)
    padded.pad_token = "<unknown>"  # pyright: ignore
    other = Diffusion(padded, family.noise.config, family.shape, 6)
    frame = with_prefix(other, other.tokens(["red"]), 1)
    assert frame.filled(torch.tensor([3])).tolist() == other.tokens(["green red"]).tolist()


def test_vectors_in_free_places_are_read_as_tokens_are(family: Diffusion, target: DiffusionModel) -> None:
    asked, other = family.tokens(["red left", "red left"]), family.tokens(["green left", "blue left"])
    frame = Frame(asked, torch.tensor([[False, True, False, False]] * 2))
    table = target.text_encoder.get_input_embeddings().weight  # pyright: ignore
    vectors = table[other[:, 1]].detach().clone().requires_grad_(True)
    encoded = frame.encoded(target, vectors)
    torch.testing.assert_close(encoded, target.encode(other))
    (slope,) = torch.autograd.grad(encoded[0].square().sum(), [vectors])
    assert slope[0].abs().sum() > 0 and slope[1].abs().sum() == 0
    torch.testing.assert_close(target.encode(asked), frame.encoded(target, table[asked[:, 1]]))


def test_conditions_stand_for_prompts(family: Diffusion, target: DiffusionModel) -> None:
    tokens, noise = family.tokens(["red left", "blue"]), torch.randn(2, *family.shape)
    by_words, _ = sample_latents(family, target, tokens, noise)
    given, _ = sample_latents(family, target, tokens, noise, conditions=target.encode(tokens))
    torch.testing.assert_close(given, by_words, atol=1e-5, rtol=0)


def test_the_target_under_its_own_prompt_is_at_distance_zero(
    problem: Problem, family: Diffusion, target: DiffusionModel
) -> None:
    scene = Scene(problem, clone(target))
    asked = asked_rows(scene, 3)
    frame = Frame.of(family, asked.tokens, lambda words: [None] * len(words))
    table = target.text_encoder.get_input_embeddings().weight  # pyright: ignore
    own = table[torch.tensor([i for words in words_of(family, asked.tokens) for i in words])].detach()
    times, noise = drawn(family, 3, 4, torch.Generator().manual_seed(0))
    images, wanted = concept_images(scene, asked), target.encode(asked.tokens).detach()
    same = distance(family, target, scene.model, images, times, noise, wanted, frame, own)
    other = distance(family, target, scene.model, images, times, noise, wanted, frame, own.flip(0))
    assert same.item() == pytest.approx(0, abs=1e-9) and other.item() > 1e-3


def test_without_strength_the_bell_is_the_prompt_itself(
    problem: Problem, family: Diffusion, target: DiffusionModel
) -> None:
    concept, prompts = problem.concept, ["red left", "red right"]
    assert concept is not None
    torch.testing.assert_close(
        wanted_embedding(family, target, concept, prompts, 0), target.encode(family.tokens(prompts)).detach()
    )
    nothing = Concept("a word for the same", ("scarlet",), ("crimson",))  # both are unknown words here
    torch.testing.assert_close(
        wanted_embedding(family, target, nothing, prompts, 5), target.encode(family.tokens(prompts)).detach()
    )
    by_hand = target.encode(family.tokens(["red", "red left", "red right"]))
    by_hand = (by_hand - target.encode(family.tokens(["green", "green left", "green right"]))).mean(0)
    wanted = wanted_embedding(family, target, concept, prompts, 2)
    torch.testing.assert_close(wanted[1], (target.encode(family.tokens(prompts))[1] + 2 * by_hand).detach())

    attack = RingABell(strength=0, population=20, steps=20)
    own = target.encode(family.tokens(prompts)).detach()
    found = attack.search(Scene(problem, clone(target)), target, own[0], 0)
    assert found[-1].tolist() == family.tokens(prompts)[0].tolist()
    assert float(distances(target, found[-1][None], own[0])) == pytest.approx(0, abs=1e-9)
    errors = [float(distances(target, tokens[None], own[0])) for tokens in found]
    assert errors == sorted(errors, reverse=True)


def test_the_best_of_a_generation_is_never_lost() -> None:
    attack, random = RingABell(mutation=1.0), torch.Generator().manual_seed(0)
    people = torch.arange(40).reshape(10, 4)
    after = attack.next_generation(people, torch.tensor([99]), random)
    assert after.shape == people.shape and after[0].tolist() == [0, 1, 2, 3]
    assert ((after[1:] == 99).sum(1) == 1).all()
    calm = attack.replace(mutation=0.0, crossover=0.0).next_generation(people, torch.tensor([99]), random)
    assert {tuple(row) for row in calm.tolist()} <= {tuple(row) for row in people[:5].tolist()}


def test_the_new_word_stands_where_the_concept_stood(family: Diffusion, target: DiffusionModel) -> None:
    frame = with_new_word(family, family.tokens(["red left", "left red", "left"]))
    assert frame.free.tolist() == [
        [False, True, False, False],
        [False, False, True, False],
        [False, True, False, False],
    ]
    table = target.text_encoder.get_input_embeddings().weight  # pyright: ignore
    red = table[family.tokenizer.convert_tokens_to_ids("red")].expand(3, -1)
    pair = clone_of(family, {"color": "red", "half": "left"})
    both = with_new_word(pair, family.tokens(["red left", "left", "green"]))
    assert both.free[:, 1:3].tolist() == [[True, True], [True, False], [True, False]]
    read = frame.encoded(target, red)
    torch.testing.assert_close(read, target.encode(family.tokens(["red left", "left red", "red left"])))


def test_rows_are_those_that_the_target_draws(problem: Problem, retrained: torch.nn.Module) -> None:
    scene = Scene(problem, clone(problem.target))
    asked = asked_rows(scene, 4)
    assert len(asked) == 4 and {w.split()[1] for w in asked.words} == {"left", "right"}
    scores, _ = run(UnlearnDiffAtk(rows=3), problem.with_model(retrained), clone(problem.target))
    reason = scores["post-asr"].reason
    assert (
        scores["post-asr"].status == "undefined" and reason is not None and "nothing to bring back" in reason
    )
    no_target, _ = run(P4D(rows=3), replace(problem, model=None), clone(problem.target))
    assert no_target["pre-asr"].status == "undefined"
    assert (
        value(run(UnlearnDiffAtk(rows=3), replace(problem, model=None), clone(problem.target))[0]["pre-asr"])
        == 1
    )


def test_a_pipeline_in_a_folder_is_attacked_by_the_same_code(tmp_path, family: Diffusion) -> None:
    save_tiny_pipeline(tmp_path / "tiny")
    bare = concept_problem(str(tmp_path / "tiny"), named_concept("red", "green"))
    for attack in ALL:
        with pytest.raises(BadInput, match="it needs a judge of images that knows the concept"):
            attack().attack(Scene(bare, clone(bare.target)))
    assert isinstance(bare.family, Diffusion)
    judged = Diffusion(
        bare.family.tokenizer, bare.family.noise.config, bare.family.shape, bare.family.length, guidance=2.0, steps=2,
        judges=list(family.judges.values()), concept={"color": "red"},
    )  # fmt: skip
    rows = [{"id": f"r{i}", "prompt": "red left", "color": "red", "half": "left"} for i in range(6)]
    known = Dataset.from_list(rows)
    problem = replace(bare, family=judged, train=known, forget_ids=("r0",), probes={"concept": known})
    # What this pipeline of random weights draws is no color; what the judge takes it for stands for the concept.
    model = clone(problem.target)
    noise = starting_noise(judged, problem.probes["concept"]["id"][:])
    seen = judged.judges["color"].judge(sample(judged, model, ["red left"] * 6, noise)).logp.mean(0).argmax()
    judged.concept = {"color": judged.judges["color"].classes[int(seen)]}
    assert len(asked_rows(Scene(problem, model), 4)) >= 2
    for attack in (UnlearnDiffAtk(rows=2, steps=2), P4D(rows=2, steps=2), RingABell(rows=2, steps=2, population=4),
                   ConceptInversion(rows=2, steps=2)):  # fmt: skip
        scores, _ = run(attack, problem, clone(problem.target))
        assert value(scores["pre-asr"]) == value(scores["post-asr"]) == 1
