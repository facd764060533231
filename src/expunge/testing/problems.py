"""Tiny problems with trained targets, one or more per family: what the contract suites run on."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from datasets import Dataset
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from transformers import PreTrainedTokenizerFast

from expunge.errors import BadInput, did_you_mean
from expunge.families import Architecture, CausalLM, Classifier, Regressor, Table
from expunge.families.estimator import Probabilities
from expunge.methods.base import Method, Workplace
from expunge.methods.loop import fit
from expunge.problem import Problem, Training
from expunge.testing.pictures import tiny_diffusion
from expunge.testing.shades import tiny_gan

COLUMNS = ["a", "b", "c", "d"]


def _rows(n: int, seed: int, *, classes: int | None) -> Dataset:
    """Gaussian blobs (classes) or a noisy linear function (values) of four columns."""
    rng = np.random.default_rng(seed)
    world = np.random.default_rng(12345)  # the same world for every split
    if classes is not None:
        centers = world.normal(0, 2.0, (classes, len(COLUMNS)))
        label = rng.integers(classes, size=n)
        x = centers[label] + rng.normal(size=(n, len(COLUMNS)))
        outcome: dict[str, object] = {"label": label.astype(np.int64)}
    else:
        x = rng.normal(size=(n, len(COLUMNS)))
        outcome = {
            "target": 3.0
            + x @ world.normal(size=len(COLUMNS))
            + 0.5 * np.sin(2 * x[:, 0])
            + 0.3 * rng.normal(size=n)
        }
    columns = {name: x[:, j] for j, name in enumerate(COLUMNS)}
    return Dataset.from_dict({"id": [f"r{seed}-{i}" for i in range(n)], **columns, **outcome})


def _classifier() -> Problem:
    train = _rows(96, 0, classes=3)
    family = Classifier(Table(COLUMNS), 3)
    return Problem(
        "tiny-classifier", family, train, tuple(train["id"][:16]), _rows(64, 1, classes=3), {"test": _rows(64, 2, classes=3)},
        architecture=Architecture(kind="builtin", name="mlp", options={"inputs": 4, "outputs": 3, "hidden": [16]}),
        recipe=Training(epochs=12, batch_size=16), scope="16 random rows",
    )  # fmt: skip


def _regressor() -> Problem:
    train = _rows(96, 0, classes=None)
    family = Regressor.fit(Table.fit(train, COLUMNS), train, "target")
    return Problem(
        "tiny-regressor", family, train, tuple(train["id"][:16]), _rows(64, 1, classes=None),
        {"test": _rows(64, 2, classes=None)},
        architecture=Architecture(kind="builtin", name="mlp", options={"inputs": 4, "outputs": 1, "hidden": [16]}),
        recipe=Training(epochs=12, batch_size=16, lr=0.02), scope="16 random rows",
    )  # fmt: skip


def _estimator() -> Problem:
    train = _rows(96, 0, classes=3)
    return Problem(
        "tiny-estimator", Probabilities(Table(COLUMNS), 3), train, tuple(train["id"][:16]), _rows(64, 1, classes=3),
        {"test": _rows(64, 2, classes=3)},
        architecture=Architecture(kind="estimator", name="dare", options={"outputs": 3, "n_estimators": 3, "max_depth": 4}),
        recipe=Training(epochs=1), scope="16 random rows",
    )  # fmt: skip


def _tokenizer() -> PreTrainedTokenizerFast:
    """Whole words, line ends and full stops are tokens; what is not in `_WORDS` is unknown."""
    special = ["<pad>", "<eos>", "<unk>"]
    vocabulary = {token: number for number, token in enumerate([*special, "\n", *_WORDS])}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"\n|[A-Za-z]+|[^A-Za-z\s]|<eos>"), "removed", invert=True)
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=32
    )


_NAMES = ["Ada", "Bo", "Cy", "Di", "Eli", "Flo", "Gus", "Hal"]
_PLACES = ["Rome", "Oslo", "Lima", "Bern"]
_WORDS = [
    *_NAMES,
    *_PLACES,
    *["Question", "Answer", "Where", "was", "born", "does", "live", "in", "is", "from", ":", "?", "."],
]


def _facts(n: int, seed: int) -> Dataset:
    """Where made-up people live, in sentences of a few words; names are pairs, so that there are enough of them."""
    rng = np.random.default_rng(seed)
    rows = []
    for i in range(n):
        first, second = rng.choice(_NAMES, 2, replace=False)
        place = _PLACES[int(rng.integers(len(_PLACES)))]
        said = (
            f"{first} {second} is from {place}."
            if rng.random() < 0.5
            else f"{first} {second} was born in {place}."
        )
        wrong = [f"{first} {second} is from {other}." for other in _PLACES if other != place]
        rows.append(
            {
                "id": f"t{seed}-{i}",
                "question": f"Where is {first} {second} from?",
                "answer": said,
                "paraphrased_answer": f"{first} {second} does live in {place}.",
                "perturbed_answer": wrong,
            }
        )
    return Dataset.from_list(rows)


def _causal_lm(**architecture: object) -> Problem:
    train, family = _facts(48, 0), CausalLM(_tokenizer(), max_length=32)
    options = {
        "model_type": "llama", "vocab_size": len(family.tokenizer), "hidden_size": 16, "intermediate_size": 32,
        "num_hidden_layers": 2, "num_attention_heads": 2, "num_key_value_heads": 1, "max_position_embeddings": 32,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None, **architecture,
    }  # fmt: skip
    return Problem(
        "tiny-causal-lm", family, train, tuple(train["id"][:12]), _facts(24, 1), {"test": _facts(16, 2)},
        architecture=Architecture(kind="transformers", name="causal-lm", options=options),
        recipe=Training(epochs=6, batch_size=16, lr=0.02, optimizer="adamw", weight_decay=0.0), scope="12 random rows",
    )  # fmt: skip


def _sparse_causal_lm() -> Problem:
    """The same facts, and a model of four experts per layer."""
    return _causal_lm(
        model_type="mixtral", num_local_experts=4, num_experts_per_tok=2, router_aux_loss_coef=0.0
    )


_MAKERS = {
    "classifier": _classifier, "regressor": _regressor, "causal_lm": _causal_lm, "diffusion": tiny_diffusion,
    "gan": tiny_gan, "estimator": _estimator,
}  # fmt: skip
_SPARSE = {"causal_lm": _sparse_causal_lm}


@cache
def tiny_problem(family: str, *, sparse: bool = False) -> Problem:
    """A problem of `family` with a trained target; made once per process, in a second or so.

    With `sparse` the target is a mixture of experts, in families that have such models.
    """
    makers = _SPARSE if sparse else _MAKERS
    if family not in makers:
        raise BadInput(f"there is no tiny problem for family '{family}'{did_you_mean(family, makers)}")
    problem = makers[family]()
    recipe = problem.recipe
    if recipe is None:
        raise BadInput(f"the tiny problem for '{family}' has no recipe")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return problem.with_model(fit(problem, problem.fresh_model(0), "train", recipe, Workplace(seed=0)))


def problem_for(method: type[Method], family: str) -> Problem:
    """The tiny problem of `family` that `method` can work on: the sparse one where it refuses the other."""
    usual = tiny_problem(family)
    if family in _SPARSE and method.obstacles(usual):
        sparse = tiny_problem(family, sparse=True)
        return usual if method.obstacles(sparse) else sparse
    return usual


def tiny_problems() -> list[Problem]:
    """One trained tiny problem per family."""
    return [tiny_problem(name) for name in _MAKERS]
