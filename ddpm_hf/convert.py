"""Convert models: to and from diffusers' `UNet2DModel`, and from the annotated tutorial's `UNet`.

The layouts hold the same numbers under other names, with two differences. Here one matrix makes the queries, keys and
values, and one matrix projects the time embedding for all residual blocks. Converting only concatenates and splits, so
a round trip is bit-equal.
"""

import inspect
import re
import statistics

import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel

from ddpm_hf.lineages import ANNOTATED_LINEAGE
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.unet_ddpm import DDPMUNetModel, ResidualBlock
from ddpm_hf.weights import StateDict, check_keys

PARAMETERS = ("weight", "bias")

# Keys of a UNet2DModel's configuration that DDPMUNetModel does not have, with the only value that can be converted.
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

# Keys of a DDPMUNetModel's configuration that UNet2DModel does not have, with the only value that can be converted.
PAPER_LINEAGE = {"narrow_up_blocks": False, "attention_norm": True, "norm_out_num_groups": None}


def config_from_unet2d(config: dict) -> dict:
    """Return the configuration of the [`DDPMUNetModel`] that equals a `UNet2DModel`.

    Args:
        config (`dict`): The configuration of a `UNet2DModel`. Missing keys have their defaults.

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
    """Convert a network to diffusers' U-Net: the inverse of [`from_unet2d`].

    Args:
        unet ([`DDPMUNetModel`]): The network to convert. It is of the paper lineage, and it is not changed.

    Returns:
        [`~diffusers.UNet2DModel`]: The same function of the same numbers.

    Raises:
        ValueError: If the network has a part that diffusers' does not have (the annotated lineage); the message names
            it.
    """
    only_ours = ("zero_init", "class_names", "class_frequencies", "pixel_format")
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
        elif not key.startswith(("time_projection.", "augment_embedding.")):  # the latter reads zeros at sampling
            theirs[key] = value
    for p in PARAMETERS:
        for name, rows in zip(_resnets(unet), ours[f"time_projection.{p}"].split(unet.time_widths)):
            theirs[f"{name}.time_emb_proj.{p}"] = rows.clone()
    unet2d.load_state_dict(theirs)
    return unet2d


def of_one_class(unet: DDPMUNetModel, label: str | None) -> DDPMUNetModel:
    """Return the network of a single class: the embedding of its label is part of a bias, and it takes no labels.

    Args:
        unet ([`DDPMUNetModel`]): A class-conditional network; it is not changed.
        label (`str`, *optional*): The name of the class, or its number if the classes have no names. None stands for
            no class, so that all are drawn.

    Raises:
        ValueError: If the network has no such class.
    """
    count, names = unet.config.num_class_embeds, unet.config.class_names
    if count is None:
        flag = "--no_class" if label is None else f"--class_label {label}"
        raise ValueError(f"{flag}: the model has no classes; leave it out.")
    if label is None and not names:
        raise ValueError("--no_class: the model was not trained without labels; name a --class_label.")
    known = [*names] if names else [str(i) for i in range(count)]
    if label is not None and label not in known:
        raise ValueError(f"--class_label {label}: there is no such class; expected one of {', '.join(known)}.")
    weights = dict(unet.state_dict())
    embedding = weights.pop("class_embedding.weight")[-1 if label is None else known.index(label)]
    add_to_every_image(weights, embedding)
    without = dict.fromkeys(("num_class_embeds", "class_names", "class_frequencies"))
    config = {key: value for key, value in unet.config.items() if not key.startswith("_")}
    single = DDPMUNetModel(**{**config, **without})
    single.load_state_dict(weights)
    return single.eval()


def add_to_every_image(weights: StateDict, embedding: torch.Tensor):
    """Add the embedding of a label to the bias of the layer before it, so that a network without labels has it."""
    weights["time_embedding.linear_2.bias"] = weights["time_embedding.linear_2.bias"] + embedding


def from_annotated(theirs: StateDict, sample_size: int | tuple[int, int] | None = 32) -> DDPMUNetModel:
    """Convert the annotated tutorial's `UNet`.

    Args:
        theirs (`dict[str, torch.Tensor]`): Its state dict. The names and shapes tell the configuration, except for the
            dropout and the sample size.
        sample_size (`int` or `tuple[int, int]`, *optional*): Height and width of the images, in pixels. The tutorial
            uses 32.

    Returns:
        [`DDPMUNetModel`]: The same function of the same numbers.

    Raises:
        ValueError: If keys are missing, extra or of another shape; the message names them.
    """
    unet = DDPMUNetModel(**config_from_annotated(theirs), sample_size=sample_size)
    ours = unet.state_dict()
    for p in PARAMETERS:
        rows = ours.pop(f"time_projection.{p}").split(unet.time_widths)
        ours.update({f"{name}.time_emb.{p}": value for name, value in zip(_resnets(unet), rows)})
    names = {key: _annotated_name(key, unet.config.layers_per_block) for key in ours}

    missing = [name for name in names.values() if name not in theirs]
    extra = theirs.keys() - names.values()
    pairs = [(name, theirs[name].shape, ours[key].shape) for key, name in names.items() if name in theirs]
    widths = f"the annotated tutorial's UNet with widths {tuple(unet.config.block_out_channels)}"
    check_keys(f"The state dict, taken for one of {widths},", missing, extra, [p for p in pairs if p[1] != p[2]])

    renamed = {key: theirs[name] for key, name in names.items()}
    for p in PARAMETERS:
        renamed[f"time_projection.{p}"] = torch.cat([renamed.pop(f"{name}.time_emb.{p}") for name in _resnets(unet)])
    unet.load_state_dict(renamed)
    return unet


def config_from_annotated(theirs: StateDict) -> dict:
    """Return the configuration of the [`DDPMUNetModel`] that equals the annotated tutorial's `UNet`.

    Args:
        theirs (`dict[str, torch.Tensor]`): Its state dict.

    Returns:
        `dict`: The arguments of [`DDPMUNetModel`] that the names and shapes of the state dict tell.

    Raises:
        ValueError: If it is of another network.
    """
    if "image_proj.weight" not in theirs:
        raise ValueError(
            f"The state dict starts with {sorted(theirs)[:3]} and has no `image_proj.weight`, so it is not one of the "
            "annotated tutorial's UNet. To convert the weights of a diffusers UNet2DModel, pass their folder."
        )

    def blocks(side, part=""):
        return sorted({int(key.split(".")[1]) for key in theirs if re.match(rf"{side}\.\d+\.{part}", key)})

    def attention(side, per_level):
        return ["Attn" if i * per_level in blocks(side, "attn") else "" for i in range(levels)]

    def width(block):
        """Return the width that most layers of a block have, so that one misshapen layer does not count."""
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
        **ANNOTATED_LINEAGE,
    }


# Parts of our keys, and what the tutorial calls them. `_annotated_name` makes the names of a level's blocks.
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
    """Return the tutorial's name of our key. It numbers the blocks and resamplings of a side in one row."""
    if place := re.match(r"(down|up)_blocks\.(\d+)\.(?:(resnets|attentions)\.(\d+)|resample(?:\.conv)?)", key):
        side, i, kind, j = place.groups()
        blocks = layers + (side == "up")  # the blocks of a level, without its resampling
        part = {"resnets": "res", "attentions": "attn", None: "conv"}[kind]
        key = f"{side}.{int(i) * (blocks + 1) + int(j or blocks)}.{part}{key[place.end() :]}"
    for ours, theirs in _ANNOTATED_NAMES.items():
        key = key.replace(ours, theirs)
    return key


def _resnets(unet: DDPMUNetModel) -> list[str]:
    """Return the names of the residual blocks, in the order of the forward pass."""
    return [name for name, module in unet.named_modules() if isinstance(module, ResidualBlock)]


def to_stock_pipeline(pipeline: DDPMPipelineCustom) -> DDPMPipeline | DDIMPipeline:
    """Return the same model in diffusers' own classes, which need neither this package nor remote code.

    Args:
        pipeline ([`DDPMPipelineCustom`]): A pipeline whose U-Net is of the paper lineage.

    Returns:
        [`~diffusers.DDPMPipeline`]: A pipeline of a `UNet2DModel` and a `DDPMScheduler`. For a student it is a
        [`~diffusers.DDIMPipeline`], with the scheduler that its steps need.

    Raises:
        ValueError: If diffusers has no equal of the U-Net; the message says why.
    """
    if isinstance(pipeline.scheduler, DDIMScheduler):
        return DDIMPipeline(to_unet2d(pipeline.unet), pipeline.scheduler)
    return DDPMPipeline(to_unet2d(pipeline.unet), DDPMScheduler.from_config(pipeline.scheduler.config))
