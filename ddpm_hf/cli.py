"""The command `ddpm-hf`: what one does with a model that is already there."""

import argparse
import sys

from ddpm_hf.checkpoint import save_pipeline
from ddpm_hf.convert import load_pipeline, to_stock_pipeline


def main(argv: list[str] | None = None):
    """Run a subcommand; what is wrong with its arguments ends the process with one line on standard error.

    Args:
        argv (`list[str]`, *optional*): The arguments; by default the process's.
    """
    parser = argparse.ArgumentParser(prog="ddpm-hf", allow_abbrev=False)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_convert(subcommands)
    arguments = vars(parser.parse_args(argv))
    run = arguments.pop("run")
    try:
        run(**arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"ddpm-hf: error: {' '.join(str(error).split())}")


def _add_convert(subcommands):
    parser = subcommands.add_parser(
        "convert",
        help="change the classes that a model is saved in",
        description="Load a DDPM of any origin and save it in this package's classes, or in diffusers' own.",
    )
    parser.add_argument("source", help="folder or Hub id of a pipeline, or a file of the annotated tutorial's weights")
    parser.add_argument("output_dir", help="folder to save the pipeline in")
    parser.add_argument(
        "--to",
        choices=("ddpm_hf", "diffusers"),
        default="ddpm_hf",
        help="ddpm_hf: DDPMUNetModel and DDPMLinearScheduler; diffusers: UNet2DModel and DDPMScheduler",
    )
    parser.add_argument("--sample_size", type=int, default=32, help="pixels a side, for a file, which does not tell")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.set_defaults(run=_convert)


def _convert(source: str, output_dir: str, to: str, sample_size: int, revision: str | None):
    pipeline = load_pipeline(source, sample_size, revision=revision)
    save_pipeline(to_stock_pipeline(pipeline) if to == "diffusers" else pipeline, output_dir)
    print(f"Converted {source} to {to} in {output_dir}.")
