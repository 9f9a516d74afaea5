"""Processes of Python that start at once: copies of a process that has imported the libraries, not this package.

Importing PyTorch, diffusers and the others takes longer than most programs that tests start. Variables that a library
reads when it is imported, such as HF_HOME, are those of the first process; a test of others starts its own.

Standard input has a request a line: {"start": {...}} is answered with a process id, {"poll": id} with its exit code, or
null if it has not ended.
"""

import importlib
import json
import os
import runpy
import socket
import subprocess
import sys
import time
import traceback
from pathlib import Path

ROOT = Path(__file__).parent.parent
LIBRARIES = ("accelerate", "datasets", "diffusers.pipelines.pipeline_utils", "matplotlib.figure", "safetensors.torch")
LIBRARIES += ("diffusers.models.unets.unet_2d", "diffusers.schedulers.scheduling_ddpm", "torch._dynamo", "torch.optim")


class Fork:
    """A process, as `subprocess` has it: its `pid`, its `returncode`, and what it printed in `stdout` and `stderr`."""

    def __init__(self, server, number, request):
        self.server, self.returncode = server, None
        self.files = [server.folder / f"{number}.{name}" for name in ("stdout", "stderr")]
        self.pid = server.ask(start={**request, "files": [str(file) for file in self.files]})

    def poll(self):
        if self.returncode is None:
            self.returncode = self.server.ask(poll=self.pid)
        return self.returncode

    def wait(self, timeout=120):
        """Wait for the end. Return the process."""
        end = time.monotonic() + timeout
        while self.poll() is None:
            assert time.monotonic() < end, f"it still runs after {timeout} s: {self.stdout}{self.stderr}"
            time.sleep(0.02)
        return self

    @property
    def stdout(self):
        return self.files[0].read_text()

    @property
    def stderr(self):
        return self.files[1].read_text()


class Forks:
    """The first process. `start` takes the arguments of `python`: a script, "-m" and a module, or "-c" and code."""

    def __init__(self, folder):
        self.folder, self.count = folder, 0
        environment = {**os.environ, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        self.process = subprocess.Popen([sys.executable, __file__], env=environment, text=True, **pipes)

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.stdin.close()
        self.process.wait()

    def ask(self, **request):
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def start(self, *arguments, cwd=ROOT, **environment):
        self.count += 1
        request = {"arguments": [str(word) for word in arguments], "cwd": str(cwd), "environment": environment}
        return Fork(self, self.count, request)

    def run(self, *arguments, timeout=120, **options):
        """Start a process, and wait for its end."""
        return self.start(*arguments, **options).wait(timeout)

    def start_two(self, *arguments, **options):
        """Start two processes that work together, as a cluster does: without a launcher."""
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            place = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
        return [self.start(*arguments, **options, **place, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]

    def run_two(self, *arguments, **options):
        """Run two processes that work together. Return their exit codes, and all that they printed."""
        both = [process.wait() for process in self.start_two(*arguments, **options)]
        return [process.returncode for process in both], "".join(process.stdout + process.stderr for process in both)


def main():
    import torch

    torch.set_num_threads(1)
    for name in LIBRARIES:
        importlib.import_module(name)
    for line in sys.stdin:
        ((kind, what),) = json.loads(line).items()
        if kind == "start":
            answer = os.fork()
            if not answer:
                os._exit(run_program(**what))
        else:
            ended, status = os.waitpid(what, os.WNOHANG)
            answer = os.waitstatus_to_exitcode(status) if ended else None
        print(json.dumps(answer), flush=True)
    os._exit(0)  # the interpreter would take seconds to clear up


def run_program(arguments, cwd, environment, files) -> int:
    """Run what `python` would run with these arguments. Return the exit code."""
    os.chdir(cwd)
    os.environ.update(environment)
    for stream, file in zip((0, 1, 2), (os.devnull, *files)):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT), stream)
    what, *rest = arguments
    try:
        if what == "-m":
            sys.argv = rest
            runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
        elif what == "-c":
            sys.argv = [what, *rest[1:]]
            exec(compile(rest[0], "<string>", "exec"), {"__name__": "__main__"})
        else:
            sys.argv = arguments
            sys.path.insert(0, os.path.dirname(what))
            runpy.run_path(what, run_name="__main__")
        code = 0
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        code = 1 if isinstance(end.code, str) else end.code or 0
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    return code


if __name__ == "__main__":
    main()
