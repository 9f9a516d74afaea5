"""Interpolation between two pictures (Ho et al. 2020, arXiv 2006.11239, section 4.4 and figure 8).

Both pictures are noised to x_t with the same noise and mixed there. The reverse process takes the mixtures back to x_0.
With more noising steps, more of the result comes from the model, and less from the pictures.

This file is self-contained: diffusers loads it alone by `custom_pipeline=`, for any repository with a U-Net and one of
the schedulers below.
"""

import inspect
import math
import operator
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeGuard

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils import logging
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image

SCHEDULERS = ("DDPMLinearScheduler", "DDPMScheduler", "DDIMScheduler")
GREYSCALE_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")

logger = logging.get_logger("diffusers.ddpm_interpolation")


class DDPMInterpolationPipeline(DiffusionPipeline):
    """Frames that lead from one picture to another.

    Args:
        unet ([`~diffusers.UNet2DModel`] or `DDPMUNetModel`): The network that predicts the noise in `x_t`.
        scheduler ([`~diffusers.DDPMScheduler`], [`~diffusers.DDIMScheduler`] or `DDPMLinearScheduler`): The reverse
            process.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from PIL import Image
        >>> pipeline = DiffusionPipeline.from_pretrained(
        ...     "google/ddpm-cifar10-32", custom_pipeline="pipelines/ddpm_interpolation.py", trust_remote_code=True
        ... )
        >>> one, another = Image.open("one.png"), Image.open("another.png")
        >>> frames = pipeline(one, another, num_frames=12, timestep=500).images
        >>> pipeline.save_strip("strip.png", frames, scale=2)
        >>> pipeline.save_gif("frames.gif", frames, scale=4)
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    @torch.no_grad()
    def __call__(
        self,
        image_1: Image.Image,
        image_2: Image.Image,
        num_frames: int = 9,
        timestep: int | None = None,
        mixing: str = "linear",
        share_decoding_noise: bool = True,
        generator: torch.Generator | None = None,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> ImagePipelineOutput | tuple:
        """Draw frames between two pictures.

        Args:
            image_1, image_2 (`PIL.Image.Image`): The pictures, of any mode. If they have the model's proportions but
                another size, they are resized.
            num_frames (`int`): Number of frames, at least 2. Frame i mixes with lambda = i / (num_frames - 1).
            timestep (`int`, *optional*): Number of noising steps before mixing, in [0, T]. The default is half of T, as
                in the paper. k steps lead to x_t of index t = k - 1 (the model counts from 0), where the way back
                begins. With 0 steps, the first and the last frame are the pictures, and the others are mixtures of
                their pixels.
            mixing (`str`): `"linear"` for `(1 - lambda) x_t + lambda x'_t`, as in the paper, or `"slerp"` for the arc
                between them.
            share_decoding_noise (`bool`): Whether the way back uses the same noise for all frames. Then frames differ
                by lambda alone and change gradually. Otherwise each frame has its own noise.
            generator (`torch.Generator`, *optional*): Source of all noise.
            num_inference_steps (`int`, *optional*): Number of steps back from all T noising steps. From fewer noising
                steps, the way back takes the same share of them. The default is T.
            output_type (`str`): `"pil"` (mode L for one channel, RGB for three), `"np"` for an array `(batch, height,
                width, channels)` or `"pt"` for a tensor `(batch, channels, height, width)`, both in [0, 1].
            return_dict (`bool`): Whether to return an [`~diffusers.ImagePipelineOutput`] instead of a tuple.
            class_labels (`int`, `str`, or a list or tensor of them, *optional*): Labels for a class-conditional model,
                one for all frames or one for each, as [`DDPMPipelineCustom`] takes them: names of
                `pipeline.unet.config.class_names`, or numbers. The default is no class. A model without names needs
                numbers.
            guidance_scale (`float`): How strongly the frames follow their labels, as in [`DDPMPipelineCustom`]. 1 is
                the plain class-conditional model. Other values need a model with `class_names`.
            guidance_interval (`tuple[float, float]`): The part of the reverse process that is guided, as in
                [`DDPMPipelineCustom`]: from 0, pure noise, to 1, the picture. The default is all of it.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: The frames, in order.

        Raises:
            ValueError: If an argument does not fit, before any step is taken.
        """
        self._check_scheduler()
        num_frames = self._check_output(output_type, num_frames)
        T = self.scheduler.config.num_train_timesteps
        timestep = T // 2 if timestep is None else timestep
        if num_frames < 2:
            raise ValueError(f"`num_frames={num_frames}`; expected at least 2.")
        if not _is_whole(timestep) or not 0 <= timestep <= T:
            raise ValueError(
                f"`timestep={_shown(timestep)}`; expected a whole number, 0 to num_train_timesteps={T} noising steps."
            )
        timestep = operator.index(timestep)
        if mixing not in ("linear", "slerp"):
            raise ValueError(f"`mixing={mixing!r}`; expected 'linear' or 'slerp'.")
        if isinstance(generator, (list, tuple)):
            raise ValueError("`generator` is a list; expected one generator, since the frames share their noise.")
        self._check_generator(generator, num_frames)
        network = self._network(class_labels, num_frames, guidance_scale, guidance_interval)
        x_0_1 = self._to_x_0(self._read(image_1, "image_1"))  # (1, C, H, W)
        x_0_2 = self._to_x_0(self._read(image_2, "image_2"))
        timesteps = self._choose_timesteps(timestep, T if num_inference_steps is None else num_inference_steps)

        # 1. Encode both pictures with the same noise (eq. 4).
        eps = randn_tensor(x_0_1.shape, generator=generator, device=x_0_1.device)
        x_t_1, x_t_2 = self._noise(x_0_1, eps, timestep), self._noise(x_0_2, eps, timestep)

        # 2. Mix.
        weights = torch.linspace(0, 1, num_frames, device=eps.device).view(-1, 1, 1, 1)
        mix = slerp if mixing == "slerp" else linear
        x = mix(x_t_1, x_t_2, weights)  # (num_frames, C, H, W)

        # 3. Decode. Generators of the same seed draw the same noise for each frame.
        decoding: torch.Generator | list[torch.Generator] | None = generator
        if share_decoding_noise:
            device = generator.device if generator is not None else "cpu"
            seed = int(torch.randint(2**62, (1,), generator=generator, device=device))
            decoding = [torch.Generator(device).manual_seed(seed) for _ in range(num_frames)]
        for t in self.progress_bar(timesteps):
            x = self._reverse_step(network, x, t, decoding)

        images = self._to_images(x, output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=images) if return_dict else (images,)

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

    def _read(self, picture: Image.Image, name: str) -> Image.Image:
        """Return the picture in the model's mode and size. A log line says what that changed."""
        size, channels = self.unet.config.sample_size, self.unet.config.in_channels
        if about := self.unet.config.get("pixel_format"):
            raise ValueError(
                f"The model draws {channels} channels of {about['dtype']} from {about['low']:g} to {about['high']:g}; "
                "this pipeline is for models of 8-bit pictures, grey or RGB."
            )
        if size is None or channels not in (1, 3):
            raise ValueError(
                f"The model has `sample_size={size}` and {channels} channels; expected a size, and 1 or 3 channels for "
                "pictures."
            )
        if not isinstance(picture, Image.Image):
            raise ValueError(f"`{name}` is a {type(picture).__name__}; expected a PIL picture.")
        height, width = (size, size) if isinstance(size, int) else size
        if round(picture.width * height / picture.height) != width:
            raise ValueError(
                f"`{name}` has {picture.width}x{picture.height} pixels; expected the proportions of the model's "
                f"{width}x{height}, so crop it first."
            )
        if channels == 1 and picture.mode not in GREYSCALE_MODES:
            logger.warning(f"`{name}` is of mode {picture.mode}; it becomes greyscale, as the model is.")
        if channels == 3 and picture.mode in GREYSCALE_MODES:
            logger.warning(f"`{name}` is of mode {picture.mode}; it becomes RGB, as the model is.")
        picture = _to_eight_bits(picture, "L" if channels == 1 else "RGB", behind="white")
        if picture.size != (width, height):
            logger.warning(f"`{name}` is resized from {picture.width}x{picture.height} to {width}x{height} pixels.")
            picture = picture.resize((width, height), Image.Resampling.BICUBIC)
        return picture

    def _to_x_0(self, picture: Image.Image) -> torch.Tensor:
        """Return pixels in [-1, 1], `(1, channels, height, width)`."""
        pixels = torch.tensor(np.array(picture), dtype=torch.float32, device=self._execution_device)
        return (pixels / 127.5 - 1).view(1, picture.height, picture.width, -1).permute(0, 3, 1, 2)

    def _choose_timesteps(self, k: int, num_inference_steps: int) -> torch.Tensor:
        """Return the timesteps of the way back from k noising steps: from t = k - 1 on, evenly spread."""
        T = self.scheduler.config.num_train_timesteps
        num_inference_steps = _whole_number("num_inference_steps", num_inference_steps, 1, T)
        device = self._execution_device
        if "timesteps" not in inspect.signature(self.scheduler.set_timesteps).parameters:
            self.scheduler.set_timesteps(num_inference_steps, device=device)
            return torch.arange(k - 1, -1, -(T // num_inference_steps), device=device)  # DDIM has a fixed stride
        steps = min(k, max(1, round(k * num_inference_steps / T)))
        timesteps = torch.linspace(k - 1, 0, steps, dtype=torch.float64).round().long()
        if k > 0:
            self.scheduler.set_timesteps(timesteps=timesteps.tolist(), device=device)
        return timesteps.to(device)

    def _noise(self, x_0: torch.Tensor, eps: torch.Tensor, k: int) -> torch.Tensor:
        """Return x_0 after k noising steps, which is x_t of t = k - 1 (eq. 4)."""
        return self.scheduler.add_noise(x_0, eps, torch.tensor([k - 1], device=x_0.device)) if k > 0 else x_0

    def _reverse_step(self, network: Callable, x: torch.Tensor, t: torch.Tensor, generator) -> torch.Tensor:
        """Draw x_{t-1} from p_theta(x_{t-1} | x_t). Samples stay in float32, whatever the network's type is."""
        model_output = network(x.to(self.unet.dtype), t)
        if "DDIMScheduler" in (kind.__name__ for kind in type(self.scheduler).__mro__):
            model_output = model_output[:, : x.shape[1]]  # without a learned variance
        return self.scheduler.step(model_output.to(x.dtype), t, x, generator=generator).prev_sample

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


def linear(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return `(1 - lambda) a + lambda b`."""
    return (1 - weights) * a + weights * b


def slerp(a: torch.Tensor, b: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Return `(sin((1 - lambda) theta) a + sin(lambda theta) b) / sin(theta)`; theta is the angle from a to b."""
    a_64, b_64 = a.cpu().double().flatten(), b.cpu().double().flatten()  # some devices know no float64
    theta = torch.nn.functional.cosine_similarity(a_64, b_64, dim=0).clamp(-1, 1).acos()
    if theta.sin() < 1e-4:  # the arc is a line, or it is not unique
        return linear(a, b, weights)
    return (((1 - weights) * theta).sin() * a + (weights * theta).sin() * b).div(theta.sin()).to(a.dtype)


def _to_eight_bits(picture: Image.Image, mode: str, behind: str) -> Image.Image:
    """Return a picture of any mode as "L" or "RGB". Transparent pixels show the colour `behind` them.

    Integers of 16 bits are divided by 257. Floating-point values range from 0 to 1, or to 255 if one is larger than 1.
    """
    if picture.mode[0] in "IF":
        values = np.asarray(picture, dtype=np.float64)
        white = 65535 if picture.mode[0] == "I" else 1 if values.max() <= 1 else 255
        picture = Image.fromarray((values * (255 / white)).round().clip(0, 255).astype(np.uint8))
    if picture.has_transparency_data:
        picture = Image.alpha_composite(Image.new("RGBA", picture.size, behind), picture.convert("RGBA"))
    return picture.convert("RGB").convert(mode)


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
