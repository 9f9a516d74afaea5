"""Train a denoising diffusion probabilistic model: Algorithm 1 of Ho et al. 2020 (arXiv 2006.11239).

accelerate launch train_ddpm.py                                      handwritten digits, in minutes
accelerate launch train_ddpm.py --train_data_dir pictures            your own folder
accelerate launch train_ddpm.py --preset cifar10 --dry_run           see the options, and stop
"""

import dataclasses
import json
import math
import signal
import sys
import time
from contextlib import ExitStack
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import GradientAccumulationPlugin, broadcast_object_list
from tqdm.auto import tqdm

from ddpm_hf import DDPMPipelineCustom
from ddpm_hf.checkpoint import load_tensors
from ddpm_hf.command_line import parse_command_line
from ddpm_hf.config import TrainingConfig
from ddpm_hf.evaluation.during_training import check_measurement, evaluate_during_training, measurement_of
from ddpm_hf.hardware import compile_blocks, keep_freed_memory
from ddpm_hf.hub.share import check_before_training, share_run
from ddpm_hf.images.batches import ShuffledImages, seed_of
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.sources import label_settings, load_dataset
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import common_mode
from ddpm_hf.precision import choose_mixed_precision
from ddpm_hf.processes import gathered, join_processes_on_cpus, on_any_process, use_all_cores
from ddpm_hf.sampling import Classes, Drawing, draw_images
from ddpm_hf.signals import note_signals
from ddpm_hf.terminal import going_on, one_line_errors
from ddpm_hf.training.divergence import MOST_SKIPPED_UPDATES, diverged
from ddpm_hf.training.ema import MovingAverage
from ddpm_hf.training.launcher import check_launcher
from ddpm_hf.training.meter import LossMeter
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import denoising_loss, loss_weights
from ddpm_hf.training.optimizer import make_lr_scheduler, make_optimizer
from ddpm_hf.training.plan import make_plan
from ddpm_hf.training.resuming import check_folder, check_pictures, find_start, is_finished
from ddpm_hf.training.run_folder import RunFolder
from ddpm_hf.training.run_lock import alone_in
from ddpm_hf.training.sharding import check_sharding, prepare, whole
from ddpm_hf.training.state import RunState
from ddpm_hf.training.summary import describe, farewell
from ddpm_hf.training.trackers import start_trackers, track_numbers, track_samples, tracking_options


def main():
    config, dry_run = parse_command_line()
    with ExitStack() as at_the_end:
        train(config, dry_run, at_the_end)


def train(config: TrainingConfig, dry_run: bool, at_the_end: ExitStack):
    """Train as the options say. What has to be let go, however that ends, is noted in `at_the_end`."""
    join_processes_on_cpus()
    use_all_cores()
    keep_freed_memory()

    # Whatever can be wrong with the options, the data or the folder is found here, before any work is done.
    with one_line_errors():
        notes = check_launcher(config)
        config.mixed_precision = choose_mixed_precision(config.mixed_precision)
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision,
            gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=config.gradient_accumulation_steps),
            **tracking_options(config),
        )
        check_sharding(accelerator)
        is_main = accelerator.is_main_process
        if not dry_run:
            check_folder(config)
        if is_main and not dry_run:
            at_the_end.enter_context(alone_in(Path(config.output_dir)))
        with accelerator.main_process_first():
            dataset = load_dataset(config)
            mode = common_mode(dataset)
            config.model = config.model | label_settings(dataset)
        measurement = measurement_of(config)
        unet, scheduler = make_model(config, channels=len(mode))
        images_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        count = None if config.streaming else len(dataset)
        config.count_steps(steps_per_epoch=(count or 0) / images_per_step)
        if is_main and dry_run:
            print(json.dumps(dataclasses.asdict(config), indent=2))
        if is_main:
            print(*notes, describe(config, unet, count, images_per_step), sep="\n", flush=True)
            check_before_training(config)
        if dry_run:
            return
        start = find_start(config, images_per_step)
        if is_main:
            print("".join(f"{note}\n" for note in start.notes), end="", flush=True)
        is_over = start.step >= config.max_train_steps and is_finished(Path(config.output_dir))
        if is_over and not config.differences(start.saved["config"]):
            return say_it_is_trained(config, start.step, is_main)
        folder = RunFolder(config)
        if is_main:
            folder.check_space(unet.get_memory_footprint())
        if config.streaming:
            pictures, fingerprint = None, None
            images = StreamedImages(dataset, mode, config, start.saved and start.saved["stream"])
        else:
            with accelerator.main_process_first():
                pictures = load_images(dataset, mode, config)
            images, fingerprint = ShuffledImages(pictures, config.seed, pictures.labels), pictures.fingerprint
        at_the_end.callback(images.close)
        del dataset  # its memory-mapped files would count as this process's memory
        check_pictures(start, count, fingerprint)
        if is_over:  # with the same pictures, from elsewhere
            return say_it_is_trained(config, start.step, is_main)
        if measurement:
            check_measurement(measurement, pictures)
        accelerator.wait_for_everyone()  # all have read the folder as it was
        if is_main:
            folder.begin(start.step)
            folder.note_unreadable(images.unreadable)
            folder.note_run(accelerator, unet, count, images_per_step, start.step)
        start_trackers(accelerator, config)

    # Model, optimizer, and the average of the weights, which samples are drawn with.
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    if config.compile:
        compile_blocks(unet)
    optimizer = make_optimizer(unet, config)
    lr_scheduler = make_lr_scheduler(optimizer, config)
    model, prepared_optimizer = prepare(accelerator, unet, optimizer)
    ema = MovingAverage(unet, config.ema_inv_gamma, config.ema_power, config.ema_max_decay) if config.use_ema else None
    meter = LossMeter(config.ddpm_num_steps, accelerator.device)
    state = RunState(unet, optimizer, lr_scheduler, ema, accelerator.scaler, meter)
    if start.checkpoint:
        state.load(load_tensors(start.checkpoint), start.saved, is_main)
    weights = loss_weights(scheduler, config).to(accelerator.device)
    plan = make_plan(images, unet, scheduler, config, accelerator.device)
    x_0, *_ = plan.micro_batch(state.micro_batches + accelerator.process_index)
    assert x_0.shape[1:] == (len(mode), config.resolution, config.resolution)

    def give_out(due: set[str], is_last: bool):
        """Save the pipeline, draw samples and measure, all with the averaged weights, as far as they are due."""
        if not due:
            return
        with state.unet_to_draw_with() as drawing_unet:
            pipeline = DDPMPipelineCustom(drawing_unet, scheduler)
            if is_main and "save" in due and is_last:
                with one_line_errors():
                    folder.save_last_pipeline(pipeline)
            elif is_main and "save" in due:
                folder.save_pipeline(pipeline)
            if "draw" in due:
                with going_on("draw samples"):
                    samples = draw_samples(pipeline, config, accelerator)
                    if is_main:
                        folder.save_samples(state.step, samples)
                    track_samples(accelerator, samples, state.step)
            if "measure" in due:
                with going_on("measure the model"):
                    numbers = evaluate_during_training(pipeline, pictures, measurement, folder.path, state.step)
                    track_numbers(accelerator, numbers, state.step)

    # Where the run was stopped, something may have been due that was not given out.
    last = state.step == config.max_train_steps
    if start.checkpoint:
        missing = [outputs_due(config, state.step) - folder.outputs_of(state.step, is_last=last)]
        give_out(broadcast_object_list(missing)[0], is_last=last)

    signals = note_signals()
    started = time.perf_counter()
    window = state.step, started  # where the count of images/s begins
    first_step, skipped_in_a_row, interrupted = state.step, 0, False
    progress = tqdm(total=config.max_train_steps, initial=first_step, desc="Training", unit="step", disable=not is_main)
    while state.step < config.max_train_steps:
        for _ in range(config.gradient_accumulation_steps):
            # Micro-batch g of the run: its images, timesteps, noise and dropout depend on nothing but the seed and g.
            g = state.micro_batches + accelerator.process_index
            with one_line_errors():
                x_0, t, eps, labels = plan.micro_batch(g)
            torch.manual_seed(seed_of(config.seed, "dropout", g))
            state.micro_batches += accelerator.num_processes

            # Take a gradient step on |eps - eps_theta(x_t, t)|^2, unless it is not finite.
            with accelerator.accumulate(model):
                losses = denoising_loss(model.train(), scheduler, x_0, t, eps, labels)
                accelerator.backward((weights[t] * losses).mean())
                if accelerator.sync_gradients:
                    longest = config.max_grad_norm or math.inf
                    grad_norm = whole(accelerator.clip_grad_norm_(model.parameters(), longest))
                    finite = bool(grad_norm.isfinite())  # alike on all processes
                if not accelerator.sync_gradients or finite or accelerator.scaler:
                    prepared_optimizer.step()
                prepared_optimizer.zero_grad()
            meter.add(losses, t)
        state.step += 1
        learning_rate = lr_scheduler.get_last_lr()[0]
        lr_scheduler.step()
        if finite and ema is not None:
            ema.update(state.step)
        state.skipped += not finite
        skipped_in_a_row = 0 if finite else skipped_in_a_row + 1
        if skipped_in_a_row == MOST_SKIPPED_UPDATES:
            sys.exit(diverged(config, state.step))
        progress.update()
        interrupted = on_any_process(bool(signals), accelerator)
        last = state.step == config.max_train_steps

        # Note the mean loss since the last note, and how fast it goes.
        if last or state.step % config.logging_steps == 0:
            numbers = meter.read(accelerator)
            rate = (state.step - window[0]) * images_per_step / (time.perf_counter() - window[1])
            progress.set_postfix_str(f"loss={numbers['loss'] or math.nan:.4f}, {rate:.1f} images/s")
            numbers["epoch"] = count and round(state.micro_batches * config.train_batch_size / count, 4)
            numbers["grad_norm"] = grad_norm.item() if finite else None
            numbers.update(learning_rate=learning_rate, skipped_updates=state.skipped, images_per_second=round(rate, 1))
            if is_main:
                folder.log(step=state.step, **numbers)
            with going_on("track the numbers"):
                track_numbers(accelerator, numbers, state.step)
            window = state.step, time.perf_counter()

        # Save all that the same command needs to go on from here, before anything that takes time or may fail.
        keep = last or interrupted or (state.step % config.checkpointing_steps == 0 and finite)
        if keep:
            numbers = {**state.numbers(accelerator), "config": dataclasses.asdict(config), "images": count}
            numbers.update(images_per_step=images_per_step, stream=images.state(), pictures=fingerprint)
            tensors = state.tensors()
            if is_main:
                folder.note_unreadable(images.unreadable)
                folder.save_checkpoint(state.step, tensors, numbers)
            del tensors
        due = {"save"} if interrupted else outputs_due(config, state.step)
        give_out(due, is_last=last and not interrupted)
        if keep or due:
            window = state.step, time.perf_counter()
        if interrupted:
            break
    if is_main and last and not interrupted:
        folder.finish(state.step)
    progress.close()
    accelerator.wait_for_everyone()
    # The wrapped model has to go before the group of processes: freed after it, it can wait for ever (PyTorch 2.13).
    del model
    accelerator.free_memory()
    accelerator.end_training()
    if is_main:
        print(farewell(config, state.step - first_step, state.step, time.perf_counter() - started))
        share_run(config, finished=last and not interrupted)
    if signal.SIGINT in signals:
        sys.exit(128 + signal.SIGINT)


def say_it_is_trained(config: TrainingConfig, step: int, is_main: bool):
    """Say that nothing is left to be trained, and share the run if it is to be shared."""
    if is_main:
        print(f"{config.output_dir} is trained: {step:,} steps. A higher --max_train_steps goes on.")
        share_run(config, finished=True)


def outputs_due(config: TrainingConfig, step: int) -> set[str]:
    """What is to be given out after a step: `"save"`, `"draw"`, `"measure"`."""
    last = step == config.max_train_steps
    often = {"save": config.save_model_steps, "draw": config.save_images_steps, "measure": config.eval_steps}
    return {name for name, steps in often.items() if steps and (last or step % steps == 0)}


def draw_samples(pipeline: DDPMPipelineCustom, config, accelerator: Accelerator) -> list:
    """Draw `eval_batch_size` images, shared out over the processes; image i depends on nothing but the seed and i."""
    mine = range(accelerator.process_index, config.eval_batch_size, accelerator.num_processes)
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(desc="Sampling", leave=False, disable=not accelerator.is_main_process)
    classes = Classes.chosen(pipeline, None, config.guidance_scale)
    how = Drawing(config.seed, config.ddpm_num_inference_steps, len(mine), classes, config.mixed_precision)
    parts = gathered(lambda: list(draw_images(pipeline, mine, how)))
    return [image for _, image in sorted((pair for part in parts for pair in part), key=lambda pair: pair[0])]


if __name__ == "__main__":
    try:
        main()
    except KeyboardInterrupt:  # before the first step, or for the second time
        sys.exit(128 + signal.SIGINT)
