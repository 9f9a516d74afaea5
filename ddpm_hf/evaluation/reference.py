"""The images that samples are compared with."""

from pathlib import Path

from ddpm_hf.config import TrainingConfig, check_saved_options, options_for_evaluate
from ddpm_hf.files import read_json
from ddpm_hf.images.cache import ImageCache, load_images
from ddpm_hf.images.small import sort_out_small
from ddpm_hf.images.sources import load_dataset
from ddpm_hf.images.survey import choose_format
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.pixel_format import PixelFormat
from ddpm_hf.run_files import OPTIONS, is_run

_KINDS = {"L": "greyscale", "RGB": "colour"}


def run_options(folder: Path) -> dict:
    """Return the options of a training run about its images; none if the folder is not a run.

    The folder of the cache is left out. Only the caller may choose where the cache is written.

    Raises:
        ValueError: If the options are broken.
    """
    if not is_run(folder):
        return {}
    advice = "Move it away, and name the images with --dataset or --train_data_dir."
    options = read_json(folder / OPTIONS, {}, advice)
    check_saved_options(options, folder / OPTIONS, advice)
    about_images = {option.name for option in options_for_evaluate("source", "reading")}
    return {key: value for key, value in options.items() if key in about_images}


def open_reference(pipeline: DDPMPipelineCustom, run: dict, chosen: dict) -> tuple[ImageCache, dict]:
    """Return the reference set at the model's resolution, and the settings that it depends on.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model.
        run (`dict`): Options of the run, see [`run_options`].
        chosen (`dict`): Options of [`TrainingConfig`] that the user chose. If they name another data set, the split,
            the configuration and the columns of the run's data set do not apply.

    Raises:
        ValueError: If the images have other channels than the model, are too small, or cannot be read.
        OSError: If the cache cannot be written.
    """
    size, channels = pipeline.unet.config.sample_size, pipeline.unet.config.in_channels
    form = PixelFormat.of_model(pipeline.unet.config)
    if size is None or (channels not in (1, 3) and not form.settings()):
        raise ValueError(f"the model has the size {size} and {channels} channels; expected pixels, and 1 or 3.")
    resolution = size if isinstance(size, int) else "{}x{}".format(*size)
    is_other = any(chosen.get(key, run.get(key)) != run.get(key) for key in ("dataset_name", "train_data_dir"))
    reading = {option.name for option in options_for_evaluate("reading")}
    kept = {key: value for key, value in run.items() if not is_other or key in reading}
    config = TrainingConfig(**{**kept, **chosen, "resolution": resolution})
    dataset, _ = sort_out_small(load_dataset(config), config)
    # A model of other data says itself how they are read.
    found = form if form.settings() else choose_format(dataset, config)
    if found != form:
        holds, draws = (_KINDS.get(each.mode, each.describe()) for each in (found, form))
        raise ValueError(f"the reference set holds {holds} images, and the model draws {draws} ones.")
    record = {
        "dataset": config.train_data_dir or config.dataset_name or "mnist-mini",
        "dataset_config": config.dataset_config_name,
        "split": config.dataset_split,
        "preprocessing": {
            "resolution": config.resolution,
            "channels": channels,
            "image_fit": config.image_fit,
            "celeba_crop": config.celeba_crop,
            **({"pixels": form.describe()} if form.settings() else {}),
            **({"small_images": config.small_images} if config.small_images != "error" else {}),
        },
    }
    return load_images(dataset, form, config), record
