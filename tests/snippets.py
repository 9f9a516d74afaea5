"""The code blocks and pictures of a page in Markdown, and the examples of a docstring.

A block of commands becomes one snippet for each command. What a block is follows from its language, or from its words.
"""

import ast
import doctest
import shlex
from dataclasses import dataclass

import yaml
from accelerate.commands.launch import launch_command_parser
from markdown_it import MarkdownIt
from torch.distributed.run import get_args_parser as torchrun_parser

from ddpm_hf.config import TrainingConfig

PROGRAMS = {
    "accelerate",
    "cd",
    "ddpm-hf",
    "export",
    "git",
    "hf",
    "make",
    "pip",
    "python",
    "python3",
    "srun",
    "torchrun",
}
PROGRAMS |= {"."}  # reads a file of commands


@dataclass(frozen=True)
class Snippet:
    """Code of a page.

    Attributes:
        page (`str`): The file.
        line (`int`): The line in it, from 1.
        kind (`str`): "python"; "command"; "options" for a YAML file of options; "text" for anything else.
        text (`str`): The code. A command is in one line, without its comment.
    """

    page: str
    line: int
    kind: str
    text: str

    @property
    def words(self) -> list[str]:
        return shlex.split(self.text)

    def __str__(self):
        return f"{self.page}:{self.line}: {self.text.strip().splitlines()[0]}"


def read_page(page: str, markdown: str) -> list[Snippet]:
    """Return the snippets of a page, from top to bottom."""
    found = []
    for block in MarkdownIt().parse(markdown):
        if block.type not in ("code_block", "fence"):
            continue
        line = block.map[0] + (2 if block.type == "fence" else 1)
        commands = _commands(block.content, line)
        if block.info in ("bash", "console", "sh") or (not block.info and _are_known(commands)):
            found += [Snippet(page, number, "command", shlex.join(words)) for number, words in commands]
        else:
            found.append(Snippet(page, line, _kind(block.info, block.content), block.content))
    return found


def read_docstrings(page: str, source: str) -> list[Snippet]:
    """Return one snippet for the examples of each docstring."""
    nodes = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docstrings = [ast.get_docstring(node) or "" for node in ast.walk(ast.parse(source)) if isinstance(node, nodes)]
    found = []
    for docstring in docstrings:
        if examples := doctest.DocTestParser().get_examples(docstring):
            line = source[: source.index(examples[0].source.splitlines()[0])].count("\n") + 1
            found.append(Snippet(page, line, "python", "".join(example.source for example in examples)))
    return found


def read_pictures(markdown: str) -> list[tuple[str, str]]:
    """Return the alt text and the address of each picture of a page."""
    blocks = MarkdownIt().enable("table").parse(markdown)
    pictures = [part for block in blocks for part in block.children or () if part.type == "image"]
    return [(picture.content, picture.attrs["src"]) for picture in pictures]


def unwrap(words: list[str]) -> tuple[str, list[str]]:
    """Return the program that a command starts, and its arguments, without the launcher."""
    words = [word for word in words if word != "..."]  # in the docs: and other flags
    if words[:2] == ["accelerate", "launch"]:
        launched = launch_command_parser().parse_args(words[2:])
        return launched.training_script, launched.training_script_args
    if words[0] == "torchrun":
        launched = torchrun_parser().parse_args(words[1:])
        return launched.training_script, launched.training_script_args
    if words[0] in ("python", "python3"):
        return words[1], words[2:]
    return words[0], words[1:]


def _commands(block: str, line: int) -> list[tuple[int, list[str]]]:
    """Split a block into the words of each command, with its line. Comments are left out."""
    found, rest, start = [], "", line
    for number, text in enumerate(block.splitlines(), line):
        if not rest:
            start = number
        if text.endswith("\\"):
            rest += text[:-1]
            continue
        try:
            words = shlex.split(rest + text, comments=True)
        except ValueError:  # a quotation that does not end: no command
            return []
        rest = ""
        while "&&" in words:
            end = words.index("&&")
            found.append((start, words[:end]))
            words = words[end + 1 :]
        if words:
            found.append((start, words))
    return found


def _are_known(commands: list[tuple[int, list[str]]]) -> bool:
    return bool(commands) and all(words[0] in PROGRAMS for _, words in commands)


def _kind(language: str, text: str) -> str:
    if language in ("python", "py"):
        return "python"
    if language:
        return "text"
    try:
        options = yaml.safe_load(text)
    except yaml.YAMLError:
        options = None
    if isinstance(options, dict) and options.keys() <= TrainingConfig.__dataclass_fields__.keys():
        return "options"
    try:
        ast.parse(text)
    except SyntaxError:
        return "text"
    return "python"
