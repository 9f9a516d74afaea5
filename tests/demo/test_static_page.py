"""The page of a static Space in a real browser. Its pictures are those of the pipelines from the same noise."""

import base64
import functools
import io
import json
import re
import shutil
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

import numpy as np
import philox
import pytest
import torch
from PIL import Image

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel, cli, pipeline_ddpm_custom
from ddpm_hf.other_schedulers import make_scheduler
from ddpm_hf.pipelines import ddpm_inpainting
from ddpm_hf.pipelines.ddpm_inpainting import DDPMInpaintingPipeline
from ddpm_hf.pipelines.ddpm_interpolation import slerp

H, W, T = 8, 16, 20
NAMES, FREQUENCIES = ["one", "two", "three"], [0.5, 0.2, 0.3]
LEVELS = 2  # of 255: weights of 16 bits in the page, and of 32 in the pipeline
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,900",
)  # fmt: skip


@pytest.fixture(scope="module")
def pipeline():
    """Make a model of colour pictures that are wider than high, with classes and a learned variance."""
    torch.manual_seed(0)
    unet = DDPMUNetModel(
        sample_size=(H, W), in_channels=3, out_channels=6, block_out_channels=(8, 8), layers_per_block=1,
        norm_num_groups=4, down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2, zero_init=False,
        num_class_embeds=4, class_names=NAMES, class_frequencies=FREQUENCIES,
    )  # fmt: skip
    return DDPMPipelineCustom(unet.eval(), DDPMLinearScheduler(num_train_timesteps=T, variance_type="learned_range"))


@pytest.fixture(scope="module")
def space(pipeline, tmp_path_factory):
    for name in ("onnx", "onnxscript", "onnxruntime", "selenium"):
        pytest.importorskip(name)
    if not (shutil.which("chromium") and shutil.which("chromedriver")):
        pytest.skip("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    from ddpm_hf.hub.onnxruntime_web import find_runtime

    try:
        find_runtime()
    except OSError as error:
        pytest.skip(str(error))
    run = tmp_path_factory.mktemp("made") / "digits"
    pipeline.save_pretrained(run)
    cli.main(["push", str(run), "--static_space", "--no_upload"])
    pipeline.scheduler = make_scheduler("ddim", pipeline.scheduler.config, 10)
    pipeline.set_progress_bar_config(disable=True)
    return run / "static_space"


class Visitor:
    """A browser, and what a person does in it."""

    def __init__(self, driver, url):
        self.driver, self.url = driver, url
        driver.get(url)

    def wait(self, condition, what):
        from selenium.webdriver.support.ui import WebDriverWait

        return WebDriverWait(self.driver, 60, 0.05).until(lambda _: condition(), what)

    def part(self, name):
        return self.driver.find_element("id", name)

    def set(self, name, value):
        code = "arguments[0].value = arguments[1]; arguments[0].dispatchEvent(new Event('input', {bubbles: true}))"
        self.driver.execute_script(code, self.part(name), value)

    def draw(self, tool):
        self.part(f"tab-{tool}").click()
        self.part("draw").click()
        return self.pictures(tool)

    def pictures(self, tool):
        """Wait until all steps are taken, and return the pictures."""
        self.wait(lambda: self.part("error").text or self.part("status").text.startswith("Done"), "pictures")
        assert not self.part("error").text
        return [self.content(each) for each in self.driver.find_elements("css selector", f"#{tool} figure canvas")]

    def content(self, canvas, mode="RGB"):
        url = self.driver.execute_script("return arguments[0].toDataURL()", canvas)
        return np.array(Image.open(io.BytesIO(base64.b64decode(url.split(",")[1]))).convert(mode))

    def captions(self, tool):
        return [each.text for each in self.driver.find_elements("css selector", f"#{tool} figcaption span")]

    def says(self, text):
        return self.wait(lambda: self.part("error").text == text, text)

    def requests(self):
        messages = [json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance")]
        sent = [message for message in messages if message["method"] == "Network.requestWillBeSent"]
        return [message["params"]["request"]["url"] for message in sent]


@pytest.fixture
def visitor(space, tmp_path):
    from selenium import webdriver

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (*FLAGS, f"--user-data-dir={tmp_path / 'profile'}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(tmp_path)})
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=space)) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        driver = webdriver.Chrome(options, webdriver.ChromeService(shutil.which("chromedriver")))
        try:
            yield Visitor(driver, f"http://127.0.0.1:{server.server_port}/")
        finally:
            driver.quit()
            server.shutdown()


@pytest.fixture
def given(monkeypatch):
    """Return the list of noises that the pipelines take in turns, instead of drawing some."""
    noises = []
    for module in (pipeline_ddpm_custom, ddpm_inpainting):
        monkeypatch.setattr(module, "randn_tensor", lambda *args, **options: noises.pop(0))
    return noises


def noise(seed, count, use=philox.START):
    return torch.from_numpy(np.stack([philox.noise(seed, i, use, (3, H, W)) for i in range(count)]))


def differ(some, others):
    """Return how many levels two lists of pictures differ."""
    assert len(some) == len(others)
    return max(np.abs(np.asarray(a, float) - np.asarray(b, float)).max() for a, b in zip(some, others))


def test_the_generator_of_the_page_is_philox():
    """The numbers are from the known answers of its authors."""
    words = philox.philox((0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0))
    assert [f"{word:x}" for word in words] == ["d16cfe09", "94fdcceb", "5001e420", "24126ea1"]


@pytest.mark.slow
def test_a_visit(visitor, space, pipeline, given, tmp_path):
    """Use everything on the page. No request leaves this machine."""
    # It opens with samples, in classes as often as in training.
    labels = [philox.label(0, i, FREQUENCIES) for i in range(12)]
    given.append(noise(0, 12))
    samples = pipeline(12, class_labels=[NAMES[i] for i in labels], num_inference_steps=T).images
    assert differ(visitor.pictures("sample"), samples) <= LEVELS
    assert visitor.captions("sample") == [NAMES[i] for i in labels]
    assert len(set(labels)) > 1

    # Samples with other settings.
    for name, value in (("seed", 7), ("class", 1), ("guidance", 3), ("count", 2), ("steps", 10)):
        visitor.set(name, value)
    guided = visitor.draw("sample")
    given.append(noise(7, 2))
    expected = pipeline(2, class_labels="two", guidance_scale=3.0, num_inference_steps=10)
    assert differ(guided, expected.images) <= LEVELS
    given.append(noise(7, 2))
    assert differ(guided, pipeline(2, class_labels="two", num_inference_steps=10).images) > LEVELS

    # The way out of the noise.
    visitor.set("sample-step", 0)
    start = (noise(7, 2) / 2 + 0.5).clamp(0, 1).mul(255).round().permute(0, 2, 3, 1)
    shown = visitor.driver.find_elements("css selector", "#sample figure canvas")
    assert differ([visitor.content(each) for each in shown], start) <= 1
    visitor.driver.find_element("css selector", "#sample [value=predicted]").click()
    assert differ([visitor.content(each) for each in shown], start) > LEVELS
    visitor.driver.find_element("css selector", "#sample .track button").click()
    visitor.wait(lambda: differ([visitor.content(each) for each in shown], guided) == 0, "the end of the replay")

    # A picture is saved, and another one is asked for and stopped.
    visitor.driver.find_element("css selector", "[aria-label='Save sample 2']").click()
    saved = tmp_path / "sample-2.png"
    visitor.wait(saved.exists, "a file")
    assert differ([Image.open(saved).convert("RGB")], guided[1:]) == 0
    visitor.driver.execute_script("arguments[0].click(); arguments[0].click()", visitor.part("draw"))
    visitor.wait(lambda: re.fullmatch(r"Stopped after \d of 10 steps\.", visitor.part("status").text), "a stop")

    # Frames from one noise to another.
    for name, value in (("guidance", 1), ("frames", 5), ("second-seed", 9), ("steps", T)):
        visitor.set(name, value)
    frames = visitor.draw("interpolate")
    given.append(slerp(noise(7, 1), noise(9, 1), torch.linspace(0, 1, 5).view(-1, 1, 1, 1)))
    assert differ(frames, pipeline(5, class_labels="two", num_inference_steps=T).images) <= LEVELS

    # A mask over a file.
    visitor.set("paintings", 2)
    visitor.set("resamplings", 3)
    visitor.part("tab-inpaint").click()
    visitor.part("draw").click()
    visitor.says("Nothing is to be painted: draw over a part of the picture first.")
    samples[0].save(tmp_path / "one.png")
    visitor.part("file").send_keys(str(tmp_path / "one.png"))
    mask = draw_mask(visitor)
    paintings = visitor.draw("inpaint")
    noises = [noise(7, 2, use) for use in (philox.START, *range(philox.LATER, philox.LATER + 5 * T))]
    given.extend(noises)
    painter = DDPMInpaintingPipeline(unet=pipeline.unet, scheduler=pipeline.scheduler)
    painter.set_progress_bar_config(disable=True)
    options = {"jump_length": 1, "num_resamples": 3, "num_inference_steps": T, "class_labels": "two"}
    expected = painter(samples[0], Image.fromarray(mask), 2, **options).images
    given.clear()
    assert differ(paintings, expected) <= LEVELS
    assert differ([each[mask == 0] for each in paintings], [np.array(samples[0])[mask == 0]] * 2) == 0

    # On a phone.
    screen = {"width": 390, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    visitor.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", screen)
    for tool in ("sample", "interpolate", "inpaint"):
        visitor.part(f"tab-{tool}").click()
        assert visitor.driver.execute_script("return document.documentElement.scrollWidth") <= 390
        place = visitor.part("draw").rect
        assert place["y"] + place["height"] <= 844
    assert [url for url in visitor.requests() if not url.startswith((visitor.url, "data:", "blob:", "chrome:"))] == []

    # Errors.
    visitor.set("seed", "")
    visitor.part("draw").click()
    visitor.says("The seed is empty or no number; expected a whole number from 0 to 4294967295.")
    (tmp_path / "no.png").write_text("no picture")
    visitor.part("file").send_keys(str(tmp_path / "no.png"))
    visitor.says("no.png cannot be read as a picture; choose a PNG or JPEG file.")
    visitor.driver.get((space / "index.html").as_uri())
    visitor.wait(lambda: "python -m http.server" in visitor.part("error").text, "how to serve the page")
    (space / "model.onnx").rename(space / "elsewhere.onnx")
    visitor.driver.get(visitor.url)
    visitor.says("model.onnx is missing (status 404).")


def draw_mask(visitor):
    """Draw with the arrow keys, clear it, and draw with the pointer; return the mask, white where to paint."""
    from selenium.webdriver import ActionChains, Keys

    _, overlay = visitor.driver.find_elements("css selector", "#easel canvas")

    def mask():
        return np.where(visitor.content(overlay, "RGBA")[..., 3] == 170, 255, 0).astype(np.uint8)

    visitor.set("brush", 2)
    visitor.driver.execute_script("arguments[0].focus()", overlay)
    ActionChains(visitor.driver).send_keys(Keys.LEFT, Keys.UP, Keys.UP, " ", Keys.RIGHT, Keys.RIGHT).perform()
    row, column = np.nonzero(mask())
    assert sorted(zip(column.tolist(), row.tolist())) == [(6, 2), (7, 1), (7, 2), (7, 3), (8, 2)]
    visitor.part("clear").click()
    assert not mask().any()
    strokes = ActionChains(visitor.driver).move_to_element_with_offset(overlay, -100, 0).click_and_hold()
    strokes.move_by_offset(150, 0).release().perform()
    drawn = mask()
    assert 0 < np.count_nonzero(drawn) < H * W / 2
    assert np.count_nonzero(drawn.any(axis=0)) > 150 / 320 * W  # the stroke has no gaps
    return drawn
