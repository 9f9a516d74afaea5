"""Open the images of a run, decoded ones from the cache or a stream: those to train on, and those held out."""

import datasets
from accelerate import Accelerator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import ImageRow, ShuffledImages
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.held_out import part_images
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import choose_white


def open_images(
    dataset: datasets.Dataset | datasets.IterableDataset,
    mode: str,
    config: TrainingConfig,
    accelerator: Accelerator,
    stream: dict | None,
    split: datasets.Dataset | None = None,
    held_out: int = 0,
) -> ImageRow:
    """Open the images of a data set as an endless row.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): From [`~ddpm_hf.images.sources.load_dataset`].
        mode (`str`): "L" or "RGB".
        config ([`TrainingConfig`]): The options of the group "Data", and the seed.
        accelerator ([`~accelerate.Accelerator`]): Its main process decodes images, and the others wait for the cache.
        stream (`dict`, *optional*): The state that a stream goes on from.
        split (`datasets.Dataset`, *optional*): The images that are held out, if they are a split of their own.
        held_out (`int`): How many are held out; without a split, of the data set.

    Raises:
        ValueError: If an image is smaller than the resolution, or too many cannot be read.
        OSError: If the cache cannot be written.
    """
    if config.streaming:
        return StreamedImages(dataset, mode, config, stream)
    with accelerator.main_process_first():
        white = choose_white(dataset)
        images = load_images(dataset, mode, config, white)
        others = None if split is None else load_images(split, mode, config, white)
    if split is None and held_out:
        trained_on, apart = part_images(images, held_out, config.seed, images.fingerprint)
        return ShuffledImages(trained_on, config.seed, trained_on.labels, apart)
    return ShuffledImages(images, config.seed, images.labels, others)
