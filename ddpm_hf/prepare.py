"""Prepare a run: the pictures, the network, the folder, and where the run begins."""

from contextlib import ExitStack
from dataclasses import dataclass

from accelerate import Accelerator

from ddpm_hf import DDPMLinearScheduler, DDPMUNetModel
from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation.during_training import check_measurement, measurement_of
from ddpm_hf.evaluation.image_sets import CentralCuts
from ddpm_hf.evaluation.measurement import Measurement
from ddpm_hf.hub.share import check_before_training, share_run
from ddpm_hf.images.announced import announced_images
from ddpm_hf.images.batches import Batches, ImageRow
from ddpm_hf.images.held_out import count_images, describe_held_out
from ddpm_hf.images.opening import find_images, open_images
from ddpm_hf.images.sources import label_settings
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.processes import together
from ddpm_hf.sampling import check_steps
from ddpm_hf.training.best import KeptBest
from ddpm_hf.training.energy import check_emissions
from ddpm_hf.training.fitting import fit_resolution, fit_settings
from ddpm_hf.training.launcher import check_launcher, start_accelerator
from ddpm_hf.training.model import how_to_draw, make_model
from ddpm_hf.training.objective import Objective, check_levels
from ddpm_hf.training.out_of_memory import StepMemory
from ddpm_hf.training.pretrained import start_at_base
from ddpm_hf.training.resuming import Start, check_folder, check_pictures, find_start
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.run_lock import alone_in
from ddpm_hf.training.step_cost import measure_step
from ddpm_hf.training.summary import describe, describe_cost
from ddpm_hf.training.teacher import Teacher, check_teacher
from ddpm_hf.training.trackers import start_trackers
from ddpm_hf.training.validation import HeldOutLoss


@dataclass
class Run:
    """A run that is ready to begin.

    Args:
        config ([`TrainingConfig`]): The options, complete.
        accelerator ([`~accelerate.Accelerator`]): The device and the processes.
        folder ([`RunFolder`]): What the run leaves behind.
        start ([`Start`]): The checkpoint that it goes on from, if there is one.
        unet ([`DDPMUNetModel`]): The network, at its first weights.
        scheduler ([`DDPMLinearScheduler`]): q(x_t | x_0).
        images ([`ImageRow`]): The training images.
        count (`int`, *optional*): How many there are; None for a stream.
        images_per_step (`int`): Images in an optimizer step, on all processes.
        memory ([`StepMemory`]): What a step needs.
        measurement ([`Measurement`], *optional*): What is measured every `eval_steps`.
        reference ([`CentralCuts`], *optional*): The images that it compares with.
        teacher ([`Teacher`], *optional*): What a student learns from.
    """

    config: TrainingConfig
    accelerator: Accelerator
    folder: RunFolder
    start: Start
    unet: DDPMUNetModel
    scheduler: DDPMLinearScheduler
    images: ImageRow
    count: int | None
    images_per_step: int
    memory: StepMemory
    measurement: Measurement | None
    reference: CentralCuts | None
    teacher: Teacher | None

    def __post_init__(self):
        config, device, names = self.config, self.accelerator.device, self.unet.config.class_names
        self.best, held_out = KeptBest(config), self.images.held_out
        self.held_out_loss = None if held_out is None else HeldOutLoss(held_out, config, self.scheduler, self.teacher)
        self.objective = Objective(self.scheduler, config, device)
        self.form = PixelFormat.of_model(self.unet.config)
        self.batches = Batches(
            self.images,
            config.size,
            config.train_batch_size,
            config.seed,
            config.random_flip,
            device,
            names and len(names),
            cond_dropout=config.cond_dropout,
            pixels=self.form,
            augment=config.augment_probability if config.augment else None,
            stride=self.accelerator.num_processes,
        )


def prepare(config: TrainingConfig, dry_run: bool, at_the_end: ExitStack) -> Run | None:
    """Prepare a run: check the options, open the images, find the checkpoint, and clear the folder last.

    Args:
        config ([`TrainingConfig`]): The options; what the machine and the pictures decide is added.
        dry_run (`bool`): Whether to print the options, the sizes and what a step costs, and no more.
        at_the_end (`ExitStack`): It collects what has to be closed when the run ends, for any reason.

    Returns:
        [`Run`], or None if nothing is to be trained.

    Raises:
        ValueError: If something is wrong; the message names the option and what to do.
        OSError: If the disk cannot be read or written, or is too small.
    """
    notes = check_launcher(config)
    accelerator = start_accelerator(config)
    is_main = accelerator.is_main_process
    if is_main:
        check_before_training(config)
        check_emissions(config)
    if not dry_run:
        check_folder(config)
        if is_main:
            at_the_end.enter_context(alone_in(config.folder))

    # The pictures decide about the channels and the classes of the network, and how many steps an epoch has.
    with accelerator.main_process_first():
        found = (dry_run and announced_images(config)) or find_images(config, fit_resolution)
    config.model = config.model | label_settings(found.dataset) | found.form.settings()
    check_levels(config, found.form)
    count, held_out = count_images(found.count, found.count_of_split, config)
    cost = fit_settings(config, accelerator, found.form.channels, count)
    measurement = measurement_of(config)
    unet, scheduler = make_model(config, channels=found.form.channels)
    of_samples, steps, _ = how_to_draw(config, scheduler)
    check_steps(of_samples, steps, config.guided_part)
    notes += start_at_base(unet, config)
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    config.count_steps(steps_per_epoch=(count or 0) / images_per_step)
    if is_main:
        print(*notes, describe(config, unet, count, images_per_step, held_out), sep="\n", flush=True)
    memory = StepMemory(config, found.form.channels, accelerator)
    if dry_run:
        cost = cost or measure_step(config, found.form.channels, accelerator)
        if is_main:
            costs = (cost, memory.describe(has_failed=cost is None))
            print(describe_cost(config, unet, count, images_per_step, *costs), config.to_json(), sep="\n", end="")
        return None

    # The folder decides where the run begins.
    start = find_start(config, images_per_step)
    if is_main:
        print("".join(f"{note}\n" for note in start.notes), end="", flush=True)
    if start.is_over and start.same_source:
        say_it_is_trained(config, start, is_main)
        return None
    together(lambda: memory.check(unet))
    folder = RunFolder(config)
    together(lambda: is_main and folder.check(unet.get_memory_footprint()))
    images = open_images(found, config, accelerator, start.saved, held_out)
    at_the_end.callback(images.close)
    check_pictures(start, count, images.fingerprint)
    teacher = Teacher.of_run(config, found.form.channels, accelerator.device) if config.distill_steps else None
    check_teacher(start, teacher)
    if start.is_over:
        say_it_is_trained(config, start, is_main)
        return None
    reference = None
    if measurement:
        assert images.images is not None  # a stream cannot be measured with, which the options say
        reference = CentralCuts(images.images, config.size)
        check_measurement(measurement, reference)
    accelerator.wait_for_everyone()  # all have read the folder as it was
    if is_main:
        folder.begin(start.step)
        folder.note_unreadable(images.unreadable, [*found.small, *images.small])
        about_held_out = None if images.held_out is None else describe_held_out(images.held_out, config)
        at_the_end.callback(folder.close)
        folder.note_run(accelerator, unet, count, images_per_step, start.step, about_held_out)
        folder.show_augmentation(images.images)
    start_trackers(accelerator, config)
    sizes = (count, images_per_step, memory)
    return Run(config, accelerator, folder, start, unet, scheduler, images, *sizes, measurement, reference, teacher)


def say_it_is_trained(config: TrainingConfig, start: Start, is_main: bool):
    """Say that nothing is left to be trained, and share the run if it is to be shared."""
    if is_main:
        print(f"{config.output_dir} is trained: {start.step:,} steps. A higher --max_train_steps goes on.")
        before = start.saved["config"] if start.saved else {}
        for name in ("scheduler", "guidance_scale", "guidance_interval"):
            if name in before and before[name] != getattr(config, name):
                print(f"--{name} is not applied to its model; `ddpm-hf sample` has this flag, too.")
        share_run(config, finished=True)
