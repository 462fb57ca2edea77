"""pydantic's errors -> sentences for the person who wrote the job file."""

from __future__ import annotations

import re
from typing import Any, Mapping

from pydantic import BaseModel

from hvtrain.config import suggest

_EXPECTED = {
    "int_type": "a whole number",
    "int_from_float": "a whole number",
    "float_type": "a number",
    "finite_number": "a finite number",
    "bool_type": "true or false",
    "string_type": "text",
    "list_type": "a list",
    "dict_type": "keys with values",
    "model_type": "keys with values",
    "model_attributes_type": "keys with values",
}
_BOUNDS = {
    "greater_than": "above", "greater_than_equal": "at least",
    "less_than": "below", "less_than_equal": "at most",
}


def explain(error: Mapping[str, Any], model: type[BaseModel]) -> str:
    """One sentence for one element of ``ValidationError.errors()``: expected, got, what to do."""
    kind, value, path = error["type"], error["input"], error["loc"]
    context = error.get("ctx", {})
    if kind == "extra_forbidden":
        return _join("unknown key", suggest.key(model, path))
    if kind == "missing":
        return _join("required, but missing", suggest.describe(model, path))
    if kind == "literal_error":
        return _choice(context["expected"], value)
    if kind in _BOUNDS:
        return f"must be {_BOUNDS[kind]} {_bound(context)}, got {show(value)}"
    if kind in ("string_too_short", "too_short"):
        return "must not be empty"
    if kind in _EXPECTED:
        return f"expected {_EXPECTED[kind]}, got {show(value)}{_hint(kind, value)}"
    return str(error["msg"])


def show(value: Any) -> str:
    """A value as the user may recognise it, and its type where that is the point."""
    if value is None:
        return "nothing (null)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return f"the text '{_short(value)}'"
    if isinstance(value, dict):
        return f"keys with values ({_short(', '.join(map(str, value)))})"
    if isinstance(value, list):
        return f"a list of {len(value)}"
    return _short(repr(value))


def _short(text: str, limit: int = 60) -> str:
    return text if len(text) <= limit else text[:limit - 3] + "..."


def _join(first: str, second: str) -> str:
    return f"{first}; {second}" if second else first


def _bound(context: Mapping[str, Any]) -> str:
    limit = next(context[name] for name in ("gt", "ge", "lt", "le") if name in context)
    return f"{limit:g}" if isinstance(limit, float) else str(limit)


def _choice(expected: str, value: Any) -> str:
    choices = re.findall(r"'([^']*)'", expected)
    if not choices:
        return f"expected {expected}, got {show(value)}"
    near = suggest.closest(value, choices) if isinstance(value, str) else None
    wanted = choices[0] if len(choices) == 1 else f"one of {', '.join(choices)}"
    return _join(f"expected {wanted}; got {show(value)}", f"did you mean {near}?" if near else "")


def _hint(kind: str, value: Any) -> str:
    if kind == "string_type" and isinstance(value, (bool, int, float)):
        return "; put it in quotes"
    if kind == "list_type":
        return "; write a list as [a, b]"
    if kind in ("int_type", "float_type") and isinstance(value, str):
        try:
            float(value)
        except ValueError:
            return ""
        return "; remove the quotes"
    return ""
