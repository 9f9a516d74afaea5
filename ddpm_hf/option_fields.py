"""How an option of a run is declared: what it is for, what it can be, and who else asks for it."""

import dataclasses
import typing
from functools import cache
from typing import Any, Literal

from ddpm_hf.forms import in_words, is_of

# Whether a run may go on with another value. "same": no. "source": yes, if the pictures are the same ones.
# "split": yes, if a step takes as many images. "rounding": yes, the numbers differ by rounding only. "free": yes.
Resume = Literal["same", "source", "split", "rounding", "free"]

# Whether `ddpm-hf evaluate` has the option too, for the images that it compares with. "source": it names these images;
# by default they are those of the run. "reading": it says how they are read; by default as in the run. "flag": yes, but
# the value of the run is not used.
Evaluate = Literal["no", "source", "reading", "flag"]


def option(
    group: str,
    default: Any,
    help: str,
    minimum: float | None = None,
    maximum: float | None = None,
    resume: Resume = "same",
    evaluate: Evaluate = "no",
    card: bool = False,
    alone: Any = None,
) -> Any:
    """Declare an option as a field of a dataclass.

    Args:
        group (`str`): Where `--help` lists it.
        default: Its value, unless the preset, a file or a flag says otherwise.
        help (`str`): What it is for.
        minimum, maximum (`float`, *optional*): The range of a number.
        resume ([`Resume`]): Whether a run may go on with another value.
        evaluate ([`Evaluate`]): Whether `ddpm-hf evaluate` has it.
        card (`bool`): Whether the model card lists it.
        alone (*optional*): What its flag means without a value; by default it needs one.
    """
    about = {"group": group, "help": help, "minimum": minimum, "maximum": maximum}
    about |= {"resume": resume, "evaluate": evaluate, "card": card, "alone": alone}
    if isinstance(default, dict):
        return dataclasses.field(default_factory=lambda: dict(default), metadata=about)
    return dataclasses.field(default=default, metadata=about)


@cache
def kinds_of(options: type) -> dict[str, Any]:
    """Return the type of each option of a dataclass."""
    hints = typing.get_type_hints(options)
    return {field.name: hints[field.name] for field in dataclasses.fields(options)}


def expected_type(kind: Any, value: Any) -> str:
    """Say in words what is expected, if a value of JSON is not of the type of an option; else return nothing."""
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        return "" if value in choices else f"one of {', '.join(choices)}"
    return "" if is_of(value, kind) else in_words(kind)


def expected_range(field: dataclasses.Field, value: Any) -> str:
    """Say in words what is expected, if the value of an option is out of its range; else return nothing."""
    low, high = field.metadata["minimum"], field.metadata["maximum"]
    # A range has a minimum, and may have a maximum. Texts and None are not compared.
    if not isinstance(value, int | float) or low is None or (low <= value and (high is None or value <= high)):
        return ""
    return f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
