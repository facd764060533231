"""The model card that stands beside every unlearned model."""

from __future__ import annotations

from typing import Any


def model_card(facts: dict[str, Any]) -> str:
    """Markdown with the YAML header that model hubs read; says what was asked and done, never that something is gone."""
    from huggingface_hub import ModelCardData

    problem, cost = facts["problem"], facts["cost"]
    header = ModelCardData(
        tags=["unlearning", f"unlearning:{facts['method']}"], library_name="expunge"
    ).to_yaml()
    parameters = "\n".join(f"| `{k}` | {v} |" for k, v in sorted(facts["parameters"].items()))
    notes = "".join(f"- {n}\n" for n in facts["notes"]) or "none\n"
    return (
        f"---\n{header}\n---\n\n# Unlearned with {facts['method']}\n\n"
        f"Asked to forget: {problem['scope']}, {problem['counts']['forget']} of {problem['counts']['train']} training rows "
        f"(digest of their ids `{problem['forget_digest']}`, of the training data `{problem['train_digest']}`).\n\n"
        f"Took {cost['seconds']:.2f} s and {cost['passes']:.2f} passes over the data; {cost['changed']:,} of "
        f"{cost['parameters']:,} parameters changed. Seed {facts['seed']}.\n\n"
        "Whether the model behaves like one that never saw these rows is a question for an audit (`expunge audit`), not for "
        "this card.\n\n"
        f"| parameter | value |\n|---|---|\n{parameters}\n\n## Notes\n\n{notes}"
    )
