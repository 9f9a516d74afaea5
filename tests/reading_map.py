"""The tables of README.md that lead from the paper, and from the annotated tutorial, to lines of this code.

    python tests/reading_map.py      writes the numbers of the lines anew

A link is [`name`](file#L12), to where `name` is defined, or [`name` "words"](file#L12), to the first line with these
words in it.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
README = ROOT / "README.md"
LINK = re.compile(r'\[`([\w.]+)`(?: "([^"]+)")?\]\(([\w/]+\.py)#L(\d+)\)')


def line_of(name: str, words: str | None, file: str) -> int:
    """The line that a link leads to; a ValueError if there is none."""
    text = (ROOT / file).read_text()
    node = ast.parse(text)
    for part in name.split("."):
        found = [child for child in node.body if getattr(child, "name", None) == part]
        if not found:
            raise ValueError(f"{file} has no {name}")
        node = found[0]
    if words is None:
        return node.lineno
    for number in range(node.lineno, node.end_lineno + 1):
        if words in text.splitlines()[number - 1]:
            return number
    raise ValueError(f"{name} in {file} has no line with {words!r}")


def links() -> list[tuple[str, str | None, str, int]]:
    """Name, words, file and line of every link in the README."""
    found = LINK.findall(README.read_text())
    return [(name, words or None, file, int(line)) for name, words, file, line in found]


def main():
    def renumber(link: re.Match) -> str:
        name, words, file, _ = link.groups()
        return f"{link[0].rsplit('#', 1)[0]}#L{line_of(name, words, file)})"

    README.write_text(LINK.sub(renumber, README.read_text()))


if __name__ == "__main__":
    main()
