"""Ways to train in a number of minutes: this package, this package as it was, and two other packages."""

import json
import subprocess
import sys
import time
import types
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from diffusers.optimization import get_cosine_schedule_with_warmup
from diffusers.training_utils import EMAModel
from judge import to_x
from picture_sets import Part
from torch.optim.lr_scheduler import LRScheduler
from tqdm.auto import tqdm

from ddpm_hf import DDPMPipelineCustom
from ddpm_hf.other_schedulers import make_scheduler

Draw = Callable[[int, int, torch.Generator], torch.Tensor]  # count, denoising steps, generator -> (N, C, H, W)
# The digits' preset before its settings were chosen with this ruler.
BEFORE = {
    "--preset": "mnist-mini", "--no_class_conditional": None, "--optimizer": "adamw", "--learning_rate": "8e-3",
    "--train_batch_size": "64", "--lognormal_mean": "0.5", "--lognormal_std": "1.0", "--ema_max_decay": "0.995",
}  # fmt: skip


class System:
    """A way to train on some pictures.

    Args:
        part ([`Part`]): The pictures.
        folder (`Path`): Place for files.
        seed (`int`): Of everything random.

    Attributes:
        scheduler (`str`, *optional*): For the schedulers of diffusers: a key of `SCHEDULERS`, to draw with.
    """

    scheduler: str | None = None

    def __init__(self, part: Part, folder: Path, seed: int):
        self.part, self.folder, self.seed = part, folder, seed

    def steps_per_minute(self) -> float:
        """Measure the speed on this machine, which has to be idle."""
        raise NotImplementedError

    def train(self, steps: int) -> Draw:
        """Train, and return a function that draws."""
        raise NotImplementedError


class Ours(System):
    """`ddpm-hf train` with some flags. A run that is there already is not trained again."""

    def __init__(self, part: Part, folder: Path, seed: int, flags: dict[str, str | None]):
        super().__init__(part, folder, seed)
        self.flags = flags

    def steps_per_minute(self) -> float:
        printed = self._train("speed", {"--max_train_minutes": "10", "--dry_run": None})
        return json.loads(printed[printed.index("{") :])["max_train_steps"] / 10

    def train(self, steps: int) -> Draw:
        print(self._train("run", {"--max_train_steps": str(steps)}))
        return drawing_with(DDPMPipelineCustom.from_pretrained(self.folder / "run"), self.scheduler)

    def _train(self, name: str, flags: dict[str, str | None]) -> str:
        pictures, run = self.folder / "pictures", self.folder / name
        if not pictures.exists():
            self.part.save(pictures)
        options = {"--train_data_dir": pictures, "--output_dir": run, "--seed": self.seed}
        options |= {"--resolution": self.part.pixels.shape[1]}
        options |= {"--save_images_steps": 10**6, **self.flags, **flags}
        words = [word for flag, value in options.items() for word in ((flag,) if value is None else (flag, str(value)))]
        command = [sys.executable, "-m", "ddpm_hf.cli", "train", *words]
        return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def drawing_with(pipeline: DDPMPipelineCustom, scheduler: str | None = None) -> Draw:
    """Return a function that draws with a pipeline, and with a scheduler that is a key of `SCHEDULERS`."""
    pipeline.set_progress_bar_config(disable=True)
    config = pipeline.scheduler.config

    def draw(count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        if scheduler:
            pipeline.scheduler = make_scheduler(scheduler, config, steps)
        return pipeline(count, generator, steps, output_type="pt").images * 2 - 1

    return draw


class Peer(System):
    """A loop around the parts of another package; the subclass makes `network` and `optimizer`."""

    batch = 16
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer

    def __init__(self, part: Part, folder: Path, seed: int):
        super().__init__(part, folder, seed)
        torch.manual_seed(seed)
        self.x = to_x(part.pixels)
        self.make(channels=self.x.shape[1], size=self.x.shape[-1])

    def make(self, channels: int, size: int):
        raise NotImplementedError

    def loss(self, x_0: torch.Tensor) -> torch.Tensor:
        raise NotImplementedError

    def average(self, step: int):
        """Move the average of the parameters on, after a step."""
        raise NotImplementedError

    def schedule(self, steps: int) -> LRScheduler:
        raise NotImplementedError

    def draw(self, count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        raise NotImplementedError

    def steps_per_minute(self) -> float:
        for step in range(10):
            self._step(step)
        began = time.perf_counter()
        for step in range(100):
            self._step(step)
        return 60 * 100 / (time.perf_counter() - began)

    def train(self, steps: int) -> Draw:
        course = self.schedule(steps)
        for step in tqdm(range(steps), desc="Training", unit="step"):
            self._step(step)
            course.step()
        return self.draw

    def _step(self, step: int):
        self.loss(self.x[torch.randint(len(self.x), (self.batch,))]).backward()
        torch.nn.utils.clip_grad_norm_(self.network.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.average(step)


class Diffusers(Peer):
    """`train_unconditional.py` of diffusers, with a network that is small enough for minutes; its own has 114 M."""

    learning_rate = 1e-4
    sampler = DDPMScheduler

    def make(self, channels: int, size: int):
        self.process = DDPMScheduler(num_train_timesteps=1000)
        blocks = {"down_block_types": ["DownBlock2D"] * 3, "up_block_types": ["UpBlock2D"] * 3}
        keys = {"block_out_channels": (16, 32, 48), "layers_per_block": 1, "norm_num_groups": 8, **blocks}
        self.network = UNet2DModel(sample_size=size, in_channels=channels, out_channels=channels, **keys)
        parameters = self.network.parameters
        self.averaged = EMAModel(parameters(), decay=0.9999, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
        adam = {"betas": (0.95, 0.999), "weight_decay": 1e-6}
        self.optimizer = torch.optim.AdamW(parameters(), lr=self.learning_rate, **adam)

    def loss(self, x_0: torch.Tensor) -> torch.Tensor:
        eps, t = torch.randn_like(x_0), torch.randint(1000, (len(x_0),))
        return (self.network(self.process.add_noise(x_0, eps, t), t).sample - eps).square().mean()

    def average(self, step: int):
        self.averaged.step(self.network.parameters())

    def schedule(self, steps: int) -> LRScheduler:
        return get_cosine_schedule_with_warmup(self.optimizer, 500, steps)

    def draw(self, count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        self.averaged.copy_to(self.network.parameters())
        own = self.sampler.from_config(self.process.config)
        scheduler = make_scheduler(self.scheduler, own.config, steps) if self.scheduler else own
        pipeline = DDPMPipeline(self.network.eval(), scheduler)
        pipeline.set_progress_bar_config(disable=True)
        images = pipeline(count, generator, num_inference_steps=steps, output_type="np").images
        return torch.from_numpy(images).permute(0, 3, 1, 2) * 2 - 1


class TunedDiffusers(Diffusers):
    """The same with a learning rate that suits some thousand steps, and with DDIM for few denoising steps."""

    learning_rate = 1e-3
    sampler = DDIMScheduler


class Lucidrains(Peer):
    """denoising-diffusion-pytorch with the optimizer, batch and average of its `Trainer`."""

    learning_rate = 1e-4

    def make(self, channels: int, size: int):
        # Only its Trainer uses torchvision. A stub takes its place, and goes again, as other libraries look for it.
        names = ("torchvision", "torchvision.transforms", "torchvision.utils")
        stubs = {name: types.ModuleType(name) for name in names}
        stubs["torchvision"].transforms, stubs["torchvision"].utils = (stubs[name] for name in names[1:])
        sys.modules.update(stubs)
        from denoising_diffusion_pytorch import GaussianDiffusion, Unet
        from ema_pytorch import EMA

        for name in names:
            del sys.modules[name]
        attention = {"full_attn": (False, False, True), "attn_dim_head": 16, "attn_heads": 2}
        unet = Unet(dim=16, dim_mults=(1, 2, 3), channels=channels, flash_attn=False, **attention)
        self.network = GaussianDiffusion(unet, image_size=size, timesteps=1000)
        self.averaged = EMA(self.network, beta=0.995, update_every=10)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=self.learning_rate, betas=(0.9, 0.99))

    def loss(self, x_0: torch.Tensor) -> torch.Tensor:
        return self.network((x_0 + 1) / 2)

    def average(self, step: int):
        self.averaged.update()

    def schedule(self, steps: int) -> LRScheduler:
        return torch.optim.lr_scheduler.LambdaLR(self.optimizer, lambda step: 1.0)

    def draw(self, count: int, steps: int, generator: torch.Generator) -> torch.Tensor:
        torch.manual_seed(generator.initial_seed())
        averaged = self.averaged.ema_model.eval()
        averaged.sampling_timesteps, averaged.is_ddim_sampling = steps, steps < 1000
        averaged.ddim_sampling_eta = 0.0
        with torch.inference_mode():
            return averaged.sample(batch_size=count).cpu() * 2 - 1


class TunedLucidrains(Lucidrains):
    """The same with a learning rate that suits some thousand steps."""

    learning_rate = 1e-3


SYSTEMS: dict[str, Callable[[Part, Path, int], System]] = {
    "ours": partial(Ours, flags={"--preset": "mnist-mini", "--class_conditional": None}),
    "ours, without labels": partial(Ours, flags={"--preset": "mnist-mini", "--no_class_conditional": None}),
    "ours before": partial(Ours, flags=BEFORE),
    "diffusers": Diffusers,
    "diffusers, tuned": TunedDiffusers,
    "denoising-diffusion-pytorch": Lucidrains,
    "denoising-diffusion-pytorch, tuned": TunedLucidrains,
}
