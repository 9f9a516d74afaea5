"""Write the folder of an exported model, and compare it with the pipeline."""

import shutil
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import torch
from safetensors.torch import save_file

from ddpm_hf import __version__
from ddpm_hf.export import draw
from ddpm_hf.export.graph import open_onnx, to_onnx, with_half_weights, with_int8_weights, with_loop
from ddpm_hf.export.modules import Loop, Network, Step, example, is_noisy
from ddpm_hf.export.table import clip_of, table_of
from ddpm_hf.files import write_json
from ddpm_hf.pipeline_ddpm_custom import DDPMPipelineCustom

Format = Literal["onnx", "torch.export", "safetensors-only"]
Dtype = Literal["fp32", "fp16", "int8"]
DTYPES: dict[Format, tuple[Dtype, ...]] = {
    "onnx": ("fp32", "fp16", "int8"),
    "torch.export": ("fp32",),
    "safetensors-only": ("fp32", "fp16"),
}
FILES: dict[Format, str] = {"onnx": "model.onnx", "torch.export": "model.pt2", "safetensors-only": "model.safetensors"}
SAMPLER, CONFIG, READER = "sampler.json", "config.json", "draw.py"
WRITTEN = (SAMPLER, CONFIG, READER, *FILES.values())
MADE_BY = "ddpm_hf_version"  # a key of sampler.json, by which an older export is known
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
    """Raise a ValueError if a folder holds other files than an older export."""
    if not folder.exists() or all(path.name.startswith(".") for path in folder.iterdir()):
        return
    sampler = folder / SAMPLER
    if not sampler.is_file() or MADE_BY not in sampler.read_text(encoding="utf-8", errors="replace"):
        raise ValueError(f"{folder} holds files, and no older export ({SAMPLER}); name an empty folder.")


def write_export(pipeline: DDPMPipelineCustom, folder: Path, how: Export) -> float | None:
    """Write a model into a folder, and compare it with the pipeline.

    Args:
        pipeline ([`DDPMPipelineCustom`]): The model, on the CPU.
        folder (`Path`): It replaces an older export there.
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
    unet = pipeline.unet.eval()
    table = table_of(pipeline.scheduler, how.num_inference_steps)
    noisy, names = is_noisy(table), unet.config.class_names
    if how.guidance_scale != 1 and not names:
        raise ValueError(f"--guidance_scale {how.guidance_scale:g} needs a model of named classes.")
    of_class = ["class_labels"] if unet.config.num_class_embeds else []
    network = Network(unet, how.guidance_scale)
    step = Step(network, table, clip_of(pipeline.scheduler)).eval()
    folder.mkdir(parents=True, exist_ok=True)
    for name in WRITTEN:
        (folder / name).unlink(missing_ok=True)
    file = folder / FILES[how.format]
    of_network, of_loop = ["sample", "timestep", *of_class], ["sample", *(["noise"] if noisy else []), *of_class]
    match how.format:
        case "onnx":
            _write_onnx(step, file, how, [*of_loop, "index"] if how.loop else of_network)
        case "torch.export":
            module, inputs = (Loop(step), of_loop) if how.loop else (network, of_network)
            traced, free = example(unet, inputs, how.num_inference_steps)
            torch.export.save(torch.export.export(module.eval(), (), traced, dynamic_shapes=free), file)
        case "safetensors-only":
            weights = unet.half().state_dict() if how.dtype == "fp16" else unet.state_dict()
            save_file({name: tensor.contiguous() for name, tensor in weights.items()}, file)
            (folder / CONFIG).write_text(unet.to_json_string(), encoding="utf-8")
    if how.format == "onnx":
        shutil.copyfile(draw.__file__, folder / READER)
    size = unet.config.sample_size
    height, width = (size, size) if isinstance(size, int) else size
    about = {
        MADE_BY: __version__,
        "loop": how.loop,
        "sample_shape": [unet.config.in_channels, height, width],
        "classes": len(names) if names else unet.config.num_class_embeds or 0,
        "class_names": list(names) if names else None,
        "guidance_scale": how.guidance_scale,
        "scheduler": type(pipeline.scheduler).__name__,
        "prediction_type": pipeline.scheduler.config.prediction_type,
        "noisy": noisy,
        "clip": clip_of(pipeline.scheduler),
        "pixel_format": unet.config.pixel_format,
        "steps": table,
    }
    write_json(folder / SAMPLER, about)
    if how.format == "safetensors-only":
        return None
    difference = _difference(pipeline, file, about, how)
    if how.dtype == "fp32" and not difference <= TOLERANCE:
        raise ValueError(
            f"{file} differs from the model by {difference:g}; expected at most {TOLERANCE:g}. Do not use it."
        )
    return difference


def _write_onnx(step: Step, file: Path, how: Export, names: list[str]):
    module, output = (step, "x_next") if how.loop else (step.network, "out_sample")
    model = to_onnx(module, *example(step.network.unet, names, how.num_inference_steps), output)
    if how.dtype == "int8":
        model = with_int8_weights(model)
    if how.loop:
        model = with_loop(model, how.num_inference_steps)
    if how.dtype == "fp16":
        model = with_half_weights(model)
    onnx.save(model, str(file))


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


def _difference(pipeline: DDPMPipelineCustom, file: Path, about: dict, how: Export) -> float:
    """Draw a few images from the same noise with the pipeline and with what was written; return how far they differ."""
    steps = how.num_inference_steps if how.loop or pipeline.config.distilled else min(how.num_inference_steps, COMPARED)
    network = open_onnx(file) if how.format == "onnx" else _Program(file)
    numbers = np.arange(COMPARED) % about["classes"] if about["classes"] else None
    labels = (
        [about["class_names"][i] if about["class_names"] else i for i in numbers.tolist()] if about["classes"] else None
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that so few steps draw bad pictures
        options = {"class_labels": labels, "guidance_scale": how.guidance_scale}
        expected = pipeline(COMPARED, torch.Generator().manual_seed(0), steps, output_type="pt", **options).images
        about = {**about, "steps": table_of(pipeline.scheduler, steps)}
    x_t, z = noise_of(torch.Generator().manual_seed(0), COMPARED, about)
    images = draw.draw(network, about, x_t, numbers, z)
    return float(np.abs(images - expected.numpy()).max())
