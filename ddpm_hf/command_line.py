"""The command line of a training, made from the options."""

import argparse
import dataclasses
import difflib
import os
import re
import sys
import types
import typing
from pathlib import Path
from typing import Any

from ddpm_hf.config import DEFAULT_PRESET, TrainingConfig, options_for_evaluate
from ddpm_hf.config_file import read_config_file
from ddpm_hf.option_fields import kinds_of
from ddpm_hf.presets import FITTED, PRESETS, preset_for
from ddpm_hf.terminal import one_line, say
from ddpm_hf.tokens import hide_arguments, holds_token, refuse_token

# If a layer has the first option, the others are dropped from lower layers. Otherwise a lower value would win.
_OVERRIDES = {
    "num_epochs": {"max_train_steps", "max_train_minutes"},
    "max_train_steps": {"max_train_minutes"},
    "max_train_minutes": {"max_train_steps"},
    "save_images_steps": {"save_images_epochs"},
    "save_model_steps": {"save_model_epochs"},
    "model_config_name_or_path": {"model", "pretrained_model_name_or_path"},
    "pretrained_model_name_or_path": {"model", "model_config_name_or_path"},
    "validation_split": {"validation_fraction"},
    "validation_fraction": {"validation_split"},
}

# Options of two numbers, and what the help calls them.
_OF_TWO_NUMBERS = {"value_range": ("LOW", "HIGH"), "guidance_interval": ("START", "END")}


def parse_command_line(
    argv: list[str] | None = None, program: str = "train_ddpm.py", of_command: dict[str, Any] | None = None
) -> tuple[TrainingConfig, bool]:
    """Read the options of a training: the preset's, overridden by those of `--config`, overridden by the flags.

    Args:
        argv (`list[str]`, *optional*): The arguments; by default the process's.
        program (`str`): The name of the command, for its help and its errors.
        of_command (`dict`, *optional*): Options that the command chooses; a file and the flags override them.

    Returns:
        `tuple`: The [`TrainingConfig`], and whether `--dry_run` was given. A bad option ends the process with one line
        on standard error and exit code 2.
    """
    parser = _make_parser({}, program)
    flags = vars(parser.parse_args(argv))
    path, wants_help, dry_run, token = (flags.pop(name) for name in ("config", "help", "dry_run", "hub_token"))
    unused = {flag: why for flag, why in _WITHOUT_EFFECT.items() if flags.pop(flag, None)}
    try:
        file = read_config_file(path, flags) if path else {}
        if flags.get("scheduler") not in (None, file.get("scheduler", "ddpm")):
            file.pop("ddpm_num_inference_steps", None)  # they were those of the other scheduler
        of_file, file = file.get("preset"), _override(of_command or {}, file)
        said = file | flags
        other = any(said.get(name) for name in ("train_data_dir", "dataset_name", "model_size"))
        preset = said.get("preset", "auto" if other else DEFAULT_PRESET)
        if of_file and preset != of_file:
            raise ValueError(f"--preset {preset} contradicts --config {path}, which says {of_file}.")
        below = _override(preset_for(PRESETS.get(preset, {}), said), file)
        if wants_help:
            chosen = dict.fromkeys(FITTED, "chosen for the run") if preset == "auto" else {}
            _make_parser(chosen | below | {"preset": preset}, program).print_help()
            sys.exit(0)
        if steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
            below.setdefault("gradient_accumulation_steps", _whole_number(steps))
        if flags.get("model_config_name_or_path"):
            from ddpm_hf.model_config import load_model_config

            flags["model"] = load_model_config(flags["model_config_name_or_path"])
        options = _override(below, flags) | {"preset": preset}
        refuse_token("--hub_model_id", options.get("hub_model_id") or "")
        for name in ("output_dir", "run_name"):
            if holds_token(options.get(name) or ""):
                refuse_token(f"--{name}", options[name])
        if "max_train_minutes" in flags and flags.keys() & {"max_train_steps", "num_epochs"}:
            raise ValueError(
                "--max_train_minutes chooses the number of steps; pass it without --max_train_steps and --num_epochs."
            )
        if options.get("streaming") and "num_epochs" in said and "max_train_steps" not in options:
            raise ValueError(
                "--streaming reads a data set of unknown length: pass --max_train_steps or --max_train_minutes, and no "
                "--num_epochs."
            )
        given = options.keys() - (PRESETS.get(preset, {}).keys() - said.keys())
        if options.get("pretrained_model_name_or_path"):
            from ddpm_hf.base_options import options_of, take_base

            options = take_base(options, _override(file, flags), token)
            given |= options_of(options["base"]).keys()
        steps, of_samples = options.get("distill_steps"), flags.get("ddpm_num_inference_steps")
        if steps and of_samples not in (None, steps):
            raise ValueError(f"--ddpm_num_inference_steps {of_samples}: a student of {steps} steps draws with {steps}.")
        config = TrainingConfig(**options)
        if of_samples and of_samples > (T := config.ddpm_num_steps):
            raise ValueError(f"--ddpm_num_inference_steps {of_samples}: expected at most --ddpm_num_steps, {T}.")
    except (ValueError, OSError) as error:
        parser.error(one_line(error))
    config.hub_token = token
    config.given = frozenset(given)
    say(f"{flag} changes nothing: {why}." for flag, why in unused.items())
    return config, dry_run


def _override(below: dict[str, Any], above: dict[str, Any]) -> dict[str, Any]:
    """Merge two layers of options. Those of the lower layer that the upper one replaces or cancels are dropped."""
    void = {other for name, others in _OVERRIDES.items() if above.get(name) for other in others}
    if any(above.get(name) not in (None, below.get(name)) for name in ("dataset_name", "train_data_dir")):
        void |= {"label_column"} | {option.name for option in options_for_evaluate("source")}
    return {name: value for name, value in below.items() if name not in void} | above


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS {text}: expected a whole number.")
    return int(text)


def _make_parser(defaults: dict[str, Any], program: str) -> "Parser":
    """Make the parser. Its help shows these defaults, and those of [`TrainingConfig`] for all other options."""
    launch = program if program.startswith("ddpm-hf") else f"accelerate launch {program}"
    parser = Parser(
        prog=program,
        usage=f"{launch} [--preset NAME] [--config FILE] [--FLAG VALUE ...]",
        description="Train a denoising diffusion probabilistic model. Without flags: handwritten digits, in minutes.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=120),
        allow_abbrev=False,
        add_help=False,
    )
    groups = {}
    for option in dataclasses.fields(TrainingConfig):
        name = option.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        if kinds_of(TrainingConfig)[option.name] is not dict:  # these are read from files
            add_flag(groups[name], option, default=defaults.get(option.name, option.default))
    run = groups["Run"]
    run.add_argument("--config", type=Path, metavar="FILE", help="YAML file of options, or config.json of a run.")
    run.add_argument("--dry_run", action="store_true", help="Print the options and the sizes, and stop.")
    run.add_argument("-h", "--help", action="store_true", help="Print the flags and their defaults, and stop.")
    groups["Hub"].add_argument(
        "--hub_token",
        metavar="STR",
        help="A token that can write; by default that of HF_TOKEN or `hf auth login`, which other users cannot see.",
    )
    for flag in _WITHOUT_EFFECT:
        names = (flag, flag.replace("_", "-"))
        parser.add_argument(
            *names, dest=flag, nargs="?", const="yes", default=argparse.SUPPRESS, help=argparse.SUPPRESS
        )
    return parser


def add_flag(group, option: dataclasses.Field, *aliases: str, default: Any = None):
    """Add a flag for an option.

    A flag that is not given leaves no trace, so that the layers below decide.

    Args:
        group: A group of an argument parser.
        option (`dataclasses.Field`): The option, which has the type and the help.
        aliases (`str`): Other names of the flag.
        default: What the help names as the default.
    """
    kind = kinds_of(TrainingConfig)[option.name]
    text = option.metadata["help"] + ("" if default is None else f" Default: {_in_help(default)}.")
    flag = {"dest": option.name, "default": argparse.SUPPRESS, "help": text.replace("%", "%%")}
    if kind is bool:
        group.add_argument(f"--{option.name}", f"--no_{option.name}", action=_Switch, nargs=0, **flag)
        return
    if option.name in _OF_TWO_NUMBERS:
        group.add_argument(f"--{option.name}", nargs=2, type=float, metavar=_OF_TWO_NUMBERS[option.name], **flag)
        return
    if isinstance(kind, types.UnionType):
        kinds = [each for each in typing.get_args(kind) if each is not type(None)]
        kind = str if str in kinds else kinds[0]  # what else a text can be is checked with the options
    choices = PRESETS if option.name == "preset" else typing.get_args(kind)
    typed = {"type": str, "choices": choices} if choices else {"type": kind, "metavar": kind.__name__.upper()}
    if option.metadata["alone"] is not None:
        typed |= {"nargs": "?", "const": option.metadata["alone"]}
    group.add_argument(f"--{option.name}", *aliases, **flag, **typed)


def _in_help(default: Any) -> str:
    if isinstance(default, bool):
        return "yes" if default else "no"
    return f"{default:g}" if isinstance(default, float) else str(default)


class _Switch(argparse.Action):
    """`--name` for True, `--no_name` for False."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no_"))


# Flags of diffusers' train_unconditional.py that change nothing here, and why.
_WITHOUT_EFFECT = {
    "--dataloader_num_workers": "images are decoded once, before the training",
    "--enable_xformers_memory_efficient_attention": "attention is always memory-efficient",
    "--local_rank": "the launcher tells each process its number",
}

# Flags of other training scripts, and what to use here instead.
_ELSEWHERE = {
    "--report_to": "use --logger",
    "--image_size": "use --resolution",
    "--lr": "use --learning_rate",
    "--fp16": "use --mixed_precision fp16",
    "--bf16": "use --mixed_precision bf16",
}


class Parser(argparse.ArgumentParser):
    """An argument parser whose errors are one line, with the nearest known flag."""

    def error(self, message: str):
        unknown = message.removeprefix("unrecognized arguments: ").split()[0].split("=")[0]
        near = difflib.get_close_matches(unknown, self._option_string_actions, n=1, cutoff=0.7)
        hint = f" (did you mean {near[0]}?)" if near and message.startswith("unrecognized") else ""
        elsewhere = _ELSEWHERE.get(unknown.replace("-", "_").replace("__", "--", 1))
        hint = f" ({elsewhere})" if elsewhere else hint
        self.exit(2, f"{self.prog}: error: {hide_arguments(message).rstrip('.')}{hint}; --help lists the flags.\n")
