"""Where models and pictures come from: check the names of folders and repositories, and import nothing heavy."""

import os
from pathlib import Path

import httpx2
from huggingface_hub import get_hf_file_metadata, hf_hub_url, try_to_load_from_cache
from huggingface_hub.constants import HF_HOME
from huggingface_hub.errors import HfHubHTTPError, HFValidationError
from huggingface_hub.utils import validate_repo_id

from ddpm_hf.run_files import INDEX
from ddpm_hf.terminal import one_line

DATASET_CARD = "README.md"  # `datasets` reads it first


def check_model(source: str, revision: str | None = None, token: str | None = None, cache_dir: str | None = None):
    """Find out whether there may be a model: a file, a folder, or a Hub id of the form owner/name.

    Raises:
        ValueError: If the text is none of these or only a Hub id has a revision, or if it is a Hub id and neither the
            Hub nor a copy in the cache can be reached.
    """
    if Path(source).exists():
        if revision:
            kind = "folder" if Path(source).is_dir() else "file"
            raise ValueError(f"--revision {revision} is for a Hub id, and {source} is a {kind}.")
        return
    if not (is_hub_id(source) and "/" in source):
        raise ValueError(f"{source}: there is no such folder, and it is no Hub id, which has the form owner/name.")
    if reason := why_unreachable(source, INDEX, None, revision, token, cache_dir):
        raise ValueError(f"{source}: {_neither('model', reason)}")


def check_pictures(train_data_dir: str | None, dataset_name: str | None):
    """Find out whether there may be a folder of pictures, or a data set of such a name.

    Raises:
        ValueError: If there is no such folder and no data set can have such a name, or if neither the Hub nor a copy in
            the cache can be reached.
    """
    if train_data_dir and not Path(train_data_dir).is_dir():
        raise ValueError(f"--train_data_dir {train_data_dir}: there is no such folder.")
    if not dataset_name or Path(dataset_name).exists():
        return
    if not is_hub_id(dataset_name):
        raise ValueError(f"--dataset_name {dataset_name}: there is no such folder, and it is no Hub id.")
    prepared = Path(os.environ.get("HF_DATASETS_CACHE", Path(HF_HOME, "datasets")), dataset_name.replace("/", "___"))
    if not prepared.exists() and (reason := why_unreachable(dataset_name, DATASET_CARD, "dataset")):
        raise ValueError(f"--dataset_name {dataset_name}: {_neither('data set', reason)}")


def _neither(what: str, reason: str) -> str:
    return (
        f"there is no such folder, and the Hub, which may have a {what} of that name, cannot be reached ({reason}). "
        "Check the name, or the connection."
    )


def is_hub_id(text: str) -> bool:
    """Return whether a text has the form of a Hub id: owner/name, or the name alone, as some data sets have it."""
    try:
        validate_repo_id(text)
    except HFValidationError:
        return False
    return text.isascii()


def why_unreachable(
    source: str,
    file: str,
    repo_type: str | None = None,
    revision: str | None = None,
    token: str | None = None,
    cache_dir: str | None = None,
) -> str | None:
    """Return why a file of a repository can be had neither from the Hub nor from the cache; None if it can.

    huggingface_hub tries to reach the Hub for half a minute. This tries once. A repository that does not exist counts
    as reached, since the Hub answers that.
    """
    # The cache also knows which files a repository does not have.
    if try_to_load_from_cache(source, file, cache_dir, revision, repo_type) is not None:
        return None
    try:
        get_hf_file_metadata(hf_hub_url(source, file, repo_type=repo_type, revision=revision), token=token)
    except HfHubHTTPError:
        return None
    except (httpx2.TransportError, OSError) as error:
        return one_line(error)
    return None
