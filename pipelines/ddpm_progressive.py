"""The noisy x_t and the predicted x_0 while a picture appears (Ho et al. 2020, arXiv 2006.11239, figure 6).

This file is self-contained: diffusers loads it alone by `custom_pipeline=`, for any repository with a U-Net and one of
the schedulers below.
"""

import math
import operator
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

import torch
from diffusers import DiffusionPipeline, ModelMixin, SchedulerMixin
from diffusers.utils import BaseOutput
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

SCHEDULERS = ("DDPMLinearScheduler", "DDPMScheduler", "DDIMScheduler")


@dataclass
class DDPMProgressiveOutput(BaseOutput):
    """Output of [`DDPMProgressivePipeline`], in the form that `output_type` names.

    Attributes:
        images: The final images.
        x_t (`list`): The frames of the noisy images, from x_T to the final images.
        x_0 (`list`): The frames of the predicted x_0, one for each frame of x_t. The last one is the final images.
    """

    images: list
    x_t: list
    x_0: list


class DDPMProgressivePipeline(DiffusionPipeline):
    """Image generation that keeps frames of the reverse process; the images are those of a plain DDPM pipeline.

    Args:
        unet ([`~diffusers.UNet2DModel`] or `DDPMUNetModel`): The network that predicts the noise in `x_t`.
        scheduler ([`~diffusers.DDPMScheduler`], [`~diffusers.DDIMScheduler`] or `DDPMLinearScheduler`): The reverse
            process.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> pipeline = DiffusionPipeline.from_pretrained(
        ...     "google/ddpm-cifar10-32", custom_pipeline="pipelines/ddpm_progressive.py", trust_remote_code=True
        ... )
        >>> output = pipeline(num_frames=20)
        >>> x_t, x_0 = ([frame[0] for frame in frames] for frames in (output.x_t, output.x_0))  # of the first image
        >>> pipeline.save_strip("strip.png", x_t, x_0, scale=2)
        >>> pipeline.save_gif("frames.gif", x_t, x_0, scale=4)
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        batch_size: int = 1,
        num_frames: int | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> DDPMProgressiveOutput | tuple:
        """Draw images, step by step.

        Args:
            batch_size (`int`): Number of images.
            num_frames (`int`, *optional*): Number of frames to keep, spread evenly over the steps from the first to the
                last. The default is all: one for each step, and the images.
            generator (`torch.Generator` or a list or tuple of them, *optional*): Source of all noise. A list holds one
                generator for each image, and then an image does not depend on the others of its batch.
            num_inference_steps (`int`, *optional*): Number of denoising steps. The default is the T of training.
            output_type (`str`): `"pil"` (mode L for one channel, RGB for three), `"np"` for arrays `(batch, height,
                width, channels)` or `"pt"` for tensors `(batch, channels, height, width)`, both in [0, 1]. Each frame
                is a whole batch.
            return_dict (`bool`): Whether to return a [`DDPMProgressiveOutput`] instead of a tuple.
            class_labels (`int`, `str`, or a list or tensor of them, *optional*): Labels for a class-conditional model,
                one for all images or one for each, as [`DDPMPipelineCustom`] takes them: names of
                `pipeline.unet.config.class_names`, or numbers. The default is no class. A model without names needs
                numbers.
            guidance_scale (`float`): How strongly the images follow their labels, as in [`DDPMPipelineCustom`]. 1 is
                the plain class-conditional model. Other values need a model with `class_names`.
            guidance_interval (`tuple[float, float]`): The part of the reverse process that is guided, as in
                [`DDPMPipelineCustom`]: from 0, pure noise, to 1, the picture. The default is all of it.

        Returns:
            [`DDPMProgressiveOutput`] or `tuple`: The images, the frames of x_t, and the frames of the predicted x_0.

        Raises:
            ValueError: If an argument does not fit, before any step is taken.
        """
        self._check_scheduler()
        batch_size = self._check_output(output_type, batch_size)
        generator = self._check_generator(generator, batch_size)
        network = self._network(class_labels, batch_size, guidance_scale, guidance_interval)
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if output_type == "pil" and (about := self.unet.config.get("pixel_format")):
            raise ValueError(
                f"The model draws {channels} channels of {about['dtype']} from {about['low']:g} to {about['high']:g}, "
                "and no 8-bit pictures, grey or RGB; pass `output_type='np'` or 'pt'."
            )
        if size is None or (output_type == "pil" and channels not in (1, 3)):
            raise ValueError(
                f"The model has `sample_size={size}` and {channels} channels; expected a size, and 1 or 3 channels for "
                "pictures."
            )
        T = self.scheduler.config.num_train_timesteps
        steps = _whole_number("num_inference_steps", T if num_inference_steps is None else num_inference_steps, 1, T)
        num_frames = steps + 1 if num_frames is None else _whole_number("num_frames", num_frames, 2, steps + 1)
        kept = torch.linspace(0, steps, num_frames, dtype=torch.float64).round().int().tolist()

        # 1. x_T ~ N(0, I).
        shape = (batch_size, channels, *((size, size) if isinstance(size, int) else size))
        self.scheduler.set_timesteps(steps, device=self._execution_device)
        if len(self.scheduler.timesteps) != steps:  # diffusers adds a timestep of -1 to some "trailing" ones
            raise ValueError(f"`num_inference_steps={steps}`: the scheduler takes one step more; pass another number.")
        x = randn_tensor(shape, generator=generator, device=self._execution_device, dtype=self.unet.dtype)

        # 2. For t = T, ..., 1: predict x_0 from x_t, and draw x_{t-1}.
        frames = []  # pairs of x_t and the x_0 predicted from it
        for i, t in enumerate(self.progress_bar(self.scheduler.timesteps)):
            model_output = network(x, t)
            if "DDIMScheduler" in (kind.__name__ for kind in type(self.scheduler).__mro__):
                model_output = model_output[:, : x.shape[1]]  # without a learned variance
            step = self.scheduler.step(model_output, t, x, generator=generator)
            if i in kept:
                frames.append((x, step.pred_original_sample))
            x = step.prev_sample
        frames.append((x, x))

        # 3. [-1, 1] -> [0, 1] -> pictures.
        x_t, x_0 = ([self._to_images(frame, output_type) for frame in column] for column in zip(*frames))
        images = x_t[-1]
        self.maybe_free_model_hooks()
        return DDPMProgressiveOutput(images=images, x_t=x_t, x_0=x_0) if return_dict else (images, x_t, x_0)

    @staticmethod
    def save_strip(path: str | Path, *rows: list[Image.Image], scale: int = 1):
        """Save rows of pictures of one size and mode as one picture, each pixel as `scale` x `scale` pixels."""
        _tile(rows, scale).save(path)

    @staticmethod
    def save_gif(path: str | Path, *rows: list[Image.Image], scale: int = 1, duration: int = 80):
        """Save rows of pictures as an endless animation. Its frame i shows picture i of all rows side by side.

        Each frame stays for `duration` milliseconds, and the last one for a second more.
        """
        frames = [_tile([pictures], scale) for pictures in zip(*rows)]
        durations = [duration] * (len(frames) - 1) + [duration + 1000]
        frames[0].save(path, save_all=True, append_images=frames[1:], duration=durations, loop=0)

    def _check_scheduler(self):
        """Raise a ValueError if steps of the scheduler depend on earlier steps, or if it scales x_t."""
        if not any(kind.__name__ in SCHEDULERS for kind in type(self.scheduler).__mro__):
            raise ValueError(
                f"The scheduler is a {type(self.scheduler).__name__}; expected one of {', '.join(SCHEDULERS)}: "
                "pipeline.scheduler = DDPMScheduler.from_config(pipeline.scheduler.config)."
            )

    def _check_output(self, output_type: str, batch_size: int) -> int:
        """Return the number of images as an `int`; raise a ValueError for a bad number or output type."""
        if output_type not in ("pil", "np", "pt"):
            raise ValueError(f"`output_type={output_type!r}`; expected 'pil', 'np' or 'pt'.")
        if not _is_whole(batch_size) or batch_size < 1:
            raise ValueError(f"{_shown(batch_size)} images; expected a whole number of them, at least 1.")
        return operator.index(batch_size)

    def _check_generator(self, generator, batch_size: int) -> torch.Generator | list[torch.Generator] | None:
        """Return the generator, or a list of one for each image; raise a ValueError for anything else."""
        if generator is None:
            return None
        generators = list(generator) if isinstance(generator, (list, tuple)) else [generator]
        device = self._execution_device
        for each in generators:
            if not isinstance(each, torch.Generator):
                raise ValueError(
                    f"`generator={_shown(generator)}`; expected torch.Generator().manual_seed(n), or a list of them."
                )
            if each.device.type not in ("cpu", device.type):
                raise ValueError(f"`generator` is on {each.device}; expected one on the CPU or on {device}.")
        if isinstance(generator, torch.Generator):
            return generator
        if len(generators) != batch_size:
            raise ValueError(
                f"`generator` is a list of {len(generators)}; expected one for each of {batch_size} images."
            )
        return generators

    def _network(
        self, class_labels, batch_size: int, guidance_scale: float, guidance_interval: Sequence[float]
    ) -> Callable[..., torch.Tensor]:
        """Return the network as a function of x_t and t, for these labels and with this guidance."""
        guidance_scale = _finite_number("guidance_scale", guidance_scale)
        labels = self._label_numbers(class_labels, batch_size, guidance_scale)
        return self._network_with(labels, guidance_scale, guidance_interval)

    def _network_with(
        self, labels: list[int] | None, guidance_scale: float, guidance_interval: Sequence[float]
    ) -> Callable[..., torch.Tensor]:
        """Return the network as a function of x_t and t, for these labels and with this guidance."""
        (start, end), T = _guided_part(guidance_interval, guidance_scale), self.scheduler.config.num_train_timesteps
        if labels is None:
            return lambda x_t, t: self.unet(x_t, t).sample
        of_images = torch.tensor(labels, device=self._execution_device)  # (B,)

        def conditional(x_t, t, labels=of_images):
            return self.unet(x_t, t, class_labels=labels).sample

        if guidance_scale == 1:
            return conditional
        no_class = torch.full_like(of_images, len(self.unet.config.class_names))
        both = torch.cat((of_images, no_class))  # (2 B,)

        def guided(x_t, t):
            with_label, without = conditional(torch.cat((x_t, x_t)), t, both).chunk(2)
            guided, C = without + guidance_scale * (with_label - without), x_t.shape[1]
            return torch.cat((guided[:, :C], with_label[:, C:]), dim=1)  # a learned variance is not guided

        def guided_in_part(x_t, t):
            return guided(x_t, t) if start <= (T - float(t)) / T <= end else conditional(x_t, t)

        return guided if (start, end) == (0, 1) else guided_in_part

    def _label_numbers(self, class_labels, batch_size: int | None, guidance_scale: float) -> list[int] | None:
        """Return the class number of each image; raise a ValueError for labels that this model does not have."""
        count, names = self.unet.config.get("num_class_embeds"), self.unet.config.get("class_names")
        if guidance_scale != 1 and not names:
            raise ValueError(
                f"`guidance_scale={guidance_scale}` needs a model that was trained with labels and without them, by "
                "`train_ddpm.py --class_conditional`; for this model, expected 1."
            )
        if class_labels is None:
            if guidance_scale != 1:
                raise ValueError(
                    f"`guidance_scale={guidance_scale}` leads to `class_labels`, and there are none; pass labels, or 1."
                )
            if count is not None and not names:
                raise ValueError(
                    "`class_labels` are missing: this model draws images of a class; expected a whole number from 0 to "
                    f"{count - 1}, or one for each image."
                )
            return None
        if count is None:
            raise ValueError(f"`class_labels={_shown(class_labels)}` do not fit an unconditional model; expected none.")
        if hasattr(class_labels, "tolist"):  # a tensor, or an array of NumPy
            class_labels = class_labels.tolist()
        if isinstance(class_labels, str) or _is_whole(class_labels):
            class_labels = [class_labels] * (1 if batch_size is None else batch_size)
        if not isinstance(class_labels, (list, tuple, range)) or not class_labels:
            raise ValueError(f"`class_labels={_shown(class_labels)}`; expected a label or a list of them.")
        if batch_size is not None and len(class_labels) != batch_size:
            raise ValueError(
                f"`class_labels` has {len(class_labels)} labels; expected one, or one for each of {batch_size} images."
            )
        return _class_numbers(class_labels, names or (), count)

    def _to_images(self, x: torch.Tensor, output_type: str):
        """Bring samples from [-1, 1] to [0, 1], and return them in the form that `output_type` names."""
        images = (x / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        arrays = images.cpu().permute(0, 2, 3, 1).float().numpy()  # (B, H, W, C)
        return self.numpy_to_pil(arrays) if output_type == "pil" else arrays


def _tile(rows, scale: int) -> Image.Image:
    """Return rows of pictures as one picture, each pixel as `scale` x `scale` pixels."""
    width, height = (scale * side for side in rows[0][0].size)
    canvas = Image.new(rows[0][0].mode, (width * len(rows[0]), height * len(rows)))
    for i, row in enumerate(rows):
        for j, picture in enumerate(row):
            canvas.paste(picture.resize((width, height), Image.Resampling.NEAREST), (j * width, i * height))
    return canvas


def _is_whole(value) -> TypeGuard[int]:
    """Tell whether this is a whole number. NumPy's and PyTorch's count, True and False do not."""
    try:
        operator.index(value)
    except TypeError:
        return False
    return not isinstance(value, bool)


def _whole_number(name: str, value, first: int, last: float = math.inf) -> int:
    """Return a whole number from `first` to `last` as an `int`; raise a ValueError for other values."""
    if not _is_whole(value) or not first <= value <= last:
        limits = f"at least {first}" if last == math.inf else f"{first} to {last}"
        raise ValueError(f"`{name}={_shown(value)}`; expected a whole number, {limits}.")
    return operator.index(value)


def _finite_number(name: str, value) -> float:
    """Return a finite number as a `float`; raise a ValueError for other values."""
    try:
        number = math.nan if isinstance(value, (str, bytes, bool)) else float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError):
        number = math.nan
    if not math.isfinite(number):
        raise ValueError(f"`{name}={_shown(value)}`; expected a finite number.")
    return number


def _guided_part(guidance_interval, guidance_scale: float) -> tuple[float, float]:
    """Return the start and the end of the guidance; raise a ValueError for other values, or if nothing is guided."""
    try:
        start, end = (_finite_number("guidance_interval", each) for each in guidance_interval)
    except (TypeError, ValueError):
        start = end = math.nan
    if not 0 <= start < end <= 1:
        raise ValueError(
            f"`guidance_interval={_shown(guidance_interval)}`; expected two numbers from 0, pure noise, to 1, the "
            "picture, the lower one first; (0.5, 1) is the second half."
        )
    if guidance_scale == 1 and (start, end) != (0, 1):
        raise ValueError(
            f"`guidance_interval={_shown(guidance_interval)}` is a part of the guidance, and `guidance_scale=1` is "
            "none; pass another scale, or no interval."
        )
    return start, end


def _class_numbers(labels: Sequence, names: Sequence[str], count: int) -> list[int]:
    """Return the class numbers of labels, found by name, or by position if no name is a number."""
    numbered = {int(name): i for i, name in enumerate(names) if re.fullmatch(r"-?\d+", name)}
    positions = {i: i for i in range(count)}
    meant = (numbered or positions) | {name: i for i, name in enumerate(names)}
    numbers = []
    for label in labels:
        key = operator.index(label) if _is_whole(label) else label if isinstance(label, str) else None
        if key not in meant:
            known = f"one of {', '.join(names)}" if names else f"a whole number from 0 to {count - 1}"
            hint = f", or its number from 0 to {count - 1}" if names and not numbered else ""
            raise ValueError(f"`class_labels`: there is no {_shown(label)}; expected {known}{hint}.")
        numbers.append(meant[key])
    return numbers


def _shown(value) -> str:
    """Return a value as text for an error message: one line, at most 100 characters."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 100 else f"{text[:97]}..."
