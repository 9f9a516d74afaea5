"""What to do if the memory is too small for a step: the flags with which it is large enough."""

import copy
import math
import os
from bisect import bisect_right
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
import torch
from accelerate import Accelerator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.hardware import is_out_of_memory
from ddpm_hf.run_files import CHECKPOINTS, list_checkpoints
from ddpm_hf.terminal import one_line_errors
from ddpm_hf.training.checkpoint_writer import CheckpointWriter
from ddpm_hf.training.memory import checkpoint_memory, peak_memory, surely_enough
from ddpm_hf.training.sharding import is_sharding
from ddpm_hf.unet_ddpm import DDPMUNetModel

# What is taken besides the tensors, at most, as a share of them. On a CPU much lies between them: see docs/memory.md.
BESIDES = {"cpu": 0.7, "gpu": 0.1}
CGROUP_LIMIT = Path("/sys/fs/cgroup/memory.max")  # of a container


class StepMemory:
    """The memory that a step needs, beside the memory that a process can get.

    Args:
        config ([`TrainingConfig`]): The options.
        channels (`int`): Channels of the images.
        accelerator ([`~accelerate.Accelerator`]): The device and the processes.
    """

    def __init__(self, config: TrainingConfig, channels: int, accelerator: Accelerator):
        self.config, self.channels = config, channels
        self.device, self.processes = accelerator.device, accelerator.num_processes
        self.is_sharded = is_sharding(accelerator)
        self.there = memory_there(self.device)
        # A GPU keeps it in another memory, that of the host.
        self.checkpoint = checkpoint_memory(config, channels) if self.device.type == "cpu" else 0
        self.known: dict[tuple, int] = {}  # since each number takes a second or more

    def needed(self, **options) -> int:
        """Return the bytes of the tensors, and of the copy of a checkpoint on a CPU, if some options were others."""
        config = copy.copy(self.config)
        for name, value in options.items():
            setattr(config, name, value)
        key = (config.train_batch_size, config.gradient_accumulation_steps > 1, config.gradient_checkpointing)
        if key not in self.known:
            self.known[key] = peak_memory(config, self.channels, self.device.type, self.processes)
        return self.known[key] + self.checkpoint

    def check(self, unet: DDPMUNetModel):
        """Raise a ValueError if the memory is surely too small; the message names what would fit."""
        if not self.is_sharded and surely_enough(self.config, unet) > self.there and self._is_surely_too_small():
            raise ValueError(self.describe_lack())

    def _is_surely_too_small(self) -> bool:
        # A compiled network keeps about half of what the estimate counts, and other devices lend more than they say.
        is_sure = not self.config.compile and self.device.type in ("cpu", "cuda")
        return is_sure and self.needed() > 1.1 * self.there  # the estimate may be a little too high

    def describe(self, has_failed: bool) -> str:
        """Say how much is needed, with and without gradient checkpointing; or what would fit, if that is too much.

        Args:
            has_failed (`bool`): Whether a step was tried, and was too much.
        """
        if self.is_sharded and not has_failed:
            return "not known, since the model is sharded"
        if has_failed or self._is_surely_too_small():
            return self.describe_lack()
        limit = "" if math.isinf(self.there) else f" of {in_words(self.there)}"
        text = f"about {in_words(self.needed())}{limit}"
        if self.config.gradient_checkpointing:
            return text
        return f"{text}; about {in_words(self.needed(gradient_checkpointing=True))} with --gradient_checkpointing"

    def describe_lack(self) -> str:
        """Say that the memory is too small for a step, and name the flags with which one fits."""
        if self.is_sharded:
            return "the memory is too small: pass --gradient_checkpointing, or a smaller --train_batch_size"
        config, needed = self.config, self.needed()
        checkpointing = " with --gradient_checkpointing" if config.gradient_checkpointing else ""
        besides = ", besides what libraries take" if needed <= self.there else ""
        where = "this machine" if self.device.type == "cpu" else "the GPU"
        return (
            f"--train_batch_size {config.train_batch_size}{checkpointing} at {config.resolution} pixels needs about "
            f"{in_words(needed)} of memory{besides}, and {where} has {in_words(self.there)}: {self._advice(needed)}"
        )

    def _advice(self, needed: int) -> str:
        """Name the flags with which a step of as many images fits, if so many bytes are too many."""
        limit = min(self.there, needed) / (1 + BESIDES["cpu" if self.device.type == "cpu" else "gpu"])
        is_checkpointed = self.config.gradient_checkpointing
        ways = [self._smaller_parts(is_checkpointed, limit)]
        if not is_checkpointed:
            ways.insert(0, ("--gradient_checkpointing", self.needed(gradient_checkpointing=True)))
        ways = [(flags, size) for flags, size in ways if size <= limit]
        if not ways and not is_checkpointed:
            flags, size = self._smaller_parts(True, limit)
            ways = [(f"--gradient_checkpointing {flags}", size)] if size <= limit else []
        if not ways:
            network = "--model_size" if self.config.preset == "auto" else "network"
            return f"not even one image at a time fits; take a smaller {network}, or a lower --resolution"
        return f"pass {', or '.join(f'{flags} (about {in_words(size)})' for flags, size in ways)}"

    def _smaller_parts(self, checkpointing: bool, limit: float) -> tuple[str, float]:
        """Return the flags for the largest part of a batch that fits into a limit, and the bytes that it needs.

        If none fits, the bytes are infinite.
        """
        batch, accumulation = self.config.train_batch_size, self.config.gradient_accumulation_steps
        splits = [
            {"train_batch_size": part, "gradient_accumulation_steps": accumulation * batch // part}
            for part in range(1, batch // 2 + 1)
            if batch % part == 0
        ]

        def size_of(split: dict[str, int]) -> int:
            return self.needed(**split, gradient_checkpointing=checkpointing)

        fitting = bisect_right(splits, limit, key=size_of)  # they grow
        if not fitting:
            return "", math.inf
        split = splits[fitting - 1]
        return " ".join(f"--{name} {value}" for name, value in split.items()), size_of(split)

    @contextmanager
    def one_clear_error(self, writer: CheckpointWriter) -> Iterator[None]:
        """End the process with one line if the memory runs out inside: what would fit, and where the run goes on.

        Args:
            writer ([`~ddpm_hf.training.checkpoint_writer.CheckpointWriter`]): It may be writing the newest checkpoint.
        """
        try:
            yield
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            self.there = memory_there(self.device)  # other programs may have taken some
            writer.wait()
            checkpoints = list_checkpoints(self.config.folder / CHECKPOINTS)
            then = (
                f"goes on from {checkpoints[-1]}" if checkpoints else "begins again, since there is no checkpoint yet"
            )
            with one_line_errors():
                raise ValueError(f"{self.describe_lack()}. Then the run {then}") from error


def memory_there(device: torch.device) -> float:
    """Return the bytes that this process has or can still get on a device; infinity if the device does not say."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    if device.type == "mps":
        return torch.mps.recommended_max_memory()
    if device.type != "cpu":
        return math.inf
    there = psutil.virtual_memory().available + psutil.swap_memory().free + psutil.Process().memory_info().rss
    with suppress(OSError, ValueError):  # no such file, or "max", where nothing is limited
        there = min(there, int(CGROUP_LIMIT.read_text(encoding="utf-8")))
    return there / int(os.environ.get("LOCAL_WORLD_SIZE", 1))  # the processes of this machine share it


def in_words(count: float) -> str:
    if count < 1e9:
        return f"{count / 1e6:.0f} MB"
    return f"{count / 1e9:.1f} GB" if count < 1e10 else f"{count / 1e9:.0f} GB"
