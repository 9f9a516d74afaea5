"""What the pixels of a model's pictures are: their channels, type and range, and how a person can see them.

A model of 8-bit pictures, grey or RGB, needs no description. The U-Net's configuration describes all others with the
key `pixel_format`, so that the pipeline gives samples back in the form of the training data.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

PICTURE_MODES = ("L", "LA", "RGB", "RGBA")  # of Pillow, with 8 bits a channel
BANDS = "bands"  # the mode of all other data
KEY = "pixel_format"  # in the configuration of a U-Net


def moved(data: np.ndarray | torch.Tensor, device: torch.device) -> torch.Tensor:
    """Return an array or a tensor of the host on a device. A CUDA device copies it while the host goes on."""
    tensor = torch.as_tensor(data)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)


@dataclass(frozen=True)
class PixelFormat:
    """The pixels of training data and samples.

    Args:
        mode (`str`): One of `PICTURE_MODES`, or "bands" for channels of any number and meaning.
        channels (`int`): How many there are.
        dtype (`str`): The type of the numbers, in the data and in samples: uint8, uint16, int16 or float32.
        low, high (`float`): Their range. The network sees it as [-1, 1].
        stored (`str`): Their type in the cache: `dtype`, or uint8, where 0 stands for `low` and 255 for `high`.
        suffix (`str`): Of a file with a sample: .png, .tif or .npy.
    """

    mode: str
    channels: int
    dtype: str = "uint8"
    low: float = 0
    high: float = 255
    stored: str = "uint8"
    suffix: str = ".png"

    @classmethod
    def of_mode(cls, mode: "str | PixelFormat") -> "PixelFormat":
        """Return the format of 8-bit pictures of a mode of Pillow. A format stays as it is."""
        return mode if isinstance(mode, PixelFormat) else cls(mode, len(mode))

    @classmethod
    def of_model(cls, unet_config: Mapping[str, Any]) -> "PixelFormat":
        """Return the format of the samples of a network with this configuration."""
        channels, about = unet_config["in_channels"], unet_config.get(KEY)
        if about is None:
            return cls("L" if channels == 1 else "RGB", channels)
        return cls(channels=channels, **about)

    def settings(self) -> dict:
        """Return what the pixels add to the configuration of a U-Net; nothing for 8-bit pictures, grey or RGB."""
        if self in (PixelFormat("L", 1), PixelFormat("RGB", 3)):
            return {}
        return {KEY: {name: value for name, value in asdict(self).items() if name != "channels"}}

    @property
    def levels(self) -> tuple[float, float]:
        """The numbers in the cache that stand for `low` and `high`."""
        return (self.low, self.high) if self.stored == self.dtype else (0, 255)

    @property
    def has_256_levels(self) -> bool:
        """Whether the network is trained on the numbers 0 to 255, as the likelihood of a picture assumes."""
        return self.stored == "uint8" and self.levels == (0, 255)

    @property
    def is_picture(self) -> bool:
        """Whether samples are pictures of Pillow with 8 bits a channel, to be looked at as they are."""
        return self.mode in PICTURE_MODES and self.dtype == "uint8" and (self.low, self.high) == (0, 255)

    def to_x_0(self, pixels: np.ndarray, device: torch.device) -> torch.Tensor:
        """Return x_0 `(B, C, H, W)`, float32 in [-1, 1], of pixels `(B, H, W, C)` as the cache holds them."""
        if self.has_256_levels:
            return moved(pixels, device).permute(0, 3, 1, 2).float() / 127.5 - 1
        low, high = self.levels
        scaled = (pixels.astype(np.float64) - low) * (2 / (high - low)) - 1  # float64: 16 bits come back exactly
        return moved(scaled.astype(np.float32), device).permute(0, 3, 1, 2)

    def describe(self) -> str:
        """Name the channels, the type and the range."""
        bands = f"{self.channels} band{'' if self.channels == 1 else 's'}"
        kind = self.mode if self.mode != BANDS else bands
        return f"{kind} of {self.dtype} from {number(self.low)} to {number(self.high)}"

    # ---- For the eye -----------------------------------------------------------------------------------------------

    def caption(self) -> str:
        """Say what a picture of a sample shows; nothing if that is the sample itself."""
        if self.is_picture:
            return ""
        bands = f"bands 1 to 3 of {self.channels}: " if self.channels > 3 else ""
        bands = "band 1 of 2: " if self.channels == 2 else bands
        return f"{bands}black is {number(self.low)}, white {number(self.high)}"

    def bands_to_show(self, pixels: np.ndarray) -> np.ndarray:
        """Return the channels to look at, of `(..., C)`: the first three or the first; all of those of a picture."""
        return pixels if self.is_picture else pixels[..., : 3 if self.channels >= 3 else 1]

    def eight_bits(self, pixels: np.ndarray, levels: tuple[float, float]) -> np.ndarray:
        """Return what can be seen of pixels `(H, W, C)`, as `(H, W, 1)` or `(H, W, 3)` uint8.

        Transparent pixels are put on white. Of other data these are the first three bands, or the first one.

        Args:
            pixels (`numpy.ndarray`): The pixels.
            levels (`tuple[float, float]`): The numbers that become 0 and 255.
        """
        low, high = levels
        scaled = (self.bands_to_show(pixels).astype(np.float64) - low) * (255 / (high - low))
        seen = scaled.round().clip(0, 255).astype(np.uint8)
        if seen.shape[-1] in (2, 4):
            picture = Image.fromarray(seen).convert("RGBA")
            whole = Image.alpha_composite(Image.new("RGBA", picture.size, "white"), picture)
            seen = np.asarray(whole.convert("L" if self.channels == 2 else "RGB"))
        return seen.reshape(*pixels.shape[:2], -1)

    def picture_of(self, sample: Image.Image | np.ndarray) -> Image.Image:
        """Return a picture of a sample, as the pipeline gives it, for the eye."""
        if isinstance(sample, Image.Image) and self.is_picture:
            return sample
        pixels = np.asarray(sample)
        seen = self.eight_bits(pixels.reshape(*pixels.shape[:2], -1), (self.low, self.high))
        return Image.fromarray(seen[..., 0] if seen.shape[2] == 1 else seen)

    def captioned(self, picture: Image.Image) -> Image.Image:
        """Return a picture of samples with the [`caption`] below it; the same picture if there is none."""
        if not (text := self.caption()):
            return picture
        font = ImageFont.load_default()
        left, top, right, bottom = font.getbbox(text)
        size = (max(picture.width, round(right - left) + 4), picture.height + round(bottom - top) + 6)
        canvas = Image.new(picture.mode, size, "white")
        canvas.paste(picture)
        ImageDraw.Draw(canvas).text((2 - left, picture.height + 3 - top), text, fill="black", font=font)
        return canvas


EIGHT_BITS = PixelFormat("RGB", 3)


def number(value: float) -> str:
    """Return a number as a message shows it: `-1000`, `0.5`."""
    return f"{value:.9g}"
