"""What the tabs of the demo compute: functions of numbers and pictures, without an interface.

Each call makes its own scheduler, so calls may run side by side. `track` wraps the loop over the steps, as tqdm does.
"""

import copy
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np
import torch
from diffusers import DiffusionPipeline
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from ddpm_hf.images.decoding import to_eight_bits
from ddpm_hf.other_schedulers import make_scheduler, name_of, settings_of
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom, draw_labels
from ddpm_hf.pipelines.ddpm_inpainting import DDPMInpaintingPipeline
from ddpm_hf.pipelines.ddpm_interpolation import DDPMInterpolationPipeline
from ddpm_hf.pipelines.ddpm_progressive import DDPMProgressivePipeline
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.sampling import Classes, generators_of
from ddpm_hf.schedulers import SCHEDULERS

Track = Callable[[Iterable], Iterable]
NO_CLASS = Classes()
LARGE = 280  # pixels a side; smaller pictures are shown enlarged to about this size
MOST_FRAMES = 101  # most frames that are kept of one trajectory


class DemoModel:
    """A model, and what a person can do with it.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, on its device.

    Raises:
        ValueError: If it does not tell the size and the channels of its samples.

    Attributes:
        takes_pictures (`bool`): Whether its samples are 8-bit pictures, grey or RGB, so that it can change such.
        labels (`tuple[str, ...]` or `range`): The classes that it can be asked for: names, or numbers if it has none.
        takes_no_class (`bool`): Whether it can also draw without a class.
        is_student (`bool`): Whether it learned to draw in few steps. Then it draws in these alone, without guidance.
        schedulers (`dict[str, str]`): Keys of `SCHEDULERS` that fit, with their names. A student has its own alone.
        schedulers_at_first (`tuple[str, ...]`): The saved one, and one of few steps for a slow model.
    """

    def __init__(self, pipeline: DDPMPipelineCustom):
        self.unet, self._own_scheduler, self._settings = pipeline.unet, pipeline.scheduler, settings_of(pipeline)
        self.unet.eval()
        self.num_train_timesteps = self._settings["num_train_timesteps"]
        names, count = self.unet.config.get("class_names"), self.unet.config.get("num_class_embeds")
        self.labels: Sequence[str | int] = tuple(names) if names else range(count or 0)
        self.takes_no_class = bool(names) or not count
        self.is_student = bool(pipeline.config.get("distilled"))
        offered = ("ddim",) if self.is_student else filter(self._fits, SCHEDULERS)
        self.schedulers = {key: SCHEDULERS[key].name for key in offered}
        own = name_of(pipeline.scheduler) or "ddpm"
        self.schedulers_at_first = (own,) if self.is_student else tuple(dict.fromkeys((own, "sde-dpmsolver++")))
        recommends = own == "ddpm" or pipeline.config.get("num_inference_steps") is not None
        self._own_steps = {own: pipeline.default_num_inference_steps} if recommends else {}
        size, self.channels = self.unet.config.sample_size, self.unet.config.in_channels
        self.form = PixelFormat.of_model(self.unet.config)
        self.takes_pictures = not self.form.settings()
        if size is None or (self.takes_pictures and self.channels not in (1, 3)):
            raise ValueError(
                f"The model has `sample_size={size}` and {self.channels} channels; expected a size, and the 1 or 3 "
                "channels of pictures."
            )
        height, width = (size, size) if isinstance(size, int) else size
        self.size = (width, height)

    @property
    def takes_guidance(self) -> bool:
        """Whether it can draw with guidance; a student has that of its teacher in it."""
        return self.takes_no_class and not self.is_student

    def recommended_steps(self, scheduler: str) -> int:
        """Return the denoising steps that suffice with a scheduler, a key of `SCHEDULERS`."""
        return min(self._own_steps.get(scheduler, SCHEDULERS[scheduler].steps), self.num_train_timesteps)

    @property
    def steps(self) -> int:
        """The denoising steps that suffice where the page offers no scheduler."""
        return self.recommended_steps("ddim" if self.is_student else "ddpm")

    def sample(
        self,
        num_images: int,
        seed: float | None,
        scheduler: str,
        steps: int,
        classes: Classes = NO_CLASS,
        track: Track = tqdm,
    ) -> list[Image.Image]:
        """Draw what `ddpm-hf sample` draws with this seed.

        Args:
            num_images (`int`): Number of images.
            seed (`int`): Image i is a function of this and i. The other methods take the same.
            scheduler (`str`): A key of `SCHEDULERS`.
            steps (`int`): Number of denoising steps.
            classes ([`Classes`]): Labels of the images, which take turns, and the guidance. The default is no class.
            track (callable): Wraps the loop over the steps.

        Returns:
            `list[PIL.Image.Image]`: The images, or what can be seen of samples that are no pictures.

        Raises:
            ValueError: If the seed is no whole number, or an argument does not fit.
        """
        pipeline = self._pipeline(DDPMPipelineCustom, scheduler, track, steps)
        options = {"num_inference_steps": steps, **classes.options(range(num_images))}
        images = pipeline(num_images, self._generators(seed, num_images), **options).images
        return [self.form.picture_of(image) for image in images]

    def denoise(
        self, seed: float | None, steps: int, classes: Classes = NO_CLASS, track: Track = tqdm
    ) -> list[tuple[Image.Image, Image.Image]]:
        """Return how sample 0 of a seed appears from noise: pairs of x_t and the x_0 predicted from it."""
        pipeline = self._pipeline(DDPMProgressivePipeline, "ddpm", track, steps)
        num_frames = min(steps + 1, MOST_FRAMES)
        settings = {"num_frames": num_frames, "num_inference_steps": steps, "output_type": "np"}
        generators = self._generators(seed)
        if self.unet.config.get("class_frequencies") and not classes.labels:  # the label that `sample` draws
            classes = replace(classes, labels=tuple(draw_labels(self.unet.config, 1, generators)))
        output = pipeline(generator=generators, **settings, **classes.options(range(1)))
        x_t, x_0 = (
            [pipeline.numpy_to_pil(self.form.bands_to_show(frame))[0] for frame in frames]
            for frames in (output.x_t, output.x_0)
        )
        return list(zip(x_t, x_0))

    def interpolate(
        self,
        one: Image.Image,
        another: Image.Image,
        num_frames: int,
        timestep: int,
        seed: float | None,
        steps: int,
        classes: Classes = NO_CLASS,
        track: Track = tqdm,
    ) -> list[Image.Image]:
        """Return frames from one picture to another, both of any size; see [`DDPMInterpolationPipeline`]."""
        pipeline = self._pipeline(DDPMInterpolationPipeline, "ddpm", track, steps)
        (generator,) = self._generators(seed)
        pictures = [self.fit(picture)[0] for picture in (one, another)]
        options = {"generator": generator, "num_inference_steps": steps, **classes.options(range(num_frames))}
        return pipeline(*pictures, num_frames=num_frames, timestep=timestep, **options).images

    def inpaint(
        self,
        picture: Image.Image,
        mask: Image.Image,
        num_images: int,
        num_resamples: int,
        seed: float | None,
        steps: int,
        classes: Classes = NO_CLASS,
        track: Track = tqdm,
    ) -> list[Image.Image]:
        """Return the picture with new pixels where the mask is white; see [`DDPMInpaintingPipeline`].

        The picture and the mask may have any size.

        Raises:
            ValueError: If no pixel of the mask is white at the model's resolution.
        """
        picture, mask = self.fit(picture)[0], ImageOps.fit(mask, self.size, Image.Resampling.BOX)
        if np.asarray(mask).max() < 128:
            raise ValueError("Nothing is to be painted: draw over a part of the picture first, with a broad brush.")
        pipeline = self._pipeline(DDPMInpaintingPipeline, "ddpm", track, steps)
        generators = self._generators(seed, num_images)
        options = {"generator": generators, "num_inference_steps": steps, **classes.options(range(num_images))}
        return pipeline(picture, mask, num_images, num_resamples=num_resamples, **options).images

    def fit(self, picture: Image.Image) -> tuple[Image.Image, str]:
        """Return a picture in the model's size and mode, and a sentence on what it lost, if anything.

        A picture that [`enlarge`] made gets its old pixels back.
        """
        width, height = self.size
        whole = to_eight_bits(picture, "RGB")
        fitted = ImageOps.fit(whole, self.size, Image.Resampling.BOX)
        cut = round(whole.width * height / whole.height) != width
        notes = []
        if cut:
            notes.append("cut to its centre")
        if cut or fitted.resize(whole.size, Image.Resampling.NEAREST) != whole:
            notes.append(f"resized from {whole.width} x {whole.height} to {width} x {height} pixels")
        if picture.has_transparency_data and np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
            notes.append("put on white where it is transparent")
        colours = np.array(fitted)  # (H, W, 3)
        if self.channels == 1 and (colours != colours[..., :1]).any():
            notes.append("turned to greyscale, as the model is")
        return fitted.convert("L" if self.channels == 1 else "RGB"), f"It was {', '.join(notes)}." if notes else ""

    def _pipeline(self, kind: type[DiffusionPipeline], scheduler: str, track: Track, steps: int) -> DiffusionPipeline:
        if self.is_student:  # it has learned the timesteps of its own scheduler
            chosen = copy.deepcopy(self._own_scheduler)
        else:
            chosen = make_scheduler(scheduler, self._settings, steps)
        pipeline = kind(unet=self.unet, scheduler=chosen)
        pipeline.progress_bar = track
        return pipeline

    def _fits(self, scheduler: str) -> bool:
        try:
            make_scheduler(scheduler, self._settings, SCHEDULERS[scheduler].steps)
        except ValueError:
            return False
        return True

    def _generators(self, seed: float | None, num_images: int = 1) -> list[torch.Generator]:
        """Return the sources of noise of a seed, as a person typed it."""
        if seed is None or not float(seed).is_integer():
            raise ValueError(f"The seed is {'empty' if seed is None else seed}; expected a whole number.")
        return generators_of(self.unet.device, int(seed), range(num_images))


def enlarge(picture: Image.Image) -> Image.Image:
    """Return a picture with each pixel as a square of pixels, if it is small."""
    factor = max(1, LARGE // max(picture.size))
    return picture.resize([factor * side for side in picture.size], Image.Resampling.NEAREST)
