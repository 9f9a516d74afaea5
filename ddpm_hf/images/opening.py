"""Open the images of a run, decoded ones from the cache or a stream: those to train on, and those held out."""

from collections.abc import Callable
from dataclasses import dataclass

import datasets
from accelerate import Accelerator

from ddpm_hf.config import TrainingConfig
from ddpm_hf.images.batches import ImageRow, ShuffledImages
from ddpm_hf.images.cache import load_images
from ddpm_hf.images.held_out import load_split, part_images
from ddpm_hf.images.sharing import Sharing
from ddpm_hf.images.small import sort_out_small
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.streaming import StreamedImages
from ddpm_hf.images.survey import choose_format, choose_white
from ddpm_hf.pixel_format import BANDS, PixelFormat


@dataclass
class FoundImages:
    """The images that the options of a run name, undecoded.

    Args:
        dataset (`datasets.Dataset` or `datasets.IterableDataset`): Those to train on, or of which a part is held out.
        split (`datasets.Dataset`, *optional*): Those that are held out, if they are a split of their own.
        small (`list[dict]`): Those that are smaller than the resolution, as
            [`~ddpm_hf.images.small.sort_out_small`] returns them.
        form ([`~ddpm_hf.pixel_format.PixelFormat`]): Their pixels.
        count (`int`, *optional*): How many there are; None for a stream.
        count_of_split (`int`, *optional*): How many the split holds, if there is one.
    """

    dataset: datasets.Dataset | datasets.IterableDataset
    split: datasets.Dataset | None
    small: list[dict]
    form: PixelFormat
    count: int | None
    count_of_split: int | None


def find_images(
    config: TrainingConfig,
    fit_resolution: Callable[[TrainingConfig, datasets.Dataset | datasets.IterableDataset], None],
) -> FoundImages:
    """Find the images that the options name, and look at them before any is decoded.

    Args:
        config ([`TrainingConfig`]): The options.
        fit_resolution (callable): It is called with the options and the data set, and may choose the resolution.

    Raises:
        ValueError: If there are no such images, or they do not fit the options.
        OSError: If the cache cannot be written.
    """
    dataset = load_dataset(config, hint=True)
    fit_resolution(config, dataset)
    dataset, small = sort_out_small(dataset, config)
    form = choose_format(dataset, config)
    split = load_split(dataset, form, config)
    if split is not None:
        split, others = sort_out_small(split, config)
        small = [*small, *others]
    count = None if config.streaming else len(dataset)
    return FoundImages(dataset, split, small, form, count, None if split is None else len(split))


def open_images(
    found: FoundImages, config: TrainingConfig, accelerator: Accelerator, saved: dict | None, held_out: int = 0
) -> ImageRow:
    """Open images as an endless row.

    Args:
        found ([`FoundImages`]): From [`find_images`].
        config ([`TrainingConfig`]): The options of the group "Data", and the seed.
        accelerator ([`~accelerate.Accelerator`]): Its main process decodes images, and the others wait for the cache.
        saved (`dict`, *optional*): The state of the checkpoint that the run goes on from.
        held_out (`int`): How many are held out; without a split, of the data set.

    Raises:
        ValueError: If an image is smaller than the resolution, images leave the range, or too many cannot be read.
        OSError: If the cache cannot be written.
    """
    if config.streaming:
        sharing = Sharing.of_run(accelerator, config.train_batch_size, saved["micro_batches"] if saved else 0)
        return StreamedImages(found.dataset, found.form, config, saved and saved["stream"], sharing)
    with accelerator.main_process_first():
        white = None if found.form.mode == BANDS else choose_white(found.dataset)
        images = load_images(found.dataset, found.form, config, white)
        others = None if found.split is None else load_images(found.split, found.form, config, white)
    if found.split is None and held_out:
        trained_on, apart = part_images(images, held_out, config.seed, images.fingerprint)
        return ShuffledImages(trained_on, config.seed, trained_on.labels, apart)
    return ShuffledImages(images, config.seed, images.labels, others)
