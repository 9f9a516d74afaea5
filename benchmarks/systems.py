"""Ways to train in a number of minutes: this package, this package as it was, and two other packages."""

import math
import subprocess
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from judge import to_x
from picture_sets import Part
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from ddpm_hf import DDPMPipelineCustom

Draw = Callable[[int, int, torch.Generator], torch.Tensor]  # count, denoising steps, generator -> (N, C, H, W)
# The digits' preset before its settings were chosen with this ruler.
BEFORE = {
    "--preset": "mnist-mini", "--no_class_conditional": None, "--optimizer": "adamw", "--learning_rate": "8e-3",
    "--train_batch_size": "64", "--lognormal_mean": "0.5", "--lognormal_std": "1.0", "--ema_max_decay": "0.995",
}  # fmt: skip


def train_ours(part: Part, folder: Path, minutes: float, seed: int, flags: dict[str, str | None]) -> Draw:
    """Train with `ddpm-hf train`, and draw with the pipeline that it saves."""
    pictures, run = folder / "pictures", folder / "run"
    if not pictures.exists():
        part.save(pictures)
    options = {"--train_data_dir": pictures, "--output_dir": run, "--max_train_minutes": minutes, "--seed": seed}
    options |= {"--save_images_steps": 10**6, **flags}
    command = [word for flag, value in options.items() for word in ((flag,) if value is None else (flag, str(value)))]
    subprocess.run([sys.executable, "-m", "ddpm_hf.cli", "train", *command], check=True)
    return drawing_with(DDPMPipelineCustom.from_pretrained(run))


def drawing_with(pipeline: DDPMPipelineCustom) -> Draw:
    """Return a function that draws with a pipeline."""
    pipeline.set_progress_bar_config(disable=True)
    return lambda count, steps, generator: pipeline(count, generator, steps, output_type="pt").images * 2 - 1


def train_as_diffusers(part: Part, folder: Path, minutes: float, seed: int) -> Draw:
    """Train as `train_unconditional.py` of diffusers does, with a network that is small enough for the minutes.

    Its own network has 114 M parameters.
    """
    torch.manual_seed(seed)
    x, scheduler = to_x(part.pixels), DDPMScheduler(num_train_timesteps=1000)
    channels, size = x.shape[1], x.shape[-1]
    blocks = {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}
    keys = {"block_out_channels": (16, 32, 48), "layers_per_block": 1, "norm_num_groups": 8, **blocks}
    unet = UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **keys)
    average = EMAModel(unet.parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-4, betas=(0.95, 0.999), weight_decay=1e-6)

    def loss(x_0: torch.Tensor) -> torch.Tensor:
        eps, t = torch.randn_like(x_0), torch.randint(1000, (len(x_0),))
        return (unet(scheduler.add_noise(x_0, eps, t), t).sample - eps).square().mean()

    schedule = partial(get_cosine_schedule_with_warmup, optimizer, 500)
    _train(x, loss, unet, optimizer, schedule, lambda: average.step(unet.parameters()), minutes, batch=16)
    average.copy_to(unet.parameters())
    pipeline = DDPMPipeline(unet.eval(), scheduler)
    pipeline.set_progress_bar_config(disable=True)

    def draw(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        options = {"num_inference_steps": steps, "output_type": "np"}
        images = pipeline(count, generator, **options).images
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1

    return draw


def train_as_lucidrains(part: Part, folder: Path, minutes: float, seed: int) -> Draw:
    """Train with denoising-diffusion-pytorch, and the optimizer, batch and average of its `Trainer`."""
    for name in ("torchvision", "torchvision.transforms", "torchvision.utils"):
        sys.modules.setdefault(name, types.ModuleType(name))  # only its Trainer uses them
    sys.modules["torchvision"].transforms = sys.modules["torchvision.transforms"]
    sys.modules["torchvision"].utils = sys.modules["torchvision.utils"]
    from denoising_diffusion_pytorch import GaussianDiffusion, Unet

    torch.manual_seed(seed)
    x = to_x(part.pixels)
    channels, size = x.shape[1], x.shape[-1]
    attention = {"full_attn": (False, False, True), "attn_dim_head": 16, "attn_heads": 2}
    unet = Unet(dim=16, dim_mults=(1, 2, 3), channels=channels, flash_attn=False, **attention)
    diffusion = GaussianDiffusion(unet, image_size=size, timesteps=1000)
    average = torch.optim.swa_utils.AveragedModel(
        diffusion, multi_avg_fn=torch.optim.swa_utils.get_ema_multi_avg_fn(0.995)
    )
    optimizer = torch.optim.Adam(diffusion.parameters(), lr=1e-4, betas=(0.9, 0.99))

    def loss(x_0: torch.Tensor) -> torch.Tensor:
        return diffusion((x_0 + 1) / 2)

    count = iter(range(1, 10**9))

    def after_step():
        if next(count) % 10 == 0:
            average.update_parameters(diffusion)

    def schedule(num_training_steps: int) -> LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    _train(x, loss, diffusion, optimizer, schedule, after_step, minutes, batch=16)

    def draw(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        torch.manual_seed(generator.initial_seed())
        averaged = average.module.eval()
        averaged.sampling_timesteps, averaged.is_ddim_sampling = steps, steps < 1000
        averaged.ddim_sampling_eta = 0.0
        with torch.inference_mode():
            return averaged.sample(batch_size=count).cpu() * 2 - 1

    return draw


def _train(
    x: torch.Tensor,
    loss: Callable[[torch.Tensor], torch.Tensor],
    network: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], LRScheduler],
    after_step: Callable[[], None],
    minutes: float,
    batch: int,
):
    """Take the steps that fit into the minutes; ten steps are timed for that."""

    def step():
        loss(x[torch.randint(len(x), (batch,))]).backward()
        torch.nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        after_step()

    for _ in range(3):
        step()
    began = time.perf_counter()
    for _ in range(10):
        step()
    steps = math.ceil(minutes * 60 / (time.perf_counter() - began) * 10)
    course = schedule(num_training_steps=steps)
    for _ in tqdm(range(steps), desc="Training", unit="step"):
        step()
        course.step()


SYSTEMS: dict[str, Callable[[Part, Path, float, int], Draw]] = {
    "ours": partial(train_ours, flags={"--preset": "mnist-mini", "--class_conditional": None}),
    "ours, without labels": partial(train_ours, flags={"--preset": "mnist-mini", "--no_class_conditional": None}),
    "ours before": partial(train_ours, flags=BEFORE),
    "diffusers": train_as_diffusers,
    "denoising-diffusion-pytorch": train_as_lucidrains,
}
