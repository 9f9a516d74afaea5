"""Write the folder of an exported model, and compare it with the pipeline."""

import os
import shutil
import tempfile
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from safetensors.torch import save_file

from ddpm_hf import __version__
from ddpm_hf.export import draw
from ddpm_hf.export.modules import Loop, Network, Step, example, is_noisy
from ddpm_hf.export.table import clip_of, table_of
from ddpm_hf.files import holds_files, read_json, write_json
from ddpm_hf.manifest import check_files, describe_files
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom
from ddpm_hf.unet_ddpm import DDPMUNetModel

Format = Literal["onnx", "torch.export", "safetensors-only"]
Dtype = Literal["fp32", "fp16", "int8"]
DTYPES: dict[Format, tuple[Dtype, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "torch.export": ("fp32",),
    "safetensors-only": ("fp32", "fp16"),
}
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch.export": "model.pt2", "safetensors-only": "model.safetensors"}
SAMPLER, CONFIG, READER = "sampler.json", "config.json", "draw.py"
WRITTEN = (CONFIG, READER, *FILES.values())  # beside sampler.json, which lists those that are there
MOST_UNROLLED = 100  # steps of a loop of torch.export, which has each of them
TOLERANCE = 1e-4  # of fp32
COMPARED = 3  # images; and denoising steps, unless the loop has its own


@dataclass(frozen=True)
class Export:
    """How a model is exported.

    Args:
        format (`str`): A key of `FILES`.
        num_inference_steps (`int`): Denoising steps of the table, and of the loop.
        loop (`bool`): Whether the graph is the whole denoising loop, and not the network.
        dtype (`str`): What weights are stored as: "fp32", "fp16" (computed in 32 bits), or "int8" (computed in 8).
        guidance_scale (`float`): w of classifier-free guidance, which becomes part of the graph.
    """

    format: Format = "onnx"
    num_inference_steps: int = 50
    loop: bool = False
    dtype: Dtype = "fp32"
    guidance_scale: float = 1.0

    def __post_init__(self):
        if self.format not in DTYPES:
            raise ValueError(f"--format {self.format}: expected one of {', '.join(DTYPES)}.")
        if self.dtype not in DTYPES[self.format]:
            known = " or ".join(DTYPES[self.format])
            raise ValueError(f"--dtype {self.dtype}: --format {self.format} has {known}.")
        if self.format == "safetensors-only" and (self.loop or self.guidance_scale != 1):
            flag = "--loop" if self.loop else f"--guidance_scale {self.guidance_scale:g}"
            raise ValueError(f"{flag}: --format safetensors-only holds weights, and no graph; leave it out.")
        if self.format == "torch.export" and self.loop and self.num_inference_steps > MOST_UNROLLED:
            raise ValueError(
                f"--loop: torch.export writes each of the {self.num_inference_steps} steps; pass --num_inference_steps "
                f"{MOST_UNROLLED} or fewer, or --format onnx."
            )


def check_target(folder: Path):
    """Raise a ValueError if a folder holds files and no older export, or one whose files were changed since."""
    if not holds_files(folder):
        return
    try:
        written = read_json(folder / SAMPLER, {"files": dict})["files"]
    except (ValueError, OSError) as error:
        raise ValueError(f"{folder} holds files, and no older export ({SAMPLER}); name an empty folder.") from error
    for name in WRITTEN:
        if (folder / name).exists():
            try:
                check_files(folder, written, [name])
            except ValueError as error:
                raise ValueError(
                    f"{folder / name} is not what an export wrote; move it, or name a new folder."
                ) from error


def write_export(pipeline: DDPMPipelineCustom, folder: Path, how: Export) -> float | None:
    """Write a model into a folder, and compare it with the pipeline.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, on the CPU.
        folder (`Path`): It replaces an older export there, if nobody has changed its files.
        how ([`Export`]): The format.

    Returns:
        `float`: The largest difference between images in [0, 1] of the pipeline and of the file, from the same noise;
        None if the file holds weights only.

    Raises:
        ValueError: If the scheduler or the network cannot be exported, the folder holds other files, or the exported
            model computes something else.
        OSError: If the folder cannot be written.
    """
    check_target(folder)
    unet, scheduler = pipeline.unet.eval(), pipeline.scheduler
    names, count = unet.config.class_names, unet.config.num_class_embeds
    if how.guidance_scale != 1 and not names:
        raise ValueError(f"--guidance_scale {how.guidance_scale:g} needs a model of named classes.")
    table = table_of(scheduler, how.num_inference_steps)
    size = unet.config.sample_size
    if size is None:
        raise ValueError("The U-Net's configuration has no `sample_size`; expected height and width of the pictures.")
    height, width = (size, size) if isinstance(size, int) else size
    about = {
        "ddpm_hf_version": __version__,
        "loop": how.loop,
        "sample_shape": [unet.config.in_channels, height, width],
        "classes": len(names) if names else count or 0,
        "class_names": list(names) if names else None,
        "class_frequencies": unet.config.class_frequencies,
        "guidance_scale": how.guidance_scale,
        "scheduler": type(scheduler).__name__,
        "prediction_type": scheduler.config.prediction_type,
        "noisy": is_noisy(table),
        "clip": clip_of(scheduler),
        "pixel_format": unet.config.pixel_format,
        "steps": table,
    }
    with tempfile.TemporaryDirectory() as place:
        made = Path(place)
        if how.format == "safetensors-only":
            difference = None
            _write_weights(unet, made, how.dtype)
        else:
            _write_graph(unet, made / FILES[how.format], about, how)
            difference = _difference(pipeline, made / FILES[how.format], about, how)
        if how.dtype == "fp32" and difference is not None and not difference <= TOLERANCE:
            raise ValueError(
                f"The exported model draws pictures that differ by {difference:g} of the range; expected at most "
                f"{TOLERANCE:g}. Nothing was written."
            )
        if how.format == "onnx":
            shutil.copyfile(draw.__file__, made / READER)
        about["files"] = describe_files(made)
        write_json(made / SAMPLER, about)
        # At every moment, the files that are there are those that sampler.json lists.
        folder.mkdir(parents=True, exist_ok=True)
        for name in WRITTEN:
            (folder / name).unlink(missing_ok=True)
        for name in (SAMPLER, *about["files"]):
            unfinished = folder / f".unfinished-{name}"  # on the same disk, so that it is renamed at once
            shutil.copyfile(made / name, unfinished)
            os.replace(unfinished, folder / name)
    return difference


def _write_weights(unet: DDPMUNetModel, folder: Path, dtype: Dtype):
    weights = {name: tensor.contiguous() for name, tensor in unet.state_dict().items()}
    if dtype == "fp16":
        weights = {name: tensor.half() for name, tensor in weights.items()}
    save_file(weights, folder / FILES["safetensors-only"])
    (folder / CONFIG).write_text(unet.to_json_string(), encoding="utf-8")


def _write_graph(unet: DDPMUNetModel, file: Path, about: dict, how: Export):
    network = Network(unet, how.guidance_scale)
    step = Step(network, about["steps"], about["clip"])
    names = ["sample", *(["class_labels"] if about["classes"] else [])]
    if how.loop:
        names += ["noise"] if about["noisy"] else []
    else:
        names += ["timestep"]
    if how.format == "torch.export":
        inputs, free = example(unet, names, how.num_inference_steps)
        module = (Loop(step) if how.loop else network).eval()
        torch.export.save(torch.export.export(module, (), inputs, dynamic_shapes=free), file)
        return
    from ddpm_hf.export.graph import save_onnx, to_onnx, with_half_weights, with_int8_weights, with_loop

    if how.loop:
        model = to_onnx(step.eval(), *example(unet, [*names, "index"], how.num_inference_steps), "x_next")
    else:
        model = to_onnx(network.eval(), *example(unet, names), "out_sample")
    if how.dtype == "int8":
        model = with_int8_weights(model)
    if how.loop:
        model = with_loop(model, how.num_inference_steps)
    if how.dtype == "fp16":
        model = with_half_weights(model)
    save_onnx(model, file)


def noise_of(generator: torch.Generator, count: int, about: dict) -> tuple[np.ndarray, np.ndarray | None]:
    """Return the noise that a pipeline draws from a generator: x_T `(count, C, H, W)`, and z of all steps.

    Args:
        generator (`torch.Generator`): Of the call.
        count (`int`): Number of images.
        about (`dict`): The contents of sampler.json. Only if it is `noisy`, there are z, `(steps, count, C, H, W)`.
    """
    shape = (count, *about["sample_shape"])
    x_T = torch.randn(shape, generator=generator)
    if not about["noisy"]:
        return x_T.numpy(), None
    z = [torch.randn(shape, generator=generator) if t else torch.zeros(shape) for t in about["steps"]["timesteps"]]
    return x_T.numpy(), torch.stack(z).numpy()


class _Program:
    """A program of torch.export, called as the reader calls a model of onnxruntime."""

    def __init__(self, file: Path):
        self.module = torch.export.load(file).module()

    @torch.no_grad()
    def run(self, _, inputs: dict) -> list[np.ndarray]:
        return [self.module(**{name: torch.from_numpy(array) for name, array in inputs.items()}).numpy()]


def _open(file: Path, format: Format):
    """Open what was written, as the reader does."""
    if format == "torch.export":
        return _Program(file)
    from ddpm_hf.export.graph import open_onnx

    return open_onnx(file)


def _difference(pipeline: DDPMPipelineCustom, file: Path, about: dict, how: Export) -> float:
    """Draw a few images from the same noise with the pipeline and with what was written; return how far they differ."""
    has_own_steps = how.loop or pipeline.config.distilled
    steps = how.num_inference_steps if has_own_steps else min(how.num_inference_steps, COMPARED)
    network = _open(file, how.format)
    numbers = np.arange(COMPARED) % about["classes"] if about["classes"] else None
    options: dict[str, Any] = {"output_type": "pt", "return_dict": False, "guidance_scale": how.guidance_scale}
    if numbers is not None:
        options["class_labels"] = [about["class_names"][i] if about["class_names"] else i for i in numbers.tolist()]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so few steps draw bad pictures
        (expected,) = pipeline(COMPARED, torch.Generator().manual_seed(0), steps, **options)
        about = {**about, "steps": table_of(pipeline.scheduler, steps)}
    x_t, z = noise_of(torch.Generator().manual_seed(0), COMPARED, about)
    images = draw.draw(network, about, x_t, numbers, z)
    return float(np.abs(images - expected.numpy()).max())
