"""The house keeps its order: who imports whom, and how long the loop is."""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "ddpm_hf"
LEAVES = ("unet_ddpm", "scheduling_ddpm_linear", "pipeline_ddpm_custom")
PROGRAMS = ("cli",)
SERVICES = [f.stem for f in PACKAGE.glob("*.py") if f.stem not in (*LEAVES, *PROGRAMS, "__init__")]


def imports(path):
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield node.module


def own_imports(path):
    return {name.split(".")[1] for name in imports(path) if name.startswith("ddpm_hf.")}


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_self_contained(leaf):
    """The Hub ships them singly."""
    allowed = {"torch", "diffusers", *sys.stdlib_module_names}
    assert {name.split(".")[0] for name in imports(PACKAGE / f"{leaf}.py")} <= allowed


@pytest.mark.parametrize("service", SERVICES)
def test_services_import_downward_and_in_no_circle(service):
    def reach(name, seen=()):
        assert name not in seen, f"circle: {seen}"
        for other in own_imports(PACKAGE / f"{name}.py"):
            assert other not in PROGRAMS
            reach(other, (*seen, name))

    reach(service)


def test_torchvision_is_imported_nowhere():
    files = [f for f in ROOT.rglob("*.py") if ".venv" not in f.parts]
    assert len(files) > 10
    assert [f for f in files if any(name.startswith("torchvision") for name in imports(f))] == []


def test_the_loop_stays_readable():
    assert len((ROOT / "train_ddpm.py").read_text().splitlines()) <= 300
