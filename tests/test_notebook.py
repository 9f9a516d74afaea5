"""The notebook runs from its first cell to its last, with tiny settings; it pushes to the loopback Hub."""

import json
import os
import shlex
import sys
from pathlib import Path

import nbformat
import pytest
from loopback_hub import LoopbackHub
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "ddpm_colab.ipynb"
TOKEN = "hf_OfAliceWhoMayWrite"


def test_outputs_are_stripped():
    cells = [cell for cell in nbformat.read(NOTEBOOK, as_version=4).cells if cell.cell_type == "code"]
    assert cells and not any(cell.outputs or cell.execution_count for cell in cells)


@pytest.mark.slow
def test_every_cell_runs(small, tmp_path, monkeypatch):
    # The kernel is this interpreter, whichever others are installed.
    kernel = tmp_path / "jupyter" / "kernels" / "this"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with LoopbackHub({TOKEN: "alice"}) as hub:
        clean = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        settings = {
            "DDPM_OUTPUT": str(tmp_path / "run"),
            "DDPM_TRAIN_STEPS": "4",
            "DDPM_TRAIN_FLAGS": shlex.join(small("run")),
            "DDPM_DRAW_STEPS": "3",
            "DDPM_HUB_ID": "alice/digits",
        }
        environment = {**clean, **hub.environment(tmp_path / "cache of alice", TOKEN), **settings}
        client = NotebookClient(notebook, timeout=300, kernel_name="this", resources={"metadata": {"path": str(ROOT)}})
        client.execute(env={**environment, "PYTHONPATH": str(ROOT)})
        pushed = hub.repositories["alice/digits"].commits[-1][1]

    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    wanted = ("image/png", "image/gif")  # IPython adds a JPEG of each picture
    kinds = [kind for output in outputs for kind in output.get("data", {}) if kind in wanted]
    assert kinds == ["image/png", "image/png", "image/png", "image/gif", "image/png"]
    assert {"model_index.json", "unet/diffusion_pytorch_model.safetensors", "README.md"} <= pushed.keys()
