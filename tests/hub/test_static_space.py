"""The static Space: what is written into its folder and pushed, and what is refused.

The export and onnxruntime-web are stand-ins here. tests/demo/test_static_page.py has the real ones in a browser.
"""

import base64
import functools
import hashlib
import json
import re
import sys
import tarfile
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from diffusers import DDIMScheduler
from hub_users import TOKEN
from huggingface_hub import ModelCard
from runs import make_run

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, cli
from ddpm_hf.export import table
from ddpm_hf.hub import onnxruntime_web
from ddpm_hf.hub.onnxruntime_web import FILES, VERSION, find_runtime

PAGE = Path(onnxruntime_web.__file__).with_name("static_page")
RUNTIME = {f"runtime/{name}" for name in FILES}


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "digits")


@pytest.fixture
def exports(monkeypatch, tmp_path):
    """Write a stand-in for the network and for the runtime. Return the list of how the networks were exported."""
    static_space = pytest.importorskip("ddpm_hf.hub.static_space", exc_type=ModuleNotFoundError)
    made = []

    def write_export(pipeline, folder, how):
        made.append(how)
        (folder / "model.onnx").write_bytes(b"the network")
        about = {"sample_shape": [1, 8, 8], "classes": 0, "clip": 1.0, "steps": {"timesteps": [0]}}
        (folder / "sampler.json").write_text(json.dumps(about))

    runtime = tmp_path / "dist"
    runtime.mkdir()
    for name in FILES:
        (runtime / name).write_text(f"the runtime's {name}")
    monkeypatch.setattr(static_space, "write_export", write_export)
    monkeypatch.setattr(static_space, "find_runtime", lambda folder: runtime)
    return made


def push(run, *flags):
    cli.main(["push", str(run), "--static_space", *flags])
    return run / "static_space"


def files_in(space):
    return {path.relative_to(space).as_posix(): path.read_bytes() for path in space.rglob("*") if path.is_file()}


def test_what_is_written(run, exports, capsys):
    space = push(run, "--no_upload")
    assert capsys.readouterr().out.endswith(f"holds a static Space; try it with: python -m http.server -d {space}\n")
    files, page = files_in(space), files_in(PAGE)
    assert files.keys() == {*page, *RUNTIME, "README.md", "model.onnx", "sampler.json"}
    assert {name: files[name] for name in page} == page
    assert b"Copyright (c) Microsoft" in files["runtime/LICENSE"]
    card = ModelCard(files["README.md"].decode())
    assert (card.data.sdk, card.data.app_file, card.data.title) == ("static", "index.html", "digits")
    (how,) = exports
    assert (how.format, how.dtype, how.loop, how.num_inference_steps) == ("onnx", "fp16", False, 10)
    about = json.loads(files["sampler.json"])
    assert (about["title"], about["student"], about["steps_at_first"]) == ("digits", False, 10)
    assert about["bytes"] == {name: len(files[name]) for name in ("model.onnx", "runtime/ort-wasm-simd-threaded.wasm")}


def test_tables_of_the_steps(run, exports):
    """A model of 1000 timesteps draws in 10, 20 or 50 steps."""
    unet = DDPMPipelineCustom.from_pretrained(run).unet
    DDPMPipelineCustom(unet, DDPMLinearScheduler()).save_pretrained(run)
    about = json.loads((push(run, "--no_upload") / "sampler.json").read_text())
    assert (list(about["tables"]), about["steps_at_first"], "steps" in about) == (["10", "20", "50"], 20, False)
    for steps, written in about["tables"].items():
        scheduler = DDIMScheduler(beta_schedule="linear", timestep_spacing="trailing", clip_sample=True)
        expected = table.table_of(scheduler, int(steps))
        assert written == {**expected, "alpha": written["alpha"]}
        assert written["alpha"][1:] == pytest.approx(written["alpha_next"][:-1])


def test_a_student_has_its_own_steps(run, exports):
    unet = DDPMPipelineCustom.from_pretrained(run).unet
    scheduler = DDIMScheduler(num_train_timesteps=10, timestep_spacing="trailing", clip_sample=False)
    student = {"steps": 2, "guidance_scale": 1.0}
    DDPMPipelineCustom(unet, scheduler, num_inference_steps=2, distilled=student).save_pretrained(run)
    about = json.loads((push(run, "--no_upload") / "sampler.json").read_text())
    assert (list(about["tables"]), about["tables"]["2"]["timesteps"], about["student"]) == (["2"], [9, 4], True)
    assert exports[0].num_inference_steps == 2


def test_one_commit(hub, run, exports, capsys):
    space = push(run, "--hub_token", TOKEN)
    assert capsys.readouterr().out.splitlines()[-1] == f"Pushed to {hub.url}/spaces/alice/digits."
    _, (_, pushed) = hub.repositories["spaces/alice/digits"].commits
    assert {name: file.content for name, file in pushed.items()} == files_in(space)
    (space / "mine.js").write_text("mine")
    (space / "page.js").write_text("of an older page")
    push(run, "--hub_token", TOKEN)
    assert len(hub.repositories["spaces/alice/digits"].commits) == 2  # the first is empty
    assert (space / "mine.js").read_text() == "mine"
    assert list(hub.repositories) == ["spaces/alice/digits"]
    cli.main(["push", str(run), "--hub_token", TOKEN])
    assert "(https://huggingface.co/spaces/alice/digits)" in (run / "README.md").read_text()
    with pytest.raises(SystemExit, match=r"alice/digits holds the demo that .*static_space is; name another Space"):
        cli.main(["push", str(run), "--hub_token", TOKEN, "--space"])


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (("--static_space", "--space"), "--space and --static_space are two demos; push one after the other"),
        (("--no_upload",), "--no_upload is for --space or --static_space; pass one of them"),
        (("--onnxruntime_web", "dist"), "--onnxruntime_web is for --static_space; pass --static_space too"),
    ],
)
def test_flags_that_do_not_fit(run, flags, message):
    with pytest.raises(SystemExit, match=message):
        cli.main(["push", str(run), *flags])


def test_what_is_refused(run, exports):
    (run / "static_space").mkdir()
    (run / "static_space" / "README.md").write_text("mine")
    with pytest.raises(SystemExit, match=r"was not written by ddpm-hf push --static_space .*; move it away"):
        push(run, "--no_upload")
    (run / "static_space" / "README.md").unlink()
    deep = {"mode": "L", "dtype": "uint16", "low": 0, "high": 65535, "stored": "uint16", "suffix": ".png"}
    unet = DDPMPipelineCustom.from_pretrained(run).unet
    DDPMPipelineCustom(
        DDPMUNetModel.from_config({**unet.config, "pixel_format": deep}), DDPMLinearScheduler()
    ).save_pretrained(run)
    with pytest.raises(SystemExit, match="a static Space shows 8-bit pictures, grey or RGB; use --space"):
        push(run, "--no_upload")
    assert exports == []


def test_the_extra_is_missing(run, monkeypatch):
    for name in [name for name in sys.modules if name.startswith(("ddpm_hf.hub.static_space", "ddpm_hf.export"))]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "onnx", None)
    with pytest.raises(SystemExit) as stop:
        push(run, "--no_upload")
    assert stop.value.code == 'ddpm-hf: error: --static_space needs onnx: pip install "ddpm-hf[export]".'


# ---- onnxruntime-web -------------------------------------------------------------------------------------------------


@pytest.fixture
def registry(monkeypatch, tmp_path):
    """Serve a stand-in for the package of npm. Return the list of requests."""
    package, asked = tmp_path / "package" / "dist", []
    package.mkdir(parents=True)
    for name in FILES:
        (package / name).write_text(f"the runtime's {name}")
    archive = tmp_path / "npm" / "onnxruntime-web" / "-" / f"onnxruntime-web-{VERSION}.tgz"
    archive.parent.mkdir(parents=True)
    with tarfile.open(archive, "w:gz") as file:
        file.add(package.parent, "package")
    digests = {name: hashlib.sha256((package / name).read_bytes()).hexdigest() for name in FILES}
    integrity = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    for name, value in {"FILES": digests, "INTEGRITY": integrity, "CACHE": tmp_path / "cache" / "it"}.items():
        monkeypatch.setattr(onnxruntime_web, name, value)

    class Registry(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            asked.append(self.path)

    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Registry, directory=tmp_path / "npm")) as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.delenv("npm_config_registry", raising=False)
        monkeypatch.setenv("NPM_CONFIG_REGISTRY", f"http://127.0.0.1:{server.server_port}/")
        yield asked
        server.shutdown()


def test_the_runtime_is_fetched_once(registry, tmp_path):
    for _ in range(2):
        assert {path.name for path in find_runtime().iterdir()} == set(FILES)
    assert registry == [f"/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"]
    (find_runtime() / "ort.wasm.min.mjs").write_text("broken")
    find_runtime()
    assert len(registry) == 2


def test_a_runtime_that_is_not_that_of_npm(registry, monkeypatch, tmp_path):
    monkeypatch.setattr(onnxruntime_web, "INTEGRITY", "another")
    with pytest.raises(OSError, match="is not the package that npm published: its SHA-512 differs"):
        find_runtime()
    (tmp_path / "npm" / "onnxruntime-web").rename(tmp_path / "gone")
    with pytest.raises(OSError, match=rf"cannot be fetched \(.*404.*npm pack onnxruntime-web@{re.escape(VERSION)}, "):
        find_runtime()
    assert find_runtime(tmp_path / "package" / "dist") == tmp_path / "package" / "dist"
    (tmp_path / "package" / "dist" / "ort-wasm-simd-threaded.wasm").write_text("of another version")
    with pytest.raises(ValueError, match=r"dist: ort-wasm-simd-threaded\.wasm is missing, or of another version"):
        find_runtime(tmp_path / "package" / "dist")


def test_no_registry_answers(registry, monkeypatch):
    monkeypatch.delenv("NPM_CONFIG_REGISTRY")
    monkeypatch.setenv("npm_config_registry", "http://127.0.0.1:9")
    with pytest.raises(OSError, match=r"^http://127\.0\.0\.1:9/onnxruntime-web/.* cannot be fetched \("):
        find_runtime()
