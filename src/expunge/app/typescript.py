"""TypeScript types of everything that the app's addresses answer, from its OpenAPI schema.

    python -m expunge.app.typescript app/src/api-types.ts

A test compares the file with what this writes, so that pages and server cannot drift apart.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from expunge.app.server import create_app

HEAD = "// Written by expunge.app.typescript from the OpenAPI schema; do not edit.\n"
SKIPPED = ("HTTPValidationError", "ValidationError")


def types() -> str:
    """The file."""
    schemas = create_app(Path()).openapi()["components"]["schemas"]
    return HEAD + "".join(_declared(name, schemas[name]) for name in sorted(schemas) if name not in SKIPPED)


def _declared(name: str, schema: Mapping[str, Any]) -> str:
    if "properties" not in schema:
        return f"\nexport type {_name(name)} = {_type(schema)};\n"
    lines = []
    for key, value in schema["properties"].items():
        said = value.get("description")
        if said:
            lines.append(f"  /** {said} */")
        optional = (
            "" if "required" in schema else "?"
        )  # none is: a mapping that leaves out what does not apply
        lines.append(f"  {key}{optional}: {_type(value)};")
    return f"\nexport interface {_name(name)} {{\n" + "\n".join(lines) + "\n}\n"


def _name(name: str) -> str:
    return name.replace("-Output", "").replace("-Input", "")


def _type(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        return _name(schema["$ref"].rpartition("/")[2])
    if "enum" in schema:
        return " | ".join(f'"{v}"' if isinstance(v, str) else str(v) for v in schema["enum"])
    if "const" in schema:
        return f'"{schema["const"]}"'
    if "anyOf" in schema:
        return " | ".join(dict.fromkeys(_type(part) for part in schema["anyOf"]))
    match schema.get("type"):
        case "array":
            if "prefixItems" in schema:
                return f"[{', '.join(_type(part) for part in schema['prefixItems'])}]"
            inner = _type(schema.get("items", {}))
            return f"({inner})[]" if " " in inner and not inner.startswith("Record") else f"{inner}[]"
        case "object":
            more = schema.get("additionalProperties")
            return f"Record<string, {_type(more) if isinstance(more, Mapping) else 'unknown'}>"
        case "integer" | "number":
            return "number"
        case "string":
            return "string"
        case "boolean":
            return "boolean"
        case "null":
            return "null"
    return "unknown"


if __name__ == "__main__":
    Path(sys.argv[1]).write_text(types())
