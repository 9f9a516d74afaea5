"""The code of the pages, of the docstrings and of the model card runs as it is written there.

A reader's process runs each page from top to bottom, in a folder with what the pages name. Commands get further flags,
so that they take seconds. To add a snippet, put what it names into snippet_files.py. If it cannot run, add it to
NOT_RUN or NOT_CODE with the reason.
"""

import json
import os
import re
import shutil
import subprocess
import sys
import textwrap
from fnmatch import fnmatchcase

import pytest
from loopback_hub import LoopbackHub
from runs import make_run
from snippet_files import ROOT, fill_hub, make_files
from snippets import read_docstrings, read_page, read_pictures, unwrap

from ddpm_hf.hub.card import TEMPLATE, render_card

TOKEN = "hf_OfTheUserWhoReads"

# Commands that are not run, and why. Those of this package are still parsed.
NOT_RUN = {
    ". .venv/bin/activate": "for a shell",
    "accelerate launch --multi_gpu *": "several processes: tests/training/test_processes.py",
    "accelerate launch --use_fsdp *": "needs GPUs; on CPUs: tests/training/test_sharding.py",
    "cd ddpm_hf": "for a shell",
    "ddpm-hf demo *": "serves until Ctrl-C: tests/demo/test_page.py",
    "ddpm-hf push * --static_space *": "needs the npm registry: tests/demo/test_static_page.py",
    "export MASTER_ADDR=*": "needs Slurm",
    "git clone *": "needs the internet",
    "hf auth login": "asks for a token",
    "make *": "installs packages, and runs the tests: .ci/run",
    "pip install *": "needs the internet: .ci/run",
    "python -m pytest *": "runs the tests",
    "python benchmarks/memory.py *": "takes minutes",
    "python benchmarks/quality.py *": "takes hours: tests/test_judge.py",
    "python benchmarks/schedulers.py *": "takes an hour",
    "python benchmarks/speed.py *": "takes minutes",
    "python3 -m venv .venv": "installs packages: .ci/run",
    "srun *": "needs Slurm",
    "torchrun *": "several processes: tests/training/test_processes.py",
}

# Blocks that are no code: how they begin, and what they are.
NOT_CODE = {
    "@inproceedings": "BibTeX",
    "The held-out loss rose": "a message",
    "ddpm-mnist-mini/": "a listing",
    "train_ddpm.py         reads": "a listing",
    "train_ddpm.py: error:": "a message",
    "x_0     = clip(": "equations",
}

# What makes a command quick: further flags, which override those of the command. The first pattern that fits counts.
TRAIN = "--train_batch_size 2 --ddpm_num_inference_steps 4 --eval_batch_size 2 --mixed_precision no "
TRAIN += "--overwrite_output_dir --cache_dir {cache}"
TINY = f"{TRAIN} --model_config_name_or_path tiny --ddpm_num_steps 4"
ONE_STEP = f"{TINY} --max_train_steps 1"
QUICK = {
    "*--eval_steps *": f"{ONE_STEP} --eval_steps 1 --eval_num_images 4",
    "*--max_train_minutes *": f"{TINY} --max_train_minutes 0.01",
    "*--pretrained_model_name_or_path *": f"{TRAIN} --max_train_steps 1",
    "*--streaming*": f"{ONE_STEP} --streaming_buffer_size 4",
    "*--validation_*": f"{ONE_STEP} --train_batch_size 10",
    "ddpm-hf ema *": "--std 0.05 0.1 --num_images 3 --bpd_timesteps 4 --cache_dir {cache}",
    "ddpm-hf distill *": f"{TRAIN} --max_train_steps 1 --distill_teacher_steps 1",
    "train_ddpm.py*": ONE_STEP,
    "ddpm-hf train *": ONE_STEP,
    "ddpm-hf sample * --num_images *": "--num_images 3 --num_inference_steps 4",
    "ddpm-hf sample *": "--num_inference_steps 4",
    "ddpm-hf evaluate * bpd*": "--num_images 3 --bpd_timesteps 5 --cache_dir {cache}",
    "ddpm-hf evaluate *": "--num_images 8 --num_inference_steps 4 --cache_dir {cache} --features features:means",
}

PAGES = ["README.md", "CONTRIBUTING.md", *(f"docs/{path.name}" for path in sorted((ROOT / "docs").glob("*.md")))]
RUN_ELSEWHERE = {"docs/examples.md"}  # tests/test_examples.py
SOURCES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (*ROOT.glob("ddpm_hf/**/*.py"), *ROOT.glob("pipelines/*.py"))
    if ">>> " in path.read_text()
)


def snippets_of(page):
    text = (ROOT / page).read_text()
    return read_page(page, text) if page.endswith(".md") else read_docstrings(page, text)


SNIPPETS = {page: found for page in (*PAGES, *SOURCES) if page not in RUN_ELSEWHERE and (found := snippets_of(page))}
ALL = [snippet for found in SNIPPETS.values() for snippet in found]


def matching(table, words):
    """Return the first pattern of a table that fits a command."""
    return next((pattern for pattern in table if fnmatchcase(" ".join(words), pattern)), None)


def beginning(snippet):
    """Return the entry of NOT_CODE that a snippet begins with."""
    return next((words for words in NOT_CODE if snippet.text.startswith(words)), None)


class Reader:
    """The process of snippet_reader.py, and the folder that each page finds."""

    def __init__(self, folder, hub, cache):
        self.folder, self.cache = folder, cache  # of decoded images
        self.files = folder / "files"
        self.files.mkdir()
        make_files(self.files)
        environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        environment |= hub.environment(folder / "hf", TOKEN)
        environment |= {"PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, ROOT / "tests" / "snippet_reader.py"],
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def do(self, folder, steps):
        """Take steps in a folder. Return their errors, or None where there was none."""
        self.process.stdin.write(json.dumps({"folder": str(folder), "steps": steps}) + "\n")
        self.process.stdin.flush()
        return json.loads(self.process.stdout.readline())

    def read(self, snippets, name):
        """Run snippets from top to bottom. Return those that fail, with what they print."""
        folder = self.folder / re.sub(r"\W", "-", name)
        shutil.copytree(self.files, folder, symlinks=True)
        code = [snippet for snippet in snippets if not (snippet.kind == "text" and beginning(snippet))]
        errors = self.do(folder, [self.step(snippet, folder) for snippet in code])
        return [f"{snippet}\n{error}" for snippet, error in zip(code, errors, strict=True) if error]

    def step(self, snippet, folder):
        assert snippet.kind != "text", f"{snippet}: neither Python nor a command; if it is no code, see NOT_CODE"
        if snippet.kind == "python":
            return ["python", snippet.text, True]
        if snippet.kind == "options":
            (folder / "options.yaml").write_text(snippet.text)
            words = ["accelerate", "launch", "train_ddpm.py", "--config", "options.yaml"]
        else:
            words = snippet.words
        if matching(NOT_RUN, words):
            return ["command", words, False]
        program, arguments = unwrap(words)
        quick = QUICK.get(matching(QUICK, [program, *arguments]), "")
        return ["command", [*words, *quick.format(cache=self.cache).split()], True]


@pytest.fixture(scope="session")
def reader(tmp_path_factory, cache_dir):
    folder = tmp_path_factory.mktemp("reader")
    with LoopbackHub({TOKEN: "user"}) as hub:
        reader = Reader(folder, hub, cache_dir)
        flags = "--resolution 8 --max_train_steps 1 --train_batch_size 4 --ddpm_num_inference_steps 5"
        flags += f" --model_config_name_or_path tiny --mixed_precision no --cache_dir {cache_dir}"
        train = ["accelerate", "launch", "train_ddpm.py", *flags.split()]
        assert reader.do(reader.files, [["command", train, True]]) == [None]
        run = reader.files / "ddpm-mnist-mini"
        os.rename(run / "checkpoints" / "step-000001", run / "checkpoints" / "step-002000")
        fill_hub(hub, folder)
        yield reader
        reader.process.stdin.close()
        reader.process.wait()


@pytest.mark.slow
@pytest.mark.parametrize("page", SNIPPETS)
def test_snippets_run(page, reader):
    failures = reader.read(SNIPPETS[page], page)
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["user/repo", "user/classes", "files/ddpm-mnist-mini"])
def test_snippets_of_the_card_run(name, reader):
    is_run = name.startswith("files/")
    snippets = read_page("the card", render_card(reader.folder / name, "user/ten" if is_run else name))
    assert [snippet.kind for snippet in snippets] == ["python", "python", *["command"] * is_run, "text"]
    failures = reader.read(snippets, f"the card of {name}")
    assert not failures, "\n\n".join(failures)


@pytest.mark.slow
def test_what_fails_is_found(reader):
    page = """
        from ddpm_hf import DDPMLinearScheduler
        x = 1

    Text.

        x = y
        x = 2

    Text.

        DDPMLinearScheduler(variance_type="fixed_large").set_timesteps(10)

    Text.

        ddpm-hf sample ddpm-mnist-mini --colour red     # a comment
        ddpm-hf sample nowhere && ddpm-hf sample \\
            ddpm-mnist-mini --output made.png
        hf auth login
        ddpm-hf demo ddpm-mnist-mini --port 80

    Text.

        from PIL import Image
        size = Image.open("made.png").size
        print(x, y)

    Text.

        learning_rate: -1

    """
    expected = {
        7: "name 'y' is not defined",
        12: "fewer than 100 steps",
        16: "unrecognized arguments: --colour",
        17: "nowhere",
        20: "unrecognized arguments: --port",
        24: "name 'y' is not defined",
        30: "learning_rate",
    }
    failures = reader.read(read_page("a page", textwrap.dedent(page)), "a page")
    assert [int(failure.split(":")[1]) for failure in failures] == list(expected)
    for failure, words in zip(failures, expected.values()):
        assert words in failure.strip().splitlines()[-1]


def test_every_exception_is_needed():
    commands = [snippet.words for snippet in ALL if snippet.kind == "command"]
    assert {matching(NOT_RUN, words) for words in commands} >= NOT_RUN.keys()
    run = [" ".join([*unwrap(words)[:1], *unwrap(words)[1]]) for words in commands if not matching(NOT_RUN, words)]
    assert {matching(QUICK, [text]) for text in run} >= QUICK.keys()
    texts = [*ALL, *read_page("the card", TEMPLATE.read_text())]
    assert {beginning(snippet) for snippet in texts} >= NOT_CODE.keys()


def test_make_and_pip_know_the_targets():
    """A page names no target that the Makefile lacks, and no extra that pyproject.toml lacks."""
    words = [snippet.words for snippet in ALL if snippet.kind == "command"]
    targets = {command[1] for command in words if command[0] == "make"}
    extras = {extra for command in words if command[0] == "pip" for extra in re.findall(r"\[(.+)\]", command[-1])}
    makefile, project = ((ROOT / name).read_text() for name in ("Makefile", "pyproject.toml"))
    assert targets and targets <= set(re.findall(r"^([\w-]+):", makefile, flags=re.MULTILINE))
    assert extras and extras <= set(re.findall(r"^(\w+) = \[", project, flags=re.MULTILINE))


def bad_pictures(markdown, folder):
    """Return the pictures of a page that are missing, or have no three words of text for those who cannot see them."""
    return [
        (text, file)
        for text, file in read_pictures(markdown)
        if len(text.split()) < 3 or not (file.startswith("https://") or (folder / file).is_file())
    ]


def test_pictures_have_words_and_files(tmp_path):
    assert bad_pictures("![a nice picture](a.png) ![](README.md) ![all is well](README.md)", ROOT) == [
        ("a nice picture", "a.png"),
        ("", "README.md"),
    ]
    found = {page: bad_pictures((ROOT / page).read_text(), (ROOT / page).parent) for page in PAGES}
    assert {page: bad for page, bad in found.items() if bad} == {}
    run = make_run(tmp_path / "run")
    card = render_card(run)
    assert len(read_pictures(card)) == 4
    assert bad_pictures(card, run) == []
