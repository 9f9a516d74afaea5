"""Options from the file of `--config`."""

import difflib
from contextlib import suppress
from pathlib import Path
from typing import Any, get_args

import yaml

from ddpm_hf.config import TrainingConfig, option_misfit
from ddpm_hf.files import read_json
from ddpm_hf.option_fields import kinds_of
from ddpm_hf.terminal import one_line

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
            from ddpm_hf.model_config import checked_model

            options["model"] = checked_model(options["model"])
        if options.pop("base", None) and not is_of_run:
            raise ValueError("`base` is read from --pretrained_model_name_or_path; take it out of the file")
        if not options.get("model") and options.get("model_config_name_or_path"):
            from ddpm_hf.model_config import load_model_config

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
    """Return the value of an option. YAML 1.1 takes 1e-4, without a point, for a text, and `no` for false."""
    kinds = kinds_of(TrainingConfig)
    if name not in kinds:
        near = difflib.get_close_matches(str(name), kinds, n=1, cutoff=0.7)
        hint = f"; did you mean {near[0]}?" if near else ""
        raise ValueError(f"there is no option `{name}`{hint}")
    if isinstance(value, str) and kinds[name] in (float, float | None):
        with suppress(ValueError):  # the type is refused below
            value = float(value)
    if value is False and "no" in get_args(kinds[name]):
        value = "no"
    if problem := option_misfit(name, value):
        raise ValueError(problem)
    return value
