"""Programs of `torch.export.save`, read so that nothing in the file can run.

torch's own reader is not safe. It falls back to pickles that may run code, evaluates symbolic sizes as Python, executes
the guards, and calls any function of torch that a node names. So it never gets the file. This module reads and checks
each part in a safe way, and writes a new archive of them for torch. A part is one of these:

- the program (JSON): operators of PyTorch's own library and of arithmetic; names; sizes of plain symbols and numbers;
- the weights, constants and sample inputs: raw numbers, or pickles that `torch.load(weights_only=True)` takes.
"""

import ast
import io
import json
import operator
import re
import zipfile

import torch
from torch._export.serde.serialize import SerializedArtifact, deserialize
from torch.export.pt2_archive._package import PT2ArchiveWriter

PROGRAM = re.compile(r"models/\w+\.json")
CONFIG = re.compile(r"(data/(?:weights|constants)/)\w+_config\.json")
NUMBERS = re.compile(r"data/(weights|constants)/(weight|tensor)_\d+")
PICKLED = re.compile(r"data/(weights|constants|sample_inputs)/\w+\.pt")
WRITTEN_AS_IS = ("archive_format", "archive_version")
LEFT_OUT = re.compile(r"byteorder|version|\.data/.*|extra/.*")  # written by the writer itself, or not needed by torch

# The parts of a file by torch.export.save up to PyTorch 2.7.
OLD_PROGRAM = "serialized_exported_program.json"
OLD_PICKLES = tuple(f"serialized_{part}.pt" for part in ("state_dict", "constants", "example_inputs"))

NAME = re.compile(r"[\w.+-]*")
LIBRARY_OPERATOR = re.compile(r"torch\.ops\.(aten|prims)\.(\w+)\.(\w+)")
TOUCHES_FILES = ("save", "from_file")  # operators of aten
OTHER_OPERATORS = re.compile(
    r"_operator\.(add|sub|mul|truediv|floordiv|mod|pow|neg|eq|ne|lt|le|gt|ge|and_|or_|getitem)|torch\.sym_\w+|"
    r"math\.(ceil|floor|trunc|sqrt)|torch\.ops\.higher_order\.(wrap_with_set_grad_enabled|wrap_with_autocast|cond)"
)
TREES = (None, "builtins.tuple", "builtins.list", "builtins.dict", "collections.OrderedDict")
SYMBOLIC_NODES = (
    *(ast.Expression, ast.Call, ast.keyword, ast.Name, ast.Load, ast.Constant, ast.Tuple),
    *(ast.BinOp, ast.UnaryOp, ast.Compare, ast.operator, ast.unaryop, ast.cmpop),
)
SYMBOLIC_FUNCTIONS = {
    *("Symbol", "Integer", "Rational", "Float", "Add", "Mul", "Pow", "Mod", "Max", "Min", "Piecewise"),
    *("Eq", "Ne", "Lt", "Le", "Gt", "Ge", "And", "Or", "Not", "FloorDiv", "ModularIndexing", "Where", "PythonMod"),
    *("CleanDiv", "CeilDiv", "CeilToInt", "FloorToInt", "TruncToInt", "RoundToInt", "ToFloat", "Identity"),
    *("PowByNatural", "FloatPow", "FloatTrueDiv", "IntTrueDiv"),
}


def load_program(data: bytes) -> torch.nn.Module:
    """Return the network of a file by `torch.export.save`.

    Args:
        data (`bytes`): The content of the file.

    Raises:
        ValueError: If a part of the file could run code, or is unknown.
        Exception: An error of torch, if the file is broken.
    """
    parts = _read_archive(data)
    if OLD_PROGRAM in parts:
        program = _checked_json(OLD_PROGRAM, parts[OLD_PROGRAM])
        pickles = [_safe_pickle(name, parts[name]) for name in OLD_PICKLES]
        exported = deserialize(SerializedArtifact(program, *pickles))
    else:
        exported = torch.export.load(_new_archive(parts))
    return exported.module(check_guards=False)  # guards are code


def is_program(data: bytes) -> bool:
    """Return whether the file is by `torch.export.save`, and not by `torch.jit.save`."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        return any(name == OLD_PROGRAM or name.endswith("archive_format") for name in archive.namelist())


def _read_archive(data: bytes) -> dict[str, bytes]:
    """Return name -> content for all files in the archive. The names leave out the folder that holds them all."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        names = archive.namelist()
        root = "" if OLD_PROGRAM in names else names[0].split("/")[0] + "/"
        return {name.removeprefix(root): archive.read(name) for name in names}


def _new_archive(parts: dict[str, bytes]) -> io.BytesIO:
    """Return an archive of parts that were checked, or written from their safe content."""
    pickled: set[str] = set()
    for name, content in parts.items():
        if match := CONFIG.fullmatch(name):
            entries = json.loads(content)["config"].values()
            pickled.update(match[1] + entry["path_name"] for entry in entries if entry["use_pickle"])
    archive = io.BytesIO()
    with PT2ArchiveWriter(archive) as writer:
        for name, content in parts.items():
            if LEFT_OUT.fullmatch(name):
                continue
            if PROGRAM.fullmatch(name) or CONFIG.fullmatch(name):
                content = _checked_json(name, content)
            elif PICKLED.fullmatch(name) or (NUMBERS.fullmatch(name) and name in pickled):
                content = _safe_pickle(name, content)
            elif not NUMBERS.fullmatch(name) and name not in WRITTEN_AS_IS:
                raise ValueError(f"its part {name} is not known to hold numbers only, and could run code")
            writer.write_bytes(name, content)
    archive.seek(0)
    return archive


def _safe_pickle(name: str, content: bytes) -> bytes:
    """Return the tensors of a pickle as a new pickle. The old one must hold nothing else."""
    if not content:
        return b""
    try:
        value = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except Exception as error:  # torch raises many kinds of errors for a pickle that is broken
        raise ValueError(f"its part {name} is a pickle that holds more than tensors, and could run code") from error
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


# ---- The program ---------------------------------------------------------------------------------------------------


def _checked_json(name: str, content: bytes) -> bytes:
    """Return a part of JSON, without guards and notes. Raise a ValueError if it could run code."""
    value = json.loads(content)
    try:
        _check(value, "")
    except RecursionError as error:
        raise ValueError(f"its part {name} is nested too deep") from error
    return json.dumps(value).encode()


def _check(value, key: str):
    """Check a value under a key. Remove the guards, and the notes for people."""
    if isinstance(value, dict):
        if "metadata" in value:
            value["metadata"] = {}
        if "guards_code" in value:
            value["guards_code"] = []
        for inner_key, inner in value.items():
            _check_string(inner_key, "")
            _check(inner, inner_key)
    elif isinstance(value, list):
        for inner in value:
            _check(inner, key)
    elif isinstance(value, str):
        _check_string(value, key)


def _check_string(text: str, key: str):
    """Raise a ValueError if a text is not known to be harmless under its key."""
    check = {
        "target": _is_operator,
        "as_operator": _is_operator,
        "expr_str": _is_symbolic,
        "in_spec": _is_tree,
        "out_spec": _is_tree,
    }.get(key, NAME.fullmatch)
    if not check(text):
        raise ValueError(f"it holds {text[:80]!r}, which is not known to be harmless, and could run code")


def _is_operator(text: str) -> bool:
    """Return whether the text names an operator of PyTorch's library, or plain arithmetic."""
    if not (match := LIBRARY_OPERATOR.fullmatch(text)):
        return bool(OTHER_OPERATORS.fullmatch(text))
    try:
        found = operator.attrgetter(".".join(match.groups()))(torch.ops)
    except AttributeError:
        return False
    return isinstance(found, torch._ops.OpOverload) and match[2] not in TOUCHES_FILES


def _is_symbolic(text: str) -> bool:
    """Return whether the text is a size such as `2*Symbol('s0', positive=True)`: no attributes, no other calls."""
    try:
        nodes = list(ast.walk(ast.parse(text, mode="eval")))
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    called = [node.func for node in nodes if isinstance(node, ast.Call)]
    texts = [node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str)]
    return (
        all(isinstance(node, SYMBOLIC_NODES) for node in nodes)
        and all(isinstance(function, ast.Name) and function.id in SYMBOLIC_FUNCTIONS for function in called)
        and all(NAME.fullmatch(each) for each in texts)
    )


def _is_tree(text: str) -> bool:
    """Return whether the text describes arguments nested in tuples, lists and dictionaries of plain keys."""

    def good(tree: dict) -> bool:
        context = json.loads(tree["context"]) if isinstance(tree["context"], str) else tree["context"]
        keys = context if isinstance(context, list) else [] if context is None else [None]
        return (
            tree["type"] in TREES
            and all(isinstance(key, (str, int)) and NAME.fullmatch(str(key)) for key in keys)
            and all(good(child) for child in tree["children_spec"])
        )

    try:
        _, tree = json.loads(text)
        return good(tree)
    except (ValueError, TypeError, KeyError, RecursionError):
        return not text
