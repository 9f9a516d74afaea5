"""The tables in docs/ that lead from the paper, and from the annotated tutorial, to lines of this code.

    python tests/reading_map.py      updates the line numbers

A link is [`name`](../file#L12), to where `name` is defined, or [`name` "words"](../file#L12), to the first line with
these words in it.
"""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAPER_MAP = ROOT / "docs" / "paper_to_code.md"
TUTORIAL_MAP = ROOT / "docs" / "tutorial_to_code.md"
LINK = re.compile(r'\[`([\w.]+)`(?: "([^"]+)")?\]\(\.\./([\w/]+\.py)#L(\d+)\)')


def line_of(name: str, words: str | None, file: str) -> int:
    """Return the number of the line that a link leads to.

    Raises:
        ValueError: If the file has no such name, or no such words below it.
    """
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
    """Return the name, words, file and line of every link in the two tables."""
    found = LINK.findall(PAPER_MAP.read_text() + TUTORIAL_MAP.read_text())
    return [(name, words or None, file, int(line)) for name, words, file, line in found]


def main():
    """Write the present line numbers into the two tables."""

    def renumber(link: re.Match) -> str:
        name, words, file, _ = link.groups()
        return f"{link[0].rsplit('#', 1)[0]}#L{line_of(name, words, file)})"

    for page in (PAPER_MAP, TUTORIAL_MAP):
        page.write_text(LINK.sub(renumber, page.read_text()))


if __name__ == "__main__":
    main()
