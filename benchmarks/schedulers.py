"""Which scheduler, with which settings, in how many steps? Distance to real pictures, for a trained model.

    python benchmarks/schedulers.py quality/digits-ours-10-0/run                           # the settings of --scheduler
    python benchmarks/schedulers.py quality/digits-ours-10-0/run --steps 10 --variants     # others, to choose from

The judge is that of benchmarks/quality.py, and all rows begin at the same noise. Prints a table in Markdown.
"""

import argparse
import itertools
import time
from pathlib import Path

import diffusers
import torch
from judge import Judge
from picture_sets import PARTS, load_set
from systems import drawing_with
from tqdm.auto import tqdm

from ddpm_hf import DDPMLinearScheduler, DDPMPipelineCustom
from ddpm_hf.schedulers import SCHEDULERS, SETTINGS

SPACINGS = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
NOISE_LEVELS = [*SPACINGS, {"use_karras_sigmas": True}, {"use_lu_lambdas": True}]
VARIANTS = {
    "ddpm": [{**spacing, "variance_type": kind} for spacing in SPACINGS for kind in ("fixed_small", "fixed_large")],
    "ddim": [{**spacing, "clip_sample": clip} for spacing in SPACINGS for clip in (True, False)],
    "dpmsolver++": [
        *({**levels, "solver_order": order} for levels in NOISE_LEVELS for order in (2, 3)),
        {"timestep_spacing": "trailing", "algorithm_type": "sde-dpmsolver++"},
        {"use_karras_sigmas": True, "algorithm_type": "sde-dpmsolver++"},
    ],
    "unipc": [{**levels, "solver_order": order} for levels in NOISE_LEVELS[:4] for order in (2, 3)],
    "euler": NOISE_LEVELS[:4],
    "euler_a": SPACINGS,
    "heun": NOISE_LEVELS[:4],
    "pndm": [{**spacing, "skip_prk_steps": True} for spacing in SPACINGS],
}


def main():
    parser = argparse.ArgumentParser(description="Compare schedulers and their settings.")
    parser.add_argument("model", help="folder or Hub id of a pipeline trained on the set")
    parser.add_argument("--set", choices=PARTS, default="digits")
    parser.add_argument("--schedulers", nargs="+", choices=SCHEDULERS, default=list(SCHEDULERS))
    parser.add_argument("--steps", type=int, nargs="+", default=[5, 10, 20, 50])
    parser.add_argument("--variants", action="store_true", help="try other settings, too")
    parser.add_argument("--num_images", type=int, default=2000, help="pictures to draw for each row")
    parser.add_argument("--batch_size", type=int, default=250)
    parser.add_argument("--work_dir", type=Path, default=Path("quality"), help="where the judge is kept")
    arguments = parser.parse_args()

    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    part, for_judge, reference = load_set(arguments.set, arguments.work_dir)
    judge = Judge(for_judge, reference, arguments.work_dir / f"judge-{arguments.set}.pt")
    pipeline = DDPMPipelineCustom.from_pretrained(arguments.model)
    config, draw = pipeline.scheduler.config, drawing_with(pipeline)

    print("| scheduler | settings | steps | seconds an image | distance | recognised |")
    print("| --- | --- | --- | --- | --- | --- |")
    real = judge.of_real(part)
    print(f"| (real pictures) | | | | {real['frechet']:.3g} | {real['recognised']:.1%} |", flush=True)
    for name in arguments.schedulers:
        tried = VARIANTS[name] if arguments.variants else [SETTINGS[name]]
        for settings, steps in itertools.product(tried, arguments.steps):
            kind = DDPMLinearScheduler if name == "ddpm" else getattr(diffusers, SCHEDULERS[name])
            pipeline.scheduler = kind.from_config({**config, **settings})
            about = ", ".join(f"{key} {value}" for key, value in settings.items())
            began, batches = time.perf_counter(), []
            try:
                for start in tqdm(range(0, arguments.num_images, arguments.batch_size), leave=False):
                    count = min(arguments.batch_size, arguments.num_images - start)
                    batches.append(draw(count, steps, torch.Generator().manual_seed(start)))
            except (ValueError, IndexError) as error:  # some schedulers need more steps
                print(f"| `{name}` | {about} | {steps} | {error} | | |", flush=True)
                continue
            seconds = (time.perf_counter() - began) / arguments.num_images
            numbers = judge.measure(torch.cat(batches))
            row = f"{seconds:.4f} | {numbers['frechet']:.3g} | {numbers['recognised']:.1%}"
            print(f"| `{name}` | {about} | {steps} | {row} |", flush=True)


if __name__ == "__main__":
    main()
