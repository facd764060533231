"""Parameters declared once: validation, error text, documentation, JSON Schema and invalid-value tests derive from them."""

from __future__ import annotations

from typing import Any, ClassVar, Self

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic.fields import FieldInfo

from expunge.errors import BadInput, did_you_mean


def param(default: Any, doc: str, *, source: str, **limits: Any) -> Any:
    """Declare one parameter.

    Args:
        default: value used when none is given.
        doc: what it means, with its unit.
        source: where the default comes from (paper, reference code, ours and why).
        limits: pydantic constraints (`gt`, `ge`, `lt`, `le`, ...).
    """
    return Field(default=default, description=doc, json_schema_extra={"source": source}, **limits)


class Parameters(BaseModel):
    """Base of everything that is configured: frozen, unknown keys refused, errors in one sentence."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, validate_default=False)

    title: ClassVar[str] = ""
    """Subject of error messages; the class name when empty."""

    def __init__(self, **values: Any) -> None:
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise BadInput(explain(error, self.title or type(self).__name__, type(self))) from None

    def replace(self, **values: Any) -> Self:
        """Return a validated copy with some values changed."""
        return type(self)(**{**{k: getattr(self, k) for k in type(self).model_fields}, **values})

    @classmethod
    def describe(cls) -> list[dict[str, Any]]:
        """One row per parameter: name, type, default, limits, doc, source."""
        return [_describe(name, field) for name, field in cls.model_fields.items()]


def _describe(name: str, field: FieldInfo) -> dict[str, Any]:
    extra = field.json_schema_extra if isinstance(field.json_schema_extra, dict) else {}
    limits = {
        key: getattr(item, key)
        for item in field.metadata
        for key in ("gt", "ge", "lt", "le", "min_length", "max_length")
        if getattr(item, key, None) is not None
    }
    kind = getattr(field.annotation, "__name__", str(field.annotation))
    if kind in ("Literal", "Union", "Optional") or "[" in str(field.annotation):
        kind = str(field.annotation).replace("typing.", "").replace("collections.abc.", "")
    return {
        "name": name,
        "type": kind,
        "default": None
        if field.is_required()
        else field.get_default(call_default_factory=True, validated_data={}),
        "required": field.is_required(),
        "limits": limits,
        "doc": field.description or "",
        "source": extra.get("source", ""),
    }


def explain(error: ValidationError, subject: str, model: type[BaseModel] | None = None) -> str:
    """Turn a pydantic error into one sentence per fault, joined by semicolons."""
    faults = []
    for item in error.errors(include_url=False):
        where = ".".join(str(part) for part in item["loc"]) or "value"
        given = item.get("input")
        if item["type"] == "extra_forbidden":
            known = list(model.model_fields) if model is not None and len(item["loc"]) == 1 else []
            faults.append(f"unknown key '{where}'{did_you_mean(str(item['loc'][-1]), known)}")
        elif item["type"] == "missing":
            faults.append(f"'{where}' is missing")
        else:
            reason = (
                item["msg"]
                .removeprefix("Input ")
                .removeprefix("Value error, ")
                .removeprefix("Assertion failed, ")
            )
            shown = repr(given) if len(repr(given)) < 80 else type(given).__name__
            faults.append(f"'{where}' {reason}, got {shown}")
    return f"{subject}: " + "; ".join(faults)
