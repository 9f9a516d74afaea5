"""What the model card says about the training: sizes, hardware, time and energy, and the command that repeats it."""

import dataclasses
import shlex
from pathlib import Path
from typing import Any

from ddpm_hf.config import DECIDED_BY_DATA, TrainingConfig
from ddpm_hf.forms import is_of, misfit
from ddpm_hf.hub.card_text import bare, markdown
from ddpm_hf.hub.links import may_be_shown
from ddpm_hf.option_fields import kinds_of
from ddpm_hf.presets import PRESETS, preset_for

WIDTH = 88  # characters of a line of the command
_DECIDES = ("Data", "Model", "Diffusion", "Distillation", "Optimisation", "Moving average")  # groups of options
_PATHS = {"train_data_dir": "PICTURES", "dataset_name": "PICTURES", "model_config_name_or_path": "MODEL"}


def base_model(config: dict) -> str | None:
    """Return the Hub id of the model that a run was fine-tuned from. A local path is nobody's business."""
    hub_id = config.get("base", {}).get("hub_id")
    return hub_id if isinstance(hub_id, str) and may_be_shown(hub_id) else None


# ---- The command ---------------------------------------------------------------------------------------------------


def command_of(config: dict) -> str | None:
    """Return the command that trains such a model, from the options of a run: those that its preset does not say.

    Paths of the machine that trained are replaced by words such as PICTURES. None if the options name no preset.
    """
    preset = config.get("preset")
    if preset not in PRESETS:
        return None
    pieces = ["ddpm-hf train", f"--preset {preset}", *_flags(config, PRESETS[preset])]
    lines = [pieces[0]]
    for piece in pieces[1:]:
        if len(lines[-1]) + len(piece) < WIDTH:
            lines[-1] += f" {piece}"
        else:
            lines.append(f"    {piece}")
    return " \\\n".join(lines)


def _flags(config: dict, preset: dict[str, Any]) -> list[str]:
    """Return the flags of a run that decide about its model and differ from the preset."""
    kinds, flags = kinds_of(TrainingConfig), []
    preset = preset_for(preset, config)
    void = {"cache_dir", "preset", "num_epochs" if config.get("max_train_steps") else "max_train_steps"}
    if config.get("max_train_steps"):
        void.add("max_train_minutes")  # they chose the steps
    for option in dataclasses.fields(TrainingConfig):
        name, is_of_run = option.name, option.metadata["group"] == "Run" and option.metadata["resume"] == "same"
        decides = is_of_run or option.metadata["group"] in _DECIDES or name == "scheduler"
        if not decides or name in void or name not in config or kinds[name] is dict:
            continue
        value, default = config[name], preset.get(name, option.default)
        if value == default or value is None:
            continue
        if isinstance(value, bool):
            flags.append(f"--{name}" if value else f"--no_{name}")
        elif isinstance(value, list):
            flags.append(f"--{name} {' '.join(map(str, value))}")
        else:
            flags.append(f"--{name} {shlex.quote(bare(_without_path(name, value, config)))}")
    network = {key: value for key, value in config.get("model", {}).items() if key not in DECIDED_BY_DATA}
    is_own = network != preset.get("model", {}) and config.get("model_size", "auto") == "auto"
    named = {"model_config_name_or_path", "pretrained_model_name_or_path"} & {name for name in config if config[name]}
    return [*flags, *(["--model_config_name_or_path MODEL"] if is_own and not named else [])]


def _without_path(name: str, value: Any, config: dict) -> Any:
    if name == "pretrained_model_name_or_path":
        return base_model(config) or "BASE"
    is_id = name != "train_data_dir" and isinstance(value, str) and may_be_shown(value) and not Path(value).exists()
    return value if name not in _PATHS or is_id else _PATHS[name]


# ---- Sentences -----------------------------------------------------------------------------------------------------


def base_sentence(config: dict) -> str:
    """Say what a run was fine-tuned from, or who its teacher was, if it had one."""
    if not config.get("pretrained_model_name_or_path"):
        return ""
    hub_id, steps = base_model(config), config.get("distill_steps")
    about = f"[`{hub_id}`](https://huggingface.co/{hub_id})" if hub_id else "another model"
    rest = ", whose card tells of the licence and the data of that model." if hub_id else "."
    if not steps:
        return f"It was fine-tuned from {about}{rest}"
    scale = config.get("distill_guidance_scale")
    guidance = "" if scale in (None, 1) else f", each one call of the network with the guidance {scale:g} in it"
    if not hub_id:
        about = f"the model {markdown(Path(config['pretrained_model_name_or_path']).name)}"
    return (
        f"It is a student: it learned to draw in {steps} denoising step{'s' * (steps != 1)}{guidance} "
        f"([Salimans and Ho 2022](https://arxiv.org/abs/2202.00512)). Its teacher is {about}{rest}"
    )


def average_sentence(average: dict) -> str:
    """Say which average the weights are, if they were made from the snapshots of a run."""
    if not average:
        return ""
    return (
        f"Its weights are an average over the training, made from snapshots of the run `{bare(average['run'])}` "
        f"([Karras et al. 2023](https://arxiv.org/abs/2312.02696)): `ddpm-hf ema {bare(average['run'])} --std "
        f"{average['std']:g}`. The standard deviation of its profile is {average['std']:g} of the {average['step']:,} "
        "steps."
    )


def describe_training(facts: dict, metrics: list[dict]) -> str:
    """Tell the sizes, the hardware, the time and the energy, as far as they were recorded."""
    if not metrics:
        return "How the model was trained is not recorded."
    last = metrics[-1]
    sentences = [f"Trained for {last['step']:,} optimizer steps"]
    if facts:
        images = f"{facts['images']:,} pictures" if facts["images"] else "a stream of pictures"
        sentences[0] += f" of {facts['images_per_step']:,} images each, on {images}"
        sentences.append(f"The U-Net has {facts['parameters'] / 1e6:.2f} M parameters")
        hours = _training_seconds(metrics, facts["images_per_step"]) / 3600
        took = f"{hours:.1f} hours" if hours >= 1 else f"{hours * 60:.1f} minutes"
        processes = f"{facts['processes']} processes on " if facts["processes"] > 1 else ""
        hardware = f"{processes}{markdown(facts['hardware'])}"
        sentences.append(f"Hardware: {hardware}; training took {took}, without drawing samples")
        sentences += _energy(facts)
        versions = (f"{markdown(name)} {markdown(version)}" for name, version in facts["versions"].items())
        sentences.append("Versions: " + ", ".join(versions))
    if last.get("loss") is not None:
        sentences.append(f"The last mean loss was {last['loss']:.4f}")
    sentences += _held_out(facts, metrics)
    if last.get("skipped_updates"):
        sentences.append(f"{last['skipped_updates']:g} updates were not finite and were skipped")
    return ". ".join(sentences) + "."


def emissions(facts: dict) -> dict | None:
    """Return the energy and the CO2 of a run, if they were estimated."""
    form = {"kilowatt_hours": float, "co2_grams": float, "country": str, "tool": str}
    form |= {"first_step": int, "last_step": int}
    noted = facts.get("energy")
    return None if misfit(noted, form) else noted


def _energy(facts: dict) -> list[str]:
    if not (noted := emissions(facts)):
        return []
    country, tool = markdown(noted["country"]), markdown(noted["tool"])
    took = f"{noted['kilowatt_hours']:.3g} kWh, or {noted['co2_grams']:.3g} g of CO2 with the electricity of {country}"
    steps = f"from step {noted['first_step']:,} to step {noted['last_step']:,}"
    return [f"The whole machine took about {took}, {steps}, as {tool} estimates"]


def _held_out(facts: dict, metrics: list[dict]) -> list[str]:
    """Tell how many pictures were held out, and the loss on them."""
    losses = {line["step"]: line["val_loss"] for line in metrics if "val_loss" in line}
    if not losses:
        return []
    count = facts.get("held_out", {}).get("images") if isinstance(facts.get("held_out"), dict) else None
    pictures = f"{count:,} pictures were" if is_of(count, int) else "Some pictures were"
    (last, loss), best = list(losses.items())[-1], min(losses, key=losses.__getitem__)
    lowest = "" if best == last else f"; the lowest was {losses[best]:.4f}, at step {best:,}"
    return [f"{pictures} held out and never trained on; the loss on them was {loss:.4f} at step {last:,}{lowest}"]


def _training_seconds(metrics: list[dict], images_per_step: int) -> float:
    """Return the seconds spent in optimizer steps, from the speed that each line states.

    The clock would also count the pauses of a run that was resumed.
    """
    steps = [0, *(line["step"] for line in metrics)]
    speeds = [line.get("images_per_second") for line in metrics]
    return sum((b - a) * images_per_step / speed for a, b, speed in zip(steps, steps[1:], speeds) if speed)
