"""What a training step is made of: the objective (eq. 14), the optimizer, and the moving average of the weights."""

from contextlib import contextmanager, nullcontext

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from diffusers.optimization import get_scheduler

from ddpm_hf.batch_plan import BatchPlan, ShuffledImages
from ddpm_hf.config import TrainingConfig
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.sharding import copy_whole, is_sharded, whole
from ddpm_hf.streaming import StreamedImages
from ddpm_hf.unet_ddpm import DDPMUNetModel


def make_model(config: TrainingConfig, channels: int) -> tuple[DDPMUNetModel, DDPMLinearScheduler]:
    """The network, with initial weights from the seed, and the scheduler that the options describe."""
    torch.manual_seed(config.seed)
    unet = DDPMUNetModel(**config.model, sample_size=config.resolution, in_channels=channels, out_channels=channels)
    scheduler = DDPMLinearScheduler(
        num_train_timesteps=config.ddpm_num_steps,
        beta_schedule=config.ddpm_beta_schedule,
        prediction_type=config.prediction_type,
        variance_type=config.variance_type,
        clip_sample=config.clip_sample,
    )
    return unet, scheduler


def denoising_loss(
    unet: torch.nn.Module,
    scheduler: DDPMLinearScheduler,
    x_0: torch.Tensor,
    t: torch.Tensor,
    eps: torch.Tensor,
    class_labels: torch.Tensor | None = None,
) -> torch.Tensor:
    """L_simple (eq. 14) of each image: `|eps - eps_theta(sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps, t)|^2`.

    The mean over channels and pixels is taken. If the network predicts x_0 or v, that takes the place of eps.

    Args:
        unet (`torch.nn.Module`): eps_theta.
        scheduler ([`DDPMLinearScheduler`]): q(x_t | x_0), and what the network predicts.
        x_0 (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1].
        t (`torch.Tensor`, `(batch,)`): Timesteps in [0, T).
        eps (`torch.Tensor`, like x_0): Noise from N(0, I).
        class_labels (`torch.Tensor`, `(batch,)`, *optional*): Labels, for a class-conditional model.

    Returns:
        `torch.Tensor`: `(batch,)` float32.
    """
    x_t = scheduler.add_noise(x_0, eps, t)
    prediction = unet(x_t, t, class_labels, return_dict=False)[0]
    match scheduler.config.prediction_type:
        case "epsilon":
            target = eps
        case "sample":
            target = x_0
        case "v_prediction":
            target = scheduler.get_velocity(x_0, eps, t)
    return F.mse_loss(prediction.float(), target, reduction="none").mean((1, 2, 3))


def loss_weights(scheduler: DDPMLinearScheduler, config: TrainingConfig) -> torch.Tensor:
    """What the loss at each timestep is multiplied with.

    `"simple"` is the paper's choice, 1. `"min_snr"` (Hang et al. 2023, arXiv 2303.09556) weighs the error of x_0 with
    `min(SNR_t, gamma)`, where `SNR_t = alpha_bar_t / (1 - alpha_bar_t)`, whatever the network predicts.

    Args:
        scheduler ([`DDPMLinearScheduler`]): alpha_bar, and what the network predicts.
        config ([`TrainingConfig`]): `loss_weighting` and `snr_gamma` are read.

    Returns:
        `torch.Tensor`: `(T,)` float32.
    """
    alpha_bar = scheduler.alphas_cumprod
    if config.loss_weighting == "simple":
        return torch.ones_like(alpha_bar)
    snr = alpha_bar / (1 - alpha_bar)
    # |x_0 - x_0'|^2 is |eps - eps'|^2 / SNR, and |v - v'|^2 / (SNR + 1).
    error_of_x_0 = {"epsilon": snr, "sample": 1, "v_prediction": snr + 1}[scheduler.config.prediction_type]
    return snr.clamp(max=config.snr_gamma) / error_of_x_0


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


def make_plan(
    images: ShuffledImages | StreamedImages,
    unet: DDPMUNetModel,
    scheduler: DDPMLinearScheduler,
    config: TrainingConfig,
    device: torch.device,
) -> BatchPlan:
    """The batches that the options describe, with labels if the network takes them."""
    often, names = timestep_weights(scheduler, config), unet.config.class_names
    options = (config.train_batch_size, often, config.seed, config.random_flip, device)
    return BatchPlan(images, *options, num_classes=names and len(names), cond_dropout=config.cond_dropout)


class LossMeter:
    """Mean loss since the last note, over all timesteps and by quartile of them: t in [0, T/4), ..., [3T/4, T).

    Losses that are not finite are left out. All stays on the device until it is read.
    """

    def __init__(self, num_timesteps: int, device: torch.device):
        self.num_timesteps = num_timesteps
        self.table = torch.zeros(2, 4, device=device)  # sums and counts

    def add(self, losses: torch.Tensor, t: torch.Tensor):
        """Add the losses `(batch,)` at timesteps t `(batch,)`."""
        quartile = t * 4 // self.num_timesteps
        finite = losses.isfinite()
        self.table[0].index_add_(0, quartile, losses.detach().where(finite, 0))
        self.table[1].index_add_(0, quartile, finite.float())

    def read(self, accelerator: Accelerator) -> dict[str, float | None]:
        """`loss`, and `loss_q1` to `loss_q4`, over all processes; None where there was none. Starts afresh."""
        sums, counts = accelerator.reduce(self.table, "sum").tolist()
        self.table.zero_()
        means = [total / count if count else None for total, count in zip(sums, counts)]
        return {
            "loss": sum(sums) / sum(counts) if any(counts) else None,
            **{f"loss_q{i}": mean for i, mean in enumerate(means, 1)},
        }


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

    def state_dict(self) -> dict[str, torch.Tensor]:
        return {str(i): average for i, average in enumerate(self.average)}

    def load_state_dict(self, state: dict[str, torch.Tensor]):
        for i, average in enumerate(self.average):
            copy_whole(state[str(i)], average)

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
