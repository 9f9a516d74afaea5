"""Addresses that a card links to: the repositories of a run, and the project itself."""

import importlib.metadata
from contextlib import suppress
from pathlib import Path

from ddpm_hf.files import write_json
from ddpm_hf.forms import is_of
from ddpm_hf.hub.card_inputs import read_side_file
from ddpm_hf.places import is_hub_id
from ddpm_hf.run_files import PUSHED_TO
from ddpm_hf.tokens import holds_token

MODEL, SPACE, STATIC_SPACE = KINDS = "model", "space", "static_space"  # a Space's name is also that of its folder
_NOTEBOOK = "examples/ddpm_colab.ipynb"


def repositories_of(folder: str | Path) -> dict[str, str]:
    """Return the repositories that the folder was pushed to: `model`, and `space` or `static_space` for its demo."""
    noted = read_side_file(Path(folder, PUSHED_TO), {})
    return {kind: noted[kind] for kind in KINDS if is_of(noted.get(kind), str) and may_be_shown(noted[kind])}


def may_be_shown(repo_id: str) -> bool:
    """Return whether a text is the id of a repository, of the form owner/name, and holds no token."""
    return "/" in repo_id and is_hub_id(repo_id) and not holds_token(repo_id)


def note_repository(folder: str | Path, kind: str, repo_id: str):
    """Note where a folder was pushed to, for its next card. A full disk costs this note only."""
    with suppress(OSError):
        write_json(Path(folder, PUSHED_TO), {**repositories_of(folder), kind: repo_id})


def project_links() -> dict[str, str]:
    """Return the addresses of the source and of the notebook on Colab, as the installed package declares them.

    A copy of the source that is not installed, as in a Space, declares none.
    """
    try:
        declared = importlib.metadata.metadata("ddpm-hf").get_all("Project-URL") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    urls = dict(line.split(", ", 1) for line in declared)
    if "Repository" not in urls:
        return {}
    source = urls["Repository"].removesuffix("/")
    on_github = source.removeprefix("https://github.com/")
    notebook = f"https://colab.research.google.com/github/{on_github}/blob/main/{_NOTEBOOK}"
    return {"Code": source, **({"Train one in Colab": notebook} if on_github != source else {})}
