"""The demo of a run as a static Space: a page that draws in the browser of the visitor, so it needs no server.

Its folder holds the page, the network as ONNX, the numbers of the denoising steps, and onnxruntime-web.
"""

import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from diffusers import SchedulerMixin
from huggingface_hub import ModelCard, SpaceCardData

from ddpm_hf.export.files import FILES as EXPORTED
from ddpm_hf.export.files import SAMPLER, Export, write_export
from ddpm_hf.export.table import table_of
from ddpm_hf.files import read_json, replace_text, write_json
from ddpm_hf.hub.card import write_card
from ddpm_hf.hub.card_merging import CARD
from ddpm_hf.hub.card_text import bare, markdown
from ddpm_hf.hub.checks import check_files
from ddpm_hf.hub.links import STATIC_SPACE
from ddpm_hf.hub.onnxruntime_web import FILES as DIGESTS
from ddpm_hf.hub.onnxruntime_web import VERSION, find_runtime
from ddpm_hf.hub.push import PUSHED, default_repo_id
from ddpm_hf.hub.space_files import check_replaceable, push_files, remove_older
from ddpm_hf.loading import load_pipeline
from ddpm_hf.other_schedulers import make_scheduler, settings_of
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.pixel_format import PixelFormat

MARK = "Written by `ddpm-hf push --static_space`"  # only a Space with this in its README.md is replaced
PAGE = Path(__file__).with_name("static_page")
MODEL = EXPORTED["onnx"]
RUNTIME, WASM = "runtime", "ort-wasm-simd-threaded.wasm"
STEPS = (10, 20, 50)  # of DDIM, among which the page lets a person choose
STEPS_AT_FIRST = 20
README = """---
{metadata}
---

# {name}

A DDPM that draws in the browser: sample, watch the denoising, interpolate and inpaint. `{model}` is the network, with
weights of 16 bits, and `{sampler}` has the numbers of each step. The page is a part of ddpm_hf, under Apache-2.0.
`{runtime}/` is onnxruntime-web {version}, under the MIT licence.

{mark}, which writes these files again each time.
To try it elsewhere, run `python -m http.server` in this folder, and open http://localhost:8000.
"""
WRITTEN = (  # files of the Space that are replaced and pushed
    *(CARD, MODEL, SAMPLER),
    *(path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.*")),
    *(f"{RUNTIME}/{name}" for name in ("LICENSE", *DIGESTS)),
)


def write_static_space(folder: str | Path, runtime: Path | None = None) -> Path:
    """Write the static Space of a run into its folder `static_space/`. It replaces an older one; other files stay.

    Args:
        folder (`str` or `Path`): The run, or any folder with a pipeline.
        runtime (`Path`, *optional*): A folder with onnxruntime-web, see [`~ddpm_hf.hub.onnxruntime_web.find_runtime`].

    Returns:
        `Path`: The Space.

    Raises:
        ValueError: If the folder holds no pipeline of 8-bit pictures, grey or RGB; if the network cannot be exported;
            or if another program wrote `static_space/`.
        OSError: If onnxruntime-web cannot be fetched, or the Space cannot be written.
    """
    folder = Path(folder).resolve()
    space, name = folder / STATIC_SPACE, folder.name
    check_replaceable(space, MARK)
    write_card(folder)  # raises an error if the pipeline is incomplete
    check_files(folder, PUSHED)
    pipeline = load_pipeline(str(folder))
    _check_pictures(pipeline)
    runtime = find_runtime(runtime)
    repo_id = default_repo_id(folder)
    models = [repo_id] if "/" in repo_id else None
    licence = ModelCard.load(folder / CARD).data.license
    metadata = SpaceCardData(title=bare(name), sdk="static", app_file="index.html", license=licence, models=models)
    with TemporaryDirectory() as exported:
        about = _export(pipeline, Path(exported)) | {"title": name, "model": models and models[0]}
        space.mkdir(exist_ok=True)
        words = {"name": markdown(name), "mark": MARK, "model": MODEL, "sampler": SAMPLER, "runtime": RUNTIME}
        replace_text(space / CARD, README.format(metadata=metadata.to_yaml(), version=VERSION, **words))
        remove_older(space, WRITTEN)
        shutil.copyfile(Path(exported, MODEL), space / MODEL)
    shutil.copytree(PAGE, space, copy_function=shutil.copyfile, dirs_exist_ok=True)  # with the licence of the runtime
    for file in DIGESTS:
        shutil.copyfile(runtime / file, space / RUNTIME / file)
    about["bytes"] = {file: (space / file).stat().st_size for file in (MODEL, f"{RUNTIME}/{WASM}")}
    write_json(space / SAMPLER, about)
    return space


def push_static_space(folder: str | Path, repo_id: str, token: str | None = None, private: bool = False) -> str:
    """Upload the static Space of a run in one commit. If nothing has changed there is no commit.

    Args:
        folder (`str` or `Path`): The run, whose Space [`write_static_space`] has written.
        repo_id, token, private: See [`push_run`].

    Returns:
        `str`: The address of the Space.

    Raises:
        ValueError: See [`~ddpm_hf.hub.space_files.push_files`].
        OSError: If the Hub still refuses after all tries.
    """
    return push_files(folder, STATIC_SPACE, "static", WRITTEN, repo_id, token, private)


def _check_pictures(pipeline: DDPMPipelineCustom):
    """Raise a ValueError if the page cannot show the samples of a model."""
    config = pipeline.unet.config
    if PixelFormat.of_model(config).settings() or config.in_channels not in (1, 3) or config.sample_size is None:
        raise ValueError(
            f"the model draws {PixelFormat.of_model(config).describe()} (sample_size={config.sample_size}), and a "
            "static Space shows 8-bit pictures, grey or RGB; use --space"
        )


def _export(pipeline: DDPMPipelineCustom, folder: Path) -> dict[str, Any]:
    """Write the network into a folder, and return what the page has to know about the model."""
    student = bool(pipeline.config.get("distilled"))
    if student:
        at_first = pipeline.default_num_inference_steps
        schedulers = {at_first: pipeline.scheduler}
    else:
        T, settings = pipeline.scheduler.config.num_train_timesteps, settings_of(pipeline)
        at_first, counts = min(STEPS_AT_FIRST, T), sorted({min(steps, T) for steps in STEPS})
        schedulers = {steps: make_scheduler("ddim", settings, steps) for steps in counts}
        pipeline.scheduler = schedulers[at_first]
    write_export(pipeline, folder, Export(num_inference_steps=at_first, dtype="fp16"))
    exported = read_json(folder / SAMPLER, {"sample_shape": list, "classes": int})
    # The page has several tables, and without a list of files it is no export that a later one replaces.
    return {key: value for key, value in exported.items() if key not in ("steps", "files")} | {
        "student": student,
        "tables": {str(steps): _table_of(scheduler, steps) for steps, scheduler in schedulers.items()},
        "steps_at_first": at_first,
    }


def _table_of(scheduler: SchedulerMixin, steps: int) -> dict[str, list]:
    """Return the table of the steps, and `alpha` of x_t, with which an inpainting goes a step back."""
    table = table_of(scheduler, steps)
    return table | {"alpha": scheduler.alphas_cumprod[table["timesteps"]].double().sqrt().tolist()}
