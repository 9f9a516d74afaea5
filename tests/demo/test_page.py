"""The demo: what its tabs compute, what its page says, and a person who uses it in a real browser."""

import base64
import functools
import io
import json
import os
import shutil
import socket
import struct
import subprocess
import sys
import time
import urllib.request
import zlib
from pathlib import Path

import numpy as np
import pytest
from diffusers import DDIMScheduler
from PIL import Image, ImageDraw
from runs import make_run

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, cli
from ddpm_hf.demo import first as first_module
from ddpm_hf.demo import model as model_module
from ddpm_hf.demo.first import First, first_pictures
from ddpm_hf.demo.model import DemoModel, enlarge
from ddpm_hf.sampling import Classes, Drawing, draw_images, open_model
from ddpm_hf.schedulers import SCHEDULERS

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """Make a model of 8 x 8 pixels and ten timesteps."""
    return make_run(tmp_path_factory.mktemp("made") / "digits")


@pytest.fixture
def model(run):
    return DemoModel(open_model(str(run), None, None, None))


@pytest.fixture
def pictures(model):
    return model.sample(2, seed=7, scheduler="ddpm", steps=10)


def pixels(picture):
    return np.array(picture)


def equal(some, others):
    return len(some) == len(others) and all(np.array_equal(a, b) for a, b in zip(some, others))


# ---- What the tabs compute -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_sample_draws_what_the_command_draws(model, run, scheduler):
    images = model.sample(3, 1, scheduler, 5)
    drawn = [image for _, image in draw_images(open_model(str(run), None, scheduler, None), range(3), Drawing(1, 5, 3))]
    assert equal(images, drawn)
    assert not equal(images, model.sample(3, 2, scheduler, 5))
    assert images[0].mode == "L"


def test_denoise_ends_with_the_sample(model, pictures, monkeypatch):
    frames = model.denoise(seed=7, steps=10)
    assert len(frames) == 11
    assert equal([frames[-1][0], frames[-1][1]], [pictures[0], pictures[0]])
    assert not equal([frames[0][0]], [frames[0][1]])
    monkeypatch.setattr(model_module, "MOST_FRAMES", 4)
    few = model.denoise(seed=7, steps=10)
    assert equal([x_t for x_t, _ in few], [frames[i][0] for i in (0, 3, 7, 10)])


def test_interpolate(model, pictures):
    frames = model.interpolate(*pictures, num_frames=5, timestep=6, seed=0, steps=10)
    assert len(frames) == 5
    assert equal(frames, model.interpolate(*map(enlarge, pictures), num_frames=5, timestep=6, seed=0, steps=10))
    assert not equal(frames, model.interpolate(*pictures, num_frames=5, timestep=6, seed=1, steps=10))
    still = model.interpolate(*pictures, num_frames=3, timestep=0, seed=0, steps=10)
    assert equal([still[0], still[2]], pictures)


def test_inpaint_keeps_the_known_pixels(model, pictures):
    picture = enlarge(pictures[0])
    mask = Image.new("L", picture.size)
    ImageDraw.Draw(mask).rectangle((0, 0, picture.width, picture.height // 2 - 1), fill=255)
    images = model.inpaint(picture, mask, num_images=3, num_resamples=2, seed=0, steps=10)
    assert len(images) == 3
    for image in images:
        assert np.array_equal(pixels(image)[4:], pixels(pictures[0])[4:])
        assert not np.array_equal(pixels(image)[:4], pixels(pictures[0])[:4])
    assert equal(images, model.inpaint(picture, mask, num_images=3, num_resamples=2, seed=0, steps=10))
    with pytest.raises(ValueError, match=r"^Nothing is to be painted: draw over a part of the picture first"):
        model.inpaint(picture, Image.new("L", picture.size), num_images=1, num_resamples=1, seed=0, steps=10)


def test_pictures_of_any_size_and_mode(model, pictures):
    fitted, note = model.fit(enlarge(pictures[0]))
    assert np.array_equal(fitted, pictures[0])
    assert note == ""
    halves = Image.new("RGB", (40, 20), "red")
    halves.paste("white", (20, 0, 40, 20))
    fitted, note = model.fit(halves)
    assert fitted.size == (8, 8)
    assert fitted.mode == "L"
    assert pixels(fitted)[:, 4:].min() == 255
    assert (
        note == "It was cut to its centre, resized from 40 x 20 to 8 x 8 pixels, turned to greyscale, as the model is."
    )
    fitted, note = model.fit(Image.new("RGBA", (8, 8)))
    assert pixels(fitted).min() == 255
    assert note == "It was put on white where it is transparent."
    fitted, note = model.fit(Image.fromarray(np.full((8, 8), 100 * 257, np.uint16)))
    assert (pixels(fitted) == 100).all()
    assert note == ""


@pytest.fixture
def asked(monkeypatch):
    """Return the list of what all pipelines are asked for. They answer without a network of classes."""
    asked = []

    def recorded(kind):
        class Recorded(kind):
            def __call__(self, *arguments, class_labels=None, guidance_scale=None, **options):
                asked.append((class_labels, guidance_scale))
                return super().__call__(*arguments, **options)

        return Recorded

    for name in (
        "DDPMPipelineCustom",
        *(f"DDPM{what}Pipeline" for what in ("Progressive", "Interpolation", "Inpainting")),
    ):
        monkeypatch.setattr(model_module, name, recorded(getattr(model_module, name)))
    return asked


def test_all_tabs_ask_for_classes(model, pictures, asked):
    for classes, labels in (
        (Classes(), lambda n: (None, 1.0)),
        (Classes(("two",), 4.0), lambda n: (["two"] * n, 4.0)),
        (Classes(("one", "two"), 3.0), lambda n: (["one", "two", "one"][:n], 3.0)),
    ):
        model.sample(3, 0, "ddpm", 4, classes)
        model.denoise(0, 4, classes)
        model.interpolate(*pictures, num_frames=3, timestep=2, seed=0, steps=4, classes=classes)
        model.inpaint(pictures[0], Image.new("L", (8, 8), 255), 2, 1, 0, 4, classes)
        assert asked == [labels(3), labels(1), labels(3), labels(2)]
        asked.clear()


def test_recommended_steps(run):
    pipeline = open_model(str(run), None, None, None)
    assert DemoModel(pipeline).recommended_steps("ddim") == 10  # no more than T
    pipeline.scheduler.register_to_config(num_train_timesteps=1000)
    pipeline.register_to_config(num_inference_steps=300)
    model = DemoModel(pipeline)
    assert [model.recommended_steps(name) for name in ("ddpm", "ddim", "unipc")] == [300, 50, 20]
    pipeline.scheduler = DDIMScheduler()
    model = DemoModel(pipeline)
    assert [model.recommended_steps(name) for name in ("ddpm", "ddim")] == [100, 300]
    assert model.schedulers_at_first == ("ddim", "sde-dpmsolver++")
    pipeline.register_to_config(num_inference_steps=None)
    assert DemoModel(pipeline).recommended_steps("ddim") == 50


def test_a_model_without_names_of_classes():
    """Such a model always needs a class, and takes no guidance."""
    unet = DDPMUNetModel(
        sample_size=8, in_channels=1, out_channels=1, block_out_channels=(8,), layers_per_block=1, norm_num_groups=4,
        down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",), num_class_embeds=3, zero_init=False,
    )  # fmt: skip
    model = DemoModel(DDPMPipelineCustom(unet, DDPMLinearScheduler(num_train_timesteps=10)))
    assert (list(model.labels), model.takes_no_class) == ([0, 1, 2], False)
    assert len(first_pictures(model, Path("nowhere")).samples) == 12
    assert len(model.denoise(0, 10, Classes((2,), 1.0))) == 11


def test_first_pictures(model, run, monkeypatch, capsys):
    """They are drawn with few steps if the model is slow. If it is very slow, they come from the run."""
    first = first_pictures(model, run)
    assert (first.scheduler, first.grid) == ("ddpm", None)
    assert equal(first.samples, model.sample(12, 0, "ddpm", 10))
    now = iter(range(1000))
    monkeypatch.setattr(first_module.time, "monotonic", lambda: next(now))
    monkeypatch.setattr(model, "recommended_steps", {"ddpm": 30, "sde-dpmsolver++": 10}.get)
    monkeypatch.setattr(model, "num_train_timesteps", 30)
    monkeypatch.setattr(model, "_settings", {**model._settings, "num_train_timesteps": 30})
    first = first_pictures(model, run)
    assert first.scheduler == "sde-dpmsolver++"
    assert equal(first.samples, model.sample(12, 0, "sde-dpmsolver++", 10))
    assert next(now) < 30  # the 30 steps ended early
    monkeypatch.setattr(first_module, "PATIENCE", 2)
    first = first_pictures(model, run)
    assert (len(first.samples), first.grid.getpixel((0, 0))) == (0, 4)  # of step 4
    assert first_pictures(model, run / "nowhere").grid is None
    assert "The model is slow here" in capsys.readouterr().out


# ---- The page --------------------------------------------------------------------------------------------------------


@pytest.fixture
def functions(model):
    """Return what the buttons do, by name."""
    pytest.importorskip("gradio")
    from ddpm_hf.demo.page import make_page

    found = {function.api_name: function.fn for function in make_page(model, "digits", First()).fns.values()}
    return {name: functools.partial(results_of, function) for name, function in found.items()}


def results_of(function, *arguments):
    """Return the outputs of a button but the message, which is empty."""
    ((*results, message),) = function(*arguments)
    assert message == ""
    return results if len(results) > 1 else results[0]


def test_buttons(functions, model, pictures):
    assert equal(functions["sample"](2, "any", 2.0, "ddpm", 10, 7), [enlarge(picture) for picture in pictures])
    frames, position, x_t, x_0 = functions["denoise"]("any", 2.0, 10, 7)
    assert (len(frames), position.maximum, position.value) == (11, 10, 7)
    assert equal([x_t, x_0], [enlarge(picture) for picture in frames[7]])
    assert equal(frames[10], [pictures[0]] * 2)
    assert equal(functions["draw_two"]("any", 2.0, 10, 7), [enlarge(picture) for picture in pictures])
    photo = Image.new("RGB", (30, 20), "green")
    frames, note = functions["interpolate"](photo, enlarge(pictures[0]), 5, 3, "any", 2.0, 10, 0)
    assert len(frames) == 5
    assert note.startswith("From: It was cut to its centre, resized from 30 x 20")
    assert "To:" not in note

    background = functions["draw_one"]("any", 2.0, 10, 7).convert("RGBA")
    layer = Image.new("RGBA", background.size)
    ImageDraw.Draw(layer).rectangle((0, 0, 279, 139), fill="#ff4000")
    painted, note = functions["inpaint"]({"background": background, "layers": [layer]}, 2, 2, "any", 2.0, 10, 0)
    assert all(np.array_equal(pixels(image)[140:], pixels(enlarge(pictures[0]))[140:]) for image in painted)
    assert not np.array_equal(painted[0], painted[1])
    assert note == ""


def test_bad_input_is_answered_in_one_line(functions, pictures, tmp_path):
    import gradio as gr

    pictures[0].resize((99, 99)).save(tmp_path / "broken.png")
    with open(tmp_path / "broken.png", "r+b") as file:
        file.truncate(900)
    broken = Image.open(tmp_path / "broken.png")
    empty = {"background": None, "layers": []}
    untouched = {"background": pictures[0].convert("RGBA"), "layers": [Image.new("RGBA", (8, 8))]}
    for name, arguments, message in (
        ("sample", (2, "any", 2.0, "ddpm", 10, None), "The seed is empty; expected a whole number."),
        ("denoise", ("any", 2.0, 10, 1.5), "The seed is 1.5; expected a whole number."),
        ("interpolate", (None, broken, 5, 3, "any", 2.0, 10, 0), "Two pictures are needed: upload them, or"),
        (
            "interpolate",
            (broken, broken, 5, 3, "any", 2.0, 10, 0),
            "The picture cannot be read: image file is truncated",
        ),
        ("inpaint", (empty, 2, 2, "any", 2.0, 10, 0), "A picture is needed: upload one, or"),
        ("inpaint", (untouched, 2, 2, "any", 2.0, 10, 0), "Nothing is to be painted: draw over"),
    ):
        answers = functions[name].args[0](*arguments)
        *unchanged, shown = next(answers)  # the message is on the page, and the pictures stay
        assert unchanged == [gr.skip()] * len(unchanged)
        with pytest.raises(gr.Error, match=message) as error:  # for programs; a person has the message
            next(answers)
        assert (error.value.message, error.value.visible) == (shown, False)
        assert "\n" not in shown


def components(page):
    return {block.label: block for block in page.blocks.values() if getattr(block, "label", None)}


@pytest.fixture
def inputs(model, monkeypatch):
    """Return the components that take pictures, by label, with the limits that run_demo sets."""
    pytest.importorskip("gradio")
    from ddpm_hf.demo import page, parts

    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    parts.limit_pictures()
    return components(page.make_page(model, "digits", First()))


EDITOR = "Draw over the part to repaint"


def huge_picture(side):
    """Return a small PNG file of many black pixels."""
    rows = zlib.compressobj(9)
    content = b"".join([*(rows.compress(bytes(1 + (side + 7) // 8)) for _ in range(side)), rows.flush()])

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_pictures_of_too_many_pixels_are_refused_before_they_are_read(inputs, tmp_path):
    import gradio as gr
    from gradio.components.image_editor import EditorData, EditorDataBlobs
    from gradio.data_classes import FileData, ImageData

    content = huge_picture(13_000)
    assert len(content) < 100_000
    (tmp_path / "huge.png").write_bytes(content)
    path, file = str(tmp_path / "huge.png"), FileData(path=str(tmp_path / "huge.png"))
    inputs[EDITOR].blob_storage["some id"] = EditorDataBlobs(background=content, layers=[], composite=None)
    url = f"data:image/png;base64,{base64.b64encode(content).decode()}"
    for label, payload in (
        ("From", ImageData(path=path)),
        ("From", ImageData(path=path, orig_name="x.gif")),
        ("To", ImageData(url=url)),
        (EDITOR, EditorData(background=file, layers=[], composite=None)),
        (EDITOR, EditorData(background=None, layers=[file], composite=None)),
        (EDITOR, EditorData(background=None, layers=[], composite=file)),
        (EDITOR, EditorData(background=None, layers=[], composite=None, id="some id")),
    ):
        with pytest.raises(
            gr.Error, match=r"^'The picture is too large: expected at most 25 million pixels\.'$"
        ) as error:
            inputs[label].preprocess(payload)
        assert error.value.duration is None  # it stays


def test_too_many_layers_are_refused(inputs, pictures, tmp_path):
    import gradio as gr
    from gradio.components.image_editor import EditorData
    from gradio.data_classes import FileData

    pictures[0].save(tmp_path / "a.png")
    file = FileData(path=str(tmp_path / "a.png"))
    with pytest.raises(gr.Error, match="too many layers over the picture; expected at most 8"):
        inputs[EDITOR].preprocess(EditorData(background=file, layers=[file] * 9, composite=None))
    assert len(inputs[EDITOR].preprocess(EditorData(background=file, layers=[file] * 8, composite=None))["layers"]) == 8


@pytest.mark.parametrize("content", [b"", b"no picture", b"\x89PNG\r\n\x1a\n", huge_picture(8)[:45]])
def test_files_that_are_no_pictures(inputs, tmp_path, content):
    import gradio as gr
    from gradio.data_classes import ImageData

    (tmp_path / "a.png").write_bytes(content)
    with pytest.raises(gr.Error):
        inputs["From"].preprocess(ImageData(path=str(tmp_path / "a.png"))).load()


def test_what_gradio_is_asked_for(run, monkeypatch):
    gradio = pytest.importorskip("gradio")

    asked = {}
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    monkeypatch.setattr(gradio.Blocks, "launch", lambda page, **options: asked.update(options))
    cli.main(["demo", str(run), "--share"])
    assert (asked["max_file_size"], asked["share"]) == ("20mb", True)
    assert 2 * Image.MAX_IMAGE_PIXELS == 25_000_000
    cli.main(["demo", str(run)])
    assert asked["share"] is False


def test_settings(model):
    """Settings begin with what the model recommends. Classes are offered where there are some."""
    pytest.importorskip("gradio")
    from ddpm_hf.demo.page import make_page
    from ddpm_hf.demo.parts import chosen_classes

    first = First("unipc", model.sample(2, 0, "unipc", 5))
    page = make_page(model, "digits", first)
    shown = components(page)
    assert not shown["Class"].visible and not shown["Guidance"].visible
    assert shown["Scheduler"].value == "unipc"
    assert shown["Scheduler"].choices[:2] == [("DDPM (10 steps)", "ddpm"), ("DDIM (10 steps)", "ddim")]
    assert {block.value for block in page.blocks.values() if getattr(block, "label", None) == "Steps"} == {10}
    assert len(shown["Samples"].value) == 2
    assert shown["From"].value and shown["To"].value and shown[EDITOR].value
    grid = First("unipc", grid=Image.new("L", (20, 20)))
    (only,) = components(make_page(model, "digits", grid))["Samples"].value
    assert only["caption"] == "The newest samples of the run"

    model.labels = ("one", "two")
    page = make_page(model, "digits", First())
    offered = [block for block in page.blocks.values() if getattr(block, "label", None) == "Class"]
    assert [[name for name, _ in block.choices] for block in offered] == [
        ["each in turn", "any", "one", "two"],
        *[["any", "one", "two"]] * 3,
    ]
    assert all(block.visible for block in offered) and components(page)["Guidance"].visible
    assert chosen_classes(model, "each in turn", 3.0) == Classes(("one", "two"), 3.0)
    assert chosen_classes(model, "any", 3.0) == Classes()
    assert chosen_classes(model, "two", 3.0) == Classes(("two",), 3.0)
    model.takes_no_class = False
    assert chosen_classes(model, "two", 3.0) == Classes(("two",), 1.0)


def test_a_student_draws_with_its_own_steps_alone(model):
    gradio = pytest.importorskip("gradio")
    from ddpm_hf.demo.page import make_page

    pipeline = DDPMPipelineCustom(model.unet, DDIMScheduler(10), 2, {"steps": 2, "guidance_scale": 3.0})
    student = DemoModel(pipeline)
    first = first_pictures(student, Path("nowhere"))
    assert first.scheduler == "ddim" and len(first.samples) == first_module.NUM_FIRST
    page = make_page(student, "student", first)
    tabs = [block.label for block in page.blocks.values() if isinstance(block, gradio.Tab)]
    assert tabs == ["Sample"] and student.recommended_steps("ddim") == 2
    steps = components(page)["Steps"]
    assert (steps.maximum, steps.value, steps.interactive) == (2, 2, False)
    assert not components(page)["Guidance"].visible


def test_without_gradio(run, monkeypatch):
    monkeypatch.delitem(sys.modules, "ddpm_hf.demo.page", raising=False)
    monkeypatch.setitem(sys.modules, "gradio", None)
    with pytest.raises(SystemExit) as stop:
        cli.main(["demo", str(run)])
    assert stop.value.code == 'ddpm-hf: error: the demo needs Gradio: pip install "ddpm-hf[demo]".'


@pytest.mark.slow
def test_other_commands_do_not_wait_for_gradio():
    code = "import sys, ddpm_hf.cli; assert 'gradio' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


# ---- Served ----------------------------------------------------------------------------------------------------------


class Server:
    """A process that serves a page, and its address."""

    def __init__(self, *command, cwd, **environment):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}"
        clean = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
        environment = {**clean, **environment, "GRADIO_SERVER_PORT": str(port), "PYTHONUNBUFFERED": "1"}
        output = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT}
        self.process = subprocess.Popen([sys.executable, *command], cwd=cwd, env=environment, text=True, **output)

    def __enter__(self):
        for _ in range(600):
            try:
                self.read(self.url)
                return self
            except OSError:
                assert self.process.poll() is None, self.process.stdout.read()
                time.sleep(0.2)
        self.process.kill()
        raise TimeoutError(self.url)

    def __exit__(self, *exception):
        self.process.terminate()
        self.said = self.process.communicate()[0]

    def read(self, url):
        with urllib.request.urlopen(url, timeout=60) as answer:
            return answer.read()


@pytest.mark.slow
def test_a_space_answers_where_nothing_else_is(run, model, tmp_path):
    client = pytest.importorskip("gradio_client")
    cli.main(["push", str(run), "--space", "--no_upload"])
    space = shutil.move(run / "space", tmp_path / "space")
    with open(space / "ddpm_hf" / "demo" / "page.py", "a") as file:
        file.write('\nprint("the copy of the Space")\n')
    with Server("app.py", cwd=space) as server:
        answer = client.Client(server.url, verbose=False).predict(2, None, 2.0, "ddpm", 10, 7, api_name="/sample")
    images = [Image.open(entry["image"]) for entry in answer[0]]
    assert equal(images, [enlarge(image) for image in model.sample(2, 7, "ddpm", 10)])
    assert "the copy of the Space" in server.said


FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1100,1300",
)  # fmt: skip


class Visitor:
    """A browser, and what a person does in it. Screenshots go to `folder`."""

    def __init__(self, driver, server, folder):
        self.driver, self.server, self.folder = driver, server, folder
        driver.get(server.url)

    def wait(self, condition, what):
        from selenium.common import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        changing = [StaleElementReferenceException]  # the page is being drawn
        return WebDriverWait(self.driver, 60, ignored_exceptions=changing).until(lambda _: condition(), what)

    def visible(self, css, text=None):
        found = [e for e in self.driver.find_elements("css selector", css) if e.is_displayed()]
        return [e for e in found if text is None or e.text.strip() == text]

    def click(self, css, text):
        self.wait(lambda: self.visible(css, text), f"{css} {text}")[0].click()

    def open(self, tab):
        self.click("button[role=tab]", tab)

    def press(self, button):
        self.click("button.lg", button)

    def pictures(self, number):
        """Return the pictures on the page as arrays, once there are so many and all are loaded."""

        def loaded():
            images = self.visible("img")
            return images if len(images) == number and all(i.get_property("naturalWidth") for i in images) else None

        images = self.wait(loaded, f"{number} pictures")
        time.sleep(0.5)  # the progress bar fades
        return [self.content(image) for image in images]

    def content(self, image):
        return pixels(Image.open(io.BytesIO(self.server.read(image.get_attribute("src")))).convert("L"))

    def says(self, message):
        return any(message in place.text for place in self.visible(".message"))

    def becomes_a_phone(self):
        screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
        time.sleep(1)

    def screenshot(self, name):
        self.driver.save_screenshot(str(self.folder / f"{name}.png"))


@pytest.fixture
def visitor(run, tmp_path):
    webdriver = pytest.importorskip("selenium.webdriver")
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    pytest.importorskip("gradio")
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with Server("-m", "ddpm_hf.cli", "demo", str(run), cwd=tmp_path, PYTHONPATH=str(ROOT)) as server:
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield Visitor(driver, server, tmp_path)
        finally:
            driver.quit()


@pytest.mark.slow
def test_a_visit(visitor, model):
    """Use all tabs. They show the pictures of the model, enlarged. No request leaves this machine."""
    expected = [pixels(enlarge(image)) for image in model.sample(12, 0, "ddpm", 10)]
    assert equal(visitor.pictures(12), expected)  # the page opens with them
    assert all(picture.std() > 0 for picture in expected)
    seed = visitor.visible("input[type=number]")[-1]
    seed.clear()
    seed.send_keys("1.5")
    visitor.press("Sample")
    visitor.wait(lambda: visitor.says("The seed is 1.5; expected a whole number."), "a message")
    assert equal(visitor.pictures(12), expected)
    visitor.click("button", "Random seed")
    chosen = int(visitor.wait(lambda: seed.get_property("value").isdecimal() and seed.get_property("value"), "a seed"))
    visitor.press("Sample")
    others = [pixels(enlarge(image)) for image in model.sample(12, chosen, "ddpm", 10)]
    visitor.wait(lambda: equal(visitor.pictures(12), others), "other pictures")
    assert not visitor.says("The seed")
    visitor.screenshot("sample")

    visitor.open("Denoise")
    visitor.press("Denoise")
    frames = model.denoise(0, 10)
    visitor.pictures(2)
    slider = visitor.visible("input[type=range]")[-1]
    for place in (7, 6, 5):
        x_t, x_0 = (pixels(enlarge(picture)) for picture in frames[place])
        visitor.wait(lambda x_t=x_t, x_0=x_0: equal(visitor.pictures(2), [x_t, x_0]), f"frame {place}")
        slider.send_keys("\ue012")  # the arrow to the left
    visitor.screenshot("denoise")

    visitor.open("Interpolate")
    assert equal(visitor.pictures(2), expected[:2])
    visitor.press("Interpolate")
    frames = visitor.pictures(12)[2:]
    assert len({frame.tobytes() for frame in frames}) == 10
    visitor.screenshot("interpolate")

    visitor.open("Inpaint")
    visitor.press("Inpaint")
    visitor.wait(lambda: visitor.says("Nothing is to be painted: draw over"), "a message")
    draw_over(visitor)
    visitor.press("Inpaint")
    for picture in visitor.pictures(4):
        assert np.array_equal(picture[210:], expected[0][210:])
        assert not np.array_equal(picture[105:175, 105:175], expected[0][105:175, 105:175])
    assert not visitor.says("Nothing is to be painted")
    visitor.screenshot("inpaint")

    visitor.becomes_a_phone()
    assert len(visitor.visible("button[role=tab]")) == 4
    for tab, number in (("Sample", 12), ("Denoise", 2), ("Interpolate", 12), ("Inpaint", 4)):
        visitor.open(tab)
        visitor.pictures(number)
        places = [place.rect for place in (*visitor.visible("img"), *visitor.visible("button.primary"))]
        assert all(place["x"] >= 0 and place["x"] + place["width"] <= 390 for place in places)
        assert all(place["y"] + place["height"] <= 844 for place in places)
        assert places[-1]["y"] >= max(place["y"] for place in places[:-1])
        visitor.screenshot(f"{tab} on a phone")

    asked = [json.loads(entry["message"])["message"] for entry in visitor.driver.get_log("performance")]
    asked = [
        message["params"]["request"]["url"] for message in asked if message["method"] == "Network.requestWillBeSent"
    ]
    assert [url for url in asked if not url.startswith((visitor.server.url, "data:", "blob:", "chrome:"))] == []


def draw_over(visitor):
    """Draw strokes over the middle of the picture in the editor."""
    from selenium.webdriver import ActionChains

    visitor.wait(lambda: visitor.visible("button[aria-label='Brush Size']"), "a picture in the editor")
    (canvas, *_) = visitor.visible("canvas")
    strokes = ActionChains(visitor.driver).move_to_element_with_offset(canvas, -40, -30).click_and_hold()
    for x, y in ((80, 0), (0, 30), (-80, 0)):
        strokes.move_by_offset(x, y)
    strokes.release().perform()
    time.sleep(1)
