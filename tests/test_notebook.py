"""The notebook, executed as a person would, with few steps, and shared on the loopback Hub."""

import os
import sys
from pathlib import Path

import nbformat
import pytest
from loopback_hub import LoopbackHub
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "ddpm_colab.ipynb"


def test_no_output_is_kept():
    cells = nbformat.read(NOTEBOOK, as_version=4).cells
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in cells)


@pytest.mark.slow
def test_notebook(tmp_path, monkeypatch):
    """In the folder of the examples, by the interpreter of the tests."""
    for name in ("train_ddpm.py", "ddpm_hf", "pipelines"):
        (tmp_path / name).symlink_to(ROOT / name)
    (tmp_path / "examples").mkdir()
    kernel = tmp_path / "jupyter" / "kernels" / "python3"
    kernel.mkdir(parents=True)
    argv = f'["{sys.executable}", "-m", "ipykernel_launcher", "-f", "{{connection_file}}"]'
    (kernel / "kernel.json").write_text(f'{{"argv": {argv}, "display_name": "Python 3", "language": "python"}}')
    monkeypatch.setenv("JUPYTER_PATH", str(tmp_path / "jupyter"))
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for name, value in (("TRAINING_STEPS", "3"), ("SAMPLING_STEPS", "3"), ("HUB_MODEL_ID", "alice/digits")):
        monkeypatch.setenv(name, value)

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    with LoopbackHub({"hf_OfAliceWhoMayWrite": "alice"}) as hub:
        for name, value in hub.environment(tmp_path / "cache", "hf_OfAliceWhoMayWrite").items():
            monkeypatch.setenv(name, value)
        client = NotebookClient(notebook, timeout=200, kernel_name="python3")
        client.execute(cwd=str(tmp_path / "examples"))
        pictures = [
            kind
            for cell in notebook.cells
            for output in cell.get("outputs", [])
            for kind in output.get("data", {})
            if kind in ("image/png", "image/gif")
        ]
        assert pictures == ["image/png", "image/png", "image/png", "image/gif", "image/png"]
        _, files = hub.repositories["alice/digits"].at("main")
        assert {"README.md", "model_index.json", "unet/diffusion_pytorch_model.safetensors"} <= files.keys()
    assert (tmp_path / "ddpm-mnist-mini" / "model_index.json").exists()
