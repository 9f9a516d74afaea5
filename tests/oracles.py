"""Reference values and exact models that the tests compare with."""

from pathlib import Path
from types import SimpleNamespace

import torch
from diffusers import ConfigMixin, ModelMixin
from diffusers.configuration_utils import register_to_config
from safetensors.torch import load_file

REFERENCE = Path(__file__).parent / "reference"


def annotated_unet() -> tuple[dict, dict]:
    """Return the state dict of the annotated tutorial's U-Net, and its input, timesteps and output."""
    tensors = load_file(REFERENCE / "annotated_unet.safetensors")
    weights = {k.removeprefix("weights."): v for k, v in tensors.items() if k.startswith("weights.")}
    return weights, {k: v for k, v in tensors.items() if not k.startswith("weights.")}


def annotated_diffusion() -> dict:
    """Return values of the annotated tutorial's Gaussian diffusion: sigma^2 = beta, no clipping."""
    return load_file(REFERENCE / "annotated_diffusion.safetensors")


def gaussian_variance(mean_prediction_of: "GaussianDenoiser") -> torch.Tensor:
    """Return the variance of x_{t-1} given x_t `(T,)`, float64, for the data of an exact denoiser.

    It is beta_tilde_t plus the variance of x_0 given x_t, as far as that moves the mean (eqs. 6-7).
    """
    a, std = mean_prediction_of.alpha_bar, mean_prediction_of.config.std
    before = torch.cat((a.new_ones(1), a[:-1]))
    beta = 1 - a / before
    of_x_0 = std**2 * (1 - a) / (a * std**2 + 1 - a)
    return (1 - before) / (1 - a) * beta + (before.sqrt() * beta / (1 - a)) ** 2 * of_x_0


class GaussianDenoiser(ModelMixin, ConfigMixin):
    """The exact eps_theta (or v_theta) for data N(mean, std^2): E[eps | x_t], in closed form.

    x_t = sqrt(a) x_0 + sqrt(1 - a) eps is N(sqrt(a) mean, a std^2 + 1 - a), with a = alpha_bar_t, so the regression of
    eps on x_t is sqrt(1 - a) (x_t - sqrt(a) mean) / (a std^2 + 1 - a).
    """

    @register_to_config
    def __init__(self, mean=0.3, std=0.2, sample_size=16, in_channels=1, prediction_type="epsilon"):
        super().__init__()
        self.anchor = torch.nn.Parameter(torch.zeros(1))  # gives the model a device and a type
        betas = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64)
        self.alpha_bar = (1 - betas).cumprod(0)

    def forward(self, sample, timestep, class_labels=None, return_dict=True):
        # Schedulers of continuous time pass fractional timesteps.
        t = torch.as_tensor(timestep, dtype=torch.float64).reshape(-1).clamp(0, 999)
        low = t.floor().long()
        share = t - low
        log_alpha_bar = self.alpha_bar.log()
        a = (log_alpha_bar[low] * (1 - share) + log_alpha_bar[(low + 1).clamp(max=999)] * share).exp()
        a = a.view(-1, 1, 1, 1).to(sample.dtype)
        mean, std = self.config.mean, self.config.std
        eps = (1 - a).sqrt() * (sample - a.sqrt() * mean) / (a * std**2 + 1 - a)
        v = (eps - (1 - a).sqrt() * sample) / a.sqrt()  # sqrt(a) eps - sqrt(1 - a) x_0, at the x_0 of this eps
        output = v if self.config.prediction_type == "v_prediction" else eps
        return SimpleNamespace(sample=output) if return_dict else (output,)
