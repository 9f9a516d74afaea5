"""The demo of a model: a page of four tabs in the browser, made with Gradio. [`DemoModel`] computes what they show.

The page also works without the internet: it uses no fonts or scripts of other servers, and no analytics.
"""

import os
from pathlib import Path

os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported

import gradio as gr
from PIL import Image

from ddpm_hf.demo.first import NUM_FIRST, First, first_pictures
from ddpm_hf.demo.model import DemoModel, enlarge
from ddpm_hf.demo.parts import (
    chosen_classes,
    class_settings,
    connect,
    limit_pictures,
    limited,
    mask_of,
    message_box,
    seed_setting,
    steps_setting,
)
from ddpm_hf.sampling import open_model

MOST_BYTES = "20mb"  # largest file that is uploaded
DAY = 24 * 60 * 60  # seconds; older pictures are deleted from the disk
FEW_STEPS = 50  # where an inpainting begins: it takes each step several times
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"])
CSS = """
.app {max-width: 1100px !important}
img {image-rendering: pixelated}
/* Galleries show all pictures, in their columns on any screen. */
.grid-wrap {min-height: 0 !important; max-height: none !important; overflow: visible !important}
.grid-container {grid-template-rows: none !important; grid-auto-rows: auto !important}
.grid-container {grid-template-columns: repeat(var(--grid-cols), minmax(0, 1fr)) !important}
/* Messages replace the word Error, which would hide the pictures. */
.results .wrap:has(> .error) {display: none !important}
.message:not(:has(p)) {display: none}
.block.message {border-left: 4px solid #d00000; padding: 8px 12px}
.seed {align-items: end}
.seed button {white-space: nowrap; min-height: 42px}
@media (max-width: 700px) {
  .app {padding: 8px 12px !important}
  .tab-container button {padding: 0 10px !important}
  .results {order: -1}  /* before the button and the settings */
}
"""


def run_demo(
    source: str,
    checkpoint: str | None = None,
    revision: str | None = None,
    server_name: str | None = None,
    server_port: int | None = None,
    open_browser: bool = False,
    share: bool = False,
    title: str | None = None,
):
    """Serve the demo of a model until the process is stopped.

    Args:
        source, checkpoint, revision: See [`open_model`].
        server_name (`str`, *optional*): Address to listen at. The default is GRADIO_SERVER_NAME, or this machine alone.
        server_port (`int`, *optional*): The default is GRADIO_SERVER_PORT, or the first free port from 7860 on.
        open_browser (`bool`): Whether to show the page at once.
        share (`bool`): Whether to ask Gradio for a public address of the page, which others reach through its servers.
        title (`str`, *optional*): Heading of the page. The default is the name of the folder or repository.

    Raises:
        ValueError: See [`open_model`], or if the model's samples are no pictures.
        OSError: If the model cannot be read, or the port is taken.
    """
    model = DemoModel(open_model(source, checkpoint, None, revision))
    limit_pictures()
    page = make_page(model, title or Path(source).resolve().name, first_pictures(model, Path(source)))
    page.launch(
        server_name=server_name,
        server_port=server_port,
        inbrowser=open_browser,
        share=share,
        max_file_size=MOST_BYTES,
        show_error=True,  # also errors that Gradio raises itself, about files that are no pictures
        ssr_mode=False,
        footer_links=[],
        theme=THEME,
        css=CSS,
    )


def make_page(model: DemoModel, title: str, first: First) -> gr.Blocks:
    """Return the page, ready to launch."""
    width, height = model.size
    with gr.Blocks(title=title, analytics_enabled=False, delete_cache=(DAY, DAY)) as page:
        gr.Markdown(f"# {title}\nA diffusion model of pictures of {width} x {height} pixels.")
        with gr.Tabs():
            with gr.Tab("Sample"):
                _add_sample(model, first)
            if not model.is_student:  # which knows few timesteps
                with gr.Tab("Denoise"):
                    _add_denoise(model)
            if model.takes_pictures and not model.is_student:
                with gr.Tab("Interpolate"):
                    _add_interpolate(model, first)
                with gr.Tab("Inpaint"):
                    _add_inpaint(model, first)
    return page


def _add_sample(model: DemoModel, first: First):
    schedulers = [(f"{name} ({model.recommended_steps(key)} steps)", key) for key, name in model.schedulers.items()]
    shown: list = [enlarge(sample) for sample in first.samples]
    if first.grid is not None:
        shown = [(first.grid, "The newest samples of the run")]
    with gr.Row():
        with gr.Column(scale=1):
            button = gr.Button("Sample", variant="primary")
            message = message_box()
            classes = class_settings(model, in_turn=True)
            num_images = gr.Slider(1, 16, NUM_FIRST, step=1, label="Pictures")
            scheduler = gr.Dropdown(
                schedulers,
                value=first.scheduler,
                label="Scheduler",
                info="How the noise is removed, and steps that suffice.",
            )
            steps, seed = steps_setting(model, model.recommended_steps(first.scheduler)), seed_setting()
        with gr.Column(scale=2, elem_classes="results"):
            pictures = _gallery("Samples", 4, shown)

    def sample(num_images, class_name, guidance, scheduler, steps, seed, progress=gr.Progress()):
        wish = chosen_classes(model, class_name, guidance)
        images = model.sample(num_images, seed, scheduler, steps, wish, progress.tqdm)
        return [enlarge(image) for image in images]

    scheduler.input(model.recommended_steps, scheduler, steps, queue=False, api_visibility="private")
    connect(button, sample, [num_images, *classes, scheduler, steps, seed], [pictures], message, "sample")


def _add_denoise(model: DemoModel):
    frames = gr.State([])
    with gr.Row():
        with gr.Column(scale=1):
            button = gr.Button("Denoise", variant="primary")
            message = message_box()
            classes = class_settings(model)
            steps, seed = steps_setting(model, model.steps), seed_setting()
        with gr.Column(scale=2, elem_classes="results"):
            with gr.Row():
                x_t, x_0 = (
                    gr.Image(
                        label=label, format="png", interactive=False, buttons=["fullscreen", "download"], min_width=120
                    )
                    for label in ("Noisy", "Predicted")
                )
            position = gr.Slider(
                0,
                1,
                0,
                step=1,
                label="From noise to sample",
                info="The noisy picture is x_t, and the prediction from it x_0.",
                interactive=True,
            )

    def denoise(class_name, guidance, steps, seed, progress=gr.Progress()):
        pairs = model.denoise(seed, steps, chosen_classes(model, class_name, guidance), progress.tqdm)
        last = len(pairs) - 1
        telling = 3 * last // 4  # where the noisy picture and the prediction differ, and show something
        return pairs, gr.Slider(maximum=last, value=telling), *show(pairs, telling)

    def show(pairs, position):
        return [enlarge(picture) for picture in pairs[position]] if pairs else (None, None)

    connect(button, denoise, [*classes, steps, seed], [frames, position, x_t, x_0], message, "denoise")
    position.input(
        show,
        [frames, position],
        [x_t, x_0],
        show_progress="hidden",
        trigger_mode="always_last",
        api_visibility="private",
    )


def _add_interpolate(model: DemoModel, first: First):
    T = model.num_train_timesteps
    given = [enlarge(sample) for sample in first.samples[:2]] or (None, None)
    with gr.Row():
        with gr.Column(scale=1):
            button = gr.Button("Interpolate", variant="primary")
            drawing = gr.Button("Draw two pictures")
            message = message_box()
            classes = class_settings(model)
            num_frames = gr.Slider(3, 20, 10, step=1, label="Frames")
            timestep = gr.Slider(
                *(0, T, T // 4),
                step=1,
                label="Noising steps",
                info="Before both are mixed. With more, the model is freer.",
            )
            steps, seed = steps_setting(model, model.steps), seed_setting()
        with gr.Column(scale=2, elem_classes="results"):
            with gr.Row():
                one, another = (
                    limited(
                        gr.Image(
                            picture,
                            label=label,
                            type="pil",
                            image_mode=None,
                            format="png",
                            sources=["upload"],
                            height=200,
                            min_width=120,
                        )
                    )
                    for label, picture in zip(("From", "To"), given)
                )
            note = gr.Markdown()
            strip = _gallery("Frames", 5)

    def draw(class_name, guidance, steps, seed, progress=gr.Progress()):
        wish = chosen_classes(model, class_name, guidance)
        return [enlarge(image) for image in model.sample(2, seed, "ddpm", steps, wish, progress.tqdm)]

    def interpolate(one, another, num_frames, timestep, class_name, guidance, steps, seed, progress=gr.Progress()):
        if one is None or another is None:
            raise ValueError("Two pictures are needed: upload them, or let the model draw them.")
        wish = chosen_classes(model, class_name, guidance)
        images = model.interpolate(one, another, num_frames, timestep, seed, steps, wish, progress.tqdm)
        return [enlarge(image) for image in images], _notes(model, From=one, To=another)

    inputs = [one, another, num_frames, timestep, *classes, steps, seed]
    connect(button, interpolate, inputs, [strip, note], message, "interpolate")
    connect(drawing, draw, [*classes, steps, seed], [one, another], message, "draw_two")


def _add_inpaint(model: DemoModel, first: First):
    given = enlarge(first.samples[0]) if first.samples else None
    with gr.Row():
        with gr.Column(scale=1):
            button = gr.Button("Inpaint", variant="primary")
            drawing = gr.Button("Draw one for me")
            message = message_box()
            classes = class_settings(model)
            num_images = gr.Slider(1, 8, 4, step=1, label="Pictures")
            num_resamples = gr.Slider(
                *(1, 10, 5),
                step=1,
                label="Resamplings",
                info="Of each step. With more, the edges fit better.",
            )
            steps, seed = steps_setting(model, min(FEW_STEPS, model.steps)), seed_setting()
        with gr.Column(scale=2, elem_classes="results"):
            editor = limited(
                gr.ImageEditor(
                    given,
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
            pictures = _gallery("Painted", 4)

    def draw(class_name, guidance, steps, seed, progress=gr.Progress()):
        wish = chosen_classes(model, class_name, guidance)
        return enlarge(model.sample(1, seed, "ddpm", steps, wish, progress.tqdm)[0])

    def inpaint(drawn, num_images, num_resamples, class_name, guidance, steps, seed, progress=gr.Progress()):
        if drawn is None or drawn["background"] is None:
            raise ValueError("A picture is needed: upload one, or let the model draw it.")
        picture, wish = drawn["background"], chosen_classes(model, class_name, guidance)
        images = model.inpaint(picture, mask_of(drawn), num_images, num_resamples, seed, steps, wish, progress.tqdm)
        return [enlarge(image) for image in images], _notes(model, The_picture=picture)

    inputs = [editor, num_images, num_resamples, *classes, steps, seed]
    connect(button, inpaint, inputs, [pictures, note], message, "inpaint")
    connect(drawing, draw, [*classes, steps, seed], [editor], message, "draw_one")


def _gallery(label: str, columns: int, shown: list | None = None) -> gr.Gallery:
    shape = {"columns": columns, "object_fit": "contain", "height": "auto"}
    return gr.Gallery(shown, label=label, show_label=False, format="png", **shape)  # a label would hide a corner


def _notes(model: DemoModel, **pictures: Image.Image) -> str:
    notes = {name.replace("_", " "): model.fit(picture)[1] for name, picture in pictures.items()}
    return " ".join(f"{name}: {note}" for name, note in notes.items() if note)
