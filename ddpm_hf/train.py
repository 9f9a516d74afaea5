"""The training loop: Algorithm 1 of Ho et al. 2020 (arXiv 2006.11239), and what a run writes on its way."""

import dataclasses
import signal
import sys
from contextlib import ExitStack

import torch
from accelerate.utils import broadcast_object_list

from ddpm_hf import DDPMPipelineCustom
from ddpm_hf.checkpoint import load_tensors
from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation.during_training import evaluate_during_training
from ddpm_hf.hub.share import share_run
from ddpm_hf.images.batches import seed_of
from ddpm_hf.prepare import Run, prepare
from ddpm_hf.processes import OnAnyProcess
from ddpm_hf.sampling import draw_samples
from ddpm_hf.signals import note_signals
from ddpm_hf.terminal import going_on, one_line_errors
from ddpm_hf.training.divergence import stop_if_diverged
from ddpm_hf.training.launcher import end_processes
from ddpm_hf.training.log_book import LogBook
from ddpm_hf.training.model import how_to_draw
from ddpm_hf.training.objective import denoising_loss
from ddpm_hf.training.state import RunState
from ddpm_hf.training.summary import farewell
from ddpm_hf.training.trackers import track_numbers, track_samples
from ddpm_hf.training.validation import validate


def train(config: TrainingConfig, dry_run: bool = False):
    """Prepare a run, take its steps, write what is due, and share the model.

    Args:
        config ([`TrainingConfig`]): The options, as [`~ddpm_hf.command_line.parse_command_line`] reads them.
        dry_run (`bool`): Whether to print the options, the sizes and what a step costs, and no more.
    """
    with ExitStack() as at_the_end:
        with one_line_errors():
            run = prepare(config, dry_run, at_the_end)
        if run is None:
            return

        # What is learned. It begins at random, or where the last checkpoint left it.
        with run.memory.one_clear_error(run.folder.checkpoints):
            state = RunState(run.unet, config, run.accelerator)
            if run.start.checkpoint and run.start.saved:
                state.load(load_tensors(run.start.checkpoint), run.start.saved)
        if run.start.checkpoint:
            write_outputs(missing_outputs(run, state), run, state)

        signals, on_any_process, interrupted = note_signals(), OnAnyProcess(run.accelerator), False
        log = LogBook(config, run.accelerator, run.folder, run.count, run.images_per_step, first_step=state.step)
        while state.step < config.total_steps and not interrupted:
            with log.timed_step(), run.memory.one_clear_error(run.folder.checkpoints):
                train_step(run, state)
                interrupted = on_any_process(bool(signals))
            if log.note(state) or not state.skips_on_device:
                stop_if_diverged(run.folder, state)

            # If a checkpoint is due, it comes first: drawing and measuring take time and may fail. After an update that
            # was not finite none is due, so that a run that diverges keeps its good ones.
            due = {"save"} if interrupted else outputs_due(config, state.step)
            last, regular = state.step == config.total_steps, state.step % config.checkpointing_steps == 0
            if not (due or last or regular):
                continue
            log.wait_for(state)
            with log.timed_output():
                if last or interrupted or (regular and state.skipped_in_a_row == 0):
                    save_checkpoint(run, state)
                write_outputs(due, run, state, interrupted)

        log.bar.close()
        finished = state.step == config.total_steps and not interrupted
        if run.accelerator.is_main_process:
            with log.timed_output():
                run.folder.finish(state.step, finished)
        run.images.close()
        end_processes(run.accelerator, state)
        if run.accelerator.is_main_process:
            print(farewell(config, state.step - run.start.step, state.step, log.training, log.others))
            share_run(config, finished)
        if signal.SIGINT in signals:
            sys.exit(128 + signal.SIGINT)


def train_step(run: Run, state: RunState):
    """Take one step of Algorithm 1. The gradient is that of all micro-batches of the step, on all processes."""
    for g in state.micro_batches_of_a_step():  # everything random is a function of the seed, g and the losses before
        generator = run.batches.generator(g)
        with one_line_errors():
            x_0, known_labels = run.batches.draw(g, generator)  # x_0 ~ q(x_0)
        x_0, augment_labels = run.batches.augmented(g, x_0)
        t = run.objective.draw_timesteps(len(x_0), generator, state.history)  # mostly t ~ Uniform({0, ..., T - 1})
        eps = torch.randn(x_0.shape, generator=generator, device=x_0.device)  # eps ~ N(0, I)
        labels = run.batches.drop_labels(known_labels, generator)
        if run.teacher:
            x_0, eps = run.teacher.teach(x_0, t, eps, labels)
        torch.manual_seed(seed_of(run.config.seed, "dropout", g))
        with run.accelerator.accumulate(state.model):
            model, is_bound = state.model.train(), run.objective.is_bound
            # |eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)|^2
            losses = denoising_loss(model, run.scheduler, x_0, t, eps, labels, augment_labels, is_bound)
            run.accelerator.backward((run.objective.weights[t] * state.importance(t) * losses).mean())
        state.note(losses, run.objective.weights[t], t)
    state.take_gradient_step()


def save_checkpoint(run: Run, state: RunState):
    """Save all that the same command needs to go on from here, beside the training. All processes have to call it."""
    numbers = {**state.numbers(), "config": dataclasses.asdict(run.config), "images": run.count}
    numbers.update(images_per_step=run.images_per_step, stream=run.images.state(), pictures=run.images.fingerprint)
    numbers.update(teacher=run.teacher and run.teacher.fingerprint)
    tensors = state.tensors()
    if run.accelerator.is_main_process:
        run.folder.note_unreadable(run.images.unreadable, run.images.small)
        run.folder.save_checkpoint(state.step, tensors, numbers)


def outputs_due(config: TrainingConfig, step: int) -> set[str]:
    """Return which outputs are due after a step: `"save"`, `"validate"`, `"draw"`, `"measure"`, `"snapshot"`."""
    last = step == config.total_steps
    often = {"save": config.save_model_steps, "draw": config.save_images_steps, "measure": config.eval_steps}
    often["validate"] = config.validation_steps
    due = {name for name, steps in often.items() if steps and (last or step % steps == 0)}
    parts = config.posthoc_ema or 0  # of the run; a snapshot is due at the end of each
    is_end_of_part = step * parts // config.total_steps > (step - 1) * parts // config.total_steps
    return due | {"snapshot"} if is_end_of_part else due


def missing_outputs(run: Run, state: RunState) -> set[str]:
    """Return the outputs that were due where the run stopped, and are missing. The main process decides."""
    is_last = state.step == run.config.total_steps
    missing = outputs_due(run.config, state.step) - run.folder.outputs_of(state.step, is_last)
    return broadcast_object_list([missing])[0]


def write_outputs(due: set[str], run: Run, state: RunState, interrupted: bool = False):
    """Save the pipeline, measure, and draw samples, as far as they are due, all with the averaged weights.

    A snapshot is of the two other averages.
    """
    is_main, accelerator = run.accelerator.is_main_process, run.accelerator
    if "snapshot" in due:
        tensors = state.snapshot()
        if is_main:
            run.folder.save_snapshot(state.step, tensors)
    if not due - {"snapshot"}:
        return
    with state.unet_to_draw_with() as unet:
        pipeline = DDPMPipelineCustom(unet, *how_to_draw(run.config, run.scheduler))
        if is_main and "save" in due:
            if state.step == run.config.total_steps and not interrupted:
                with one_line_errors():
                    run.folder.save_last_pipeline(pipeline)
            else:
                run.folder.save_pipeline(pipeline)
        if "validate" in due:
            assert run.held_out_loss is not None  # else no validation is ever due
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
            assert run.reference is not None and run.measurement is not None  # else no measurement is ever due
            with going_on("measure the model"):
                arguments = (run.reference, run.measurement, run.folder.path, state.step, run.best)
                track_numbers(accelerator, evaluate_during_training(pipeline, *arguments), state.step)
