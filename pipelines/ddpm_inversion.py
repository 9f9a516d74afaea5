"""Encoding of pictures into noise and back (DDIM inversion: Song et al. 2021, arXiv 2010.02502, section 5.4).

DDIM without noise is a differential equation (their eq. 14). Followed from a picture up to x_T, it gives the noise that
draws this picture. Back from there, other labels or mixtures of two such x_T change the picture and keep much of it.

This file is self-contained: diffusers loads it alone by `custom_pipeline=`, for any repository with a U-Net and one of
the schedulers below.
"""

import itertools
import math
import operator
import re
from collections.abc import Callable, Sequence
from typing import TypeGuard

import numpy as np
import torch
from diffusers import DiffusionPipeline, ImagePipelineOutput, ModelMixin, SchedulerMixin
from diffusers.utils import logging
from PIL import Image

SCHEDULERS = ("DDPMLinearScheduler", "DDPMScheduler", "DDIMScheduler")
GREYSCALE_MODES = ("1", "L", "LA", "I", "I;16", "I;16B", "I;16L", "F")
STEPS = 250  # by default, if there are that many
LEAST_ALPHA_BAR = 1e-5  # below it, which some schedules reach, x_t says nothing about the picture

logger = logging.get_logger("diffusers.ddpm_inversion")


class DDPMInversionPipeline(DiffusionPipeline):
    """Pictures encoded into noise, changed there, and decoded.

    Args:
        unet ([`~diffusers.UNet2DModel`] or `DDPMUNetModel`): The network that predicts the noise in `x_t`.
        scheduler ([`~diffusers.DDPMScheduler`], [`~diffusers.DDIMScheduler`] or `DDPMLinearScheduler`): Its betas and
            its `prediction_type` are used.

    Example:
        >>> from diffusers import DiffusionPipeline
        >>> from PIL import Image
        >>> pipeline = DiffusionPipeline.from_pretrained(
        ...     "google/ddpm-cifar10-32", custom_pipeline="pipelines/ddpm_inversion.py", trust_remote_code=True
        ... )
        >>> one, another = Image.open("one.png"), Image.open("another.png")
        >>> frames = pipeline(one, another, num_frames=9).images
        >>> x_T = pipeline.encode(one)
        >>> the_same = pipeline.decode(x_T).images[0]
    """

    model_cpu_offload_seq = "unet"

    def __init__(self, unet: ModelMixin, scheduler: SchedulerMixin):
        super().__init__()
        self.register_modules(unet=unet, scheduler=scheduler)

    def __call__(
        self,
        image: Image.Image,
        image_2: Image.Image | None = None,
        num_frames: int | None = None,
        num_inference_steps: int | None = None,
        num_refinements: int = 2,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        new_class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> ImagePipelineOutput | tuple:
        """Encode one picture or two, and decode them or what lies between.

        Args:
            image (`PIL.Image.Image`): The picture, of any mode. If it has the model's proportions but another size, it
                is resized.
            image_2 (`PIL.Image.Image`, *optional*): A second picture. The frames then lead from the first one to this
                one along the arc between their x_T.
            num_frames (`int`, *optional*): Number of frames. The default is 9 with two pictures, and with one picture
                one for each of `new_class_labels`, or one.
            num_inference_steps (`int`, *optional*): Number of steps in each direction, evenly spread over the T. The
                default is 250, or T - 1 if that is less. A schedule that ends without a signal is left before its end.
            num_refinements (`int`): How often a step of the encoding is corrected, at the cost of a call of the
                network. With 0, this is the plain inversion of the paper.
            output_type (`str`): `"pil"` (mode L for one channel, RGB for three), `"np"` for an array `(batch, height,
                width, channels)` or `"pt"` for a tensor `(batch, channels, height, width)`, both in [0, 1].
            return_dict (`bool`): Whether to return an [`~diffusers.ImagePipelineOutput`] instead of a tuple.
            class_labels (`int`, `str`, or a list or tensor of them, *optional*): Labels of the pictures, for a
                class-conditional model: one for both or one for each, as [`DDPMPipelineCustom`] takes them. The default
                is no class. A model without names needs numbers.
            new_class_labels (same types, *optional*): Labels to decode with: one for all frames or one for each. The
                default is the label of the picture that is nearer.
            guidance_scale (`float`): How strongly the pictures follow their labels in both directions, as in
                [`DDPMPipelineCustom`]. 1 is the plain class-conditional model. Other values need a model with
                `class_names`.
            guidance_interval (`tuple[float, float]`): The part of the way that is guided, in both directions, as in
                [`DDPMPipelineCustom`]: from 0, pure noise, to 1, the picture. The default is all of it.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: The frames, in order.

        Raises:
            ValueError: If an argument does not fit, before any step is taken.
        """
        pictures = [image] if image_2 is None else [image, image_2]
        if num_frames is None:
            listed = new_class_labels.tolist() if hasattr(new_class_labels, "tolist") else new_class_labels
            of_labels = len(listed) if isinstance(listed, (list, tuple, range)) else 1
            num_frames = of_labels if image_2 is None else 9
        num_frames = self._check_output(output_type, num_frames)
        if image_2 is not None and num_frames < 2:
            raise ValueError(f"`num_frames={num_frames}`; expected at least 2.")
        labels = self._label_numbers(class_labels, len(pictures), _finite_number("guidance_scale", guidance_scale))
        if new_class_labels is None:
            new_class_labels = labels and [labels[i * len(labels) // num_frames] for i in range(num_frames)]
        else:
            new_class_labels = self._label_numbers(new_class_labels, num_frames, guidance_scale)
        x_T = self._encode(pictures, labels, guidance_scale, guidance_interval, num_inference_steps, num_refinements)
        if image_2 is None:
            x_T = x_T.repeat(num_frames, 1, 1, 1)
        else:
            x_T = slerp(*x_T.chunk(2), torch.linspace(0, 1, num_frames, device=x_T.device).view(-1, 1, 1, 1))
        images = self._decode(
            x_T, new_class_labels, guidance_scale, guidance_interval, num_inference_steps, output_type
        )
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    def encode(
        self,
        image: Image.Image | Sequence[Image.Image],
        num_inference_steps: int | None = None,
        num_refinements: int = 2,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> torch.Tensor:
        """Encode a picture or several.

        Args:
            image (`PIL.Image.Image` or a list of them): The pictures.
            num_inference_steps, num_refinements, class_labels, guidance_scale, guidance_interval: See a call.

        Returns:
            `torch.Tensor`: x_T, `(batch, channels, height, width)`, float32.

        Raises:
            ValueError: If an argument does not fit, before any step is taken.
        """
        pictures = [image] if isinstance(image, Image.Image) else image
        if not isinstance(pictures, (list, tuple)) or not pictures:
            raise ValueError(f"`image={_shown(image)}`; expected a PIL picture or a list of them.")
        labels = self._label_numbers(class_labels, len(pictures), _finite_number("guidance_scale", guidance_scale))
        return self._encode(pictures, labels, guidance_scale, guidance_interval, num_inference_steps, num_refinements)

    def decode(
        self,
        x_T: torch.Tensor,
        num_inference_steps: int | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        class_labels: int | str | Sequence[int | str] | torch.Tensor | None = None,
        guidance_scale: float = 1.0,
        guidance_interval: Sequence[float] = (0.0, 1.0),
    ) -> ImagePipelineOutput | tuple:
        """Decode what `encode` returned, or mixtures of it.

        Args:
            x_T (`torch.Tensor`, `(batch, channels, height, width)`): Noise.
            num_inference_steps, output_type, return_dict: See a call.
            class_labels, guidance_scale, guidance_interval: See a call.

        Returns:
            [`~diffusers.ImagePipelineOutput`] or `tuple`: The pictures.

        Raises:
            ValueError: If an argument does not fit, before any step is taken.
        """
        if not torch.is_tensor(x_T) or x_T.ndim != 4 or not x_T.is_floating_point():
            raise ValueError(f"`x_T={_shown(x_T)}`; expected a tensor (batch, channels, height, width) of floats.")
        if x_T.shape[1] != self.unet.config.in_channels:
            raise ValueError(
                f"`x_T` has {x_T.shape[1]} channels; expected the {self.unet.config.in_channels} of the model."
            )
        self._check_output(output_type, len(x_T))
        labels = self._label_numbers(class_labels, len(x_T), _finite_number("guidance_scale", guidance_scale))
        images = self._decode(x_T, labels, guidance_scale, guidance_interval, num_inference_steps, output_type)
        return ImagePipelineOutput(images=images) if return_dict else (images,)

    @torch.no_grad()
    def _encode(
        self, pictures, labels, guidance_scale, guidance_interval, num_inference_steps, num_refinements
    ) -> torch.Tensor:
        levels = self._levels(num_inference_steps)
        num_refinements = _whole_number("num_refinements", num_refinements, 0)
        names = ["image", "image_2"] if len(pictures) == 2 else ["image"] * len(pictures)
        x = torch.cat([self._to_x_0(self._read(each, name)) for each, name in zip(pictures, names)])
        network = self._network_with(labels, guidance_scale, guidance_interval)
        # The picture counts as x_t of t = 0, where the noise is below one grey level.
        for s, t in self.progress_bar(list(itertools.pairwise(levels))):
            x_s = x
            # The step down from x_t uses the noise at x_t. The first guess takes the noise at x_s, and each refinement
            # that at the x_t found so far.
            for _ in range(1 + num_refinements):
                x = self._move(x_s, self._eps(network, x, t), s, t)
        self.maybe_free_model_hooks()
        return x

    @torch.no_grad()
    def _decode(self, x_T, labels, guidance_scale, guidance_interval, num_inference_steps, output_type: str):
        levels = self._levels(num_inference_steps)
        network = self._network_with(labels, guidance_scale, guidance_interval)
        x = x_T.to(self._execution_device, torch.float32)
        for t, s in self.progress_bar(list(itertools.pairwise(levels[::-1]))):
            x = self._move(x, self._eps(network, x, t), t, s)
        images = self._to_images(x, output_type)
        self.maybe_free_model_hooks()
        return images

    def _levels(self, num_inference_steps: int | None) -> list[int]:
        """Return the timesteps of the way from a picture to x_T: one more than there are steps."""
        self._check_scheduler()
        last = int((self.scheduler.alphas_cumprod >= LEAST_ALPHA_BAR).sum()) - 1
        if num_inference_steps is None:
            num_inference_steps = min(STEPS, last)
        steps = _whole_number("num_inference_steps", num_inference_steps, 1, last)
        return torch.linspace(0, last, steps + 1, dtype=torch.float64).round().long().tolist()

    def _alpha_sigma(self, t: int) -> tuple[float, float]:
        """Return sqrt(alpha_bar_t) and sqrt(1 - alpha_bar_t)."""
        alpha_bar = self.scheduler.alphas_cumprod[t].item()
        return math.sqrt(alpha_bar), math.sqrt(1 - alpha_bar)

    def _eps(self, network: Callable, x: torch.Tensor, t: int) -> torch.Tensor:
        """Return the noise that the network sees in x_t. Samples stay in float32, whatever the network's type is."""
        model_output = network(x.to(self.unet.dtype), t)[:, : x.shape[1]].to(x.dtype)  # without a learned variance
        alpha, sigma = self._alpha_sigma(t)
        match self.scheduler.config.prediction_type:
            case "sample":
                return (x - alpha * model_output) / sigma
            case "v_prediction":
                return alpha * model_output + sigma * x
        return model_output

    def _move(self, x: torch.Tensor, eps: torch.Tensor, t: int, s: int) -> torch.Tensor:
        """Return x_s of the same x_0 and eps (eq. 12 without noise, in either direction)."""
        (alpha_t, sigma_t), (alpha_s, sigma_s) = self._alpha_sigma(t), self._alpha_sigma(s)
        return alpha_s / alpha_t * (x - sigma_t * eps) + sigma_s * eps

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
