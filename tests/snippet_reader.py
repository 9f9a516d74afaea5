"""A process that does what the pages say: it runs their snippets, each page in a folder and a process of its own.

It is started once with the environment of a reader, and imports what takes seconds to import. Then it forks: a page
runs in a copy of it, and each command of the page in a copy of that.

Standard input has one page a line: {"folder": ..., "steps": [[kind, code, is_run], ...]}, with code: Python,
or the words of a command. The answer is a line with a list: what a step that failed printed, and null for the others.
"""

import importlib
import json
import os
import runpy
import sys
import tempfile
import traceback
import warnings
from unittest import mock

import torch
from snippets import unwrap

from ddpm_hf import cli
from ddpm_hf.command_line import parse_command_line

IMPORTED = "evaluation.command", "hub.push", "pictures", "sampling", "train"  # what most commands import
# Warnings of these modules are errors: the pasted code, this package, and remote code.
OURS = ("snippet", "ddpm_hf", "train_ddpm", "diffusers_modules")


def main():
    torch.set_num_threads(1)
    for name in ("matplotlib.figure", *(f"ddpm_hf.{name}" for name in IMPORTED)):
        importlib.import_module(name)
    for module in OURS:
        warnings.filterwarnings("error", module=module)
    for line in sys.stdin:
        job = json.loads(line)
        with tempfile.NamedTemporaryFile("r") as answer:
            in_a_copy(read_page, job["folder"], job["steps"], answer.name)
            print(answer.read(), flush=True)
    os._exit(0)  # the interpreter would take seconds to clear up


def in_a_copy(function, *arguments) -> int:
    """Call a function in a copy of this process. Return its exit code."""
    child = os.fork()
    if child:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    code = 1
    try:
        function(*arguments)
        code = 0
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def read_page(folder: str, steps: list, answer: str):
    """Take the steps of a page, and write the answer into a file."""
    os.chdir(folder)
    names = {"__name__": "snippet"}
    errors = []
    for kind, code, is_run in steps:
        with tempfile.TemporaryFile("w+") as output:
            for stream in (1, 2):
                os.dup2(output.fileno(), stream)
            if kind == "python":
                failed = run_python(code, names)
            else:
                failed = in_a_copy(run_command if is_run else parse_command, *unwrap(code))
            sys.stdout.flush()
            sys.stderr.flush()
            output.seek(0)
            errors.append(output.read()[-3000:] or f"exit code {failed}" if failed else None)
    with open(answer, "w") as file:
        json.dump(errors, file)


def run_python(code: str, names: dict) -> bool:
    """Run code that knows these names, and may add to them. Return whether it failed."""
    try:
        exec(compile(code, "snippet", "exec"), names)
    except Exception:
        traceback.print_exc()
        return True
    return False


def run_command(program: str, arguments: list[str]):
    """Run `ddpm-hf` or a script."""
    if program in ("ddpm-hf", "ddpm_hf.cli"):
        cli.main(arguments)
        return
    sys.argv = [program, *arguments]
    sys.path.insert(0, os.path.dirname(program))
    runpy.run_path(program, run_name="__main__")


def parse_command(program: str, arguments: list[str]):
    """Parse the flags of a command of this package. There is nothing to parse for any other."""
    if program not in ("train_ddpm.py", "ddpm-hf", "ddpm_hf.cli"):
        return
    if program in ("ddpm-hf", "ddpm_hf.cli") and arguments[0] != "train":
        with mock.patch.object(cli, f"_{arguments[0]}"):
            cli.main(arguments)
    else:
        parse_command_line(arguments[1:] if arguments[:1] == ["train"] else arguments)


if __name__ == "__main__":
    main()
