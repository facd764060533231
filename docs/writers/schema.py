"""The fields of `scores.json`, from the JSON Schema of `ScoreFile`."""

from __future__ import annotations

import json
from typing import Any

from expunge.record import SCHEMA_VERSION, ScoreFile
from writers.markdown import code, table

ORDER = ("ScoreFile", "Judged", "Score", "Interval", "Reference", "Verdict", "Claim", "ClaimTest")


MEANINGS = {
    "schema_version": "version of this schema",
    "kind": "what the file is",
    "name": "name of the run",
    "judged": "one per model: every problem, method with its parameters, and seed",
    "verdicts": "one per problem, method, metric and split that a verdict is given on",
    "environment": "versions, platform, threads, time of writing",
    "problem": "name of the problem",
    "label": "the method with its parameters, as in `Judged`",
    "seed": "seed of the run",
    "metric": "name of the metric",
    "split": "data set it was measured on",
    "status": "whether there is a value, and if not, why not",
    "reason": "why the status is not ok",
    "notes": "what the method said about its run",
    "scores": "one per metric and split",
    "value": "the number; null where the status is not ok",
    "direction": "which way is better; `match`: as near as possible to the retrained models",
    "reference": "the retrained models' values, where there are any",
    "low": "lower end",
    "high": "upper end",
    "level": "coverage",
    "mean": "mean of `values`",
    "judgement": "see the guide on audits",
    "standing": "what is left of the claim; see the guide on audits",
    "original": "the target's value, mean over seeds",
    "unlearned": "the judged models' value, mean over seeds",
    "unit": "unit of the numbers",
    "tests": "one per test that was run, and one per kind that is needed and was not",
}
"""Meaning of fields whose name says it to a reader of the code."""


def score_file() -> str:
    """One table per kind of object, the file itself first."""
    schema = ScoreFile.model_json_schema()
    definitions = {"ScoreFile": schema, **schema["$defs"]}
    parts = [f"Schema version {SCHEMA_VERSION}."]
    for name in (*ORDER, *sorted(set(definitions) - set(ORDER))):
        one = definitions[name]
        required = one.get("required", [])
        rows = [
            [
                code(key),
                _type(field),
                _default(key, field, required),
                field.get("description") or MEANINGS[key],
            ]
            for key, field in one["properties"].items()
        ]
        parts.append(
            f"### {name}\n\n{one.get('description', '').strip()}\n\n{table(['field', 'type', 'default', 'meaning'], rows)}"
        )
    return "\n\n".join(parts)


def _default(key: str, field: dict[str, Any], required: list[str]) -> str:
    if key in required:
        return "required"
    if "default" in field:
        return code(json.dumps(field["default"]))
    return "empty"


def _type(field: dict[str, Any]) -> str:
    if "$ref" in field:
        name = field["$ref"].rsplit("/", 1)[-1]
        return f"[{name}](#{name.lower()})"
    if "anyOf" in field:
        return " or ".join(_type(one) for one in field["anyOf"])
    if "const" in field:
        return code(f'"{field["const"]}"')
    if "enum" in field:
        return " or ".join(code(f'"{one}"') for one in field["enum"])
    kind = field.get("type", "anything")
    if kind == "array":
        return f"list of {_type(field['items'])}"
    if kind == "object" and isinstance(field.get("additionalProperties"), dict):
        return f"object of {_type(field['additionalProperties'])}"
    return kind
