"""Options from files: `--config`, and the network of `--model_config_name_or_path`."""

import difflib
import inspect
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch
import yaml

from ddpm_hf.config import DECIDED_BY_DATA, TrainingConfig, option_misfit
from ddpm_hf.convert import config_from_unet2d
from ddpm_hf.files import read_json
from ddpm_hf.loading import check_id
from ddpm_hf.option_fields import kinds_of
from ddpm_hf.terminal import one_line
from ddpm_hf.unet_ddpm import DDPMUNetModel

# Options that are not to be repeated with the others of a file, and their defaults.
FOR_ONE_COMMAND = {"overwrite_output_dir": False, "resume_from_checkpoint": "latest"}


def read_config_file(path: Path, flags: dict[str, Any]) -> dict[str, Any]:
    """Read the options of a YAML file, or of the config.json of a run.

    Args:
        path (`Path`): The file. One that ends in .json is JSON; any other is YAML.
        flags (`dict`): The options that the command line says itself.

    Returns:
        `dict`: The options that the file has. `overwrite_output_dir` and `resume_from_checkpoint` are left out of those
            of a run, since they were meant for its command.

    Raises:
        ValueError: If the file cannot be read, has an unknown option or one of a wrong type, or would make a run push
            to the repository of another.
    """
    is_of_run = path.suffix == ".json"
    try:
        options = read_json(path, {}) if is_of_run else _read_yaml(path)
        for name, value in options.items():
            options[name] = _checked(name, value)
        if options.get("model"):
            options["model"] = _checked_model(options["model"])
        if options.pop("base", None) and not is_of_run:
            raise ValueError("`base` is read from --pretrained_model_name_or_path; take it out of the file")
        if not options.get("model") and options.get("model_config_name_or_path"):
            options["model"] = load_model_config(options["model_config_name_or_path"])
    except (ValueError, OSError) as error:
        raise ValueError(f"--config {path}: {error}") from error
    for name in FOR_ONE_COMMAND.keys() & options.keys() - flags.keys():
        if is_of_run:
            del options[name]
        elif options[name] != FOR_ONE_COMMAND[name]:
            raise ValueError(
                f"--config {path} says `{name}: {options[name]}`, which is meant for one command; pass --{name}, or "
                "take the line out of the file."
            )
    moved = flags.get("output_dir", options.get("output_dir")) != options.get("output_dir")
    pushes = flags.get("push_to_hub", options.get("push_to_hub"))
    if is_of_run and moved and pushes and options.get("hub_model_id") and "hub_model_id" not in flags:
        raise ValueError(
            f"--config {path} would push this run to {options['hub_model_id']}, the repository of another one; pass "
            "--hub_model_id or --no_push_to_hub."
        )
    return options


def _read_yaml(path: Path) -> dict[str, Any]:
    try:
        options = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"expected YAML; {one_line(error)}") from error
    if not isinstance(options, dict):
        raise ValueError("expected options, such as `learning_rate: 1e-4`, each in a line of its own")
    return options


def _checked(name: Any, value: Any) -> Any:
    """Return the value of an option. YAML 1.1 takes 1e-4, without a point, for a text."""
    kinds = kinds_of(TrainingConfig)
    if name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no option `{name}`{hint}")
    if isinstance(value, str) and kinds[name] in (float, float | None):
        with suppress(ValueError):  # the type is refused below
            value = float(value)
    if problem := option_misfit(name, value):
        raise ValueError(problem)
    return value


def load_model_config(name_or_path: str) -> dict[str, Any]:
    """Load the arguments of a saved U-Net, except the size and the channels, which the data decides.

    Args:
        name_or_path (`str`): JSON file, folder or Hub id of a [`DDPMUNetModel`] or a `UNet2DModel`, or the folder of a
            pipeline.

    Raises:
        ValueError: If it cannot be loaded or is no such network.
    """
    source = Path(name_or_path)
    try:
        if not source.exists():
            check_id(name_or_path)
        # The network of a pipeline is in its folder unet/.
        config = DDPMUNetModel.load_config(source / "unet" if (source / "unet" / "config.json").exists() else source)
        if config.get("_class_name") == "UNet2DModel":
            config = config_from_unet2d(config)
        return _checked_model({key: value for key, value in config.items() if key[0] != "_"})
    except (ValueError, OSError) as error:
        raise ValueError(f"--model_config_name_or_path {name_or_path}: {error}") from error


def _checked_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a U-Net that the data does not decide, once a network could be made of them."""
    model = {key: value for key, value in config.items() if key not in DECIDED_BY_DATA}
    if unknown := model.keys() - inspect.signature(DDPMUNetModel).parameters.keys():
        raise ValueError(f"it has the unknown keys {', '.join(sorted(unknown))}; expected those of a DDPMUNetModel.")
    with torch.device("meta"):
        DDPMUNetModel(**model)
    return model
