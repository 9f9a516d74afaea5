"""The command line of train_ddpm.py, made from the options."""

import argparse
import dataclasses
import difflib
import inspect
import os
import re
import types
import typing
from pathlib import Path

import torch

from ddpm_hf.config import TrainingConfig
from ddpm_hf.convert import config_from_unet2d
from ddpm_hf.loading import check_id
from ddpm_hf.presets import PRESETS
from ddpm_hf.tokens import hide_arguments, holds_token, refuse_token
from ddpm_hf.unet_ddpm import DDPMUNetModel


def parse_command_line(argv: list[str] | None = None) -> tuple[TrainingConfig, bool]:
    """Read the options of train_ddpm.py: the preset's, overridden by the flags.

    Args:
        argv (`list[str]`, *optional*): The arguments; by default the process's.

    Returns:
        `tuple`: The [`TrainingConfig`], and whether `--dry_run` was given. A bad flag ends the process with one line on
        standard error and exit code 2.
    """
    parser = _make_parser()
    flags = vars(parser.parse_args(argv))
    dry_run, token = flags.pop("dry_run", False), flags.pop("hub_token", None)
    options = dict(PRESETS[flags.get("preset", "mnist-mini")])
    if "train_data_dir" in flags:
        del options["dataset_name"]
    if "num_epochs" in flags:
        del options["max_train_steps"]
    try:
        if steps := os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS"):
            flags.setdefault("gradient_accumulation_steps", _whole_number(steps))
        if "model_config_name_or_path" in flags:
            options["model"] = _load_model_config(flags["model_config_name_or_path"])
        refuse_token("--hub_model_id", flags.get("hub_model_id") or "")
        if holds_token(flags.get("output_dir") or ""):
            refuse_token("--output_dir", flags["output_dir"])
        config = TrainingConfig(**{**options, **flags})
    except (ValueError, OSError) as error:
        parser.error(" ".join(str(error).split()))
    config.hub_token = token
    return config, dry_run


def _whole_number(text: str) -> int:
    if not re.fullmatch(r"\d+", text):
        raise ValueError(f"ACCELERATE_GRADIENT_ACCUMULATION_STEPS {text}: expected a whole number.")
    return int(text)


def _load_model_config(name_or_path: str) -> dict:
    """The arguments of a U-Net like a saved one's, but for the size and the channels, which the data decides."""
    source = Path(name_or_path)
    try:
        if not source.exists():
            check_id(name_or_path)
        # Of the folder of a pipeline, the part.
        config = DDPMUNetModel.load_config(source / "unet" if (source / "unet" / "config.json").exists() else source)
        if config.get("_class_name") == "UNet2DModel":
            config = config_from_unet2d(config)
        decided_by_data = ("sample_size", "in_channels", "out_channels", "num_class_embeds", "class_names")
        model = {key: value for key, value in config.items() if key[0] != "_" and key not in decided_by_data}
        if unknown := model.keys() - inspect.signature(DDPMUNetModel).parameters.keys():
            raise ValueError(
                f"it has the unknown keys {', '.join(sorted(unknown))}; expected those of a DDPMUNetModel."
            )
        with torch.device("meta"):
            DDPMUNetModel(**model)
    except (ValueError, OSError) as error:
        raise ValueError(f"--model_config_name_or_path {name_or_path}: {error}") from error
    return model


def _make_parser() -> "Parser":
    parser = Parser(
        prog="train_ddpm.py",
        usage="accelerate launch train_ddpm.py [--preset NAME] [--FLAG VALUE ...]",
        description="Train a denoising diffusion probabilistic model. Without flags: handwritten digits, in minutes.",
        formatter_class=lambda prog: argparse.HelpFormatter(prog, max_help_position=36, width=120),
        allow_abbrev=False,
    )
    groups = {}
    for option in dataclasses.fields(TrainingConfig):
        name = option.metadata["group"]
        if name not in groups:
            groups[name] = parser.add_argument_group(name)
        if option.name != "model":
            add_flag(groups[name], option)
    groups["Hub"].add_argument(
        "--hub_token",
        metavar="STR",
        help="A token that can write; by default that of HF_TOKEN or `hf auth login`, which other users cannot see.",
    )
    groups["Run"].add_argument("--dry_run", action="store_true", help="Print the options and the sizes, and stop.")
    return parser


def add_flag(group, option: dataclasses.Field, *aliases: str):
    """Add a flag, typed like the field. A flag that is not given leaves no trace, so that the preset decides."""
    hint = typing.get_type_hints(TrainingConfig)[option.name]
    flag = {"dest": option.name, "default": argparse.SUPPRESS, "help": option.metadata["help"].replace("%", "%%")}
    if hint is bool:
        group.add_argument(f"--{option.name}", f"--no_{option.name}", action=_Switch, nargs=0, **flag)
        return
    if isinstance(hint, types.UnionType):
        hint = next(kind for kind in typing.get_args(hint) if kind is not type(None))
    choices = PRESETS if option.name == "preset" else typing.get_args(hint)
    kind = {"type": str, "choices": choices} if choices else {"type": hint, "metavar": hint.__name__.upper()}
    group.add_argument(f"--{option.name}", *aliases, **flag, **kind)


class _Switch(argparse.Action):
    """`--name` for True, `--no_name` for False."""

    def __call__(self, parser, namespace, values, option_string=None):
        setattr(namespace, self.dest, not option_string.startswith("--no_"))


# Flags of other training scripts, and what there is here instead.
_ELSEWHERE = {
    "--local_rank": "leave it out: `accelerate launch` and `torchrun` tell each process its number by LOCAL_RANK",
    "--pretrained_model_name_or_path": "training starts from random weights; --model_config_name_or_path takes the "
    "configuration of a saved network, without its weights",
    "--enable_xformers_memory_efficient_attention": "leave it out: attention is always memory-efficient",
    "--dataloader_num_workers": "leave it out: images are decoded once, before the training",
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
