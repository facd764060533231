"""Causal language models: text, questions and answers, chats."""

from __future__ import annotations

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from expunge.errors import BadInput
from expunge.families.base import Batch, Family, Outputs, Rows, wide
from expunge.families.models import call_language_model
from expunge.families.prompts import Template
from expunge.families.tokenizers import describe_tokenizer, load_tokenizer, require_fast, restore_tokenizer

if TYPE_CHECKING:
    from datasets import Dataset

CHUNK_VALUES = 1 << 22
"""Positions times vocabulary that `observe` holds in float32 at a time: 16 MiB, whatever the batch."""


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
        "token_correct": "1 where the most likely token is the completion's, else 0, [n, T]",
        "token_mean_logp": "mean over the vocabulary of ln p under p itself, i.e. minus the entropy, nats, [n, T]",
        "token_std_logp": "standard deviation over the vocabulary of ln p under p itself, nats, [n, T]",
        "paraphrase_loss": "loss of the row's paraphrased answer, or of the answer itself where there is none, [n]",
        "perturbed_loss": "loss of each of the row's perturbed answers; NaN where there are none, [n, K]",
        "features:LAYER": "activations of LAYER averaged over the completion's positions, [n, d]",
    }
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
    ) -> None:
        self.tokenizer = require_fast(tokenizer)
        self.template = template or Template()
        self.max_length, self.group = max_length, group
        # What a model is given in place of padding is never seen: the attention mask hides it.
        self.pad = next((i for i in (tokenizer.pad_token_id, tokenizer.eos_token_id) if i is not None), 0)
        first = tokenizer("")["input_ids"][:1]
        self.begin = first if first == [tokenizer.bos_token_id] else []

    @classmethod
    def from_pretrained(
        cls, location: str, template: Template | None = None, max_length: int = 512, group: str | None = None
    ) -> CausalLM:
        """With the tokenizer of a local folder or hub id; rows must fit into `max_length` tokens."""
        tokenizer = load_tokenizer(location)
        return cls(tokenizer, template, min(int(tokenizer.model_max_length), max_length), group)

    def describe(self) -> dict[str, Any]:  # noqa: D102
        return {
            "family": self.name,
            "template": self.template.model_dump(mode="json"),
            "max_length": self.max_length,
            "group": self.group,
            **describe_tokenizer(self.tokenizer),
        }

    @classmethod
    def restore(cls, description: dict[str, Any]) -> CausalLM:
        """The inverse of `describe`."""
        length = description["max_length"]
        tokenizer = restore_tokenizer(description, length)
        return cls(tokenizer, Template(**description["template"]), length, description["group"])

    def tokens(self, prompt: str, completion: str) -> tuple[list[int], int]:
        """Token ids of prompt and completion together, and how many of them are the prompt.

        Raises:
            BadInput: the prompt's tokens are not the first tokens of the whole. Then a token spans the border, and
                the model would be asked from a sequence of tokens that it never saw.
        """
        encode = self.tokenizer
        prefix = encode(prompt, add_special_tokens=False)["input_ids"] if prompt else []
        whole = encode(prompt + completion, add_special_tokens=False)["input_ids"]
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

    def view(self, dataset: Dataset, quantities: Sequence[str]) -> Family:
        """Rows with all their answers, where a quantity asks for more than the first."""
        from expunge.families.branches import FURTHER, Branching

        return Branching(self, dataset) if any(q in FURTHER for q in quantities) else self

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
                made[quantity] = (self._last_tokens(batch) == self.tokenizer.eos_token_id).to(torch.int8)
            else:
                raise BadInput(f"'{quantity}' needs the rows' further answers; collect it from the data set")
        return made

    def _tokens(self, prediction: Tensor, batch: Batch, quantities: Sequence[str]) -> dict[str, Tensor]:
        """Token-level quantities, each `[B, T]`, valid where the mask is; logits are widened a chunk at a time."""
        at = batch.mask.nonzero(as_tuple=True)
        names = ["token_logp", "token_correct"]
        if any(q in quantities for q in ("token_mean_logp", "token_std_logp")):
            names += ["token_mean_logp", "token_std_logp"]
        found: dict[str, list[Tensor]] = {name: [] for name in names}
        for logp, target in _chunks(prediction, batch.targets, at):
            found["token_logp"].append(logp.gather(1, target[:, None]).squeeze(1))
            found["token_correct"].append((logp.argmax(-1) == target).float())
            if "token_mean_logp" in found:
                p = logp.exp()
                mean = (p * logp).sum(-1)
                found["token_mean_logp"].append(mean)
                # Centered, because the difference of two large moments would lose its digits.
                found["token_std_logp"].append((p * (logp - mean[:, None]).square()).sum(-1).sqrt())
        return {name: _placed(parts, at, batch.mask.shape) for name, parts in found.items()}

    def _features(self, hidden: Tensor, batch: Batch) -> Tensor:
        # Activations cover the whole sequence; those that predict the completion are its last positions but one.
        span = hidden[:, -batch.targets.shape[1] - 1 : -1].float()
        weights = batch.mask[:, :, None].to(span)
        return (span * weights).sum(1) / weights.sum(1).clamp(min=1)

    def _texts(self, batch: Batch) -> list[str]:
        rows = [targets[mask] for targets, mask in zip(batch.targets.cpu(), batch.mask.cpu(), strict=True)]
        return [
            self.tokenizer.decode(row[row != self.tokenizer.eos_token_id].tolist(), skip_special_tokens=True)
            for row in rows
        ]

    def _last_tokens(self, batch: Batch) -> Tensor:
        positions = torch.arange(batch.mask.shape[1], device=batch.mask.device)
        last = torch.where(batch.mask, positions, -1).amax(-1)
        return batch.targets.gather(1, last.clamp(min=0)[:, None]).squeeze(1)

    def groups(self, dataset: Dataset) -> np.ndarray | None:
        """The `group` column, an author for example, where one is named."""
        if self.group is None or self.group not in dataset.column_names:
            return None
        return np.asarray([str(v) for v in dataset[self.group][:]])

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


def log_likelihoods(prediction: Tensor, targets: Tensor, where: Tensor) -> Tensor:
    """`[B, T]` ln p of the targets where `where` (bool, `[B, T]`), NaN elsewhere; logits are widened a chunk at a time."""
    at = where.nonzero(as_tuple=True)
    parts = [logp.gather(1, target[:, None]).squeeze(1) for logp, target in _chunks(prediction, targets, at)]
    return _placed(parts, at, where.shape)


def _chunks(prediction: Tensor, targets: Tensor, at: tuple[Tensor, ...]) -> Iterator[tuple[Tensor, Tensor]]:
    """Log-probabilities `[m, V]` and targets `[m]` of some positions at a time."""
    size = max(1, CHUNK_VALUES // prediction.shape[-1])
    for rows, columns in zip(*(part.split(size) for part in at), strict=True):
        yield F.log_softmax(wide(prediction[rows, columns]), -1), targets[rows, columns]


def _placed(parts: list[Tensor], at: tuple[Tensor, ...], shape: torch.Size) -> Tensor:
    values = torch.cat(parts)
    placed = values.new_full(shape, math.nan)
    placed[at] = values
    return placed
