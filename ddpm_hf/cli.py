"""The command `ddpm-hf`: what one does with a model that is already there."""

import argparse
import dataclasses
import shlex
import sys
from pathlib import Path

import torch

from ddpm_hf.checkpoint import save_pipeline
from ddpm_hf.config import GUIDANCE_SCALE, TrainingConfig, add_flag
from ddpm_hf.convert import load_pipeline, to_stock_pipeline
from ddpm_hf.evaluation import HOW_TO_READ, WHICH_IMAGES, evaluate
from ddpm_hf.hub import default_repo_id, push_run
from ddpm_hf.machine import choose_mixed_precision
from ddpm_hf.measuring import METRICS, Measurement
from ddpm_hf.sampling import SCHEDULERS, Classes, Drawing, fill_folder, open_model, save_grid
from ddpm_hf.space import push_space, write_space


def main(argv: list[str] | None = None):
    """Run a subcommand; what is wrong with its arguments ends the process with one line on standard error.

    Args:
        argv (`list[str]`, *optional*): The arguments; by default the process's.
    """
    parser = argparse.ArgumentParser(prog="ddpm-hf", allow_abbrev=False)
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_sample(subcommands)
    _add_evaluate(subcommands)
    _add_convert(subcommands)
    _add_push(subcommands)
    _add_demo(subcommands)
    arguments = vars(parser.parse_args(argv))
    run = arguments.pop("run")
    try:
        run(**arguments)
    except (ValueError, OSError) as error:
        sys.exit(f"ddpm-hf: error: {' '.join(str(error).split())}")
    # As train_ddpm.py does: threads of the group that are left to the interpreter's end can abort the process there.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


def _add_sample(subcommands):
    parser = subcommands.add_parser(
        "sample",
        help="draw images",
        description="Draw a grid of images, or a folder of any number; the same command goes on with a folder. "
        "Under `torchrun -m ddpm_hf.cli sample` processes share a folder's work.",
    )
    parser.add_argument("source", help="folder of a run or a pipeline, or Hub id")
    parser.add_argument("--output", type=Path, help="picture of the grid, or folder; default: samples.png, or samples")
    parser.add_argument("--num_images", type=int, help="fill a folder with so many images, instead of drawing a grid")
    parser.add_argument("--batch_size", type=int, default=16, help="images drawn at once; those of the grid")
    parser.add_argument("--num_inference_steps", type=int, help="denoising steps; default: all T")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="another than the saved one")
    parser.add_argument("--seed", type=int, default=0, help="image i is a function of this and i")
    parser.add_argument(
        "--class_labels",
        nargs="+",
        help="numbers or names of classes, in turns; default: all, if there are any",
    )
    parser.add_argument(
        "--guidance_scale", type=float, help=f"towards the classes; 1: none; default: {GUIDANCE_SCALE:g}"
    )
    _add_mixed_precision(parser)
    parser.add_argument("--checkpoint", help="of a run: the name of a checkpoint, such as step-000500, or latest")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.set_defaults(run=_sample)


def _add_mixed_precision(parser):
    parser.add_argument(
        "--mixed_precision",
        type=choose_mixed_precision,
        choices=("auto", "no", "bf16", "fp16"),
        default="no",
        help="of samples; auto: bf16 where the hardware is fast at it; default: no, so that seeds hold everywhere",
    )


def _sample(source, output, num_images, scheduler, class_labels, guidance_scale, checkpoint, revision, **how):
    for name, number in (("num_images", num_images), ("batch_size", how["batch_size"])):
        if number is not None and number < 1:
            raise ValueError(f"--{name} {number}: expected at least 1.")
    pipeline = open_model(source, checkpoint, scheduler, revision)
    how = Drawing(classes=Classes.chosen(pipeline, class_labels, guidance_scale), **how)
    if num_images is None:
        output = output or Path("samples.png")
        save_grid(pipeline, output, how)
    else:
        output = output or Path("samples")
        fill_folder(pipeline, output, num_images, how, checkpoint or source)
    print(f"{output} holds {num_images or how.batch_size} images.")


def _add_evaluate(subcommands):
    parser = subcommands.add_parser(
        "evaluate",
        help="measure a model",
        description="Bits per dimension; FID, KID, precision and recall of samples. The same command goes on with the "
        "samples. Under `torchrun -m ddpm_hf.cli evaluate` processes share the work.",
    )
    defaults = Measurement(metrics=())
    parser.add_argument("source", help="folder of a run or a pipeline, or Hub id")
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="what to measure")
    parser.add_argument("--num_images", type=int, default=defaults.num_images, help="samples; images for bpd, at most")
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size, help="images at once")
    parser.add_argument("--num_inference_steps", type=int, help="denoising steps of the samples; default: all T")
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="another than the saved one to draw samples with")
    parser.add_argument(
        "--bpd_timesteps", type=int, default=defaults.bpd_timesteps, help="for each image; T or more: the exact sum"
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="of samples, noise and choices")
    parser.add_argument(
        "--features", default=defaults.features, help="inception; file of TorchScript or torch.export; module:callable"
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=defaults.guidance_scale,
        help="of a class-conditional model's samples, which are of all classes in turns; default: 1, none",
    )
    _add_mixed_precision(parser)
    parser.add_argument("--save_samples", type=Path, help="folder to keep the samples in")
    parser.add_argument("--output", type=Path, help="default: evaluation.json in the folder of the run, or here")
    parser.add_argument("--checkpoint", help="of a run: the name of a checkpoint, such as step-000500, or latest")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    group = parser.add_argument_group("Images to compare with", "By default those of the run, or the embedded digits.")
    for option in dataclasses.fields(TrainingConfig):
        if option.name in WHICH_IMAGES + HOW_TO_READ:
            add_flag(group, option, *(["--dataset"] if option.name == "dataset_name" else []))
    parser.set_defaults(run=_evaluate)


def _evaluate(source, scheduler, checkpoint, revision, save_samples, output, **options):
    wanted = {field.name: options.pop(field.name) for field in dataclasses.fields(Measurement)}
    evaluate(source, Measurement(**wanted), options, scheduler, checkpoint, revision, save_samples, output)


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


def _add_push(subcommands):
    parser = subcommands.add_parser(
        "push",
        help="share a trained model on the Hub",
        description="Upload the pipeline of a run with its model card, in one commit; or its demo, as a Space.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of train_ddpm.py or of ddpm-hf convert")
    parser.add_argument("--hub_model_id", help="repository; by default that of the run, else named like the folder")
    parser.add_argument("--hub_private_repo", action="store_true", help="make the repository private, if it is made")
    parser.add_argument("--hub_token", help="a token that can write; by default that of HF_TOKEN or `hf auth login`")
    parser.add_argument("--space", action="store_true", help="write the demo into RUN/space, and upload that instead")
    parser.add_argument("--no_upload", action="store_true", help="of a Space: only write the folder")
    parser.set_defaults(run=_push)


def _push(folder, hub_model_id, hub_private_repo, hub_token, space, no_upload):
    if no_upload and not space:
        raise ValueError("--no_upload: a model has nothing to write first; pass --space too.")
    if space:
        written = write_space(folder)
        print(
            f"{written} holds a Space that needs nothing else; try it with: python {shlex.quote(f'{written}/app.py')}"
        )
    if not no_upload:
        push = push_space if space else push_run
        print(f"Pushed to {push(folder, hub_model_id or default_repo_id(folder), hub_token, hub_private_repo)}.")


def _add_demo(subcommands):
    parser = subcommands.add_parser(
        "demo",
        help="try a model in the browser",
        description="Serve a page to sample, denoise, interpolate and inpaint with a model, until Ctrl-C.",
    )
    parser.add_argument("source", metavar="RUN_OR_REPO", help="folder of a run or a pipeline, or Hub id")
    parser.add_argument("--checkpoint", help="of a run: the name of a checkpoint, such as step-000500, or latest")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.add_argument("--server_name", help="address to listen at, such as 0.0.0.0; default: this machine alone")
    parser.add_argument("--server_port", type=int, help="default: the first that is free from 7860 on")
    parser.add_argument("--open_browser", action="store_true", help="show the page at once")
    parser.set_defaults(run=_demo)


def _demo(**options):
    try:
        from ddpm_hf.demo import run_demo  # takes seconds to import, and not everybody has it
    except ModuleNotFoundError as error:
        raise ValueError('the demo needs Gradio: pip install "ddpm-hf[demo]"') from error
    run_demo(**options)


if __name__ == "__main__":
    main()
