"""Everything that a run has learned, and the gradient step that changes it."""

import math
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from typing import Any

import torch
from accelerate import Accelerator

from ddpm_hf.checkpoint import POWER_AVERAGES
from ddpm_hf.config import TrainingConfig
from ddpm_hf.hardware import called_as_it_is, compile_network
from ddpm_hf.training.ema import MovingAverage, PowerAverage
from ddpm_hf.training.loss_history import LossHistory
from ddpm_hf.training.meter import LossMeter
from ddpm_hf.training.optimizer import make_lr_scheduler, make_optimizer, skips_by_itself
from ddpm_hf.training.sharding import copy_whole, is_sharded, prepare, whole
from ddpm_hf.unet_ddpm import DDPMUNetModel


class RunState:
    """Everything that a run has learned and where it stands: what a checkpoint holds.

    Args:
        unet ([`DDPMUNetModel`]): The network, at its initial weights.
        config ([`TrainingConfig`]): The options, with `max_train_steps` counted.
        accelerator ([`~accelerate.Accelerator`]): It moves the network to the device, or shards it.

    Attributes:
        model (`torch.nn.Module`): The network as accelerate wraps it, for the forward pass.
        ema ([`MovingAverage`], *optional*): The average of the weights, which samples are drawn with.
        power_averages (`dict[str, PowerAverage]`): Two more averages, which snapshots are taken of; none without
            `posthoc_ema`.
        meter ([`LossMeter`]): The losses since the last note.
        history ([`LossHistory`], *optional*): The last losses at each timestep, if they are drawn by them.
        step (`int`): Optimizer steps taken.
        micro_batches (`int`): Micro-batches used so far by all processes; also the number of the next one.
        norm (`torch.Tensor`): Norm of the last gradient, on the device.
        skips (`torch.Tensor`, `(2,)`): Updates left out because the gradient was not finite, and those of them since
            the last finite one, on the device. Reading them, or the properties below, waits for the device.
        learning_rate (`float`): That of the last step.
    """

    def __init__(self, unet: DDPMUNetModel, config: TrainingConfig, accelerator: Accelerator):
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        if config.compile:
            compile_network(unet, accelerator.device, accelerator.num_processes)
        self.unet, self.accelerator = unet, accelerator
        self.optimizer: Any = make_optimizer(unet, config, accelerator.device)  # its flag `found_inf` is in no type
        self.lr_scheduler = make_lr_scheduler(self.optimizer, config)
        self.model = prepare(accelerator, unet, self.optimizer)
        average = (config.ema_inv_gamma, config.ema_power, config.ema_max_decay)
        self.ema = MovingAverage(unet, *average) if config.use_ema else None
        kept = POWER_AVERAGES if config.posthoc_ema else {}
        self.power_averages = {name: PowerAverage(unet, std) for std, name in kept.items()}
        self.scaler = accelerator.scaler
        self.meter = LossMeter(config.ddpm_num_steps, accelerator.device)
        is_by_loss = config.timestep_sampling == "loss_second_moment"
        self.history = LossHistory(config.ddpm_num_steps, accelerator.device) if is_by_loss else None
        self.longest_gradient = config.max_grad_norm or math.inf
        self.step = self.micro_batches = 0
        self.norm, self.skips = torch.zeros((), device=accelerator.device), torch.zeros(2, device=accelerator.device)
        # Most GPUs skip the update by themselves, so that no step waits for them. Sharded optimizers take no flag.
        self.skips_on_device = skips_by_itself(accelerator.device) and not is_sharded(self.unet)
        self.learning_rate = 0.0

    def micro_batches_of_a_step(self) -> Iterator[int]:
        """Yield the numbers of the micro-batches that this process has to compute the next gradient from."""
        for _ in range(self.accelerator.gradient_accumulation_steps):
            yield self.micro_batches + self.accelerator.process_index
            self.micro_batches += self.accelerator.num_processes

    def importance(self, t: torch.Tensor) -> torch.Tensor | float:
        """Return what makes up for timesteps that are drawn by their losses, see [`LossHistory`]."""
        return self.history.importance(t) if self.history else 1.0

    def note(self, losses: torch.Tensor, weights: torch.Tensor, t: torch.Tensor):
        """Note the losses of a micro-batch, their weights in the objective, and the timesteps; all are `(batch,)`."""
        if self.history:
            self.history.note(weights * losses, t)
            self.meter.add_estimates(self.importance(t) * losses, t)
        else:
            self.meter.add(losses, t)

    def take_gradient_step(self):
        """Change the weights by the gradient, and their averages; leave both if the gradient is not finite."""
        self.norm = whole(self.accelerator.clip_grad_norm_(self.model.parameters(), self.longest_gradient))
        skip = (~self.norm.isfinite()).float()  # alike on all processes
        if self.skips_on_device:
            self.optimizer.found_inf = skip
        if self.skips_on_device or not skip:
            self.optimizer.step()
        if self.scaler:  # fp16: the norm is that of the true gradient, and the next scale depends on it
            self.scaler.update()
        self.optimizer.zero_grad()
        self.step += 1
        self.learning_rate = self.optimizer.param_groups[0]["lr"]
        self._follow_schedule()
        if self.ema and self.skips_on_device:
            self.ema.update(self.step, skip)
        elif self.ema and not skip:
            self.ema.update(self.step)
        if self.history:
            self.history.end_step(self.accelerator, skip)
        for power_average in self.power_averages.values():
            power_average.update(self.step)
        self.skips[0] += skip
        self.skips[1] = (self.skips[1] + 1) * skip

    def _follow_schedule(self):
        """Set the learning rate of the next step. It is a function of the steps taken, also of those that skipped."""
        schedule = self.lr_scheduler
        for group, lr, course in zip(self.optimizer.param_groups, schedule.base_lrs, schedule.lr_lambdas):
            group["lr"] = lr * course(self.step)

    @property
    def skipped(self) -> int:
        return int(self.skips[0])

    @property
    def skipped_in_a_row(self) -> int:
        return int(self.skips[1])

    @property
    def grad_norm(self) -> float | None:
        """Norm of the last gradient; None if it was not finite."""
        norm = self.norm.item()
        return norm if math.isfinite(norm) else None

    @contextmanager
    def unet_to_draw_with(self) -> Iterator[DDPMUNetModel]:
        """Open the network that is saved and draws: whole on each process, with averaged weights if they are kept.

        The layer of the augmentation labels is not part of it.
        """
        if is_sharded(self.unet):
            unet = DDPMUNetModel.from_config(self.unet.config).to(self.unet.device)
            learned = self.ema.average if self.ema else self.unet.parameters()
            for parameter, value in zip(unet.parameters(), learned):  # without the augmentation's, which come last
                parameter.data.copy_(whole(value.detach()))
            yield unet
        else:
            average = self.ema.applied() if self.ema else nullcontext()
            with average, self.unet.without_augment_embedding(), called_as_it_is(self.unet):
                yield self.unet

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the files of a checkpoint. All processes have to call it, since tensors may be sharded."""
        moments = {
            f"{i}.{name}": value
            for i, named in self.optimizer.state_dict()["state"].items()
            for name, value in named.items()
        }
        averages = self.power_averages | ({"ema": self.ema} if self.ema else {})
        files = {"model": self.unet.state_dict(), "optimizer": moments}
        files |= {name: average.state_dict() for name, average in averages.items()}
        if self.history:
            files["history"] = self.history.tensors()
        return {file: {name: whole(tensor) for name, tensor in named.items()} for file, named in files.items()}

    def snapshot(self) -> dict[str, dict[str, torch.Tensor]]:
        """Return the files of a snapshot: each of the two averages as weights of the network that draws.

        All processes have to call it, since tensors may be sharded.
        """
        with self.unet.without_augment_embedding():
            names = [name for name, _ in self.unet.named_parameters()]  # those of the augmentation would come last
        return {
            file: {name: whole(tensor) for name, tensor in zip(names, power_average.average)}
            for file, power_average in self.power_averages.items()
        }

    def numbers(self) -> dict:
        """Return what else a checkpoint holds. All processes have to call it."""
        return {
            "step": self.step,
            "micro_batches": self.micro_batches,
            "skipped": self.skipped,
            "losses": self.accelerator.reduce(self.meter.table, "sum").tolist(),
            "scaler": self.scaler and self.scaler.state_dict(),
        }

    def load(self, tensors: dict[str, dict[str, torch.Tensor]], numbers: dict):
        """Take over what a checkpoint holds. The main process takes the losses of all processes."""
        for name, tensor in self.unet.state_dict().items():
            copy_whole(tensors["model"][name], tensor)
        if self.ema:
            self.ema.load_state_dict(tensors["ema"])
        if self.history:
            self.history.load(tensors["history"])
        for name, power_average in self.power_averages.items():
            power_average.load_state_dict(tensors[name])
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        moments: dict[int, dict[str, torch.Tensor]] = {}
        for key, value in tensors["optimizer"].items():
            i, name = key.split(".")
            # Copies, since Windows deletes no file whose tensors are in use. The fused optimizer expects the memory
            # layout of the parameter.
            if value.ndim:
                value = copy_whole(value, torch.empty_like(parameters[int(i)], dtype=value.dtype))
            else:
                value = value.clone()
            moments.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        if self.scaler:
            self.scaler.load_state_dict(numbers["scaler"])
        if self.accelerator.is_main_process:
            self.meter.table.copy_(torch.tensor(numbers["losses"]))
        self.step, self.micro_batches = numbers["step"], numbers["micro_batches"]
        self._follow_schedule()
        self.skips[0] = numbers["skipped"]
