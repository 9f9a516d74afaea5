"""The model card: README.md of a run's folder, and of its repository on the Hub."""

import re
from pathlib import Path

import jinja2

from ddpm_hf.config import options_of_card
from ddpm_hf.files import replace_text
from ddpm_hf.forms import is_of
from ddpm_hf.hub.card_inputs import (
    read_average,
    read_evaluation,
    read_facts,
    read_metrics,
    read_options,
    read_side_file,
    read_unet_config,
)
from ddpm_hf.hub.card_merging import CARD, merge_cards, read_card
from ddpm_hf.hub.card_metadata import make_metadata, to_yaml
from ddpm_hf.hub.card_text import bare, literal, markdown, plain
from ddpm_hf.hub.card_training import average_sentence, base_model, base_sentence, command_of, describe_training
from ddpm_hf.hub.dataset_cards import describe_dataset, describe_preprocessing
from ddpm_hf.hub.links import MODEL, SPACE, STATIC_SPACE, project_links, repositories_of
from ddpm_hf.pipeline_ddpm_custom import RECOMMENDED_STEPS
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.run_files import ANIMATION, DENOISING, INDEX, LOSS, SAMPLES, list_samples
from ddpm_hf.schedulers import SCHEDULERS

TEMPLATE = Path(__file__).with_name("card_template.md")
_SAVE_ARRAY = "print(images[0].shape, images[0].dtype)  # an array of NumPy, in the range of the training data"
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+\.(?:png|webp))\)")


def write_card(folder: str | Path):
    """Write the card of a run, and keep what was written into it by hand.

    Args:
        folder (`str` or `Path`): The run, or any folder with a pipeline.

    Raises:
        ValueError: If the folder holds no pipeline, or the metadata of the old card is no YAML.
        OSError: If the card cannot be written.
    """
    path = Path(folder, CARD)
    old = read_card(path)
    card = merge_cards(render_card(folder), old)
    if card != old:
        replace_text(path, card)


def render_card(folder: str | Path, repo_id: str | None = None) -> str:
    """Return the card of a run, without anything from an older one.

    Args:
        folder (`str` or `Path`): The run. Only the pipeline is needed. The card also tells what other files of the run
            say, if there are any.
        repo_id (`str`, *optional*): The repository that the code on the card loads. The default is the `hub_model_id`
            of the run, or where it was pushed.

    Raises:
        ValueError: If the folder holds no pipeline.
    """
    folder = Path(folder).resolve()
    unet, config, measured = read_unet_config(folder), read_options(folder), read_evaluation(folder)
    facts, average = read_facts(folder), read_average(folder)
    of_own_average = ("use_ema", "ema_power", "ema_max_decay")  # not of one that was made after the run
    shown = [
        key for key in options_of_card() if config.get(key) is not None and not (average and key in of_own_average)
    ]
    pushed = repositories_of(folder)
    repo_id = repo_id or config.get("hub_model_id") or pushed.get(MODEL) or f"user/{folder.name}"
    name, data = plain(repo_id).split("/")[-1], describe_dataset(config)
    samples = next((path.relative_to(folder).as_posix() for path in list_samples(folder / SAMPLES)[-1:]), None)
    height, width = unet["sample_size"]
    class_names, form = unet.get("class_names"), PixelFormat.of_model(unet)
    scheduler = read_side_file(folder / "scheduler" / "scheduler_config.json", {"num_train_timesteps": int})
    recommended = read_side_file(folder / INDEX, {}).get(RECOMMENDED_STEPS)
    recommended = recommended if is_of(recommended, int) else None
    arguments = "batch_size=4"
    if class_names:
        arguments = f"class_labels={literal(class_names[:4])}"
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        metadata=to_yaml(make_metadata(bare(name), data, samples, measured, base_model(config), facts)),
        name=markdown(name),
        repo_id=literal(repo_id),
        kind=_kind(form),
        save='images[0].save("sample.png")' if form.suffix == ".png" else _SAVE_ARRAY,
        height=height,
        width=width,
        steps=config.get("ddpm_num_inference_steps") or recommended or scheduler.get("num_train_timesteps", 1000),
        class_names=class_names and [markdown(name) for name in class_names],
        arguments=arguments,
        data=data,
        base=base_sentence(config),
        average=average_sentence(average),
        preprocessing=describe_preprocessing(config),
        samples=samples,
        samples_caption=samples and _samples_caption(config, samples, form),
        buttons=_buttons(pushed.get(SPACE) or pushed.get(STATIC_SPACE)),
        denoising=_existing(folder, DENOISING),
        animation=_existing(folder, ANIMATION),
        loss_curve=_existing(folder, LOSS),
        training=describe_training(facts, read_metrics(folder)),
        command=command_of(config),
        settings=[(key, _setting(config[key])) for key in shown],
        metrics=[_metric_row(metric) for metric in measured],
    )


def pictures_in(card: str, folder: str | Path) -> list[str]:
    """Return the relative paths of the pictures in a folder that a card shows."""
    folder = Path(folder).resolve()
    found = dict.fromkeys(_PICTURE.findall(card))
    return [name for name in found if (folder / name).is_file() and (folder / name).resolve().is_relative_to(folder)]


# ---- Sentences and rows --------------------------------------------------------------------------------------------


def _kind(form: PixelFormat) -> str:
    """Name what the model draws, in the plural."""
    if form.is_picture:
        names = {("L", 1): "greyscale", ("RGB", 3): "colour", ("RGB", form.channels): f"{form.channels}-channel"}
        return f"{names.get((form.mode, form.channels), form.mode)} pictures"
    return f"arrays with {form.describe()}" if form.suffix != ".png" else f"pictures with {form.describe()}"


def _samples_caption(config: dict, samples: str, form: PixelFormat) -> str:
    step = int(Path(samples).stem.removeprefix("step-"))
    weights = "the averaged weights" if config.get("use_ema") else "the weights"
    steps, seed = config.get("ddpm_num_inference_steps"), config.get("seed")
    classes = ""
    if config.get("class_conditional"):
        guidance, interval = config.get("guidance_scale"), config.get("guidance_interval")
        classes = ", the classes in turns" + ("" if guidance is None else f", guidance scale {guidance}")
        classes += "" if interval is None else f" from {markdown(' to '.join(map(str, interval)))} of the way"
    scheduler = config.get("scheduler", "ddpm")
    by = "" if scheduler == "ddpm" else f" of {SCHEDULERS[scheduler].name}"
    how = f", {steps} denoising steps{by}, seed {seed}{classes}" if steps is not None else ""
    shown = f" In the picture: {form.caption()}." if form.caption() else ""
    return f"Samples, not selected: {weights} after {step:,} optimizer steps{how}.{shown}"


def _metric_row(metric: dict) -> dict:
    args = (f"{key.replace('_', ' ')} {markdown(value)}" for key, value in metric["args"].items())
    how = ", ".join([f"split {markdown(metric['split'])}", *args])
    value, margin, real = metric["value"], metric["margin"], metric["real"]
    interval = "" if margin is None else f"{value - margin:.4g} to {value + margin:.4g}"
    real = "" if real is None else f"{real:.4g}"
    return {"name": markdown(metric["type"]), "value": f"{value:.4g}", "interval": interval, "real": real, "how": how}


def _buttons(space: str | None) -> str:
    """Return a line of links: the demo of this model, if it is a Space, and the project."""
    links = {"Try it in the browser": f"https://huggingface.co/spaces/{space}"} if space else {}
    return " · ".join(f"[{text}]({address})" for text, address in (links | project_links()).items())


def _setting(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else markdown(value)


def _existing(folder: Path, name: str) -> str | None:
    return name if (folder / name).exists() else None
