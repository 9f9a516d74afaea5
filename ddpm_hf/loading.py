"""Load a DDPM of any origin into this package's classes."""

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_type_hints

from diffusers import DDPMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import snapshot_download

from ddpm_hf.convert import config_from_annotated, config_from_unet2d, from_annotated, from_unet2d
from ddpm_hf.files import read_json
from ddpm_hf.forms import Form, misfit
from ddpm_hf.pipeline_ddpm_custom import DISTILLED, DDPMPipelineCustom
from ddpm_hf.places import check_model
from ddpm_hf.run_files import CHECKPOINTS, INDEX, list_checkpoints
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.unet_ddpm import DDPMUNetModel, check_config
from ddpm_hf.weights import check_finite, check_keys, read_state_dict

# What the file of a scheduler holds: the arguments of ours, which are stock's too. The scheduler itself checks the
# numbers in `trained_betas`. `variance_type` may be null in the file of another scheduler.
SCHEDULER_FORM = {
    "_class_name": str,
    **get_type_hints(DDPMLinearScheduler.__init__),
    **{"trained_betas": list | None, "variance_type": str | None},
}
# The tutorial's scheduler: it neither clips nor takes the smaller variance.
OF_ANNOTATED: dict[str, Any] = {"variance_type": "fixed_large", "clip_sample": False}
ADVICE = "Take the file from where the model came from, or save the pipeline again."


def load_pipeline(source: str | Path, sample_size: int | tuple[int, int] = 32, **hub_options) -> DDPMPipelineCustom:
    """Load a DDPM of any origin into this package's classes.

    Args:
        source (`str` or `Path`): The folder or the Hub id, `owner/name`, of a pipeline of a `UNet2DModel` or a
            [`DDPMUNetModel`] and a scheduler; or a file, `.safetensors` or `.pt`, with the state dict of the annotated
            tutorial's `UNet`.
        sample_size (`int` or `tuple[int, int]`): Height and width of the images, in pixels, for a file of weights.
        hub_options: For a Hub id: `revision`, `token`, `cache_dir`, `force_download` or `local_files_only`.

    Returns:
        [`DDPMPipelineCustom`]: A pipeline of a [`DDPMUNetModel`] and a scheduler. A [`DDPMLinearScheduler`] replaces a
        `DDPMScheduler`; other schedulers are kept.

    Raises:
        ValueError: If there is no such source or it is no DDPM, if a file is broken, or if weights are missing, unknown
            or not finite.
        OSError: If the source cannot be read.
    """
    if Path(source).is_file():
        check_model(str(source), hub_options.get("revision"))
        unet = from_annotated(read_state_dict(source), sample_size)
        check_finite(unet, str(source))
        return DDPMPipelineCustom(unet, DDPMLinearScheduler(**OF_ANNOTATED))

    parts = _open(source, hub_options, DDPMPipelineCustom.download)
    _check_unet_config(parts.unet_file, parts.unet)
    is_ours = parts.scheduler in ("DDPMScheduler", "DDPMLinearScheduler")
    given = {"scheduler": _read_scheduler(parts.scheduler_file)} if is_ours else {}
    if not is_ours:
        _read_config(parts.scheduler_file, SCHEDULER_FORM)
    unet = _load_unet(parts, str(source))
    try:
        return DDPMPipelineCustom.from_pretrained(parts.folder, unet=unet.eval(), **given)
    except NotImplementedError as error:  # diffusers raises it for an unknown `beta_schedule`
        raise ValueError(f"{parts.scheduler_file} cannot be used: {error}. {ADVICE}") from error


def load_unet(source: str | Path, **hub_options) -> DDPMUNetModel:
    """Load the network of a DDPM of any origin; [`load_pipeline`] says which, and what it raises."""
    if Path(source).is_file():
        unet = from_annotated(read_state_dict(source))
        check_finite(unet, str(source))
        return unet
    parts = _open(source, hub_options, DDPMPipelineCustom.download)
    _check_unet_config(parts.unet_file, parts.unet)
    return _load_unet(parts, str(source))


def load_settings(source: str | Path, **hub_options) -> tuple[dict[str, Any], dict[str, Any], str]:
    """Load what a DDPM of any origin says about itself, without its weights.

    Args:
        source (`str` or `Path`), hub_options: See [`load_pipeline`].

    Returns:
        `tuple`: All arguments of the [`DDPMUNetModel`]; those of the [`DDPMLinearScheduler`] with the betas and the
        prediction type of the saved scheduler; and the class of that scheduler.

    Raises:
        ValueError: If there is no such source or it is no DDPM, or if a file is broken.
        OSError: If the source cannot be read.
    """
    if Path(source).is_file():
        unet = config_from_annotated(read_state_dict(source)) | {"sample_size": None}
        scheduler, kind = DDPMLinearScheduler(**OF_ANNOTATED), "DDPMLinearScheduler"
    else:
        parts = _open(source, hub_options, _download_settings, hint=" It holds checkpoints of a run, but no model yet.")
        unet, kind = _check_unet_config(parts.unet_file, parts.unet), parts.scheduler
        if parts.distilled:
            raise ValueError("it is a student of few steps, and knows no other timesteps; take its teacher.")
        if kind not in (*DDPMLinearScheduler._compatibles, "DDPMLinearScheduler") or kind.startswith("EDM"):
            raise ValueError(f"{parts.scheduler_file} is of a {kind}, which does not add noise as a DDPM does.")
        scheduler = _read_scheduler(parts.scheduler_file)
    unet = {key: unet[key] for key in inspect.signature(DDPMUNetModel).parameters if key in unet}
    keys = inspect.signature(DDPMLinearScheduler).parameters
    return unet, {key: scheduler.config[key] for key in keys}, kind


# ---- Find the files --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Parts:
    """The files of a pipeline, and the classes of its parts."""

    folder: Path
    unet_file: Path
    scheduler_file: Path
    unet: str
    scheduler: str
    distilled: dict | None


def _open(
    source: str | Path,
    hub_options: dict,
    download: Callable[..., str],
    hint: str = " It holds checkpoints of a run: add --checkpoint latest.",
) -> _Parts:
    """Find the files of a pipeline, in a folder or on the Hub.

    Args:
        source (`str` or `Path`), hub_options (`dict`): See [`load_pipeline`].
        download (callable): It fetches what is needed of a Hub id, and returns the folder.
        hint (`str`): What to say about a folder that holds checkpoints and no pipeline.

    Raises:
        ValueError: If there is no such source, or its parts are not those of a DDPM.
    """
    folder = Path(source)
    if folder.is_dir():
        check_model(str(source), hub_options.get("revision"))
        _check_index(folder, hint)
    else:
        if not hub_options.get("local_files_only"):
            check_model(str(source), *(hub_options.get(key) for key in ("revision", "token", "cache_dir")))
    index = DDPMPipelineCustom.load_config(source, **hub_options)
    parts = {key: entry[1] for key, entry in index.items() if isinstance(entry, list)}
    if parts.keys() != {"unet", "scheduler"} or parts["unet"] not in ("UNet2DModel", "DDPMUNetModel"):
        found = ", ".join(f"{name} ({kind})" for name, kind in parts.items())
        raise ValueError(
            f"{source} is a {index['_class_name']} of {found}; expected a DDPM pipeline, of a unet (UNet2DModel or "
            "DDPMUNetModel) and a scheduler, and of nothing else."
        )
    if not folder.is_dir():
        folder = Path(download(str(source), **hub_options))
    # The oldest repositories have the files of both parts at their root.
    unet_folder, scheduler_folder = (
        folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler")
    )
    files = (unet_folder / UNet2DModel.config_name, scheduler_folder / DDPMScheduler.config_name)
    return _Parts(folder, *files, parts["unet"], parts["scheduler"], index.get(DISTILLED))


def _download_settings(source: str, **hub_options) -> str:
    return snapshot_download(source, allow_patterns=["*.json"], **hub_options)


def _check_index(folder: Path, hint: str):
    """Raise a ValueError for a folder that holds no pipeline."""
    if not (folder / INDEX).exists():
        hint = hint if list_checkpoints(folder / CHECKPOINTS) else ""
        raise ValueError(f"{folder} holds no {INDEX}, so it is not the folder of a pipeline.{hint}")
    read_json(folder / INDEX, {"_class_name": str | list}, ADVICE)


def _read_config(path: Path, form: Form) -> dict:
    """Read the configuration of a U-Net or scheduler, and check the types of the keys that it has."""
    config = read_json(path, {}, ADVICE)
    if problem := misfit(config, {key: kind for key, kind in form.items() if key in config}):
        raise ValueError(f"{path} is broken: {problem}. {ADVICE}")
    return config


def _check_unet_config(path: Path, kind: str) -> dict[str, Any]:
    """Return the arguments of the [`DDPMUNetModel`] that a file describes, all of them.

    Raises:
        ValueError: If no network can be made of them; the message names the file.
    """
    config = _read_config(path, {"_class_name": str})
    try:
        if kind == "UNet2DModel":
            config = config_from_unet2d(config)
        defaults = {key: p.default for key, p in inspect.signature(DDPMUNetModel).parameters.items()}
        config = {key: config.get(key, default) for key, default in defaults.items()}
        check_config(FrozenDict(config))
        return config
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error} {ADVICE}") from error


def _read_scheduler(path: Path) -> DDPMLinearScheduler:
    """Return the scheduler that replaces the saved one.

    Raises:
        ValueError: If no scheduler can be made from the file, which the message names.
    """
    config = _read_config(path, SCHEDULER_FORM)
    try:
        scheduler = DDPMLinearScheduler.from_config(config)
        if not ((scheduler.betas >= 0) & (scheduler.betas <= 1)).all():
            raise ValueError("its betas are not all in [0, 1].")
        if not scheduler.config.clip_sample_range > 0:
            raise ValueError(f"`clip_sample_range` is {scheduler.config.clip_sample_range}; expected more than 0.")
        return scheduler
    except (ValueError, RuntimeError) as error:  # RuntimeError: a number is too large for a tensor
        raise ValueError(f"{path} cannot be used: {error} {ADVICE}") from error


def _load_unet(parts: _Parts, source: str) -> DDPMUNetModel:
    """Load the network of a pipeline, with each weight, and finite ones."""
    if parts.unet == "UNet2DModel":
        unet = from_unet2d(_load_every_weight(UNet2DModel, parts.unet_file.parent))
    else:
        unet = _load_every_weight(DDPMUNetModel, parts.unet_file.parent)
    check_finite(unet, source)
    return unet


def _load_every_weight(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    """Load a network, and raise a ValueError where diffusers would leave some weights at random."""
    for index in folder.glob("*.index.json"):  # of weights in several files
        read_json(index, {"weight_map": dict, "metadata": dict}, ADVICE)
    unet, info = kind.from_pretrained(
        folder, low_cpu_mem_usage=False, ignore_mismatched_sizes=True, output_loading_info=True
    )
    misshapen = info["mismatched_keys"]
    check_keys(f"{folder}, taken for a {kind.__name__},", info["missing_keys"], info["unexpected_keys"], misshapen)
    return unet
