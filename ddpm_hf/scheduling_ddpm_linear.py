"""The Gaussian diffusion of Denoising Diffusion Probabilistic Models (Ho et al. 2020, arXiv 2006.11239, sections 2-3).

The forward process q turns an image x_0 into noise x_T, a little at each of T steps. The reverse process p_theta goes
back from noise to an image, and a network learns it. The variances beta_t of the T steps determine all of q. Write
alpha_t = 1 - beta_t and alpha_bar_t = alpha_1 alpha_2 ... alpha_t; eps and z are draws from N(0, I).

A step of q scales the image down and adds noise (eq. 2). Pixels of variance 1 keep variance 1:

    q(x_t | x_{t-1}) = N(sqrt(alpha_t) x_{t-1}, beta_t I)

Two such steps are one Gaussian step: the scales multiply, and the noises add up to a variance of
alpha_t beta_{t-1} + beta_t = 1 - alpha_t alpha_{t-1}. So t steps are one draw (eq. 4):

    q(x_t | x_0) = N(sqrt(alpha_bar_t) x_0, (1 - alpha_bar_t) I)
    x_t = sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps

The step back is known where x_0 is known. By Bayes' rule, its density is the product of two Gaussians in x_{t-1}:
q(x_t | x_{t-1}) has precision alpha_t / beta_t, and q(x_{t-1} | x_0) has precision 1 / (1 - alpha_bar_{t-1}). The
precisions add up, and the mean is weighted by them (eqs. 6-7):

    q(x_{t-1} | x_t, x_0) = N(mu_tilde_t(x_t, x_0), beta_tilde_t I)
    mu_tilde_t = sqrt(alpha_bar_{t-1}) beta_t / (1 - alpha_bar_t) x_0
                 + sqrt(alpha_t) (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) x_t
    beta_tilde_t = (1 - alpha_bar_{t-1}) / (1 - alpha_bar_t) beta_t

Sampling starts without x_0. So p_theta takes the same mean at the x_0 that the network predicts from x_t:

    p_theta(x_{t-1} | x_t) = N(mu_tilde_t(x_t, x_0 predicted), sigma_t^2 I)

The network predicts eps, x_0 or v = sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0 (arXiv 2202.00512). Together with
x_t, each of them gives the others. The first line is eq. 4 solved for x_0; the second has v in place of eps:

    x_0 = (x_t - sqrt(1 - alpha_bar_t) eps) / sqrt(alpha_bar_t)     (eq. 15)
    x_0 = sqrt(alpha_bar_t) x_t - sqrt(1 - alpha_bar_t) v

The best sigma_t^2 depends on the data (section 3.2). It is beta_tilde_t if x_0 is always the same image, and beta_t if
x_0 is N(0, I). A network can also learn a value between the two (arXiv 2102.09672).

The paper counts t from 1. The code counts from 0, as diffusers does: t = 0 means that one noising step was taken, and
t = -1 means the clean data. Sampling may skip timesteps. Then t-1 means the timestep visited next, and alpha_t means
alpha_bar_t / alpha_bar_{t-1}; the equations stay the same.

This file is self-contained: a Hub repository ships it beside the weights, so it imports torch and diffusers only.
"""

import math
import numbers
import operator
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeGuard

import torch
from diffusers.configuration_utils import ConfigMixin, FrozenDict, register_to_config
from diffusers.schedulers.scheduling_utils import KarrasDiffusionSchedulers, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor

VARIANCE_TYPES = ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range")

# alpha_bar is kept inside (0, 1), so that every quotient below is finite. The lower bound matters if the last step
# leaves no signal. The upper one, the largest float32 below 1, matters if the first betas are too small for float32.
ALPHA_BAR_MIN, ALPHA_BAR_MAX = 2.0**-100, 1 - 2.0**-24


@dataclass
class DDPMLinearSchedulerOutput(BaseOutput):
    """Output of [`DDPMLinearScheduler.step`].

    Attributes:
        prev_sample (`torch.Tensor`, `(batch, channels, height, width)`): `x_{t-1}`, the next input of the network.
        pred_original_sample (`torch.Tensor`, same shape): The prediction of `x_0` that the step used.
    """

    prev_sample: torch.Tensor
    pred_original_sample: torch.Tensor | None = None


class DDPMLinearScheduler(SchedulerMixin, ConfigMixin):
    """The forward process q and the reverse process p_theta, with linear betas (Ho et al. 2020, Algorithms 1 and 2).

    The keys and their defaults are those of diffusers' `DDPMScheduler`. So each loads the other's configuration.

    Args:
        num_train_timesteps (`int`): T, the number of noising steps.
        beta_start (`float`): beta of the first step.
        beta_end (`float`): beta of the last step.
        beta_schedule (`str`): `"linear"`; diffusers' `"scaled_linear"`, `"squaredcos_cap_v2"`, `"laplace"` and
            `"sigmoid"` work too.
        trained_betas (sequence of `float`, *optional*): The betas themselves. They replace the three keys above.
        variance_type (`str`): The variance sigma_t^2 of a reverse step (section 3.2). `"fixed_small"` is beta_tilde_t
            (eq. 7), and `"fixed_large"` is beta_t. `"fixed_small_log"` and `"fixed_large_log"` are the same numbers.
            `"learned"` and `"learned_range"` (arXiv 2102.09672) read it from the second half of the network's output
            channels: see [`~DDPMLinearScheduler.variance`].
        clip_sample (`bool`): Whether predictions of x_0 are clipped to `[-clip_sample_range, clip_sample_range]`.
        prediction_type (`str`): What the network predicts: `"epsilon"`, `"sample"` (x_0) or `"v_prediction"`.
        thresholding (`bool`): Whether predictions of x_0 are thresholded dynamically instead (arXiv 2205.11487).
        dynamic_thresholding_ratio (`float`): The quantile of |x_0| that becomes the threshold.
        clip_sample_range (`float`): See `clip_sample`.
        sample_max_value (`float`): Upper bound of the dynamic threshold.
        timestep_spacing (`str`): How to spread fewer than T steps: `"linspace"`, `"leading"` or `"trailing"` (table 2
            of arXiv 2305.08891).
        steps_offset (`int`): What to add to each timestep under `"leading"`.
        rescale_betas_zero_snr (`bool`): Whether the betas are rescaled to a terminal signal-to-noise ratio of zero
            (algorithm 1 of arXiv 2305.08891).

    Attributes:
        betas, alphas, alphas_cumprod (`torch.Tensor`, `(T,)`): The tables in float32, equal to `DDPMScheduler`'s.
        timesteps (`torch.Tensor`): The timesteps to visit, in order.
        init_noise_sigma (`float`): Standard deviation of x_T: 1.
    """

    _compatibles = [e.name for e in KarrasDiffusionSchedulers]
    order = 1

    @register_to_config
    def __init__(
        self,
        num_train_timesteps: int = 1000,
        beta_start: float = 0.0001,
        beta_end: float = 0.02,
        beta_schedule: str = "linear",
        trained_betas: list[float] | None = None,
        variance_type: str = "fixed_small",
        clip_sample: bool = True,
        prediction_type: str = "epsilon",
        thresholding: bool = False,
        dynamic_thresholding_ratio: float = 0.995,
        clip_sample_range: float = 1.0,
        sample_max_value: float = 1.0,
        timestep_spacing: str = "leading",
        steps_offset: int = 0,
        rescale_betas_zero_snr: bool = False,
    ):
        # When diffusers makes another scheduler from this configuration, it drops keys that are marked as defaults.
        # A saved configuration has no marks. No key is marked here, so both make the same scheduler.
        self.register_to_config(_use_default_values=[])

        _check_config(self.config)
        self.betas = _make_betas(self.config, torch.float32)
        self.alphas = 1.0 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self._alpha_bar_tables: dict[tuple[torch.device, torch.dtype], torch.Tensor] = {}

        self.init_noise_sigma = 1.0
        self.num_inference_steps: int | None = None
        self.timesteps = torch.arange(num_train_timesteps - 1, -1, -1)
        self._previous_timesteps = torch.arange(-1, num_train_timesteps - 1)  # of each t in [0, T)

    def __len__(self) -> int:
        return self.config.num_train_timesteps

    @classmethod
    def from_pretrained(cls, *args, **kwargs):
        """Load a saved scheduler, as [`~diffusers.SchedulerMixin.from_pretrained`] does."""
        loaded = super().from_pretrained(*args, **kwargs)
        scheduler = loaded[0] if isinstance(loaded, tuple) else loaded  # a tuple if `return_unused_kwargs=True`
        # diffusers marks defaults in memory only, and its tests expect no mark in a loaded configuration.
        config = {key: value for key, value in scheduler.config.items() if key != "_use_default_values"}
        scheduler._internal_dict = FrozenDict(config)
        return loaded

    @classmethod
    def load_config(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Read scheduler_config.json, and check that it is a dictionary.

        diffusers would take a string or a list in this file for the name of a repository.

        Raises:
            ValueError: If the file holds something else.
        """
        loaded = super().load_config(pretrained_model_name_or_path, *args, **kwargs)
        config = loaded[0] if isinstance(loaded, tuple) else loaded
        if not isinstance(config, dict):
            where = f"The {cls.config_name} of {pretrained_model_name_or_path}"
            raise ValueError(f"{where} is {_shown(config)}; expected keys and values.")
        return loaded

    # ---- The forward process q -------------------------------------------------------------------------------------

    def add_noise(
        self, original_samples: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int
    ) -> torch.Tensor:
        """Draw x_t from q(x_t | x_0) (eq. 4): `sqrt(alpha_bar_t) x_0 + sqrt(1 - alpha_bar_t) eps`.

        Args:
            original_samples (`torch.Tensor`, `(batch, ...)`): x_0.
            noise (`torch.Tensor`, same shape): eps ~ N(0, I).
            timesteps (`torch.Tensor`, `(batch,)`, or `int`): t, in [-1, T).

        Returns:
            `torch.Tensor`: x_t, of the shape and type of x_0.

        Raises:
            ValueError: If a timestep is out of range, or another argument is not a floating-point tensor.
        """
        _check_tensors(original_samples=original_samples, noise=noise)
        alpha_bar = self._alpha_bar(self._index(timesteps, original_samples, first=-1), original_samples.dtype)
        x_t = alpha_bar.sqrt() * original_samples + (1 - alpha_bar).sqrt() * noise
        return x_t.to(original_samples.dtype)

    def get_velocity(self, sample: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor | int) -> torch.Tensor:
        """Return v, the target of `"v_prediction"`: `sqrt(alpha_bar_t) eps - sqrt(1 - alpha_bar_t) x_0`.

        Args:
            sample (`torch.Tensor`, `(batch, ...)`): x_0.
            noise (`torch.Tensor`, same shape): eps ~ N(0, I).
            timesteps (`torch.Tensor`, `(batch,)`, or `int`): t, in [-1, T).

        Returns:
            `torch.Tensor`: v, of the shape and type of x_0.

        Raises:
            ValueError: If a timestep is out of range, or another argument is not a floating-point tensor.
        """
        _check_tensors(sample=sample, noise=noise)
        alpha_bar = self._alpha_bar(self._index(timesteps, sample, first=-1), sample.dtype)
        v = alpha_bar.sqrt() * noise - (1 - alpha_bar).sqrt() * sample
        return v.to(sample.dtype)

    def posterior_mean_variance(
        self, x_0: torch.Tensor, x_t: torch.Tensor, timestep: torch.Tensor | int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the mean and the variance of the posterior q(x_{t-1} | x_t, x_0) (eqs. 6-7).

        Args:
            x_0 (`torch.Tensor`, `(batch, ...)`): The clean sample, or its prediction.
            x_t (`torch.Tensor`, same shape): The noisy sample.
            timestep (`torch.Tensor`, `(batch,)`, or `int`): t, in [0, T).

        Returns:
            `tuple`: mu_tilde_t, of the shape of x_t, and beta_tilde_t, `(batch or 1, 1, ..., 1)`; float64 if x_t is
            float64, else float32.

        Raises:
            ValueError: If a timestep is out of range, or another argument is not a floating-point tensor.
        """
        _check_tensors(x_0=x_0, x_t=x_t)
        alpha_bar_t, alpha_bar_prev = self._alpha_bars(self._index(timestep, x_t), x_t.dtype)
        alpha_t = alpha_bar_t / alpha_bar_prev
        beta_t = 1 - alpha_t

        coefficient_x_0 = alpha_bar_prev.sqrt() * beta_t / (1 - alpha_bar_t)
        coefficient_x_t = alpha_t.sqrt() * (1 - alpha_bar_prev) / (1 - alpha_bar_t)
        mean = coefficient_x_0 * x_0 + coefficient_x_t * x_t
        variance = (1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta_t
        return mean, variance

    # ---- The reverse process p -------------------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[int] | torch.Tensor | None = None,
    ):
        """Choose the timesteps that the reverse process visits.

        Args:
            num_inference_steps (`int`, *optional*): Number of timesteps, 1 to T; `timestep_spacing` spreads them.
            device (`str` or `torch.device`, *optional*): Device of `self.timesteps`.
            timesteps (sequence of `int`, *optional*): The timesteps themselves, strictly descending, in [0, T). They
                replace `num_inference_steps`.

        Raises:
            ValueError: If both or neither of the two are given, if values are not whole numbers in range, or if the
                betas of the configuration do not fit.
        """
        T = self.config.num_train_timesteps
        if (num_inference_steps is None) == (timesteps is None):
            raise ValueError("Pass either `num_inference_steps` or `timesteps` to `set_timesteps`, and not both.")
        if len(self.betas) != T:
            raise ValueError(f"`trained_betas` has {len(self.betas)} entries; expected num_train_timesteps={T}.")
        if not (self.betas >= 0).all() or not (self.betas <= 1).all():
            low, high = self.betas.min().item(), self.betas.max().item()
            raise ValueError(f"The betas run from {low:g} to {high:g}; expected noise variances in [0, 1].")

        if timesteps is None:
            if not _is_whole(num_inference_steps) or not 1 <= num_inference_steps <= T:
                raise ValueError(
                    f"`num_inference_steps={_shown(num_inference_steps)}`; expected a whole number, "
                    f"1 to num_train_timesteps={T}."
                )
            visited = _spread_timesteps(operator.index(num_inference_steps), self.config).long()
        else:
            visited = _whole_numbers(timesteps, "timesteps").cpu()
        if visited.ndim != 1 or len(visited) == 0:
            raise ValueError(f"`timesteps={visited.tolist()}`; expected a list of at least one whole number.")
        if (visited.diff() >= 0).any():
            raise ValueError(f"`timesteps` have to be strictly descending; got {visited.tolist()}.")
        if visited[0] >= T or visited[-1] < 0:
            first, last = visited[0].item(), visited[-1].item()
            raise ValueError(f"The timesteps run from {first} to {last}; expected a range inside [0, {T}).")

        ascending = visited.flip(0)
        smaller = torch.searchsorted(ascending, torch.arange(T))  # for each t, how many visited timesteps are smaller
        self._previous_timesteps = torch.cat((torch.tensor([-1]), ascending))[smaller].to(device)
        self.num_inference_steps = len(visited)
        self.timesteps = visited.to(device)
        self._warn_of_bad_combinations()

    def _warn_of_bad_combinations(self):
        """Warn about settings that run but give bad samples."""
        if str(self.config.variance_type).startswith("fixed_large") and len(self.timesteps) < min(100, len(self)):
            warnings.warn(
                "With `variance_type='fixed_large'`, fewer than 100 steps leave noise in the samples (table 4 of arXiv "
                "2010.02502). Take more steps, or `variance_type='fixed_small'`, or another scheduler: "
                "DDIMScheduler.from_config(scheduler.config).",
                stacklevel=3,
            )
        if self.config.rescale_betas_zero_snr and self.config.prediction_type == "epsilon":
            warnings.warn(
                "With `rescale_betas_zero_snr=True`, x_T is pure noise, so its eps says nothing about x_0 (arXiv "
                "2305.08891, section 3.2). Train with `prediction_type='v_prediction'`, or do not rescale.",
                stacklevel=3,
            )

    def previous_timestep(self, timestep: torch.Tensor | int) -> torch.Tensor:
        """Return the largest visited timestep below t, or -1, the clean data, if there is none.

        Args:
            timestep (`torch.Tensor` or `int`): t, in [0, T).

        Returns:
            `torch.Tensor`: Of the shape and on the device of `timestep`.

        Raises:
            ValueError: If a timestep is out of range.
        """
        t = self._checked_timesteps(timestep)
        self._previous_timesteps = self._previous_timesteps.to(t.device)
        return self._previous_timesteps.take(t)

    def scale_model_input(self, sample: torch.Tensor, timestep: torch.Tensor | int | None = None) -> torch.Tensor:
        """Return the network's input for x_t, which is x_t itself. Other schedulers scale it."""
        return sample

    def split_variance(
        self, model_output: torch.Tensor, sample: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Split the network's output into the prediction and the learned variance, which is None for fixed types.

        Args:
            model_output (`torch.Tensor`, `(batch, channels, ...)`): It has twice the channels of x_t if the variance is
                learned.
            sample (`torch.Tensor`, `(batch, channels, ...)`): x_t.

        Raises:
            ValueError: If the output does not fit the sample.
        """
        if sample.ndim < 2:
            raise ValueError(f"`sample` has shape {tuple(sample.shape)}; expected (batch, channels, height, width).")
        batch, channels, *size = sample.shape
        learned = self.config.variance_type in ("learned", "learned_range")
        expected = (batch, channels * (1 + learned), *size)
        if model_output.shape != expected:
            raise ValueError(
                f"`model_output` has shape {tuple(model_output.shape)}; for a sample of {tuple(sample.shape)} and "
                f"`variance_type={self.config.variance_type!r}`, expected {expected}."
            )
        if not learned:
            return model_output, None
        prediction, predicted_variance = model_output.chunk(2, dim=1)
        return prediction, predicted_variance

    def predict_x_0(
        self, model_output: torch.Tensor, timestep: torch.Tensor | int, sample: torch.Tensor
    ) -> torch.Tensor:
        """Return the x_0 that the network's output stands for (eq. 15 if it predicts eps), unclipped.

        Args:
            model_output (`torch.Tensor`, `(batch, ...)`): eps, x_0 or v, as `prediction_type` says.
            timestep (`torch.Tensor`, `(batch,)`, or `int`): t, in [0, T).
            sample (`torch.Tensor`, same shape): x_t.

        Returns:
            `torch.Tensor`: The prediction of x_0; float64 if x_t is float64, else float32.

        Raises:
            ValueError: If a timestep is out of range, another argument is not a floating-point tensor, or
                `prediction_type` is unknown.
        """
        _check_tensors(model_output=model_output, sample=sample)
        alpha_bar = self._alpha_bar(self._index(timestep, sample), sample.dtype)
        if self.config.prediction_type == "epsilon":
            return (sample - (1 - alpha_bar).sqrt() * model_output) / alpha_bar.sqrt()
        if self.config.prediction_type == "sample":
            return model_output.to(alpha_bar.dtype)
        if self.config.prediction_type == "v_prediction":
            return alpha_bar.sqrt() * sample - (1 - alpha_bar).sqrt() * model_output
        raise ValueError(
            f"`prediction_type={self.config.prediction_type!r}`; expected 'epsilon', 'sample' or 'v_prediction'."
        )

    def clip_x_0(self, x_0: torch.Tensor) -> torch.Tensor:
        """Threshold, clip or return a prediction of x_0, as `thresholding` and `clip_sample` say."""
        if self.config.thresholding:
            return self._threshold_sample(x_0)
        if self.config.clip_sample:
            return x_0.clamp(-self.config.clip_sample_range, self.config.clip_sample_range)
        return x_0

    def variance(
        self,
        timestep: torch.Tensor | int,
        predicted_variance: torch.Tensor | None = None,
        variance_type: str | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> torch.Tensor:
        """Return sigma_t^2, the variance of p_theta(x_{t-1} | x_t) (section 3.2).

        `"fixed_small"` is beta_tilde_t, raised to 1e-20 where it is smaller, since its logarithm is needed.
        `"fixed_large"` is beta_t. The `_log` types are the same. `"learned"` is the network's prediction, even where it
        is negative; `step` raises it to 1e-20. `"learned_range"` interpolates between the fixed ones: for a prediction
        v in [-1, 1], log sigma_t^2 is linear in v, from log beta_tilde_t at v = -1 to log beta_t at v = 1.

        Args:
            timestep (`torch.Tensor` of any shape, or `int`): t, in [0, T).
            predicted_variance (`torch.Tensor`, *optional*): The second half of the network's output channels, for the
                learned types only; its shape broadcasts with t.
            variance_type (`str`, *optional*): The type, if not the configured one.
            dtype (`torch.dtype`): float64 to compute in float64; anything else stands for float32.

        Returns:
            `torch.Tensor`: sigma_t^2, of the shape of t, broadcast with `predicted_variance`.

        Raises:
            ValueError: If a timestep is out of range, a learned variance is not given, or the type is unknown.
        """
        alpha_bar_t, alpha_bar_prev = self._alpha_bars(self._checked_timesteps(timestep), dtype)
        beta_t = 1 - alpha_bar_t / alpha_bar_prev
        variance_type = variance_type or self.config.variance_type
        match variance_type:
            case "fixed_small" | "fixed_small_log":
                return ((1 - alpha_bar_prev) / (1 - alpha_bar_t) * beta_t).clamp(min=1e-20)
            case "fixed_large" | "fixed_large_log":
                return beta_t
            case "learned" if predicted_variance is not None:
                return predicted_variance
            case "learned_range" if predicted_variance is not None:
                return self._learned_log_variance(timestep, predicted_variance, dtype).exp()
            case "learned" | "learned_range":
                raise ValueError(
                    f"`variance_type={variance_type!r}` needs `predicted_variance`; expected the second half of the "
                    "network's output channels."
                )
        raise ValueError(f"`variance_type={variance_type!r}`; expected one of {VARIANCE_TYPES}.")

    def step(
        self,
        model_output: torch.Tensor,
        timestep: torch.Tensor | int,
        sample: torch.Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> DDPMLinearSchedulerOutput | tuple[torch.Tensor, torch.Tensor]:
        """Draw x_{t-1} from p_theta(x_{t-1} | x_t): one pass through the loop of Algorithm 2.

        Coefficients are computed in diffusers' order of operations, in float64 for a float64 sample and else in
        float32. No value travels from the device to the host.

        Args:
            model_output (`torch.Tensor`, `(batch, channels, height, width)`): The network's output at (x_t, t). It has
                twice the channels of x_t if the variance is learned.
            timestep (`torch.Tensor` or `int`): t, in [0, T).
            sample (`torch.Tensor`, `(batch, channels, height, width)`): x_t.
            generator (`torch.Generator` or a list or tuple of them, *optional*): Source of z. A list holds one
                generator for each sample.
            return_dict (`bool`): Whether to return a [`DDPMLinearSchedulerOutput`] instead of a tuple.

        Returns:
            [`DDPMLinearSchedulerOutput`] or `tuple`: x_{t-1} and the prediction of x_0, of the type of x_t.

        Raises:
            ValueError: If the output does not fit the sample, t is out of range, the generator has another type, or a
                name in the configuration is unknown.
        """
        _check_tensors(model_output=model_output, sample=sample)
        generator = _check_generator(generator, len(sample))
        t = self._index(timestep, sample)
        model_output, predicted_variance = self.split_variance(model_output, sample)

        # 1. Predict x_0 (eq. 15), and clip it.
        x_0 = self.clip_x_0(self.predict_x_0(model_output, t, sample))

        # 2. The mean of p_theta is the posterior's at that x_0 (eqs. 6-7).
        x_prev, _ = self.posterior_mean_variance(x_0, sample, t)

        # 3. x_{t-1} = mean + sigma_t z, without noise at t = 0. (Only on the CPU may t be read without a host sync.)
        if t.device.type != "cpu" or t.any():
            sigma_t = self._standard_deviation(t, predicted_variance, x_prev.dtype)
            z = randn_tensor(sample.shape, generator=generator, device=sample.device, dtype=sample.dtype)
            x_prev = x_prev + (t > 0) * sigma_t * z

        x_prev, x_0 = x_prev.to(sample.dtype), x_0.to(sample.dtype)
        if not return_dict:
            return (x_prev, x_0)
        return DDPMLinearSchedulerOutput(prev_sample=x_prev, pred_original_sample=x_0)

    # ---- Parts of a step -------------------------------------------------------------------------------------------

    def _standard_deviation(self, t, predicted_variance, dtype) -> torch.Tensor:
        """Return sigma_t. Where diffusers takes it from log sigma_t^2, this does too, so that the last bits agree."""
        match self.config.variance_type:
            case "learned_range":
                return torch.exp(0.5 * self._learned_log_variance(t, predicted_variance, dtype))
            case "fixed_small_log" | "fixed_large_log":
                return torch.exp(0.5 * self.variance(t, dtype=dtype).log())
        # A network may predict a negative variance.
        return self.variance(t, predicted_variance, dtype=dtype).clamp(min=1e-20).sqrt()

    def _learned_log_variance(self, t, predicted_variance, dtype) -> torch.Tensor:
        """Return log sigma_t^2 between log beta_tilde_t and log beta_t."""
        log_beta = self.variance(t, variance_type="fixed_large", dtype=dtype).log()
        log_beta_tilde = self.variance(t, variance_type="fixed_small", dtype=dtype).log()
        return between_log_variances(predicted_variance, log_beta_tilde, log_beta)

    def _threshold_sample(self, x_0: torch.Tensor) -> torch.Tensor:
        """Clip x_0 at a quantile of |x_0|, and scale it to [-1, 1] (arXiv 2205.11487, section 2.3)."""
        quantile = torch.quantile(x_0.abs().flatten(1), self.config.dynamic_thresholding_ratio, dim=1)
        s = quantile.clamp(min=1, max=self.config.sample_max_value)
        s = s.view(-1, *[1] * (x_0.ndim - 1))
        return x_0.clamp(-s, s) / s

    # ---- Tables ----------------------------------------------------------------------------------------------------

    def _checked_timesteps(self, timestep: torch.Tensor | int, first: int = 0) -> torch.Tensor:
        """Return timesteps as int64, in [first, T). Those on a device stay unchecked: to read them is a host sync."""
        t = _whole_numbers(timestep, "timestep")
        if t.device.type == "cpu" and ((t < first) | (t >= len(self))).any():
            raise ValueError(f"Timestep {t.tolist()} is outside [{first}, {len(self)}).")
        return t

    def _index(self, timestep: torch.Tensor | int, like: torch.Tensor, first: int = 0) -> torch.Tensor:
        """Return timesteps as int64, `(batch or 1, 1, ..., 1)`, on the device of `like`, without a host sync."""
        t = self._checked_timesteps(timestep, first).reshape(-1)
        batch = len(like) if like.ndim else 1
        if batch != 1 and len(t) not in (1, batch):
            raise ValueError(f"There are {len(t)} timesteps; expected one, or one for each of {batch} samples.")
        return t.to(like.device, non_blocking=True).view(-1, *[1] * (like.ndim - 1))

    def _alpha_bar(self, t: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return alpha_bar_t, of the shape of t; 1 at t = -1. It is float64 if `dtype` is float64, else float32."""
        key = (t.device, torch.float64 if dtype == torch.float64 else torch.float32)
        if key not in self._alpha_bar_tables:
            alphas_cumprod = (1 - _make_betas(self.config, key[1])).cumprod(0).clamp(ALPHA_BAR_MIN, ALPHA_BAR_MAX)
            self._alpha_bar_tables[key] = torch.cat((torch.ones(1, dtype=key[1]), alphas_cumprod)).to(t.device)
        return self._alpha_bar_tables[key].take(t + 1)

    def _alpha_bars(self, t: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
        """Return alpha_bar at t and at the timestep that is visited next."""
        return self._alpha_bar(t, dtype), self._alpha_bar(self.previous_timestep(t), dtype)

    # ---- As diffusers has it ---------------------------------------------------------------------------------------

    def _get_variance(self, t, predicted_variance=None, variance_type: str | None = None) -> torch.Tensor:
        """Return sigma_t^2 for `"fixed_small"`, `"fixed_large"` and `"learned"`, and another form of it for the others.

        That is sigma_t for `"fixed_small_log"`, and log sigma_t^2 for `"fixed_large_log"` and `"learned_range"`, as
        `DDPMScheduler._get_variance` has it. Code of this package calls [`~DDPMLinearScheduler.variance`].
        """
        variance = self.variance(t, predicted_variance, variance_type)
        match variance_type or self.config.variance_type:
            case "fixed_small_log":
                return torch.exp(0.5 * variance.log())
            case "fixed_large_log":
                return variance.log()
            case "learned_range":
                return self._learned_log_variance(t, predicted_variance, torch.float32)
        return variance


# ---- Checks ----------------------------------------------------------------------------------------------------------


def _check_config(config):
    """Raise a ValueError if the betas cannot be computed. Other keys may hold values of other schedulers."""

    def check(fits, key, expected):
        if not fits:
            raise ValueError(f"`{key}={_shown(config[key])}` does not fit a DDPMLinearScheduler: expected {expected}.")

    T, schedule = config.num_train_timesteps, config.beta_schedule
    check(_is_whole(T) and T >= 1, "num_train_timesteps", "a whole number, at least 1")
    if config.trained_betas is not None:
        check(_is_list_of_numbers(config.trained_betas), "trained_betas", "a list of numbers")
    elif schedule in ("linear", "scaled_linear", "sigmoid"):
        for key in ("beta_start", "beta_end"):
            number = isinstance(config[key], numbers.Real) and not isinstance(config[key], bool)
            check(number and (config[key] >= 0 or schedule != "scaled_linear"), key, "a number in [0, 1]")


def _is_list_of_numbers(values) -> bool:
    try:
        return torch.as_tensor(values, dtype=torch.float64).ndim == 1
    except (TypeError, ValueError, RuntimeError):
        return False


def _is_whole(value) -> TypeGuard[int]:
    """Tell whether this is a whole number. NumPy's and PyTorch's count, True and False do not."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _whole_numbers(values, name: str) -> torch.Tensor:
    """Return whole numbers of any type as int64; raise a ValueError for other values."""
    try:
        tensor = torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        tensor = torch.empty(0)
    if tensor.dtype == torch.bool or tensor.is_floating_point() or tensor.is_complex():
        raise ValueError(f"`{name}={_shown(values)}`; expected whole numbers.")
    return tensor.long()


def _check_tensors(**values):
    """Raise a ValueError if an argument is not a floating-point tensor."""
    for name, value in values.items():
        if not torch.is_tensor(value) or not value.is_floating_point():
            kind = value.dtype if torch.is_tensor(value) else type(value).__name__
            raise ValueError(f"`{name}` is of type {kind}; expected a tensor of floating-point numbers.")


def _check_generator(generator, batch: int) -> torch.Generator | list[torch.Generator] | None:
    """Return the generator, or a list of one for each sample; raise a ValueError for anything else."""
    if generator is None or isinstance(generator, torch.Generator):
        return generator
    if not isinstance(generator, (list, tuple)) or not all(isinstance(each, torch.Generator) for each in generator):
        raise ValueError(
            f"`generator={_shown(generator)}`; expected torch.Generator().manual_seed(n), or a list of them."
        )
    if len(generator) not in (1, batch):
        raise ValueError(f"`generator` is a list of {len(generator)}; expected one for each of {batch} samples.")
    return list(generator)


def _shown(value) -> str:
    """Return a value as text for an error message: one line, at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."


# ---- Tables and timesteps of a configuration -------------------------------------------------------------------------


def between_log_variances(
    predicted_variance: torch.Tensor, log_beta_tilde: torch.Tensor, log_beta: torch.Tensor
) -> torch.Tensor:
    """Return the log of a learned variance (arXiv 2102.09672, eq. 15).

    Args:
        predicted_variance (`torch.Tensor`): v. It chooses the first bound at -1, and the second one at 1.
        log_beta_tilde, log_beta (`torch.Tensor`): The bounds; their shapes broadcast with v.
    """
    share = (predicted_variance + 1) / 2
    return share * log_beta + (1 - share) * log_beta_tilde


def _spread_timesteps(n: int, config) -> torch.Tensor:
    """Return n of the T timesteps, the noisiest first (table 2 of arXiv 2305.08891), rounded in float64 like NumPy."""
    T, i = config.num_train_timesteps, torch.arange(n, dtype=torch.float64)
    match config.timestep_spacing:
        case "linspace":
            return (i * ((T - 1) / max(n - 1, 1))).round().flip(0)
        case "leading":
            return i.flip(0) * (T // n) + config.steps_offset
        case "trailing":
            return (T + i * ((T - T / n) - T)).round() - 1
    raise ValueError(f"`timestep_spacing={config.timestep_spacing!r}`; expected 'linspace', 'leading' or 'trailing'.")


def _make_betas(config, dtype: torch.dtype) -> torch.Tensor:
    """Return beta_t for t in [0, T), in diffusers' order of operations, so that both float32 tables are equal."""
    T, start, end = config.num_train_timesteps, config.beta_start, config.beta_end
    if config.trained_betas is not None:
        betas = torch.as_tensor(config.trained_betas, dtype=dtype)
    elif config.beta_schedule == "linear":
        betas = torch.linspace(start, end, T, dtype=dtype)
    elif config.beta_schedule == "scaled_linear":
        betas = torch.linspace(start**0.5, end**0.5, T, dtype=dtype) ** 2
    elif config.beta_schedule == "sigmoid":
        betas = torch.linspace(-6, 6, T, dtype=dtype).sigmoid() * (end - start) + start
    elif config.beta_schedule in tuple(_ALPHA_BARS):
        alpha_bar = _ALPHA_BARS[config.beta_schedule]
        steps = [min(1 - alpha_bar((i + 1) / T) / alpha_bar(i / T), 0.999) for i in range(T)]
        betas = torch.tensor(steps, dtype=dtype)
    else:
        known = ("linear", "scaled_linear", "sigmoid", *_ALPHA_BARS)
        raise ValueError(f"`beta_schedule={config.beta_schedule!r}`; expected one of {known}.")
    return _rescale_zero_terminal_snr(betas) if config.rescale_betas_zero_snr else betas


def _laplace_alpha_bar(u: float) -> float:
    snr = math.exp(-0.5 * math.copysign(1, 0.5 - u) * math.log(1 - 2 * math.fabs(0.5 - u) + 1e-6))
    return math.sqrt(snr / (1 + snr))


# Schedules that are defined by alpha_bar as a function of u = t / T in [0, 1].
_ALPHA_BARS = {
    "squaredcos_cap_v2": lambda u: math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2,  # arXiv 2102.09672, eq. 17
    "laplace": _laplace_alpha_bar,  # arXiv 2407.03297
}


def _rescale_zero_terminal_snr(betas: torch.Tensor) -> torch.Tensor:
    """Shift and scale sqrt(alpha_bar) to end at 0 and keep its first value (arXiv 2305.08891, algorithm 1)."""
    root = (1 - betas).cumprod(0).sqrt()
    first, last = root[0].clone(), root[-1].clone()
    alphas_cumprod = ((root - last) * (first / (first - last))) ** 2
    return 1 - torch.cat((alphas_cumprod[:1], alphas_cumprod[1:] / alphas_cumprod[:-1]))
