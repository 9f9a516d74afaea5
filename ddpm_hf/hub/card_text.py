"""Make text of others harmless on the model card: in Markdown, in HTML, and in Python that a reader pastes and runs.

The card shows names and values of JSON files, which anybody may have written.
"""

import json
import re

_MARKUP = "&<>[]`|*~$\\"
LONGEST = 200  # characters of one name or value


def plain(value) -> str:
    """Return a value as one line of text, cut if it is long."""
    text = "".join(c if c.isprintable() else " " for c in str(value).encode("utf-8", "replace").decode())
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def markdown(value) -> str:
    """Escape a value so that Markdown and HTML show it as it is, also in the cell of a table."""
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in plain(value))


def bare(value) -> str:
    """Replace the signs of markup in a value. It is for metadata and code, where nothing can be escaped."""
    return re.sub(r"[`<>|\[\]]", "_", plain(value))


def literal(value) -> str:
    """Return a text, a number or a list of them as Python, in one line that cannot end its block of Markdown."""
    if isinstance(value, list):
        return f"[{', '.join(literal(each) for each in value)}]"
    if not isinstance(value, str):
        return repr(value)
    quoted = json.dumps(value, ensure_ascii=False).replace("<", r"\x3c")
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
