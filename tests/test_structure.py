"""The house keeps its order: who imports whom, and how long the loop is."""

import ast
import graphlib
import importlib.util
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "ddpm_hf"
LEAVES = ("unet_ddpm", "scheduling_ddpm_linear", "pipeline_ddpm_custom")
# From the bottom to the top. A file imports from layers below its own, and from its own wing or layer.
LAYERS = (
    LEAVES,
    (
        "tokens",
        "terminal",
        "forms",
        "files",
        "manifest",
        "run_files",
        "places",
        "lineages",
        "schedulers",
        "pixel_format",
        "pictures",
        "denoising",
        "variational",
        "power_averages",
    ),
    (
        "weights",
        "convert",
        "loading",
        "other_schedulers",
        "checkpoint",
        "posthoc_ema",
        "precision",
        "processes",
        "signals",
        "ending",
        "hardware",
    ),
    (
        "option_fields",
        "presets",
        "model_sizes",
        "held_out_options",
        "distillation_options",
        "config",
        "config_file",
        "model_config",
        "base_options",
        "command_line",
    ),
    ("images",),
    ("training",),
    ("sampling",),
    ("sample_folder", "export"),
    ("evaluation", "hub"),  # neither knows the other
    ("demo", "train", "prepare", "teacher_options", "ema_command"),
    ("cli",),
)
WINGS = ("images", "training", "evaluation", "export", "hub", "demo")
OF_LABELS = ("_label_numbers", "_guided_part", "_class_numbers", "_finite_number", "_is_whole", "_shown")
CUSTOM_PIPELINES = sorted((ROOT / "pipelines").glob("*.py"))
FILES = {".".join(path.relative_to(PACKAGE).with_suffix("").parts): path for path in PACKAGE.glob("**/*.py")}


def imports(path):
    """Full names of the modules that a file imports, anywhere in it."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: relative import"
            yield from (node.module, *(f"{node.module}.{alias.name}" for alias in node.names))


def own_imports(file):
    """Files of the package that a file of it imports, but the custom pipelines, which import none."""
    names = {name.removeprefix("ddpm_hf.") for name in imports(FILES[file]) if name.startswith("ddpm_hf.")}
    return {name for name in names if name in FILES}


def room(file):
    """A wing, or a file that stands alone."""
    return file.split(".")[0]


def floor(file):
    return next(i for i, layer in enumerate(LAYERS) if room(file) in layer)


@pytest.mark.parametrize("leaf", LEAVES)
def test_leaves_are_self_contained(leaf):
    """The Hub ships them singly."""
    allowed = {"torch", "diffusers", "PIL", *sys.stdlib_module_names}  # diffusers requires Pillow
    assert {name.split(".")[0] for name in imports(PACKAGE / f"{leaf}.py")} <= allowed


@pytest.mark.parametrize("file", [file for file in FILES if not file.endswith("__init__")])
def test_imports_go_down(file):
    for other in own_imports(file):
        below = floor(other) < floor(file)
        beside = floor(other) == floor(file) and (room(other) == room(file) or room(file) not in WINGS)
        assert below or beside, f"{file} imports {other}"


def test_no_circles():
    graph = {file: own_imports(file) for file in FILES if not file.endswith("__init__")}
    assert list(graphlib.TopologicalSorter(graph).static_order())


def test_a_wing_says_what_flows_in_and_out():
    for wing in WINGS:
        lines = ast.get_docstring(ast.parse((PACKAGE / wing / "__init__.py").read_text())).splitlines()
        assert len(lines) <= 6
        assert any(line.startswith("In: ") for line in lines)
        assert any(line.startswith("Out: ") for line in lines)


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
    leaf = (PACKAGE / "pipeline_ddpm_custom.py").read_text()
    for node in ast.walk(ast.parse(leaf)):  # labels mean the same everywhere
        if isinstance(node, ast.FunctionDef) and node.name in OF_LABELS:
            sources[node.name].append(ast.get_source_segment(leaf, node))
    assert [name for name, copies in sources.items() if len(set(copies)) > 1] == []
    assert len(sources["_check_scheduler"]) == len(CUSTOM_PIPELINES) == 5
    assert {len(sources[name]) for name in OF_LABELS} == {6}


def test_a_clone_has_the_custom_pipelines_without_a_link():
    """A clone on Windows has no links."""
    for path in CUSTOM_PIPELINES:
        assert importlib.util.find_spec(f"ddpm_hf.pipelines.{path.stem}").origin == str(path)
    files = [file for path in ROOT.iterdir() if path.name[0] != "." for file in (path, *path.rglob("*"))]
    assert len(files) > 100
    assert [file for file in files if file.is_symlink()] == []


def test_text_files_have_an_encoding():
    """On Windows, the default is another one."""
    for path in (*FILES.values(), *CUSTOM_PIPELINES):
        for call in (node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)):
            text, function = ast.unparse(call), ast.unparse(call.func)
            is_text = function.endswith((".read_text", ".write_text")) or (function == "open" and "b'" not in text)
            assert not is_text or "encoding=" in text, f"{path.name}: {text}"


def test_torchvision_is_imported_nowhere():
    files = [f for f in ROOT.rglob("*.py") if ".venv" not in f.parts]
    assert len(files) > 10
    assert [f for f in files if any(name.startswith("torchvision") for name in imports(f))] == []


def test_the_loop_stays_readable():
    """The story of a run fits on a screen, and Algorithm 1 on half of one."""
    text = (PACKAGE / "train.py").read_text()
    assert len(text.splitlines()) <= 200
    functions = {node.name: node for node in ast.parse(text).body if isinstance(node, ast.FunctionDef)}
    for name, most in {"train": 60, "train_step": 20}.items():
        assert functions[name].end_lineno - functions[name].lineno + 1 <= most
    drawn = ast.get_source_segment(text, functions["train_step"])
    steps = ["x_0 ~ q(x_0)", "t ~ Uniform", "eps ~ N(0, I)", "denoising_loss(", "take_gradient_step("]
    assert sorted(steps, key=drawn.index) == steps
