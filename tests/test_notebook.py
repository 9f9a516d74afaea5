"""The notebook: its form, its installation, its outputs, and a run with tiny settings that pushes to a loopback Hub."""

import ast
import base64
import io
import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from loopback_hub import LoopbackHub
from PIL import Image
from save_notebook import NOTEBOOK, ROOT, cell_with, code_cells, pictures, read_notebook, run_notebook

import ddpm_hf

TOKEN = "hf_OfAliceWhoMayWrite"
URLS = (ROOT / "pyproject.toml").read_text().split("[project.urls]\n")[1].split("\n\n")[0]
REPOSITORY = re.search(r'^Repository = "(.+)"$', URLS, re.MULTILINE)[1]
SHOWN = ["png", "png", "png", "gif", "png", "png"]  # samples, loss, digits, denoising, interpolation, words


def test_the_address_is_the_same_everywhere():
    assert all(f'= "{REPOSITORY}' in line for line in URLS.splitlines())
    for page in ("README.md", "docs/index.md"):
        assert f"git clone {REPOSITORY} && cd ddpm_hf\n" in (ROOT / page).read_text()
    colab = REPOSITORY.replace("https://github.com", "https://colab.research.google.com/github")
    link = f"({colab}/blob/main/examples/{NOTEBOOK.name})"
    title = read_notebook().cells[0].source
    for text in ((ROOT / "README.md").read_text(), title):
        assert text.splitlines()[2].startswith("[![Open in Colab](") and text.splitlines()[2].endswith(link)
    assert f'REPOSITORY = "{REPOSITORY}"\n' in cell_with("pip_install")


def test_colab_gets_a_gpu_and_a_form():
    metadata = read_notebook().metadata
    assert metadata.accelerator == "GPU" and metadata.colab == {"gpuType": "T4", "provenance": []}
    form = cell_with("# @title")
    fields = re.findall(r"^([A-Z_]+) = (.+)  # @param (\{.*\})$", form, re.MULTILINE)
    assert len(fields) == len(ast.parse(form).body)  # nothing but fields
    types = {"string": str, "integer": int}
    for name, literal, field in fields:
        assert type(ast.literal_eval(literal)) is types[json.loads(field)["type"]]
        assert f'os.environ.get("DDPM_{name}", {name})' in cell_with("os.environ.get")


@pytest.mark.parametrize(
    ("where", "files", "refused", "asked"),
    [
        ("", [], [], [["ddpm-hf"]]),
        ("", [], ["ddpm-hf"], [["ddpm-hf"], [f"git+{REPOSITORY}"]]),
        ("", ["ddpm_hf-0.1.0-py3-none-any.whl"], [], [["ddpm_hf-0.1.0-py3-none-any.whl"]]),
        ("clone", ["clone/train_ddpm.py"], [], [["-e", "clone"]]),
        ("clone/examples", ["clone/train_ddpm.py"], [], [["-e", "clone"]]),
    ],
    ids=["index", "repository", "wheel", "clone", "examples of a clone"],
)
def test_install(where, files, refused, asked, tmp_path, monkeypatch):
    for folder in ("clone/examples", *(str(Path(file).parent) for file in files)):
        (tmp_path / folder).mkdir(parents=True, exist_ok=True)
    for file in files:
        (tmp_path / file).touch()
    calls = []

    def pip(command, **options):
        assert command[:5] == [sys.executable, "-m", "pip", "install", "--quiet"]
        calls.append([argument.replace(f"{tmp_path}{os.sep}", "") for argument in command[5:]])
        if calls[-1] == refused:
            return SimpleNamespace(stdout="ERROR: no such package\n", returncode=1)
        sys.modules["ddpm_hf"] = ddpm_hf
        return SimpleNamespace(stdout="", returncode=0)

    monkeypatch.chdir(tmp_path / where)
    monkeypatch.setattr(subprocess, "run", pip)
    monkeypatch.setattr(sys, "path", list(sys.path))
    cell = cell_with("pip_install")
    exec(cell, {"os": os})
    assert calls == []  # it is here already

    monkeypatch.setitem(sys.modules, "ddpm_hf", None)  # importing it raises an error
    exec(cell, {"os": os})
    assert calls == asked


def test_an_installation_that_fails_stops_the_notebook(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: SimpleNamespace(stdout="ERROR: offline\n", returncode=1))
    monkeypatch.setitem(sys.modules, "ddpm_hf", None)
    with pytest.raises(RuntimeError, match="could not install ddpm_hf"):
        exec(cell_with("pip_install"), {"os": os})


def test_saved_outputs():
    """They come from one run from the first cell to the last, are small, and tell nothing of the machine."""
    notebook = read_notebook()
    cells = code_cells(notebook)
    assert [cell.execution_count for cell in cells] == list(range(1, len(cells) + 1))
    assert NOTEBOOK.stat().st_size < 1_000_000
    assert [kind.removeprefix("image/") for kind, _ in pictures(notebook)] == SHOWN
    for kind, content in pictures(notebook):
        assert len(content) < 100_000
        picture = Image.open(io.BytesIO(base64.b64decode(content)))
        assert picture.format == kind.removeprefix("image/").upper() and picture.convert("L").getextrema() == (0, 255)
    outputs = [output for cell in cells for output in cell.outputs]
    assert {output.output_type for output in outputs} == {"display_data", "stream"}
    printed = "".join(output.get("text", "") for output in outputs)
    assert "1,000 steps" in printed
    assert not re.search(r"/tmp|/home|/root|/Users|Traceback|Warning|it/s|\r|\x1b", printed)


@pytest.mark.slow
def test_every_cell_runs(small, tmp_path):
    with LoopbackHub({TOKEN: "alice"}) as hub:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "DDPM_OUTPUT": str(tmp_path / "run"),
            "DDPM_TRAIN_STEPS": "4",
            "DDPM_TRAIN_FLAGS": shlex.join(small("run")),
            "DDPM_DRAW_STEPS": "3",
            "DDPM_LETTERS_STEPS": "2",
            "DDPM_LETTERS_FLAGS": "--ddpm_num_inference_steps 3 --eval_batch_size 3",
            "DDPM_HUB_ID": "alice/digits",
        }
        environment = {**clean, **hub.environment(tmp_path / "cache of alice", TOKEN), **settings}
        notebook = run_notebook(tmp_path, environment)
        pushed = hub.repositories["alice/digits"].commits[-1][1]

    assert [kind.removeprefix("image/") for kind, _ in pictures(notebook)] == SHOWN
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= pushed.keys()
    run, letters = (json.loads((tmp_path / name / "config.json").read_text()) for name in ("run", "run-letters"))
    assert (run["max_train_steps"], letters["max_train_steps"]) == (4, 2)
    assert letters["pretrained_model_name_or_path"] == str(tmp_path / "run")
    unet = json.loads((tmp_path / "run-letters" / "unet" / "config.json").read_text())
    assert unet["class_names"] == list("DFINOSU")
