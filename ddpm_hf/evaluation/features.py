"""Features of images for FID, KID, precision and recall: by Inception, or by the user's own network.

An extractor takes images `(N, C, H, W)` of the model's resolution on its device, uint8 from 0 to 255, with C = 1 or 3.
It returns floating-point features `(N, D)`. It may resize and normalise the images in its own way. Inception takes
greyscale images as three equal channels, and enlarges all images to 299 x 299.
"""

import functools
import hashlib
import importlib
import inspect
import io
import os
import re
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import numpy as np
import torch
from tqdm.auto import tqdm

from ddpm_hf.evaluation.exported import is_program, load_program
from ddpm_hf.evaluation.image_sets import ImageSet, as_batch
from ddpm_hf.files import read_json, sha256_of, sync, write_json
from ddpm_hf.terminal import one_line
from ddpm_hf.weights import digest_of_weights

# torch-fidelity downloads these weights if they are not in the folder of torch.hub.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)

_TOUCHES_FILES = re.compile(rb"\b(save|from_file)\b")  # operators of TorchScript


@dataclass
class Extractor:
    """A checked extractor of features.

    Args:
        name (`str`): The name that the user gave.
        fingerprint (`str`): A text that changes with the code or the weights.
        function (callable): The extractor, see the top of this file.
        device (`torch.device`): Its device.
        width (`int`, *optional*): D, once it is known.
    """

    name: str
    fingerprint: str
    function: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    width: int | None = None

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Return features `(N, D)`, float32 on the CPU, of images `(N, C, H, W)` uint8.

        Raises:
            ValueError: If the extractor fails, or returns anything but finite features `(N, D)`.
        """
        shape = tuple(pixels.shape)
        try:
            features = self.function(pixels.to(self.device))
        except (Exception, SystemExit) as error:  # the user's code may raise anything
            reason = one_line(error)[-300:]
            raise ValueError(f"--features {self.name} fails on uint8 images {shape}: {reason}") from error
        kind = f"{features.dtype} {tuple(features.shape)}" if torch.is_tensor(features) else type(features).__name__
        if not torch.is_tensor(features) or features.ndim != 2 or len(features) != len(pixels) or not features.numel():
            raise ValueError(
                f"--features {self.name} returns {kind} for images {shape}; expected a tensor ({len(pixels)}, D)."
            )
        self.width = self.width or features.shape[1]
        if features.shape[1] != self.width:
            raise ValueError(f"--features {self.name} returns {kind} for images {shape}, and {self.width} before.")
        if not features.is_floating_point() or not features.isfinite().all():
            raise ValueError(f"--features {self.name} returns {kind} for images {shape}; expected finite floats.")
        return features.float().cpu()


def load_extractor(name: str, device: torch.device) -> Extractor:
    """Return the extractor that `--features` names.

    Args:
        name (`str`): "inception"; a file written by `torch.jit.save` or `torch.export.save`; or `module:callable`, a
            function or a `torch.nn.Module` in a module that can be imported from here.
        device (`torch.device`): Device of the extractor.

    Raises:
        ValueError: If the name is unknown, or a package or file is missing. The message says where to put which file.
    """
    if name == "inception":
        return _load_inception(device)
    if name.endswith((".pt", ".pt2", ".pth")):
        return _load_file(name, device)
    return _load_callable(name, device)


@functools.cache  # a run asks for it at each measurement
def _load_inception(device: torch.device) -> Extractor:
    try:
        from torchmetrics.image.fid import NoTrainInceptionV3

        network = NoTrainInceptionV3(name="inception-v3-compat", features_list=["2048"])
    except ImportError as error:
        raise ValueError(
            "--features inception needs packages that are not installed: pip install torchmetrics torch-fidelity; or "
            "name an extractor of your own: --features path.pt, or module:callable; --metrics bpd needs none."
        ) from error
    except (URLError, OSError) as error:
        folder = Path(torch.hub.get_dir()) / "checkpoints"
        raise ValueError(
            f"--features inception: its weights cannot be fetched ({error}). Put {INCEPTION_URL} into {folder}, or "
            "name an extractor of your own; --metrics bpd needs none."
        ) from error
    network.to(device)
    return Extractor(
        "inception",
        "torch-fidelity inception-v3-compat 2048",
        lambda pixels: network(pixels.expand(-1, 3, -1, -1)),
        device,
    )


def _load_file(name: str, device: torch.device) -> Extractor:
    """Return the network of a file that is not trusted. Nothing in it runs but operators of PyTorch."""
    try:
        data = Path(name).read_bytes()  # read once, so that the checked bytes are the loaded ones
        network = load_program(data) if is_program(data) else _load_torchscript(data)
        return Extractor(name, hashlib.sha256(data).hexdigest(), network.to(device), device)
    except Exception as error:  # torch raises many kinds of errors for broken files
        reason = one_line(error)[:300]
        raise ValueError(
            f"--features {name}: expected a file written by torch.jit.save or torch.export.save, of PyTorch's own "
            f"operators: {reason}. A network of your own code is named module:callable."
        ) from error


def _load_torchscript(data: bytes) -> torch.nn.Module:
    """Return a network of TorchScript. PyTorch's reader takes its pickles without running any Python.

    Raises:
        ValueError: If its code reads or writes files.
    """
    reader = torch._C.PyTorchFileReader(io.BytesIO(data))
    for part in reader.get_all_records():
        if part.endswith(".py") and (found := _TOUCHES_FILES.search(reader.get_record(part))):
            raise ValueError(f"its part {part} calls {found[0].decode()}, which reads or writes files")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "`torch.jit.load`", DeprecationWarning)
        return torch.jit.load(io.BytesIO(data), map_location="cpu").eval()


def _load_callable(name: str, device: torch.device) -> Extractor:
    module_name, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"--features {name}: expected inception, a file .pt or .pt2, or module:callable.")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
        function = getattr(module, attribute)
        file = inspect.getsourcefile(module)
        if file is None:
            raise ValueError("its module has no source in Python")
        source = Path(file).read_bytes()
    except (Exception, SystemExit) as error:  # the user's code may raise anything
        raise ValueError(f"--features {name} cannot be imported from a file: {one_line(error)}.") from error
    digest = hashlib.sha256(source + attribute.encode())
    if isinstance(function, torch.nn.Module):
        digest.update(digest_of_weights(function))
        function = function.to(device).eval()
    return Extractor(name, digest.hexdigest(), function, device)


def extract(
    extractor: Extractor, images: ImageSet, indices: Sequence[int], batch_size: int, show_progress: bool
) -> np.ndarray:
    """Return features `(len(indices), D)` float32 of some images."""
    batches = []
    progress = tqdm(total=len(indices), desc="Features", unit="img", disable=not show_progress)
    for start in range(0, len(indices), batch_size):
        batches.append(extractor(as_batch(images, indices[start : start + batch_size])).numpy())
        progress.update(len(batches[-1]))
    progress.close()
    return np.concatenate(batches)


def features_file(folder: Path, *key: str) -> Path:
    """Return the path of the features that belong to a key, which names all that they depend on."""
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npy"


def keep_features(path: Path, features: np.ndarray):
    """Write features, all or nothing, and their hash beside them.

    Raises:
        OSError: If the files cannot be written.
    """
    unfinished = path.with_name(f"{path.stem}.{os.getpid()}.tmp.npy")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        np.save(unfinished, features)
        sync(unfinished)
        digest = sha256_of(unfinished)
        os.replace(unfinished, path)
        write_json(unfinished, {"sha256": digest})
        os.replace(unfinished, _manifest(path))
    except OSError as error:
        raise OSError(f"the features cannot be kept in {path}: {error}. Name another --cache_dir.") from error
    finally:
        unfinished.unlink(missing_ok=True)


def read_features(path: Path) -> np.ndarray | None:
    """Return the features in a file; None if there is no file. A changed file is reported, and None is returned."""
    if not path.exists():
        return None
    try:
        data, digest = path.read_bytes(), read_json(_manifest(path), {"sha256": str}, "It is written again.")["sha256"]
        if hashlib.sha256(data).hexdigest() == digest:
            return np.load(io.BytesIO(data), allow_pickle=False)
        reason = "it is not what was written"
    except (OSError, ValueError) as error:
        reason = str(error)
    tqdm.write(f"The features in {path} are spoilt and are computed again: {reason}")
    return None


def _manifest(path: Path) -> Path:
    return path.with_suffix(".json")
