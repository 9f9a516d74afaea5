"""Open the images that a run is trained on: decoded ones from the cache, or a stream."""

from collections.abc import Callable

import datasets
from accelerate import Accelerator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import ImageRow, ShuffledImages
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.small import sort_out_small
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import choose_format
from ddpm_hf.pixel_format import PixelFormat


def find_images(
    config: TrainingConfig,
    fit_resolution: Callable[[TrainingConfig, datasets.Dataset | datasets.IterableDataset], None],
) -> tuple[datasets.Dataset | datasets.IterableDataset, list[dict], PixelFormat]:
    """Find the images that the options name, and look at them before any is decoded.

    Args:
        config ([`TrainingConfig`]): The options.
        fit_resolution (callable): It is called with the options and the data set, and may choose the resolution.

    Returns:
        `tuple`: The data set; the images that are smaller than the resolution, as
            [`~ddpm_hf.images.small.sort_out_small`] returns them; and what the pixels are.

    Raises:
        ValueError: If there are no such images, or they do not fit the options.
        OSError: If the cache cannot be written.
    """
    dataset = load_dataset(config)
    fit_resolution(config, dataset)
    dataset, small = sort_out_small(dataset, config)
    return dataset, small, choose_format(dataset, config)


def open_images(
    dataset: datasets.Dataset | datasets.IterableDataset,
    form: PixelFormat,
    config: TrainingConfig,
    accelerator: Accelerator,
    stream: dict | None,
) -> ImageRow:
    """Open the images of a data set as an endless row.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): From [`~ddpm_hf.images.sources.load_dataset`].
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): The pixels.
        config ([`TrainingConfig`]): The options of the group "Data", and the seed.
        accelerator ([`~accelerate.Accelerator`]): Its main process decodes images, and the others wait for the cache.
        stream (`dict`, *optional*): The state that a stream goes on from.

    Raises:
        ValueError: If an image is smaller than the resolution, or too many cannot be read.
        OSError: If the cache cannot be written.
    """
    if config.streaming:
        return StreamedImages(dataset, form, config, stream)
    with accelerator.main_process_first():
        images = load_images(dataset, form, config)
    return ShuffledImages(images, config.seed, images.labels)
