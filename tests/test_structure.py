"""The house keeps its order: who imports whom, and how long the loop is."""

import ast
import functools
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ddpm_hf"
LEAVES = ("unet_ddpm", "scheduling_ddpm_linear", "pipeline_ddpm_custom")
PROGRAMS = ("cli", "demo")
CUSTOM_PIPELINES = sorted((ROOT / "pipelines").glob("*.py"))
SERVICES = [f.stem for f in PACKAGE.glob("*.py") if f.stem not in (*LEAVES, *PROGRAMS, "__init__")]


def imports(path):
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield node.module


@functools.cache
def own_imports(path):
    """Modules of the package, but the custom pipelines in it, which import none."""
    return {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_hf.")} - {"pipelines"}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_self_contained(leaf):
    """The Hub ships them singly."""
    allowed = {"torch", "diffusers", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(PACKAGE / f"{leaf}.py")} <= allowed


@pytest.mark.parametrize("service", SERVICES)
def test_services_import_downward_and_in_no_circle(service):
    whole = set()

    def reach(name, seen=()):
        assert name not in seen, f"circle: {seen}"
        for other in own_imports(PACKAGE / f"{name}.py") - whole:
            assert other not in PROGRAMS
            reach(other, (*seen, name))
        whole.add(name)

    reach(service)


@pytest.mark.parametrize("path", CUSTOM_PIPELINES, ids=lambda path: path.stem)
def test_custom_pipelines_are_self_contained(path):
    """diffusers loads them singly, where this package is not."""
    allowed = {"torch", "diffusers", "PIL", "numpy", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(path)} <= allowed


def test_custom_pipelines_agree():
    """What several of them have to repeat is the same in each."""
    sources = {}
    for path in CUSTOM_PIPELINES:
        text = path.read_text()
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.name not in ("__call__", "draw_noise"):
                sources.setdefault(node.name, []).append(ast.get_source_segment(text, node))
    assert [name for name, copies in sources.items() if len(set(copies)) > 1] == []
    assert len(sources["_check_scheduler"]) == len(CUSTOM_PIPELINES) == 4


def test_torchvision_is_imported_nowhere():
    files = [f for f in ROOT.rglob("*.py") if ".venv" not in f.parts]
    assert len(files) > 10
    assert [f for f in files if any(name.startswith("torchvision") for name in imports(f))] == []


def test_the_loop_stays_readable():
    assert len((ROOT / "train_ddpm.py").read_text().splitlines()) <= 300
