"""Everything that decides a training run: the options, the presets, and the command line made from them."""

import dataclasses
import json
import math
import re
import typing
from dataclasses import dataclass, field
from pathlib import Path
from typing import ClassVar, Literal

from ddpm_hf.forms import in_words, is_of, shown
from ddpm_hf.presets import PRESETS

GUIDANCE_SCALE = 2.0  # of a class-conditional model's samples, unless somebody says otherwise


def _option(default, group: str, help: str, minimum: float | None = None, maximum: float | None = None):
    metadata = {"group": group, "help": help, "minimum": minimum, "maximum": maximum}
    if isinstance(default, dict):
        return field(default_factory=lambda: dict(default), metadata=metadata)
    return field(default=default, metadata=metadata)


@dataclass
class TrainingConfig:
    """The options of a run, named as in diffusers' train_unconditional.py where it has them.

    Raises:
        ValueError: If a value is out of range or two values do not fit; the message names the flag and what would fit.
    """

    # fmt: off
    preset: str = _option("mnist-mini", "Run", "Where the defaults come from: a column of the table of presets.")
    output_dir: str | None = _option(None, "Run", "Folder of the run, made if missing; by default named after the data, such as ddpm-pictures, or after the preset.")
    overwrite_output_dir: bool = _option(False, "Run", "Train from the start, and throw away what the folder holds of an earlier run; other files stay.")
    resume_from_checkpoint: str = _option("latest", "Run", "latest: go on from the newest whole checkpoint, if there is one; or the name of one, such as step-000500.")
    seed: int = _option(0, "Run", "The run is a function of its options and this number.", minimum=0)
    mixed_precision: Literal["auto", "no", "bf16", "fp16"] = _option("auto", "Run", "auto: bf16 where the hardware is fast at it, else no.")

    dataset_name: str | None = _option(None, "Data", "Data set on the Hub, or a local folder of parquet files; by default the embedded 10,000 digits.")
    dataset_config_name: str | None = _option(None, "Data", "Configuration of the data set.")
    dataset_split: str = _option("train", "Data", "Split of the data set, or of a folder that is sorted into train/, test/ and the like; train+test takes both.")
    train_data_dir: str | None = _option(None, "Data", "Folder of pictures, and of ZIP files of them, searched recursively, instead of a data set.")
    image_column: str | None = _option(None, "Data", "Column of the images; by default the first of that type.")
    class_conditional: bool = _option(False, "Data", "Train on the labels of the images too, so that samples of a class can be drawn.")
    label_column: str | None = _option(None, "Data", "Column of the labels; by default the first of type ClassLabel.")
    cond_dropout: float = _option(0.1, "Data", "Share of images whose label is left out in training, for guidance without a classifier (arXiv 2207.12598).", minimum=0, maximum=1)
    cache_dir: str | None = _option(None, "Data", "Where downloads and decoded images are kept; by default the cache of `datasets`.")
    streaming: bool = _option(False, "Data", "Read the data set as it comes, for those larger than the disk; needs max_train_steps.")
    streaming_buffer_size: int = _option(10_000, "Data", "Images that are held in memory and shuffled, when streaming.", minimum=1)
    max_unreadable: float = _option(0.01, "Data", "Share of images that may be left out, because they cannot be read.", minimum=0, maximum=1)
    resolution: int = _option(28, "Data", "Height and width of the training images in pixels.", minimum=1)
    image_fit: Literal["crop", "pad"] = _option("crop", "Data", "crop: resize the short side, cut out the centre; pad: centre on black, for images smaller than the resolution.")
    center_crop: bool = _option(True, "Data", "Cut out the centre of the long side; --no_center_crop: another square of it each time.")
    celeba_crop: bool = _option(False, "Data", "First cut out the 140 pixels around the face, from the aligned 178x218 pictures of CelebA.")
    random_flip: bool = _option(False, "Data", "Mirror each image left to right with probability 1/2.")

    model: dict = _option({}, "Model", "Configuration of the U-Net.")
    model_config_name_or_path: str | None = _option(None, "Model", "JSON file, folder or repository with another configuration of the U-Net.")

    ddpm_num_steps: int = _option(1000, "Diffusion", "T, the number of noising steps.", minimum=2)
    ddpm_beta_schedule: Literal["linear", "scaled_linear", "squaredcos_cap_v2", "laplace", "sigmoid"] = _option("linear", "Diffusion", "Schedule of the betas; the paper's is linear, from 1e-4 to 0.02.")
    prediction_type: Literal["epsilon", "sample", "v_prediction"] = _option("epsilon", "Diffusion", "What the network predicts: the noise (the paper), x_0, or v.")
    timestep_sampling: Literal["uniform", "lognormal"] = _option("uniform", "Diffusion", "Timesteps to train: all alike (the paper), or such that the noise level is log-normal.")
    lognormal_mean: float = _option(0.5, "Diffusion", "Mean of the logarithm of the noise level sqrt(1 / alpha_bar - 1).")
    lognormal_std: float = _option(1.0, "Diffusion", "Standard deviation of that logarithm.", minimum=1e-6)
    loss_weighting: Literal["simple", "min_snr"] = _option("simple", "Diffusion", "simple: eq. 14 of the paper; min_snr: weigh the error of x_0 with min(SNR, snr_gamma) (arXiv 2303.09556).")
    snr_gamma: float = _option(5.0, "Diffusion", "See loss_weighting.", minimum=1e-6)
    variance_type: Literal["fixed_small", "fixed_large"] = _option("fixed_small", "Diffusion", "Variance of a sampling step (section 3.2): beta_tilde_t or beta_t.")
    clip_sample: bool = _option(True, "Diffusion", "Clip predictions of x_0 to [-1, 1] while sampling.")

    train_batch_size: int = _option(64, "Optimisation", "Images in a micro-batch, on each process.", minimum=1)
    gradient_accumulation_steps: int = _option(1, "Optimisation", "Micro-batches in an optimizer step.", minimum=1)
    num_epochs: int = _option(100, "Optimisation", "Passes through the data, unless max_train_steps says otherwise.", minimum=1)
    max_train_steps: int | None = _option(None, "Optimisation", "Optimizer steps; overrides num_epochs.", minimum=1)
    optimizer: Literal["adam", "adamw"] = _option("adamw", "Optimisation", "adamw decouples the weight decay.")
    learning_rate: float = _option(1e-4, "Optimisation", "Highest learning rate.", minimum=0)
    lr_scheduler: Literal["linear", "cosine", "cosine_with_restarts", "polynomial", "constant", "constant_with_warmup"] = _option("cosine", "Optimisation", "Course of the learning rate.")
    lr_warmup_steps: int = _option(500, "Optimisation", "Optimizer steps from 0 to the highest learning rate.", minimum=0)
    adam_beta1: float = _option(0.9, "Optimisation", "beta1 of Adam.", minimum=0, maximum=1)
    adam_beta2: float = _option(0.999, "Optimisation", "beta2 of Adam.", minimum=0, maximum=1)
    adam_weight_decay: float = _option(0.0, "Optimisation", "Weight decay.", minimum=0)
    adam_epsilon: float = _option(1e-8, "Optimisation", "epsilon of Adam.", minimum=0)
    max_grad_norm: float = _option(1.0, "Optimisation", "Gradients are scaled down to this norm; 0 leaves them.", minimum=0)
    compile: bool = _option(False, "Optimisation", "Compile the network, which takes a minute at the start.")
    gradient_checkpointing: bool = _option(False, "Optimisation", "Recompute activations in the backward pass: less memory, more time.")

    use_ema: bool = _option(True, "Moving average", "Keep an exponential moving average of the weights, and sample and save with it.")
    ema_inv_gamma: float = _option(1.0, "Moving average", "The decay at step s is 1 - (1 + s / inv_gamma) ** -power ...", minimum=1e-6)
    ema_power: float = _option(0.75, "Moving average", "... with this power: 3/4 for runs up to a million steps, 2/3 beyond ...", minimum=0)
    ema_max_decay: float = _option(0.9999, "Moving average", "... and at most this.", minimum=0, maximum=1)

    save_images_steps: int = _option(500, "Output", "Optimizer steps between two grids of samples.", minimum=1)
    save_images_epochs: int | None = _option(None, "Output", "The same in epochs; overrides save_images_steps.", minimum=1)
    save_model_steps: int = _option(1000, "Output", "Optimizer steps between two saves of the pipeline.", minimum=1)
    save_model_epochs: int | None = _option(None, "Output", "The same in epochs; overrides save_model_steps.", minimum=1)
    checkpointing_steps: int = _option(500, "Output", "Optimizer steps between two checkpoints, from which the same command goes on.", minimum=1)
    checkpoints_total_limit: int = _option(2, "Output", "Checkpoints to keep; older ones are deleted after a new one is whole.", minimum=1)
    logger: Literal["none", "tensorboard", "wandb", "all"] = _option("none", "Output", "Where losses and samples are shown, beside metrics.jsonl and the pictures.")
    logging_dir: str = _option("logs", "Output", "Folder for TensorBoard, within the output folder.")
    logging_steps: int = _option(10, "Output", "Optimizer steps between two lines of metrics.jsonl.", minimum=1)
    eval_batch_size: int = _option(16, "Output", "Samples in a grid.", minimum=1)
    ddpm_num_inference_steps: int = _option(1000, "Output", "Denoising steps of the samples, in a grid and to measure.", minimum=1)
    guidance_scale: float | None = _option(None, "Output", f"Guidance of a class-conditional model's samples; 1 is none; by default {GUIDANCE_SCALE:g}.", minimum=0)
    eval_steps: int | None = _option(None, "Output", "Optimizer steps between two measurements of the model; by default none.", minimum=1)
    eval_metrics: str = _option("bpd", "Output", "What to measure: bpd, fid, kid and prdc, with commas between them.")
    eval_num_images: int = _option(256, "Output", "Images of a measurement.", minimum=1)
    eval_features: str = _option("inception", "Output", "Features to measure with: inception; a file of TorchScript or torch.export; or module:callable.")

    push_to_hub: bool = _option(False, "Hub", "Upload the trained pipeline with its card, after training.")
    hub_model_id: str | None = _option(None, "Hub", "Repository to upload to, made if missing; by default your own, named like the output folder.")
    hub_private_repo: bool = _option(False, "Hub", "Make the repository private, if it is made.")
    # fmt: on

    # No field, so that it is in nothing that is made of the options: config.json, checkpoints, trackers, --dry_run.
    hub_token: ClassVar[str | None] = None

    def __post_init__(self):
        self.output_dir = self.output_dir or f"ddpm-{self._name_of_the_data()}"
        for option in dataclasses.fields(self):
            _check_range(option, getattr(self, option.name))
        if self.dataset_name and self.train_data_dir:
            raise ValueError("--dataset_name and --train_data_dir both name the images; pass one of them.")
        for name in ("label_column", "guidance_scale"):
            if getattr(self, name) is not None and not self.class_conditional:
                raise ValueError(f"--{name} is for a class-conditional model; pass --class_conditional, too.")
        epochs = (self.save_images_epochs, self.save_model_epochs)
        if self.streaming and (not self.dataset_name or self.max_train_steps is None or any(epochs)):
            raise ValueError(
                "--streaming reads a data set of unknown length: pass --dataset_name and --max_train_steps, and no epochs."
            )
        if self.streaming and self.eval_steps:
            raise ValueError("--eval_steps measures with the images on the disk, and --streaming leaves none there.")
        if self.ddpm_num_inference_steps > self.ddpm_num_steps:
            self.ddpm_num_inference_steps = self.ddpm_num_steps
        halvings = len(self.model.get("block_out_channels", ())) - 1
        if halvings > 0 and self.resolution % 2**halvings:
            below = self.resolution // 2**halvings * 2**halvings
            fits = " or ".join(str(r) for r in (below, below + 2**halvings) if r)
            raise ValueError(
                f"--resolution {self.resolution}: the U-Net halves its input {halvings} times, so the resolution has to be "
                f"a multiple of {2**halvings}, such as {fits}."
            )

    def _name_of_the_data(self) -> str:
        """What the output folder is named after: the preset, unless other pictures are trained on."""
        source = self.train_data_dir or self.dataset_name
        if source is None or source == PRESETS[self.preset]["dataset_name"]:
            return self.preset
        name = Path(source).resolve().name
        return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "pictures"

    def count_steps(self, steps_per_epoch: float):
        """Turn what was given in epochs into optimizer steps, now that the size of the data set is known."""
        if self.max_train_steps is None:
            self.max_train_steps = math.ceil(self.num_epochs * steps_per_epoch)
        if self.save_images_epochs is not None:
            self.save_images_steps = math.ceil(self.save_images_epochs * steps_per_epoch)
        if self.save_model_epochs is not None:
            self.save_model_steps = math.ceil(self.save_model_epochs * steps_per_epoch)

    def differences(self, saved: dict, same_pictures: bool = False) -> list[str]:
        """The options that make this another run than a saved one, each as one line of text.

        Args:
            saved (`dict`): The options of that run.
            same_pictures (`bool`): Whether the pixels and labels are known to be the same; then it does not matter where
                they come from.
        """
        may_differ = (*ROUNDING_ONLY, *(WHICH_IMAGES if same_pictures else ()))
        return [line for name, line in self._changes(saved) if name not in may_differ]

    def roundings(self, saved: dict) -> list[str]:
        """The options that are not as in a saved run and change its numbers by rounding only."""
        return [line for name, line in self._changes(saved) if name in ROUNDING_ONLY]

    def _changes(self, saved: dict) -> list[tuple[str, str]]:
        """Name and line of text of each option that decides about the weights and is not as in a saved run."""
        mine, defaults = json.loads(self.to_json()), dataclasses.asdict(TrainingConfig())
        saved = {**defaults, **saved}  # a run that is older than an option
        return [
            (option.name, f"--{option.name} {saved[option.name]} -> {mine[option.name]}")
            for option in dataclasses.fields(self)
            if option.metadata["group"] not in ("Output", "Hub")
            and option.name not in MAY_CHANGE
            and saved[option.name] != mine[option.name]
        ]

    def to_json(self) -> str:
        """All options, as JSON."""
        return json.dumps(dataclasses.asdict(self), indent=2) + "\n"


_KINDS = {
    option.name: typing.get_type_hints(TrainingConfig)[option.name] for option in dataclasses.fields(TrainingConfig)
}

# The options that say which images a run sees.
WHICH_IMAGES = ("dataset_name", "dataset_config_name", "dataset_split", "train_data_dir", "image_column")

# Options that change the order of the arithmetic, and nothing else.
ROUNDING_ONLY = ("compile", "gradient_checkpointing")

# Options that a run may be resumed with other values of, beside those of the groups "Output" and "Hub".
MAY_CHANGE = (
    "preset",
    "output_dir",
    "overwrite_output_dir",
    "resume_from_checkpoint",
    "cache_dir",
    "max_unreadable",
    "model_config_name_or_path",
    "num_epochs",
    "max_train_steps",
    "gradient_accumulation_steps",
)


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
        if name not in _KINDS:
            raise ValueError(
                f"{where} has the unknown option `{name}`; a newer version of ddpm_hf may have written it."
            )
        if problem := option_misfit(name, value):
            raise ValueError(f"{where} is broken: {problem}. {advice}")


def option_misfit(name: str, value) -> str:
    """How a value of JSON differs from what an option can be, in words; nothing if it does not."""
    kind = _KINDS[name]
    if typing.get_origin(kind) is Literal:
        choices = typing.get_args(kind)
        fits, expected = value in choices, f"one of {', '.join(choices)}"
    else:
        fits, expected = is_of(value, kind), in_words(kind)
    return "" if fits else f"`{name}` is {shown(value)}; expected {expected}"


def _check_range(option: dataclasses.Field, value):
    low, high = option.metadata["minimum"], option.metadata["maximum"]
    if value is None or low is None:
        return
    if value < low or (high is not None and value > high):
        expected = f"at least {low:g}" if high is None else f"{low:g} to {high:g}"
        raise ValueError(f"--{option.name} {value}: expected {expected}.")
