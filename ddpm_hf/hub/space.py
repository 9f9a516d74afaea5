"""The demo of a run as a Hugging Face Space: a folder with the model, the source of this package, and what both need.

The Space requires the versions that are installed here, since these are known to work together.
"""

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, ModelCard, SpaceCardData

from ddpm_hf import pipelines
from ddpm_hf.files import replace_text
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.card_merging import CARD
from ddpm_hf.hub.card_text import bare, markdown
from ddpm_hf.hub.checks import check_files, check_push, check_weights, find_token
from ddpm_hf.hub.links import SPACE as SPACE_LINK
from ddpm_hf.hub.links import note_repository
from ddpm_hf.hub.push import PUSHED, default_repo_id
from ddpm_hf.hub.retry import REQUEST_ERRORS, persist, refusal

SPACE = "space"  # in the folder of a run
MARK = "Written by `ddpm-hf push --space`"  # only a Space with this in its README.md is replaced
PACKAGE = Path(__file__).parent.parent
WINGS = ("images", "training", "evaluation", "hub", "demo")
SOURCE = ("*.py", *(f"{wing}/*.py" for wing in WINGS), "hub/*.md")  # the package without the embedded digits
PIPELINES = Path(pipelines.__path__[0])  # in a clone, they are beside the package
APP = '''"""With the packages of requirements.txt: python app.py"""

from pathlib import Path

from ddpm_hf.demo.page import run_demo

if __name__ == "__main__":
    run_demo(str(Path(__file__).with_name("model")), title={name!r})
'''
README = """---
{metadata}
---

# {name}

The demo of a DDPM: sample, denoise, interpolate and inpaint. `model/` is the model, and `ddpm_hf/` the source of the
package that made it, under Apache-2.0. {mark}, which writes these files again each time.
"""
OF_MODEL = tuple(pattern for pattern in PUSHED if pattern != CARD)
WRITTEN = (  # files of the Space that are replaced and pushed
    *("app.py", "requirements.txt", CARD),
    *(f"model/{pattern}" for pattern in OF_MODEL),
    *(f"{PACKAGE.name}/{pattern}" for pattern in (*SOURCE, "pipelines/*.py")),
)


def write_space(folder: str | Path) -> Path:
    """Write the Space of a run into its folder `space/`. It replaces an older Space; other files there stay.

    Args:
        folder (`str` or `Path`): The run, or any folder with a pipeline.

    Returns:
        `Path`: The Space.

    Raises:
        ValueError: If the folder holds no pipeline, Gradio is not installed, or another program wrote `space/`.
        OSError: If the Space cannot be written.
    """
    folder = Path(folder).resolve()
    space, name = folder / SPACE, folder.name
    _check_replaceable(space)
    write_card(folder)  # raises an error if the pipeline is incomplete
    check_files(folder, OF_MODEL)
    requirements = _requirements()
    repo_id = default_repo_id(folder)
    metadata = SpaceCardData(
        title=bare(name),
        sdk="gradio",
        sdk_version=requirements["gradio"],
        python_version=f"{sys.version_info.major}.{sys.version_info.minor}",
        app_file="app.py",
        license=ModelCard.load(folder / CARD).data.license,
        models=[repo_id] if "/" in repo_id else None,
    )
    space.mkdir(exist_ok=True)
    replace_text(space / CARD, README.format(metadata=metadata.to_yaml(), name=markdown(name), mark=MARK))
    for file in _written(space):
        if file != space / CARD:  # its mark tells that even a half-written Space may be replaced
            file.unlink()
    _copy(folder, OF_MODEL, space / "model")
    _copy(PACKAGE, SOURCE, space / PACKAGE.name)
    _copy(PIPELINES, ["*.py"], space / PACKAGE.name / "pipelines")
    replace_text(space / "app.py", APP.format(name=name))
    replace_text(space / "requirements.txt", "".join(f"{name}=={pin}\n" for name, pin in requirements.items()))
    return space


def push_space(folder: str | Path, repo_id: str, token: str | None = None, private: bool = False) -> str:
    """Upload the Space of a run in one commit. If nothing has changed there is no commit.

    Args:
        folder (`str` or `Path`): The run, whose Space [`write_space`] has written.
        repo_id, token, private: See [`push_run`].

    Returns:
        `str`: The address of the Space.

    Raises:
        ValueError: See [`check_push`].
        OSError: If the Hub still refuses after all tries.
    """
    space, token = Path(folder, SPACE), find_token(token)
    check_weights(space / "model")
    check_files(space, WRITTEN, token)
    repo_id = check_push(repo_id, token, repo_type="space")
    api = HfApi(token=token)
    names = [path.relative_to(space).as_posix() for path in _written(space)]
    try:
        persist(
            lambda: api.create_repo(
                repo_id, repo_type="space", space_sdk="gradio", private=private or None, exist_ok=True
            )
        )
        persist(
            lambda: api.create_commit(
                repo_id,
                [CommitOperationAdd(name, str(space / name)) for name in names],
                repo_type="space",
                commit_message="Upload the demo",
            )
        )
    except REQUEST_ERRORS as error:
        raise OSError(f"cannot push {space} to {repo_id}: {refusal(error)}") from error
    if not private:
        note_repository(folder, SPACE_LINK, repo_id)
    return f"{api.endpoint}/spaces/{repo_id}"


def _check_replaceable(space: Path):
    """Raise a ValueError if there is a folder that this module did not write."""
    if not space.exists() and not space.is_symlink():
        return
    if not space.is_dir() or any(path.is_symlink() for path in (space, *space.rglob("*"))):
        raise ValueError(
            f"{space} is no folder, or there are links in it; move it away, so that the Space can be written there."
        )
    card = space / CARD
    if any(space.iterdir()) and not (card.is_file() and MARK in card.read_text(encoding="utf-8", errors="replace")):
        raise ValueError(
            f"{space} was not written by ddpm-hf push --space (its {CARD} does not say so); move it away, so that the "
            "Space can be written there."
        )


def _written(space: Path) -> list[Path]:
    """List the files of a Space that this module has written."""
    return sorted({path for pattern in WRITTEN for path in space.glob(pattern) if path.is_file()})


def _requirements() -> dict[str, str]:
    """Return the installed version of each package that the demo needs."""
    try:
        needed = [line for line in requires("ddpm-hf") or [] if "extra ==" not in line]
        names = ["gradio", *(re.split(r"[^\w.-]", line)[0] for line in needed)]
        return {name: version(name).split("+")[0] for name in names}  # torch calls itself 2.13.0+cpu
    except PackageNotFoundError as error:
        raise ValueError(f'a Space needs to know the version of {error.name}: pip install "ddpm-hf[demo]"') from error


def _copy(source: Path, patterns, target: Path):
    for path in {path for pattern in patterns for path in source.glob(pattern)}:
        copy = target / path.relative_to(source)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
