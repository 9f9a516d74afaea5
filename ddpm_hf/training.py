"""What a training step is made of: the objective (eq. 14), the optimizer, and the moving average of the weights."""

import ctypes
import platform
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from accelerate.utils import parse_flag_from_env
from diffusers.optimization import get_scheduler

from ddpm_hf.config import TrainingConfig
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler


def simple_loss(
    unet: torch.nn.Module,
    scheduler: DDPMLinearScheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    eps: torch.Tensor,
) -> torch.Tensor:
    """L_simple (eq. 14): the mean of `|eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)|^2`.

    If the network predicts x_0 or v, that takes the place of eps.

    Args:
        unet (`torch.nn.Module`): eps_theta.
        scheduler ([`DDPMLinearScheduler`]): q(x_t | x_0), and what the network predicts.
        x_0 (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1].
        t (`torch.Tensor`, `(batch,)`): Timesteps in [0, T).
        eps (`torch.Tensor`, like x_0): Noise from N(0, I).

    Returns:
        `torch.Tensor`: A scalar.
    """
    x_t = scheduler.add_noise(x_0, eps, t)
    prediction = unet(x_t, t, return_dict=False)[0]
    match scheduler.config.prediction_type:
        case "epsilon":
            target = eps
        case "sample":
            target = x_0
        case "v_prediction":
            target = scheduler.get_velocity(x_0, eps, t)
    return F.mse_loss(prediction.float(), target)


def timestep_weights(scheduler: DDPMLinearScheduler, config: TrainingConfig) -> torch.Tensor:
    """How often each timestep is trained, in proportion.

    `"uniform"` is the paper's choice (Algorithm 1). `"lognormal"` makes the logarithm of the noise level normal, as in
    Karras et al. 2022 (arXiv 2206.00364, table 1), with `sigma_t = sqrt(1 / alpha_bar_t - 1)`: then a short training is
    spent where it pays, and not on images that are almost clean or almost pure noise.

    Args:
        scheduler ([`DDPMLinearScheduler`]): alpha_bar.
        config ([`TrainingConfig`]): `timestep_sampling`, `lognormal_mean` and `lognormal_std` are read.

    Returns:
        `torch.Tensor`: `(T,)` float64, not normalised.
    """
    alpha_bar = scheduler.alphas_cumprod.double()
    if config.timestep_sampling == "uniform":
        return torch.ones_like(alpha_bar)
    log_sigma = (1 / alpha_bar - 1).log() / 2
    z = (log_sigma - config.lognormal_mean) / config.lognormal_std
    return torch.exp(-(z**2) / 2) * torch.gradient(log_sigma)[0]  # the density of log_sigma, turned into one of t


def make_optimizer(unet: torch.nn.Module, config: TrainingConfig) -> torch.optim.Optimizer:
    """Adam or AdamW over the parameters that learn, in its fused form, which is the fastest on a CPU and on a GPU."""
    kind = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[config.optimizer]
    return kind(
        [p for p in unet.parameters() if p.requires_grad],
        lr=config.learning_rate,
        betas=(config.adam_beta1, config.adam_beta2),
        weight_decay=config.adam_weight_decay,
        eps=config.adam_epsilon,
        fused=True,
    )


def make_lr_scheduler(optimizer: torch.optim.Optimizer, config: TrainingConfig):
    """The course of the learning rate over the optimizer steps, whatever the processes and the accumulation."""
    warmup, total = config.lr_warmup_steps, config.max_train_steps
    return get_scheduler(config.lr_scheduler, optimizer, num_warmup_steps=warmup, num_training_steps=total)


class MovingAverage:
    """Exponential moving average of a model's parameters, with a warm-up of the decay.

    At update s = 1, 2, ... the decay is `min(max_decay, 1 - (1 + s / inv_gamma) ** -power)`.

    Args:
        model (`torch.nn.Module`): The model whose parameters are averaged; the average starts as a copy, in float32.
        inv_gamma, power, max_decay (`float`): See the decay.
    """

    def __init__(self, model: torch.nn.Module, inv_gamma: float, power: float, max_decay: float):
        self.parameters = list(model.parameters())
        self.average = [p.detach().to(torch.float32, copy=True) for p in self.parameters]
        self.inv_gamma, self.power, self.max_decay = inv_gamma, power, max_decay

    @torch.no_grad()
    def update(self, step: int):
        """Move the average towards the parameters after optimizer step `step`, counted from 1."""
        decay = min(self.max_decay, 1 - (1 + step / self.inv_gamma) ** -self.power)
        torch._foreach_lerp_(self.average, self.parameters, 1 - decay)

    @contextmanager
    def applied(self):
        """Let the model hold the average for a while. The parameters themselves are set aside, not copied."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    def _swap(self):
        for parameter, average in zip(self.parameters, self.average):
            parameter.data, average.data = average.data, parameter.data


def choose_mixed_precision(choice: str) -> str:
    """Resolve `"auto"`: bf16 on GPUs that support it and on CPUs with matrix units for it (AMX), else no."""
    if choice != "auto":
        return choice
    on_gpu = torch.cuda.is_available() and not parse_flag_from_env("ACCELERATE_USE_CPU")
    fast = torch.cuda.is_bf16_supported() if on_gpu else torch.cpu._is_amx_tile_supported()
    return "bf16" if fast else "no"


def keep_freed_memory():
    """Let glibc keep freed memory for the next step, instead of faulting it in again: 1.2 times faster on a CPU."""
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4
        libc.mallopt(M_MMAP_MAX, 0)
        libc.mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
