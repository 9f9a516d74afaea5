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
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from tqdm.auto import tqdm

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom, DDPMUNetModel
from ddpm_hf.config import parse_command_line
from ddpm_hf.data import BatchPlan, common_mode, load_dataset, load_pixels
from ddpm_hf.run_folder import RunFolder
from ddpm_hf.training import (
    MovingAverage,
    choose_mixed_precision,
    keep_freed_memory,
    make_lr_scheduler,
    make_optimizer,
    simple_loss,
    timestep_weights,
)


def main():
    config, dry_run = parse_command_line()
    keep_freed_memory()

    # Whatever can be wrong with the options is found here, before any work is done.
    with one_line_errors():
        config.mixed_precision = choose_mixed_precision(config.mixed_precision)
        accelerator = Accelerator(
            mixed_precision=config.mixed_precision, gradient_accumulation_steps=config.gradient_accumulation_steps
        )
        is_main = accelerator.is_main_process
        with accelerator.main_process_first():
            dataset = load_dataset(config)
            mode = common_mode(dataset)
        torch.manual_seed(config.seed)  # for the initial weights
        unet = DDPMUNetModel(
            **config.model, sample_size=config.resolution, in_channels=len(mode), out_channels=len(mode)
        )
        scheduler = DDPMLinearScheduler(
            num_train_timesteps=config.ddpm_num_steps,
            beta_schedule=config.ddpm_beta_schedule,
            prediction_type=config.prediction_type,
            variance_type=config.variance_type,
            clip_sample=config.clip_sample,
        )
        images_per_step = config.train_batch_size * config.gradient_accumulation_steps * accelerator.num_processes
        config.count_steps(steps_per_epoch=len(dataset) / images_per_step)
        if is_main and dry_run:
            print(json.dumps(dataclasses.asdict(config), indent=2))
        if is_main:
            print(describe(config, unet, len(dataset), images_per_step), flush=True)
        if dry_run:
            return
        folder = RunFolder(config, unet.get_memory_footprint()) if is_main else None
        with accelerator.main_process_first():
            pixels = load_pixels(dataset, mode, config)

    # Model, optimizer, and the average of the weights, which samples are drawn with.
    if config.gradient_checkpointing:
        unet.enable_gradient_checkpointing()
    optimizer = make_optimizer(unet, config)
    lr_scheduler = make_lr_scheduler(optimizer, config)
    model, optimizer = accelerator.prepare(unet, optimizer)
    ema = MovingAverage(unet, config.ema_inv_gamma, config.ema_power, config.ema_max_decay) if config.use_ema else None
    pipeline = DDPMPipelineCustom(unet, scheduler)
    weights = timestep_weights(scheduler, config)
    plan = BatchPlan(pixels, config.train_batch_size, weights, config.seed, config.random_flip, accelerator.device)
    x_0, _, _ = plan.micro_batch(0)
    assert x_0.shape[1:] == (len(mode), config.resolution, config.resolution)
    assert x_0.abs().max() <= 1

    interrupted = note_ctrl_c()
    started = window_start = time.perf_counter()
    losses = []
    progress = tqdm(total=config.max_train_steps, desc="Training", unit="step", disable=not is_main)
    for step in range(1, config.max_train_steps + 1):
        for a in range(config.gradient_accumulation_steps):
            # Micro-batch g of the run: its images, timesteps, noise and dropout depend on nothing but the seed and g.
            g = (step - 1) * config.gradient_accumulation_steps + a
            g = g * accelerator.num_processes + accelerator.process_index
            x_0, t, eps = plan.micro_batch(g)
            torch.manual_seed(plan.seed_of("dropout", g))

            # Take a gradient step on |eps - eps_theta(x_t, t)|^2.
            with accelerator.accumulate(model):
                loss = simple_loss(model.train(), scheduler, x_0, t, eps)
                accelerator.backward(loss)
                if accelerator.sync_gradients:
                    grad_norm = accelerator.clip_grad_norm_(model.parameters(), config.max_grad_norm or math.inf)
                optimizer.step()
                optimizer.zero_grad()
            losses.append(loss.detach())
        learning_rate = lr_scheduler.get_last_lr()[0]
        lr_scheduler.step()
        if ema is not None:
            ema.update(step)
        progress.update()
        last = step == config.max_train_steps or bool(interrupted)

        # Note the mean loss since the last note, and how fast it goes.
        if last or step % config.logging_steps == 0:
            mean_loss = accelerator.reduce(torch.stack(losses).mean(), "mean").item()
            images = len(losses) * config.train_batch_size * accelerator.num_processes
            rate = images / (time.perf_counter() - window_start)
            progress.set_postfix_str(f"loss={mean_loss:.4f}, {rate:.0f} images/s")
            if is_main:
                epoch = round(step * images_per_step / len(dataset), 4)
                numbers = dict(loss=mean_loss, grad_norm=float(grad_norm), learning_rate=learning_rate)
                folder.log(step=step, epoch=epoch, **numbers, images_per_second=round(rate, 1))
            losses, window_start = [], time.perf_counter()

        # Draw samples and save the pipeline, both with the averaged weights.
        draw = last or step % config.save_images_steps == 0
        save = step % config.save_model_steps == 0 and not last
        if draw or save:
            with ema.applied() if ema else nullcontext():
                if draw:
                    images = draw_samples(pipeline, config, plan, accelerator)
                if is_main and draw:
                    folder.save_samples(step, images)
                if is_main and save:
                    folder.save_pipeline(pipeline)
                if is_main and last:
                    with one_line_errors():
                        folder.save_last_pipeline(pipeline)
            window_start = time.perf_counter()
        if last:
            break
    progress.close()
    if is_main:
        print(farewell(config, step, time.perf_counter() - started))
    accelerator.end_training()
    if interrupted:
        sys.exit(128 + signal.SIGINT)


def draw_samples(pipeline: DDPMPipelineCustom, config, plan: BatchPlan, accelerator: Accelerator) -> list:
    """Draw `eval_batch_size` images, shared out over the processes; image i depends on nothing but the seed and i."""
    mine = range(accelerator.process_index, config.eval_batch_size, accelerator.num_processes)
    generators = [torch.Generator(accelerator.device).manual_seed(plan.seed_of("sample", i)) for i in mine]
    pipeline.unet.eval()
    pipeline.set_progress_bar_config(desc="Sampling", leave=False, disable=not accelerator.is_main_process)
    images = []
    if generators:
        with accelerator.autocast():
            images = pipeline(len(mine), generators, config.ddpm_num_inference_steps).images
    return [image for _, image in sorted(gather_object(list(zip(mine, images))), key=lambda pair: pair[0])]


def describe(config, unet: DDPMUNetModel, images: int, images_per_step: int) -> str:
    """The sizes of the run, in one line."""
    steps, epochs = config.max_train_steps, config.max_train_steps * images_per_step / images
    return (
        f"Preset {config.preset}: a U-Net with {unet.num_parameters() / 1e6:.2f} M parameters, {images:,} images, "
        f"{steps:,} steps of {images_per_step} images ({epochs:.1f} epochs), mixed precision {config.mixed_precision}."
    )


def farewell(config, step: int, seconds: float) -> str:
    """Where everything is, and how to go on."""
    again = f"DDPMPipelineCustom.from_pretrained('{config.output_dir}')(batch_size=16).images"
    early = "" if step == config.max_train_steps else f" of {config.max_train_steps:,} (stopped by Ctrl-C)"
    return (
        f"Trained {step:,} steps{early} in {seconds / 60:.1f} minutes. The model, samples/, loss.png and metrics.jsonl "
        f'are in {config.output_dir}; draw more with: python -c "from ddpm_hf import DDPMPipelineCustom; '
        f"[image.save(f'{{i}}.png') for i, image in enumerate({again})]\""
    )


def note_ctrl_c() -> list:
    """A list that is empty until Ctrl-C is pressed, which then ends training after the step; a second one kills."""
    presses = []

    def press(number, frame):
        presses.append(number)
        signal.signal(signal.SIGINT, signal.default_int_handler)
        tqdm.write("Ctrl-C: saving after this step ...")

    signal.signal(signal.SIGINT, press)
    return presses


@contextmanager
def one_line_errors():
    """End the process with one line, instead of a traceback, on what is wrong with the options or the disk."""
    try:
        yield
    except (ValueError, OSError) as error:
        sys.exit(f"train_ddpm.py: error: {error}")


if __name__ == "__main__":
    main()
