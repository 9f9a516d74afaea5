"""Models in and out of this package: diffusers' `UNet2DModel`, both ways, and the annotated tutorial's `UNet`.

The layouts hold the same numbers under other names, with two differences: here one matrix makes queries, keys and
values, and one matrix projects the time embedding for all residual blocks. Converting concatenates and splits, and
never computes, so a round trip is bit-equal.
"""

import inspect
import pickle
import re
import statistics
from collections.abc import Iterable
from pathlib import Path

import httpx2
import torch
from diffusers import DDPMPipeline, DDPMScheduler, ModelMixin, UNet2DModel
from diffusers.configuration_utils import FrozenDict
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm_hf.files import Form, misfit, read_json
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.run_files import CHECKPOINTS, INDEX, list_checkpoints
from ddpm_hf.scheduling_ddpm_linear import DDPMLinearScheduler
from ddpm_hf.tokens import one_line
from ddpm_hf.unet_ddpm import DDPMUNetModel, ResidualBlock, check_config

StateDict = dict[str, torch.Tensor]
PARAMETERS = ("weight", "bias")

# Keys of a UNet2DModel's configuration that DDPMUNetModel does not have, and the only value that it can stand for.
FIXED_KEYS = {
    "act_fn": "silu",
    "center_input_sample": False,
    "class_embed_type": None,
    "downsample_type": "conv",
    "mid_block_scale_factor": 1,
    "num_train_timesteps": None,
    "resnet_time_scale_shift": "default",
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
}

# Keys of a DDPMUNetModel's configuration that UNet2DModel does not have, and the only value that it can stand for.
PAPER_LINEAGE = {"narrow_up_blocks": False, "attention_norm": True, "norm_out_num_groups": None}

# What tells the annotated tutorial's U-Net from the paper's.
ANNOTATED_LINEAGE = {
    "norm_eps": 1e-5,
    "downsample_padding": 1,
    "upsample_type": "conv_transpose",
    "narrow_up_blocks": True,
    "attention_norm": False,
    "norm_out_num_groups": 8,
    "zero_init": False,
}

# What the files of a pipeline hold. Missing keys of a configuration stand for their defaults. Those of a U-Net are
# checked by the U-Net.
INDEX_FORM = {"_class_name": str | list}
UNET_FORM = {"_class_name": str}
SCHEDULER_FORM = {
    "_class_name": str,
    "num_train_timesteps": int,
    "beta_start": float,
    "beta_end": float,
    "beta_schedule": str,
    "trained_betas": list | None,
    "variance_type": str | None,
    "clip_sample": bool,
    "prediction_type": str,
    "thresholding": bool,
    "dynamic_thresholding_ratio": float,
    "clip_sample_range": float,
    "sample_max_value": float,
    "timestep_spacing": str,
    "steps_offset": int,
    "rescale_betas_zero_snr": bool,
}
ADVICE = "Take the file from where the model came from, or save the pipeline again."


def config_from_unet2d(config: dict) -> dict:
    """The configuration of the [`DDPMUNetModel`] that equals a `UNet2DModel`.

    Args:
        config (`dict`): The configuration of a `UNet2DModel`; missing keys are at their defaults.

    Returns:
        `dict`: The arguments of [`DDPMUNetModel`].

    Raises:
        ValueError: If the configuration has a part that [`DDPMUNetModel`] does not have; the message names it.
    """
    defaults = {key: p.default for key, p in inspect.signature(UNet2DModel).parameters.items()}
    config = {**defaults, **{key: value for key, value in config.items() if key in defaults}}
    for key, value in FIXED_KEYS.items():
        if config[key] != value:
            raise ValueError(f"The UNet2DModel has `{key}={config[key]!r}`; only {value!r} can be converted.")
        del config[key]
    return config


def from_unet2d(unet2d: UNet2DModel) -> DDPMUNetModel:
    """Convert diffusers' U-Net of Down, AttnDown, Up and AttnUp blocks.

    Args:
        unet2d ([`~diffusers.UNet2DModel`]): The network to convert; it is not changed.

    Returns:
        [`DDPMUNetModel`]: The same function of the same numbers.

    Raises:
        ValueError: If the configuration has a part that [`DDPMUNetModel`] does not have; the message names it.
    """
    unet = DDPMUNetModel(**config_from_unet2d(unet2d.config))
    theirs = unet2d.state_dict()

    ours = {}
    for key, value in theirs.items():
        if ".to_q." in key:
            value = torch.cat([theirs[key.replace(".to_q.", f".to_{part}.")] for part in "qkv"])
            key = key.replace(".to_q.", ".to_qkv.")
        key = key.replace(".downsamplers.0.", ".resample.").replace(".upsamplers.0.conv.", ".resample.")
        key = key.replace(".to_out.0.", ".to_out.")
        if not re.search(r"\.(to_k|to_v|time_emb_proj)\.", key):
            ours[key] = value
    for p in PARAMETERS:
        ours[f"time_projection.{p}"] = torch.cat([theirs[f"{name}.time_emb_proj.{p}"] for name in _resnets(unet)])
    unet.load_state_dict(ours)
    return unet


def to_unet2d(unet: DDPMUNetModel) -> UNet2DModel:
    """Convert to diffusers' U-Net: the inverse of [`from_unet2d`].

    Args:
        unet ([`DDPMUNetModel`]): The network to convert, of the paper lineage; it is not changed.

    Returns:
        [`~diffusers.UNet2DModel`]: The same function of the same numbers.

    Raises:
        ValueError: If the network has a part that diffusers' has not (the annotated lineage); the message names it.
    """
    only_ours = ("zero_init", "class_names")
    config = {key: value for key, value in unet.config.items() if not key.startswith("_") and key not in only_ours}
    for key, value in {**PAPER_LINEAGE, "upsample_type": "conv"}.items():
        if unet.config[key] != value:
            raise ValueError(
                f"UNet2DModel has no equal of `{key}={unet.config[key]!r}` (the annotated lineage); only {value!r} "
                "can be converted."
            )
    unet2d = UNet2DModel(**{key: value for key, value in config.items() if key not in PAPER_LINEAGE})
    ours = unet.state_dict()

    theirs = {}
    for key, value in ours.items():
        key = key.replace(".to_out.", ".to_out.0.")
        key = key.replace(".resample.", ".downsamplers.0." if key.startswith("down") else ".upsamplers.0.conv.")
        if ".to_qkv." in key:
            for part, rows in zip("qkv", value.chunk(3)):
                theirs[key.replace(".to_qkv.", f".to_{part}.")] = rows.clone()
        elif not key.startswith("time_projection."):
            theirs[key] = value
    for p in PARAMETERS:
        for name, rows in zip(_resnets(unet), ours[f"time_projection.{p}"].split(unet.time_widths)):
            theirs[f"{name}.time_emb_proj.{p}"] = rows.clone()
    unet2d.load_state_dict(theirs)
    return unet2d


def from_annotated(theirs: StateDict, sample_size: int | None = 32) -> DDPMUNetModel:
    """Convert the annotated tutorial's `UNet`.

    Args:
        theirs (`dict[str, torch.Tensor]`): Its state dict; the configuration is read off the names and shapes, but for
            the dropout and the sample size, which leave no trace in them.
        sample_size (`int`, *optional*): Height and width of the images, in pixels; the tutorial's are 32.

    Returns:
        [`DDPMUNetModel`]: The same function of the same numbers.

    Raises:
        ValueError: If keys are missing, extra or of another shape; the message names them.
    """
    unet = DDPMUNetModel(**_annotated_config(theirs), sample_size=sample_size, **ANNOTATED_LINEAGE)
    ours = unet.state_dict()
    for p in PARAMETERS:
        rows = ours.pop(f"time_projection.{p}").split(unet.time_widths)
        ours.update({f"{name}.time_emb.{p}": value for name, value in zip(_resnets(unet), rows)})
    names = {key: _annotated_name(key, unet.config.layers_per_block) for key in ours}

    missing = [name for name in names.values() if name not in theirs]
    extra = theirs.keys() - names.values()
    pairs = [(name, theirs[name].shape, ours[key].shape) for key, name in names.items() if name in theirs]
    widths = f"the annotated tutorial's UNet with widths {tuple(unet.config.block_out_channels)}"
    _check_keys(f"The state dict, taken for one of {widths},", missing, extra, [p for p in pairs if p[1] != p[2]])

    renamed = {key: theirs[name] for key, name in names.items()}
    for p in PARAMETERS:
        renamed[f"time_projection.{p}"] = torch.cat([renamed.pop(f"{name}.time_emb.{p}") for name in _resnets(unet)])
    unet.load_state_dict(renamed)
    return unet


def _annotated_config(theirs: StateDict) -> dict:
    """The arguments of [`DDPMUNetModel`] that the names and shapes of the tutorial's state dict tell."""
    if "image_proj.weight" not in theirs:
        raise ValueError(
            f"The state dict starts with {sorted(theirs)[:3]} and has no `image_proj.weight`, so it is not one of the "
            "annotated tutorial's UNet. Weights of a diffusers UNet2DModel are converted with the folder they are in."
        )

    def blocks(side, part=""):
        return sorted({int(key.split(".")[1]) for key in theirs if re.match(rf"{side}\.\d+\.{part}", key)})

    def attention(side, per_level):
        return ["Attn" if i * per_level in blocks(side, "attn") else "" for i in range(levels)]

    def width(block):
        """Its layers agree on it, so one that is misshapen is outvoted."""
        layers = rf"{block}\.res\.(conv1|conv2|norm2|time_emb)\."
        found = [len(value) for key, value in theirs.items() if re.match(layers, key) and value.ndim]
        if not found:
            raise ValueError(
                f"The state dict, taken for one of the annotated tutorial's UNet, has no key `{block}.res.*`."
            )
        return statistics.mode(found)

    resamplings = blocks("down", "conv")
    levels = len(resamplings) + 1
    layers = resamplings[0] if resamplings else len(blocks("down"))
    channels = theirs["image_proj.weight"].shape[1]
    return {
        "in_channels": channels,
        "out_channels": channels,
        "block_out_channels": [width(f"down.{i * (layers + 1)}") for i in range(levels)],
        "down_block_types": [f"{kind}DownBlock2D" for kind in attention("down", layers + 1)],
        "up_block_types": [f"{kind}UpBlock2D" for kind in attention("up", layers + 2)],
        "layers_per_block": layers,
    }


# Parts of our keys and the tutorial's names of them; those of a level's blocks come from `_annotated_name`.
_ANNOTATED_NAMES = {
    "conv_in": "image_proj",
    "time_embedding.linear_": "time_emb.lin",
    "mid_block.resnets.0": "middle.res1",
    "mid_block.attentions.0": "middle.attn",
    "mid_block.resnets.1": "middle.res2",
    "conv_norm_out": "norm",
    "conv_out": "final",
    "conv_shortcut": "shortcut",
    "group_norm": "norm",
    "to_qkv": "projection",
    "to_out": "output",
}


def _annotated_name(key: str, layers: int) -> str:
    """The tutorial's name of our key. A side's blocks and resamplings are counted in one row."""
    if place := re.match(r"(down|up)_blocks\.(\d+)\.(?:(resnets|attentions)\.(\d+)|resample(?:\.conv)?)", key):
        side, i, kind, j = place.groups()
        blocks = layers + (side == "up")  # of a level, without its resampling
        part = {"resnets": "res", "attentions": "attn", None: "conv"}[kind]
        key = f"{side}.{int(i) * (blocks + 1) + int(j or blocks)}.{part}{key[place.end() :]}"
    for ours, theirs in _ANNOTATED_NAMES.items():
        key = key.replace(ours, theirs)
    return key


def _resnets(unet: DDPMUNetModel) -> list[str]:
    """Names of the residual blocks, in the order of the forward pass."""
    return [name for name, module in unet.named_modules() if isinstance(module, ResidualBlock)]


# ---- Whole pipelines -----------------------------------------------------------------------------------------------


def load_pipeline(source: str | Path, sample_size: int = 32, **hub_options) -> DDPMPipelineCustom:
    """Load a DDPM of any origin into this package's classes.

    Args:
        source (`str` or `Path`): The folder or the Hub id, `owner/name`, of a pipeline of a `UNet2DModel` or a
            [`DDPMUNetModel`] and a scheduler; or a file, `.safetensors` or `.pt`, with the state dict of the annotated
            tutorial's `UNet`.
        sample_size (`int`): Height and width of the images, for a file, which does not tell.
        hub_options: `revision`, `token`, `cache_dir`, `force_download` or `local_files_only`, for an id.

    Returns:
        [`DDPMPipelineCustom`]: Of a [`DDPMUNetModel`], and of a [`DDPMLinearScheduler`] in the place of a
        `DDPMScheduler`; other schedulers are kept.

    Raises:
        ValueError: If there is no such source, it is something else, a file of it is broken, or it does not hold
            exactly the weights that it should, all of them finite.
        OSError: If it cannot be read.
    """
    if Path(source).is_file():
        unet = from_annotated(read_state_dict(source), sample_size)
        check_finite(unet, str(source))
        return DDPMPipelineCustom(unet, DDPMLinearScheduler(variance_type="fixed_large", clip_sample=False))

    folder = Path(source)
    if folder.is_dir():
        if hub_options.get("revision"):
            raise ValueError(f"--revision {hub_options['revision']} is for the Hub, and {source} is a folder.")
        _check_index(folder)
    else:
        check_id(str(source), **hub_options)
    index = DDPMPipelineCustom.load_config(source, **hub_options)
    parts = {key: entry[1] for key, entry in index.items() if isinstance(entry, list)}
    if parts.keys() != {"unet", "scheduler"} or parts["unet"] not in ("UNet2DModel", "DDPMUNetModel"):
        found = ", ".join(f"{name} ({kind})" for name, kind in parts.items())
        raise ValueError(
            f"{source} is a {index['_class_name']} of {found}; expected a DDPM pipeline, of a unet (UNet2DModel or "
            "DDPMUNetModel) and a scheduler, and of nothing else."
        )
    if not folder.is_dir():
        folder = Path(DDPMPipelineCustom.download(source, **hub_options))
    # The oldest repositories have the files of both parts at their root.
    unet_folder, scheduler_folder = (
        folder / part if (folder / part).is_dir() else folder for part in ("unet", "scheduler")
    )
    _check_unet_config(unet_folder / UNet2DModel.config_name, parts["unet"])
    scheduler_file = scheduler_folder / DDPMScheduler.config_name
    given = _read_scheduler(scheduler_file, parts["scheduler"])
    if parts["unet"] == "UNet2DModel":
        unet = from_unet2d(_load_every_weight(UNet2DModel, unet_folder))
    else:
        unet = _load_every_weight(DDPMUNetModel, unet_folder)
    check_finite(unet, str(source))
    try:
        return DDPMPipelineCustom.from_pretrained(folder, unet=unet.eval(), **given)
    except NotImplementedError as error:  # diffusers' word for the name of a schedule that a scheduler does not know
        raise ValueError(f"{scheduler_file} cannot be used: {error}. {ADVICE}") from error


def check_finite(unet: torch.nn.Module, where: str):
    """Raise a ValueError for weights that are NaN or infinite: such a network draws black pictures.

    Args:
        unet (`torch.nn.Module`): The network.
        where (`str`): Where its weights are from, for the message.
    """
    spoilt = {key: int((~value.isfinite()).sum()) for key, value in unet.state_dict().items()}
    spoilt = {key: count for key, count in spoilt.items() if count}
    if spoilt:
        key, count = next(iter(spoilt.items()))
        others = f", as are numbers of other tensors ({len(spoilt) - 1})" if len(spoilt) > 1 else ""
        raise ValueError(
            f"{where} holds broken weights: {count} of the {unet.state_dict()[key].numel()} numbers of {key} are NaN "
            f"or infinite{others}. Take an older checkpoint, or train again with a lower learning rate."
        )


def _check_index(folder: Path):
    """Raise a ValueError for a folder that holds no pipeline."""
    if not (folder / INDEX).exists():
        checkpoints = list_checkpoints(folder / CHECKPOINTS)
        hint = " It holds checkpoints of a run: add --checkpoint latest." if checkpoints else ""
        raise ValueError(f"{folder} holds no {INDEX}, so it is not the folder of a pipeline.{hint}")
    read_json(folder / INDEX, INDEX_FORM, ADVICE)


def check_id(source: str, revision=None, token=None, cache_dir=None, local_files_only=False, **_):
    """Raise a ValueError for what cannot be a Hub id, or if the Hub is asked in vain and there is no copy of it.

    huggingface_hub asks for half a minute, so this asks beforehand, once.
    """
    try:
        validate_repo_id(source)
        is_id = source.count("/") == 1 and source.isascii()
    except HFValidationError:
        is_id = False
    if not is_id:
        raise ValueError(f"{source}: there is no such folder, and it is no Hub id, which has the form owner/name.")
    if local_files_only or isinstance(try_to_load_from_cache(source, INDEX, cache_dir, revision), str):
        return
    try:
        get_hf_file_metadata(hf_hub_url(source, INDEX, revision=revision), token=token)
    except HfHubHTTPError:
        pass  # the Hub answers, so it can be asked, and what is wrong is said then
    except (httpx2.TransportError, OSError) as error:
        raise ValueError(
            f"{source}: there is no such folder, and the Hub, which may have a model of that name, cannot be reached "
            f"({one_line(error)}). Check the name, or the connection."
        ) from error


def _read_config(path: Path, form: Form) -> dict:
    """Read a part's configuration, and check those of its keys that it has."""
    config = read_json(path, {}, ADVICE)
    if problem := misfit(config, {key: kind for key, kind in form.items() if key in config}):
        raise ValueError(f"{path} is broken: {problem}. {ADVICE}")
    return config


def _check_unet_config(path: Path, kind: str):
    """Raise a ValueError that names the file, if no network can be made of it."""
    config = _read_config(path, UNET_FORM)
    try:
        if kind == "UNet2DModel":
            config = config_from_unet2d(config)
        defaults = {key: p.default for key, p in inspect.signature(DDPMUNetModel).parameters.items()}
        check_config(FrozenDict({key: config.get(key, default) for key, default in defaults.items()}))
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error} {ADVICE}") from error


def _read_scheduler(path: Path, kind: str) -> dict:
    """The scheduler that replaces the saved one, as an argument of `from_pretrained`; none for those of other kinds.

    Raises:
        ValueError: If no scheduler can be made of the file, which the message names.
    """
    config = _read_config(path, SCHEDULER_FORM)
    if kind not in ("DDPMScheduler", "DDPMLinearScheduler"):
        return {}
    try:
        scheduler = DDPMLinearScheduler.from_config(config)
        if not ((scheduler.betas >= 0) & (scheduler.betas <= 1)).all():
            raise ValueError("its betas are not all in [0, 1].")
        if not scheduler.config.clip_sample_range > 0:
            raise ValueError(f"`clip_sample_range` is {scheduler.config.clip_sample_range}; expected more than 0.")
        return {"scheduler": scheduler}
    except (ValueError, RuntimeError) as error:  # RuntimeError: numbers that no tensor holds
        raise ValueError(f"{path} cannot be used: {error} {ADVICE}") from error


def to_stock_pipeline(pipeline: DDPMPipelineCustom) -> DDPMPipeline:
    """The same model in diffusers' own classes, to be loaded where this package and remote code are not wanted.

    Args:
        pipeline ([`DDPMPipelineCustom`]): Its U-Net has to be of the paper lineage.

    Returns:
        [`~diffusers.DDPMPipeline`]: Of a `UNet2DModel` and a `DDPMScheduler`.

    Raises:
        ValueError: If diffusers has no equal of the U-Net; the message says why.
    """
    return DDPMPipeline(to_unet2d(pipeline.unet), DDPMScheduler.from_config(pipeline.scheduler.config))


def read_state_dict(path: str | Path) -> StateDict:
    """Read named tensors from a `.safetensors` file or one of `torch.save`; no code in it is run.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `dict[str, torch.Tensor]`: The tensors, on the CPU.

    Raises:
        ValueError: If the file is broken, or holds anything but named tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            return load_file(path)
        tensors = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise ValueError(
            f"{path} is refused: it holds more than tensors, and loading that could run code. Save the network's "
            "`state_dict()` alone."
        ) from error
    except (SafetensorError, RuntimeError, EOFError) as error:
        raise ValueError(f"{path} is broken or not a file of tensors: {error}") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(value) for value in tensors.values()):
        raise ValueError(f"{path} holds something else than named tensors. Save the network's `state_dict()` alone.")
    return tensors


def _load_every_weight(kind: type[ModelMixin], folder: Path) -> ModelMixin:
    """Load a network, and raise a ValueError where diffusers would start some weights at random."""
    for index in folder.glob("*.index.json"):  # of weights in several files
        read_json(index, {"weight_map": dict, "metadata": dict}, ADVICE)
    unet, info = kind.from_pretrained(
        folder, low_cpu_mem_usage=False, ignore_mismatched_sizes=True, output_loading_info=True
    )
    misshapen = info["mismatched_keys"]
    _check_keys(f"{folder}, taken for a {kind.__name__},", info["missing_keys"], info["unexpected_keys"], misshapen)
    return unet


def _check_keys(what: str, missing: Iterable[str], extra: Iterable[str], misshapen: Iterable[tuple]):
    """Raise a ValueError that names the keys, if there are any; the misshapen come with both shapes."""
    shapes = [f"{key} {tuple(found)} instead of {tuple(expected)}" for key, found, expected in misshapen]
    parts = {"misses": missing, "has the unknown": extra, "has in another shape": shapes}
    problems = [f"{verb} {', '.join(sorted(keys))}" for verb, keys in parts.items() if keys]
    if problems:
        raise ValueError(f"{what} {'; '.join(problems)}.")
