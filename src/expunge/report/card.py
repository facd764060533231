"""The model card that stands beside every unlearned model."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from expunge.record import Claim


def model_card(facts: dict[str, Any]) -> str:
    """Markdown with the YAML header that model hubs read; says what was asked and done, never that something is gone."""
    return _card(facts, {"library_name": "expunge"}, "")


def claim_sections(claims: Sequence[Claim]) -> str:
    """Markdown for a model card: per audited model the claim as it may be quoted, and what it rests on."""
    parts = []
    for one in claims:
        lowered = "" if one.claimed == one.standing else f" (claimed: {one.claimed})"
        lines = [f"## Unlearning claim of {one.label}: {one.standing}{lowered}", one.sentence]
        for title, found in (
            ("Against it", one.breaks), ("For it", one.supports), ("Not shown", one.missing), ("On proxies", one.proxies),
        ):  # fmt: skip
            if found:
                lines.append(f"**{title}**\n\n" + "\n".join(f"- {line}" for line in found))
        parts.append("\n\n".join(lines))
    return "\n\n".join(parts) + "\n"


def adapter_card(facts: dict[str, Any], base: str | None, base_id: str) -> str:
    """The same for low-rank adapters by themselves.

    Args:
        facts: as for the whole model.
        base: hub id or folder of the model that they belong to; None where it is nowhere.
        base_id: fingerprint of that model.
    """
    header: dict[str, Any] = {"library_name": "peft"}
    if base is not None and not Path(base).exists():
        header["base_model"] = base  # a folder on somebody's disk means nothing to a hub
    about = (
        f"Low-rank adapters for the model {'that was to forget' if base is None else f'`{base}`'} (fingerprint of its weights "
        f"`{base_id}`), which without them is as it was: whoever holds it holds what was to be forgotten.\n\n"
    )
    return _card(facts, header, about)


def _card(facts: dict[str, Any], header: dict[str, Any], about: str) -> str:
    from huggingface_hub import ModelCardData

    problem, cost = facts["problem"], facts["cost"]
    tags = ["unlearning", f"unlearning:{facts['method']}", *(["lora"] if about else [])]
    metadata = ModelCardData(tags=tags, **header).to_yaml()
    parameters = "\n".join(f"| `{k}` | {_shown(v)} |" for k, v in sorted(facts["parameters"].items()))
    notes = "".join(f"- {n}\n" for n in facts["notes"]) or "none\n"
    return (
        f"---\n{metadata}\n---\n\n# Unlearned with {facts['method']}\n\n{about}"
        f"Asked to forget: {problem['scope']}, {problem['counts']['forget']} of {problem['counts']['train']} training rows "
        f"(digest of their ids `{problem['forget_digest']}`, of the training data `{problem['train_digest']}`).\n\n"
        f"Took {cost['seconds']:.2f} s and {cost['passes']:.2f} passes over the data"
        f"{_changed(cost)}. Seed {facts['seed']}.\n\n"
        "Whether the model behaves like one that never saw these rows is a question for an audit (`expunge audit`), not for "
        "this card.\n\n"
        f"| parameter | value |\n|---|---|\n{parameters}\n\n## Notes\n\n{notes}"
    )


def _shown(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k}: {v}" for k, v in value.items())
    return str(value)


def _changed(cost: dict[str, Any]) -> str:
    if not cost["parameters"]:
        return ""
    return f"; {cost['changed']:,} of {cost['parameters']:,} parameters changed"
