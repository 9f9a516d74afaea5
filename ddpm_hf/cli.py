"""The command `ddpm-hf`: train a model and use it. Each subcommand has a function for its flags and one that runs it.

The functions import what needs torch, diffusers or the Hub. So --help and mistyped flags are answered at once.
"""

import dataclasses
import math
import os
import sys
from pathlib import Path

from ddpm_hf import __version__
from ddpm_hf.command_line import Parser, add_flag, parse_command_line
from ddpm_hf.config import options_for_evaluate, parse_interval, parse_size
from ddpm_hf.ending import ending_at_once
from ddpm_hf.evaluation.measurement import BPD_DECODERS, METRICS, Measurement
from ddpm_hf.files import holds_files, read_json
from ddpm_hf.run_files import INDEX, is_run
from ddpm_hf.schedulers import FEW_STEPS, SCHEDULERS
from ddpm_hf.terminal import as_argument, one_line_errors, print_all_characters

PARTS_OF_DDPM = ("_class_name", "unet", "scheduler")  # keys in the index of its pipeline


class CommandParser(Parser):
    """A parser of one subcommand, or of the whole command."""

    def __init__(self, **options):
        super().__init__(allow_abbrev=False, **options)

    def parse_known_args(self, args=None, namespace=None):
        namespace, unknown = super().parse_known_args(args, namespace)
        if unknown:  # the parser above does not know the flags of this one, so it would suggest none
            self.error(f"unrecognized arguments: {' '.join(unknown)}")
        return namespace, unknown


def program():
    """Run [`main`]; Ctrl-C ends the process with exit code 130."""
    with ending_at_once():
        main()


def main(argv: list[str] | None = None):
    """Run a subcommand. An error of the user's ends the process with one line on standard error.

    The exit code is 2 for a flag that cannot be read, and 1 for all other errors.

    Args:
        argv (`list[str]`, *optional*): The arguments; the default is the process's.
    """
    print_all_characters()
    parser = CommandParser(prog="ddpm-hf")
    parser.add_argument("--version", action="version", version=f"ddpm-hf {__version__}")
    subcommands = parser.add_subparsers(required=True, metavar="COMMAND")
    subcommands.add_parser("train", help="train a model, in one process", add_help=False)
    subcommands.add_parser("distill", help="teach a trained model to draw in few steps", add_help=False)
    _add_sample(subcommands)
    _add_evaluate(subcommands)
    _add_ema(subcommands)
    _add_convert(subcommands)
    _add_export(subcommands)
    _add_push(subcommands)
    _add_demo(subcommands)
    argv = sys.argv[1:] if argv is None else argv
    if argv[:1] == ["train"]:
        return start_training(argv[1:], "ddpm-hf train")
    if argv[:1] == ["distill"]:
        return start_distillation(argv[1:])
    arguments = vars(parser.parse_args(argv))
    run = arguments.pop("run")
    try:
        with one_line_errors("ddpm-hf"):
            run(**arguments)
    except (MemoryError, RuntimeError) as error:
        from ddpm_hf.hardware import is_out_of_memory

        if not is_out_of_memory(error):
            raise
        sys.exit("ddpm-hf: error: the memory does not suffice; a smaller --batch_size needs less.")
    import torch

    # The threads of a process group can abort the process at the interpreter's end, so end them before.
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()


# ---- Flags and checks that several subcommands share ---------------------------------------------------------------


def _add_model(parser):
    parser.add_argument("source", metavar="RUN_OR_REPO", help="folder of a run or a pipeline, or Hub id")
    parser.add_argument("--checkpoint", help="of a run: the name of a checkpoint, such as step-000500, or latest")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")


def _add_drawing(parser):
    parser.add_argument(
        "--guidance_interval",
        nargs=2,
        type=float,
        metavar=("START", "END"),
        help="the part with guidance, from 0, pure noise, to 1, the picture, such as 0.5 1; default: all",
    )
    parser.add_argument(
        "--num_inference_steps", type=int, help="denoising steps of the samples; default: those of the run"
    )
    parser.add_argument("--scheduler", choices=SCHEDULERS, help="draws the samples in place of the saved one")
    parser.add_argument(
        "--mixed_precision",
        choices=("auto", "no", "bf16", "fp16"),
        help="of samples; auto: bf16 where the hardware is fast at it; default: what accelerate launch was told, else "
        "no, so that seeds hold everywhere",
    )


def _precision(choice) -> str:
    """Return the precision of samples, and print a note if accelerate was told another one."""
    from ddpm_hf.precision import check_mixed_precision, contradiction, precision_to_draw_in
    from ddpm_hf.processes import this_process

    precision = precision_to_draw_in(choice)
    check_mixed_precision(precision, this_process().device)
    if this_process().is_main_process:
        print("".join(f"{note}\n" for note in contradiction(precision)), end="")
    return precision


def _check_numbers(**numbers):
    """Raise a ValueError for a number that is smaller than its minimum or not finite. The user may leave each out."""
    for name, (number, minimum) in numbers.items():
        if number is not None and not (number >= minimum and math.isfinite(number)):
            raise ValueError(f"--{name} {number}: expected at least {minimum}.")


def _check_folder(path: Path, name: str = "--output"):
    """Raise a ValueError unless files can be written into a folder, which is made if it is missing."""
    existing = next(place for place in (path, *path.absolute().parents) if place.exists())
    if not existing.is_dir():
        raise ValueError(f"{name} {path}: {existing} is a file; expected a folder.")
    if not os.access(existing, os.W_OK | os.X_OK):
        raise ValueError(f"{name} {path}: {existing} may not be written to; name another.")


# ---- ddpm-hf train -------------------------------------------------------------------------------------------------


def start_training(argv: list[str] | None = None, program: str = "train_ddpm.py", of_command: dict | None = None):
    """Read the flags, look for the pictures that they name, and train.

    Args:
        argv, program, of_command: See [`~ddpm_hf.command_line.parse_command_line`].
    """
    print_all_characters()
    config, dry_run = parse_command_line(argv, program, of_command)
    from ddpm_hf.places import check_pictures

    with one_line_errors():
        check_pictures(config.train_data_dir, None if dry_run else config.dataset_name)
    from ddpm_hf.train import train

    train(config, dry_run)


# ---- ddpm-hf distill -----------------------------------------------------------------------------------------------


def start_distillation(argv: list[str]):
    """Train a student: `ddpm-hf distill RUN_OR_REPO [--steps N] [flags of the training]`."""
    parser = CommandParser(
        prog="ddpm-hf distill",
        usage="ddpm-hf distill RUN_OR_REPO [--steps N] [--FLAG VALUE ...]",
        description="Teach a trained model to draw in few denoising steps. The student is a run of its own. Its "
        "pictures are those of the teacher's run, unless flags name others; all flags of `ddpm-hf train` are allowed.",
    )
    parser.add_argument("source", metavar="RUN_OR_REPO", help="the teacher: folder of a run or a pipeline, or Hub id")
    parser.add_argument("--steps", type=int, default=4, metavar="N", help="denoising steps of the student; default: 4")
    if argv and argv[0].startswith("-") and argv[0] not in ("-h", "--help"):
        parser.error("RUN_OR_REPO comes first, before the flags")  # the value of a flag would be taken for it
    arguments, flags = super(CommandParser, parser).parse_known_args(argv)
    with one_line_errors("ddpm-hf distill"):
        from ddpm_hf.places import check_model
        from ddpm_hf.teacher_options import options_of_student

        check_model(arguments.source, None)
        below = options_of_student(arguments.source, arguments.steps, flags)
    start_training(flags, "ddpm-hf distill RUN_OR_REPO", below)


# ---- ddpm-hf sample ------------------------------------------------------------------------------------------------


def _add_sample(subcommands):
    parser = subcommands.add_parser(
        "sample",
        help="draw images",
        description="Draw a grid of images, or fill a folder with any number; the same command continues a folder. "
        "Under `torchrun -m ddpm_hf.cli sample` processes share a folder's work.",
    )
    _add_model(parser)
    parser.add_argument("--output", type=Path, help="picture of the grid, or folder; default: samples.png, or samples")
    parser.add_argument("--num_images", type=int, help="fill a folder with so many images, instead of drawing a grid")
    parser.add_argument(
        "--batch_size", type=int, help="images of the grid, by default 16; or drawn at once, by default the fastest"
    )
    parser.add_argument("--compile", action="store_true", help="compile the network first; pays for many images")
    parser.add_argument("--npz", type=Path, metavar="FILE", help="also pack the folder into one array, uint8")
    parser.add_argument("--seed", type=int, default=0, help="image i is a function of this and i")
    parser.add_argument("--class_labels", nargs="+", help="numbers or names, in turns; default: all that have names")
    parser.add_argument("--guidance_scale", type=float, help="towards the classes, such as 2; default: 1, no guidance")
    _add_drawing(parser)
    parser.set_defaults(run=_sample)


def _sample(
    source,
    output,
    num_images,
    scheduler,
    class_labels,
    guidance_scale,
    guidance_interval,
    checkpoint,
    revision,
    npz,
    compile,
    **how,
):
    _check_numbers(
        num_images=(num_images, 1),
        batch_size=(how["batch_size"], 1),
        num_inference_steps=(how["num_inference_steps"], 1),
        seed=(how["seed"], 0),
        guidance_scale=(guidance_scale, 0),
    )
    guidance_interval = parse_interval(guidance_interval, guidance_scale)
    from ddpm_hf.places import check_model

    check_model(source, revision)
    from ddpm_hf.pictures import is_ours
    from ddpm_hf.pixel_format import PixelFormat
    from ddpm_hf.processes import this_process
    from ddpm_hf.sample_folder import fill_folder, pack
    from ddpm_hf.sampling import Classes, Drawing, open_model, save_grid
    from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler

    how["mixed_precision"] = _precision(how["mixed_precision"])
    is_grid = num_images is None
    if npz:
        _check_npz(npz, is_grid)
    if compile and is_grid:
        raise ValueError("--compile takes a minute, and pays for many images; pass --num_images, too.")
    if is_grid and output is None and Path("samples.png").exists() and not is_ours(Path("samples.png")):
        raise ValueError("samples.png was not written by this command; name another with --output.")
    output = output or Path("samples.png" if is_grid else "samples")
    _check_picture(output) if is_grid else _check_folder(output)
    if is_grid and not this_process().is_main_process:
        return  # one process draws the grid
    pipeline = open_model(source, checkpoint, scheduler, revision, how["num_inference_steps"])
    form = PixelFormat.of_model(pipeline.unet.config)
    if npz and form.settings():
        raise ValueError(f"--npz {npz} holds pictures of 8 bits, and the samples are {form.describe()}; leave it out.")
    if class_labels and not pipeline.unet.config.get("num_class_embeds"):
        given = f"--class_labels {' '.join(class_labels)}"
        raise ValueError(f"{given} do not fit an unconditional model, as that of {source} is; leave them out.")
    if is_grid:
        how["batch_size"] = num_images = how["batch_size"] or 16
    classes = Classes.chosen(pipeline, class_labels, guidance_scale, guidance_interval)
    drawing, notes = Drawing(classes=classes, **how), []
    if is_grid:
        save_grid(pipeline, output, drawing)
    else:
        notes.append(fill_folder(pipeline, output, num_images, drawing, checkpoint or source, compile).describe())
    if this_process().is_main_process:
        if npz:
            pack(output, num_images, npz)
            notes.append(f"{npz} holds them as one array.")
        steps = how["num_inference_steps"] or (scheduler and pipeline.default_num_inference_steps)
        if isinstance(pipeline.scheduler, DDPMLinearScheduler) and steps and steps <= FEW_STEPS:
            better = "--scheduler sde-dpmsolver++ often draws better with as many"
            notes.append(f"{steps} steps are few for DDPM; {better}.")
        print(f"{output} holds {num_images} images.", *notes)


def _check_npz(path: Path, is_grid: bool):
    """Raise a ValueError unless the samples of a folder can be packed into this file."""
    if is_grid:
        raise ValueError(f"--npz {path} packs a folder of images; pass --num_images, too.")
    if path.suffix != ".npz" or path.is_dir():
        raise ValueError(f"--npz {path}: expected the name of a file, such as samples.npz.")
    _check_folder(path.parent, "--npz")


def _check_picture(path: Path):
    """Raise a ValueError unless a picture can be written to this path."""
    from PIL import Image

    if path.is_dir():
        raise ValueError(f"--output {path} is a folder; expected the name of a picture, such as {path}/samples.png.")
    Image.init()
    if Image.EXTENSION.get(path.suffix.lower()) not in Image.SAVE:
        raise ValueError(f"--output {path}: expected the name of a picture, such as samples.png.")
    _check_folder(path.parent)


# ---- ddpm-hf evaluate ----------------------------------------------------------------------------------------------


def _add_evaluate(subcommands):
    parser = subcommands.add_parser(
        "evaluate",
        help="measure a model",
        description="Bits per dimension; FID, KID, precision and recall of samples. The same command continues the "
        "samples. Under `torchrun -m ddpm_hf.cli evaluate` processes share the work.",
    )
    defaults = Measurement(metrics=())
    _add_model(parser)
    parser.add_argument("--metrics", nargs="+", choices=METRICS, default=list(METRICS), help="what to measure")
    parser.add_argument(
        "--num_images", type=int, default=defaults.num_images, help="samples, and at most as many images for bpd"
    )
    parser.add_argument("--batch_size", type=int, default=defaults.batch_size, help="images at once")
    parser.add_argument(
        "--bpd_timesteps",
        type=int,
        default=defaults.bpd_timesteps,
        help="timesteps for each image; T or more: the exact sum",
    )
    parser.add_argument(
        "--bpd_decoder",
        choices=BPD_DECODERS,
        default=defaults.bpd_decoder,
        help="how the probability of a pixel is computed; tanh: approximately, as in improved-diffusion",
    )
    parser.add_argument("--seed", type=int, default=defaults.seed, help="for the samples, the noise and the choices")
    parser.add_argument(
        "--features", default=defaults.features, help="inception; file of TorchScript or torch.export; module:callable"
    )
    parser.add_argument(
        "--guidance_scale",
        type=float,
        default=defaults.guidance_scale,
        help="for a class-conditional model, whose samples are of all classes in turns; default: 1, no guidance",
    )
    _add_drawing(parser)
    parser.add_argument("--save_samples", type=Path, help="folder to keep the samples in")
    parser.add_argument("--output", type=Path, help="default: evaluation.json in the folder of the run, or here")
    group = parser.add_argument_group("Images to compare with", "By default those of the run, or the embedded digits.")
    group.add_argument("--held_out", action="store_true", help="those that the run held out, not those it trained on")
    for option in options_for_evaluate("source", "reading", "flag"):
        add_flag(group, option, *(["--dataset"] if option.name == "dataset_name" else []))
    parser.set_defaults(run=_evaluate)


def _evaluate(source, scheduler, checkpoint, revision, save_samples, output, held_out, **options):
    wanted = {field.name: options.pop(field.name) for field in dataclasses.fields(Measurement)}
    _check_numbers(
        num_inference_steps=(wanted["num_inference_steps"], 1),
        seed=(wanted["seed"], 0),
        guidance_scale=(wanted["guidance_scale"], 0),
    )
    wanted["guidance_interval"] = parse_interval(wanted["guidance_interval"], wanted["guidance_scale"])
    from ddpm_hf.places import check_model, check_pictures

    check_model(source, revision)
    check_pictures(options.get("train_data_dir"), options.get("dataset_name"))
    from ddpm_hf.evaluation.command import evaluate
    from ddpm_hf.hub.card import write_card
    from ddpm_hf.processes import this_process

    wanted["mixed_precision"] = _precision(wanted["mixed_precision"])
    if output:
        if output.is_dir():
            raise ValueError(
                f"--output {output} is a folder; expected the name of a file, such as {output}/numbers.json."
            )
        _check_folder(output.parent)
    if save_samples:
        _check_folder(save_samples, "--save_samples")
    evaluate(source, Measurement(**wanted), options, scheduler, checkpoint, revision, save_samples, output, held_out)
    if output is None and checkpoint is None and is_run(Path(source)) and this_process().is_main_process:
        write_card(source)  # it shows the numbers


# ---- ddpm-hf ema ---------------------------------------------------------------------------------------------------


def _add_ema(subcommands):
    parser = subcommands.add_parser(
        "ema",
        help="average the weights of a run over other lengths",
        description="Make averages of the weights from the snapshots of a run that was trained with --posthoc_ema. One "
        "average becomes the pipeline in the output folder; several become pipelines in folders in it.",
    )
    defaults = Measurement(metrics=())
    parser.add_argument("run_folder", metavar="RUN", type=Path, help="folder of the run")
    parser.add_argument(
        "--std",
        type=float,
        nargs="+",
        required=True,
        help="lengths: standard deviations of the profiles, as shares of the run, such as 0.05 0.1 0.15",
    )
    parser.add_argument("--output_dir", type=Path, help="folder to make; default: the run's name and -ema")
    parser.add_argument(
        "--choose",
        choices=("bpd", "fid"),
        help="measure each, and save the best in the output folder, too; bpd: of held-out images, if the run has some",
    )
    group = parser.add_argument_group("Measurement, with --choose")
    group.add_argument("--num_images", type=int, help=f"images of a measurement; default: {defaults.num_images}")
    group.add_argument("--batch_size", type=int, help=f"images at once; default: {defaults.batch_size}")
    group.add_argument("--bpd_timesteps", type=int, help=f"timesteps for each image; default: {defaults.bpd_timesteps}")
    group.add_argument("--num_inference_steps", type=int, help="denoising steps of samples; default: those of the run")
    group.add_argument("--seed", type=int, help="for the samples, the noise and the choices; default: 0")
    group.add_argument("--features", help="see `ddpm-hf evaluate`; default: inception")
    group.add_argument("--cache_dir", help="where decoded images are kept; default: the cache of `datasets`")
    parser.set_defaults(run=_ema)


def _ema(run_folder: Path, std: list[float], output_dir: Path | None, choose: str | None, cache_dir, **measurement):
    given = {name: value for name, value in measurement.items() if value is not None}
    _check_numbers(
        **{name: (given[name], least) for name, least in (("num_inference_steps", 1), ("seed", 0)) if name in given}
    )
    if (given or cache_dir) and not choose:
        raise ValueError(f"--{next(iter([*given, 'cache_dir']))} is for a measurement; pass --choose, too.")
    others = {"bpd": ("features", "num_inference_steps"), "fid": ("bpd_timesteps",)}
    if choose and (unused := next((name for name in others[choose] if name in given), None)):
        raise ValueError(f"--{unused} changes nothing with --choose {choose}; leave it out.")
    names = [f"{each:g}" for each in std]  # also of the folders
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ValueError(f"--std {twice} is there twice; pass each length once.")
    if not run_folder.is_dir():
        raise ValueError(f"{run_folder}: there is no such folder; the snapshots of a run are on the disk alone.")
    wanted = Measurement(metrics=(choose,), **given) if choose else None
    output_dir = output_dir or Path(f"{run_folder.resolve().name}-ema")
    _check_apart(run_folder, output_dir, "--output_dir")
    from ddpm_hf.ema_command import make_averages
    from ddpm_hf.processes import this_process

    if (count := this_process().num_processes) > 1:
        raise ValueError(f"`ddpm-hf ema` runs in one process, and here are {count}; measure with `ddpm-hf evaluate`.")
    make_averages(run_folder, std, output_dir, wanted, cache_dir)


# ---- ddpm-hf convert -----------------------------------------------------------------------------------------------


def _add_convert(subcommands):
    parser = subcommands.add_parser(
        "convert",
        help="change the classes that a model is saved in",
        description="Load a DDPM of any origin and save it in this package's classes, or in diffusers' own.",
    )
    parser.add_argument("source", help="folder or Hub id of a pipeline, or a file of the annotated tutorial's weights")
    parser.add_argument("output_dir", type=Path, help="folder to save the pipeline in, made if missing")
    parser.add_argument(
        "--overwrite_output_dir", action="store_true", help="replace the pipeline in the folder; other files stay"
    )
    parser.add_argument(
        "--to",
        choices=("ddpm_hf", "diffusers"),
        default="ddpm_hf",
        help="ddpm_hf: DDPMUNetModel and DDPMLinearScheduler; diffusers: UNet2DModel and DDPMScheduler",
    )
    group = parser.add_mutually_exclusive_group()
    group.add_argument("--class_label", help="of a class-conditional model: make it one of this class alone")
    group.add_argument("--no_class", action="store_true", help="make it one without labels, which draws any class")
    parser.add_argument("--sample_size", default="32", help="pixels a side, or HEIGHTxWIDTH, for a file of weights")
    parser.add_argument("--revision", help="branch, tag or commit of a Hub id")
    parser.set_defaults(run=_convert)


def _convert(
    source: str,
    output_dir: Path,
    overwrite_output_dir: bool,
    to: str,
    class_label: str | None,
    no_class: bool,
    sample_size: str,
    revision: str | None,
):
    from ddpm_hf.places import check_model

    check_model(source, revision)
    from ddpm_hf.checkpoint import save_pipeline
    from ddpm_hf.convert import of_one_class, to_stock_pipeline
    from ddpm_hf.loading import load_pipeline
    from ddpm_hf.pixel_format import PixelFormat

    height, width = parse_size("--sample_size", sample_size)
    _check_target(Path(source), output_dir, overwrite_output_dir)
    pipeline = load_pipeline(source, height if height == width else (height, width), revision=revision)
    if class_label is not None or no_class:
        pipeline.register_modules(unet=of_one_class(pipeline.unet, class_label))
    save_pipeline(to_stock_pipeline(pipeline) if to == "diffusers" else pipeline, output_dir)
    form = PixelFormat.of_model(pipeline.unet.config)
    lost = f" UNet2DModel does not keep what its samples are: {form.describe()}." if form.settings() else ""
    if pipeline.unet.config.num_class_embeds:
        lost += " The pipelines of diffusers pass no labels to it; with --no_class or --class_label they draw."
    if student := pipeline.config.get("distilled"):
        lost += f" It is a student: pass num_inference_steps={student['steps']}."
    print(f"Converted {source} to {to} in {output_dir}.{lost if to == 'diffusers' else ''}")


def _check_apart(source: Path, target: Path, name: str):
    """Raise a ValueError unless files can be written into a folder, and it does not hold the source."""
    _check_folder(target, name)
    if source.exists() and target.resolve() in (source.resolve(), *source.resolve().parents):
        raise ValueError(f"{target} is, or holds, the source; name another folder.")


def _check_target(source: Path, target: Path, overwrite: bool):
    """Raise a ValueError unless a pipeline can be saved in a folder, and replaces no other files than a pipeline."""
    _check_apart(source, target, "OUTPUT_DIR")
    if not holds_files(target):
        return
    if not overwrite:
        raise ValueError(
            f"{target} holds files; name an empty folder, or pass --overwrite_output_dir to replace its pipeline."
        )
    if not (target / INDEX).is_file():
        raise ValueError(f"{target} holds files and no pipeline ({INDEX}) to replace; name an empty folder.")
    index = read_json(target / INDEX, {"unet": list, "scheduler": list}, "Name an empty folder.")
    if more := [name for name, entry in index.items() if isinstance(entry, list) and name not in PARTS_OF_DDPM]:
        raise ValueError(f"{target} is a pipeline with {', '.join(more)}, which is no DDPM; name an empty folder.")


# ---- ddpm-hf export ------------------------------------------------------------------------------------------------


def _add_export(subcommands):
    parser = subcommands.add_parser(
        "export",
        help="write a model for programs without PyTorch",
        description="Write the network, or the whole denoising loop, as ONNX or for torch.export, with the numbers of "
        "each denoising step in sampler.json; compare it with the model; and add a program that draws with it.",
    )
    _add_model(parser)
    parser.add_argument("output_dir", type=Path, help="folder to write into, made if missing")
    parser.add_argument(
        "--format", choices=("onnx", "torch.export", "safetensors-only"), default="onnx", help="default: onnx"
    )
    parser.add_argument("--loop", action="store_true", help="the whole denoising loop, and not the network alone")
    parser.add_argument(
        "--dtype",
        choices=("fp32", "fp16", "int8"),
        default="fp32",
        help="of the weights; fp16: stored in 16 bits, computed in 32; int8: computed in 8 bits, with worse pictures",
    )
    parser.add_argument("--num_inference_steps", type=int, help="denoising steps; default: those of the model")
    parser.add_argument("--scheduler", choices=("ddpm", "ddim"), help="in place of the saved one")
    parser.add_argument(
        "--guidance_scale", type=float, default=1.0, help="towards the classes, as part of the graph; default: 1, none"
    )
    parser.set_defaults(run=_export)


def _export(source, output_dir, checkpoint, revision, scheduler, **how):
    _check_numbers(num_inference_steps=(how["num_inference_steps"], 1), guidance_scale=(how["guidance_scale"], 0))
    from ddpm_hf.places import check_model

    check_model(source, revision)
    _check_folder(output_dir, "OUTPUT_DIR")
    if how["format"] == "onnx":
        _check_onnx("--format onnx")
    from ddpm_hf.export.files import FILES, Export, check_target, write_export
    from ddpm_hf.sampling import open_model

    check_target(output_dir)
    pipeline = open_model(source, checkpoint, scheduler, revision, how["num_inference_steps"]).to("cpu")
    how["num_inference_steps"] = how["num_inference_steps"] or pipeline.default_num_inference_steps
    pipeline.set_progress_bar_config(desc="Comparing", leave=False)
    export = Export(**how)
    print(f"Exporting {checkpoint or source}; large networks take minutes.", flush=True)
    difference = write_export(pipeline, output_dir, export)
    file = output_dir / FILES[export.format]
    compared = "" if difference is None else f" Its pictures differ by {difference:.1g} of the range from the model's."
    print(f"{file} holds {file.stat().st_size / 1e6:.2g} MB.{compared}")


def _check_onnx(flag: str):
    """Raise a ValueError if what writes ONNX is not installed."""
    try:
        import ddpm_hf.export.graph  # noqa: F401
    except ModuleNotFoundError as error:
        raise ValueError(f'{flag} needs {error.name}: pip install "ddpm-hf[export]"') from error


# ---- ddpm-hf push --------------------------------------------------------------------------------------------------


def _add_push(subcommands):
    parser = subcommands.add_parser(
        "push",
        help="share a trained model on the Hub",
        description="Upload the pipeline of a run with its model card, in one commit; or its demo, as a Space.",
    )
    parser.add_argument("folder", metavar="RUN", help="output folder of train_ddpm.py or of ddpm-hf convert")
    parser.add_argument(
        "--hub_model_id", help="repository; default: that of the run, or of an earlier push, or the folder's name"
    )
    parser.add_argument("--hub_private_repo", action="store_true", help="make a new repository private")
    parser.add_argument("--hub_token", help="a token that can write; default: that of HF_TOKEN or `hf auth login`")
    parser.add_argument("--space", action="store_true", help="write the demo into RUN/space, and upload that instead")
    parser.add_argument(
        "--static_space",
        action="store_true",
        help="write a demo that draws in the browser of the visitor into RUN/static_space, and upload that instead",
    )
    parser.add_argument("--no_upload", action="store_true", help="only write the folder of the Space")
    parser.add_argument(
        "--onnxruntime_web",
        type=Path,
        metavar="FOLDER",
        help="of a static Space: dist of this npm package; default: fetched from the npm registry, once",
    )
    parser.set_defaults(run=_push)


def _push(folder, hub_model_id, hub_private_repo, hub_token, space, static_space, no_upload, onnxruntime_web):
    from ddpm_hf.hub.checks import check_name
    from ddpm_hf.hub.links import MODEL, SPACE, STATIC_SPACE
    from ddpm_hf.hub.push import default_repo_id, push_run
    from ddpm_hf.hub.space import push_space, write_space

    if space and static_space:
        raise ValueError("--space and --static_space are two demos; push one after the other.")
    if no_upload and not (space or static_space):
        raise ValueError("--no_upload is for --space or --static_space; pass one of them too, or leave it out.")
    if onnxruntime_web and not static_space:
        raise ValueError("--onnxruntime_web is for --static_space; pass --static_space too, or leave it out.")
    kind = SPACE if space else STATIC_SPACE if static_space else MODEL
    repo_id = hub_model_id or default_repo_id(folder, kind)
    if not no_upload:
        check_name(repo_id, hub_token)  # before anything is written
    push = push_space if space else push_run
    if space:
        written = write_space(folder)
        app = as_argument(written / "app.py")
        print(f"{written} holds a Space that needs nothing else; try it with: python {app}")
    if static_space:
        _check_onnx("--static_space")
        from ddpm_hf.hub.static_space import push_static_space, write_static_space

        push, written = push_static_space, write_static_space(folder, onnxruntime_web)
        print(f"{written} holds a static Space; try it with: python -m http.server -d {as_argument(written)}")
    if not no_upload:
        print(f"Pushed to {push(folder, repo_id, hub_token, hub_private_repo)}.")


# ---- ddpm-hf demo --------------------------------------------------------------------------------------------------


def _add_demo(subcommands):
    parser = subcommands.add_parser(
        "demo",
        help="try a model in the browser",
        description="Serve a page to sample, denoise, interpolate and inpaint with a model, until Ctrl-C.",
    )
    _add_model(parser)
    parser.add_argument("--server_name", help="address to listen at, such as 0.0.0.0; default: this machine alone")
    parser.add_argument("--server_port", type=int, help="default: the first that is free from 7860 on")
    parser.add_argument("--open_browser", action="store_true", help="show the page at once")
    parser.add_argument(
        "--share",
        action="store_true",
        help="also serve it to everybody, at a public address that Gradio lends for a week",
    )
    parser.set_defaults(run=_demo)


def _demo(**options):
    port = options["server_port"]
    if port is not None and not 0 < port < 2**16:
        raise ValueError(f"--server_port {port}: expected 1 to {2**16 - 1}.")
    from ddpm_hf.places import check_model

    check_model(options["source"], options["revision"])
    try:
        from ddpm_hf.demo.page import run_demo
    except ModuleNotFoundError as error:
        raise ValueError('the demo needs Gradio: pip install "ddpm-hf[demo]"') from error
    run_demo(**options)


if __name__ == "__main__":
    program()
