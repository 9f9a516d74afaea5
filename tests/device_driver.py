"""A process that trains, draws and evaluates on the CPU and on a stand-in for other devices, and compares.

It prints one line of JSON: what was compared, and where the host waited for the device.
"""

import itertools
import json
import math
import sys
from pathlib import Path

import torch
from stand_in_device import NAME, stand_in

TRAIN = """--model_config_name_or_path {model} --cache_dir {cache} --mixed_precision no --max_train_steps 6
    --logging_steps 3 --train_batch_size 4 --lr_warmup_steps 2 --ddpm_num_inference_steps 4 --eval_batch_size 2
    --learning_rate 1e-3 --resolution 8 --validation_fraction 0.0005 --validation_steps 6 --augment"""


def main(folder: Path, model: str, cache: str):
    with stand_in() as device:
        # Imported here, since they take what the device changes.
        import accelerate.state
        from half_precision import START, started_in_fp16
        from safetensors.torch import load_file

        import ddpm_hf.train
        from ddpm_hf import cli, prepare, unet_ddpm
        from ddpm_hf.training import validation

        validation.PAIRS = 16  # each operation takes long here
        unet_ddpm.CHANNELS_LAST_DEVICES += (NAME,)
        places = (torch.device("cpu"), torch.device(f"{NAME}:0"))

        def put_on(where):
            accelerate.state.PartialState._shared_state["device"] = where

        loss, calls = ddpm_hf.train.denoising_loss, itertools.count(1)
        # The third gradient of each run is not finite.
        ddpm_hf.train.denoising_loss = lambda *args: loss(*args) * (math.nan if next(calls) % 6 == 3 else 1)

        class Scaler(torch.amp.GradScaler):
            """PyTorch's own scaler computes one number in float64, except on Apple's GPUs."""

            def unscale_(self, optimizer):
                device.is_strict = False
                super().unscale_(optimizer)
                device.is_strict = True

        def train(where, name, *flags, in_fp16=False):
            def started(config):
                # The first gradient overflows.
                scaler = Scaler(where.type, init_scale=2.0**16)
                accelerator = started_in_fp16(config, scaler) if in_fp16 else START(config)
                put_on(where)
                accelerator.state.device = where
                return accelerator

            prepare.start_accelerator = started
            run = folder / f"{name}-{where.type}"
            device.waits.clear()
            words = TRAIN.format(model=model, cache=cache).split()
            cli.start_training([*words, *flags, "--output_dir", str(run)])
            accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
            last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
            weights = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
            return weights, dict(device.waits), last["skipped_updates"]

        found = {}
        for optimizer, in_fp16 in (("adamw", False), ("muon", True)):
            name = f"{optimizer} in fp16" if in_fp16 else optimizer
            flags = ("--optimizer", optimizer, "--class_conditional")
            if in_fp16:
                flags += ("--variance_type", "learned_range", "--timestep_sampling", "loss_second_moment")
            (ours, _, skipped), (theirs, waits, skipped_there) = (
                train(where, name, *flags, in_fp16=in_fp16) for where in places
            )
            difference = max((ours[name] - theirs[name]).abs().max().item() for name in ours)
            found[name] = {"difference": difference, "waits": waits, "skipped": [skipped, skipped_there]}
        found["evaluation"] = evaluate(folder, cache, places, put_on)
        found |= draw(folder / "adamw-cpu", device, places)
    print(json.dumps(found))


def evaluate(folder, cache, places, put_on):
    """Return the bits per dimension on the CPU and on the device."""
    from ddpm_hf import cli
    from ddpm_hf.processes import this_process

    values = []
    for where in places:
        this_process()
        put_on(where)
        output = folder / f"{where.type}.json"
        flags = f"--metrics bpd --num_images 4 --bpd_timesteps 4 --batch_size 4 --cache_dir {cache} --output {output}"
        cli.main(["evaluate", str(folder / "adamw-cpu"), *flags.split()])
        values.append(json.loads(output.read_text())["bpd"]["value"])
    assert this_process().device == places[1]
    return values


def draw(run, device, places):
    """Return how far each pipeline's pictures on the device are from those on the CPU, and how often the host waits.

    Also return whether the weights are channels last after each move to and fro.
    """
    from ddpm_hf import DDPMPipelineCustom
    from ddpm_hf.other_schedulers import make_scheduler
    from ddpm_hf.pipelines.ddpm_img2img import DDPMImg2ImgPipeline
    from ddpm_hf.pipelines.ddpm_inpainting import DDPMInpaintingPipeline
    from ddpm_hf.pipelines.ddpm_interpolation import DDPMInterpolationPipeline
    from ddpm_hf.pipelines.ddpm_inversion import DDPMInversionPipeline
    from ddpm_hf.pipelines.ddpm_progressive import DDPMProgressivePipeline

    pipeline = DDPMPipelineCustom.from_pretrained(run)
    weight, layouts = pipeline.unet.conv_out.weight, []
    for where in (*places, *places):
        pipeline.to(where)
        assert weight is pipeline.unet.conv_out.weight and weight.device == where
        layouts.append(weight.is_contiguous(memory_format=torch.channels_last))
    config = pipeline.scheduler.config
    one, another = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=4).images
    mask = one.point(lambda level: 255 * (level > 100))
    labels = {"class_labels": ["3", "7"], "guidance_scale": 2.0}
    calls = {
        **{f"sample with {key}": (DDPMPipelineCustom, (2,), labels, key) for key in ("ddpm", "unipc", "euler")},
        "progressive": (DDPMProgressivePipeline, (2,), {"num_frames": 3, **labels}, "ddpm"),
        "interpolation": (DDPMInterpolationPipeline, (one, another), {"num_frames": 2, **labels}, "ddpm"),
        "inpainting": (DDPMInpaintingPipeline, (one, mask, 2), {"num_resamples": 2, **labels}, "ddpm"),
        "img2img": (DDPMImg2ImgPipeline, (one,), {"class_labels": "3"}, "ddpm"),
        "inversion": (DDPMInversionPipeline, (one, another), {"num_frames": 2, "num_refinements": 0}, "ddpm"),
    }
    found = {}
    for name, (kind, arguments, options, scheduler) in calls.items():
        pictures = []
        for where in places:
            pipeline.unet.to(where)
            chosen = kind(pipeline.unet, make_scheduler(scheduler, config, 4))
            chosen.set_progress_bar_config(disable=True)
            counts = []
            for steps in (2, 4):
                device.waits.clear()
                generator = torch.Generator(where).manual_seed(0)
                random = {} if kind is DDPMInversionPipeline else {"generator": generator}
                output = chosen(*arguments, num_inference_steps=steps, output_type="pt", **random, **options)
                counts.append(sum(device.waits.values()))
            pictures.append(output.images.cpu())
        found[name] = {"difference": (pictures[0] - pictures[1]).abs().max().item(), "waits": counts}
    return {"pipelines": found, "channels_last": layouts}


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), *sys.argv[2:])
