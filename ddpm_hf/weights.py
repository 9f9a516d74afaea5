"""Weights: read them, hash them, and check that they are complete and finite."""

import hashlib
import pickle
from collections.abc import Iterable
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from ddpm_hf.terminal import one_line

StateDict = dict[str, torch.Tensor]


def digest_of_weights(module: torch.nn.Module) -> bytes:
    """Return a hash of the names, types, shapes and bytes of a module's weights."""
    digest = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
    return digest.digest()


def check_finite(weights: torch.nn.Module | StateDict, where: str):
    """Raise a ValueError for weights that are NaN or infinite: such a network draws black pictures.

    Args:
        weights (`torch.nn.Module` or `dict[str, torch.Tensor]`): The network, or its named tensors.
        where (`str`): The origin of the weights, for the message.
    """
    tensors = weights.state_dict() if isinstance(weights, torch.nn.Module) else weights
    spoilt = {key: value for key, value in tensors.items() if not value.isfinite().all()}
    if spoilt:
        key, value = next(iter(spoilt.items()))
        others = f", and so are numbers of other tensors ({len(spoilt) - 1})" if len(spoilt) > 1 else ""
        raise ValueError(
            f"{where} holds broken weights: {(~value.isfinite()).sum()} of the {value.numel()} numbers of {key} are "
            f"NaN or infinite{others}. Take an older checkpoint, or train again with a lower learning rate."
        )


def read_state_dict(path: str | Path) -> StateDict:
    """Read named tensors from a `.safetensors` file or one of `torch.save`. No code in the file is run.

    Args:
        path (`str` or `Path`): The file.

    Returns:
        `dict[str, torch.Tensor]`: The tensors, on the CPU.

    Raises:
        ValueError: If the file is broken, or holds more than named tensors.
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
        raise ValueError(f"{path} is broken: {one_line(error)}; expected a file of named tensors.") from error
    if not isinstance(tensors, dict) or not all(torch.is_tensor(value) for value in tensors.values()):
        raise ValueError(f"{path} does not hold named tensors. Save the network's `state_dict()` alone.")
    return tensors


def check_keys(what: str, missing: Iterable[str], extra: Iterable[str], misshapen: Iterable[tuple]):
    """Raise a ValueError unless weights have the keys and shapes that a network expects.

    Args:
        what (`str`): The weights, as the subject of the message.
        missing (`Iterable[str]`): Keys that the network has and the weights do not.
        extra (`Iterable[str]`): Keys that the weights have and the network does not.
        misshapen (`Iterable[tuple]`): Keys of tensors of another shape, each with the shape found and that expected.
    """
    shapes = [f"{key} {tuple(found)} instead of {tuple(expected)}" for key, found, expected in misshapen]
    parts = {"misses": missing, "has the unknown": extra, "has in another shape": shapes}
    problems = [f"{verb} {', '.join(sorted(keys))}" for verb, keys in parts.items() if keys]
    if problems:
        raise ValueError(f"{what} {'; '.join(problems)}.")
