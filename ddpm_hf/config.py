"""The options of a training run, each declared in one place."""

import dataclasses
import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from ddpm_hf.distillation_options import TAUGHT_GUIDANCE_SCALE, TEACHER_STEPS, check_distillation
from ddpm_hf.forms import shown
from ddpm_hf.held_out_options import check_held_out
from ddpm_hf.option_fields import Evaluate, expected_range, expected_type, kinds_of, option
from ddpm_hf.presets import PRESETS

DEFAULT_PRESET = "mnist-mini"
# What the images decide about the network. It is no part of the option `model`.
DECIDED_BY_DATA = (
    "sample_size", "in_channels", "out_channels", "num_class_embeds", "class_names", "class_frequencies", "pixel_format"
)  # fmt: skip

_run = partial(option, "Run")
_data = partial(option, "Data")
_model = partial(option, "Model")
_diffusion = partial(option, "Diffusion")
_distillation = partial(option, "Distillation")
_optimisation = partial(option, "Optimisation")
_average = partial(option, "Moving average")
_output = partial(option, "Output", resume="free")
_hub = partial(option, "Hub", resume="free")


@dataclass
class TrainingConfig:
    """The options of a run, named as in diffusers' train_unconditional.py where it has them.

    Raises:
        ValueError: If a value is out of range or two values do not fit; the message names the flag and what would fit.
    """

    # fmt: off
    preset: str = _run(DEFAULT_PRESET, f"Name of the preset that the defaults come from; auto chooses what fits the pictures and the machine. By default {DEFAULT_PRESET} for the embedded digits, and auto for other pictures.", resume="free", card=True)
    output_dir: str | None = _run(None, "Folder of the run, made if missing; by default named after the data, such as ddpm-pictures, or after the preset.", resume="free")
    overwrite_output_dir: bool = _run(False, "Train from the start, and throw away what the folder holds of an earlier run; other files stay.", resume="free")
    resume_from_checkpoint: str = _run("latest", "latest: go on from the newest whole checkpoint, if there is one; or the name of one, such as step-000500.", resume="free")
    seed: int = _run(0, "The run is a function of its options and this number.", minimum=0, card=True)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = _run("auto", "auto: bf16 where the hardware is fast at it, else no.", card=True)

    dataset_name: str | None = _data(None, "Data set on the Hub, or a local folder of parquet files; by default the embedded 10,000 digits.", resume="source", evaluate="source")
    dataset_config_name: str | None = _data(None, "Configuration of the data set.", resume="source", evaluate="source")
    dataset_split: str = _data("train", "Split of the data set, or of a folder that is sorted into train/, test/ and the like; train+test takes both.", resume="source", evaluate="source")
    train_data_dir: str | None = _data(None, "Folder of pictures, and of ZIP files of them, searched recursively, instead of a data set.", resume="source", evaluate="source")
    image_column: str | None = _data(None, "Column of the images; by default the first of that type.", resume="source", evaluate="source")
    class_conditional: bool = _data(False, "Train on the labels of the images too, so that samples of a class can be drawn.")
    label_column: str | None = _data(None, "Column of the labels; by default the first of type ClassLabel.")
    cond_dropout: float = _data(0.1, "Share of images whose label is left out in training, for guidance without a classifier (arXiv 2207.12598).", minimum=0, maximum=1)
    validation_split: str | None = _data(None, "Hold out another split of the data set, or of a sorted folder: it is not trained on, and its loss is measured.")
    validation_fraction: float | None = _data(None, "Hold out this share of the images instead, chosen by the seed and the images, such as 0.1.", minimum=0, maximum=1)
    cache_dir: str | None = _data(None, "Where downloads and decoded images are kept; by default the cache of `datasets`.", resume="free", evaluate="flag")
    streaming: bool = _data(False, "Read the data set as it comes, for those larger than the disk; needs max_train_steps.")
    streaming_buffer_size: int = _data(10_000, "Images that are held in memory and shuffled, when streaming.", minimum=1)
    max_unreadable: float = _data(0.01, "Share of images that may be left out, because they cannot be read.", minimum=0, maximum=1, resume="free", evaluate="reading")
    resolution: int | str = _data(28, "Size of the training images in pixels: one number for squares, or HEIGHTxWIDTH, such as 64x96.", minimum=1)
    image_fit: Literal["crop", "pad"] = _data("crop", "crop: resize the short side, cut out the centre; pad: centre on black, for images smaller than the resolution.", evaluate="reading")
    small_images: Literal["error", "upscale", "skip"] = _data("error", "Images smaller than the resolution: refuse them all at once, enlarge them, or leave them out.", resume="source", evaluate="reading")
    image_mode: Literal["auto", "L", "LA", "RGB", "RGBA", "bands"] = _data("auto", "Channels: of pictures with 8 bits, as Pillow names them; bands: all bands or pages as they are; auto: L or RGB, and bands where Pillow reads nothing.", evaluate="reading")
    value_range: list | str | None = _data(None, "The smallest and the largest number that a pixel can be, such as -1000 3000; the network sees them as -1 and 1.")
    preserve_input_precision: bool = _data(False, "Keep pictures of 16 bits and of floating-point numbers in their precision, not in 256 levels.")
    center_crop: bool = _data(True, "Cut out the centre of the long side; --no_center_crop: another square of it each time.")
    celeba_crop: bool = _data(False, "First cut out the 140 pixels around the face, from the aligned 178x218 pictures of CelebA.", evaluate="reading")
    random_flip: bool = _data(False, "Mirror each image left to right with probability 1/2.")
    augment: bool = _data(False, "For few pictures: mirror, scale, turn, stretch and move them at random, and tell the network how, so that samples are not (arXiv 2206.00364).", card=True)
    augment_probability: float = _data(0.12, "Share of images that each of these changes is applied to.", minimum=0, maximum=1)

    model_size: Literal["auto", "tiny", "small", "base", "large"] = _model("auto", "The network and the settings that go with it, for --preset auto; by default those that fit the time.", card=True)
    model: dict = _model({}, "Configuration of the U-Net.")
    model_config_name_or_path: str | None = _model(None, "JSON file, folder or repository with another configuration of the U-Net.", resume="free")
    pretrained_model_name_or_path: str | None = _model(None, "Folder, repository or file of a trained model to go on from, with its U-Net, weights and scheduler.")
    base: dict = _model({}, "What that model says about itself.", resume="free")

    ddpm_num_steps: int = _diffusion(1000, "T, the number of noising steps.", minimum=2, card=True)
    ddpm_beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"] = _diffusion("linear", "Schedule of the betas; the paper's is linear, from 1e-4 to 0.02.", card=True)
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = _diffusion("epsilon", "What the network predicts: the noise (the paper), x_0, or v.", card=True)
    timestep_sampling: Literal["uniform", "lognormal", "loss_second_moment"] = _diffusion("uniform", "Timesteps to train: all alike (the paper); such that the noise level is log-normal; or more often where the loss is large, with less weight (arXiv 2102.09672, section 3.3).", card=True)
    lognormal_mean: float = _diffusion(0.5, "Mean of the logarithm of the noise level sqrt(1 / alpha_bar - 1).")
    lognormal_std: float = _diffusion(1.0, "Standard deviation of that logarithm.", minimum=1e-6)
    loss_weighting: Literal["simple", "min_snr", "vlb"] = _diffusion("simple", "simple: eq. 14 of the paper; min_snr: weigh the error of x_0 with min(SNR, snr_gamma) (arXiv 2303.09556); vlb: eq. 5, the variational bound in bits per dimension.", card=True)
    snr_gamma: float = _diffusion(5.0, "See loss_weighting.", minimum=1e-6)
    variance_type: Literal["fixed_small", "fixed_large", "learned_range"] = _diffusion("fixed_small", "Variance of a sampling step (section 3.2): beta_tilde_t, beta_t, or one between these that the network learns (arXiv 2102.09672).", card=True)
    clip_sample: bool = _diffusion(True, "Clip predictions of x_0 to [-1, 1] while sampling.", card=True)

    distill_steps: int | None = _distillation(None, "Teach the model of --pretrained_model_name_or_path to draw in so many denoising steps (arXiv 2202.00512).", minimum=1, card=True)
    distill_teacher_steps: int = _distillation(TEACHER_STEPS, "Steps of the teacher that one step of the student replaces.", minimum=1, card=True)
    distill_guidance_scale: float | None = _distillation(None, f"Guidance of a class-conditional teacher, which the student draws with in one call (arXiv 2210.03142); by default {TAUGHT_GUIDANCE_SCALE:g}; 1 is none.", minimum=0, card=True)

    train_batch_size: int = _optimisation(64, "Images in a micro-batch, on each process.", minimum=1, resume="split", card=True)
    gradient_accumulation_steps: int = _optimisation(1, "Micro-batches in an optimizer step.", minimum=1, resume="free", card=True)
    num_epochs: int = _optimisation(100, "Passes through the data, unless max_train_steps says otherwise.", minimum=1, resume="free")
    max_train_steps: int | None = _optimisation(None, "Optimizer steps; overrides num_epochs.", minimum=1, resume="free", card=True)
    max_train_minutes: float | None = _optimisation(None, "Minutes of training: before the first step, max_train_steps is chosen from the time that a step takes.", minimum=0.01, resume="free", card=True)
    optimizer: Literal["adam", "adamw", "muon"] = _optimisation("adamw", "adamw decouples the weight decay; muon takes orthogonal steps for the convolutions, which learn faster, and is adamw for the rest.", card=True)
    learning_rate: float = _optimisation(1e-4, "Highest learning rate.", minimum=0, card=True)
    lr_scheduler: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"] = _optimisation("cosine", "Course of the learning rate.", card=True)
    lr_warmup_steps: int = _optimisation(500, "Optimizer steps from 0 to the highest learning rate.", minimum=0, card=True)
    adam_beta1: float = _optimisation(0.9, "beta1 of Adam, below 1.", minimum=0, maximum=0.999999, card=True)
    adam_beta2: float = _optimisation(0.999, "beta2 of Adam, below 1.", minimum=0, maximum=0.999999, card=True)
    adam_weight_decay: float = _optimisation(0.0, "Weight decay.", minimum=0, card=True)
    adam_epsilon: float = _optimisation(1e-8, "epsilon of Adam.", minimum=0)
    max_grad_norm: float = _optimisation(1.0, "Gradients are scaled down to this norm; 0 leaves them.", minimum=0, card=True)
    compile: bool = _optimisation(False, "Compile the network, which takes a minute at the start.", resume="rounding")
    gradient_checkpointing: bool = _optimisation(False, "Recompute activations in the backward pass: less memory, more time.", resume="rounding")

    use_ema: bool = _average(True, "Keep an exponential moving average of the weights, and sample and save with it.", card=True)
    ema_inv_gamma: float = _average(1.0, "g in the decay of the average at step s, 1 - (1 + s / g) ** -p.", minimum=1e-6)
    ema_power: float = _average(0.75, "p in that decay: 3/4 for runs of up to a million steps, 2/3 for longer ones.", minimum=0, card=True)
    posthoc_ema: int | None = _average(None, "Also keep two averages whose length is a share of the run, and so many snapshots of them, from which `ddpm-hf ema` makes averages of other lengths after the run (arXiv 2312.02696). By default none; alone: 16.", minimum=2, alone=16)
    ema_max_decay: float = _average(0.9999, "The largest decay of the average.", minimum=0, maximum=1, card=True)

    save_images_steps: int = _output(500, "Optimizer steps between two grids of samples.", minimum=1)
    save_images_epochs: int | None = _output(None, "The same in epochs; overrides save_images_steps.", minimum=1)
    save_model_steps: int = _output(1000, "Optimizer steps between two saves of the pipeline.", minimum=1)
    save_model_epochs: int | None = _output(None, "The same in epochs; overrides save_model_steps.", minimum=1)
    checkpointing_steps: int = _output(500, "Optimizer steps between two checkpoints, from which the same command goes on.", minimum=1)
    checkpoints_total_limit: int = _output(2, "Checkpoints to keep; older ones are deleted after a new one is whole.", minimum=1)
    logger: Literal["none", "tensorboard", "wandb", "all"] = _output("none", "Where losses and samples are shown, beside metrics.jsonl and the pictures.")
    run_name: str | None = _output(None, "Name of the run in TensorBoard and Weights & Biases; by default that of the output folder.")
    track_emissions: str | None = _output(None, "Country, in three letters such as DEU, whose electricity the run uses: note energy and CO2 for the card, as codecarbon estimates them.")
    logging_dir: str = _output("logs", "Folder for TensorBoard, within the output folder.")
    logging_steps: int = _output(10, "Optimizer steps between two lines of metrics.jsonl.", minimum=1)
    eval_batch_size: int = _output(16, "Samples in a grid, and in a batch of a measurement.", minimum=1)
    scheduler: Literal["ddpm", "ddim", "dpmsolver++", "sde-dpmsolver++"] = _output("ddpm", "Scheduler of the samples, in a grid, to measure, and of the saved pipeline. The training is the same with each.", card=True)
    ddpm_num_inference_steps: int = _output(1000, "Denoising steps of the samples, in a grid, to measure, and by default of the saved pipeline; on the command line, 20 with a DPM-Solver and 50 with ddim, unless it is said.", minimum=1)
    guidance_scale: float | None = _output(None, "Guidance of a class-conditional model's samples, such as 2; by default 1, none.", minimum=0)
    guidance_interval: list | str | None = _output(None, "The part of the denoising with that guidance, from 0, pure noise, to 1, the picture, such as 0.5 1 (arXiv 2404.07724); by default all.")
    eval_steps: int | None = _output(None, "Optimizer steps between two measurements of the model; by default none.", minimum=1)
    eval_metrics: str = _output("bpd", "What to measure: bpd, fid, kid and prdc, with commas between them.")
    eval_num_images: int = _output(256, "Images of a measurement.", minimum=1)
    eval_features: str = _output("inception", "Features to measure with: inception; a file of TorchScript or torch.export; or module:callable.")

    validation_steps: int | None = _output(None, "Optimizer steps between two measurements of the loss of the images held out; by default as often as samples are drawn.", minimum=1)
    keep_best: Literal["none", "loss", "bpd", "fid", "kid", "precision", "recall", "density", "coverage"] = _output("none", "Keep the best pipeline in best/, beside the last: by the held-out loss (--keep_best alone), or by one of eval_metrics.", alone="loss")

    push_to_hub: bool = _hub(False, "Upload the trained pipeline with its card, after training.")
    hub_model_id: str | None = _hub(None, "Repository to upload to, made if missing; by default your own, named like the output folder.")
    hub_private_repo: bool = _hub(False, "Make the repository private, if it is made.")
    # fmt: on

    def __post_init__(self):
        # The token is no option, so config.json, checkpoints, trackers and --dry_run do not show it.
        self.hub_token: str | None = None
        # The options that somebody chose. The others are chosen for the run, if the preset is auto.
        self.given = frozenset(field.name for field in dataclasses.fields(self))
        self._check_each()
        self.model = dict(self.model)  # the preset's own stays as it is
        self.output_dir = self.output_dir or default_output_dir(self.preset, self.train_data_dir, self.dataset_name)
        self.resolution = name_of_size(*parse_size("--resolution", self.resolution))
        self.value_range = self.range_of_pixels and list(self.range_of_pixels)
        self.ddpm_num_inference_steps = min(self.ddpm_num_inference_steps, self.ddpm_num_steps)
        check_distillation(self)
        if self.guidance_interval is not None:
            self.guidance_interval = list(self.guided_part)
        self._check_together()
        self.check_halvings()

    def _check_each(self):
        """Raise a ValueError if an option has a wrong type, is out of its range, or is none of its choices."""
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if expected := expected_type(kinds_of(TrainingConfig)[field.name], value) or expected_range(field, value):
                raise ValueError(f"--{field.name} {value}: expected {expected}.")
        if self.preset not in PRESETS:
            raise ValueError(f"--preset {self.preset}: expected one of {', '.join(PRESETS)}.")

    def _check_together(self):
        """Raise a ValueError if two options do not fit together."""
        if self.dataset_name and self.train_data_dir:
            raise ValueError("--dataset_name and --train_data_dir both name the images; pass one of them.")
        if self.base and not self.pretrained_model_name_or_path:
            raise ValueError("`base` tells of the model of --pretrained_model_name_or_path, and none is named.")
        if self.image_fit == "pad" and self.small_images != "error":
            raise ValueError(
                f"--small_images {self.small_images} is for --image_fit crop; --image_fit pad centres small images on "
                "black as they are."
            )
        for name in ("label_column", "guidance_scale", "guidance_interval"):
            if getattr(self, name) is not None and not self.class_conditional:
                raise ValueError(f"--{name} is for a class-conditional model; pass --class_conditional, too.")
        if self.scheduler.endswith("dpmsolver++") and self.variance_type == "learned_range":
            raise ValueError(
                f"--scheduler {self.scheduler} takes no variance, and --variance_type learned_range learns one; save the "
                "model with ddpm, and pass --scheduler to `ddpm-hf sample`."
            )
        epochs = (self.save_images_epochs, self.save_model_epochs)
        if self.model_size != "auto" and self.preset != "auto":
            raise ValueError(
                f"--model_size {self.model_size} chooses a network for --preset auto, and --preset {self.preset} has one; "
                "pass one of them."
            )
        has_length = self.max_train_steps or self.max_train_minutes or self.preset == "auto"
        if self.streaming and (not self.dataset_name or not has_length or any(epochs)):
            raise ValueError(
                "--streaming reads a data set of unknown length: pass --dataset_name and --max_train_steps or "
                "--max_train_minutes, and no epochs."
            )
        if self.streaming and self.eval_steps:
            raise ValueError("--eval_steps measures with the images on the disk, and --streaming leaves none there.")
        if self.run_name is not None and self.logger == "none":
            raise ValueError(f"--run_name {self.run_name} is the name at the trackers; pass --logger, too.")
        if self.run_name is not None and not re.fullmatch(r"\w[\w. -]*", self.run_name):
            raise ValueError(f"--run_name {self.run_name}: expected letters, digits, and _ . - or spaces among them.")
        if self.loss_weighting == "vlb" and self.prediction_type == "sample":
            raise ValueError(
                "--loss_weighting vlb gives no gradient at t = 0 to a network that predicts x_0 from scratch; pass "
                "--prediction_type epsilon or v_prediction."
            )
        if self.loss_weighting == "vlb" and self.timestep_sampling == "lognormal":
            raise ValueError(
                "--timestep_sampling lognormal would weigh the terms of the bound, and --loss_weighting vlb is their "
                "sum; pass --timestep_sampling loss_second_moment or uniform."
            )
        if self.variance_type == "learned_range" and self.loss_weighting == "min_snr":
            raise ValueError(
                f"--loss_weighting {self.loss_weighting} would weigh the bound of a learned variance, too; leave it out, "
                "or pass a fixed --variance_type."
            )
        check_held_out(self)

    def check_halvings(self):
        """Raise a ValueError if the U-Net cannot halve the height and the width as often as it has to."""
        halvings = len(self.model.get("block_out_channels", ())) - 1
        factor = 2 ** max(halvings, 0)
        if not any(side % factor for side in self.size):
            return
        below = [side // factor * factor for side in self.size]
        above = [math.ceil(side / factor) * factor for side in self.size]
        fits = " or ".join(str(name_of_size(*sides)) for sides in (below, above) if all(sides))
        what = "the resolution has" if isinstance(self.resolution, int) else "height and width have"
        multiple = f"a multiple of {factor}" if isinstance(self.resolution, int) else f"multiples of {factor}"
        raise ValueError(
            f"--resolution {self.resolution}: the U-Net halves its input {halvings} times, so {what} to be {multiple}, "
            f"such as {fits}."
        )

    def count_steps(self, steps_per_epoch: float):
        """Turn what was given in epochs into optimizer steps, now that the size of the data set is known; 0 if not.

        Raises:
            ValueError: If the number of steps depends on a size that is not known.
        """
        if self.max_train_steps is None:
            if not steps_per_epoch:
                size = "the size of the data set is not known"
                raise ValueError(f"--num_epochs {self.num_epochs}: {size}; pass --max_train_steps.")
            self.max_train_steps = math.ceil(self.num_epochs * steps_per_epoch)
        if self.save_images_epochs is not None and steps_per_epoch:
            self.save_images_steps = math.ceil(self.save_images_epochs * steps_per_epoch)
        if self.save_model_epochs is not None and steps_per_epoch:
            self.save_model_steps = math.ceil(self.save_model_epochs * steps_per_epoch)
        # Up to a thousand images pass the network, which is little beside the drawing of samples.
        if self.validation_steps is None and (self.validation_split or self.validation_fraction):
            self.validation_steps = self.save_images_steps

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the training images, in pixels."""
        return parse_size("--resolution", self.resolution)

    @property
    def range_of_pixels(self) -> tuple[float, float] | None:
        """The two numbers of `value_range`."""
        return None if self.value_range is None else _two_numbers("--value_range", self.value_range, "-1000 3000")

    @property
    def guided_part(self) -> tuple[float, float]:
        """The two numbers of `guidance_interval`; 0 and 1 if there is none."""
        return parse_interval(self.guidance_interval, self.guidance_scale)

    @property
    def folder(self) -> Path:
        """The folder of the run."""
        assert self.output_dir is not None  # __post_init__ names it
        return Path(self.output_dir)

    @property
    def total_steps(self) -> int:
        """Optimizer steps of the run, once [`count_steps`] has counted them."""
        assert self.max_train_steps is not None
        return self.max_train_steps

    def differences(self, saved: dict, same_pictures: bool = False, same_step: bool = False) -> list[str]:
        """Return the options that differ from a saved run and so forbid to resume it, each as one line of text.

        Args:
            saved (`dict`): The options of that run.
            same_pictures (`bool`): Whether the pixels and labels are known to be the same; then it does not matter where
                they come from.
            same_step (`bool`): Whether a step takes as many images; then it does not matter in which micro-batches.
        """
        allowed = {"source": same_pictures, "split": same_step}
        return self._changes(saved, {"same", *(kind for kind, is_allowed in allowed.items() if not is_allowed)})

    def splits(self, saved: dict) -> list[str]:
        """Return the options that cut the images of a step into other micro-batches than in a saved run."""
        return self._changes(saved, {"split"})

    def roundings(self, saved: dict) -> list[str]:
        """Return the options that are not as in a saved run and change its numbers by rounding only."""
        return self._changes(saved, {"rounding"})

    def _changes(self, saved: dict, resume: set[str]) -> list[str]:
        """Return a line of text for each option of a kind that is not as in a saved run."""
        mine, defaults = json.loads(self.to_json()), dataclasses.asdict(TrainingConfig())
        saved = {**defaults, **saved}  # a run that is older than an option
        if "class_frequencies" not in saved["model"]:  # likewise
            mine["model"].pop("class_frequencies", None)
        return [
            f"--{field.name} {saved[field.name]} -> {mine[field.name]}"
            for field in dataclasses.fields(self)
            if field.metadata["resume"] in resume and saved[field.name] != mine[field.name]
        ]

    def to_json(self) -> str:
        """Return all options as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


def parse_interval(given: Sequence | str | None, guidance_scale: float | None) -> tuple[float, float]:
    """Return the two numbers of `--guidance_interval`; 0 and 1 if there are none.

    Raises:
        ValueError: If they are no part of 0 to 1, or if nothing is guided.
    """
    if given is None:
        return 0.0, 1.0
    start, end = _two_numbers("--guidance_interval", given, "0.5 1", least=0, most=1)
    if (start, end) != (0, 1) and guidance_scale in (None, 1):
        raise ValueError(
            f"--guidance_interval {start:g} {end:g} is a part of the guidance, and there is none; pass --guidance_scale, "
            "such as 2."
        )
    return start, end


def _two_numbers(
    flag: str, given: Sequence | str, example: str, least: float = -math.inf, most: float = math.inf
) -> tuple[float, float]:
    """Return two numbers, the lower one first, given as a list of them or as a text such as "-1000 3000".

    Raises:
        ValueError: If these are no such numbers, or leave the limits.
    """
    parts = given.split() if isinstance(given, str) else given
    try:
        low, high = map(float, parts)
    except (TypeError, ValueError):
        low = high = math.nan
    if not (least <= low < high <= most and math.isfinite(low) and math.isfinite(high)):
        shown_parts = " ".join(f"{part:g}" if isinstance(part, float) else str(part) for part in parts)
        limits = f" from {least:g} to {most:g}" if math.isfinite(least) else ""
        raise ValueError(f"{flag} {shown_parts}: expected two numbers{limits}, the lower one first, such as {example}.")
    return low, high


_SIZE = re.compile(r"([1-9]\d*)(?:x([1-9]\d*))?")


def parse_size(flag: str, text: int | str) -> tuple[int, int]:
    """Return the height and the width that a flag names: 64, or "64x96" for a height of 64 and a width of 96.

    Raises:
        ValueError: If it names no size.
    """
    match = _SIZE.fullmatch(str(text))
    if not match:
        raise ValueError(f"{flag} {text}: expected a number of pixels, such as 64, or HEIGHTxWIDTH, such as 64x96.")
    height, width = match.groups()
    return int(height), int(width or height)


def name_of_size(height: int, width: int) -> int | str:
    """Return the option `resolution` for a height and a width."""
    return height if height == width else f"{height}x{width}"


def default_output_dir(preset: str, train_data_dir: str | None, dataset_name: str | None) -> str:
    """Return the output folder of these images. It is named after the preset, unless they are other pictures."""
    source = train_data_dir or dataset_name
    if source is None or source == PRESETS.get(preset, {}).get("dataset_name"):
        return "ddpm-digits" if preset == "auto" else f"ddpm-{preset}"
    name = re.sub(r"[^\w.-]+", "-", Path(source).resolve().name).strip("-.")
    return f"ddpm-{name or 'pictures'}"


def options_for_evaluate(*uses: Evaluate) -> list[dataclasses.Field]:
    """Return the options that `ddpm-hf evaluate` uses in one of these ways; see [`~ddpm_hf.option_fields.option`]."""
    return [field for field in dataclasses.fields(TrainingConfig) if field.metadata["evaluate"] in uses]


def options_of_card() -> list[str]:
    """Return the names of the options that the model card lists. None of them is a path."""
    return [field.name for field in dataclasses.fields(TrainingConfig) if field.metadata["card"]]


def check_saved_options(options: dict, where: Path, advice: str):
    """Raise a ValueError unless the options of a run, as a file holds them, are of the types that they should be.

    Args:
        options (`dict`): The options; some may be missing, in a run that is older than they are.
        where (`Path`): The file, for the errors.
        advice (`str`): What to do if it is broken, as a sentence.

    Raises:
        ValueError: If a value is of another type, or an option is unknown; the message names the file and the key.
    """
    for name, value in options.items():
        if name not in kinds_of(TrainingConfig):
            raise ValueError(
                f"{where} has the unknown option `{name}`; a newer version of ddpm_hf may have written it."
            )
        if problem := option_misfit(name, value):
            raise ValueError(f"{where} is broken: {problem}. {advice}")


def option_misfit(name: str, value: Any) -> str:
    """Say how a value of JSON differs from what an option can be; return nothing if it does not."""
    expected = expected_type(kinds_of(TrainingConfig)[name], value)
    if name == "resolution" and not expected and not _SIZE.fullmatch(str(value)):
        expected = "a number of pixels, or HEIGHTxWIDTH"
    return expected and f"`{name}` is {shown(value)}; expected {expected}"
