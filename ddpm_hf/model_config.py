"""The network of `--model_config_name_or_path`, and of the `model` of an option file."""

import inspect
from pathlib import Path
from typing import Any

import torch

from ddpm_hf.config import DECIDED_BY_DATA
from ddpm_hf.convert import config_from_unet2d
from ddpm_hf.places import check_model
from ddpm_hf.unet_ddpm import DDPMUNetModel


def load_model_config(name_or_path: str) -> dict[str, Any]:
    """Load the arguments of a saved U-Net, except the size and the channels, which the data decides.

    Args:
        name_or_path (`str`): JSON file, folder or Hub id of a [`DDPMUNetModel`] or a `UNet2DModel`, or the folder of a
            pipeline.

    Raises:
        ValueError: If it cannot be loaded or is no such network.
    """
    source = Path(name_or_path)
    try:
        check_model(name_or_path)
        # The network of a pipeline is in its folder unet/.
        config = DDPMUNetModel.load_config(source / "unet" if (source / "unet" / "config.json").exists() else source)
        if config.get("_class_name") == "UNet2DModel":
            config = config_from_unet2d(config)
        return checked_model({key: value for key, value in config.items() if key[0] != "_"})
    except (ValueError, OSError) as error:
        raise ValueError(f"--model_config_name_or_path {name_or_path}: {error}") from error


def checked_model(config: dict[str, Any]) -> dict[str, Any]:
    """Return the arguments of a U-Net that the data does not decide, once a network could be made of them."""
    model = {key: value for key, value in config.items() if key not in DECIDED_BY_DATA}
    if unknown := model.keys() - inspect.signature(DDPMUNetModel).parameters.keys():
        raise ValueError(f"it has the unknown keys {', '.join(sorted(unknown))}; expected those of a DDPMUNetModel.")
    with torch.device("meta"):
        DDPMUNetModel(**model)
    return model
