"""Geometric augmentation that does not leak into the samples (Karras et al. 2022, arXiv 2206.00364, appendix F.2).

A training image is mirrored, scaled, turned, stretched and moved at random. Nine labels tell the network how (table 6
there). At sampling the labels are zero, which stands for an image that nothing was done to.
"""

import math

import torch
import torch.nn.functional as F

from ddpm_hf.pixel_format import moved

NUM_LABELS = 9
SCALE, STRETCH, SHIFT = 2**0.2, 2**0.2, 1 / 8  # A_scale, A_aniso and A_trans of the table


def draw_labels(count: int, probability: float, generator: torch.Generator) -> torch.Tensor:
    """Draw how images are transformed. The labels of an image tell its whole transformation.

    | label | transformation | random number |
    | --- | --- | --- |
    | a0 | mirror left to right, if 1 | a0 is 0 or 1 |
    | a1 | mirror top to bottom, if 1 | a1 is 0 or 1 |
    | a2 | scale by `2 ** (0.2 a2)` | a2 ~ N(0, 1) |
    | cos a3 - 1, sin a3 | turn clockwise by the angle a3 | a3 is uniform |
    | a5 cos a4, a5 sin a4 | stretch by `2 ** (0.2 a5)` along angle a4, shrink across | a5 ~ N(0, 1), a4 is uniform |
    | a6, a7 | move by a6 / 8 of the width and a7 / 8 of the height | a6, a7 ~ N(0, 1) |

    Each row is applied with the given probability, independent of the others. The first row is applied to all images,
    as in the paper, so every second image is mirrored left to right. Of a5 the absolute value is taken. That gives the
    same images, since a negative a5 stretches across a4. Without it, two transformations could share their labels.

    Args:
        count (`int`): The number of images.
        probability (`float`): In [0, 1]. If it is 0, the first row is not applied either.
        generator (`torch.Generator`): The source of all random numbers, on the CPU.

    Returns:
        `torch.Tensor`: `(count, 9)` float64, on the CPU. Labels of what is not applied are zero.
    """
    applied = torch.rand(count, 6, generator=generator) < probability  # rows of the table
    applied[:, 0] = probability > 0
    mirror = torch.randint(2, (count, 2), generator=generator).double()
    turn, axis = (2 * math.pi * torch.rand(count, 2, generator=generator, dtype=torch.float64)).unbind(dim=1)
    normal = torch.randn(count, 4, generator=generator, dtype=torch.float64)
    scale, stretch, shift = normal[:, :1], normal[:, 1].abs(), normal[:, 2:]
    turned = torch.stack((turn.cos() - 1, turn.sin()), dim=1)
    stretched = torch.stack((stretch * axis.cos(), stretch * axis.sin()), dim=1)
    labels = torch.cat((mirror, scale, turned, stretched, shift), dim=1)
    return torch.where(applied[:, [0, 1, 2, 3, 3, 4, 4, 5, 5]], labels, 0.0)


def transform(x_0: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Transform images as their labels say.

    Mirroring is exact. Everything else is one affine map, applied by [`resample`] to the images that need it.

    Args:
        x_0 (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1], on any device.
        labels (`torch.Tensor`, `(batch, 9)`): See [`draw_labels`].

    Returns:
        `torch.Tensor`: Like x_0. An image whose labels are zero keeps its bits.
    """
    mirrored = moved(labels[:, :2, None, None, None] > 0, x_0.device)
    x_0 = torch.where(mirrored[:, 0], x_0.flip(-1), x_0)
    x_0 = torch.where(mirrored[:, 1], x_0.flip(-2), x_0)
    mapped = labels[:, 2:].any(dim=1).nonzero()[:, 0]
    if len(mapped):
        where = moved(mapped, x_0.device)
        # PyTorch has no bicubic sampling on Apple GPUs.
        device = torch.device("cpu") if x_0.device.type == "mps" else x_0.device
        x_0[where] = resample(x_0[where].to(device), *affine_map(labels[mapped], *x_0.shape[2:])).to(x_0.device)
    return x_0


def affine_map(labels: torch.Tensor, height: int, width: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the map from points of the transformed images to points of the originals, without the mirroring.

    Points are (x, y) in pixels from the centre, with y downwards. An image is scaled first, then turned, stretched and
    moved.

    Returns:
        `tuple`: The matrix `(batch, 2, 2)` and the shift `(batch, 2)` of `original = matrix @ transformed + shift`.
    """
    a2, cos_a3, sin_a3, a5_cos_a4, a5_sin_a4, a6, a7 = labels[:, 2:].double().unbind(1)
    cos_a3 = cos_a3 + 1
    a4, a5 = torch.atan2(a5_sin_a4, a5_cos_a4), torch.hypot(a5_cos_a4, a5_sin_a4)
    turn, axes = _rotation(cos_a3, sin_a3), _rotation(a4.cos(), a4.sin())
    stretch = axes @ torch.diag_embed(torch.stack((STRETCH**a5, STRETCH**-a5), dim=1)) @ axes.mT
    matrix = (stretch @ turn * SCALE ** a2[:, None, None]).inverse()
    shift = SHIFT * torch.stack((a6 * width, a7 * height), dim=1)
    return matrix, -(matrix @ shift[:, :, None])[:, :, 0]


def _rotation(cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    return torch.stack((cos, -sin, sin, cos), dim=1).view(-1, 2, 2)


def resample(images: torch.Tensor, matrix: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Read images at the points that an affine map gives, by bicubic interpolation.

    Outside of an image lies its reflection. Where an image shrinks, fine detail would turn into false patterns. Each
    pixel is then the mean of four samples, spread over the ellipse of the original that the pixel covers. Images that
    are moved by whole pixels or turned by right angles stay sharp. Karras et al. differ: they work at twice the
    resolution, between two wavelet filters, which blur every image a little.

    Args:
        images (`torch.Tensor`, `(batch, channels, height, width)`): Images in [-1, 1].
        matrix, shift (`torch.Tensor`): See [`affine_map`].

    Returns:
        `torch.Tensor`: Like the images. Bicubic interpolation can leave [-1, 1]; such values are clamped.
    """
    # In grid_sample's units, an image reaches from -1 to 1.
    half = torch.tensor((images.shape[3] / 2, images.shape[2] / 2), dtype=torch.float64)
    # A box of s pixels has the variance s^2 / 12. Interpolation has that of one pixel, and the samples add the rest.
    axes, lengths, _ = torch.linalg.svd(matrix)
    spread = axes * ((lengths**2 - 1).clamp(min=0) / 12).sqrt()[:, None]  # (batch, 2, axis)
    samples = []
    for signs in ((1, 1), (1, -1), (-1, 1), (-1, -1)):
        start = shift + spread @ torch.tensor(signs, dtype=torch.float64)
        theta = torch.cat((matrix * half / half[:, None], (start / half)[:, :, None]), dim=2)  # (batch, 2, 3)
        grid = F.affine_grid(moved(theta.to(images.dtype), images.device), list(images.shape), align_corners=False)
        samples.append(F.grid_sample(images, grid, mode="bicubic", padding_mode="reflection", align_corners=False))
    return torch.stack(samples).mean(dim=0).clamp(-1, 1)
