"""Weights in and out of `DDPMUNetModel`: diffusers' `UNet2DModel`, both ways, and the annotated tutorial's `UNet`.

The layouts hold the same numbers under other names, with two differences: here one matrix makes queries, keys and
values, and one matrix projects the time embedding for all residual blocks. Converting concatenates and splits, and
never computes, so a round trip is bit-equal.
"""

import inspect
import re

import torch
from diffusers import UNet2DModel

from ddpm_hf.unet_ddpm import DDPMUNetModel, ResidualBlock

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
        key = re.sub(r"\.(down|up)samplers\.0\.", ".resample.", key).replace(".to_out.0.", ".to_out.")
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
    config = {key: value for key, value in unet.config.items() if not key.startswith("_") and key != "zero_init"}
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
        key = re.sub(r"^(down|up)(_blocks\.\d+)\.resample\.", r"\1\2.\1samplers.0.", key)
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


def from_annotated(theirs: StateDict) -> DDPMUNetModel:
    """Convert the annotated tutorial's `UNet`.

    Args:
        theirs (`dict[str, torch.Tensor]`): Its state dict; the configuration is read off the names and shapes, but for
            the dropout and the sample size, which leave no trace in them.

    Returns:
        [`DDPMUNetModel`]: The same function of the same numbers.
    """
    places = _annotated_places(theirs)
    firsts = {side: [b for b, (level, j) in places.items() if b.startswith(side) and j == 0] for side in ("down", "up")}
    attention = {block: "Attn" if f"{block}.attn.norm.weight" in theirs else "" for block in places}
    channels = theirs["image_proj.weight"].shape[1]
    unet = DDPMUNetModel(
        sample_size=None,
        in_channels=channels,
        out_channels=channels,
        block_out_channels=[len(theirs[f"{block}.res.conv2.bias"]) for block in firsts["down"]],
        down_block_types=[f"{attention[block]}DownBlock2D" for block in firsts["down"]],
        up_block_types=[f"{attention[block]}UpBlock2D" for block in firsts["up"]],
        layers_per_block=sum(level == "down_blocks.0" and j is not None for level, j in places.values()),
        **ANNOTATED_LINEAGE,
    )

    renamed = {_rename_annotated(key, places): value for key, value in theirs.items()}
    ours = {key: value for key, value in renamed.items() if ".time_emb." not in key}
    for p in PARAMETERS:
        ours[f"time_projection.{p}"] = torch.cat([renamed[f"{name}.time_emb.{p}"] for name in _resnets(unet)])
    unet.load_state_dict(ours)
    return unet


def _resnets(unet: DDPMUNetModel) -> list[str]:
    """Names of the residual blocks, in the order of the forward pass."""
    return [name for name, module in unet.named_modules() if isinstance(module, ResidualBlock)]


def _annotated_places(theirs: StateDict) -> dict[str, tuple[str, int | None]]:
    """Where the tutorial's blocks stand here: its block -> our level, and the place in it (None: the resampling)."""
    places = {}
    for side in ("down", "up"):
        i = j = 0
        for k in sorted({int(key.split(".")[1]) for key in theirs if key.startswith(f"{side}.")}):
            resamples = f"{side}.{k}.conv.weight" in theirs
            places[f"{side}.{k}"] = (f"{side}_blocks.{i}", None if resamples else j)
            i, j = (i + 1, 0) if resamples else (i, j + 1)
    return places


def _rename_annotated(key: str, places: dict[str, tuple[str, int | None]]) -> str:
    names = {
        "image_proj.": "conv_in.",
        "time_emb.lin": "time_embedding.linear_",
        "norm.": "conv_norm_out.",
        "final.": "conv_out.",
        "middle.res1.": "mid_block.resnets.0.",
        "middle.attn.": "mid_block.attentions.0.",
        "middle.res2.": "mid_block.resnets.1.",
    }
    for block, (level, j) in places.items():
        names[f"{block}.res."] = f"{level}.resnets.{j}."
        names[f"{block}.attn."] = f"{level}.attentions.{j}."
        names[f"{block}.conv."] = f"{level}.resample." + ("conv." if block.startswith("down") else "")
    start = next(name for name in names if key.startswith(name))
    key = names[start] + key.removeprefix(start)

    key = key.replace(".shortcut.", ".conv_shortcut.")
    attention = {r"(attentions\.\d+)\.norm": r"\1.group_norm", r"\.projection\.": ".to_qkv.", r"\.output\.": ".to_out."}
    for theirs, ours in attention.items():
        key = re.sub(theirs, ours, key)
    return key
