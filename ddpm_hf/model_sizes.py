"""Settings that fit: four networks, and the options that go with each, for pictures that have no preset.

The networks `tiny` and `small` and their learning rates come from our experiments on two CPU cores. `base` and `large`
follow published settings: the paper's network for CIFAR10 (appendix B) has the width, the blocks, the attention and the
learning rate of `large`. docs/settings.md shows the experiments.
"""

import math
from dataclasses import dataclass
from typing import Any

import torch

from ddpm_hf.presets import unet
from ddpm_hf.unet_ddpm import DDPMUNetModel


@dataclass(frozen=True)
class ModelSize:
    """A network and how it is trained.

    Args:
        widths (`tuple[int, ...]`): Channels of each level, from the finest. Further levels repeat the last.
        layers (`int`): Residual blocks in a level.
        attention (`int`): Levels of at most so many pixels on the short side attend.
        groups (`int`): Groups of a group norm.
        narrow_up_blocks (`bool`): See [`DDPMUNetModel`]. It is faster; a `UNet2DModel` has no such blocks.
        optimizer (`str`): Of the training; see [`TrainingConfig`].
        learning_rate (`float`): Highest learning rate, at the batch below.
        batch (`int`): Images in a step, if they have at most 64 x 64 pixels.
        fewest_steps (`int`): With fewer steps, the next smaller size draws better.
        fewest_images (`int`): With fewer images, the next smaller size is taken. A rule of thumb; it was not measured.
    """

    widths: tuple[int, ...]
    layers: int
    attention: int
    groups: int
    narrow_up_blocks: bool
    optimizer: str
    learning_rate: float
    batch: int
    fewest_steps: int
    fewest_images: int


SIZES = {
    #                  widths               layers  attention  groups  narrow  optimizer  lr    batch  steps    images
    "tiny": ModelSize((16, 32, 48, 64),        1,       0,        8,    True,  "muon",   8e-3,  32,        0,      0),
    "small": ModelSize((32, 64, 96, 128),      1,       0,        8,    True,  "muon",   6e-3,  32,    1_500,      0),
    "base": ModelSize((64, 128, 192, 256),     2,      16,       32,    False, "adamw",  1e-3,  64,   10_000,  1_000),
    "large": ModelSize((128, 256, 256, 512),   2,      16,       32,    False, "adamw",  2e-4, 128,  100_000, 10_000),
}  # fmt: skip

COARSEST = 8  # pixels on the short side of the coarsest level, at most
MINUTES = {"cpu": 20, "gpu": 180}  # of a run whose command does not say how long
MOST_EPOCHS = 3000  # of a run whose command does not say how long


def network_of(size: ModelSize, height: int, width: int) -> dict[str, Any]:
    """Return the configuration of the U-Net of a size, for images of these pixels.

    It halves the images until the short side has at most 8 pixels; once less if they cannot be halved so often.
    """
    halvings = max(0, math.ceil(math.log2(min(height, width) / COARSEST)))
    if halvings and math.gcd(height, width) % 2**halvings:
        halvings -= 1
    widths = [size.widths[min(level, len(size.widths) - 1)] for level in range(halvings + 1)]
    attention = [level for level in range(halvings + 1) if min(height, width) / 2**level <= size.attention]
    keys = {"norm_num_groups": size.groups, "narrow_up_blocks": size.narrow_up_blocks}
    return unet(*widths, attention=attention, layers=size.layers, **keys)


def batch_of(size: ModelSize, height: int, width: int, images: int | None) -> int:
    """Return the images of a step: fewer where they are large, and not more than are in the data set."""
    batch = size.batch / max(1, 2 ** math.ceil(math.log2(height * width / 64**2) / 2))
    return max(1, min(int(max(batch, 8)), 2 ** int(math.log2(images)) if images else size.batch))


def settings_of(size: ModelSize, steps: int, batch: int) -> dict[str, Any]:
    """Return the options of the training that follow from a size, a number of steps and the images of a step."""
    return {
        "learning_rate": float(f"{size.learning_rate * math.sqrt(batch / size.batch):.2g}"),
        "lr_warmup_steps": min(steps // 20, 5000),
        "adam_beta2": 0.99 if steps < 10_000 else 0.999,
        "ema_max_decay": round(min(max(1 - 10 / steps, 0.9), 0.9999), 6),  # over about a tenth of the run
        "save_images_steps": math.ceil(steps / 4),
        "save_model_steps": math.ceil(steps / 4),
        "checkpointing_steps": min(math.ceil(steps / 20), 5000),
    }


def size_of(network: dict[str, Any], height: int, width: int) -> str:
    """Return the name of the size that is nearest to a network by its parameters, for images of these pixels."""
    parameters = _parameters(network)
    return min(SIZES, key=lambda name: abs(math.log(_parameters(network_of(SIZES[name], height, width)) / parameters)))


def _parameters(network: dict[str, Any]) -> int:
    with torch.device("meta"):  # nothing is allocated
        return DDPMUNetModel(**network).num_parameters()
