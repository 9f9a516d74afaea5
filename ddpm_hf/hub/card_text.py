"""Text that others wrote, made harmless for the model card: in Markdown and HTML, and as Python that is pasted and run.

A card is rendered from names and values of JSON files, which anybody may have written.
"""

import json
import re

_MARKUP = "&<>[]`|*~$\\"
LONGEST = 200  # characters of one name or value


def plain(value) -> str:
    """A value as one line of text, cut if it is long."""
    text = "".join(c if c.isprintable() else " " for c in str(value).encode("utf-8", "replace").decode())
    text = " ".join(text.split())
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 3]}..."


def markdown(value) -> str:
    """A value that Markdown and HTML show as it is: no markup, no links, no end of a table's cell or of a block."""
    return "".join(f"&#{ord(c)};" if c in _MARKUP else c for c in plain(value))


def bare(value) -> str:
    """A value where nothing can be escaped, in metadata or in the type of code: without the signs of markup."""
    return re.sub(r"[`<>|\[\]]", "_", plain(value))


def literal(value) -> str:
    """A text, a number or a list of them as Python, in one line that cannot end the block that it stands in."""
    if isinstance(value, list):
        return f"[{', '.join(literal(each) for each in value)}]"
    if not isinstance(value, str):
        return repr(value)
    quoted = json.dumps(value, ensure_ascii=False).replace("<", r"\x3c")
    return "".join(c if c.isprintable() else f"\\U{ord(c):08x}" for c in quoted)
