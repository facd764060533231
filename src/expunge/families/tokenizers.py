"""Tokenizers as plain data: what a `transformers` fast tokenizer does, written out in full."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from expunge.errors import BadInput


def load_tokenizer(location: Path | str) -> Any:
    """The fast tokenizer of a local folder or hub id; code that comes with it is never run."""
    from transformers import AutoTokenizer

    return require_fast(AutoTokenizer.from_pretrained(location, trust_remote_code=False))


def require_fast(tokenizer: Any) -> Any:
    """The tokenizer itself, refused where it has no `tokenizer.json` form."""
    if not tokenizer.is_fast:
        raise BadInput(
            f"{type(tokenizer).__name__} has no tokenizer.json; convert it to a fast tokenizer first"
        )
    return tokenizer


def describe_tokenizer(tokenizer: Any) -> dict[str, Any]:
    """Everything that fixes what `tokenizer` does, as plain JSON: a name alone would not."""
    # Padding and truncation are set anew in every call and would make two descriptions of one tokenizer differ.
    backend = {**json.loads(tokenizer.backend_tokenizer.to_str()), "padding": None, "truncation": None}
    special = {k: str(v) for k, v in tokenizer.special_tokens_map.items() if not isinstance(v, list)}
    described = {
        "tokenizer": backend,
        "special": special,
        "padding_side": tokenizer.padding_side,
        "truncation_side": tokenizer.truncation_side,
        # DistilBERT and RoBERTa take no token_type_ids; the tokenizer knows.
        "arguments": list(tokenizer.model_input_names),
    }
    template = getattr(tokenizer, "chat_template", None)
    return {**described, "chat_template": template} if template is not None else described


def restore_tokenizer(description: dict[str, Any], max_length: int) -> Any:
    """The inverse of `describe_tokenizer`."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description["tokenizer"])),
        model_max_length=max_length,
        padding_side=description["padding_side"],
        truncation_side=description["truncation_side"],
        model_input_names=description["arguments"],
        **description["special"],
    )
    if "chat_template" in description:
        tokenizer.chat_template = description["chat_template"]
    return tokenizer
