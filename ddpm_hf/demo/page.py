"""The demo of a model: a page of four tabs in the browser, made with Gradio. [`DemoModel`] computes what they show.

The page also works without the internet: it uses no fonts or scripts of other servers, and no analytics.
"""

import functools
import os
import warnings
from collections.abc import Callable
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
from PIL import Image

from ddpm_hf.config import GUIDANCE_SCALE
from ddpm_hf.demo.model import DemoModel, enlarge
from ddpm_hf.sampling import open_model
from ddpm_hf.schedulers import SCHEDULERS

ANY_CLASS = "any"
MOST_PIXELS = 25_000_000  # most pixels of a picture; its first bytes tell how many there are
MOST_LAYERS = 8  # most layers that are drawn over a picture
MOST_BYTES = "20mb"  # largest file that is uploaded
DAY = 24 * 60 * 60  # seconds; older pictures are deleted from the disk
ONE_AT_A_TIME = {"concurrency_id": "model", "concurrency_limit": 1}  # one call of the model at a time
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
CSS = """
.app {max-width: 1000px !important}
.grid-wrap {min-height: 0 !important; overflow: auto !important}
img {image-rendering: pixelated}
"""


def run_demo(
    source: str,
    checkpoint: str | None = None,
    revision: str | None = None,
    server_name: str | None = None,
    server_port: int | None = None,
    open_browser: bool = False,
    title: str | None = None,
):
    """Serve the demo of a model until the process is stopped.

    Args:
        source, checkpoint, revision: See [`open_model`].
        server_name (`str`, *optional*): Address to listen at. The default is GRADIO_SERVER_NAME, or this machine alone.
        server_port (`int`, *optional*): The default is GRADIO_SERVER_PORT, or the first free port from 7860 on.
        open_browser (`bool`): Whether to show the page at once.
        title (`str`, *optional*): Heading of the page. The default is the name of the folder or repository.

    Raises:
        ValueError: See [`open_model`], or if the model's samples are no pictures.
        OSError: If the model cannot be read, or the port is taken.
    """
    model = DemoModel(open_model(source, checkpoint, None, revision))
    limit_pictures()
    page = make_page(model, title or Path(source).resolve().name)
    page.launch(
        server_name=server_name,
        server_port=server_port,
        inbrowser=open_browser,
        share=False,
        max_file_size=MOST_BYTES,
        show_error=True,  # also errors that Gradio raises itself, about files that are no pictures
        ssr_mode=False,
        footer_links=[],
        theme=THEME,
        css=CSS,
    )


def limit_pictures():
    """Make PIL refuse pictures of too many pixels when it opens them, before it allocates the pixels.

    This holds for all pictures that the process opens.
    """
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # PIL warns above this, and refuses above twice this
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def make_page(model: DemoModel, title: str) -> gr.Blocks:
    """Return the page, ready to launch."""
    width, height = model.size
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        gr.Markdown(f"# {title}\nA denoising diffusion model of pictures of {width} x {height} pixels.")
        with gr.Tab("Sample"):
            _add_sample(model)
        with gr.Tab("Denoise"):
            _add_denoise(model)
        if model.takes_pictures:
            with gr.Tab("Interpolate"):
                _add_interpolate(model)
            with gr.Tab("Inpaint"):
                _add_inpaint(model)
    return page


def _add_sample(model: DemoModel):
    names = model.class_names
    with gr.Row():
        with gr.Column(scale=1):
            num_images = gr.Slider(1, 16, 9, step=1, label="Pictures")
            class_name = gr.Dropdown([ANY_CLASS, *(names or [])], label="Class", visible=bool(names))
            guidance = gr.Slider(0, 10, GUIDANCE_SCALE, label="Guidance towards the class", visible=bool(names))
            scheduler = gr.Dropdown(list(SCHEDULERS), value="ddpm", label="Scheduler")
            steps, seed = _steps(model, 100), _seed()
            button = gr.Button("Sample", variant="primary")
        with gr.Column(scale=2):
            pictures = gr.Gallery(label="Samples", columns=3, format="png", object_fit="contain", height="auto")

    @_friendly
    def sample(num_images, class_name, guidance, scheduler, steps, seed, progress=gr.Progress()):
        class_name = None if class_name == ANY_CLASS else class_name
        images = model.sample(num_images, seed, scheduler, steps, class_name, guidance, progress.tqdm)
        return [enlarge(image) for image in images]

    inputs = [num_images, class_name, guidance, scheduler, steps, seed]
    button.click(sample, inputs, pictures, api_name="sample", **ONE_AT_A_TIME)


def _add_denoise(model: DemoModel):
    frames = gr.State([])
    with gr.Row():
        with gr.Column(scale=1):
            steps, seed = _steps(model, 100), _seed()
            button = gr.Button("Denoise", variant="primary")
        with gr.Column(scale=2):
            position = gr.Slider(0, 1, 0, step=1, label="From noise to sample", interactive=True)
            with gr.Row():
                buttons = ["fullscreen", "download"]
                x_t = gr.Image(label="x_t", format="png", interactive=False, buttons=buttons)
                x_0 = gr.Image(label="x_0 predicted from it", format="png", interactive=False, buttons=buttons)

    @_friendly
    def denoise(steps, seed, progress=gr.Progress()):
        pairs = model.denoise(seed, steps, progress.tqdm)
        last = len(pairs) - 1
        return pairs, gr.Slider(maximum=last, value=last), *show(pairs, last)

    def show(pairs, position):
        return [enlarge(picture) for picture in pairs[position]] if pairs else (None, None)

    button.click(denoise, [steps, seed], [frames, position, x_t, x_0], api_name="denoise", **ONE_AT_A_TIME)
    position.input(
        show, [frames, position], [x_t, x_0], show_progress="hidden", trigger_mode="always_last", api_name=False
    )


def _add_interpolate(model: DemoModel):
    T = model.num_train_timesteps
    with gr.Row():
        with gr.Column(scale=1):
            num_frames = gr.Slider(3, 20, 10, step=1, label="Frames")
            timestep = gr.Slider(0, T, T // 4, step=1, label="Noising steps", info="More leave the model more freedom.")
            steps, seed = _steps(model, 100), _seed()
            drawing = gr.Button("Draw two pictures")
            button = gr.Button("Interpolate", variant="primary")
        with gr.Column(scale=2):
            with gr.Row():
                one, another = (
                    _limited(gr.Image(label=label, type="pil", image_mode=None, format="png", sources=["upload"]))
                    for label in ("From", "To")
                )
            note = gr.Markdown()
            strip = gr.Gallery(label="Frames", columns=5, format="png", object_fit="contain", height="auto")

    @_friendly
    def draw(steps, seed, progress=gr.Progress()):
        return [enlarge(image) for image in model.sample(2, seed, "ddpm", steps, track=progress.tqdm)]

    @_friendly
    def interpolate(one, another, num_frames, timestep, steps, seed, progress=gr.Progress()):
        if one is None or another is None:
            raise ValueError("Two pictures are needed: upload them, or let the model draw them.")
        images = model.interpolate(one, another, num_frames, timestep, seed, steps, progress.tqdm)
        return [enlarge(image) for image in images], _notes(model, From=one, To=another)

    drawing.click(draw, [steps, seed], [one, another], api_name="draw_two", **ONE_AT_A_TIME)
    inputs = [one, another, num_frames, timestep, steps, seed]
    button.click(interpolate, inputs, [strip, note], api_name="interpolate", **ONE_AT_A_TIME)


def _add_inpaint(model: DemoModel):
    with gr.Row():
        with gr.Column(scale=1):
            num_images = gr.Slider(1, 8, 4, step=1, label="Pictures")
            num_resamples = gr.Slider(1, 10, 5, step=1, label="Resamplings", info="More make the edges fit better.")
            steps, seed = _steps(model, 50), _seed()
            drawing = gr.Button("Draw one for me")
            button = gr.Button("Inpaint", variant="primary")
        with gr.Column(scale=2):
            editor = _limited(
                gr.ImageEditor(
                    label="Draw over the part to repaint",
                    type="pil",
                    format="png",
                    sources=["upload"],
                    transforms=[],
                    layers=False,
                    brush=gr.Brush(default_size=40, colors=["#ff4000"], color_mode="fixed"),
                )
            )
            note = gr.Markdown()
            pictures = gr.Gallery(label="Painted", columns=4, format="png", object_fit="contain", height="auto")

    @_friendly
    def draw(steps, seed, progress=gr.Progress()):
        return enlarge(model.sample(1, seed, "ddpm", steps, track=progress.tqdm)[0])

    @_friendly
    def inpaint(drawn, num_images, num_resamples, steps, seed, progress=gr.Progress()):
        if drawn is None or drawn["background"] is None:
            raise ValueError("A picture is needed: upload one, or let the model draw it.")
        picture = drawn["background"]
        images = model.inpaint(picture, mask_of(drawn), num_images, num_resamples, seed, steps, progress.tqdm)
        return [enlarge(image) for image in images], _notes(model, The_picture=picture)

    drawing.click(draw, [steps, seed], editor, api_name="draw_one", **ONE_AT_A_TIME)
    inputs = [editor, num_images, num_resamples, steps, seed]
    button.click(inpaint, inputs, [pictures, note], api_name="inpaint", **ONE_AT_A_TIME)


def mask_of(drawn: dict) -> Image.Image:
    """Return what a person drew over the picture in an editor, white on black."""
    mask = Image.new("L", drawn["background"].size)
    for layer in drawn["layers"]:
        mask.paste(255, mask=layer.getchannel("A"))
    return mask


def _steps(model: DemoModel, default: int) -> gr.Slider:
    T = model.num_train_timesteps
    return gr.Slider(min(4, T), T, min(default, T), step=1, label="Steps")  # PNDM takes no fewer than 4


def _seed() -> gr.Number:
    return gr.Number(0, label="Seed", precision=0)


def _notes(model: DemoModel, **pictures: Image.Image) -> str:
    notes = {name.replace("_", " "): model.fit(picture)[1] for name, picture in pictures.items()}
    return " ".join(f"{name}: {note}" for name, note in notes.items() if note)


def _limited(component: gr.Image | gr.ImageEditor) -> gr.Image | gr.ImageEditor:
    """Show errors about a file in the page. Gradio opens the file in the component, before it calls our function."""
    preprocess = component.preprocess

    @_friendly
    def checked(payload):
        sent = component.blob_storage.get(payload.id, payload) if getattr(payload, "id", None) else payload
        if len(getattr(sent, "layers", None) or ()) > MOST_LAYERS:
            raise ValueError(f"There are too many layers over the picture; expected at most {MOST_LAYERS}.")
        return preprocess(payload)

    component.preprocess = checked
    return component


def _friendly(function: Callable) -> Callable:
    """Show the errors that a function raises about its input in the page."""

    @functools.wraps(function)
    def wrapped(*arguments):
        try:
            return function(*arguments)
        except Image.DecompressionBombError as error:
            most = MOST_PIXELS // 10**6
            raise gr.Error(
                f"The picture is too large: expected at most {most} million pixels.", print_exception=False
            ) from error
        except (ValueError, OSError, SyntaxError) as error:  # PIL raises SyntaxError about broken pictures
            raise gr.Error(str(error), print_exception=False) from error

    return wrapped
