"""Train a denoising diffusion probabilistic model: Algorithm 1 of Ho et al. 2020 (arXiv 2006.11239).

accelerate launch train_ddpm.py                                      handwritten digits, in minutes
accelerate launch train_ddpm.py --train_data_dir pictures            your own folder
accelerate launch train_ddpm.py --preset cifar10 --dry_run           see the options, and stop
"""

import dataclasses
import signal
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.checkpoint import load_tensors
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation.during_training import check_measurement, evaluate_during_training, measurement_of
from ddpm_hf.evaluation.image_sets import CentralCuts
from ddpm_hf.evaluation.measure import Measurement
from ddpm_hf.hub.share import check_before_training, share_run
from ddpm_hf.images.batches import Batches, ImageRow, seed_of
from ddpm_hf.images.held_out import count_images, describe_held_out
from ddpm_hf.images.opening import find_images, open_images
from ddpm_hf.images.sources import label_settings
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.processes import on_any_process
from ddpm_hf.sampling import draw_samples
from ddpm_hf.signals import note_signals
from ddpm_hf.terminal import going_on, one_line_errors
from ddpm_hf.training.best import KeptBest
from ddpm_hf.training.divergence import stop_if_diverged
from ddpm_hf.training.fitting import fit_resolution, fit_settings
from ddpm_hf.training.launcher import check_launcher, end_processes, start_accelerator
from ddpm_hf.training.log_book import LogBook
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import Objective, denoising_loss
from ddpm_hf.training.pretrained import start_at_base
from ddpm_hf.training.resuming import Start, check_folder, check_pictures, find_start
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.run_lock import alone_in
from ddpm_hf.training.state import RunState
from ddpm_hf.training.step_cost import measure_step
from ddpm_hf.training.summary import describe, describe_cost, farewell
from ddpm_hf.training.trackers import start_trackers, track_numbers, track_samples
from ddpm_hf.training.validation import HeldOutLoss, validate


def main():
    """Train as the command line says: prepare the run, take its steps, write what is due, share the model."""
    config, dry_run = parse_command_line()
    with ExitStack() as at_the_end:
        with one_line_errors():
            run = prepare(config, dry_run, at_the_end)
        if run is None:
            return

        # What is learned. It begins at random, or where the last checkpoint left it.
        state = RunState(run.unet, config, run.accelerator)
        if run.start.checkpoint:
            state.load(load_tensors(run.start.checkpoint), run.start.saved)
            write_outputs(missing_outputs(run, state), run, state)

        signals, interrupted, began = note_signals(), False, time.perf_counter()
        log = LogBook(config, run.accelerator, run.folder, run.count, run.images_per_step, first_step=state.step)
        while state.step < config.total_steps and not interrupted:
            with log.timed_step():
                train_step(run, state)
            stop_if_diverged(config, state)
            log.note(state)

            # If a checkpoint is due, it comes first: drawing and measuring take time and may fail. After an update that
            # was not finite none is due, so that a run that diverges keeps its good ones.
            interrupted = on_any_process(bool(signals), run.accelerator)
            last = state.step == config.total_steps
            regular = state.step % config.checkpointing_steps == 0 and state.skipped_in_a_row == 0
            if last or interrupted or regular:
                save_checkpoint(run, state)
            write_outputs({"save"} if interrupted else outputs_due(config, state.step), run, state, interrupted)

        log.bar.close()
        finished = state.step == config.total_steps and not interrupted
        if run.accelerator.is_main_process and finished:
            run.folder.finish(state.step)
        end_processes(run.accelerator, state)
        if run.accelerator.is_main_process:
            print(farewell(config, state.step - run.start.step, state.step, time.perf_counter() - began))
            share_run(config, finished)
        if signal.SIGINT in signals:
            sys.exit(128 + signal.SIGINT)


def train_step(run: "Run", state: RunState):
    """Take one step of Algorithm 1. The gradient is that of all micro-batches of the step, on all processes."""
    for g in state.micro_batches_of_a_step():  # everything random is a function of the seed and g
        generator = run.batches.generator(g)
        with one_line_errors():
            x_0, known_labels = run.batches.draw(g, generator)  # x_0 ~ q(x_0)
        x_0, augment_labels = run.batches.augmented(g, x_0)
        t = run.objective.draw_timesteps(len(x_0), generator)  # t ~ Uniform({0, ..., T - 1})
        eps = torch.randn(x_0.shape, generator=generator, device=x_0.device)  # eps ~ N(0, I)
        labels = run.batches.drop_labels(known_labels, generator)
        torch.manual_seed(seed_of(run.config.seed, "dropout", g))
        with run.accelerator.accumulate(state.model):
            # |eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)|^2
            losses = denoising_loss(state.model.train(), run.scheduler, x_0, t, eps, labels, augment_labels)
            run.accelerator.backward((run.objective.weights[t] * losses).mean())
        state.meter.add(losses, t)
    state.take_gradient_step()


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
        measurement ([`Measurement`], *optional*): What is measured every `eval_steps`.
        reference ([`CentralCuts`], *optional*): The images that it compares with.
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
    measurement: Measurement | None
    reference: CentralCuts | None

    def __post_init__(self):
        config, device, names = self.config, self.accelerator.device, self.unet.config.class_names
        self.best, held_out = KeptBest(config), self.images.held_out
        self.held_out_loss = None if held_out is None else HeldOutLoss(held_out, config, self.scheduler)
        self.objective = Objective(self.scheduler, config, device)
        settings = (config.size, config.train_batch_size, config.seed, config.random_flip, device, names and len(names))
        self.form = PixelFormat.of_model(self.unet.config)
        augment = config.augment_probability if config.augment else None
        options = {"cond_dropout": config.cond_dropout, "pixels": self.form, "augment": augment}
        self.batches = Batches(self.images, *settings, **options)


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
    if not dry_run:
        check_folder(config)
        if is_main:
            at_the_end.enter_context(alone_in(config.folder))

    # The pictures decide about the channels and the classes of the network, and how many steps an epoch has.
    with accelerator.main_process_first():
        found = find_images(config, fit_resolution)
    config.model = config.model | label_settings(found.dataset) | found.form.settings()
    count, held_out = count_images(found.dataset, found.split, config)
    cost = fit_settings(config, accelerator, found.form.channels, count)
    measurement = measurement_of(config)
    unet, scheduler = make_model(config, channels=found.form.channels)
    notes += start_at_base(unet, config)
    images_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
    config.count_steps(steps_per_epoch=(count or 0) / images_per_step)
    if is_main:
        check_before_training(config)
        if dry_run:
            print(config.to_json(), end="")
        print(*notes, describe(config, unet, count, images_per_step, held_out), sep="\n", flush=True)
    if dry_run:
        cost = cost or measure_step(config, found.form.channels, accelerator)
        if is_main:
            print(describe_cost(config, unet, count, images_per_step, cost))
        return None

    # The folder decides where the run begins.
    start = find_start(config, images_per_step)
    if is_main:
        print("".join(f"{note}\n" for note in start.notes), end="", flush=True)
    if start.is_over and start.same_source:
        say_it_is_trained(config, start.step, is_main)
        return None
    folder = RunFolder(config)
    if is_main:
        folder.check_space(unet.get_memory_footprint())
    images = open_images(found, config, accelerator, start.saved and start.saved["stream"], held_out)
    at_the_end.callback(images.close)
    check_pictures(start, count, images.fingerprint)
    if start.is_over:
        say_it_is_trained(config, start.step, is_main)
        return None
    reference = CentralCuts(images.images, config.size) if measurement else None
    if measurement:
        check_measurement(measurement, reference)
    accelerator.wait_for_everyone()  # all have read the folder as it was
    if is_main:
        folder.begin(start.step)
        folder.note_unreadable(images.unreadable, [*found.small, *images.small])
        about_held_out = images.held_out is not None and describe_held_out(images.held_out, config)
        folder.note_run(accelerator, unet, count, images_per_step, start.step, about_held_out)
        folder.show_augmentation(images.images)
    start_trackers(accelerator, config)
    sizes = (count, images_per_step)
    return Run(config, accelerator, folder, start, unet, scheduler, images, *sizes, measurement, reference)


def say_it_is_trained(config: TrainingConfig, step: int, is_main: bool):
    """Say that nothing is left to be trained, and share the run if it is to be shared."""
    if is_main:
        print(f"{config.output_dir} is trained: {step:,} steps. A higher --max_train_steps goes on.")
        share_run(config, finished=True)


def save_checkpoint(run: Run, state: RunState):
    """Save all that the same command needs to go on from here. All processes have to call it."""
    numbers = {**state.numbers(), "config": dataclasses.asdict(run.config), "images": run.count}
    numbers.update(images_per_step=run.images_per_step, stream=run.images.state(), pictures=run.images.fingerprint)
    tensors = state.tensors()
    if run.accelerator.is_main_process:
        run.folder.note_unreadable(run.images.unreadable, run.images.small)
        run.folder.save_checkpoint(state.step, tensors, numbers)


def outputs_due(config: TrainingConfig, step: int) -> set[str]:
    """Return which outputs are due after a step: `"save"`, `"validate"`, `"draw"`, `"measure"`."""
    last = step == config.total_steps
    often = {"save": config.save_model_steps, "draw": config.save_images_steps, "measure": config.eval_steps}
    often["validate"] = config.validation_steps
    return {name for name, steps in often.items() if steps and (last or step % steps == 0)}


def missing_outputs(run: Run, state: RunState) -> set[str]:
    """Return the outputs that were due where the run stopped, and are missing. The main process decides."""
    is_last = state.step == run.config.total_steps
    missing = outputs_due(run.config, state.step) - run.folder.outputs_of(state.step, is_last)
    return broadcast_object_list([missing])[0]


def write_outputs(due: set[str], run: Run, state: RunState, interrupted: bool = False):
    """Save the pipeline, measure, and draw samples, as far as they are due, all with the averaged weights."""
    if not due:
        return
    is_main, accelerator = run.accelerator.is_main_process, run.accelerator
    with state.unet_to_draw_with() as unet:
        pipeline = DDPMPipelineCustom(unet, run.scheduler)
        if is_main and "save" in due:
            if state.step == run.config.total_steps and not interrupted:
                with one_line_errors():
                    run.folder.save_last_pipeline(pipeline)
            else:
                run.folder.save_pipeline(pipeline)
        if "validate" in due:
            with going_on("measure the held-out loss"):
                held_out = validate(pipeline, run.held_out_loss, run.folder, run.best, state.step)
                track_numbers(accelerator, held_out, state.step)
        if "draw" in due:
            with going_on("draw samples"):
                samples = draw_samples(pipeline, run.config, accelerator)
                if is_main:
                    run.folder.save_samples(state.step, samples, run.form)
                track_samples(accelerator, samples, state.step)
        if "measure" in due:
            with going_on("measure the model"):
                arguments = (run.reference, run.measurement, run.folder.path, state.step, run.best)
                track_numbers(accelerator, evaluate_during_training(pipeline, *arguments), state.step)


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before the first step, or for the second time
        sys.exit(128 + signal.SIGINT)
