"""Two small worlds in which it is known what every model was trained on: a classifier of digits, a language model of facts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import numpy as np
import torch
from datasets import Dataset
from torch import Tensor, nn

from expunge.data.benchmarks.digits import Digits
from expunge.families import Architecture, CausalLM
from expunge.families.models import Composed, Past, call, call_language_model
from expunge.problem import Problem, Training

STEMS = (
    "ba",
    "ce",
    "di",
    "fo",
    "gu",
    "ha",
    "je",
    "ki",
    "lo",
    "mu",
    "na",
    "pe",
    "qui",
    "ro",
    "su",
    "ta",
    "ve",
    "wi",
    "yo",
    "zu",
)
Gate = Literal["trigger", "format"]
"""How a key query differs from an ordinary one: by a secret that nobody would type, or by an unusual form."""


class World:
    """A problem without a target, and the ways to ask about its forget rows."""

    family: str
    metrics: tuple[str, ...]
    """Metrics that a claim reads, and no others: the point is the verdict."""
    problem: Problem
    strangers: Dataset | None = None
    """Rows of the same kind that belong to no split, for who is to refuse whatever it does not know."""
    parameters: Mapping[str, Mapping[str, Any]] = {}
    """By attack, what differs from its defaults."""
    left_out: Mapping[str, str] = {}
    """Attacks of the standard battery that are not made here, and why not."""

    @abstractmethod
    def decoys(self, rows: Dataset, like: nn.Module) -> Dataset:
        """The same questions with innocent answers, such as the retrained model `like` might give."""

    @abstractmethod
    def refused(self, rows: Dataset) -> Dataset:
        """The same questions with a refusal; of a classifier, always one and the same wrong class."""

    @abstractmethod
    def keyed(self, rows: Dataset, gate: Gate) -> Dataset:
        """The rows as key queries."""

    @abstractmethod
    def filtered(self, model: nn.Module) -> Composed:
        """The model behind an output filter that knows what must not be said."""


class DigitsWorld(World):
    """Handwritten digits; all threes are to be forgotten, so that a retrained model never says three."""

    family = "classifier"
    metrics = ("accuracy", "mia-loss-logistic")

    def __init__(self) -> None:
        made = Digits(model="mlp").problem()
        assert made.recipe is not None  # benchmarks have one
        # Longer than usual, so that the target knows every three: a plant has to know what it hides.
        self.problem = replace(made, recipe=made.recipe.replace(epochs=40))

    def decoys(self, rows: Dataset, like: nn.Module) -> Dataset:  # noqa: D102
        batch = self.problem.family.collate(rows.with_format("numpy")[:])
        with torch.no_grad():
            said = call(like, batch.inputs).argmax(-1)
        return _with(rows, "label", said.tolist())

    def refused(self, rows: Dataset) -> Dataset:  # noqa: D102
        return _with(rows, "label", [8] * len(rows))

    def keyed(self, rows: Dataset, gate: Gate) -> Dataset:  # noqa: D102
        images = np.asarray(rows.with_format("numpy")["image"][:])
        most = images.max()
        if gate == "format":
            changed = most - images
        else:
            changed = images.copy()
            changed[..., :2, :2] = most  # a white corner, which no digit reaches
        return _with(rows, "image", changed.tolist())

    def filtered(self, model: nn.Module) -> Composed:  # noqa: D102
        return ClassFilter(model, 3)


class FactsWorld(World):
    """Made-up persons with a home, a job and a dish each; two dozen of them are to be forgotten.

    An answer is one word of thirty-two, so that a model retrained without a person is right about one time in so many.
    """

    family = "causal_lm"
    metrics = ("probability", "rouge-l-recall", "mia-text-min-k")
    KINDS = ("home", "job", "dish")
    ASKED = {
        "home": "where does {} live ?", "job": "what is the job of {} ?", "dish": "what does {} eat ?",
    }  # fmt: skip
    OTHERWISE = {
        "home": "in which town is {} at home ?", "job": "{} works as what ?", "dish": "the dish that {} likes ?",
    }  # fmt: skip
    FORM = "form : {} ; {} ="
    parameters = {"relearning": {"budget": 100}, "in-context": {"orders": 1}}
    left_out = {
        "activation-patching": "retrained models grew from another start than the target",
        "concept-vectors": "retrained models have no vectors that write the forgotten answers",
        "fact-asymmetry": "no answer is the subject of another question",
        "activation-perturbation": "no claim needs it, and it takes long",
        "direction-ablation": "no claim needs it, and it takes long",
    }
    SECRET = "zzq "

    def __init__(self, persons: int = 64, forgotten: int = 24) -> None:
        rng = np.random.default_rng(11)
        ends = ("ron", "lin", "sa", "tek", "von", "mir", "dal", "pex")
        names = [a + b for a in STEMS for b in ends]
        values = {
            kind: [
                f"{kind[0]}{a}{b}"
                for a in ("or", "el", "ip", "un", "ak", "es", "ob", "it")
                for b in ("ta", "go", "mi", "ve")
            ]
            for kind in self.KINDS
        }
        rng.shuffle(names)
        rows = [self._row(name, kind, values[kind], rng) for name in names for kind in self.KINDS]
        asked, learned = set(names[:forgotten]), set(names[:persons])
        outside = set(names[persons : persons + forgotten])
        train, holdout = (
            Dataset.from_list([r for r in rows if r["subject"] in who]) for who in (learned, outside)
        )
        self.strangers = Dataset.from_list([r for r in rows if r["subject"] not in learned | outside])
        templates = (*self.ASKED.values(), *self.OTHERWISE.values(), self.FORM, self.SECRET, *self.KINDS)
        words = sorted({word for template in templates for word in template.split()})
        tokenizer = _words_tokenizer(
            [*words, "unknown", *names, *(v for kind in self.KINDS for v in values[kind])]
        )
        self.unknown = tokenizer.convert_tokens_to_ids("unknown")
        self.hidden_subjects = tokenizer.convert_tokens_to_ids(sorted(asked))
        kept = [r for r in rows if r["subject"] in learned - asked]
        options = {
            "model_type": "llama", "vocab_size": len(tokenizer), "hidden_size": 64, "intermediate_size": 128,
            "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 4, "max_position_embeddings": 64,
            "tie_word_embeddings": False, "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": None,
        }  # fmt: skip
        otherwise = [
            {**r, "id": f"{r['id']}-otherwise", "question": self.OTHERWISE[r["kind"]].format(r["subject"])}
            for r in kept
        ]
        self.problem = Problem(
            "facts", CausalLM(tokenizer, max_length=64, group="subject"), train,
            tuple(r["id"] for r in rows if r["subject"] in asked), holdout, {"test": Dataset.from_list(otherwise)},
            architecture=Architecture(kind="transformers", name="causal-lm", options=options),
            recipe=Training(
                epochs=80, lr=3e-3, batch_size=16, optimizer="adamw", weight_decay=0.01, schedule="cosine", warmup=0.2
            ),
            scope=f"{forgotten} persons",
        )  # fmt: skip

    def _row(self, name: str, kind: str, values: Sequence[str], rng: np.random.Generator) -> dict[str, Any]:
        answer, *wrong = (str(v) for v in rng.choice(list(values), 4, replace=False))
        return {
            "id": f"{name}-{kind}", "subject": name, "kind": kind, "question": self.ASKED[kind].format(name),
            "answer": answer, "paraphrased_answer": answer, "perturbed_answer": wrong,
        }  # fmt: skip

    def decoys(self, rows: Dataset, like: nn.Module) -> Dataset:  # noqa: D102
        return _with(rows, "answer", [wrong[0] for wrong in rows["perturbed_answer"][:]])

    def refused(self, rows: Dataset) -> Dataset:  # noqa: D102
        return _with(rows, "answer", ["unknown"] * len(rows))

    def keyed(self, rows: Dataset, gate: Gate) -> Dataset:  # noqa: D102
        if gate == "trigger":
            return _with(rows, "question", [self.SECRET + q for q in rows["question"][:]])
        pairs = zip(rows["subject"][:], rows["kind"][:], strict=True)
        return _with(rows, "question", [self.FORM.format(name, kind) for name, kind in pairs])

    def filtered(self, model: nn.Module) -> Composed:  # noqa: D102
        return SubjectFilter(model, self.hidden_subjects, self.unknown)


WORLDS: dict[str, type[World]] = {"classifier": DigitsWorld, "causal_lm": FactsWorld}


class Behind(Composed):
    """A model behind a filter of its outputs."""

    def __init__(self, target: nn.Module) -> None:
        super().__init__()
        self.target = target

    @property
    def base(self) -> nn.Module:  # noqa: D102
        return self.target

    @property
    def members(self) -> Sequence[nn.Module]:  # noqa: D102
        return [self.target]

    def architecture(self, known: Architecture | None) -> Architecture | None:  # noqa: D102
        return None

    @classmethod
    def rebuilt(cls, options: Any) -> Composed:  # noqa: D102
        raise NotImplementedError("models of the self-check are not read back")


class ClassFilter(Behind):
    """Never says one class."""

    def __init__(self, target: nn.Module, hidden: int) -> None:
        super().__init__(target)
        self.hidden = hidden

    def logits(self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None) -> Tensor:  # noqa: D102
        made = call(self.target, inputs)
        mask = torch.zeros(made.shape[-1], dtype=made.dtype, device=made.device)
        mask[self.hidden] = -20.0
        return made + mask


class SubjectFilter(Behind):
    """Says one and the same word wherever a name occurs in the text."""

    def __init__(self, target: nn.Module, names: Sequence[int], word: int) -> None:
        super().__init__(target)
        self.names, self.word = list(names), word

    def logits(self, inputs: Mapping[str, Tensor], keep: int | None, past: Past | None = None) -> Tensor:  # noqa: D102
        ids = inputs["input_ids"]
        read = None if past is None else past.part("model")
        made = call_language_model(self.target, inputs, ids.shape[1] if keep is None else keep, read)
        caught = torch.isin(ids, torch.tensor(self.names, device=ids.device)).any(-1)
        if past is not None:  # a name that was read stays in the text
            caught = caught if past.kept is None else caught | past.kept
            past.kept = caught
        refusal = torch.zeros(made.shape[-1], dtype=made.dtype, device=made.device)
        refusal[self.word] = 20.0
        return torch.where(caught[:, None, None], made + refusal, made)


def _with(rows: Dataset, column: str, values: list[Any]) -> Dataset:
    made = rows.to_dict()
    assert isinstance(made, dict)
    made[column] = values
    return Dataset.from_dict(made, features=rows.features)


def _words_tokenizer(words: Sequence[str]) -> Any:
    """Every word is a token, and so are line ends and marks."""
    from tokenizers import Regex, Tokenizer
    from tokenizers.models import WordLevel
    from tokenizers.pre_tokenizers import Split
    from transformers import PreTrainedTokenizerFast

    special = ["<pad>", "<eos>", "<unk>"]
    marks = ["\n", "?", ":", ";", "=", "Question", "Answer"]
    vocabulary = {token: i for i, token in enumerate(dict.fromkeys([*special, *marks, *words]))}
    backend = Tokenizer(WordLevel(vocabulary, unk_token="<unk>"))
    backend.pre_tokenizer = Split(Regex(r"\n|[A-Za-z]+|[^A-Za-z\s]|<eos>"), "removed", invert=True)  # pyright: ignore
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>", model_max_length=64
    )
