"""Causal language models: text, questions and answers, chats."""

from __future__ import annotations

import math
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Family, Outputs, Rows, wide
from expunge.families.generation import LIMIT, SAMPLES, Generation, continuations, request
from expunge.families.likelihoods import chunks, most_likely, nowhere
from expunge.families.models import call_language_model
from expunge.families.prompts import Template
from expunge.families.tokenizers import describe_tokenizer, load_tokenizer, require_fast, restore_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

PASS_POSITIONS, PASS_VALUES = 1 << 11, 1 << 25
"""Most positions of a pass without gradients, and most positions times vocabulary: 128 MiB of logits, whatever the batch."""


class CausalLM(Family):
    """Next-token prediction on the completion of each row; predictions are logits `[B, T, V]`.

    Position t of predictions, targets and mask is about token t + 1 of the sequence; only tokens of the completion
    (its end-of-sequence token included) count. Sequences are padded on the right. Positions before the first
    completion token of a batch are dropped, and the model is asked to compute no logits for them.
    """

    name = "causal_lm"
    likelihood = "exact"
    sequences = True
    quantities = {
        "loss": "mean negative log-likelihood of the completion's tokens, nats per token, [n]",
        "nll": "negative log-likelihood of the completion, nats, [n]",
        "tokens": "tokens of the completion, [n]",
        "zlib_bytes": "length of the zlib-compressed completion in UTF-8, without its end-of-sequence token, bytes, [n]",
        "ends": "1 where the last token of the completion is the end-of-sequence token, else 0, [n]",
        "token_logp": "ln p of each token of the completion, nats, [n, T]",
        "token_correct": "1 where the most likely token is the completion's, else 0; NaN where the logits are not finite, [n, T]",
        "token_mean_logp": "mean over the vocabulary of ln p under p itself, i.e. minus the entropy, nats, [n, T]",
        "token_std_logp": "standard deviation over the vocabulary of ln p under p itself, nats, [n, T]",
        "paraphrase_loss": "loss of the row's paraphrased answer, or of the answer itself where there is none, [n]",
        "perturbed_loss": "loss of each of the row's perturbed answers; NaN where there are none, [n, K]",
        "features:LAYER": "activations of LAYER averaged over the completion's positions, [n, d]",
        "text": "what the model says after the row's prompt, greedily, up to its end-of-sequence token; null where logits are "
        "not finite, [n]",
        "answer_text": "what the row itself says there, as the data has it, [n]",
        "refusal_loss": "loss of each of five embedded refusals as the answer; NaN where the row asks nothing, [n, 5]",
        "sample_text": "k sampled answers to the row's prompt, [n] of k texts",
        "sample_logp": "ln p of each of them, nats, [n, k]",
        "sample_tokens": "tokens of each, that which ends it included, [n, k]",
        "sample_similarity": "cosines of their last hidden states, answer by answer, [n, k * k]",
    }
    repeated = frozenset({"sample_text", "sample_logp", "sample_tokens", "sample_similarity"})
    generated = frozenset({"text", "answer_text", *repeated})
    relabelings = {
        "random": "every token of the completion uniform over the vocabulary",
        "random-other": "the same, but never the true token",
    }

    def __init__(
        self,
        tokenizer: Any,
        template: Template | None = None,
        max_length: int = 512,
        group: str | None = None,
        generation: Generation | None = None,
    ) -> None:
        self.tokenizer = require_fast(tokenizer)
        self.template = template or Template()
        self.max_length, self.group = max_length, group
        self.generation = generation or Generation()
        # What a model is given in place of padding is never seen: the attention mask hides it.
        self.pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        # A number that no token has, where nothing ends a sequence.
        self.end = -1 if tokenizer.eos_token_id is None else tokenizer.eos_token_id
        first = tokenizer("")["input_ids"][:1]
        self.begin = first if first == [tokenizer.bos_token_id] else []

    @classmethod
    def from_pretrained(
        cls,
        location: str,
        template: Template | None = None,
        max_length: int = 512,
        group: str | None = None,
        generation: Generation | None = None,
    ) -> CausalLM:
        """With the tokenizer of a local folder or hub id; rows must fit into `max_length` tokens."""
        tokenizer = load_tokenizer(location)
        length = min(int(tokenizer.model_max_length), max_length)
        return cls(tokenizer, template, length, group, generation)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "family": self.name,
            "template": self.template.model_dump(mode="json"),
            "max_length": self.max_length,
            "group": self.group,
            # What most problems never read must not change what they are addressed by.
            "generation": {
                k: v
                for k, v in self.generation.model_dump(mode="json").items()
                if k != "samples" or v != SAMPLES
            },
            **describe_tokenizer(self.tokenizer),
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> CausalLM:
        """The inverse of `describe`."""
        length = description["max_length"]
        tokenizer = restore_tokenizer(description, length)
        template, generation = Template(**description["template"]), Generation(**description["generation"])
        return cls(tokenizer, template, length, description["group"], generation)

    def tokens(self, prompt: str, completion: str) -> tuple[list[int], int]:
        """Token ids of prompt and completion together, and how many of them are the prompt.

        Raises:
            BadInput: the prompt's tokens are not the first tokens of the whole. Then a token spans the border, and
                the model would be asked from a sequence of tokens that it never saw.
        """
        encode = self.tokenizer
        # Whether the row fits is for `check` to say, which names it.
        settings: dict[str, Any] = {"add_special_tokens": False, "verbose": False}
        prefix = encode(prompt, **settings)["input_ids"] if prompt else []
        whole = encode(prompt + completion, **settings)["input_ids"]
        if whole[: len(prefix)] != prefix:
            raise BadInput(
                f"the prompt {prompt[-20:]!r} is not a token-prefix of prompt and completion; end the template's prompt "
                "so that the completion begins a new token, with a newline for example"
            )
        # A template that writes the beginning-of-sequence token itself must not get a second one.
        begin = [] if whole[: len(self.begin)] == self.begin else self.begin
        return begin + whole, len(begin) + len(prefix)

    def collate(self, rows: Rows) -> Batch:  # noqa: D102
        n, columns = len(rows["id"]), self.template.columns
        encoded = []
        for i in range(n):
            row = {column: rows[column][i] for column in columns}
            encoded.append(self.tokens(*self.template.render(row, self.tokenizer)))
        longest = max(2, max(len(ids) for ids, _ in encoded))
        ids = torch.full((n, longest), self.pad, dtype=torch.long)
        seen, counts = torch.zeros_like(ids), torch.zeros(n, longest, dtype=torch.bool)
        for i, (tokens, n_prompt) in enumerate(encoded):
            ids[i, : len(tokens)] = torch.tensor(tokens)
            seen[i, : len(tokens)] = 1
            counts[i, max(n_prompt, 1) : len(tokens)] = True
        return Batch(
            [str(i) for i in rows["id"]],
            {"input_ids": ids, "attention_mask": seen},
            ids[:, 1:],
            counts[:, 1:],
        )

    def trim(self, batch: Batch) -> Batch:  # noqa: D102
        longest = int(batch.inputs["attention_mask"].sum(-1).max())
        used = batch.mask.any(0).nonzero()
        first = int(used[0]) if len(used) else 0
        # Targets may have been trimmed before; they always end with the sequence.
        offset = batch.inputs["input_ids"].shape[1] - 1 - batch.targets.shape[1]
        last = max(longest - 1 - offset, first + 1)
        return replace(
            batch,
            inputs={k: v[:, :longest] for k, v in batch.inputs.items()},
            targets=batch.targets[:, first:last],
            mask=batch.mask[:, first:last],
        )

    def positions(self, batch: Batch) -> int:  # noqa: D102
        return batch.inputs["input_ids"].shape[1]

    def at_once(self, positions: int) -> int:  # noqa: D102
        return max(1, min(PASS_POSITIONS, PASS_VALUES // len(self.tokenizer)) // positions)

    def answered(self, dataset: Dataset, answers: Sequence[str]) -> Dataset:
        """The rows with other completions.

        Args:
            dataset: n rows with ids.
            answers: the same number K for each row, row after row; row i becomes K rows with the ids ``id#0``,
                ``id#1``, ... Columns that the template does not read are left out: they belong to the row's own answer.
        """
        n, template = len(dataset), self.template
        if not n or not answers or len(answers) % n:
            raise BadInput(
                f"{len(answers)} answers cannot be shared out evenly to {n} rows; give each row the same number"
            )
        if template.kind == "text":
            raise BadInput(
                "rows of plain text hold no question that could get another answer; use a template of kind plain or chat"
            )
        from datasets import Dataset

        each = len(answers) // n
        rows = dataset.select(np.repeat(np.arange(n), each))
        kept = [c for c in (*template.columns, self.group) if c in dataset.column_names]
        made: dict[str, list[Any]] = {column: list(rows[column][:]) for column in kept}
        made["id"] = [f"{row}#{k % each}" for k, row in enumerate(rows["id"][:])]
        if template.messages is None:
            made[template.completion] = list(answers)
        else:
            turns = zip(made[template.messages], answers, strict=True)
            made[template.messages] = [
                [*said[:-1], {**said[-1], "content": answer}] for said, answer in turns
            ]
        return Dataset.from_dict(made)

    def view(self, dataset: Dataset, quantities: Sequence[str]) -> Family:
        """Rows with all their answers, where a quantity asks for more than the first."""
        from expunge.families.branches import FURTHER, Branching, Declining

        if "refusal_loss" in quantities:
            return Declining(self, dataset)
        return Branching(self, dataset) if any(q in FURTHER for q in quantities) else self

    def generate(  # noqa: D102
        self, model: nn.Module, dataset: Dataset, quantities: Sequence[str], batch_size: int
    ) -> dict[str, Any]:
        read = [c for c in (*self.template.columns, LIMIT) if c in dataset.column_names]
        asked = [request(self, row) for row in dataset.with_format(None).select_columns(read)]  # pyright: ignore
        made: dict[str, Any] = {}
        if any(q in self.repeated for q in quantities):
            from expunge.families.repeated import repeated

            drawn = repeated(self, model, asked)
            made |= {q: value for q, value in drawn.items() if q in quantities}
        if "text" in quantities:
            prompts, limits = [r.prompt for r in asked], [r.limit for r in asked]
            ends = {i for i in (self.tokenizer.eos_token_id,) if i is not None}
            said = continuations(model, prompts, limits, pad=self.pad, ends=ends, batch_size=batch_size)
            texts = self.tokenizer.batch_decode([tokens or [] for tokens in said], skip_special_tokens=True)
            made["text"] = [None if s is None else t.strip() for s, t in zip(said, texts, strict=True)]
        if "answer_text" in quantities:
            made["answer_text"] = [r.answer for r in asked]
        return made

    def predict(self, model: nn.Module, batch: Batch) -> Tensor:  # noqa: D102
        # The logits of the last token predict what follows the sequence: computed with the others and dropped.
        return call_language_model(model, batch.inputs, batch.targets.shape[1] + 1)[:, :-1]

    def nll(self, outputs: Outputs, batch: Batch) -> Tensor:  # noqa: D102
        logits = wide(outputs.prediction)
        losses = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), reduction="none")
        # Selecting instead of multiplying: an infinite loss at a position that does not count must not become NaN.
        return torch.where(batch.mask, losses.view(batch.targets.shape), 0.0).sum(-1)

    def divergence(self, p: Outputs, q: Outputs, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Categorical KL divergence of the softmax of logits divided by the temperature, summed over positions."""
        log_p = F.log_softmax(wide(p.prediction) / temperature, -1)
        log_q = F.log_softmax(wide(q.prediction) / temperature, -1)
        return torch.where(batch.mask, (log_p.exp() * (log_p - log_q)).sum(-1), 0.0).sum(-1)

    def relabel(self, batch: Batch, how: str, generator: torch.Generator) -> Batch:  # noqa: D102
        n = len(self.tokenizer)
        shape = batch.targets.shape
        if how == "random":
            drawn = torch.randint(n, shape, generator=generator)
        elif how == "random-other":
            drawn = (batch.targets.cpu() + torch.randint(1, n, shape, generator=generator)) % n
        else:
            raise BadInput(f"causal_lm cannot relabel by '{how}'; known: {', '.join(self.relabelings)}")
        return replace(batch, targets=torch.where(batch.mask, drawn.to(batch.targets), batch.targets))

    def observe(self, outputs: Outputs, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:  # noqa: D102
        known = {q for q in self.quantities if ":" not in q}
        for quantity in quantities:
            if quantity not in known and not quantity.startswith("features:"):
                raise BadInput(f"causal_lm has no quantity '{quantity}'; known: {', '.join(self.quantities)}")
        tokens = self._tokens(outputs.prediction, batch, quantities)
        made: dict[str, Tensor] = {}
        for quantity in quantities:
            if quantity.startswith("features:"):
                made[quantity] = self._features(outputs.hidden[quantity.removeprefix("features:")], batch)
            elif quantity in tokens:
                made[quantity] = tokens[quantity]
            elif quantity in ("loss", "nll"):
                total = -torch.where(batch.mask, tokens["token_logp"].double(), 0.0).sum(-1)
                made[quantity] = total / self.terms(batch).clamp(min=1) if quantity == "loss" else total
            elif quantity == "tokens":
                made[quantity] = self.terms(batch)
            elif quantity == "zlib_bytes":
                made[quantity] = torch.tensor([len(zlib.compress(t.encode())) for t in self._texts(batch)])
            elif quantity == "ends":
                last = batch.targets.gather(1, self._last(batch)[:, None]).squeeze(1)
                made[quantity] = (last == self.end).to(torch.int8)
            else:
                raise BadInput(
                    f"'{quantity}' needs more of the rows than a batch has; collect it from the data set"
                )
        return made

    def _tokens(self, prediction: Tensor, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:
        """Token-level quantities, each `[B, T]`, valid where the mask is; logits are widened a chunk at a time."""
        names = ["token_logp", "token_correct"]
        if any(q in quantities for q in ("token_mean_logp", "token_std_logp")):
            names += ["token_mean_logp", "token_std_logp"]
        found = {name: nowhere(prediction, batch.mask) for name in names}
        for place, logp, target in chunks(prediction, batch.targets, batch.mask):
            found["token_logp"][place] = logp.gather(1, target[:, None]).squeeze(1)
            right = (most_likely(logp) == target).float()
            found["token_correct"][place] = right.masked_fill_(found["token_logp"][place].isnan(), math.nan)
            if "token_mean_logp" in found:
                p = logp.exp()
                mean = (p * logp).sum(-1)
                found["token_mean_logp"][place] = mean
                # Centered, because the difference of two large moments would lose its digits.
                found["token_std_logp"][place] = (p * (logp - mean[:, None]).square()).sum(-1).sqrt()
        return {name: value.masked_fill_(~batch.mask, math.nan) for name, value in found.items()}

    def _features(self, hidden: Tensor, batch: Batch) -> Tensor:
        # Activations cover the whole sequence; those that predict the completion are its last positions but one.
        span = hidden[:, -batch.targets.shape[1] - 1 : -1].float()
        weights = batch.mask[:, :, None].to(span)
        return (span * weights).sum(1) / weights.sum(1).clamp(min=1)

    def _texts(self, batch: Batch) -> list[str]:
        rows = [targets[mask] for targets, mask in zip(batch.targets.cpu(), batch.mask.cpu(), strict=True)]
        return [
            self.tokenizer.decode(row[row != self.end].tolist(), skip_special_tokens=True) for row in rows
        ]

    def without_ends(self, batch: Batch) -> Batch:
        """The batch in which the end-of-sequence tokens that end completions do not count."""
        rows = torch.arange(len(batch), device=batch.mask.device)
        last = self._last(batch)
        mask = batch.mask.clone()
        mask[rows, last] &= batch.targets[rows, last] != self.tokenizer.eos_token_id
        return replace(batch, mask=mask)

    def _last(self, batch: Batch) -> Tensor:
        """`[B]` the last position of each completion."""
        positions = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        return torch.where(batch.mask, positions, 0).amax(-1)

    def groups(self, dataset: Dataset) -> np.ndarray | None:
        """The `group` column, an author for example, where one is named."""
        if self.group is None or self.group not in dataset.column_names:
            return None
        return np.asarray([str(v) for v in dataset[self.group][:]])

    def compared_layers(self, model: nn.Module) -> list[str]:
        """All layers but the head, whose activations are as wide as the vocabulary."""
        head = self.head(model)
        return [name for name in self.layers(model) if name != head]

    def head(self, model: nn.Module) -> str:  # noqa: D102
        embeddings = getattr(model, "get_output_embeddings", lambda: None)()
        name = next((n for n, m in model.named_modules() if m is embeddings), None)
        return super().head(model) if name is None else name

    def check(self, dataset: Dataset, name: str) -> None:  # noqa: D102
        columns = self.template.columns
        missing = [c for c in columns if c not in dataset.column_names]
        if missing:
            raise BadInput(
                f"{name} has no column '{missing[0]}', which the template reads; it has {', '.join(dataset.column_names)}"
            )
        for number in range(len(dataset)):
            row: dict[str, Any] = dataset[number]
            said = row[columns[-1]]
            where = f"{name}: id '{row['id']}'"
            if said is None or not (said if isinstance(said, list) else str(said).strip()):
                raise BadInput(f"{where} has an empty '{columns[-1]}'; drop the row or give it a text")
            try:
                ids, n_prompt = self.tokens(*self.template.render(row, self.tokenizer))
            except BadInput as error:
                raise BadInput(f"{where}: {error}") from None
            if len(ids) > self.max_length:
                raise BadInput(
                    f"{where} has {len(ids)} tokens, more than the context of {self.max_length}; shorten it, split it, or "
                    "raise max_length"
                )
            if len(ids) - max(n_prompt, 1) < 1:
                raise BadInput(f"{where} has no token to predict; give it a longer '{columns[-1]}'")
