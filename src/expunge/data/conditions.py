"""A tiny language for choosing rows by their columns: ``age < 30 and city in [Rome, "New York"]``.

    expression = condition { "and" condition }
    condition  = COLUMN ("==" | "!=" | "<" | "<=" | ">" | ">=") VALUE
               | COLUMN "in" "[" VALUE { "," VALUE } "]"

Columns and values are words, or anything within single or double quotes. A value is read as the type of its
column: numbers exactly, dates as ISO 8601, class labels by name or number, text as it stands. Rows where the
column is empty never match. Nothing is evaluated as code.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import ClassLabel, Dataset

from expunge.errors import BadInput, did_you_mean

_TOKEN = re.compile(
    r"""\s*(?:(?P<op>==|!=|<=|>=|<|>|=)|(?P<mark>[\[\],])|"(?P<double>[^"]*)"|'(?P<single>[^']*)'"""
    r"""|(?P<word>[^\s\[\],<>=!'"]+))"""
)
_COMPARE = {
    "==": "equal",
    "!=": "not_equal",
    "<": "less",
    "<=": "less_equal",
    ">": "greater",
    ">=": "greater_equal",
}


@dataclass(frozen=True)
class Condition:
    """One comparison of a column; `in` compares with several values."""

    column: str
    operator: str
    values: tuple[str, ...]


@dataclass(frozen=True)
class _Token:
    kind: str
    """op, mark, word or quoted."""
    text: str


def _shown(token: _Token) -> str:
    return token.text if token.kind == "end" else f"'{token.text}'"


def parse(expression: str) -> list[Condition]:
    """The conditions of `expression`, all of which must hold."""
    tokens = _tokens(expression)
    conditions = [_condition(tokens, expression)]
    while tokens:
        joint = tokens.pop(0)
        if joint.kind != "word" or joint.text.lower() != "and":
            raise BadInput(
                f"condition '{expression}' cannot be read at '{joint.text}': conditions are joined by 'and', "
                "and values that contain spaces are quoted"
            )
        conditions.append(_condition(tokens, expression))
    return conditions


def _tokens(expression: str) -> list[_Token]:
    found, position = [], 0
    end = len(expression.rstrip())
    while position < end:
        match = _TOKEN.match(expression, position)
        if match is None:
            raise BadInput(f"condition '{expression}' cannot be read at '{expression[position:].strip()}'")
        kind = str(match.lastgroup)
        found.append(_Token("quoted" if kind in ("double", "single") else kind, match[kind]))
        position = match.end()
    return found


def _condition(tokens: list[_Token], expression: str) -> Condition:
    shape = "COLUMN OPERATOR VALUE, such as age < 30, or COLUMN in [VALUE, VALUE]"
    column = _operand(tokens, expression, shape)
    operator = tokens.pop(0) if tokens else _Token("end", "nothing")
    if operator.text == "=":
        raise BadInput(f"condition '{expression}' has a single '='; equality is written '=='")
    if operator.kind == "word" and operator.text.lower() == "in":
        return Condition(column, "in", _listed(tokens, expression, shape))
    if operator.kind != "op" or operator.text not in _COMPARE:
        raise BadInput(
            f"condition '{expression}' has {_shown(operator)} where an operator must be; write {shape}"
        )
    return Condition(column, operator.text, (_operand(tokens, expression, shape),))


def _operand(tokens: list[_Token], expression: str, shape: str) -> str:
    if not tokens or tokens[0].kind not in ("word", "quoted"):
        found = f"'{tokens[0].text}'" if tokens else "nothing"
        raise BadInput(
            f"condition '{expression}' has {found} where a column or a value must be; write {shape}"
        )
    return tokens.pop(0).text


def _listed(tokens: list[_Token], expression: str, shape: str) -> tuple[str, ...]:
    def expect(*marks: str) -> str:
        if not tokens or tokens[0].kind != "mark" or tokens[0].text not in marks:
            raise BadInput(f"condition '{expression}': after 'in' comes a list in brackets; write {shape}")
        return tokens.pop(0).text

    expect("[")
    values = [_operand(tokens, expression, shape)]
    while expect(",", "]") == ",":
        values.append(_operand(tokens, expression, shape))
    return tuple(values)


def matching(dataset: Dataset, conditions: list[Condition]) -> np.ndarray:
    """`[n]` bool: the rows for which every condition holds."""
    chosen = np.ones(len(dataset), dtype=bool)
    for condition in conditions:
        if condition.column not in dataset.column_names:
            near = did_you_mean(condition.column, dataset.column_names)
            raise BadInput(f"the data has no column '{condition.column}'{near}")
        chosen &= _holds(dataset, condition)
    return chosen


def _holds(dataset: Dataset, condition: Condition) -> np.ndarray:
    feature = dataset.features[condition.column]
    column = dataset.with_format("arrow").select_columns([condition.column])[:][condition.column]
    if isinstance(feature, ClassLabel):
        if condition.operator not in ("==", "!=", "in"):
            raise BadInput(f"'{condition.column}' holds class labels, which have no order; use ==, != or in")
        values = [pa.scalar(_class_number(v, feature, condition.column)) for v in condition.values]
    else:
        values = [_literal(v, column.type, condition.column) for v in condition.values]
    function = _COMPARE["==" if condition.operator == "in" else condition.operator]
    masks = [pc.call_function(function, [column, value]).fill_null(False) for value in values]
    return np.any([np.asarray(mask.to_numpy(zero_copy_only=False), dtype=bool) for mask in masks], axis=0)


def _class_number(value: str, feature: ClassLabel, column: str) -> int:
    names = list(feature.names)
    if value in names:
        return names.index(value)
    if value.isdigit() and int(value) < len(names):
        return int(value)
    raise BadInput(f"'{column}' has no class '{value}'{did_you_mean(value, names)}")


def _literal(value: str, type_: pa.DataType, column: str) -> pa.Scalar:
    """`value` as the column's type, so that comparisons are exact in that type."""
    if pa.types.is_string(type_) or pa.types.is_large_string(type_):
        return pa.scalar(value, type_)
    if pa.types.is_integer(type_):
        # Wider than the column: 300 is a fair bound for bytes, and 2.5 for whole numbers.
        attempts, kind = [pa.int64(), pa.float64()], "whole numbers"
    elif pa.types.is_floating(type_):
        attempts, kind = [type_], "numbers"
    elif pa.types.is_boolean(type_):
        attempts, kind = [type_], "true or false"
    elif pa.types.is_temporal(type_):
        attempts, kind = [type_], "dates or times such as 2026-01-31"
    else:
        raise BadInput(f"column '{column}' holds {type_} values, which cannot be compared with '{value}'")
    for attempt in attempts:
        try:
            return pa.scalar(value).cast(attempt)
        except pa.ArrowInvalid:
            continue
    raise BadInput(f"column '{column}' holds {kind}; '{value}' is not of that kind")
