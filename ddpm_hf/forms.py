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


def misfit(value, form: Form, name: str = "the file") -> str:
    """How a value differs from a form, in words; nothing if it does not."""
    if not isinstance(value, dict):
        return f"{name} holds {shown(value)}; expected keys and values"
    for key, kind in form.items():
        if key not in value:
            return f"{name} has no `{key}`; expected {in_words(kind)}"
        if not is_of(value[key], kind):
            return f"`{key}` is {shown(value[key])}; expected {in_words(kind)}"
    return ""


def is_of(value, kind) -> bool:
    """Whether a value of JSON is of a type, or of one of a union."""
    if isinstance(kind, types.UnionType):
        return any(is_of(value, each) for each in get_args(kind))
    if isinstance(value, bool):
        return kind is bool
    if kind is float:
        return isinstance(value, int) or (isinstance(value, float) and math.isfinite(value))
    return isinstance(value, kind)


def in_words(kind) -> str:
    """A type, or a union of some, as a reader of JSON would call it."""
    kinds = get_args(kind) if isinstance(kind, types.UnionType) else (kind,)
    return " or ".join(_WORDS[each] for each in kinds)


def shown(value) -> str:
    """A value of JSON as an error shows it, cut short if it is long."""
    text = json.dumps(value, default=str)
    return text if len(text) <= 60 else f"{text[:57]}..."
