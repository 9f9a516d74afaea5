"""Choose the options of a run that nobody gave: the network and all that goes with it, and the number of steps."""

import dataclasses
import math

import datasets
from accelerate import Accelerator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.typical_size import typical_resolution
from ddpm_hf.model_sizes import (
    MINUTES,
    MOST_EPOCHS,
    SIZES,
    batch_of,
    network_of,
    settings_of,
    size_of,
)
from ddpm_hf.presets import FITTED
from ddpm_hf.run_files import CHECKPOINTS, INDEX, OPTIONS, list_checkpoints
from ddpm_hf.training.out_of_memory import StepMemory
from ddpm_hf.training.resuming import saved_options
from ddpm_hf.training.step_cost import StepCost, measure_step

VALIDATIONS = 12  # of images that are held out; six have to be seen before the curves can part
SHARE = 0.95  # of the minutes is for steps; the rest is for drawing and saving


def fit_resolution(config: TrainingConfig, dataset: datasets.Dataset | datasets.IterableDataset):
    """Choose the resolution for `--preset auto`, if none is given: as in the run before, or as most pictures have."""
    if config.preset != "auto" or "resolution" in config.given:
        return
    earlier = _earlier_options(config)
    config.resolution = earlier["resolution"] if earlier else typical_resolution(dataset)


def fit_settings(
    config: TrainingConfig, accelerator: Accelerator, channels: int, images: int | None
) -> StepCost | None:
    """Choose what is not given, in place. All processes have to call it, and all choose alike.

    For `--preset auto` these are the options [`~ddpm_hf.presets.FITTED`]; for another preset with
    `--max_train_minutes`, only the number of steps. A run that goes on keeps what was chosen for it, so that it stays
    exact; if it is given other minutes, its steps are counted again.

    Args:
        config ([`TrainingConfig`]): The options; `config.given` names those that somebody chose.
        accelerator ([`~accelerate.Accelerator`]): The device and the processes.
        channels (`int`): Channels of the images.
        images (`int`, *optional*): How many there are; None for a stream.

    Returns:
        [`StepCost`]: What a step costs, if it was measured.

    Raises:
        ValueError: If the network cannot halve the images, or a step of one image is too much for the GPU's memory.
    """
    fitted = FITTED if config.preset == "auto" else {"max_train_steps"} if config.max_train_minutes else set()
    free = frozenset(fitted) - config.given
    if not free:
        return None
    fitting = _Fitting(config, accelerator, channels, images, free)
    if earlier := _earlier_options(config):
        fitting.keep(earlier)
    elif config.preset == "auto":
        fitting.choose()
    elif "max_train_steps" in free:
        fitting.count_steps()
    accelerator.gradient_accumulation_steps = config.gradient_accumulation_steps
    return fitting.cost


def _earlier_options(config: TrainingConfig) -> dict:
    """Return the options of the run that goes on, all of them; nothing for one that begins, or begins again."""
    folder = config.folder
    goes_on = (folder / OPTIONS).exists() and (list_checkpoints(folder / CHECKPOINTS) or (folder / INDEX).exists())
    if config.overwrite_output_dir or not goes_on:
        return {}
    # The run may be older than an option.
    return {**dataclasses.asdict(TrainingConfig()), **saved_options(folder)}


@dataclasses.dataclass
class _Fitting:
    """The options of a run while they are chosen; the arguments are those of [`fit_settings`]."""

    config: TrainingConfig
    accelerator: Accelerator
    channels: int
    images: int | None
    free: frozenset[str]
    cost: StepCost | None = None

    def take(self, **options):
        """Set those options that nobody gave."""
        for name in options.keys() & self.free:
            setattr(self.config, name, options[name])

    def keep(self, saved: dict):
        """Take over what was chosen for the run before; count its steps again if it is given other minutes."""
        minutes = self.config.max_train_minutes
        if saved.get("scheduler", "ddpm") != self.config.scheduler:  # its steps are not those of another one
            saved = {name: value for name, value in saved.items() if name != "ddpm_num_inference_steps"}
        self.take(**saved)
        if self.config.preset == "auto" and "max_train_minutes" in self.free:
            return
        if minutes != saved["max_train_minutes"] and "max_train_steps" in self.free:
            self.count_steps()

    def choose(self):
        """Choose the network, the number of steps, and what follows from both."""
        config = self.config
        self.network = config.model  # as far as it is given: all of it, or what the labels say
        steps, has_minutes = self.given_steps(), config.max_train_minutes is not None
        if steps is None:
            self.take(max_train_minutes=MINUTES["cpu" if self.on_cpu else "gpu"])
        name = self.size(steps)
        self.take_network(name)
        config.check_halvings()
        if steps is None:
            self.count_steps()
            if self.images and not has_minutes:
                most = math.ceil(MOST_EPOCHS * self.images / self.images_per_step)
                self.take(max_train_steps=min(config.total_steps, most))
            steps = config.total_steps
        batch = config.train_batch_size * config.gradient_accumulation_steps
        self.take(max_train_steps=steps, **settings_of(SIZES[name], steps, batch))
        if config.validation_split or config.validation_fraction:
            self.take(validation_steps=math.ceil(steps / VALIDATIONS))

    def given_steps(self) -> int | None:
        """Return the number of steps, if it is given."""
        if self.config.max_train_steps is None and "num_epochs" in self.config.given and self.images:
            return math.ceil(self.config.num_epochs * self.images / self.images_per_step)
        return self.config.max_train_steps

    def size(self, steps: int | None) -> str:
        """Return the size that is given, or the largest one for which there are enough steps and images."""
        if "model" not in self.free:
            return size_of(self.config.model, *self.config.size)
        if self.config.model_size != "auto":
            return self.config.model_size
        smaller, *others = SIZES
        for name in others:
            if self.images and self.images < SIZES[name].fewest_images:
                break
            if steps is not None and self.on_cpu and name != "small":
                break  # the steps say nothing about the time, and larger networks are slow here
            if (steps or self.steps_in_time(name)) < SIZES[name].fewest_steps:
                break
            smaller = name
        return smaller

    def take_network(self, name: str):
        size, pixels = SIZES[name], self.config.size
        self.take(model_size=name, model=network_of(size, *pixels) | self.network)
        self.take(train_batch_size=batch_of(size, *pixels, self.images), optimizer=size.optimizer)

    def steps_in_time(self, name: str) -> int:
        """Return how many steps a size takes in the minutes of the run; 0 if the memory is too small for it."""
        self.take_network(name)
        self.cost = measure_step(self.config, self.channels, self.accelerator)
        return self.steps_at_this_cost() if self.cost else 0

    def steps_at_this_cost(self) -> int:
        assert self.cost and self.config.max_train_minutes
        return max(1, int(SHARE * 60 * self.config.max_train_minutes / self.cost.seconds))

    def count_steps(self):
        """Measure a step, and choose how many there are; where a GPU has too little memory, with parts of a batch."""
        config = self.config
        self.cost = measure_step(config, self.channels, self.accelerator)
        while self.cost is None:
            if config.train_batch_size == 1 or not {"train_batch_size", "gradient_accumulation_steps"} <= self.free:
                raise ValueError(StepMemory(config, self.channels, self.accelerator).describe_lack())
            parts = config.gradient_accumulation_steps * 2
            self.take(train_batch_size=config.train_batch_size // 2, gradient_accumulation_steps=parts)
            self.cost = measure_step(config, self.channels, self.accelerator)
        self.take(max_train_steps=self.steps_at_this_cost())

    @property
    def on_cpu(self) -> bool:
        return self.accelerator.device.type == "cpu"

    @property
    def images_per_step(self) -> int:
        config = self.config
        return config.train_batch_size * config.gradient_accumulation_steps * self.accelerator.num_processes
