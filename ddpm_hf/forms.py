"""The form of a value from a JSON file: which keys it has, and of which types their values are."""

import json
import math
import types
from typing import Any, get_args

Form = dict[str, Any]

_WORDS = {
    bool: "true or false",
    dict: "keys and values",
    float: "a number",
    int: "a whole number",
    list: "a list",
    str: "a text",
    types.NoneType: "null",
}


def misfit(value: Any, form: Form, name: str = "the file") -> str:
    """Say in words how a value differs from a form. Return an empty text if it does not.

    Args:
        value: A value from a JSON file.
        form (`dict`): Each key that the value must have, and the type of what it holds: `{"loss": float | None}`. A
            `float` may be a whole number. Other keys are allowed.
        name (`str`): What to call the value.
    """
    if not isinstance(value, dict):
        return f"{name} holds {shown(value)}; expected keys and values"
    for key, kind in form.items():
        if key not in value:
            return f"{name} has no `{key}`; expected {in_words(kind)}"
        if not is_of(value[key], kind):
            return f"`{key}` is {shown(value[key])}; expected {in_words(kind)}"
    return ""


def is_of(value: Any, kind: Any) -> bool:
    """Return whether a value of JSON is of a type, or of one type of a union."""
    if isinstance(kind, types.UnionType):
        return any(is_of(value, each) for each in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def in_words(kind: Any) -> str:
    """Name a type or a union of types in words for readers of JSON."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return " or ".join(_WORDS[each] for each in kinds)


def shown(value: Any) -> str:
    """Return a value of JSON as an error shows it, cut short if it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
