"""The demo of a run as a Hugging Face Space: a folder with the model, the source of this package, and what both need.

The Space requires the versions that are installed here, since these are known to work together.
"""

import re
import shutil
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from huggingface_hub import ModelCard, SpaceCardData

from ddpm_hf import pipelines
from ddpm_hf.files import replace_text
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.card_merging import CARD
from ddpm_hf.hub.card_text import bare, markdown
from ddpm_hf.hub.checks import check_files, check_weights
from ddpm_hf.hub.links import SPACE
from ddpm_hf.hub.push import PUSHED, default_repo_id
from ddpm_hf.hub.space_files import check_replaceable, push_files, remove_older

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
    check_replaceable(space, MARK)
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
    remove_older(space, WRITTEN)
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
        ValueError: See [`~ddpm_hf.hub.space_files.push_files`].
        OSError: If the Hub still refuses after all tries.
    """
    check_weights(Path(folder, SPACE, "model"))
    return push_files(folder, SPACE, "gradio", WRITTEN, repo_id, token, private)


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
