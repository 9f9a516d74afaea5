"""What the tabs of the page have in common: settings with a line of help, messages that stay, and limits of files."""

import functools
import warnings
from collections.abc import Callable

import gradio as gr
from PIL import Image

from ddpm_hf.demo.model import NO_CLASS, DemoModel
from ddpm_hf.sampling import Classes
from ddpm_hf.schedulers import SCHEDULERS

ANY_CLASS, EACH_CLASS = "any", "each in turn"
MOST_PIXELS = 25_000_000  # most pixels of a picture; its first bytes tell how many there are
MOST_LAYERS = 8  # most layers that are drawn over a picture
RANDOM_SEED = "() => Math.floor(Math.random() * 1000000)"  # in the browser: no request, no waiting


# ---- Settings --------------------------------------------------------------------------------------------------------


def class_settings(model: DemoModel, in_turn: bool = False) -> list[gr.Dropdown | gr.Slider]:
    """Return the choice of a class, and the guidance towards it. An unconditional model shows neither.

    Args:
        model ([`DemoModel`]): The model.
        in_turn (`bool`): Whether each picture may have the next class; then this is the default.
    """
    more = [EACH_CLASS] * in_turn + [ANY_CLASS] * model.takes_no_class
    choices = [*more, *model.labels]
    has_classes = bool(model.labels)
    return [
        gr.Dropdown(choices, value=choices[0], label="Class", info="What the pictures show.", visible=has_classes),
        gr.Slider(
            *(0, 10, 1),
            label="Guidance",
            info="Towards the class. 1: none. More: clearer, less varied.",
            visible=has_classes and model.takes_guidance,
        ),
    ]


def chosen_classes(model: DemoModel, choice: str | int, guidance_scale: float) -> Classes:
    """Return what the settings of [`class_settings`] ask for."""
    if not model.labels or choice == ANY_CLASS:
        return NO_CLASS
    labels = tuple(model.labels) if choice == EACH_CLASS else (choice,)
    return Classes(labels, guidance_scale if model.takes_guidance else 1.0)


def steps_setting(model: DemoModel, steps: int) -> gr.Slider:
    """Return the number of denoising steps, at least as many as every scheduler takes."""
    T = model.num_train_timesteps
    if model.is_student:
        info = "Of denoising, which the model learned for."
        return gr.Slider(0, steps, steps, step=1, label="Steps", info=info, interactive=False)
    help_line = "Of denoising. More take longer."
    fewest = max(offer.fewest for offer in SCHEDULERS.values())
    return gr.Slider(min(fewest, T), T, min(steps, T), step=1, label="Steps", info=help_line)


def seed_setting() -> gr.Number:
    """Return the seed, with a button for another one."""
    help_line = "The same one gives the same pictures."
    with gr.Row(equal_height=True, elem_classes="seed"):
        seed = gr.Number(0, label="Seed", info=help_line, scale=2, min_width=120)
        button = gr.Button("Random seed", size="sm", scale=1, min_width=110)
    button.click(None, None, seed, js=RANDOM_SEED, api_visibility="private")
    return seed


# ---- Messages --------------------------------------------------------------------------------------------------------


def message_box() -> gr.Markdown:
    """Return the place of the messages of a tab. It is hidden while there is none."""
    return gr.Markdown(elem_classes="message")


def connect(button: gr.Button, function: Callable, inputs: list, outputs: list, message: gr.Markdown, name: str):
    """Let a button call the model. An error is told in the page, and stays there until the next call.

    Args:
        button (`gr.Button`): The button.
        function (callable): Returns as many values as there are outputs.
        inputs, outputs (`list`): Components.
        message (`gr.Markdown`): Where the errors are told.
        name (`str`): Name of the function in the API. There, errors are exceptions.
    """

    @functools.wraps(function)
    def wrapped(*arguments):
        try:
            results = function(*arguments)
        except Exception as error:
            text = explained(error)
            yield *[gr.skip()] * len(outputs), text
            raise gr.Error(text, visible=False, print_exception=False) from error
        yield *(results if len(outputs) > 1 else [results]), ""

    button.click(None, None, message, js="() => ''", api_visibility="private")
    button.click(
        wrapped,
        inputs,
        [*outputs, message],
        api_name=name,
        show_progress_on=outputs,
        concurrency_id="model",  # one call of the model at a time
        concurrency_limit=1,
    )


def explained(error: Exception) -> str:
    """Return one line about an error in what a person asked for; raise all other errors again."""
    if isinstance(error, Image.DecompressionBombError):
        return f"The picture is too large: expected at most {MOST_PIXELS // 10**6} million pixels."
    if isinstance(error, (OSError, SyntaxError)):  # from Pillow
        return f"The picture cannot be read: {error}; upload another one."
    if isinstance(error, ValueError):
        return str(error)
    raise error


# ---- Pictures that are uploaded --------------------------------------------------------------------------------------


def limit_pictures():
    """Make PIL refuse pictures of too many pixels when it opens them, before it allocates the pixels.

    This holds for all pictures that the process opens.
    """
    Image.MAX_IMAGE_PIXELS = MOST_PIXELS // 2  # PIL warns above this, and refuses above twice this
    warnings.simplefilter("ignore", Image.DecompressionBombWarning)


def limited(component: gr.Image | gr.ImageEditor) -> gr.Image | gr.ImageEditor:
    """Show errors about a file in the page. Gradio opens the file in the component, before it calls our function."""
    preprocess = component.preprocess

    def checked(payload):
        try:
            sent = component.blob_storage.get(payload.id, payload) if getattr(payload, "id", None) else payload
            if len(getattr(sent, "layers", None) or ()) > MOST_LAYERS:
                raise ValueError(f"There are too many layers over the picture; expected at most {MOST_LAYERS}.")
            return preprocess(payload)
        except Exception as error:
            raise gr.Error(explained(error), duration=None, print_exception=False) from error

    component.preprocess = checked
    return component


def mask_of(drawn: dict) -> Image.Image:
    """Return what a person drew over the picture in an editor, white on black."""
    mask = Image.new("L", drawn["background"].size)
    for layer in drawn["layers"]:
        mask.paste(255, mask=layer.getchannel("A"))
    return mask
