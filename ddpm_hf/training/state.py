"""What a training step is made of: the objective (eq. 14), the optimizer, and the moving average of the weights."""

from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator

from ddpm_hf.training.ema import MovingAverage
from ddpm_hf.training.meter import LossMeter
from ddpm_hf.training.sharding import copy_whole, is_sharded, whole
from ddpm_hf.unet_ddpm import DDPMUNetModel


class RunState:
    """Everything that a run has learned and where it stands: what a checkpoint holds.

    Args:
        unet, optimizer, lr_scheduler, ema, scaler: The parts; `ema` and `scaler` may be None.
        meter ([`LossMeter`]): The losses since the last note.

    Attributes:
        step (`int`): Optimizer steps taken.
        micro_batches (`int`): Micro-batches used up, by all processes: the next one's number in the batch plan.
        skipped (`int`): Updates left out because they were not finite.
    """

    def __init__(self, unet, optimizer, lr_scheduler, ema: MovingAverage | None, scaler, meter: LossMeter):
        self.unet, self.optimizer, self.lr_scheduler, self.ema = unet, optimizer, lr_scheduler, ema
        self.scaler, self.meter = scaler, meter
        self.step = self.micro_batches = self.skipped = 0

    @contextmanager
    def unet_to_draw_with(self):
        """The network that draws and is saved, whole on each process: with the averaged weights, if there are any."""
        if is_sharded(self.unet):
            unet = DDPMUNetModel.from_config(self.unet.config).to(self.unet.device)
            learned = self.ema.average if self.ema else self.unet.parameters()
            for parameter, value in zip(unet.parameters(), learned):
                parameter.data.copy_(whole(value.detach()))
            yield unet
        else:
            with self.ema.applied() if self.ema else nullcontext():
                yield self.unet

    def tensors(self) -> dict[str, dict[str, torch.Tensor]]:
        """The files of a checkpoint. All processes have to call it, since each may hold a part of a tensor."""
        moments = {
            f"{i}.{name}": value
            for i, named in self.optimizer.state_dict()["state"].items()
            for name, value in named.items()
        }
        averages = {"ema": self.ema.state_dict()} if self.ema else {}
        files = {"model": self.unet.state_dict(), "optimizer": moments, **averages}
        return {file: {name: whole(tensor) for name, tensor in named.items()} for file, named in files.items()}

    def numbers(self, accelerator: Accelerator) -> dict:
        """What else a checkpoint holds. All processes have to call it."""
        return {
            "step": self.step,
            "micro_batches": self.micro_batches,
            "skipped": self.skipped,
            "losses": accelerator.reduce(self.meter.table, "sum").tolist(),
            "scaler": self.scaler and self.scaler.state_dict(),
        }

    def load(self, tensors: dict[str, dict[str, torch.Tensor]], numbers: dict, is_main: bool):
        """Take over what a checkpoint holds; the losses on the main process only, for all."""
        for name, tensor in self.unet.state_dict().items():
            copy_whole(tensors["model"][name], tensor)
        if self.ema:
            self.ema.load_state_dict(tensors["ema"])
        parameters = self.optimizer.param_groups[0]["params"]
        moments = {}
        for key, value in tensors["optimizer"].items():
            i, name = key.split(".")
            if value.ndim:  # the fused optimizer expects the memory layout of the parameter
                value = copy_whole(value, torch.empty_like(parameters[int(i)], dtype=value.dtype))
            moments.setdefault(int(i), {})[name] = value
        groups = self.optimizer.state_dict()["param_groups"]
        self.optimizer.load_state_dict({"state": moments, "param_groups": groups})
        # The schedule is a function of the step.
        schedule = self.lr_scheduler
        schedule.last_epoch = numbers["step"]
        schedule._last_lr = [
            lr * course(schedule.last_epoch) for lr, course in zip(schedule.base_lrs, schedule.lr_lambdas)
        ]
        for group, learning_rate in zip(self.optimizer.param_groups, schedule.get_last_lr()):
            group["lr"] = learning_rate
        if self.scaler:
            self.scaler.load_state_dict(numbers["scaler"])
        if is_main:
            self.meter.table.copy_(torch.tensor(numbers["losses"]))
        self.step, self.micro_batches, self.skipped = (numbers[key] for key in ("step", "micro_batches", "skipped"))
