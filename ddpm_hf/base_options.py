"""The options that `--pretrained_model_name_or_path` brings: the network and the scheduler of the base."""

import dataclasses
import json
from pathlib import Path
from typing import Any

from ddpm_hf.checkpoint import load_state
from ddpm_hf.config import DECIDED_BY_DATA, TrainingConfig, default_output_dir, name_of_size, parse_size
from ddpm_hf.forms import Form, misfit
from ddpm_hf.loading import load_settings
from ddpm_hf.other_schedulers import spacing_for_ddpm
from ddpm_hf.presets import PRESETS
from ddpm_hf.run_files import CHECKPOINTS, list_checkpoints
from ddpm_hf.terminal import say

FLAG = "pretrained_model_name_or_path"
# Settings of a scheduler that are options, too. All others are taken over as they are.
_OPTIONS = {
    "num_train_timesteps": "ddpm_num_steps",
    "beta_schedule": "ddpm_beta_schedule",
    "prediction_type": "prediction_type",
    "variance_type": "variance_type",
    "clip_sample": "clip_sample",
}
# What is needed of the option `base` in a file.
_FORM: Form = {"num_train_timesteps": int, "beta_schedule": str, "prediction_type": str, "variance_type": str}
_FORM |= {"clip_sample": bool, "trained_betas": list | None}
# The same numbers under another name; and schedulers whose steps have no such variance write null.
_SAME_VARIANCE = {"fixed_small_log": "fixed_small", "fixed_large_log": "fixed_large", None: "fixed_small"}
_VARIANCES = ("fixed_small", "fixed_large", "learned_range")


def take_base(options: dict[str, Any], chosen: dict[str, Any], token: str | None = None) -> dict[str, Any]:
    """Return the options with those of the base, where the user has chosen no others, and say what differs.

    A run that goes on has noted what it took over, so that the base need not be there any more.

    Args:
        options (`dict`): All options, with those of the preset.
        chosen (`dict`): The options that a file or the command line says.
        token (`str`, *optional*): A token for the Hub.

    Raises:
        ValueError: If there is no such base, it is no DDPM that can be trained here, or a chosen option contradicts it.
    """
    name = options[FLAG]
    if options.get("model_config_name_or_path"):
        raise ValueError(f"--{FLAG} and --model_config_name_or_path both name the network; pass one of them.")
    noted = None if options.get("overwrite_output_dir") else _noted_base(_folder(options), name)
    base, notes = (noted, []) if noted else read_base(name, token)
    brought = options_of(base)
    if "dropout" not in brought["model"]:  # a file of weights does not tell it
        model = chosen.get("model") or PRESETS.get(options["preset"], {}).get("model", {})
        brought["model"]["dropout"] = model.get("dropout", 0.0)
    for key, value in chosen.get("model", {}).items():
        if value != brought["model"].get(key, value):
            raise ValueError(
                f"--{FLAG} {name}: its network has `{key}` {brought['model'][key]}, and --config says {value}; take "
                "`model` out of the file."
            )
    if options.get("distill_steps") and brought["prediction_type"] == "epsilon":
        brought["prediction_type"] = "v_prediction"  # of the student; `base` still tells what the teacher predicts
    overruled = {key: chosen[key] for key in brought.keys() & chosen.keys() - {"model"} if chosen[key] != brought[key]}
    if "resolution" in overruled:
        overruled["resolution"] = name_of_size(*parse_size("--resolution", overruled["resolution"]))
    overruled = {key: value for key, value in overruled.items() if value != brought[key]}
    theirs, wished = brought["variance_type"], overruled.get("variance_type", brought["variance_type"])
    if theirs != wished and "learned_range" in (theirs, wished):
        raise ValueError(
            f"--variance_type {wished}: the network of {name} is made for {theirs}, and a learned variance has output "
            "channels of its own; leave it out."
        )
    own_betas = base["scheduler"]["trained_betas"] is not None
    why = f"{name} has betas of its own (`trained_betas`)" if own_betas else "a student has the noise of its teacher"
    refused = overruled.keys() & {"ddpm_num_steps", "ddpm_beta_schedule"}
    # With betas of its own a base brings no schedule, so the file of such a run names that of the preset.
    unnamed = PRESETS.get(options["preset"], {}).get("ddpm_beta_schedule", TrainingConfig.ddpm_beta_schedule)
    if own_betas and chosen.get("ddpm_beta_schedule") not in (None, unnamed, base["scheduler"]["beta_schedule"]):
        refused |= {"ddpm_beta_schedule"}
    for key in refused:
        if own_betas or options.get("distill_steps"):
            raise ValueError(f"--{key} {chosen[key]}: {why}; leave it out.")
    if not noted:
        say([*notes, _describe_replaced(name, brought, options, chosen)])
        say(_describe_overruled(key, value, brought[key], name) for key, value in overruled.items())
    return {**options, **brought, **overruled, "base": base}


def read_base(name: str, token: str | None = None) -> tuple[dict[str, Any], list[str]]:
    """Read what a base says about itself, without its weights.

    Args:
        name (`str`): A folder, a Hub id, or a file of the annotated tutorial's weights.
        token (`str`, *optional*): A token for the Hub.

    Returns:
        `tuple`: The option `base`: the Hub id, if it is one, and all settings of the network and of the scheduler; and
        notes for the user.

    Raises:
        ValueError: If it cannot be read, is no DDPM, or is one that cannot be trained here.
    """
    is_local = Path(name).exists()
    try:
        unet, scheduler, kind = load_settings(name, token=token)
        scheduler["variance_type"] = _SAME_VARIANCE.get(scheduler["variance_type"], scheduler["variance_type"])
        _check_scheduler(scheduler)
        _check_channels(unet["in_channels"], unet["out_channels"], scheduler["variance_type"])
    except (ValueError, OSError) as error:
        raise ValueError(f"--{FLAG} {name}: {error}") from error
    is_ours = kind in ("DDPMScheduler", "DDPMLinearScheduler")
    notes = [] if is_ours else [f"The {kind} of {name} becomes a DDPMLinearScheduler of the same betas."]
    if not is_ours:
        scheduler |= spacing_for_ddpm(scheduler)
    base = {"hub_id": None if is_local else name, "unet": unet, "scheduler": scheduler}
    return json.loads(json.dumps(base)), notes  # as config.json holds it


def _check_channels(inputs: int, outputs: int, variance_type: str):
    expected = 2 * inputs if variance_type == "learned_range" else inputs
    if outputs != expected:
        raise ValueError(
            f"it has {inputs} input channels and {outputs} output channels; expected {expected} for the variance_type "
            f"{variance_type} of its scheduler."
        )


def _check_scheduler(scheduler: dict[str, Any]):
    betas, T = scheduler["trained_betas"], scheduler["num_train_timesteps"]
    if betas is not None and len(betas) != T:
        raise ValueError(f"its scheduler has {len(betas)} `trained_betas`; expected {T}, its `num_train_timesteps`.")
    choices = {"variance_type": _VARIANCES, "prediction_type": ("epsilon", "sample", "v_prediction")}
    for key, known in choices.items():
        if scheduler[key] not in known:
            names = ", ".join(known)
            raise ValueError(f"its scheduler has the {key} {scheduler[key]}; expected one of {names}.")


def options_of(base: dict[str, Any]) -> dict[str, Any]:
    """Return the options that a base brings: `model`, those of the scheduler, and the resolution if it is known."""
    scheduler, size = base["scheduler"], base["unet"].get("sample_size")
    options = {option: scheduler[key] for key, option in _OPTIONS.items()}
    if scheduler["trained_betas"] is not None:
        del options["ddpm_beta_schedule"]  # it has no effect
    if size is not None:
        options["resolution"] = name_of_size(*(size if isinstance(size, list) else (size, size)))
    model = {key: value for key, value in base["unet"].items() if key not in DECIDED_BY_DATA}
    return {"model": model, **options}


def _describe_replaced(name: str, brought: dict, options: dict, chosen: dict) -> str:
    """Say which options of the preset the base replaces."""
    defaults = {field.name: field.default for field in dataclasses.fields(TrainingConfig)}
    replaced = [
        f"{key} {_in_words(value)}"
        for key, value in brought.items()
        if key != "model" and key not in chosen and value != options.get(key, defaults[key])
    ]
    rest = f", and instead of the preset's: {', '.join(replaced)}" if replaced else ""
    return f"The network and its weights are those of {name}{rest}."


def _describe_overruled(key: str, value: Any, of_base: Any, name: str) -> str:
    why = {"prediction_type": ", so the network has to learn another target"}
    return f"--{key} {_in_words(value)} is used; {name} has {_in_words(of_base)}{why.get(key, '')}."


def _in_words(value: Any) -> str:
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)


# ---- A run that goes on ----------------------------------------------------------------------------------------------


def _folder(options: dict[str, Any]) -> Path:
    images = (options.get("train_data_dir"), options.get("dataset_name"))
    return Path(options.get("output_dir") or default_output_dir(options["preset"], *images))


def _noted_base(folder: Path, name: str) -> dict[str, Any] | None:
    """Return what a run with checkpoints took over from this base; None if there is no such run."""
    for path in reversed(list_checkpoints(folder / CHECKPOINTS)):
        try:
            config = load_state(path)["config"]
        except (ValueError, OSError):  # a broken checkpoint is reported where it is passed over
            continue
        base = config.get("base")
        is_whole = not misfit(base, {"unet": dict, "scheduler": dict}) and not misfit(base["scheduler"], _FORM)
        return base if is_whole and config.get(FLAG) == name else None
    return None
