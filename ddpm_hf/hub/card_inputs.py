"""What the model card is made from: the files of a run. They may be missing, broken, or written by others.

Without a pipeline there is no card. The card does without any other file that cannot be read, and a line on the
terminal says so.
"""

import dataclasses
import math
from pathlib import Path

from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from ddpm_hf.config import TrainingConfig, option_misfit
from ddpm_hf.files import read_json, read_json_lines
from ddpm_hf.forms import Form, is_of, misfit, shown
from ddpm_hf.hub.card_text import bare, plain
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.run_files import ABOUT_AVERAGE, EVALUATION, FACTS, INDEX, METRICS, OPTIONS
from ddpm_hf.terminal import one_line
from ddpm_hf.tokens import refuse_token

FACTS_FORM = {
    **{"images": int | None, "images_per_step": int, "parameters": int, "processes": int},
    **{"hardware": str, "versions": dict},
}

# What a number of evaluation.json depends on. The card repeats those that the file states.
DEPENDS_ON = (
    "num_images", "scheduler", "num_inference_steps", "guidance_scale", "guidance_interval", "mixed_precision",
    "seed", "extractor", "features", "variance_type", "decoder_cdf",
    "standard_error", "standard_deviation", "images", "timesteps_per_image", "reference_images",
    "reference_fingerprint", "part", "note",
)  # fmt: skip
PRDC = ("precision", "recall", "density", "coverage")
SHARES = ("precision", "recall", "coverage")  # of images


def read_unet_config(folder: Path) -> dict:
    """Read the configuration of the U-Net, with `sample_size` as height and width.

    Raises:
        ValueError: If the folder holds no pipeline, or the configuration does not say what the model draws.
    """
    if not (folder / INDEX).exists():
        raise ValueError(f"{folder} holds no trained pipeline: there is no {INDEX}.")
    path = folder / "unet" / "config.json"
    if not path.exists() and "_class_name" in read_side_file(folder / "config.json", {}):
        raise ValueError(
            f"{folder} has the U-Net's files at its root and no unet/, as the first repositories of diffusers do; "
            f"bring it into today's form with: ddpm-hf convert {folder} OUTPUT_DIR"
        )
    advice = "Save the pipeline again, or convert it with ddpm-hf convert."
    read_json(folder / INDEX, {"unet": list, "scheduler": list}, advice)
    unet = read_json(path, {"sample_size": int | list, "in_channels": int}, advice)
    size, names = unet["sample_size"], unet.get("class_names")
    sizes = size if isinstance(size, list) else [size, size]
    if len(sizes) != 2 or not all(is_of(side, int) for side in sizes):
        raise ValueError(f"{path} is broken: `sample_size` is {shown(size)}; expected one or two sides. {advice}")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path} is broken: `class_names` is {shown(names)}; expected a list of texts. {advice}")
    try:
        PixelFormat.of_model(unet)
    except TypeError as error:
        about = shown(unet["pixel_format"])
        raise ValueError(f"{path} is broken: `pixel_format` is {about}; expected a description. {advice}") from error
    return {**unet, "sample_size": sizes}


def read_options(folder: Path) -> dict:
    """Read the options of a run, without those that train_ddpm.py would refuse. Other folders have no options."""
    values = read_side_file(folder / OPTIONS, {})
    if not values.keys() & {"preset", "train_batch_size", "ddpm_num_steps"}:  # it may be a network's config.json
        return {}
    options = {}
    for key in values.keys() & {option.name for option in dataclasses.fields(TrainingConfig)}:
        if problem := option_misfit(key, values[key]):
            tqdm.write(f"{folder / OPTIONS}: {problem}. It is left out.")
        else:
            options[key] = values[key]
    try:
        validate_repo_id(options.get("hub_model_id") or "none")
        refuse_token("`hub_model_id`", options.get("hub_model_id") or "")
    except ValueError as error:
        tqdm.write(f"{folder / OPTIONS}: {one_line(error)}. It is left out.")
        del options["hub_model_id"]
    return options


def read_facts(folder: Path) -> dict:
    """Read the sizes, the hardware and the versions of a run."""
    return read_side_file(folder / FACTS, FACTS_FORM)


def read_average(folder: Path) -> dict:
    """Read which average of a run the weights are, if they were made from its snapshots."""
    return read_side_file(folder / ABOUT_AVERAGE, {"run": str, "step": int, "std": float})


def read_metrics(folder: Path) -> list[dict]:
    """Read the lines that a run has logged, without values that are not finite numbers."""
    lines = read_json_lines(folder / METRICS, {"step": int})
    return [{key: value for key, value in line.items() if is_of(value, float)} for line in lines]


def read_evaluation(folder: Path) -> list[dict]:
    """Read the numbers of evaluation.json one by one, each with what a reader needs to compare it, without paths."""
    measured = []
    for metric, entry in read_side_file(folder / EVALUATION, {}).items():
        keys = entry.keys() if isinstance(entry, dict) else set()
        several = [key for key in PRDC if key in keys]  # precision, recall, density and coverage share an entry
        form: Form = {} if several else {"value": float}
        form |= {key: str | None for key in ("dataset", "split", "extractor") if key in keys}
        if problem := misfit(entry, form, name=f"`{plain(metric)}`"):
            tqdm.write(f"{EVALUATION}: {plain(problem)}; the card leaves `{plain(metric)}` out.")
            continue
        args = {key: _without_path(key, entry[key]) for key in DEPENDS_ON if is_of(entry.get(key), str | float | bool)}
        common = {"dataset": entry.get("dataset"), "split": bare(entry.get("split") or "train"), "args": args}
        numbers = {key: entry[key] for key in several} or {metric: entry["value"]}
        real = entry.get("of_real_images")
        for name, value in numbers.items():
            if is_of(value, float):
                of_real = real.get(name if several else "value") if isinstance(real, dict) else None
                about = {"margin": _margin(name, value, entry), "real": of_real if is_of(of_real, float) else None}
                measured.append({"type": bare(name), "value": value, **about, **common})
    return measured


def _margin(name: str, value: float, entry: dict) -> float | None:
    """Return half of the 95 % interval of a number, where the images measured allow to estimate it."""
    if is_of(entry.get("standard_error"), float):
        return 1.96 * entry["standard_error"]
    if name in SHARES and is_of(entry.get("images_of_each"), int) and entry["images_of_each"] > 0 and 0 <= value <= 1:
        return 1.96 * math.sqrt(value * (1 - value) / entry["images_of_each"])
    return None


def _without_path(key: str, value):
    text = Path(value).name if key == "extractor" else value
    return bare(text) if isinstance(text, str) else text


def read_side_file(path: Path, form: Form) -> dict:
    """Read a JSON file that the card can do without. Return no keys if it is missing or broken."""
    if not path.exists():
        return {}
    try:
        return read_json(path, form, "The card does without it.")
    except ValueError as error:
        tqdm.write(str(error))
        return {}
