"""Run the notebook of examples/, and save it with what it prints and shows: python tests/save_notebook.py.

That takes as long as its trainings. Progress bars, warnings and second copies of pictures are left out.
"""

import json
import os
import re
import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import nbformat
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
NOTEBOOK = ROOT / "examples" / "ddpm_colab.ipynb"
PICTURES = ("image/png", "image/gif")  # IPython adds a JPEG of each picture
PROGRESS_BAR = re.compile(r"\[(\d+:)?\d\d:\d\d[<,]")  # the times of tqdm
TERMINAL_CODE = re.compile(r"\x1b\[[\d;]*[A-Za-z]")


def read_notebook() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


def code_cells(notebook: nbformat.NotebookNode) -> list[nbformat.NotebookNode]:
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def cell_with(text: str) -> str:
    """Return the source of the one cell of code with this text."""
    (source,) = (cell.source for cell in code_cells(read_notebook()) if text in cell.source)
    return source


def run_notebook(folder: Path, environment: dict[str, str]) -> nbformat.NotebookNode:
    """Run all cells in a folder, by this interpreter, whichever other kernels are installed."""
    kernel = folder / "jupyter" / "kernels" / "this"
    kernel.mkdir(parents=True)
    command = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    (kernel / "kernel.json").write_text(json.dumps({"argv": command, "display_name": "this", "language": "python"}))
    notebook = read_notebook()
    client = NotebookClient(notebook, timeout=3600, kernel_name="this", resources={"metadata": {"path": str(folder)}})
    with patch.dict(os.environ, JUPYTER_PATH=str(folder / "jupyter")):
        client.execute(env={**environment, "PYTHONPATH": str(ROOT)})
    return notebook


def pictures(notebook: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """Return the type and the content, in base 64, of each picture that the cells show."""
    data = [output.get("data", {}) for cell in code_cells(notebook) for output in cell.outputs]
    return [(kind, each[kind]) for each in data for kind in PICTURES if kind in each]


def strip_noise(notebook: nbformat.NotebookNode, metadata: dict):
    """Keep pictures and lines on standard output."""
    notebook.metadata = metadata  # without the versions of this machine
    for cell in code_cells(notebook):
        cell.metadata = {}
        printed, shown = "", []
        for output in cell.outputs:
            if output.output_type == "stream" and output.name == "stdout":
                printed += output.text
            elif picture := {kind: data for kind, data in output.get("data", {}).items() if kind in PICTURES}:
                shown.append(nbformat.v4.new_output("display_data", picture, metadata=output.metadata))
        lines = [line.rstrip() for line in re.split(r"[\r\n]+", TERMINAL_CODE.sub("", printed))]
        lines = [line for line in lines if line and not PROGRESS_BAR.search(line)]
        text = [nbformat.v4.new_output("stream", name="stdout", text="\n".join(lines) + "\n")] if lines else []
        cell.outputs = text + shown


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as folder:
        notebook = run_notebook(Path(folder), dict(os.environ))
    strip_noise(notebook, read_notebook().metadata)
    nbformat.write(notebook, NOTEBOOK)
