"""Files of networks and features: nothing in them runs, and a changed file is not used."""

import io
import json
import os
import pickle
import re
import warnings
import zipfile
from contextlib import suppress

import numpy as np
import pytest
import torch
from torch._export.serde.schema import SCHEMA_VERSION
from torch._export.serde.serialize import serialize

from ddpm_hf.evaluation.exported import OLD_PICKLES, OLD_PROGRAM
from ddpm_hf.evaluation.features import keep_features, load_extractor, read_features

CPU = torch.device("cpu")
PIXELS = torch.arange(3 * 64, dtype=torch.uint8).reshape(3, 1, 8, 8)


class Net(torch.nn.Module):
    """A network with a weight, a buffer, a constant, a symbolic size, and a part without gradients."""

    def __init__(self):
        super().__init__()
        self.conv = torch.nn.Conv2d(1, 4, 3)
        self.register_buffer("scale", torch.full((4,), 2.0))
        self.shift = torch.ones(4)

    def forward(self, pixels):
        with torch.no_grad():
            x = torch.nn.functional.interpolate(pixels.float() / 255, size=(9, 9), mode="bilinear")
        return self.conv(x).reshape(pixels.shape[0], 4, -1).mean(2) * self.scale + self.shift


class Bomb:
    """An object whose pickle makes a folder when Python reads it."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return os.mkdir, (self.marker,)


@pytest.fixture(scope="module")
def exported():
    torch.manual_seed(0)
    network = Net()
    return network, torch.export.export(network, (PIXELS,), dynamic_shapes=({0: torch.export.Dim("N")},))


@pytest.fixture(scope="module")
def files(exported):
    """Return name -> content for three files: of today's form, of the form up to PyTorch 2.7, and of TorchScript."""
    network, program = exported
    new, script = io.BytesIO(), io.BytesIO()
    torch.export.save(program, new)
    old = serialize(program)
    pickles = (old.state_dict, old.constants, old.example_inputs)
    old = {
        "version": ".".join(map(str, SCHEMA_VERSION)),
        OLD_PROGRAM: old.exported_program,
        **dict(zip(OLD_PICKLES, pickles)),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.save(torch.jit.trace(network, PIXELS), script)
    return {"new": contents(new), "old": old, "torchscript": contents(script)}


def contents(buffer):
    with zipfile.ZipFile(buffer) as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def write(path, parts):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in parts.items():
            archive.writestr(name, content)
    return str(path)


def saved(value):
    buffer = io.BytesIO()
    torch.save(value, buffer)
    return buffer.getvalue()


@pytest.mark.parametrize("suffix", ["pt", "pt2", "pth"])
@pytest.mark.parametrize("kind", ["new", "old", "torchscript"])
def test_harmless_files_are_read(exported, files, kind, suffix, tmp_path):
    extractor = load_extractor(write(tmp_path / f"net.{suffix}", files[kind]), CPU)
    torch.testing.assert_close(extractor(PIXELS), exported[0](PIXELS).detach())
    if kind != "torchscript":
        assert extractor(PIXELS[:2]).shape == (2, 4)


def test_other_forms_of_weights_are_read(exported, files, tmp_path):
    """PyTorch 2.8 writes one pickle of all weights, and sparse tensors have one pickle for each weight."""
    network, program = exported
    state = dict(program.state_dict)
    root = next(iter(files["new"])).split("/")[0]
    whole = {**files["new"], f"{root}/data/weights/model.pt": saved(state)}
    name = f"{root}/data/weights/model_weights_config.json"
    config = json.loads(files["new"][name])
    for weight in config["config"]:
        config["config"][weight]["use_pickle"] = True
    each = {f"{root}/data/weights/{config['config'][key]['path_name']}": saved(value) for key, value in state.items()}
    for parts in (whole, {**files["new"], **each, name: json.dumps(config)}):
        extractor = load_extractor(write(tmp_path / "net.pt2", parts), CPU)
        torch.testing.assert_close(extractor(PIXELS), network(PIXELS).detach())


def bombs(files, kind, marker):
    """Yield archives in which one part is a pickle that acts, for each part and each way to write pickles."""
    parts = files[kind]
    more = [] if kind == "old" else [f"{next(iter(parts)).split('/')[0]}/{name}" for name in (
        "data.pkl", "data/weights/model.pt", "data/constants/model.pt", "data/constants/opaque_obj_0", "extra/x.pt",
        "data/constants/custom_obj_0", "data/aotinductor/model/x.so", "data/sample_inputs/other.pt", "serialized.pkl",
    )]  # fmt: skip
    for name in [*parts, *more]:
        for content in (saved(Bomb(marker)), pickle.dumps(Bomb(marker))):
            changed = {**parts, name: content}
            for config in [other for other in parts if other.endswith("_config.json")]:
                value = json.loads(parts[config])
                for entry in value["config"].values():
                    entry["use_pickle"] = True
                    if "opaque_obj" in name:
                        entry["path_name"] = "opaque_obj_0"
                changed[config] = content if config == name else json.dumps(value)
            yield changed
            yield {**parts, name: content}


@pytest.mark.parametrize("kind", ["new", "old", "torchscript"])
def test_no_pickle_runs(files, kind, tmp_path):
    marker = tmp_path / "it ran"
    for parts in bombs(files, kind, marker):
        with suppress(ValueError):
            load_extractor(write(tmp_path / "net.pt2", parts), CPU)
        assert not marker.exists()


def test_a_file_of_torch_save_is_refused(tmp_path):
    marker = tmp_path / "it ran"
    for i, content in enumerate((saved(Bomb(marker)), pickle.dumps(Bomb(marker)), saved(torch.nn.Linear(1, 1)), b"")):
        (tmp_path / f"{i}.pt").write_bytes(content)
        with pytest.raises(ValueError, match=r"expected a file written by torch\.jit\.save or"):
            load_extractor(str(tmp_path / f"{i}.pt"), CPU)
    assert not marker.exists()


CODE = "__import__('os').mkdir('it ran')"


@pytest.mark.parametrize(
    ("pattern", "replacement"),
    [
        ("torch.ops.aten.mul.Tensor", "torch.serialization.os.mkdir"),
        ("torch.ops.aten.mul.Tensor", "torch.hub.load"),
        ("torch.ops.aten.mul.Tensor", "torch.ops.aten.save.default"),
        ("torch.ops.aten.mul.Tensor", "torch.ops.aten.mul.__call__"),
        ("torch.ops.aten.mul.Tensor", "torch.ops.load_library"),
        ("torch.ops.aten.mul.Tensor", "_operator.methodcaller"),
        (r"Symbol\([^\"]*\)", CODE),
        (r"Symbol\([^\"]*\)", f"Symbol({CODE.replace(chr(39), '')})"),
        (r"Symbol\([^\"]*\)", "().__class__.__base__"),
        (r'(?<="name": ")pixels', f"pixels={CODE}"),
        (r'(?<="name": ")pixels', rf"pixels):\\n {CODE}\\n#"),
        (r"builtins.tuple", "collections.defaultdict"),
        (r'\\"context\\": \\"null\\"', r'\\"context\\": \\"{\\\\\\"__enum__\\\\\\": 1}\\"'),
    ],
)  # fmt: skip
@pytest.mark.parametrize("kind", ["new", "old"])
def test_no_code_in_the_program_runs(files, kind, pattern, replacement, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(name for name in files[kind] if name.endswith((OLD_PROGRAM, "models/model.json")))
    program = files[kind][name].decode()
    changed = re.sub(pattern, replacement, program)
    assert changed != program
    with pytest.raises(ValueError, match="is not known to be harmless, and could run code"):
        load_extractor(write("net.pt2", {**files[kind], name: changed}), CPU)
    assert os.listdir() == ["net.pt2"]


def test_guards_are_not_run(exported, files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    name = next(name for name in files["new"] if name.endswith("models/model.json"))
    program = json.loads(files["new"][name])
    program["guards_code"] = [CODE]
    extractor = load_extractor(write("net.pt2", {**files["new"], name: json.dumps(program)}), CPU)
    torch.testing.assert_close(extractor(PIXELS), exported[0](PIXELS).detach())
    assert os.listdir() == ["net.pt2"]


def test_torchscript_touches_no_files(tmp_path):
    class Writer(torch.nn.Module):
        def forward(self, pixels):
            torch.save(pixels, "written")
            return pixels.float().flatten(1)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(Writer()).save(tmp_path / "net.pt")
    with pytest.raises(ValueError, match=r"its part code/__torch__\S* calls save, which reads or writes files"):
        load_extractor(str(tmp_path / "net.pt"), CPU)


# ---- Features that are kept ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("file", "spoil"),
    [
        ("f.npy", lambda data: b""),
        ("f.npy", lambda data: data[: len(data) // 2]),
        ("f.npy", lambda data: data[:-1] + bytes([data[-1] ^ 1])),
        ("f.npy", lambda data: pickle.dumps([1])),
        ("f.json", lambda data: data[:9]),
        ("f.json", lambda data: b"[]"),
        ("f.json", lambda data: b'{"sha256": 3}'),
        ("f.json", None),
    ],
)
def test_spoilt_features_are_named_and_not_used(tmp_path, file, spoil, capsys):
    features = np.arange(12, dtype=np.float32).reshape(3, 4) + 0.5
    path = tmp_path / "cache" / "f.npy"
    assert read_features(path) is None
    keep_features(path, features)
    np.testing.assert_array_equal(read_features(path), features)
    assert capsys.readouterr().out == ""

    spoilt = path.with_name(file)
    spoilt.write_bytes(spoil(spoilt.read_bytes())) if spoil else spoilt.unlink()
    assert read_features(path) is None
    assert f"The features in {path} are spoilt and are computed again: " in capsys.readouterr().out
    keep_features(path, features)
    np.testing.assert_array_equal(read_features(path), features)
    assert sorted(each.name for each in path.parent.iterdir()) == ["f.json", "f.npy"]


def test_functions_of_one_module_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "some_features.py").write_text(
        "import sys, torch\n"
        "def a(images): return images.float().mean((2, 3))\n"
        "def b(images): return images.float().std((2, 3))\n"
        "def none(images): return images.float().mean((2, 3))[:, :0]\n"
        "def leaving(images): sys.exit(3)\n"
    )
    (tmp_path / "leaving.py").write_text("raise SystemExit(3)")
    a, b, none, leaving = (
        load_extractor(f"some_features:{name}", torch.device("cpu")) for name in ("a", "b", "none", "leaving")
    )
    assert a.fingerprint != b.fingerprint
    pixels = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    with pytest.raises(ValueError, match=r"expected a tensor \(2, D\)"):
        none(pixels)
    with pytest.raises(ValueError, match="leaving fails on uint8 images"):
        leaving(pixels)
    for name in ("leaving:a", "math:sin", "nowhere:a"):
        with pytest.raises(ValueError, match=f"--features {name} cannot be imported"):
            load_extractor(name, torch.device("cpu"))
