"""The model card: README.md of a run's folder, and of its repository on the Hub.

It is rendered from what the run left behind. Between the marks `<!-- ddpm_hf:begin NAME -->` and `<!-- ddpm_hf:end -->`
the text is rendered again each time; all other text is whoever's who wrote it.
"""

import dataclasses
import re
from pathlib import Path

import jinja2
import yaml
from huggingface_hub import ModelCardData
from huggingface_hub.utils import validate_repo_id
from tqdm.auto import tqdm

from ddpm_hf.config import GUIDANCE_SCALE, TrainingConfig, option_misfit, options_of_card
from ddpm_hf.files import read_json, read_json_lines, replace_text
from ddpm_hf.forms import is_of, misfit, shown
from ddpm_hf.hub.card_text import bare, literal, markdown, plain
from ddpm_hf.hub.dataset_cards import describe_preprocessing, facts_of
from ddpm_hf.run_files import DENOISING, EVALUATION, FACTS, INDEX, LOSS, METRICS, OPTIONS, SAMPLES, list_samples
from ddpm_hf.tokens import hide_tokens, refuse_token

CARD = "README.md"
TEMPLATE = Path(__file__).with_name("card_template.md")
TASK = "unconditional-image-generation"

# What a number of evaluation.json depends on, as far as it is told there.
DEPENDS_ON = (
    "num_images", "scheduler", "num_inference_steps", "seed", "extractor", "features", "variance_type",
    "standard_error", "standard_deviation", "images", "timesteps_per_image", "reference_images",
    "reference_fingerprint", "note",
)  # fmt: skip
PRDC = ("precision", "recall", "density", "coverage")

# The forms of the files that a card is rendered from, see `files`.
UNET_FORM = {"sample_size": int | list, "in_channels": int}
FACTS_FORM = {
    **{"images": int | None, "images_per_step": int, "parameters": int, "processes": int},
    **{"hardware": str, "versions": dict},
}

_FRONT_MATTER = re.compile(r"\A---\r?\n(.*?)\r?\n---[ \t]*(?:\r?\n|\Z)", re.DOTALL)
_BLOCK = re.compile(r"<!-- ddpm_hf:begin (\w+) -->.*?<!-- ddpm_hf:end -->", re.DOTALL)
_PICTURE = re.compile(r"!\[[^\]]*\]\(([^)\s]+\.png)\)")
_OF_DIFFUSERS = "This model card has been automatically generated."  # what `push_to_hub` of diffusers writes


# ---- Rendering -----------------------------------------------------------------------------------------------------


def write_card(folder: str | Path, repo_id: str | None = None):
    """Write the card of a run, and keep what was written into it by hand.

    Args:
        folder (`str` or `Path`): The run, or any folder with a pipeline.
        repo_id (`str`, *optional*): What the snippets load; by default the `hub_model_id` of the run.

    Raises:
        ValueError: If the folder holds no pipeline, or the metadata of the old card is no YAML.
        OSError: If the card cannot be written.
    """
    path = Path(folder, CARD)
    old = read_card(path)
    card = merge_cards(render_card(folder, repo_id), old)
    if card != old:
        replace_text(path, card)


def render_card(folder: str | Path, repo_id: str | None = None) -> str:
    """The card of a run, without anything from an older one.

    Args:
        folder (`str` or `Path`): The run. Only the pipeline has to be there; of the rest, the card says what it finds.
            evaluation.json is what `ddpm-hf evaluate` writes: metric -> numbers and what they depend on.
        repo_id (`str`, *optional*): See [`write_card`].

    Raises:
        ValueError: If the folder holds no pipeline.
    """
    folder = Path(folder).resolve()
    if not (folder / INDEX).exists():
        raise ValueError(f"{folder} holds no trained pipeline: there is no {INDEX}.")
    unet = _unet_config(folder)
    config, run = read_options(folder), _read_side_file(folder / FACTS, FACTS_FORM)
    metrics = [_without_misfits(line) for line in read_json_lines(folder / METRICS, {"step": int})]
    measured = _measured(_read_side_file(folder / EVALUATION, {}))
    repo_id = repo_id or config.get("hub_model_id") or f"user/{folder.name}"
    name, data = plain(repo_id).split("/")[-1], facts_of(config)

    samples = [path.relative_to(folder).as_posix() for path in list_samples(folder / SAMPLES)[-1:]]
    height, width = unet["sample_size"]
    class_names, channels = unet.get("class_names"), unet["in_channels"]
    scheduler = _read_side_file(folder / "scheduler" / "scheduler_config.json", {"num_train_timesteps": int})
    steps = config.get("ddpm_num_inference_steps") or scheduler.get("num_train_timesteps", 1000)
    environment = jinja2.Environment(
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True, undefined=jinja2.StrictUndefined
    )
    return environment.from_string(TEMPLATE.read_text(encoding="utf-8")).render(
        metadata=_metadata(bare(name), data, samples, measured),
        name=markdown(name),
        repo_id=literal(repo_id),
        kind={1: "greyscale", 3: "colour"}.get(channels, f"{channels}-channel"),
        height=height,
        width=width,
        steps=steps,
        class_names=class_names and [markdown(name) for name in class_names],
        wanted=f"class_labels={literal(class_names[:4])}, guidance_scale={GUIDANCE_SCALE}"
        if class_names
        else "batch_size=4",
        data=data,
        preprocessing=describe_preprocessing(config),
        samples=samples and samples[0],
        samples_caption=_samples_caption(config, samples),
        denoising=_existing(folder, DENOISING),
        loss_curve=_existing(folder, LOSS),
        training=_training(config, run, metrics),
        settings=[(key, _shown(config[key])) for key in options_of_card() if key in config],
        metrics=[_metric_row(metric) for metric in measured],
    )


def merge_cards(fresh: str, old: str) -> str:
    """An older card with the marked blocks and the metadata of a fresh one.

    A block whose marks were deleted stays deleted. Metadata that the fresh card does not set is kept, also tags, and a
    licence where the fresh card knows none.

    Raises:
        ValueError: If the older metadata is no YAML of keys and values.
    """
    if not old.strip() or _OF_DIFFUSERS in old:
        return fresh
    ours, fresh_text = _split(fresh)
    theirs, text = _split(old)
    blocks = {match[1]: match[0] for match in _BLOCK.finditer(fresh_text)}
    text = _BLOCK.sub(lambda match: blocks.get(match[1], match[0]), text)
    if ours["license"] == "unknown":
        ours["license"] = theirs.get("license", "unknown")
    theirs_tags = [tag for tag in _as_list(theirs.get("tags")) if isinstance(tag, str)]
    tags = list(dict.fromkeys([*ours["tags"], *theirs_tags]))
    return f"---\n{_dump({**ours, 'tags': tags, **_kept(theirs, ours)})}\n---\n{text}"


def pictures_in(card: str, folder: str | Path) -> list[str]:
    """The PNG pictures within a folder that a card shows, by their relative paths."""
    folder = Path(folder).resolve()
    found = dict.fromkeys(_PICTURE.findall(card))
    return [name for name in found if (folder / name).is_file() and (folder / name).resolve().is_relative_to(folder)]


# ---- Metadata ------------------------------------------------------------------------------------------------------


def _metadata(name: str, data, samples: list[str], measured: list[dict]) -> str:
    metadata = {
        "library_name": "diffusers",
        "pipeline_tag": TASK,
        **data.model_licence,
        "tags": ["ddpm", "diffusers", TASK, "pytorch"],
    }
    if data.hub_id:
        metadata["datasets"] = [data.hub_id]
    if samples:
        metadata["widget"] = [{"text": "samples", "output": {"url": samples[0]}}]
    if measured:
        metadata["model-index"] = [{"name": name, "results": [_result(metric) for metric in measured]}]
    return _dump(metadata)


def _result(metric: dict) -> dict:
    """A metric in the form of the Hub's model-index."""
    name = metric["dataset"]
    data = facts_of({"dataset_name": None if name == "mnist-mini" else name} if name else {})
    return {
        "task": {"type": TASK, "name": "Unconditional image generation"},
        "dataset": {"type": data.hub_id or "unknown", "name": data.name, "split": metric["split"]},
        "metrics": [{"type": metric["type"], "value": metric["value"], "args": metric["args"]}],
    }


def _measured(evaluation: dict) -> list[dict]:
    """The numbers of evaluation.json one by one, each with what the reader needs to compare it. No paths."""
    measured = []
    for metric, entry in evaluation.items():
        form = {"value": float} if isinstance(entry, dict) and not entry.keys() & set(PRDC) else {}
        optional = {
            key: str | None for key in ("dataset", "split", "extractor") if isinstance(entry, dict) and key in entry
        }
        if problem := misfit(entry, {**form, **optional}, name=f"`{plain(metric)}`"):
            tqdm.write(f"{EVALUATION}: {plain(problem)}; the card leaves `{plain(metric)}` out.")
            continue
        args = {key: _argument(key, entry[key]) for key in DEPENDS_ON if is_of(entry.get(key), str | float | bool)}
        common = {"dataset": entry.get("dataset"), "split": bare(entry.get("split") or "train"), "args": args}
        numbers = {metric: entry.get("value")} if form else {key: entry[key] for key in PRDC if key in entry}
        numbers = {bare(name): value for name, value in numbers.items() if is_of(value, float)}
        measured += [{"type": name, "value": value, **common} for name, value in numbers.items()]
    return measured


def _argument(key: str, value):
    """What a number depends on, without paths."""
    text = Path(value).name if key == "extractor" else value
    return bare(text) if isinstance(text, str) else text


def _dump(metadata: dict) -> str:
    """As YAML, the way that huggingface_hub and so diffusers write it: what they save again is the same text."""
    return ModelCardData(**metadata, ignore_metadata_errors=True).to_yaml()


def _split(card: str) -> tuple[dict, str]:
    match = _FRONT_MATTER.match(card)
    if not match:
        return {}, card
    try:
        metadata = yaml.safe_load(match[1]) or {}
    except yaml.YAMLError as error:
        raise ValueError(f"the metadata at the top of {CARD} is no YAML: {' '.join(str(error).split())}") from error
    if not isinstance(metadata, dict):
        raise ValueError(f"the metadata at the top of {CARD} has to be keys and values.")
    return metadata, card[match.end() :]


def _kept(metadata: dict, keys: dict) -> dict:
    """Of older metadata, what is kept; scores are never, since they may be of other weights."""
    return {key: value for key, value in metadata.items() if key not in keys and key != "model-index"}


def _as_list(value) -> list:
    return value if isinstance(value, list) else [value] if value else []


# ---- Sentences and rows --------------------------------------------------------------------------------------------


def _samples_caption(config: dict, samples: list[str]) -> str:
    if not samples:
        return ""
    step = int(Path(samples[0]).stem.removeprefix("step-"))
    weights = "the averaged weights" if config.get("use_ema") else "the weights"
    steps, seed = config.get("ddpm_num_inference_steps"), config.get("seed")
    classes = ""
    if config.get("class_conditional"):
        guidance = config.get("guidance_scale")
        classes = f", the classes in turns, guidance scale {GUIDANCE_SCALE if guidance is None else guidance}"
    how = f", {steps} denoising steps, seed {seed}{classes}" if steps is not None else ""
    return f"Samples, not selected: {weights} after {step:,} optimizer steps{how}."


def _training(config: dict, run: dict, metrics: list[dict]) -> str:
    """Sizes, hardware and time, as far as they were recorded."""
    if not metrics:
        return "How the model was trained is not recorded."
    last = metrics[-1]
    sentences = [f"Trained for {last['step']:,} optimizer steps"]
    if run:
        images = f"{run['images']:,} pictures" if run["images"] else "a stream of pictures"
        sentences[0] += f" of {run['images_per_step']:,} images each, on {images}"
        sentences.append(f"The U-Net has {run['parameters'] / 1e6:.2f} M parameters")
        hours = _training_seconds(metrics, run["images_per_step"]) / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
        processes = f"{run['processes']} processes on " if run["processes"] > 1 else ""
        hardware = f"{processes}{markdown(run['hardware'])}"
        sentences.append(f"Hardware: {hardware}; training took {took}, without drawing samples")
        versions = (f"{markdown(name)} {markdown(version)}" for name, version in run["versions"].items())
        sentences.append("Versions: " + ", ".join(versions))
    if last.get("loss") is not None:
        sentences.append(f"The last mean loss was {last['loss']:.4f}")
    if last.get("skipped_updates"):
        sentences.append(f"{last['skipped_updates']:g} updates were not finite and were skipped")
    return ". ".join(sentences) + "."


def _training_seconds(metrics: list[dict], images_per_step: int) -> float:
    """The time in optimizer steps, also of a run in several sessions, from the speed that each line noted."""
    steps = [0, *(line["step"] for line in metrics)]
    speeds = [line.get("images_per_second") for line in metrics]
    return sum((b - a) * images_per_step / speed for a, b, speed in zip(steps, steps[1:], speeds) if speed)


def _metric_row(metric: dict) -> dict:
    args = (f"{key.replace('_', ' ')} {markdown(value)}" for key, value in metric["args"].items())
    how = ", ".join([f"split {markdown(metric['split'])}", *args])
    return {"name": markdown(metric["type"]), "value": f"{metric['value']:.4g}", "how": how}


def _shown(value) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else markdown(value)


def _existing(folder: Path, name: str) -> str | None:
    return name if (folder / name).exists() else None


# ---- Files that may be broken, or somebody else's --------------------------------------------------------------------


def read_card(path: Path) -> str:
    """A card that is there, or nothing.

    Raises:
        ValueError: If it is no text.
    """
    try:
        return path.read_text(encoding="utf-8") if path.exists() else ""
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is no text of UTF-8 ({error}); save it as such, or move it away.") from error


def read_options(folder: Path) -> dict:
    """The options of the run in a folder; none if it is no run's.

    Options of another type than train_ddpm.py's, and a repository that is none, are left out, which is said.
    """
    values = _read_side_file(folder / OPTIONS, {})
    if not values.keys() & {"preset", "train_batch_size", "ddpm_num_steps"}:  # a network's, perhaps
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
        tqdm.write(f"{folder / OPTIONS}: {hide_tokens(' '.join(str(error).split()))} It is left out.")
        del options["hub_model_id"]
    return options


def _unet_config(folder: Path) -> dict:
    """The configuration of the U-Net, its `sample_size` as height and width.

    Raises:
        ValueError: If it cannot be read, or does not say what the model draws.
    """
    path = folder / "unet" / "config.json"
    if not path.exists() and "_class_name" in _read_side_file(folder / "config.json", {}):
        raise ValueError(
            f"{folder} has the U-Net's files at its root and no unet/, as the first repositories of diffusers do; "
            f"bring it into today's form with: ddpm-hf convert {folder} OUTPUT_DIR"
        )
    advice = "Save the pipeline again, or convert it with ddpm-hf convert."
    read_json(folder / INDEX, {"unet": list, "scheduler": list}, advice)
    unet = read_json(path, UNET_FORM, advice)
    size, names = unet["sample_size"], unet.get("class_names")
    sizes = size if isinstance(size, list) else [size, size]
    if len(sizes) != 2 or not all(is_of(side, int) for side in sizes):
        raise ValueError(f"{path} is broken: `sample_size` is {shown(size)}; expected one or two sides. {advice}")
    if names is not None and not (isinstance(names, list) and all(isinstance(name, str) for name in names)):
        raise ValueError(f"{path} is broken: `class_names` is {shown(names)}; expected a list of texts. {advice}")
    return {**unet, "sample_size": sizes}


def _read_side_file(path: Path, form: dict) -> dict:
    """What is told beside the model: if it is broken, the card does without it, which is said."""
    if not path.exists():
        return {}
    try:
        return read_json(path, form, "The card does without it.")
    except ValueError as error:
        tqdm.write(str(error))
        return {}


def _without_misfits(line: dict) -> dict:
    """A line of the metrics without numbers that are none."""
    return {key: value for key, value in line.items() if is_of(value, float)}
