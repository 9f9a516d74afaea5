"""Which scheduler, with which settings, in how many steps? Distance to real pictures, for a trained model.

    python benchmarks/schedulers.py quality/digits-ours-10-0/run                           # the settings of --scheduler
    python benchmarks/schedulers.py quality/digits-ours-10-0/run --steps 10 --variants     # others, to choose from

The judge is that of benchmarks/quality.py, and all rows begin at the same noise. Prints a table in Markdown.
"""

import argparse
from pathlib import Path

import torch
from judge import Judge
from picture_sets import PARTS, load_set
from systems import Draw, drawing_with
from tqdm.auto import tqdm

from ddpm_hf import DDPMPipelineCustom
from ddpm_hf.other_schedulers import make_scheduler
from ddpm_hf.schedulers import SCHEDULERS

SPACINGS = [{"timestep_spacing": spacing} for spacing in ("leading", "linspace", "trailing")]
NOISE_LEVELS = [*SPACINGS, {"use_karras_sigmas": True}, {"use_lu_lambdas": True}]
VARIANTS = {
    "ddpm": [
        {**spacing, **settings}
        for spacing in SPACINGS
        for settings in ({}, {"clip_sample": False}, {"variance_type": "fixed_large"})
    ],
    "ddim": [{**spacing, "clip_sample": clip} for spacing in SPACINGS for clip in (True, False)],
    "dpmsolver++": [{**levels, "solver_order": order} for levels in NOISE_LEVELS for order in (2, 3)],
    "sde-dpmsolver++": NOISE_LEVELS,
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
    parser.add_argument("--work_dir", type=Path, default=Path("quality"), help="where drawn sets are kept")
    arguments = parser.parse_args()

    arguments.work_dir.mkdir(parents=True, exist_ok=True)
    part, for_judge, reference = load_set(arguments.set, arguments.work_dir)
    judge = Judge(for_judge, reference, arguments.set)
    pipeline = DDPMPipelineCustom.from_pretrained(arguments.model)
    config, draw = pipeline.scheduler.config, drawing_with(pipeline)

    columns = " | ".join(f"{steps} steps" for steps in arguments.steps)
    print(f"Real pictures have a distance of {judge.of_real(part)['frechet']:.3g}.\n")
    print(f"| scheduler | settings | {columns} |")
    print("| --- " * (2 + len(arguments.steps)) + "|", flush=True)
    for name in arguments.schedulers:
        for settings in VARIANTS[name] if arguments.variants else [{}]:
            distances = []
            for steps in arguments.steps:
                offered = make_scheduler(name, config, steps)
                pipeline.scheduler = offered.from_config({**offered.config, **settings})
                distances.append(_distance(judge, draw, steps, arguments.num_images, arguments.batch_size))
            about = ", ".join(f"{key} {value}" for key, value in settings.items())
            print(f"| `{name}` | {about} | {' | '.join(distances)} |", flush=True)


def _distance(judge: Judge, draw: Draw, steps: int, num_images: int, batch_size: int) -> str:
    """Return the distance of pictures that are drawn in some steps, or why there is none."""
    batches = []
    try:
        for start in tqdm(range(0, num_images, batch_size), leave=False):
            generator = torch.Generator().manual_seed(start)
            batches.append(draw(min(batch_size, num_images - start), steps, generator))
    except (ValueError, IndexError) as error:  # some schedulers need more steps
        return str(error)
    return f"{judge.measure(torch.cat(batches))['frechet']:.3g}"


if __name__ == "__main__":
    main()
