"""Fetch onnxruntime-web, which draws in the browser, from the npm registry: once, since its files stay in a cache.

It is the build for WebAssembly, which all browsers run. The one for WebGPU is twice as large.
"""

import base64
import hashlib
import io
import os
import tarfile
from pathlib import Path

import httpx2
from huggingface_hub.constants import HF_HOME
from huggingface_hub.utils import get_session

from ddpm_hf.files import sha256_of
from ddpm_hf.terminal import one_line

VERSION = "1.30.0"
INTEGRITY = "q0y+JrrtukXSzsBWEMccVfqX25LRmosXHF+CaRJmg8pZClzcV7svNc4rKY3jL02Vb7QmRMDs1SigqR4CXAfKYQ=="  # SHA-512 at npm
FILES = {  # of its folder dist/, with their SHA-256
    "ort.wasm.min.mjs": "219e6a1fc8a9938268d18efca3c91d310bd2f4a59bbd13744df5b2b7fc6cee3b",
    "ort-wasm-simd-threaded.mjs": "e13f7f94fc51b4ca72b12faeb1ee95f4ace6dfbc8939bc718aabdc0a27c4299b",
    "ort-wasm-simd-threaded.wasm": "3398c10d07d229bd91b364548e130e0e51a8e5704b88c7c083ebbeb78842dee2",
}
SECONDS = 60.0  # without a byte until a connection is given up
CACHE = Path(HF_HOME, "ddpm_hf", f"onnxruntime-web-{VERSION}")


def find_runtime(folder: Path | None = None) -> Path:
    """Return a folder with `FILES`, and fetch them if they are not in the cache.

    Args:
        folder (`Path`, *optional*): A folder that has them: `dist` of the npm package.

    Raises:
        ValueError: If the folder lacks a file, or has that of another version.
        OSError: If the registry cannot be reached, or its answer is not the package.
    """
    if folder is not None:
        if (name := _unfit(folder)) is not None:
            raise ValueError(
                f"--onnxruntime_web {folder}: {name} is missing, or of another version; expected the folder dist of "
                f"the npm package onnxruntime-web {VERSION}."
            )
        return folder
    if _unfit(CACHE) is not None:
        _fetch()
    return CACHE


def _unfit(folder: Path) -> str | None:
    """Return the first file that is missing, or has other contents."""
    for name, digest in FILES.items():
        if not (folder / name).is_file() or sha256_of(folder / name) != digest:
            return name
    return None


def _fetch():
    """Download the package and keep `FILES` of it."""
    named = [value for name, value in os.environ.items() if name.lower() == "npm_config_registry"]  # npm takes any case
    registry = (named or ["https://registry.npmjs.org"])[0].rstrip("/")
    url = f"{registry}/onnxruntime-web/-/onnxruntime-web-{VERSION}.tgz"
    print(f"Fetching {url} (33 MB), once.")
    try:
        answer = get_session().get(url, timeout=SECONDS, follow_redirects=True).raise_for_status()
    except (httpx2.HTTPError, httpx2.InvalidURL) as error:
        raise OSError(
            f"{url} cannot be fetched ({one_line(error)}); where npm works, run npm pack onnxruntime-web@{VERSION}, "
            "unpack the file, and pass --onnxruntime_web package/dist"
        ) from error
    if base64.b64encode(hashlib.sha512(answer.content).digest()).decode() != INTEGRITY:
        raise OSError(f"{url} is not the package that npm published: its SHA-512 differs; try another registry.")
    CACHE.mkdir(parents=True, exist_ok=True)
    with tarfile.open(fileobj=io.BytesIO(answer.content)) as archive:
        for name in FILES:
            member = archive.extractfile(f"package/dist/{name}")
            assert member is not None
            unfinished = CACHE / f".unfinished-{name}"
            unfinished.write_bytes(member.read())
            os.replace(unfinished, CACHE / name)
