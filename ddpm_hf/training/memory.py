"""The memory that a run takes while it trains, found in seconds: its tensors have shapes here, and no data."""

import weakref
from contextlib import ExitStack
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ddpm_hf.checkpoint import POWER_AVERAGES
from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.augment import NUM_LABELS
from ddpm_hf.precision import autocast
from ddpm_hf.training.ema import MovingAverage, PowerAverage
from ddpm_hf.training.model import make_model
from ddpm_hf.training.optimizer import make_optimizer, skips_by_itself
from ddpm_hf.unet_ddpm import DDPMUNetModel


def peak_memory(config: TrainingConfig, channels: int, device_type: str, processes: int = 1) -> int:
    """Return the bytes that the tensors of a run take at most on one process, while it trains.

    They are the weights, their averages, the gradients, the moments of the optimizer, and what the way back needs of a
    micro-batch. What libraries take besides is not in it, and neither is what an allocator cannot use again.

    Args:
        config ([`TrainingConfig`]): The options.
        channels (`int`): Channels of the images.
        device_type (`str`): `"cpu"`, or `"cuda"` and the like, where autocast computes more in float32.
        processes (`int`): Processes of the run. Several exchange their gradients through a copy of them.
    """
    on_cpu, count = device_type == "cpu", config.train_batch_size
    with ExitStack() as modes:
        modes.enter_context(FakeTensorMode())
        unet = make_model(config, channels)[0].train()
        if config.gradient_checkpointing:
            unet.enable_gradient_checkpointing()
        for module in [] if on_cpu else unet.modules():
            if isinstance(module, nn.GroupNorm):
                module.register_forward_pre_hook(_as_on_gpus)
        tensors = modes.enter_context(_LivingTensors())
        teacher = make_model(config, channels)[0] if config.distill_steps else None
        tensors.note([*unet.parameters(), *(teacher.parameters() if teacher else ())])

        # 1. An update. It makes the moments, and leaves the gradient only if more micro-batches add to it.
        optimizer: Any = make_optimizer(unet, config, torch.device(device_type))
        average = MovingAverage(unet, 1.0, 1.0, 1.0) if config.use_ema else None
        power_averages = [PowerAverage(unet, std) for std in POWER_AVERAGES if config.posthoc_ema]
        skip = torch.zeros(()) if skips_by_itself(torch.device(device_type)) else None
        learned = [parameter for parameter in unet.parameters() if parameter.requires_grad]
        for parameter in learned:
            parameter.grad = torch.zeros_like(parameter)
        exchanged = [torch.zeros_like(parameter) for parameter in learned] if processes > 1 else []
        if skip is not None:
            optimizer.found_inf = skip
        optimizer.step()
        if average:
            average.update(1, skip)
        for power_average in power_averages:
            power_average.update(1)
        if config.gradient_accumulation_steps == 1:
            optimizer.zero_grad()

        # 2. The gradient of a micro-batch.
        x_0, x_t = (torch.zeros(count, channels, *config.size) for _ in range(2))
        eps = torch.zeros(count, unet.config.out_channels, *config.size)  # and what a learned variance is compared with
        t = torch.zeros(count, dtype=torch.long)
        labels = t if unet.config.num_class_embeds else None
        augmentation = {"augment_labels": torch.zeros(count, NUM_LABELS)} if config.augment else {}
        with autocast(torch.device("cpu"), config.mixed_precision):
            prediction = unet(x_t, t, labels, return_dict=False, **augmentation)[0]
        F.mse_loss(prediction.float(), eps).backward()
        del x_0, exchanged
    return tensors.most


def checkpoint_memory(config: TrainingConfig, channels: int) -> int:
    """Return the bytes of a checkpoint: weights, averages and two moments. While it is written, a copy is in memory."""
    with torch.device("meta"):
        unet = make_model(config, channels)[0]
    return (3 + config.use_ema + (2 if config.posthoc_ema else 0)) * unet.get_memory_footprint()


def surely_enough(config: TrainingConfig, unet: DDPMUNetModel) -> int:
    """Return bytes that surely suffice. It takes no time, and is several times too much.

    It is as if each layer of weights kept four feature maps, all of the finest and of the widest level, and there were
    ten copies of all weights.
    """
    height, width = config.size
    features = 2 * max(unet.config.block_out_channels) * height * width * config.train_batch_size
    layers = sum(1 for name, _ in unet.named_parameters() if name.endswith("weight"))
    return 4 * (10 * unet.num_parameters() + 4 * layers * features)


class _LivingTensors(TorchDispatchMode):
    """Adds up the bytes of all tensors that exist, from the operations that make them.

    PyTorch's own `MemTracker` finds the same numbers, and takes five times as long.
    """

    def __init__(self):
        super().__init__()
        self.known: set[int] = set()
        self.bytes = self.most = 0

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        self.note(tree_leaves(result))
        return result

    def note(self, values):
        """Count those that are tensors, each storage once, until it is freed."""
        for value in values:
            if not isinstance(value, torch.Tensor):
                continue
            storage = value.untyped_storage()
            if storage._cdata in self.known:
                continue
            self.known.add(storage._cdata)
            self.bytes += storage.nbytes()
            self.most = max(self.most, self.bytes)
            weakref.finalize(storage, self._forget, storage._cdata, storage.nbytes())

    def _forget(self, key: int, count: int):
        self.known.discard(key)
        self.bytes -= count


def _as_on_gpus(_: nn.GroupNorm, inputs: tuple[torch.Tensor]) -> torch.Tensor:
    """Copy the input of a group norm in float32, as a GPU does.

    Autocast takes group norms to float32 there, and their kernel wants each channel in one piece, not channels last.
    """
    return inputs[0].to(torch.float32, copy=True)
