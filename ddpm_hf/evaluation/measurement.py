"""What is measured, and how: the options of a measurement."""

import importlib.util
from collections.abc import Sequence
from dataclasses import dataclass

METRICS = ("bpd", "fid", "kid", "prdc")
BPD_DECODERS = ("exact", "tanh")


@dataclass
class Measurement:
    """What to measure, and how.

    Args:
        metrics (`Sequence[str]`): Some of `METRICS`.
        num_images (`int`): Number of samples to draw. For bpd, number of images to choose from the reference set.
        batch_size (`int`): Number of images computed at once.
        num_inference_steps (`int`, *optional*): Denoising steps of the samples; by default those that the
            model recommends.
        bpd_timesteps (`int`): Timesteps for each image of bpd. With T, the sum is exact.
        bpd_decoder (`str`): One of `BPD_DECODERS`, see
            [`~ddpm_hf.evaluation.likelihood.log_probability_of_pixels`].
        seed (`int`): Seed of all noise and choices.
        features (`str`): See [`~ddpm_hf.evaluation.features.load_extractor`].
        guidance_scale (`float`): Guidance of the samples of a class-conditional model, whose classes take turns. 1
            means no guidance. The bound is always that of the model without a class.
        guidance_interval (`tuple[float, float]`): The part of the reverse process that is guided, see
            [`DDPMPipelineCustom`].
        mixed_precision (`str`): Precision in which samples are drawn, see [`~ddpm_hf.precision.autocast`]. The bound
            is always computed in the network's own type.

    Raises:
        ValueError: If a value is out of range, or torchmetrics is needed and not installed.
    """

    metrics: Sequence[str] = METRICS
    num_images: int = 10_000
    batch_size: int = 64
    num_inference_steps: int | None = None
    bpd_timesteps: int = 50
    bpd_decoder: str = "exact"
    seed: int = 0
    features: str = "inception"
    guidance_scale: float = 1.0
    guidance_interval: tuple[float, float] = (0.0, 1.0)
    mixed_precision: str = "no"

    def __post_init__(self):
        for metric in self.metrics:
            if metric not in METRICS:
                raise ValueError(f"--metrics {metric}: expected some of {', '.join(METRICS)}.")
        if self.bpd_decoder not in BPD_DECODERS:
            raise ValueError(f"--bpd_decoder {self.bpd_decoder}: expected {' or '.join(BPD_DECODERS)}.")
        for name, least in (("num_images", 1), ("batch_size", 1), ("bpd_timesteps", 2)):
            if getattr(self, name) < least:
                raise ValueError(f"--{name} {getattr(self, name)}: expected at least {least}.")
        if self.of_samples and importlib.util.find_spec("torchmetrics") is None:
            raise ValueError(f"--metrics {self.of_samples[0]} needs a package: pip install torchmetrics.")

    @property
    def of_samples(self) -> list[str]:
        """The metrics that need samples."""
        return [metric for metric in self.metrics if metric != "bpd"]
