"""Weights: read them, hash them, and check that they are complete and finite."""

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file


def digest_of_weights(module: torch.nn.Module) -> bytes:
    """A hash of the names, types, shapes and bytes of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()


StateDict = dict[str, torch.Tensor]


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


def check_keys(what: str, missing: Iterable[str], extra: Iterable[str], misshapen: Iterable[tuple]):
    """Raise a ValueError that names the keys, if there are any; the misshapen come with both shapes."""
    shapes = [f"{key} {tuple(found)} instead of {tuple(expected)}" for key, found, expected in misshapen]
    parts = {"misses": missing, "has the unknown": extra, "has in another shape": shapes}
    problems = [f"{verb} {', '.join(sorted(keys))}" for verb, keys in parts.items() if keys]
    if problems:
        raise ValueError(f"{what} {'; '.join(problems)}.")
