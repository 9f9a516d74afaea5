"""What a step of training takes on this machine: its time, measured on a few steps."""

import copy
import statistics
import time
from dataclasses import dataclass

import torch
from accelerate import Accelerator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.hardware import compile_network
from ddpm_hf.precision import autocast
from ddpm_hf.processes import gathered
from ddpm_hf.training.model import make_model
from ddpm_hf.training.objective import Objective, denoising_loss
from ddpm_hf.training.optimizer import make_optimizer
from ddpm_hf.training.teacher import Teacher

STEPS = 5  # that are timed
PATIENCE = 3.0  # seconds; a step that takes longer is measured on a part of its images


@dataclass(frozen=True)
class StepCost:
    """What an optimizer step costs on one process.

    Args:
        seconds (`float`): Time of a step.
        is_estimated (`bool`): Whether only a part of the images of a step was computed, since all take too long.
    """

    seconds: float
    is_estimated: bool


def measure_step(config: TrainingConfig, channels: int, accelerator: Accelerator) -> StepCost | None:
    """Measure what a step costs, with a network that is then thrown away. All processes have to call it.

    Returns:
        [`StepCost`]: That of the slowest process; None if a GPU has too little memory.
    """
    costs = gathered(lambda: _measure(config, channels, accelerator.device))
    return None if None in costs else max(costs, key=lambda cost: cost.seconds)


def _measure(config: TrainingConfig, channels: int, device: torch.device) -> StepCost | None:
    step, batch = Step(config, channels, device), config.train_batch_size
    try:
        part = min(batch, 4)
        step.seconds_for(part)  # the first step also prepares kernels
        while part < batch and step.seconds_for(part) * 2 < PATIENCE:
            part = min(2 * part, batch)
        step.seconds_for(part)
        seconds = statistics.median(step.seconds_for(part) for _ in range(STEPS)) * batch / part
    except torch.OutOfMemoryError:
        return None
    finally:
        step.end()
    return StepCost(seconds * config.gradient_accumulation_steps, is_estimated=part < batch)


class Step:
    """An optimizer step on random images, like those of the run."""

    def __init__(self, config: TrainingConfig, channels: int, device: torch.device):
        self.config, self.device = config, device
        self.unet, self.scheduler = make_model(config, channels)
        self.unet.to(device).train()
        if config.gradient_checkpointing:
            self.unet.enable_gradient_checkpointing()
        if config.compile:
            compile_network(self.unet, device)
        self.optimizer = make_optimizer(self.unet, config, device)
        self.objective = Objective(self.scheduler, config, device)
        self.teacher = (
            Teacher(copy.deepcopy(self.unet), self.scheduler, config, device) if config.distill_steps else None
        )
        self.shape = (channels, *config.size)

    def seconds_for(self, count: int) -> float:
        """Take the step with so many images, and return its time."""
        x_0 = torch.rand(count, *self.shape, device=self.device) * 2 - 1
        eps, t = torch.randn_like(x_0), self.objective.draw_timesteps(count, torch.Generator(self.device))
        labels = t % 2 if self.unet.config.num_class_embeds else None
        self._wait()
        began = time.perf_counter()
        if self.teacher:
            x_0, eps = self.teacher.teach(x_0, t, eps, labels)
        with autocast(self.device, self.config.mixed_precision):
            losses = denoising_loss(self.unet, self.scheduler, x_0, t, eps, labels, is_bound=self.objective.is_bound)
        losses.mean().backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        self._wait()
        return time.perf_counter() - began

    def end(self):
        """Free the memory."""
        del self.unet, self.optimizer, self.teacher
        if self.device.type != "cpu":
            torch.accelerator.empty_cache()

    def _wait(self):
        if self.device.type != "cpu":
            torch.accelerator.synchronize()
