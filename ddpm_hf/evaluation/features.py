"""Features of images, that FID, KID and precision and recall compare: by Inception, or a network of one's own.

An extractor is called with images `(N, C, H, W)`, uint8 from 0 to 255, of the model's resolution, C = 1 or 3, on its
device, and returns features `(N, D)`, floating. It may resize and normalise as it likes. Inception gets greyscale
images repeated to three channels, and itself enlarges all to 299 x 299.
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
from ddpm_hf.files import read_json, sha256_of, sync, write_json
from ddpm_hf.images.batches import cut_square
from ddpm_hf.terminal import one_line
from ddpm_hf.weights import digest_of_weights

# The weights that torch-fidelity fetches, where it looks for them first.
INCEPTION_URL = (
    "https://github.com/toshas/torch-fidelity/releases/download/v0.2.0/weights-inception-2015-12-05-6726825d.pth"
)

_TOUCHES_FILES = re.compile(rb"\b(save|from_file)\b")  # the operators of TorchScript that do


@dataclass
class Extractor:
    """A checked extractor of features.

    Args:
        name (`str`): What the user called it.
        fingerprint (`str`): Changes with its code or its weights.
        function (callable): See the top of this file.
        device (`torch.device`): Where it is.
        width (`int`, *optional*): D, once it is known.
    """

    name: str
    fingerprint: str
    function: Callable[[torch.Tensor], torch.Tensor]
    device: torch.device
    width: int | None = None

    @torch.no_grad()
    def __call__(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features `(N, D)`, float32 on the CPU, of images `(N, C, H, W)` uint8.

        Raises:
            ValueError: If the extractor fails, or returns something else.
        """
        shape = tuple(pixels.shape)
        try:
            features = self.function(pixels.to(self.device))
        except (Exception, SystemExit) as error:  # whatever somebody else's code makes of it
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
    """The extractor that `--features` names.

    Args:
        name (`str`): "inception"; a file written by `torch.jit.save` or `torch.export.save`; or `module:callable`, a
            function or a `torch.nn.Module` in a module that can be imported from here.
        device (`torch.device`): Where it shall be.

    Raises:
        ValueError: If there is no such thing, or a package or file is missing; the message says what to put where.
    """
    if name == "inception":
        return _load_inception(device)
    if name.endswith((".pt", ".pt2", ".pth")):
        return _load_file(name, device)
    return _load_callable(name, device)


@functools.cache  # a run that measures itself asks for it each time
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
    """A network in a file that is not trusted: nothing in it runs but operators of PyTorch."""
    try:
        data = Path(name).read_bytes()  # once: what is checked is what is loaded
        network = load_program(data) if is_program(data) else _load_torchscript(data)
        return Extractor(name, hashlib.sha256(data).hexdigest(), network.to(device), device)
    except Exception as error:  # whatever torch makes of a file that somebody else made
        reason = one_line(error)[:300]
        raise ValueError(
            f"--features {name}: expected a file written by torch.jit.save or torch.export.save, of PyTorch's own "
            f"operators: {reason}. A network of your own code is named module:callable."
        ) from error


def _load_torchscript(data: bytes) -> torch.nn.Module:
    """A network of TorchScript, whose pickles are read by PyTorch's own reader, which knows no Python.

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
        source = Path(inspect.getsourcefile(module)).read_bytes()
    except (Exception, SystemExit) as error:  # whatever somebody else's code makes of it
        raise ValueError(f"--features {name} cannot be imported from a file: {one_line(error)}.") from error
    digest = hashlib.sha256(source + attribute.encode())
    if isinstance(function, torch.nn.Module):
        digest.update(digest_of_weights(function))
        function = function.to(device).eval()
    return Extractor(name, digest.hexdigest(), function, device)


def extract(
    extractor: Extractor, images: Sequence[np.ndarray], indices: Sequence[int], batch_size: int, show_progress: bool
) -> np.ndarray:
    """Features `(len(indices), D)` float32 of some images, each `(height, width, C)` uint8."""
    batches = []
    progress = tqdm(total=len(indices), desc="Features", unit="img", disable=not show_progress)
    for start in range(0, len(indices), batch_size):
        batches.append(extractor(as_batch(images, indices[start : start + batch_size])).numpy())
        progress.update(len(batches[-1]))
    progress.close()
    return np.concatenate(batches)


def as_batch(images: Sequence[np.ndarray], indices: Sequence[int]) -> torch.Tensor:
    """Some images, cut to squares, `(len(indices), C, H, W)` uint8."""
    return torch.from_numpy(np.stack([cut_square(images[i], 0.5, 0.5) for i in indices])).permute(0, 3, 1, 2)


def features_file(folder: Path, *key: str) -> Path:
    """Where the features of a set of images are kept, that depend on nothing but the key."""
    return folder / f"{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.npy"


def keep_features(path: Path, features: np.ndarray):
    """Write features, all or nothing, and beside them their hash.

    Raises:
        OSError: If they cannot be written.
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
    """Features that were kept; none if there are none, or if the file is not what was written, which is said."""
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
